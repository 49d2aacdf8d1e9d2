"""The readout: visible energy in, rechits out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, pdtr

from calolife.detector.layers import Readout
from calolife.detector.presets import Detector
from calolife.showers.events import Showers, sum_by_key
from calolife.showers.splitmix import GOLDEN, scrambled, unit_interval

__all__ = ["digitise", "draw_cells"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# one stream of random numbers per purpose: adding a step to the readout moves no number of another
_PILEUP_NUMBER, _PILEUP_PICK, _PHOTONS, _NOISE, _GAP, _TAIL, _HOT, _CELLS, _PILEUP_MEAN = range(9)
_MOST_RECHITS = 200_000_000  # chosen: 1.6 GB of columns; more is for a stream of parts
_BLOCK_RECHITS = 200_000  # chosen: intermediate columns mostly stay in the cache of a processor
_GRID_CELLS = 500_000  # chosen: overlaid hits are summed in a grid of 4 MB; more cells than that are sorted
_NOISE_SHARE = 0.6  # chosen: of the threshold, left to noise where a cell is dropped unread; 1 % is read all the same
_LEFT_OVER = 0.01  # chosen: upper tail of the light of a cell that is dropped unread
_NORMAL_ABOVE = 1e5  # chosen: skewness 1/sqrt(mean) is corrected for; what is left is under 1e-3 of the width


@dataclass(frozen=True, eq=False)
class _Settings:
    readout: Readout
    seed: int
    is_dead: NDArray[np.bool_]
    hot: IntArray
    hot_mev: float
    pileup: Showers | None
    pileup_mean: tuple[float, float]


def digitise(
    showers: Showers,
    readout: Readout | None = None,
    *,
    seed: int,
    first: int = 0,
    dead: ArrayLike = (),
    hot: ArrayLike = (),
    hot_mev: float = 1.0,
    pileup: Showers | None = None,
    pileup_mean: float | tuple[float, float] = 0.0,
) -> Showers:
    """What the readout makes of visible energy.

    Parameters
    ----------
    showers : Showers
        Simhits.
    readout : Readout, optional
        The detector's own when left out.
    seed : int
    first : int
        Number of the first shower in its sample: a sample digitised in parts, each with its own `first`, gives what
        it gives in one go.
    dead : int array
        Cells that read nothing.
    hot : int array
        Cells that are present in every shower: threshold plus an exponential of mean `hot_mev` on top of what they read.
    hot_mev : float [MeV]
    pileup : Showers, optional
        Simhits of the same detector to draw overlaid showers from. They should not be the showers themselves.
    pileup_mean : float or (float, float)
        Mean number of overlaid showers, Poisson; a pair is a range from which each shower draws its mean, flat.

    Returns
    -------
    Showers
        Rechits, with the truth of the showers (not of the pileup). Of a range of means, `origin` tells the middle as
        ``pileup_mean`` and its ends.

    Raises
    ------
    ValueError
        Rechits given; a cell out of range, or dead and hot at once; pileup of another detector or kind; a mean below 0 or
        a range that does not rise; noise without a threshold on so many cells that the result would not fit in memory.

    Notes
    -----
    In this order: dead cells, pileup, photo-statistics (Poisson of light yield x energy), saturation (a ceiling),
    electronics noise (Gaussian, on every cell, also those without a hit), threshold (rechits below it are dropped),
    hot cells. With noise and a threshold, empty cells that noise lifts above it appear with the probability of the
    Gaussian tail; with noise and threshold 0 every cell of every shower is a rechit, negative energies included.

    Every random number is a hash of the seed, the shower's number and the cell (the SplitMix64 sequence of Steele, Lea
    and Flood, OOPSLA 2014): results do not depend on batches, hit order or workers.

    Not modelled: cross-talk, time, dark counts, non-uniform cells, saturation below the ceiling. Noise is added after
    the ceiling and can exceed it.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> showers = Showers.from_hits(calo, [0, 0], [300, 876], [15.0, 0.1], pdg_id=-211, energy_gev=[10.0])
    >>> rechits = digitise(showers, Readout(threshold_mev=0.5), seed=1)
    >>> rechits.kind, rechits.cell.tolist()
    ('rechit', [300])
    """
    if showers.kind != "simhit":
        raise ValueError(f"these showers are {showers.kind}s already; digitise simhits")
    if not (0 <= seed < 2**63 and first >= 0 and seed == int(seed) and first == int(first)):
        raise ValueError(f"seed = {seed} and first = {first} must be whole numbers >= 0, the seed below 2^63")
    used = showers.detector.readout if readout is None else readout
    n_cells = showers.detector.n_cells
    is_dead = np.zeros(n_cells, dtype=bool)
    is_dead[_cells(dead, "dead", n_cells)] = True
    hot_cells = _cells(hot, "hot", n_cells)
    if is_dead[hot_cells].any():
        raise ValueError(f"cell {int(hot_cells[is_dead[hot_cells]][0])} is both dead and hot; take it out of one list")
    if not (np.isfinite(hot_mev) and hot_mev > 0):
        raise ValueError(f"hot_mev = {hot_mev} must be finite and > 0")
    means = _check_pileup(showers, pileup, pileup_mean)
    mean = 0.5 * (means[0] + means[1])
    n_expected = _expected_rechits(showers, used, pileup, mean)
    if n_expected > _MOST_RECHITS:
        raise ValueError(
            f"noise of {used.noise_mev} MeV, a threshold of {used.threshold_mev} MeV and {mean:g} overlaid showers make "
            f"{n_expected:.2g} rechits of {showers.n_showers} showers with {n_cells} cells; at most {_MOST_RECHITS:.0e} fit: raise "
            "the threshold, overlay fewer, or digitise in parts (first=)"
        )
    settings = _Settings(used, seed, is_dead, hot_cells, hot_mev, pileup if means[1] > 0 else None, means)
    parts = [_read_out(part, at, settings) for at, part in _blocks(showers, settings, first)]
    n_hit = np.concatenate([np.zeros(0, np.int64), *(n for n, _, _ in parts)])
    return replace(
        showers,
        offsets=np.concatenate([[0], np.cumsum(n_hit)]),
        cell=np.concatenate([np.zeros(0, np.int32), *(c for _, c, _ in parts)]),
        energy_mev=np.concatenate([np.zeros(0, np.float32), *(e for _, _, e in parts)]),
        kind="rechit",
        readout=used,
        origin={
            **showers.origin,
            "digitise_seed": seed,
            "n_dead": int(is_dead.sum()),
            "n_hot": hot_cells.size,
            "pileup_mean": mean,
            **({} if means[0] == means[1] else {"pileup_mean_low": means[0], "pileup_mean_high": means[1]}),
        },
    )


def draw_cells(detector: Detector, fraction: float, *, seed: int) -> IntArray:
    """Cells taken at random, for instance as dead ones.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    fraction : float
        Of all cells; rounded to whole cells.
    seed : int

    Returns
    -------
    int array, (cell,)
        Sorted. A larger fraction with the same seed holds the cells of a smaller one.

    Raises
    ------
    ValueError
        A fraction outside 0 to 1, a seed that is not 0 to 2^63 - 1.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> draw_cells(load_detector("cu-scint-24x24"), 0.01, seed=1).size
    230
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction = {fraction} must be between 0 and 1; 0.01 is one cell in a hundred")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed = {seed} must be a whole number >= 0 and below 2^63")
    draw = _uniform(seed, _CELLS, np.zeros(1, np.int64), np.arange(detector.n_cells))
    return np.sort(np.argsort(draw, kind="stable")[: round(fraction * detector.n_cells)])


