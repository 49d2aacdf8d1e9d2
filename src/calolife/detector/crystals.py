"""Crystal calorimeters: a matrix of crystals numbered by (ieta, iphi), unrolled, with its gaps and what lies in front of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.layers import FloatArray, IntArray, Readout, Section, check_materials, describe_materials, digest_of
from calolife.detector.materials import Material

__all__ = ["ETA_PER_CRYSTAL", "CrystalCalorimeter"]

ETA_PER_CRYSTAL = 0.0174  # one crystal of the CMS barrel; source: CMS, JINST 3 (2008) S08004: 0.0174 x 0.0174 in eta and phi
_PHI_PER_CRYSTAL = 2 * math.pi / 360  # source: ibid., 360-fold in phi
_MAX_CELLS = 2**31 - 1  # a cell's number is stored in 32 bits


@dataclass(frozen=True, repr=False)
class CrystalCalorimeter:
    """Crystals side by side, the beam along their axes (+z), the front face at z = 0, x along eta, y along phi, centred on 0.

    The barrel is UNROLLED: a flat matrix seen along the crystal axes.

    Parameters
    ----------
    name : str
    material : Material
    ieta : tuple of int
        Rows, ascending without a hole; 0 is no row: 1 follows -1.
    n_phi : int
        Columns, iphi = 1 ... n_phi.
    is_phi_periodic : bool
        Column 1 is the neighbour of column n_phi.
    crystal_size_mm : float [mm]
        Side of the front face.
    length_mm : float [mm]
    gap_mm : float [mm]
        Dead space between neighbours.
    eta_module_ends : tuple of int
        A module gap lies behind each of these abs(ieta) (0: between -1 and 1), instead of `gap_mm`.
    eta_module_gap_mm : float [mm]
    phi_module_crystals : int
        A module gap lies behind every so many columns, instead of `gap_mm`; 0: none.
    phi_module_gap_mm : float [mm]
    upstream_x0 : tuple of (float, float)
        abs(eta) and depth of the material in front, in X0, abs(eta) ascending; linear between, constant outside. Empty: none.
    readout : Readout

    Raises
    ------
    ValueError
        A size that is not > 0, a gap that is not >= 0, rows with a hole or a 0, a table of upstream material out of order, a material
        of another's name.

    Notes
    -----
    Left out: the taper of the crystals (22 to 26 mm), their tilt by 3 degrees off the vertex, the curvature of the barrel. A gap is
    empty: what fills it takes no energy. An eta or phi step is one crystal wherever a gap widens the distance.
    Source of the layout: CMS, JINST 3 (2008) S08004.

    Examples
    --------
    >>> from calolife.detector.materials import material
    >>> calo = CrystalCalorimeter("small", material("G4_PbWO4"), (1, 2, 3, 4, 5), 5)
    >>> calo.n_cells, int(calo.cell_id(3, 3)), round(calo.depth_x0, 1)
    (25, 12, 25.8)
    """

    name: str
    material: Material
    ieta: tuple[int, ...]
    n_phi: int
    is_phi_periodic: bool = False
    crystal_size_mm: float = 22.0
    length_mm: float = 230.0
    gap_mm: float = 0.0
    eta_module_ends: tuple[int, ...] = ()
    eta_module_gap_mm: float = 0.0
    phi_module_crystals: int = 0
    phi_module_gap_mm: float = 0.0
    upstream_x0: tuple[tuple[float, float], ...] = ()
    readout: Readout = field(default_factory=Readout)

    def __post_init__(self) -> None:
        what = f"crystals {self.name}"
        if not self.name or not self.name.isprintable():
            raise ValueError(f"crystals name {self.name!r} must be printable and not empty; give it one")
        if not isinstance(self.material, Material):
            raise TypeError(f"{what}: material is {type(self.material).__name__}, not a Material; write material({self.material!r})")
        check_materials([self.material])
        object.__setattr__(self, "ieta", tuple(int(i) for i in self.ieta))
        object.__setattr__(self, "eta_module_ends", tuple(int(i) for i in self.eta_module_ends))
        object.__setattr__(self, "upstream_x0", tuple((float(eta), float(depth)) for eta, depth in self.upstream_x0))
        for name in ("crystal_size_mm", "length_mm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{what}: {name} = {getattr(self, name):g} must be finite and > 0")
        for name in ("gap_mm", "eta_module_gap_mm", "phi_module_gap_mm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{what}: {name} = {getattr(self, name):g} must be finite and >= 0")
        if not self.ieta or 0 in self.ieta:
            raise ValueError(f"{what}: ieta must hold at least one row and no 0; rows run ... -2, -1, 1, 2 ...")
        if any(b != (a + 1 or 1) for a, b in zip(self.ieta, self.ieta[1:], strict=False)):
            raise ValueError(f"{what}: ieta must ascend without a hole, 1 after -1; got {self.ieta[0]} ... {self.ieta[-1]}")
        if self.n_phi < 1:
            raise ValueError(f"{what}: n_phi = {self.n_phi} must be >= 1")
        if self.is_phi_periodic and self.n_phi < 3:
            raise ValueError(f"{what}: n_phi = {self.n_phi} cannot close a circle; it takes 3 columns")
        if self.phi_module_crystals < 0:
            raise ValueError(f"{what}: phi_module_crystals = {self.phi_module_crystals} must be >= 0; 0 means no modules")
        if any(end < 0 for end in self.eta_module_ends):
            raise ValueError(f"{what}: eta_module_ends are abs(ieta), so >= 0")
        if self.n_cells > _MAX_CELLS:
            raise ValueError(f"{what}: {self.n_cells} crystals are more than {_MAX_CELLS}")
        eta = [point[0] for point in self.upstream_x0]
        if any(not (math.isfinite(v) and v >= 0) for point in self.upstream_x0 for v in point) or eta != sorted(set(eta)):
            raise ValueError(f"{what}: upstream_x0 must be (abs(eta), X0) points, finite and >= 0, abs(eta) ascending")

    def __repr__(self) -> str:
        cells = f"{self.n_eta} x {self.n_phi} crystals"
        return f"CrystalCalorimeter({self.name!r}, {cells}, {self.length_cm:.4g} cm, {self.depth_x0:.3g} X0)"

    # --- geometry

    @cached_property
    def x_edges_mm(self) -> FloatArray:
        """Lower and upper x of each row, (n_eta, 2) [mm], ascending with ieta."""
        return _edges(self._eta_gaps_mm(), self.crystal_size_mm)

    @cached_property
    def y_edges_mm(self) -> FloatArray:
        """Lower and upper y of each column, (n_phi, 2) [mm], ascending with iphi."""
        return _edges([self._phi_gap_mm(iphi) for iphi in range(1, self.n_phi)], self.crystal_size_mm)

    def _eta_gaps_mm(self) -> list[float]:
        return [self.eta_module_gap_mm if self._has_eta_gap(a, b) else self.gap_mm for a, b in zip(self.ieta, self.ieta[1:], strict=False)]

    def _has_eta_gap(self, lower: int, upper: int) -> bool:
        inner = 0 if lower < 0 < upper else min(abs(lower), abs(upper))
        return inner in self.eta_module_ends

    def _phi_gap_mm(self, iphi: int) -> float:
        is_module_end = self.phi_module_crystals > 0 and iphi % self.phi_module_crystals == 0
        return self.phi_module_gap_mm if is_module_end else self.gap_mm

    @property
    def has_gaps(self) -> bool:
        """Some neighbours do not touch: a particle along the axes may fly through between them."""
        last = self.n_phi if self.is_phi_periodic else self.n_phi - 1
        return any(gap > 0 for gap in self._eta_gaps_mm()) or any(self._phi_gap_mm(iphi) > 0 for iphi in range(1, last + 1))

    @property
    def n_eta(self) -> int:
        return len(self.ieta)

    @property
    def size_x_mm(self) -> float:
        """From the first crystal's edge to the last one's [mm]."""
        return float(self.x_edges_mm[-1, 1] - self.x_edges_mm[0, 0])

    @property
    def size_y_mm(self) -> float:
        return float(self.y_edges_mm[-1, 1] - self.y_edges_mm[0, 0])

    @property
    def period_y_mm(self) -> float:
        """Way around in y [mm]: the size, and the gap between the last column and the first; infinite if phi does not close."""
        return self.size_y_mm + self._phi_gap_mm(self.n_phi) if self.is_phi_periodic else math.inf

    @property
    def z_mm(self) -> FloatArray:
        """Front and back, (2,) [mm]: crystals are one layer."""
        return np.array([0.0, self.length_mm])

    # --- the same questions as to layers

    @property
    def n_layers(self) -> int:
        return 1

    @property
    def n_active(self) -> int:
        return 1

    @property
    def active_layer(self) -> IntArray:
        """Crystals are layer 0, (1,)."""
        return np.zeros(1, dtype=np.int64)

    @property
    def cell_offset(self) -> IntArray:
        """0 and the number of crystals, (2,)."""
        return np.array([0, self.n_cells], dtype=np.int64)

    @property
    def length_cm(self) -> float:
        return self.length_mm / 10

    @property
    def depth_x0(self) -> float:
        """Depth of the crystals in radiation lengths; what lies in front is not counted."""
        return self.length_cm / self.material.x0_cm

    @property
    def depth_lambda(self) -> float:
        """Depth of the crystals in nuclear interaction lengths."""
        return self.length_cm / self.material.lambda_cm

    @property
    def sampling_fraction(self) -> float:
        """1: all of a crystal is active."""
        return 1.0

    @property
    def unpriced(self) -> tuple[str, ...]:
        """The material, if its price is not known."""
        return (self.material.name,) if self.material.price_chf_per_cm_m2 is None else ()

    @property
    def cost_chf(self) -> float:
        """Price of the crystals [CHF].

        Raises
        ------
        ValueError
            A material without a price.
        """
        if self.material.price_chf_per_cm_m2 is None:
            raise ValueError(f"crystals {self.name} have no cost: the price of {self.material.name} is not known")
        return self.material.price_chf_per_cm_m2 * self.length_cm * self.n_cells * self.crystal_size_mm**2 * 1e-6

    @property
    def total(self) -> Section:
        """Sums over all crystals."""
        return Section(
            name=self.name,
            n_layers=1,
            n_active=1,
            n_cells=self.n_cells,
            length_cm=self.length_cm,
            depth_x0=self.depth_x0,
            depth_lambda=self.depth_lambda,
            cost_chf=None if self.unpriced else self.cost_chf,
            sampling_fraction=1.0,
        )

    def sections(self) -> tuple[Section, ...]:
        """The crystals as the one section there is."""
        return (self.total,)

    def effective_material(self) -> Material:
        """The crystals' material."""
        return self.material

    def require_active(self) -> None:
        """Nothing: crystals are always read out."""

    # --- cells

    @property
    def n_cells(self) -> int:
        return self.n_eta * self.n_phi

    def cell_id(self, ieta: ArrayLike, iphi: ArrayLike) -> IntArray:
        """Numbers of crystals: along phi first.

        Parameters
        ----------
        ieta, iphi : int array, (...)

        Returns
        -------
        int array, (...)

        Raises
        ------
        ValueError
            A crystal that is not there.
        """
        eta, phi = np.broadcast_arrays(np.asarray(ieta, dtype=np.int64), np.asarray(iphi, dtype=np.int64))
        if (wrong := (eta == 0) | (eta < self.ieta[0]) | (eta > self.ieta[-1]) | (phi < 1) | (phi > self.n_phi)).any():
            raise ValueError(
                f"crystal (ieta {int(eta[wrong][0])}, iphi {int(phi[wrong][0])}) is not in "
                f"ieta {self.ieta[0]}..{self.ieta[-1]} without 0, iphi 1..{self.n_phi}"
            )
        skipped = (eta > 0) & (self.ieta[0] < 0)  # there is no row 0
        return np.asarray((eta - self.ieta[0] - skipped) * self.n_phi + phi - 1, dtype=np.int64)

    def cell_index(self, cell: ArrayLike) -> tuple[IntArray, IntArray]:
        """ieta and iphi of numbered crystals; the inverse of `cell_id`.

        Raises
        ------
        ValueError
            A number that no crystal has.
        """
        row, column = self._row_column(cell)
        return np.asarray(self.ieta, dtype=np.int64)[row], column + 1

    def cell_position_mm(self, cell: ArrayLike) -> FloatArray:
        """Centres of crystals, (..., 3) [mm]."""
        row, column = self._row_column(cell)
        x, y = self.x_edges_mm.mean(axis=1)[row], self.y_edges_mm.mean(axis=1)[column]
        return np.stack([x, y, np.full_like(x, self.length_mm / 2)], axis=-1)

    def _row_column(self, cell: ArrayLike) -> tuple[IntArray, IntArray]:
        number = np.asarray(cell, dtype=np.int64)
        if (wrong := (number < 0) | (number >= self.n_cells)).any():
            raise ValueError(f"crystal {int(number[wrong].flat[0])} is not in 0..{self.n_cells - 1}")
        return np.divmod(number, self.n_phi)

    # --- eta and phi

    @cached_property
    def _knots(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """x and eta, y and phi where one crystal's step ends and the next begins: in the middle of each gap."""
        ieta = np.asarray(self.ieta)
        eta = ETA_PER_CRYSTAL * np.append(ieta - (ieta > 0), ieta[-1] + (ieta[-1] < 0))
        step = 2 * math.pi / self.n_phi if self.is_phi_periodic else _PHI_PER_CRYSTAL
        phi = step * np.arange(self.n_phi + 1, dtype=np.float64)
        ends = 0.5 * self._phi_gap_mm(self.n_phi) if self.is_phi_periodic else 0.0
        return _middles(self.x_edges_mm, 0.0), eta.astype(np.float64), _middles(self.y_edges_mm, ends), phi

    def eta_phi_at(self, x_mm: ArrayLike, y_mm: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Pseudorapidity and azimuth of points on the front face.

        Parameters
        ----------
        x_mm, y_mm : float array, (...) [mm]

        Returns
        -------
        (eta, phi) : float arrays, (...); phi [rad]
            phi in [-pi, pi) if it closes.

        Notes
        -----
        Linear within a crystal with half the gaps beside it: a crystal is one step of 0.0174 in eta and of 1 degree in phi. Beyond
        the outer edges it goes on as in the last crystal.
        """
        x, eta, y, phi = self._knots
        at_phi = _piecewise(np.asarray(y_mm, dtype=np.float64), y, phi, self.period_y_mm)
        if self.is_phi_periodic:
            at_phi = (at_phi + math.pi) % (2 * math.pi) - math.pi
        return _piecewise(np.asarray(x_mm, dtype=np.float64), x, eta, math.inf), at_phi

    def xy_mm_at(self, eta: ArrayLike, phi: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Points on the front face at a pseudorapidity and azimuth; the inverse of `eta_phi_at`.

        Parameters
        ----------
        eta, phi : float array, (...); phi [rad]

        Returns
        -------
        (x, y) : float arrays, (...) [mm]
        """
        x, at_eta, y, at_phi = self._knots
        period = 2 * math.pi if self.is_phi_periodic else math.inf
        return (
            _piecewise(np.asarray(eta, dtype=np.float64), at_eta, x, math.inf),
            _piecewise(np.asarray(phi, dtype=np.float64), at_phi, y, period),
        )

    def upstream_x0_at(self, eta: ArrayLike) -> FloatArray:
        """Depth of the material in front of the crystals, (...) [X0]; linear between the points of the table."""
        at = np.abs(np.asarray(eta, dtype=np.float64))
        if not self.upstream_x0:
            return np.zeros_like(at)
        known, depth = zip(*self.upstream_x0, strict=True)
        return np.asarray(np.interp(at, known, depth), dtype=np.float64)

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the whole description, 64 hexadecimal digits."""
        described: dict[str, Any] = asdict(self)
        described |= {"kind": "crystals", "material": self.material.name, "materials": describe_materials([self.material])}
        return digest_of(described)


def _edges(gaps_mm: list[float], size_mm: float) -> FloatArray:
    """Edges of slots of one size with gaps between, (n, 2), centred on 0."""
    low = np.concatenate([[0.0], np.cumsum(size_mm + np.asarray(gaps_mm, dtype=np.float64))])
    edges: FloatArray = np.stack([low, low + size_mm], axis=1) - 0.5 * (low[-1] + size_mm)
    edges.flags.writeable = False
    return edges


def _middles(edges_mm: FloatArray, ends_mm: float) -> FloatArray:
    """The outer edges, `ends_mm` further out, and the middle of each gap, (n + 1,)."""
    inner = 0.5 * (edges_mm[:-1, 1] + edges_mm[1:, 0])
    return np.concatenate([[edges_mm[0, 0] - ends_mm], inner, [edges_mm[-1, 1] + ends_mm]])


def _piecewise(at: NDArray[np.float64], known: FloatArray, value: FloatArray, period: float) -> FloatArray:
    """Linear between knots and beyond them; first brought into one period where there is one."""
    if math.isfinite(period):
        at = known[0] + (at - known[0]) % period
    i = np.clip(np.searchsorted(known, at, side="right") - 1, 0, known.size - 2)
    slope = (value[i + 1] - value[i]) / (known[i + 1] - known[i])
    return np.asarray(value[i] + slope * (at - known[i]), dtype=np.float64)
