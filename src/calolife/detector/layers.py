"""Layered calorimeters: what they are made of, contain and cost, and how their cells are numbered."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.materials import Material, material, material_names, mixture

__all__ = ["Layer", "LayeredCalorimeter", "Readout", "Section", "check_materials", "describe_materials", "digest_of", "fold_periods"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MAX_MM = 1e9  # chosen: a thousand kilometres; sums and areas stay far from the end of floats
_MAX_CELLS = 2**31 - 1  # a cell's number is stored in 32 bits


@dataclass(frozen=True)
class Readout:
    """What the electronics makes of the visible energy in one cell.

    Parameters
    ----------
    light_yield_pe_per_mev : float [photo-electrons/MeV]
        0: no photo-statistics.
    noise_mev : float [MeV]
        Standard deviation of the electronics noise of a cell.
    threshold_mev : float [MeV]
        Cells below it are not read out.
    saturation_mev : float [MeV]
        No cell reads more; infinite: none saturates.

    Raises
    ------
    ValueError
        A negative number, NaN, a threshold that is not below the saturation.

    Examples
    --------
    >>> Readout(noise_mev=0.1, threshold_mev=0.3).saturation_mev
    inf
    """

    light_yield_pe_per_mev: float = 0.0
    noise_mev: float = 0.0
    threshold_mev: float = 0.0
    saturation_mev: float = math.inf

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0 or (name != "saturation_mev" and math.isinf(value)):
                raise ValueError(f"readout: {name} = {value:g} must be finite and >= 0; leave it out to have none")
        if self.threshold_mev >= self.saturation_mev:
            raise ValueError(f"readout: threshold_mev = {self.threshold_mev:g} must be below saturation_mev = {self.saturation_mev:g}")


@dataclass(frozen=True)
class Layer:
    """A slab of one material across the whole calorimeter.

    Parameters
    ----------
    material : Material
    thickness_mm : float [mm]
    is_active : bool
        Its deposits are read out.
    cells : (int, int)
        Cells along x and along y of an active layer.
    section : str
        Layers in a row with the same section are summed up together.

    Raises
    ------
    ValueError
        Thickness not finite, not > 0 or above 1e9; less than one cell; cells in a passive layer.

    Examples
    --------
    >>> Layer(material("G4_POLYSTYRENE"), 2.0, is_active=True, cells=(10, 10)).thickness_mm
    2.0
    """

    material: Material
    thickness_mm: float
    is_active: bool = False
    cells: tuple[int, int] = (1, 1)
    section: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.material, Material):
            raise TypeError(f"layer: material is {type(self.material).__name__}, not a Material; write material({self.material!r})")
        what = f"layer of {self.material.name}"
        if not (math.isfinite(self.thickness_mm) and self.thickness_mm > 0):
            raise ValueError(f"{what}: thickness_mm = {self.thickness_mm:g} must be finite and > 0; drop the layer to have none of it")
        if self.thickness_mm > _MAX_MM:
            raise ValueError(f"{what}: thickness_mm = {self.thickness_mm:g} is more than {_MAX_MM:g}; thicknesses are in mm")
        if len(self.cells) != 2 or any(not isinstance(n, (int, np.integer)) or n < 1 for n in self.cells):
            raise ValueError(f"{what}: cells = {_written(self.cells)} must be two whole numbers >= 1, along x and along y")
        object.__setattr__(self, "thickness_mm", float(self.thickness_mm))
        object.__setattr__(self, "cells", (int(self.cells[0]), int(self.cells[1])))
        if not self.is_active and self.cells != (1, 1):
            raise ValueError(f"{what}: cells = {_written(self.cells)} but nothing reads out a passive layer; drop them or make it active")


def _written(cells: Sequence[Any]) -> str:
    return "x".join(map(str, cells)) if cells else "none"


@dataclass(frozen=True)
class Section:
    """Sums over the layers of one section, or over a whole calorimeter; `cost_chf` is None where a price is not known."""

    name: str
    n_layers: int
    n_active: int
    n_cells: int
    length_cm: float
    depth_x0: float
    depth_lambda: float
    cost_chf: float | None
    sampling_fraction: float


@dataclass(frozen=True, repr=False)
class LayeredCalorimeter:
    """Slabs one behind the other, the beam along +z, the front face at z = 0, x and y centred on 0.

    Parameters
    ----------
    name : str
    layers : tuple of Layer
        From the beam on. Empty is a start, to be filled by `add_layer` and `add_period`.
    size_x_mm, size_y_mm : float [mm]
    readout : Readout

    Raises
    ------
    ValueError
        No name, a size that is not finite and > 0, two materials of one name, more cells than can be numbered.

    Notes
    -----
    Left out: supports, cables, gaps between cells, dead edges, anything that is not a slab.

    Examples
    --------
    >>> lead, plastic = Layer(material("G4_Pb"), 2.0), Layer(material("G4_POLYSTYRENE"), 2.0, is_active=True, cells=(10, 10))
    >>> calo = LayeredCalorimeter("mine", (), 500.0, 500.0).add_period(60, lead, plastic)
    >>> calo.n_active, calo.n_cells, calo.length_cm, round(calo.depth_x0, 1), calo.cost_chf
    (60, 6000, 24.0, 21.7, 900.0)
    """

    name: str
    layers: tuple[Layer, ...]
    size_x_mm: float
    size_y_mm: float
    readout: Readout = field(default_factory=Readout)

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ValueError(f"calorimeter name {self.name!r} must be printable and not empty; give it one")
        object.__setattr__(self, "layers", tuple(self.layers))
        for name in ("size_x_mm", "size_y_mm"):
            size = getattr(self, name)
            if not (math.isfinite(size) and size > 0):
                raise ValueError(f"calorimeter {self.name}: {name} = {size:g} must be finite and > 0")
            if size > _MAX_MM:
                raise ValueError(f"calorimeter {self.name}: {name} = {size:g} is more than {_MAX_MM:g}; sizes are in mm")
            object.__setattr__(self, name, float(size))
        check_materials([layer.material for layer in self.layers])
        n_cells = sum(layer.cells[0] * layer.cells[1] for layer in self.layers if layer.is_active)
        if n_cells > _MAX_CELLS:
            raise ValueError(f"calorimeter {self.name}: {n_cells} cells are more than {_MAX_CELLS}; make them larger")

    def __repr__(self) -> str:
        cells = f"{self.n_layers} layers, {self.n_cells} cells"
        return f"LayeredCalorimeter({self.name!r}, {cells}, {self.length_cm:.4g} cm, {self.depth_x0:.3g} X0)"

    # --- what it is made of

    def add_layer(
        self,
        layer_or_material: Layer | Material | str,
        thickness_mm: float | None = None,
        *,
        is_active: bool = False,
        cells: tuple[int, int] = (1, 1),
        section: str = "",
    ) -> LayeredCalorimeter:
        """The calorimeter with one more layer behind the last: a `Layer`, or a material and what else a `Layer` takes.

        Raises
        ------
        TypeError
            A `Layer` and more, or a material without a thickness.

        Examples
        --------
        >>> LayeredCalorimeter("slab", (), 100.0, 100.0).add_layer("G4_PbWO4", 230.0, is_active=True).n_layers
        1
        """
        if isinstance(layer_or_material, Layer):
            if (thickness_mm, is_active, tuple(cells), section) != (None, False, (1, 1), ""):
                raise TypeError("add_layer: a Layer has its own thickness, cells and section; give it alone")
            return self.add_period(1, layer_or_material)
        if thickness_mm is None:
            raise TypeError("add_layer: a material needs its thickness_mm; or give a Layer")
        of = material(layer_or_material) if isinstance(layer_or_material, str) else layer_or_material
        return self.add_period(1, Layer(of, thickness_mm, is_active, cells, section))

    def add_period(self, n: int, *layers: Layer) -> LayeredCalorimeter:
        """The calorimeter with `layers` n times behind the last.

        Raises
        ------
        ValueError
            n < 1, or no layers.

        Examples
        --------
        >>> calo = LayeredCalorimeter("mine", (), 100.0, 100.0)
        >>> calo.add_period(3, Layer(material("G4_Fe"), 8.0), Layer(material("G4_POLYSTYRENE"), 8.0, is_active=True)).n_layers
        6
        """
        if n < 1:
            raise ValueError(f"a period of {n} repetitions adds nothing; n must be >= 1")
        if not layers:
            raise ValueError("a period of no layers adds nothing; give at least one Layer")
        return replace(self, layers=self.layers + layers * n)

    def require_active(self) -> None:
        """Nothing, if there is something to read out.

        Raises
        ------
        ValueError
            No layer at all, or no active one.
        """
        if not self.n_active:
            which = "no active layer" if self.layers else "no layers"
            raise ValueError(f"calorimeter {self.name} has {which}: nothing is read out; mark at least one layer active")

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def active_layer(self) -> IntArray:
        """Index into `layers` of each active layer, (n_active,)."""
        return _frozen(np.array([i for i, layer in enumerate(self.layers) if layer.is_active], dtype=np.int64))

    @property
    def n_active(self) -> int:
        return int(self.active_layer.size)

    @cached_property
    def z_mm(self) -> FloatArray:
        """Boundaries of the layers, (n_layers + 1,) [mm]."""
        return _frozen(np.concatenate([[0.0], np.cumsum([layer.thickness_mm for layer in self.layers], dtype=np.float64)]))

    # --- what it contains and costs

    @cached_property
    def total(self) -> Section:
        """Sums over all layers."""
        return _sum_up(self.name, self.layers, self.size_x_mm * self.size_y_mm * 1e-6)

    @property
    def length_cm(self) -> float:
        return self.total.length_cm

    @property
    def depth_x0(self) -> float:
        """Depth in radiation lengths."""
        return self.total.depth_x0

    @property
    def depth_lambda(self) -> float:
        """Depth in nuclear interaction lengths."""
        return self.total.depth_lambda

    @property
    def sampling_fraction(self) -> float:
        """Energy that a minimum ionising particle leaves in active layers over what it leaves in all; 0 without layers."""
        return self.total.sampling_fraction

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Materials in it whose price is not known."""
        return tuple(dict.fromkeys(m.name for m in (layer.material for layer in self.layers) if m.price_chf_per_cm_m2 is None))

    @property
    def cost_chf(self) -> float:
        """Price of the materials [CHF].

        Raises
        ------
        ValueError
            A material without a price.
        """
        if self.total.cost_chf is None:
            raise ValueError(f"calorimeter {self.name} has no cost: the price of {', '.join(self.unpriced)} is not known")
        return self.total.cost_chf

    def sections(self) -> tuple[Section, ...]:
        """Sums over each section, from the beam on."""
        area_m2 = self.size_x_mm * self.size_y_mm * 1e-6
        return tuple(_sum_up(name, tuple(layers), area_m2) for name, layers in groupby(self.layers, key=lambda layer: layer.section))

    def effective_material(self) -> Material:
        """The layers taken as one uniform mixture, with the mean density.

        Raises
        ------
        ValueError
            No layers.

        Notes
        -----
        Mass fractions as Grindhammer and Peters use them for sampling calorimeters, hep-ex/0001020.
        """
        if not self.layers:
            raise ValueError(f"calorimeter {self.name} has no layers; add some")
        mass: dict[Material, float] = {}
        for layer in self.layers:
            mass[layer.material] = mass.get(layer.material, 0.0) + layer.material.density_g_cm3 * layer.thickness_mm
        total = math.fsum(mass.values())
        density = total / math.fsum(layer.thickness_mm for layer in self.layers)
        return mixture(self.name, {of: m / total for of, m in mass.items()}, density_g_cm3=density)

    # --- cells

    @cached_property
    def cell_offset(self) -> IntArray:
        """Number of the first cell of each active layer, and of all cells last, (n_active + 1,)."""
        n = [layer.cells[0] * layer.cells[1] for layer in self.layers if layer.is_active]
        return _frozen(np.concatenate([[0], np.cumsum(n, dtype=np.int64)]).astype(np.int64))

    @property
    def n_cells(self) -> int:
        return int(self.cell_offset[-1])

    @cached_property
    def cell_grid(self) -> IntArray:
        """Cells along x and along y of each active layer, (n_active, 2)."""
        return _frozen(np.array([layer.cells for layer in self.layers if layer.is_active], dtype=np.int64).reshape(-1, 2))

    def cell_id(self, layer: ArrayLike, ix: ArrayLike, iy: ArrayLike) -> IntArray:
        """Numbers of cells: the cells of active layer 0 first, then along x, then along y.

        Parameters
        ----------
        layer : int array, (...)
            ACTIVE layer, 0 nearest the beam.
        ix, iy : int array, (...)

        Returns
        -------
        int array, (...)

        Raises
        ------
        ValueError
            A layer or cell that is not there.
        """
        at, x, y = np.broadcast_arrays(*(np.asarray(v, dtype=np.int64) for v in (layer, ix, iy)))
        if ((at < 0) | (at >= self.n_active)).any():
            raise ValueError(f"active layer {int(at[(at < 0) | (at >= self.n_active)].flat[0])} is not in 0..{self.n_active - 1}")
        grid = self.cell_grid[at]  # (...) -> (..., 2)
        if (wrong := (x < 0) | (x >= grid[..., 0]) | (y < 0) | (y >= grid[..., 1])).any():
            n_x, n_y = grid[wrong][0]
            raise ValueError(f"cell ({int(x[wrong][0])}, {int(y[wrong][0])}) is not on a layer of {n_x} x {n_y} cells")
        numbers: IntArray = self.cell_offset[at] + x * grid[..., 1] + y
        return numbers

    def cell_index(self, cell: ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
        """Active layer, ix and iy of numbered cells; the inverse of `cell_id`.

        Raises
        ------
        ValueError
            A number that no cell has.
        """
        number = np.asarray(cell, dtype=np.int64)
        if (wrong := (number < 0) | (number >= self.n_cells)).any():
            raise ValueError(f"cell {int(number[wrong].flat[0])} is not in 0..{self.n_cells - 1}")
        layer = np.asarray(np.searchsorted(self.cell_offset, number, side="right") - 1, dtype=np.int64)
        ix, iy = np.divmod(number - self.cell_offset[layer], self.cell_grid[layer, 1])
        return layer, ix, iy

    def cell_position_mm(self, cell: ArrayLike) -> FloatArray:
        """Centres of cells, (..., 3) [mm]."""
        layer, ix, iy = self.cell_index(cell)
        n_x, n_y = self.cell_grid[layer, 0], self.cell_grid[layer, 1]
        at = self.active_layer[layer]
        x = self.size_x_mm * ((ix + 0.5) / n_x - 0.5)
        y = self.size_y_mm * ((iy + 0.5) / n_y - 0.5)
        return np.stack([x, y, 0.5 * (self.z_mm[at] + self.z_mm[at + 1])], axis=-1)

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the whole description, 64 hexadecimal digits."""
        layers = [[lay.material.name, lay.thickness_mm, lay.is_active, *lay.cells, lay.section] for lay in self.layers]
        materials = describe_materials([layer.material for layer in self.layers])
        return digest_of(
            {"kind": "layers", "name": self.name, "size_mm": [self.size_x_mm, self.size_y_mm], "layers": layers,
             "materials": materials, "readout": asdict(self.readout)}
        )  # fmt: skip


def fold_periods(layers: tuple[Layer, ...]) -> list[tuple[int, tuple[Layer, ...]]]:
    """Layers as (repetitions, period) blocks; unfolded they are the same layers.

    Examples
    --------
    >>> slab, gap = Layer(material("G4_Fe"), 8.0), Layer(material("G4_AIR"), 8.0)
    >>> [(n, len(period)) for n, period in fold_periods((slab, gap, slab, gap, slab))]
    [(2, 2), (1, 1)]
    """
    found: list[tuple[int, tuple[Layer, ...]]] = []
    single: list[Layer] = []
    i = 0
    while i < len(layers):
        covered, period = 0, 0
        for length in range(1, min(12, (len(layers) - i) // 2) + 1):  # chosen: nobody writes longer periods by hand
            n = 1
            while layers[i + n * length : i + (n + 1) * length] == layers[i : i + length]:
                n += 1
            if n > 1 and n * length > covered:
                covered, period = n * length, length
        if not covered:
            single.append(layers[i])
            i += 1
            continue
        if single:
            found.append((1, tuple(single)))
            single = []
        found.append((covered // period, layers[i : i + period]))
        i += covered
    return [*found, (1, tuple(single))] if single else found


def check_materials(used: Sequence[Material]) -> None:
    """Nothing, if each name stands for one material: a file, and Geant4, know a material by its name.

    Raises
    ------
    ValueError
        A material with the name of one of the table but other numbers; two of one name.
    """
    known = {name: material(name) for name in material_names()}
    for m in {id(m): m for m in used}.values():
        if known.setdefault(m.name, m) != m:
            raise ValueError(f"material {m.name} is already there with other numbers; give yours another name, with mixture()")


def describe_materials(used: Sequence[Material]) -> list[dict[str, Any]]:
    """Numbers of those materials that the table does not hold, each once; a material of the table is told by its name."""
    known = material_names()
    return [asdict(m) for m in dict.fromkeys(used) if m.name not in known]


def digest_of(description: dict[str, Any]) -> str:
    """SHA-256 of a description; floats to their last digit, whole numbers the same as int or float."""
    return hashlib.sha256(json.dumps(_canonical(description), sort_keys=True).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    return value if isinstance(value, (bool, str)) or value is None else repr(float(value))


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _sum_up(name: str, layers: tuple[Layer, ...], area_m2: float) -> Section:
    # math.fsum rounds once: no sum depends on the order of the layers
    cm = [(layer, layer.thickness_mm / 10) for layer in layers]
    prices = [layer.material.price_chf_per_cm_m2 for layer in layers]
    active_mev = math.fsum(t * layer.material.min_dedx_mev_cm for layer, t in cm if layer.is_active)
    total_mev = math.fsum(t * layer.material.min_dedx_mev_cm for layer, t in cm)
    return Section(
        name=name,
        n_layers=len(layers),
        n_active=sum(layer.is_active for layer in layers),
        n_cells=sum(layer.cells[0] * layer.cells[1] for layer in layers if layer.is_active),
        length_cm=math.fsum(layer.thickness_mm for layer in layers) / 10,
        depth_x0=math.fsum(t / layer.material.x0_cm for layer, t in cm),
        depth_lambda=math.fsum(t / layer.material.lambda_cm for layer, t in cm),
        cost_chf=None if None in prices else math.fsum(p * t * area_m2 for p, (_, t) in zip(prices, cm, strict=True) if p is not None),
        sampling_fraction=active_mev / total_mev if total_mev else 0.0,
    )
