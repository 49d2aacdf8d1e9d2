"""Showers: what the cells of a detector saw, and what was shot at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Readout
from calolife.detector.presets import Detector
from calolife.errors import MissingExtraError

if TYPE_CHECKING:
    import awkward as ak
    import pandas as pd

__all__ = ["PDG", "UNKNOWN_PARTICLE", "Detector", "Showers", "readout_text", "rotate90", "sum_by_key"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# source: PDG Review, "Monte Carlo particle numbering scheme"
PDG = {"e-": 11, "e+": -11, "gamma": 22, "pi-": -211, "pi+": 211, "proton": 2212, "neutron": 2112, "mu-": 13, "mu+": -13}
UNKNOWN_PARTICLE = 0  # the PDG code 0 belongs to no particle; source: ibid.
_BUDGET = ("active_mev", "passive_mev", "leaked_mev", "invisible_mev")
_PER_SHOWER = ("pdg_id", "energy_gev", "position_mm", "direction", *_BUDGET)
_UNIT_TOLERANCE = 1e-5  # chosen: a direction stored in float32 passes, a slope given for a direction does not


@dataclass(frozen=True, eq=False, repr=False)
class Showers:
    """Showers in one detector: flat hit columns with offsets, and the truth of each shower.

    The hits of shower i are ``cell[offsets[i]:offsets[i + 1]]``, sorted by cell, each cell once. Arrays are kept as
    given where their type fits, not copied, and made read-only.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    offsets : int array, (shower + 1,)
        From 0 to the number of hits, never falling.
    cell : int array, (hit,)
        Cell number of the detector.
    energy_mev : float array, (hit,) [MeV]
        Visible energy of a simhit (>= 0); what the readout gives for a rechit, which noise may make negative.
    pdg_id : int array, (shower,)
        Incident particle; ``UNKNOWN_PARTICLE`` where a file does not tell.
    energy_gev : float array, (shower,) [GeV]
        Kinetic energy of the incident particle, > 0.
    position_mm : float array, (shower, 3) [mm]
        Where it meets the front face (z = 0); a row of NaN where a file does not tell.
    direction : float array, (shower, 3)
        Unit vector; a row of NaN where a file does not tell.
    kind : {"simhit", "rechit"}
        Before or after the readout.
    readout : Readout, optional
        The readout that made the rechits; none for simhits.
    origin : mapping
        Engine, seed, physics list and the like: text and plain numbers.
    active_mev, passive_mev, leaked_mev, invisible_mev : float array, (shower,) [MeV], optional
        Where the energy went: deposits in active material (before Birks) and in passive material, what left the
        detector, and what went into binding energy and neutrinos. NaN where the engine does not know.

    Raises
    ------
    ValueError
        Shapes that do not fit, offsets that fall, cells out of range, out of order or twice in a shower, energies that
        are not finite, a kind of another name, rechits without a readout.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> showers = Showers(calo, [0, 2], [300, 876], [1.5, 0.5], [-211], [10.0], [[0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]])
    >>> showers.n_showers, showers.n_hits, showers.visible_mev.tolist()
    (1, 2, [2.0])
    """

    detector: Detector
    offsets: IntArray
    cell: NDArray[np.int32]
    energy_mev: NDArray[np.float32]
    pdg_id: NDArray[np.int32]
    energy_gev: FloatArray
    position_mm: FloatArray
    direction: FloatArray
    kind: str = "simhit"
    readout: Readout | None = None
    origin: Mapping[str, str | float | int | bool] = field(default_factory=dict)
    active_mev: FloatArray | None = None
    passive_mev: FloatArray | None = None
    leaked_mev: FloatArray | None = None
    invisible_mev: FloatArray | None = None

    def __post_init__(self) -> None:
        for name in ("offsets", "cell", "pdg_id"):
            _must_be_integer(name, getattr(self, name))
        object.__setattr__(self, "offsets", _frozen(self.offsets, np.int64))
        _check_offsets(self.offsets, n_hits=np.size(self.cell))
        _check_cells(np.asarray(self.cell), self.offsets, n_cells=self.detector.n_cells)
        object.__setattr__(self, "cell", _frozen(self.cell, np.int32))
        object.__setattr__(self, "energy_mev", _frozen(self.energy_mev, np.float32))
        object.__setattr__(self, "pdg_id", _frozen(self.pdg_id, np.int32))
        for name in ("energy_gev", "position_mm", "direction"):
            object.__setattr__(self, name, _frozen(getattr(self, name), np.float64))
        object.__setattr__(self, "origin", dict(self.origin))
        self._check_kind()
        self._check_energies()
        self._check_truth()

    def __repr__(self) -> str:
        return f"Showers({self.n_showers} showers, {self.n_hits} {self.kind}s, {self.detector.name})"

    def _check_kind(self) -> None:
        if self.kind not in ("simhit", "rechit"):
            raise ValueError(f"kind {self.kind!r} is not one of simhit, rechit")
        if self.kind == "rechit" and self.readout is None:
            raise ValueError("rechits need the readout that made them; give readout=, or kind='simhit'")
        if self.kind == "simhit" and self.readout is not None:
            raise ValueError("simhits have met no readout; leave readout out, or digitise them")
        for name, value in self.origin.items():
            if not isinstance(name, str) or not isinstance(value, (str, int, float, bool)):
                raise ValueError(f"origin[{name!r}] is a {type(value).__name__}; text, a number or a bool can be stored")

    def _check_energies(self) -> None:
        if self.energy_mev.shape != self.cell.shape:
            raise ValueError(f"energy_mev has shape {self.energy_mev.shape} for {self.cell.size} hits; give one energy per hit")
        # an empty sample has no minimum; the sum is NaN or infinite if any hit is
        if self.energy_mev.size and not np.isfinite(np.add.reduce(self.energy_mev, dtype=np.float64)):
            at = int(np.flatnonzero(~np.isfinite(self.energy_mev))[0])
            where = f"hit {at} (shower {self._shower_at(at)}, cell {self.cell[at]})"
            raise ValueError(f"energy_mev of {where} is {self.energy_mev[at]}; it must be finite")
        if self.kind == "simhit" and self.energy_mev.size and self.energy_mev.min() < 0:
            at = int(self.energy_mev.argmin())
            where = f"hit {at} (shower {self._shower_at(at)}, cell {self.cell[at]})"
            raise ValueError(f"energy_mev of {where} is {self.energy_mev[at]}; visible energy is >= 0, only rechits may fall below")

    def _check_truth(self) -> None:
        n = self.offsets.size - 1
        for name in _BUDGET:
            given = getattr(self, name)
            object.__setattr__(self, name, _frozen(np.full(n, np.nan) if given is None else given, np.float64))
        for name in _PER_SHOWER:
            shape, wanted = getattr(self, name).shape, (n, 3) if name in ("position_mm", "direction") else (n,)
            if shape != wanted:
                raise ValueError(f"{name} has shape {shape}; {n} showers need {wanted}")
        wrong = ~(np.isfinite(self.energy_gev) & (self.energy_gev > 0))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"energy_gev of shower {at} is {self.energy_gev[at]}; it must be finite and > 0")
        for name in ("position_mm", *_BUDGET):
            if np.isinf(getattr(self, name)).any():
                raise ValueError(f"{name} must be finite, or NaN where it is not known")
        length = np.sqrt(np.einsum("ij,ij->i", self.direction, self.direction))
        wrong = ~(np.isnan(self.direction).all(axis=1) | (np.abs(length - 1) < _UNIT_TOLERANCE))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"direction of shower {at} is {self.direction[at].tolist()}; it must be a unit vector, or NaN where not known")

    def _shower_at(self, hit: int) -> int:
        return int(np.searchsorted(self.offsets, hit, side="right")) - 1

    @classmethod
    def from_hits(
        cls,
        detector: Detector,
        shower: ArrayLike,
        cell: ArrayLike,
        energy_mev: ArrayLike,
        *,
        pdg_id: ArrayLike,
        energy_gev: ArrayLike,
        position_mm: ArrayLike | None = None,
        direction: ArrayLike | None = None,
        kind: str = "simhit",
        readout: Readout | None = None,
        origin: Mapping[str, str | float | int | bool] | None = None,
        active_mev: ArrayLike | None = None,
        passive_mev: ArrayLike | None = None,
        leaked_mev: ArrayLike | None = None,
        invisible_mev: ArrayLike | None = None,
    ) -> Showers:
        """Showers from deposits in any order, a cell as often as it was hit.

        Parameters
        ----------
        detector : LayeredCalorimeter or CrystalCalorimeter
        shower, cell : int array, (deposit,)
            Index of the shower, from 0, and cell of each deposit.
        energy_mev : float array, (deposit,) [MeV]
        energy_gev : float array, (shower,) [GeV]
            It also says how many showers there are; one without deposits stays, empty.
        pdg_id : int or int array, (shower,)
        position_mm, direction : float array, (shower, 3), optional
            Unknown (NaN) when left out.
        kind, readout, origin, active_mev, passive_mev, leaked_mev, invisible_mev
            As in `Showers`.

        Returns
        -------
        Showers
            Deposits of a cell are summed in float64, smallest first, so that their order does not matter; a simhit
            that sums to zero is left out.

        Raises
        ------
        ValueError
            As `Showers`; a shower index out of range; columns of different lengths.

        Examples
        --------
        >>> from calolife.detector.presets import load_detector
        >>> calo = load_detector("cu-scint-24x24")
        >>> showers = Showers.from_hits(calo, [0, 0, 0], [9, 5, 9], [1.0, 2.0, 3.0], pdg_id=11, energy_gev=[1.0])
        >>> showers.cell.tolist(), showers.energy_mev.tolist()
        ([5, 9], [2.0, 4.0])
        """
        energy = np.atleast_1d(np.asarray(energy_gev, dtype=np.float64))
        n = energy.size
        _must_be_integer("shower", shower)
        _must_be_integer("cell", cell)
        which, cells = (np.atleast_1d(np.asarray(x)).astype(np.int64) for x in (shower, cell))
        deposit = np.atleast_1d(np.asarray(energy_mev, dtype=np.float64))
        if not which.shape == cells.shape == deposit.shape:
            raise ValueError(f"{which.size} showers, {cells.size} cells and {deposit.size} energies; give three columns of one length")
        if (at := _outside(which, n)) is not None:
            raise ValueError(f"a deposit belongs to shower {at}; energy_gev names {n} showers, 0 to {n - 1}")
        if (at := _outside(cells, detector.n_cells)) is not None:
            raise ValueError(f"a deposit lies in cell {at}; the detector has cells 0 to {detector.n_cells - 1}")
        key, summed = sum_by_key(which * detector.n_cells + cells, deposit)
        if kind == "simhit":
            key, summed = key[summed != 0], summed[summed != 0]
        unknown = np.full((n, 3), np.nan)
        return cls(
            detector,
            np.searchsorted(key, np.arange(n + 1) * np.int64(detector.n_cells)),
            (key % detector.n_cells).astype(np.int32),
            summed.astype(np.float32),
            np.broadcast_to(np.asarray(pdg_id), (n,)),
            energy,
            unknown if position_mm is None else np.asarray(position_mm),
            unknown if direction is None else np.asarray(direction),
            kind=kind, readout=readout, origin=origin or {},
            active_mev=_column(active_mev), passive_mev=_column(passive_mev),
            leaked_mev=_column(leaked_mev), invisible_mev=_column(invisible_mev),
        )  # fmt: skip

    @staticmethod
    def concatenate(samples: Sequence[Showers]) -> Showers:
        """One sample after the other.

        Raises
        ------
        ValueError
            Nothing given; another detector (by digest), kind or readout among them.

        Notes
        -----
        Of `origin`, what all samples share is kept.
        """
        if not samples:
            raise ValueError("no showers to join; give at least one sample")
        first = samples[0]
        for i, other in enumerate(samples[1:], start=1):
            if other.detector.digest != first.detector.digest:
                raise ValueError(
                    f"sample {i} was made in detector {other.detector.name!r} ({other.detector.digest[:8]}), "
                    f"sample 0 in {first.detector.name!r} ({first.detector.digest[:8]}); join showers of one detector only"
                )
            if other.kind != first.kind:
                raise ValueError(f"sample {i} holds {other.kind}s and sample 0 {first.kind}s; digitise both alike first")
            if other.readout != first.readout:
                raise ValueError(f"sample {i} was read out with {other.readout}, sample 0 with {first.readout}; digitise both alike")
        if len(samples) == 1:
            return first
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(s, name) for s in samples]) for name in ("cell", "energy_mev", *_PER_SHOWER)
        }
        n_hit = np.concatenate([np.diff(s.offsets) for s in samples])
        shared = {k: v for k, v in first.origin.items() if all(k in s.origin and s.origin[k] == v for s in samples)}
        return replace(first, offsets=_offsets(n_hit), origin=shared, **columns)

    @property
    def n_showers(self) -> int:
        return self.offsets.size - 1

    @property
    def n_hits(self) -> int:
        return self.cell.size

    @cached_property
    def shower_index(self) -> IntArray:
        """Shower of each hit, (hit,)."""
        return _frozen(np.repeat(np.arange(self.n_showers), np.diff(self.offsets)), np.int64)

    @cached_property
    def layer(self) -> NDArray[np.int32]:
        """Active layer of each hit, (hit,), 0 nearest the beam; all 0 in a crystal detector."""
        if isinstance(self.detector, CrystalCalorimeter):
            return _frozen(np.zeros(self.n_hits), np.int32)
        of_cell = np.repeat(np.arange(self.detector.n_active, dtype=np.int32), np.diff(self.detector.cell_offset))
        return _frozen(of_cell[self.cell], np.int32)

    @cached_property
    def visible_mev(self) -> FloatArray:
        """Energy of all hits of each shower, (shower,) [MeV]."""
        return _frozen(np.bincount(self.shower_index, weights=self.energy_mev, minlength=self.n_showers), np.float64)

    def layer_energy_mev(self) -> FloatArray:
        """Energy per active layer, (shower, layer) [MeV]; one layer in a crystal detector."""
        n_layers = 1 if isinstance(self.detector, CrystalCalorimeter) else self.detector.n_active
        flat = np.bincount(self.shower_index * n_layers + self.layer, weights=self.energy_mev, minlength=self.n_showers * n_layers)
        return np.asarray(flat.reshape(self.n_showers, n_layers), dtype=np.float64)

    def layer_occupancy(self) -> IntArray:
        """Hits per active layer, (shower, layer)."""
        n_layers = 1 if isinstance(self.detector, CrystalCalorimeter) else self.detector.n_active
        flat = np.bincount(self.shower_index * n_layers + self.layer, minlength=self.n_showers * n_layers)
        return flat.reshape(self.n_showers, n_layers)

    def select(self, which: ArrayLike) -> Showers:
        """Some of the showers, in the order asked for.

        Parameters
        ----------
        which : bool array, (shower,), or int array
            A mask, or indices; negative ones count from the end.

        Raises
        ------
        ValueError
            A mask of another length, an index out of range, anything that is not one row.
        """
        index = np.atleast_1d(np.asarray(which))
        n = self.n_showers
        if index.ndim != 1:
            raise ValueError(f"the selection has shape {index.shape}; give one row of indices, or a mask")
        if index.dtype == bool:
            if index.size != n:
                raise ValueError(f"the mask has {index.size} entries for {n} showers; give one per shower")
            index = np.flatnonzero(index)
        elif index.size == 0:
            index = index.astype(np.int64)
        _must_be_integer("the selection", index)
        if (at := _outside(index, n, lowest=-n)) is not None:
            raise ValueError(f"shower {at} is not there; the sample has {n}, from 0")
        index = index.astype(np.int64)  # n may not fit into 8 bits
        index = np.where(index < 0, index + n, index)
        n_hit = np.diff(self.offsets)[index]
        offsets = _offsets(n_hit)
        hit = np.repeat(self.offsets[index] - offsets[:-1], n_hit) + np.arange(offsets[-1])
        columns = {name: getattr(self, name)[index] for name in _PER_SHOWER}
        return replace(self, offsets=offsets, cell=self.cell[hit], energy_mev=self.energy_mev[hit], **columns)

    def shower(self, i: int) -> Showers:
        """One shower, as a sample of one."""
        return self.select([i])

    def between(self, start: int, stop: int) -> Showers:
        """Showers ``start`` to ``stop - 1``, sharing the memory of these."""
        if not 0 <= start <= stop <= self.n_showers:
            raise ValueError(f"showers {start} to {stop} are not all there; the sample has {self.n_showers}, from 0")
        hit = slice(int(self.offsets[start]), int(self.offsets[stop]))
        columns = {name: getattr(self, name)[start:stop] for name in _PER_SHOWER}
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        return replace(self, offsets=offsets, cell=self.cell[hit], energy_mev=self.energy_mev[hit], **columns)

    def as_awkward(self) -> ak.Array:
        """The showers as an awkward array of records; hits are jagged and share our memory.

        Raises
        ------
        MissingExtraError
            No awkward here.
        """
        try:
            import awkward as ak
        except ImportError:
            raise MissingExtraError('the awkward view needs awkward: pip install "calolife[root]"') from None
        jagged = {
            name: ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(self.offsets), ak.contents.NumpyArray(getattr(self, name))))
            for name in ("cell", "energy_mev")
        }
        return ak.zip({**jagged, **{name: getattr(self, name) for name in _PER_SHOWER}}, depth_limit=1)

    def as_pandas(self) -> pd.DataFrame:
        """One row per hit: shower, layer, cell, energy_mev.

        Raises
        ------
        MissingExtraError
            No pandas here.
        """
        columns: dict[str, NDArray[Any]] = {"shower": self.shower_index, "layer": self.layer, "cell": self.cell}
        return _pandas().DataFrame({**columns, "energy_mev": self.energy_mev})

    def truth_as_pandas(self) -> pd.DataFrame:
        """One row per shower: particle, energy, impact point, direction and where the energy went.

        Raises
        ------
        MissingExtraError
            No pandas here.
        """
        axes: dict[str, NDArray[Any]] = {f"{axis}_mm": self.position_mm[:, i] for i, axis in enumerate("xyz")}
        axes |= {f"direction_{axis}": self.direction[:, i] for i, axis in enumerate("xyz")}
        budget = {name: getattr(self, name) for name in _BUDGET}
        return _pandas().DataFrame({"pdg_id": self.pdg_id, "energy_gev": self.energy_gev, **axes, **budget})


def rotate90(showers: Showers) -> Showers:
    """The showers turned by a quarter about the beam axis, x to y.

    Parameters
    ----------
    showers : Showers
        In a square layered detector with as many cells along x as along y.

    Returns
    -------
    Showers
        Hits, impact points and directions turned; four turns give the showers back.

    Raises
    ------
    ValueError
        A detector that does not look the same after the turn.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> showers = Showers.from_hits(calo, [0], [calo.cell_id(0, 20, 11)], [1.0], pdg_id=11, energy_gev=[1.0])
    >>> [int(i[0]) for i in calo.cell_index(rotate90(showers).cell)]
    [0, 12, 20]
    """
    detector = showers.detector
    if isinstance(detector, CrystalCalorimeter) or detector.size_x_mm != detector.size_y_mm or (np.diff(detector.cell_grid) != 0).any():
        raise ValueError(f"detector {detector.name!r} is not the same after a quarter turn; it takes a square stack of square cells")
    layer, ix, iy = detector.cell_index(showers.cell)
    turned = detector.cell_id(layer, detector.cell_grid[layer, 1] - 1 - iy, ix)
    order = np.argsort(showers.shower_index * detector.n_cells + turned)
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return replace(
        showers, cell=turned[order].astype(np.int32), energy_mev=showers.energy_mev[order],
        position_mm=showers.position_mm @ quarter.T, direction=showers.direction @ quarter.T,
    )  # fmt: skip


def readout_text(showers: Showers) -> str:
    """Kind and readout in words that a remark can quote; the same text for the same readout."""
    if showers.readout is None:
        return f"{showers.kind}s"
    record = showers.readout
    told = [
        f"{what} {value:.10g} {unit}"
        for what, value, unit in (
            ("light yield", record.light_yield_pe_per_mev, "/ MeV"), ("noise", record.noise_mev, "MeV"),
            ("threshold", record.threshold_mev, "MeV"), ("saturation", record.saturation_mev, "MeV"),
        )
        if value not in (0.0, np.inf)
    ]  # fmt: skip
    return f"{showers.kind}s of {', '.join(told) or 'an ideal readout'}"


def _pandas() -> Any:
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtraError('the pandas view needs pandas: pip install "calolife[root]"') from None
    return pd


def _frozen(values: ArrayLike, dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.ascontiguousarray(values, dtype=dtype)
    if array is values:
        array = array.view()
    array.flags.writeable = False
    return array


def _column(values: ArrayLike | None) -> FloatArray | None:
    return None if values is None else np.asarray(values, dtype=np.float64)


def _offsets(n_hit: IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(n_hit, dtype=np.int64)])


def _must_be_integer(name: str, values: ArrayLike) -> None:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {array.dtype} values; it must hold integers")


def _outside(values: NDArray[Any], stop: int, *, lowest: int = 0) -> int | None:
    """The smallest or largest value, if it is not one of ``lowest`` ... ``stop - 1``."""
    if values.size == 0:
        return None
    smallest, largest = int(values.min()), int(values.max())
    return smallest if smallest < lowest else largest if largest >= stop else None


def _check_offsets(offsets: IntArray, *, n_hits: int) -> None:
    if offsets.ndim != 1 or offsets.size == 0 or offsets[0] != 0:
        raise ValueError("offsets must start at 0 and have one entry more than there are showers")
    if (offsets[1:] < offsets[:-1]).any():
        at = int(np.flatnonzero(offsets[1:] < offsets[:-1])[0])
        raise ValueError(f"offsets fall from {offsets[at]} to {offsets[at + 1]} at shower {at}; they must never fall")
    if offsets[-1] != n_hits:
        raise ValueError(f"offsets end at {offsets[-1]} but there are {n_hits} hits; the last offset is the number of hits")


def _check_cells(cell: NDArray[Any], offsets: IntArray, *, n_cells: int) -> None:
    if cell.ndim != 1:
        raise ValueError(f"cell has shape {cell.shape}; it is one flat column over all hits")
    if cell.size == 0:
        return
    if (outside := _outside(cell, n_cells)) is not None:
        raise ValueError(f"cell {outside} is not in the detector; it has cells 0 to {n_cells - 1}")
    is_rising = cell[1:] > cell[:-1]
    starts = offsets[1:-1]
    is_rising[starts[(starts > 0) & (starts < cell.size)] - 1] = True  # the first hit of a shower may lie anywhere
    if not is_rising.all():
        at = int(np.flatnonzero(~is_rising)[0]) + 1
        shower = int(np.searchsorted(offsets, at, side="right")) - 1
        if cell[at] == cell[at - 1]:
            raise ValueError(f"shower {shower} has cell {cell[at]} twice; Showers.from_hits sums deposits of a cell")
        raise ValueError(f"shower {shower} has cell {cell[at]} after {cell[at - 1]}; sort hits by cell, as Showers.from_hits does")


def sum_by_key(key: IntArray, value: FloatArray) -> tuple[IntArray, FloatArray]:
    """Sums of the values of each key, keys rising; the order of the input does not matter."""
    if key.size == 0:
        return key, value
    if not (key[1:] > key[:-1]).all():
        # the value is the second sort key: float64 sums depend on the order of three or more terms
        order = np.lexsort((value, key))
        key, value = key[order], value[order]
        start = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        key, value = key[start], np.add.reduceat(value, start)
    return key, value
