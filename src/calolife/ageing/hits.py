"""What the estimators see: the hits of the chosen cells, each with the number of its neighbours that fired."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.presets import Detector
from calolife.showers.events import Showers
from calolife.showers.splitmix import GOLDEN, scrambled, unit_interval

__all__ = ["N_TOPOLOGIES", "CellHits", "brightest_cells", "cell_hits", "first_half", "neighbours"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

N_TOPOLOGIES = 9
_OCCUPANCY_BYTES = 1 << 26  # chosen: occupancy maps of 64 MB at a time


@dataclass(frozen=True, eq=False)
class CellHits:
    """Hits of some cells in one sample of showers, sorted by cell.

    Parameters
    ----------
    n_cells : int
    shower : int array, (hit,)
        Index of the shower, from 0.
    cell_index : int array, (hit,)
        Place of the cell in the list it was chosen from, rising.
    energy_mev : float array, (hit,) [MeV]
        > 0.
    topology : int array, (hit,)
        0 to ``N_TOPOLOGIES`` - 1: 3 x (0, 1 or 2 for 0, 1-2, 3 or more neighbours that fired in the layer) + cells that
        fired right before and behind (0, 1 or 2).
    shower_weight : float array, (shower,)
        >= 0; ones for the sample as it is, whole numbers for a bootstrap replica of it.
    """

    n_cells: int
    shower: IntArray
    cell_index: IntArray
    energy_mev: FloatArray
    topology: NDArray[np.int8]
    shower_weight: FloatArray

    @property
    def n_showers(self) -> int:
        return self.shower_weight.size

    @cached_property
    def weight(self) -> FloatArray:
        """Weight of each hit, (hit,): that of its shower."""
        return self.shower_weight[self.shower]

    @cached_property
    def start(self) -> IntArray:
        """Where the hits of each cell begin, and the number of hits last, (cell + 1,)."""
        return np.searchsorted(self.cell_index, np.arange(self.n_cells + 1))

    @cached_property
    def n_hits(self) -> FloatArray:
        """Weighted number of hits of each cell, (cell,)."""
        return np.bincount(self.cell_index, weights=self.weight, minlength=self.n_cells).astype(np.float64)

    def resampled(self, rng: np.random.Generator) -> CellHits:
        """A bootstrap replica: as many showers drawn with replacement, told by their weights."""
        drawn = rng.multinomial(self.n_showers, np.full(self.n_showers, 1 / max(self.n_showers, 1)))
        return replace(self, shower_weight=self.shower_weight * drawn)

    def weighted(self, shower_weight: ArrayLike) -> CellHits:
        """The same hits with other weights of the showers."""
        return replace(self, shower_weight=np.asarray(shower_weight, dtype=np.float64))

    def scaled(self, factor: FloatArray, *, above_mev: float) -> CellHits:
        """The hits with the energies of each cell multiplied, (cell,), and only those that are then above an energy."""
        energy = self.energy_mev * factor[self.cell_index]
        kept = energy > above_mev
        columns = {name: getattr(self, name)[kept] for name in ("shower", "cell_index", "topology")}
        return replace(self, energy_mev=energy[kept], **columns)

    def of_cells(self, which: NDArray[np.bool_]) -> CellHits:
        """The hits of some of the cells, numbered anew."""
        kept = which[self.cell_index]
        place = np.cumsum(which) - 1
        return CellHits(
            int(which.sum()),
            self.shower[kept],
            place[self.cell_index[kept]],
            self.energy_mev[kept],
            self.topology[kept],
            self.shower_weight,
        )


def brightest_cells(showers: Showers, n: int | None = None) -> IntArray:
    """Cells with the largest summed energy.

    Parameters
    ----------
    showers : Showers
    n : int, optional
        How many; every cell of the detector when left out.

    Returns
    -------
    int array, (cell,)
        Cell numbers, rising. Of cells with equal sums the lower number comes first.

    Raises
    ------
    ValueError
        Less than one cell, or more than the detector has.
    """
    n_all = showers.detector.n_cells
    if n is None:
        return np.arange(n_all)
    if not 1 <= n <= n_all:
        raise ValueError(f"{n} cells asked for; detector {showers.detector.name!r} has {n_all}: give 1 to {n_all}")
    summed = np.bincount(showers.cell, weights=showers.energy_mev, minlength=n_all)
    return np.sort(np.argsort(-summed, kind="stable")[:n])


def first_half(hits: CellHits) -> NDArray[np.bool_]:
    """Half of the showers, by the digits of their largest hit: the same showers in any order, copies together."""
    largest = np.zeros(hits.n_showers)
    np.maximum.at(largest, hits.shower, hits.energy_mev)
    # the golden ratio spreads the fractional parts of any grid of energies; 2^20 reaches the digits that look random
    return np.asarray((np.frexp(largest)[0] * 2**20 * 0.6180339887498949) % 1 < 0.5)


def neighbours(detector: Detector) -> tuple[IntArray, IntArray]:
    """Neighbours of every cell.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter

    Returns
    -------
    side : int array, (cell, 8)
        In the same layer; the number of cells where there is none.
    tower : int array, (cell, 2)
        Right before and behind: the cell whose centre region holds this one's centre; the number of cells where there
        is none.
    """
    none = detector.n_cells
    steps = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
    side = np.full((none, 8), none)
    tower = np.full((none, 2), none)
    cells = np.arange(none)
    if isinstance(detector, CrystalCalorimeter):
        row, column = np.divmod(cells, detector.n_phi)
        for k, (dx, dy) in enumerate(steps):
            x, y = row + dx, column + dy
            if detector.is_phi_periodic:
                y = y % detector.n_phi
            inside = (x >= 0) & (x < detector.n_eta) & (y >= 0) & (y < detector.n_phi)
            side[inside, k] = x[inside] * detector.n_phi + y[inside]
        return side, tower
    layer, ix, iy = detector.cell_index(cells)
    n_x, n_y = detector.cell_grid[layer, 0], detector.cell_grid[layer, 1]
    for k, (dx, dy) in enumerate(steps):
        x, y = ix + dx, iy + dy
        inside = (x >= 0) & (x < n_x) & (y >= 0) & (y < n_y)
        side[inside, k] = detector.cell_id(layer[inside], x[inside], y[inside])
    for k, dz in enumerate((-1, 1)):
        inside = (layer + dz >= 0) & (layer + dz < detector.n_active)
        other = detector.cell_grid[layer[inside] + dz]
        x = (2 * ix[inside] + 1) * other[:, 0] // (2 * n_x[inside])
        y = (2 * iy[inside] + 1) * other[:, 1] // (2 * n_y[inside])
        tower[inside, k] = detector.cell_id(layer[inside] + dz, x, y)
    return side, tower


def cell_hits(
    showers: Showers,
    cells: IntArray,
    *,
    fired_above_mev: ArrayLike = 0.0,
    kept_above_mev: float | None = None,
    kept_below_mev: float = np.inf,
    masked: ArrayLike = (),
) -> CellHits:
    """Hits of some cells, with the neighbours counted among all cells.

    Parameters
    ----------
    showers : Showers
    cells : int array, (cell,)
        Cell numbers, rising.
    fired_above_mev : float or float array, (all cells,) [MeV]
        A cell fires above this energy, for its neighbours.
    kept_above_mev, kept_below_mev : float [MeV]
        Hits that are kept; those above which their cell fires when left out.
    masked : int array
        Cells that are taken as if they had never fired, dead and hot ones.

    Returns
    -------
    CellHits
        Hits with no energy or a negative one are left out. Energies that count photo-electrons are spread evenly over
        the step between one and the next, by a hash of the shower's energy and the cell.
    """
    n_all = showers.detector.n_cells
    fires_above = np.broadcast_to(np.maximum(np.asarray(fired_above_mev, dtype=np.float64), 0.0), (n_all,)).copy()
    fires_above[np.asarray(masked, dtype=np.int64)] = np.inf
    place = np.full(n_all, -1)
    place[cells] = np.arange(cells.size)
    has_fired = showers.energy_mev > fires_above[showers.cell]
    is_kept = (
        has_fired if kept_above_mev is None else (showers.energy_mev > max(kept_above_mev, 0.0)) & np.isfinite(fires_above[showers.cell])
    )
    is_kept = is_kept & (showers.energy_mev < kept_below_mev) & (place[showers.cell] >= 0)
    topology = _topology(showers, has_fired, is_kept)
    index = place[showers.cell[is_kept]]
    order = np.argsort(index, kind="stable")
    energy = showers.energy_mev[is_kept].astype(np.float64)
    if showers.readout is not None and showers.readout.light_yield_pe_per_mev > 0:
        energy = np.maximum(energy + _dither(showers)[is_kept] / showers.readout.light_yield_pe_per_mev, np.finfo(np.float32).tiny)
    return CellHits(
        cells.size, showers.shower_index[is_kept][order], index[order], energy[order], topology[order], np.ones(showers.n_showers)
    )


def _dither(showers: Showers) -> FloatArray:
    """A number between -0.5 and 0.5 for each hit, the same wherever the shower stands in the sample."""
    shower = scrambled(showers.visible_mev.view(np.uint64))[showers.shower_index]
    return unit_interval(scrambled(shower + (showers.cell.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))) - 0.5


def _topology(showers: Showers, has_fired: NDArray[np.bool_], is_kept: NDArray[np.bool_]) -> NDArray[np.int8]:
    side, tower = neighbours(showers.detector)
    n_all = showers.detector.n_cells
    step = max(1, _OCCUPANCY_BYTES // (n_all + 1))
    parts = [np.zeros(0, np.int8)]
    for start in range(0, showers.n_showers, step):
        stop = min(start + step, showers.n_showers)
        hit = slice(showers.offsets[start], showers.offsets[stop])
        shower = showers.shower_index[hit] - start
        cell, kept = showers.cell[hit], is_kept[hit]
        # one column more, never fired: where there is no neighbour
        fired = np.zeros((stop - start, n_all + 1), dtype=np.uint8)
        fired[shower[has_fired[hit]], cell[has_fired[hit]]] = 1
        shower, cell = shower[kept], cell[kept]
        n_side = sum((fired[shower, side[cell, k]] for k in range(8)), np.zeros(cell.size, np.uint8))
        n_tower = fired[shower, tower[cell, 0]] + fired[shower, tower[cell, 1]]
        parts.append((3 * ((n_side > 0).astype(np.int8) + (n_side >= 3)) + n_tower).astype(np.int8))
    return np.concatenate(parts)
