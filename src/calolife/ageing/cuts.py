"""Which hits of the two samples are compared: cells of a kind share a spectrum, cuts follow each cell's loss of light."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calolife.ageing import likelihood
from calolife.ageing.hits import CellHits, cell_hits
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Readout
from calolife.detector.presets import Detector
from calolife.showers.events import Showers

__all__ = ["Part", "Samples", "floor_mev", "likelihood_fraction", "limit", "prepare", "rough_fraction"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_NOISE_SIGMA = 4.0  # chosen: noise alone then fires a cell once in 30,000 showers
_LEAST_PE = 3.0  # photo-electrons; chosen: fewer are not near enough to a Gaussian
_POOL = 300  # chosen: cells whose spectrum is shared, at least; with fewer it is coarse
_MARGIN = 0.93  # chosen: the cut leaves room for a cell that lost seven percent more than it seemed to have
_CUT_STEP = 0.05  # of ln E; chosen: cells share their cut with those that lost about as much
_LOWEST_START = 0.25  # chosen: least signal fraction that the counts above a high cut can tell
_LEAST_COUNT = 30  # hits above that cut; chosen: they tell the fraction to 10 %
_ROUNDS = 3  # chosen: the second moves a fraction by less than its error, the third tells whether it has settled
_SETTLED = 0.03  # of ln r; chosen: a third of the margin


@dataclass(frozen=True, eq=False)
class Part:
    """Cells that share a spectrum and a cut.

    Parameters
    ----------
    which : bool array, (cell,)
    pool : CellHits
        Hits of the reference in at least 300 cells of the kind, those of `which` among them.
    shape : Shape
    """

    which: BoolArray
    pool: CellHits
    shape: likelihood.Shape


@dataclass(frozen=True, eq=False)
class Samples:
    """Hits of both samples in the cells asked for, and how they are looked at.

    Parameters
    ----------
    reference, today : CellHits
    parts : tuple of Part
        Every cell in one of them.
    is_settled : bool array, (cell,)
        The cut of the cell and what was found above it agree.
    """

    reference: CellHits
    today: CellHits
    parts: tuple[Part, ...]
    is_settled: BoolArray

    def reweighted(self, reference: FloatArray, today: FloatArray) -> Samples:
        """The same with other weights of the showers."""
        parts = tuple(replace(part, pool=part.pool.weighted(reference)) for part in self.parts)
        return replace(self, reference=self.reference.weighted(reference), today=self.today.weighted(today), parts=parts)

    def of_cells(self, which: BoolArray) -> Samples:
        """Some of the cells."""
        parts = tuple(replace(part, which=part.which[which]) for part in self.parts if part.which[which].any())
        return Samples(self.reference.of_cells(which), self.today.of_cells(which), parts, self.is_settled[which])


def floor_mev(readout: Readout) -> float:
    """Energy above which rechits are complete and are no noise [MeV]."""
    least_light = _LEAST_PE / readout.light_yield_pe_per_mev if readout.light_yield_pe_per_mev > 0 else 0.0
    return max(readout.threshold_mev, _NOISE_SIGMA * readout.noise_mev, least_light)


def _top_mev(readout: Readout) -> float:
    """Below it no rechit has met the ceiling; noise comes after it."""
    return (1 - 1e-3) * readout.saturation_mev - _NOISE_SIGMA * readout.noise_mev


def rough_fraction(reference: Showers, today: Showers) -> float:
    """Signal fraction of the whole detector as one cell; 1 where it cannot be told."""
    everything = np.arange(reference.detector.n_cells)
    fraction = _start(reference, today, everything, 1.0)
    samples = _look(reference, today, everything, fraction, np.zeros(0, np.int64))
    if not samples.parts:
        return 1.0
    biggest = max(samples.parts, key=lambda part: part.pool.energy_mev.size)
    one = replace(biggest, which=np.ones(1, dtype=bool))
    seen, aged = (_as_one(sample.of_cells(biggest.which)) for sample in (samples.reference, samples.today))
    shift = float(likelihood_fraction(Samples(seen, aged, (one,), np.ones(1, dtype=bool)))[0])
    return math.exp(shift) if math.isfinite(shift) else 1.0


def _as_one(hits: CellHits) -> CellHits:
    zero = np.zeros(hits.cell_index.size, np.int64)
    return CellHits(1, hits.shower, zero, hits.energy_mev, hits.topology, hits.shower_weight)


def prepare(reference: Showers, today: Showers, cells: IntArray, *, rough: float = 1.0, masked: IntArray) -> Samples:
    """Hits of both samples; where there is a threshold, cuts follow each cell's own signal fraction, found by iteration.

    Parameters
    ----------
    reference, today : Showers
    cells : int array, (cell,)
        Rising.
    rough : float
        Signal fraction of cells that tell none.
    masked : int array
        Cells taken as if they had never fired.

    Returns
    -------
    Samples
    """
    everything = np.arange(reference.detector.n_cells)
    if floor_mev(reference.readout or Readout()) == 0:
        return _look(reference, today, cells, np.full(everything.size, rough), masked)
    fraction = _start(reference, today, everything, rough)
    samples = _look(reference, today, cells, fraction, masked)
    is_settled = np.zeros(cells.size, dtype=bool)
    for _ in range(_ROUNDS):
        own = likelihood_fraction(samples)
        is_known = np.isfinite(own)
        at_cut = np.log(fraction[cells])
        # the cut allows for a little more loss than it was made for, and for any amount less
        is_settled = is_known & (own > at_cut + math.log(_MARGIN)) & (np.abs(own - at_cut) < np.maximum(2 * limit(samples), _SETTLED))
        fraction[cells[is_known]] = np.exp(own[is_known])
        samples = _look(reference, today, cells, fraction, masked)
    return replace(samples, is_settled=is_settled)


def _start(reference: Showers, today: Showers, cells: IntArray, otherwise: float) -> FloatArray:
    """Signal fraction of each cell from its rate: the energy above which today has as many hits as the reference above a high cut.

    It asks for a beam of the same rate per cell, to a factor or so: it only says where to look for the spectrum.
    """
    readout = reference.readout or Readout()
    floor = floor_mev(readout)
    fraction = np.full(cells.size, otherwise)
    if floor == 0:
        return fraction
    high = floor / _LOWEST_START
    n_above = np.bincount(reference.cell[reference.energy_mev > high], minlength=cells.size)
    order = np.lexsort((-today.energy_mev, today.cell))
    cell, energy = today.cell[order], today.energy_mev[order]
    first = np.searchsorted(cell, np.arange(cells.size + 1))
    wanted = np.round(n_above * today.n_showers / reference.n_showers).astype(np.int64)
    is_told = (n_above >= _LEAST_COUNT) & (wanted >= 1) & (wanted <= np.diff(first))
    at = energy[np.minimum(first[:-1] + np.maximum(wanted, 1) - 1, max(energy.size - 1, 0))]
    return np.where(is_told, np.clip(at / high, _LOWEST_START, 1 / _LOWEST_START), fraction)


def _look(reference: Showers, today: Showers, cells: IntArray, fraction: FloatArray, masked: IntArray) -> Samples:
    """Hits above the floor of the readout, and for each cell the cut above which both samples are complete."""
    readout = reference.readout or Readout()
    floor, top = floor_mev(readout), _top_mev(readout)
    # cuts in steps: cells of one step share a score
    step = np.ceil(-np.log(_MARGIN * np.minimum(fraction, 1.0)) / _CUT_STEP).astype(np.int64)
    cut = floor * np.exp(_CUT_STEP * step)
    kinds = _kind_of_cell(reference.detector)
    pool = _pool(reference, cells, kinds)
    pooled = cell_hits(reference, pool, fired_above_mev=cut, kept_above_mev=floor, kept_below_mev=top, masked=masked)
    seen = pooled.of_cells(np.isin(pool, cells))
    aged = cell_hits(today, cells, fired_above_mev=cut * fraction, kept_above_mev=floor, kept_below_mev=top, masked=masked)
    parts = []
    for kind in np.unique(kinds[cells]):
        mine = pooled.of_cells(kinds[pool] == kind)
        if not mine.energy_mev.size:
            continue
        of_kind = cells[kinds[cells] == kind]
        steps = np.unique(step[of_kind]) if floor > 0 else np.zeros(1, np.int64)
        cuts = [floor * math.exp(_CUT_STEP * k) for k in steps]
        shape = likelihood.fit_shape(mine, readout, complete_above_mev=cuts[0], top_mev=top, lowest_fraction=float(fraction[of_kind].min()))
        for k, complete in zip(steps, cuts, strict=True):
            which = (kinds[cells] == kind) & ((step[cells] == k) | (floor == 0))
            parts.append(Part(which, mine, replace(shape, threshold_mev=max(shape.threshold_mev, complete))))
    return Samples(seen, aged, tuple(parts), np.ones(cells.size, dtype=bool))


def _kind_of_cell(detector: Detector) -> IntArray:
    """Cells of one kind have active layers of the same material, thickness and grid: a particle leaves the same in each."""
    if isinstance(detector, CrystalCalorimeter):
        return np.zeros(detector.n_cells, np.int64)
    active = [detector.layers[i] for i in detector.active_layer]
    kinds = [(layer.material.name, layer.thickness_mm, layer.cells) for layer in active]
    number = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    return np.repeat([number[kind] for kind in kinds], np.diff(detector.cell_offset))


def _pool(reference: Showers, cells: IntArray, kinds: IntArray) -> IntArray:
    """The cells, and of each of their kinds the brightest."""
    bright = [cells]
    summed = np.bincount(reference.cell, weights=reference.energy_mev, minlength=kinds.size)
    for kind in np.unique(kinds[cells]):
        mine = np.flatnonzero(kinds == kind)
        bright.append(mine[np.argsort(-summed[mine], kind="stable")[:_POOL]])
    return np.unique(np.concatenate(bright))


def limit(samples: Samples) -> FloatArray:
    """Smallest standard deviation of ln r that the samples allow, (cell,); infinite without hits."""
    found = np.full(samples.reference.n_cells, np.inf)
    for part in samples.parts:
        seen, aged = (hits.of_cells(part.which) for hits in (samples.reference, samples.today))
        found[part.which] = likelihood.limit(part.pool, seen, aged, shape=part.shape)
    return found


def likelihood_fraction(samples: Samples) -> FloatArray:
    """ln r of each cell, (cell,); NaN without hits, and where the largest likelihood lies at the end of what is tried."""
    found = np.full(samples.reference.n_cells, np.nan)
    pool: CellHits | None = None
    for part in samples.parts:
        if part.pool is not pool:
            pool, spectrum = part.pool, likelihood.spectra(part.pool, part.shape)
        tables = likelihood.score_tables(spectrum, part.shape)
        before, now = (
            likelihood.locate(hits.of_cells(part.which), table, part.shape)
            for hits, table in zip((samples.reference, samples.today), tables, strict=True)
        )
        found[part.which] = now - before
    return found