def _expected_rechits(showers: Showers, readout: Readout, pileup: Showers | None, pileup_mean: float) -> float:
    """Rechits to come, on average and at most: the hits, those of the pileup, and cells that noise alone lifts above the threshold."""
    overlaid = 0.0 if pileup is None or pileup_mean == 0 else pileup_mean * pileup.n_hits / pileup.n_showers
    return showers.n_hits + showers.n_showers * (overlaid + showers.detector.n_cells * _tail(readout))


def _tail(readout: Readout) -> float:
    """Probability that noise alone makes a rechit of an empty cell."""
    if readout.noise_mev == 0:
        return 0.0
    return 1.0 if readout.threshold_mev == 0 else float(ndtr(-readout.threshold_mev / readout.noise_mev))


def _cells(cells: ArrayLike, name: str, n_cells: int) -> IntArray:
    found = np.unique(np.asarray(cells))
    if found.size == 0:
        return np.zeros(0, np.int64)
    if found.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {found.dtype} values; give cell numbers")
    if found[0] < 0 or found[-1] >= n_cells:
        wrong = found[0] if found[0] < 0 else found[-1]
        raise ValueError(f"{name} cell {wrong} is not in the detector; it has cells 0 to {n_cells - 1}")
    return found.astype(np.int64)


def _check_pileup(showers: Showers, pileup: Showers | None, mean: float | tuple[float, float]) -> tuple[float, float]:
    """Lowest and highest mean."""
    ends = np.atleast_1d(np.asarray(mean, dtype=np.float64))
    if ends.shape not in ((1,), (2,)) or not (np.isfinite(ends).all() and (ends >= 0).all()):
        raise ValueError(f"pileup_mean = {mean} must be finite and >= 0, or two such numbers")
    if ends.size == 2 and not ends[0] < ends[1]:
        raise ValueError(f"pileup_mean = {mean} is no range; it must rise: (0, 60)")
    low, high = float(ends[0]), float(ends[-1])
    if pileup is None:
        if high > 0:
            raise ValueError(f"pileup_mean = {mean} needs showers to draw from; give pileup=")
        return low, high
    if pileup.kind != "simhit":
        raise ValueError(f"the pileup sample holds {pileup.kind}s; overlay simhits, the readout comes after")
    if pileup.n_showers == 0:
        raise ValueError("the pileup sample is empty; give at least one shower to draw")
    if pileup.detector.digest != showers.detector.digest:
        raise ValueError(
            f"the pileup was made in detector {pileup.detector.name!r} ({pileup.detector.digest[:8]}), "
            f"the showers in {showers.detector.name!r} ({showers.detector.digest[:8]}); make both in one detector"
        )
    return low, high


