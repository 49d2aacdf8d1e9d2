"""Signal fractions by maximum likelihood: the spectrum of ln E, one for each neighbourhood of a hit, shifts by ln r.

All cells share the shape of the spectrum, estimated from the reference; each cell finds its own shift, from its own hits.
A light loss is a shift in ln E, photo-statistics and noise apart: those are added to the shape for each loss looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter1d
from scipy.special import ndtr

from calolife.ageing.hits import N_TOPOLOGIES, CellHits, first_half
from calolife.detector.layers import Readout

__all__ = ["Shape", "fit_shape", "information", "limit", "locate", "score_tables", "spectra"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_STEP = 0.005  # of ln E; chosen: a sixth of the narrowest smoothing that is ever best
_SHIFTS = 2 * np.arange(-200, 81)  # bins; chosen: signal fractions from 0.14 to 2.2
_HALF_WINDOW = 3  # shifts on either side of the maximum; chosen: 0.03, the width of the smoothed peak
_WIDTHS = (0.02, 0.03, 0.045, 0.07)  # of ln E, below the bend; chosen: what a peak of minimum ionising particles may need
_WIDE = 0.12  # of ln E, above the bend; chosen: the tail has no structure
_BEND = 1.8  # in units of the most frequent hit energy; chosen: between one and two minimum ionising particles
_BEND_WIDTH = 0.08
_LOWEST = 0.35  # in units of the most frequent hit energy; chosen: below it hits hold little but how the cut was made
_TAPER = 0.15  # of ln E; chosen: hits enter the score gradually, or one at the edge would make it jump
_LARGEST_SCORE = 25.0  # chosen: bounds what one hit can say, far above the slope of any peak (1 / width^2 x width)
_DEEPEST = 5.0  # of ln E below the median hit; chosen: engines leave deposits of 1e-13 MeV, far below any threshold
_NEGLIGIBLE = 1e-5  # of a bin's hits; chosen: a matrix of mostly zeros
_EMPTY = 0.2  # hits in a bin; chosen: where nothing was seen the slope is 0, not 0/0
_LOSSES = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])  # chosen: shapes between them are interpolated


@dataclass(frozen=True)
class Shape:
    """How the spectrum of ln E is looked at: fixed once from the reference, kept for every replica.

    Parameters
    ----------
    low : float
        ln E [MeV] of the lower edge of the first bin.
    n_bins : int
    threshold_mev, bend_mev : float [MeV]
        Hits below the first say nothing, the smoothing widens above the second.
    top_mev : float [MeV]
        Hits above it say nothing: saturation. Infinite without.
    width : float
        Smoothing of ln E below the bend.
    readout : Readout
    losses : tuple of float
        Signal fractions for which today's spectrum is made, rising; it is interpolated between them.
    """

    low: float
    n_bins: int
    threshold_mev: float
    bend_mev: float
    top_mev: float
    width: float
    readout: Readout
    losses: tuple[float, ...]

    @property
    def ln_energy(self) -> FloatArray:
        """Centres of the bins, (bin,)."""
        return np.asarray(self.low + _STEP * (np.arange(self.n_bins) + 0.5), dtype=np.float64)

    def column(self, hits: CellHits) -> IntArray:
        """Topology and bin of each hit as one number, (hit,)."""
        place = np.clip(((np.log(hits.energy_mev) - self.low) / _STEP).astype(np.int64), 0, self.n_bins - 1)
        return hits.topology * np.int64(self.n_bins) + place

    def counts(self, hits: CellHits) -> FloatArray:
        """Weighted hits of all cells together, (topology, bin); without those below the first bin, which are piled up in it."""
        flat = np.bincount(self.column(hits), weights=hits.weight, minlength=N_TOPOLOGIES * self.n_bins)
        counts = flat.reshape(N_TOPOLOGIES, self.n_bins).astype(np.float64)
        counts[:, 0] = 0
        return counts


def fit_shape(
    reference: CellHits, readout: Readout, *, complete_above_mev: float = 0.0, top_mev: float = math.inf, lowest_fraction: float = 0.0
) -> Shape:
    """Choose bins, cuts and smoothing from the reference.

    Parameters
    ----------
    reference : CellHits
    readout : Readout
    complete_above_mev : float [MeV]
        The hits of the reference are complete above it, and those of today above it times their signal fraction.
    top_mev : float [MeV]
        No hits are kept above it.
    lowest_fraction : float
        Signal fractions may be about this small.

    Returns
    -------
    Shape
        The smoothing is the one whose score, made of half the showers, holds most information on the other half.

    Raises
    ------
    ValueError
        No hits.
    """
    if not reference.energy_mev.size:
        raise ValueError("the reference has no hits in these cells; give cells that were hit")
    ln_energy = np.log(reference.energy_mev)
    # what lies below the first bin is below the threshold for every shift
    low = max(float(ln_energy.min()), float(np.median(ln_energy)) - _DEEPEST) + _STEP * int(_SHIFTS[0]) - _STEP
    high = float(ln_energy.max()) - _STEP * int(_SHIFTS[0])
    n_bins = math.ceil((high - low) / _STEP)
    is_plain = readout.light_yield_pe_per_mev == 0 and readout.noise_mev == 0
    losses = (1.0,) if is_plain else tuple(float(loss) for loss in _LOSSES if loss == 1 or loss > lowest_fraction - 0.15)
    shape = Shape(low, n_bins, complete_above_mev, math.inf, math.inf, _WIDTHS[1], readout, losses)
    pooled = gaussian_filter1d(
        shape.counts(reference).sum(axis=0) * (shape.ln_energy > math.log(max(complete_above_mev, 1e-300))), 0.05 / _STEP
    )
    mode_mev = float(np.exp(shape.ln_energy[pooled.argmax()]))
    threshold_mev = max(_LOWEST * mode_mev, complete_above_mev)
    shape = replace(shape, threshold_mev=threshold_mev, bend_mev=_BEND * mode_mev)
    if math.isfinite(top_mev):
        # the spectrum ends there: within the reach of its smoothing the density is that of the end
        shape = replace(shape, top_mev=top_mev * math.exp(-3 * _WIDE))
    tried = [replace(shape, width=width) for width in _WIDTHS]
    return max(tried, key=lambda one: float(information(reference, one).sum()))


def spectra(reference: CellHits, shape: Shape) -> FloatArray:
    """Hits of all cells together as today would see them for each of the shape's losses, in undamaged energy, (loss, topology, bin).

    Notes
    -----
    Photo-statistics and noise weigh more where light is lost: each bin hands its hits to the bins around it, by a
    Gaussian in energy. Without either, one spectrum serves all losses.
    """
    counts = shape.counts(reference)
    return np.stack([counts if loss == 1 else counts @ _smearing(shape.low, shape.n_bins, shape.readout, loss) for loss in shape.losses])


def score_tables(spectrum: FloatArray, shape: Shape) -> tuple[FloatArray, FloatArray]:
    """Score of a hit in each bin for each shift of its cell, (topology x bin, shift): for the reference and for today.

    Notes
    -----
    The score is minus the slope of ln(density) in ln E, tapered at the threshold, with mean 0 over the hits above it:
    unbiased for a spectrum that is cut there. Today's is that of the loss which the shift stands for.
    """
    scores = np.stack([_score(counts, shape) for counts in spectrum])
    unaged = _shifted(scores[-1:], (1.0,))
    return unaged, unaged if len(scores) == 1 else _shifted(scores, shape.losses)


def locate(hits: CellHits, table: FloatArray, shape: Shape) -> FloatArray:
    """Shift of ln E of each cell: where its summed score vanishes, next to the largest likelihood.

    Parameters
    ----------
    hits : CellHits
    table : float array, (topology x bin, shift)
        Of `score_tables`.
    shape : Shape

    Returns
    -------
    float array, (cell,)
        ln of the scale of its energies relative to the pool; NaN without hits, and at either end of what is tried.
    """
    cells = sparse.csr_matrix((hits.weight, shape.column(hits), hits.start), shape=(hits.n_cells, N_TOPOLOGIES * shape.n_bins))
    summed = np.asarray(cells @ table)  # (cell, shift)
    shift = _STEP * _SHIFTS
    likelihood = np.concatenate([np.zeros((hits.n_cells, 1)), np.cumsum(summed[:, 1:] + summed[:, :-1], axis=1)], axis=1)
    best = likelihood.argmax(axis=1)
    is_inside = (best >= _HALF_WINDOW) & (best < shift.size - _HALF_WINDOW)
    best = np.clip(best, _HALF_WINDOW, shift.size - 1 - _HALF_WINDOW)
    # a straight line through the score around the maximum: its ripples are those of the smoothed spectrum
    window = best[:, None] + np.arange(-_HALF_WINDOW, _HALF_WINDOW + 1)
    y = np.take_along_axis(summed, window, axis=1)
    x = shift[window] - shift[best][:, None]
    slope = (x * y).sum(axis=1) / (x * x).sum(axis=1)
    is_falling = slope < 0
    correction = np.where(is_falling, -y.mean(axis=1) / np.where(is_falling, slope, 1.0), 0.0)
    widest = _STEP * 2 * _HALF_WINDOW
    found = shift[best] + np.clip(correction, -widest, widest)
    return np.where(is_inside & (hits.n_hits > 0), found, np.nan)


def information(hits: CellHits, shape: Shape) -> FloatArray:
    """Information on ln r that a hit of each topology holds, (topology,), in proportion to their number; cross-fitted.

    Parameters
    ----------
    hits : CellHits
    shape : Shape

    Returns
    -------
    float array, (topology,)
        Expected slope of the score squared over its mean square, times the weighted hits, summed over halves: the score comes from
        one half of the showers and is judged on the other. No score holds more than the spectrum does; the best of several is the estimate.
    """
    is_first = first_half(hits)
    halves = [hits.weighted(hits.shower_weight * is_first), hits.weighted(hits.shower_weight * ~is_first)]
    total = np.zeros(N_TOPOLOGIES)
    for fitted, judged in (halves, halves[::-1]):
        score = _score(shape.counts(fitted), shape)
        slope = np.gradient(score, _STEP, axis=1)
        counts = shape.counts(judged)
        square = (counts * score**2).sum(axis=1)
        total += np.divide((counts * slope).sum(axis=1) ** 2, square, out=np.zeros(N_TOPOLOGIES), where=square > 0)
    return total


def limit(pool: CellHits, reference: CellHits, today: CellHits, *, shape: Shape) -> FloatArray:
    """Smallest standard deviation of ln r that the two samples allow, (cell,); infinite without hits.

    Notes
    -----
    The Cramer-Rao limit with the information of the stratified spectrum of the pool, for hits of both samples. Hits far
    below the threshold of the shape count in the average over the pool, as they do in the cells.
    """
    held = information(pool, shape)
    n_of_kind = np.bincount(pool.topology, weights=pool.weight, minlength=N_TOPOLOGIES)
    per_hit = np.divide(held, n_of_kind, out=np.zeros(N_TOPOLOGIES), where=n_of_kind > 0)
    with np.errstate(divide="ignore"):
        variance = [1 / np.bincount(h.cell_index, weights=h.weight * per_hit[h.topology], minlength=h.n_cells) for h in (reference, today)]
    return np.sqrt(variance[0] + variance[1])


def _score(counts: FloatArray, shape: Shape) -> FloatArray:
    x = shape.ln_energy
    narrow = gaussian_filter1d(counts, shape.width / _STEP, axis=1, mode="constant")
    wide = gaussian_filter1d(counts, _WIDE / _STEP, axis=1, mode="constant")
    share = 1 / (1 + np.exp(-np.clip((x - math.log(shape.bend_mev)) / _BEND_WIDTH, -50, 50)))
    density = (1 - share) * narrow + share * wide
    floor = _EMPTY + 1e-9 * density.max(axis=1, keepdims=True)
    score = np.clip(-np.gradient(density, _STEP, axis=1) / np.maximum(density, floor), -_LARGEST_SCORE, _LARGEST_SCORE)
    taper = np.clip((x - math.log(shape.threshold_mev)) / _TAPER, 0, 1)
    if math.isfinite(shape.top_mev):
        taper = taper * np.clip((math.log(shape.top_mev) - x) / _TAPER, 0, 1)
    weight = density * taper
    total = weight.sum(axis=1)
    mean = np.divide((weight * score).sum(axis=1), total, out=np.zeros(counts.shape[0]), where=total > 0)
    return np.asarray(taper * (score - mean[:, None]))


@lru_cache(maxsize=16)
def _smearing(low: float, n_bins: int, readout: Readout, loss: float) -> sparse.csr_matrix:
    """Where the hits of each bin go when this much of the light is left, (bin from, bin to)."""
    energy = np.exp(low + _STEP * (np.arange(n_bins) + 0.5))
    variance = (1 / loss**2 - 1) * readout.noise_mev**2 * np.ones(n_bins)
    if (light_yield := readout.light_yield_pe_per_mev) > 0:
        variance += (1 / loss - 1) * energy / light_yield
        # hits are spread over one photo-electron, more of undamaged energy today
        variance += (1 / loss**2 - 1) / (12 * light_yield**2)
    edge = np.exp(low + _STEP * np.arange(n_bins + 1))
    share = np.diff(ndtr((edge[None, :] - energy[:, None]) / np.sqrt(variance)[:, None]), axis=1)
    share[share < _NEGLIGIBLE] = 0
    return sparse.csr_matrix(share)


def _shifted(score: FloatArray, losses: tuple[float, ...]) -> FloatArray:
    """Score of a hit in each bin for each shift, (topology x bin, shift): of the shape that belongs to this loss."""
    n_losses, n_kinds, n_bins = score.shape
    out = np.zeros((n_kinds, n_bins, _SHIFTS.size))
    at = np.zeros(_SHIFTS.size) if n_losses == 1 else np.interp(np.exp(_STEP * _SHIFTS), losses, np.arange(n_losses))
    for j, shift in enumerate(_SHIFTS):
        lower = min(int(at[j]), n_losses - 1)
        upper = min(lower + 1, n_losses - 1)
        shape = score[lower] + (at[j] - lower) * (score[upper] - score[lower])
        if shift >= 0:
            out[:, shift:, j] = shape[:, : n_bins - shift]
        else:
            out[:, :shift, j] = shape[:, -shift:]
    return out.reshape(n_kinds * n_bins, _SHIFTS.size)