def _blocks(showers: Showers, s: _Settings, first: int) -> Iterator[tuple[IntArray, Showers]]:
    """Numbers and showers of parts that fit in memory; where the cuts are does not matter."""
    n = showers.n_showers
    per_shower = max(1.0, _expected_rechits(showers, s.readout, s.pileup, sum(s.pileup_mean) / 2) / max(n, 1))
    step = max(1, int(_BLOCK_RECHITS / per_shower))
    for start in range(0, n, step):
        stop = min(start + step, n)
        yield np.arange(first + start, first + stop), showers.between(start, stop)


def _read_out(showers: Showers, number: IntArray, s: _Settings) -> tuple[IntArray, NDArray[np.int32], NDArray[np.float32]]:
    """Hits per shower, cell and energy of the rechits; number: of each shower in the whole sample."""
    readout, n_cells = s.readout, showers.detector.n_cells
    key = showers.shower_index * n_cells + showers.cell
    energy = showers.energy_mev.astype(np.float64)
    if s.pileup is not None:
        key, energy = _with_pileup(key, energy, s.pileup, number, s)
    shower = key // n_cells
    cell = key - shower * n_cells
    is_alive = ~s.is_dead[cell]
    lifted = np.zeros(0, np.int64)
    if readout.noise_mev > 0 and readout.threshold_mev > 0:
        lifted = _lifted_cells(number, n_cells, _tail(readout), s.seed)
        is_alive &= ~_is_surely_dropped(shower, cell, energy, lifted, number, n_cells, s)
    key, energy = key[is_alive], energy[is_alive]
    if readout.light_yield_pe_per_mev > 0:
        light = _uniform(s.seed, _PHOTONS, number[key // n_cells], key % n_cells)
        energy = _poisson(light, readout.light_yield_pe_per_mev * energy) / readout.light_yield_pe_per_mev
    # a cell whose light gave no photo-electron is an empty cell to the electronics
    key, energy = key[energy > 0], np.minimum(energy[energy > 0], readout.saturation_mev)
    if readout.noise_mev > 0:
        key, energy = _add_noise(key, energy, lifted, number, n_cells, s)
    if readout.threshold_mev > 0:
        key, energy = key[energy >= readout.threshold_mev], energy[energy >= readout.threshold_mev]
    if s.hot.size:
        glow = (np.arange(number.size)[:, None] * n_cells + s.hot).ravel()
        draw = _uniform(s.seed, _HOT, number[glow // n_cells], glow % n_cells)
        glow_mev = readout.threshold_mev - s.hot_mev * np.log(draw)
        key, energy = sum_by_key(np.concatenate([key, glow]), np.concatenate([energy, glow_mev]))
    n_hit = np.bincount(key // n_cells, minlength=number.size)
    return n_hit, (key % n_cells).astype(np.int32), energy.astype(np.float32)


def _with_pileup(key: IntArray, energy: FloatArray, pileup: Showers, number: IntArray, s: _Settings) -> tuple[IntArray, FloatArray]:
    """Hits with those of the overlaid showers: key (shower x cells + cell, rising) and energy."""
    zero = np.zeros(1, np.int64)
    low, high = s.pileup_mean
    mean = np.full(number.size, low)
    if low < high:
        mean = low + (high - low) * _uniform(s.seed, _PILEUP_MEAN, number, zero)
    n_overlaid = _poisson(_uniform(s.seed, _PILEUP_NUMBER, number, zero), mean).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(n_overlaid)])  # (shower + 1,)
    shower = np.repeat(np.arange(number.size), n_overlaid)
    turn = np.arange(shower.size) - first[shower]
    drawn = (_uniform(s.seed, _PILEUP_PICK, number[shower], turn) * pileup.n_showers).astype(np.int64)
    n_hit = np.diff(pileup.offsets)[drawn]
    end = np.concatenate([[0], np.cumsum(n_hit)])  # (overlaid + 1,)
    hit = np.repeat(pileup.offsets[drawn] - end[:-1], n_hit) + np.arange(end[-1])
    n_cells = pileup.detector.n_cells
    overlaid = np.repeat(shower * n_cells, n_hit) + pileup.cell[hit]
    overlaid_mev = pileup.energy_mev[hit].astype(np.float64)
    if n_cells > _GRID_CELLS:
        return sum_by_key(np.concatenate([key, overlaid]), np.concatenate([energy, overlaid_mev]))
    # a few showers at a time in a grid; a cell's own energy first, then what is laid over it in turn: cuts do not show
    step = max(1, _GRID_CELLS // n_cells)
    keys, energies = [], []
    for start in range(0, number.size, step):
        stop = min(start + step, number.size)
        own = slice(*np.searchsorted(key, [start * n_cells, stop * n_cells]))
        over = slice(end[first[start]], end[first[stop]])
        place = np.concatenate([key[own], overlaid[over]]) - start * n_cells
        total = np.bincount(place, np.concatenate([energy[own], overlaid_mev[over]]), (stop - start) * n_cells)
        found = np.flatnonzero(total)
        keys.append(found + start * n_cells)
        energies.append(total[found])
    return np.concatenate(keys), np.concatenate(energies)


def _is_surely_dropped(
    shower: IntArray, cell: IntArray, energy: FloatArray, lifted: IntArray, number: IntArray, n_cells: int, s: _Settings
) -> NDArray[np.bool_]:
    """Hits that no photo-electrons and no noise lift above the threshold, told from bounds alone: nearly all of those of pileup."""
    readout = s.readout
    light_yield, most_mev = readout.light_yield_pe_per_mev, (1.0 - _NOISE_SHARE) * readout.threshold_mev
    if light_yield > 0:
        # Bernstein's inequality: more than mean + x photo-electrons with at most exp(-x^2 / (2 mean + 2 x / 3))
        tail, most = -np.log(_LEFT_OVER), light_yield * most_mev
        most_mev = (most + 2 * tail / 3 - np.sqrt(4 * tail**2 / 9 + 2 * tail * most)) / light_yield
    small = np.flatnonzero(energy < min(most_mev, _NORMAL_ABOVE / max(light_yield, 1e-300)))
    if light_yield > 0:
        small = small[_uniform_of(s.seed, _PHOTONS, number, shower[small], cell[small]) < 1.0 - _LEFT_OVER]
    below = float(ndtr(_NOISE_SHARE * readout.threshold_mev / readout.noise_mev))
    small = small[_uniform_of(s.seed, _NOISE, number, shower[small], cell[small]) < below]
    is_dropped = np.zeros(energy.size, np.bool_)
    is_dropped[small] = True
    # whether noise alone may fire a cell depends on whether it has light: that is read
    key = shower * n_cells + cell
    if key.size:
        place = np.minimum(np.searchsorted(key, lifted), key.size - 1)
        is_dropped[place[key[place] == lifted]] = False
    return is_dropped


def _add_noise(
    key: IntArray, energy: FloatArray, lifted: IntArray, number: IntArray, n_cells: int, s: _Settings
) -> tuple[IntArray, FloatArray]:
    readout = s.readout
    if readout.threshold_mev == 0:  # no zero suppression: every living cell is read
        alive = np.flatnonzero(~s.is_dead)
        every = (np.arange(number.size)[:, None] * n_cells + alive).ravel()
        read = np.zeros(every.size)
        read[np.searchsorted(every, key)] = energy
        return every, read + readout.noise_mev * _normal(s.seed, number[every // n_cells], every % n_cells)
    energy = energy + readout.noise_mev * _normal(s.seed, number[key // n_cells], key % n_cells)
    lifted = lifted[~s.is_dead[lifted % n_cells]]
    if key.size:  # cells with a hit have had their noise
        place = np.minimum(np.searchsorted(key, lifted), key.size - 1)
        lifted = lifted[key[place] != lifted]
    draw = _uniform(s.seed, _TAIL, number[lifted // n_cells], lifted % n_cells)
    lifted_mev = np.maximum(-readout.noise_mev * ndtri(draw * _tail(readout)), readout.threshold_mev)
    return sum_by_key(np.concatenate([key, lifted]), np.concatenate([energy, lifted_mev]))


def _lifted_cells(number: IntArray, n_cells: int, tail: float, seed: int) -> IntArray:
    """Keys of cells that fire, each with probability `tail`: from one to the next by geometric steps, so that the cost is theirs alone."""
    if tail == 0:
        return np.zeros(0, np.int64)
    mean = n_cells * tail
    n_steps = int(mean + 8 * np.sqrt(mean)) + 8  # chosen: hardly ever too few; more are drawn then
    while True:
        draw = _uniform(seed, _GAP, number[:, None], np.arange(n_steps))
        # a step beyond the last cell need not be told how far beyond: it would overflow
        with np.errstate(over="ignore"):
            step = np.minimum(np.floor(np.log(draw) / np.log1p(-tail)) + 1, n_cells + 1.0)
        place = np.cumsum(step, axis=1) - 1
        if (place[:, -1] >= n_cells).all():
            break
        n_steps *= 2
    shower, at = np.nonzero(place < n_cells)
    return shower * n_cells + place[shower, at].astype(np.int64)


def _uniform(seed: int, purpose: int, number: IntArray, index: IntArray) -> FloatArray:
    """Uniform numbers in (0, 1), a hash of their four coordinates; number and index are broadcast."""
    return _draw(_streams(seed, purpose, number), index)


def _uniform_of(seed: int, purpose: int, number: IntArray, shower: IntArray, index: IntArray) -> FloatArray:
    """The same for ``number[shower]``: each shower is hashed once."""
    return _draw(_streams(seed, purpose, number)[shower], index)


def _streams(seed: int, purpose: int, number: IntArray) -> NDArray[np.uint64]:
    golden = np.uint64(GOLDEN)
    start = scrambled(np.array([seed], dtype=np.uint64) + np.array([purpose + 1], dtype=np.uint64) * golden)
    return scrambled(start + number.astype(np.uint64) * golden)


def _draw(stream: NDArray[np.uint64], index: IntArray) -> FloatArray:
    return unit_interval(scrambled(stream + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)))


def _normal(seed: int, number: IntArray, index: IntArray) -> FloatArray:
    return np.asarray(ndtri(_uniform(seed, _NOISE, number, index)))


def _poisson(draw: FloatArray, mean: FloatArray) -> FloatArray:
    """Poisson numbers of these means: the quantile at each uniform number."""
    normal = ndtri(draw)
    # Cornish and Fisher's expansion to the skewness; pdtr then decides between the neighbours
    count: FloatArray = np.maximum(np.floor(mean + np.sqrt(mean) * normal + (normal**2 - 1) / 6 + 0.5), 0.0)
    count[mean <= 0] = 0.0
    left = np.flatnonzero((mean > 0) & (mean < _NORMAL_ABOVE))
    falling = left
    while falling.size:
        falling = falling[(count[falling] > 0) & (pdtr(np.maximum(count[falling] - 1, 0), mean[falling]) >= draw[falling])]
        count[falling] -= 1
    rising = left
    while rising.size:
        rising = rising[pdtr(count[rising], mean[rising]) < draw[rising]]
        count[rising] += 1
    return count
