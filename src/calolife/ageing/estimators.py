"""Five simple estimators of the signal fraction: one cell at a time, from the energies of its hits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from calolife.ageing.hits import CellHits, first_half
from calolife.errors import MissingExtraError

__all__ = [
    "MAX_LN_FRACTION",
    "MIN_LN_FRACTION",
    "SIMPLE_METHODS",
    "cramer_fraction",
    "mean_fraction",
    "sinkhorn_fraction",
    "spectrum_domain",
    "trimmed_fraction",
    "wasserstein_fraction",
]

FloatArray = NDArray[np.float64]

# chosen: from a fifth of the light to two thirds too much; a cell beyond is dead, or hot
MIN_LN_FRACTION, MAX_LN_FRACTION = -1.5, 0.5

_STEP = 0.005  # chosen: shift of ln E between two trials, a fifth of the error of a cell with 1000 hits
_TRIMMED = (0.3, 0.7)  # chosen: leaves out the soft third, which does not scale visibly, and the showering tail
# chosen, in units of the most frequent energy: around a minimum-ionising peak, from narrow to wide
_LOW_EDGES, _HIGH_EDGES = (0.4, 0.5, 0.6), (1.5, 2.0, 4.0)
_MAX_LOSS_LN = 0.3  # chosen: a domain starts so far above the smallest hit that cells down to r = 0.74 do not meet the threshold
_DOMAIN_STEP, _DOMAIN_CELLS = 0.02, 300  # chosen: coarse trials in the brightest cells are enough to rank domains
_FEW_HITS = 20  # chosen: with fewer in the domain, a cell is fitted with all its hits
_FEW_STEP = 0.02  # chosen: a tenth of the error of such a cell
_BLOCK = 1 << 21  # chosen: cells x bins that are held at a time, 16 MB each

_SINKHORN_BIN, _SINKHORN_MAX_BINS = 0.035, 64  # chosen: in ln E; the time grows with the square of their number
_SINKHORN_REACH = 0.15  # chosen: how far around the start it looks, in ln r: five errors of a cell with 1000 hits
# chosen: 20 settle the signal fraction to 1e-5; a fixed number, so that no cell decides for another
_SINKHORN_ITERATIONS = 30
_SINKHORN_BLUR = 0.2  # chosen: regularisation in ln E, about the width of a minimum-ionising peak; less is slower and no better


@dataclass(frozen=True)
class _Search:
    """Energies [MeV] that are compared, step of ln r, and the least ln r that is tried."""

    low: float
    high: float
    step: float
    least: float = MIN_LN_FRACTION


Distance = Callable[[CellHits, CellHits, _Search], FloatArray]


def mean_fraction(reference: CellHits, today: CellHits, *, seed: int = 0) -> FloatArray:
    """Ratio of the mean energies per shower, showers that missed the cell included.

    Parameters
    ----------
    reference, today : CellHits
        Of the same cells.
    seed : int
        Not used: nothing is drawn.

    Returns
    -------
    float array, (cell,)
        NaN where a sample has no hits.

    Raises
    ------
    ValueError
        Samples of different numbers of cells.

    Notes
    -----
    It takes the beam to be the same in both samples: each per cent of beam energy is a per cent of signal fraction, and
    a moved beam spot moves it by more. The few showers that start in a cell dominate its error.
    """
    _must_match(reference, today)
    mean = []
    for hits in (reference, today):
        summed = np.bincount(hits.cell_index, weights=hits.weight * hits.energy_mev, minlength=hits.n_cells)
        mean.append(summed / max(float(hits.shower_weight.sum()), np.finfo(float).tiny))
    return _or_nan(mean[1], mean[0], _has_hits(reference, today))


def trimmed_fraction(reference: CellHits, today: CellHits, *, seed: int = 0) -> FloatArray:
    """Ratio of the trimmed means of the hit energies: the softest and the hardest 30 % of each cell's hits left out.

    Parameters
    ----------
    reference, today : CellHits
        Of the same cells.
    seed : int
        Not used: nothing is drawn.

    Returns
    -------
    float array, (cell,)
        NaN where a sample has no hits.

    Raises
    ------
    ValueError
        Samples of different numbers of cells.

    Notes
    -----
    Quantiles scale with the energies, so that an exact scale is found exactly; hits lost below a threshold bias it.
    """
    _must_match(reference, today)
    return _or_nan(_trimmed_mean(today), _trimmed_mean(reference), _has_hits(reference, today))


def cramer_fraction(reference: CellHits, today: CellHits, *, seed: int = 0) -> FloatArray:
    """Signal fraction that brings the distributions of ln E closest in the Cramer distance, the integral of (F - G)^2.

    Parameters
    ----------
    reference, today : CellHits
        Of the same cells.
    seed : int
        Not used: nothing is drawn.

    Returns
    -------
    float array, (cell,)
        Between exp(-1.5) and exp(0.5), in steps of 0.5 % refined by a parabola, 2 % where fewer than 20
        hits lie in the domain and all are used. NaN where a sample has no hits.

    Raises
    ------
    ValueError
        Samples of different numbers of cells.

    Notes
    -----
    F and G are the distributions of the hits within `spectrum_domain` in the reference, and within the domain times the
    tried signal fraction today. Over all energies the soft hits, whose spectrum has no feature to tell a scale by,
    would double the error; the minimum is then where the median of all differences of ln E lies (Hodges and Lehmann).
    A threshold below the domain does no harm; a signal fraction so small that the domain would reach under the smallest
    hit of the reference is not tried.
    """
    return _fit(reference, today, lambda r, t, search: _closest(r, t, search, power=2))


def wasserstein_fraction(reference: CellHits, today: CellHits, *, seed: int = 0) -> FloatArray:
    """Signal fraction that brings the distributions of ln E closest in the Wasserstein-1 distance, the integral of |F - G|.

    Parameters
    ----------
    reference, today : CellHits
        Of the same cells.
    seed : int
        Not used: nothing is drawn.

    Returns
    -------
    float array, (cell,)
        Between exp(-1.5) and exp(0.5), in steps of 0.5 % refined by a parabola, 2 % where fewer than 20
        hits lie in the domain and all are used. NaN where a sample has no hits.

    Raises
    ------
    ValueError
        Samples of different numbers of cells.

    Notes
    -----
    The domain is that of `cramer_fraction`.
    """
    return _fit(reference, today, lambda r, t, search: _closest(r, t, search, power=1))


def sinkhorn_fraction(reference: CellHits, today: CellHits, *, seed: int = 0) -> FloatArray:
    """Signal fraction that brings the distributions of ln E closest in the Sinkhorn divergence.

    Parameters
    ----------
    reference, today : CellHits
        Of the same cells.
    seed : int
        Not used: nothing is drawn.

    Returns
    -------
    float array, (cell,)
        NaN where a sample has no hits.

    Raises
    ------
    ValueError
        Samples of different numbers of cells.
    MissingExtraError
        No POT here.

    Notes
    -----
    2 W(a, b) - W(a, a) - W(b, b) with W the cost |d ln E| of the entropy-regularised plan, between histograms over the
    domain of `cramer_fraction`. Source: Genevay, Peyre and Cuturi, "Learning generative models with Sinkhorn
    divergences" (2018). Its limit without regularisation, the Wasserstein distance, tells where to look. A squared cost
    over all energies would be no method of its own: its minimum is the difference of the means of ln E, whatever the
    regularisation.
    """
    try:
        import ot.batch  # noqa: F401
    except ImportError:
        raise MissingExtraError('method "sinkhorn" needs POT 0.9.6 or later: pip install "calolife[transport]"') from None
    return _fit(reference, today, _closest_sinkhorn)


SIMPLE_METHODS: dict[str, Callable[..., FloatArray]] = {
    "ratio": mean_fraction,
    "trimmed": trimmed_fraction,
    "cramer": cramer_fraction,
    "wasserstein": wasserstein_fraction,
    "sinkhorn": sinkhorn_fraction,
}


def spectrum_domain(reference: CellHits) -> tuple[float, float]:
    """Energies between which spectra tell a scale best.

    Parameters
    ----------
    reference : CellHits

    Returns
    -------
    low, high : float [MeV]
        All energies from 35 % above the smallest hit on, if no narrower domain around the most frequent energy does better.

    Notes
    -----
    Of ten domains it takes the one in which the signal fractions between two halves of the reference, which are 1,
    scatter least. Today's sample is not looked at, nor are the weights of the showers. The halves
    depend on the hits of the showers, not on their order.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> energy = np.concatenate([rng.normal(1, 0.1, 500), 10 ** rng.uniform(-2, 2, 500)])  # a peak on a flat spectrum of ln E
    >>> hits = CellHits(1, np.arange(1000), np.zeros(1000, int), energy, np.zeros(1000, np.int8), np.ones(1000))
    >>> low, high = spectrum_domain(hits)
    >>> 0.3 < low < 1 < high < 5
    True
    """
    if not reference.energy_mev.size:
        return 1.0, np.e
    # as given, without weights: it is a setting of the method, the same in all bootstrap replicas
    reference = reference.weighted(np.ones(reference.n_showers))
    energy = reference.energy_mev
    smallest, largest = float(energy.min()), float(energy.max()) * (1 + 1e-9)
    safe = smallest * np.exp(_MAX_LOSS_LN)
    # a spectrum that ends before has no room for a margin
    whole = (safe if (energy > safe).mean() > 0.5 else smallest * (1 - 1e-9), largest)
    is_first = first_half(reference)
    halves = [reference.weighted(reference.shower_weight * which) for which in (is_first, ~is_first)]
    counts = np.minimum(halves[0].n_hits, halves[1].n_hits)
    is_bright = (counts >= _FEW_HITS) & (counts >= np.sort(counts)[-min(_DOMAIN_CELLS, counts.size)])
    if not is_bright.any():
        return whole
    halves = [half.of_cells(is_bright) for half in halves]
    peak = _most_frequent(energy)
    lows = sorted({max(low * peak, whole[0]) for low in _LOW_EDGES})
    domains = [whole, *((low, high * peak) for low in lows for high in _HIGH_EDGES if low < high * peak)]
    scatter = [_scatter(halves[0], halves[1], _Search(*domain, _DOMAIN_STEP, _least(reference, domain[0]))) for domain in domains]
    return domains[int(np.argmin(scatter))]


def _most_frequent(energy: FloatArray) -> float:
    bins = np.floor(np.log(energy) / 0.02).astype(np.int64)  # chosen: bins and smoothing narrower than any peak
    first = int(bins.min())
    density = gaussian_filter1d(np.bincount(bins - first).astype(np.float64), 2.5, mode="constant")
    return float(np.exp(0.02 * (first + int(density.argmax()) + 0.5)))


def _least(reference: CellHits, low: float) -> float:
    """Least ln r to try: below it the domain would reach under a threshold, whose edge looks like a peak."""
    smallest = reference.energy_mev.min()
    return float(np.clip(np.log(smallest / low), MIN_LN_FRACTION, 0.0))


def _scatter(first: CellHits, second: CellHits, search: _Search) -> float:
    found = _closest(first, second, search, power=2)
    return float(np.abs(np.where(np.isfinite(found), found, 1.0)).mean())


def _fit(reference: CellHits, today: CellHits, distance: Distance) -> FloatArray:
    """Signal fraction of each cell by a distance within the domain, or over all energies where the domain is too empty."""
    _must_match(reference, today)
    found = np.full(reference.n_cells, np.nan)
    filled = _has_hits(reference, today)
    if not filled.any():
        return found
    low, high = spectrum_domain(reference)
    n_inside = np.minimum(_n_between(reference, low, high), _n_between(today, low * np.exp(-_MAX_LOSS_LN), high))
    energies = np.concatenate([reference.energy_mev[reference.weight > 0], today.energy_mev[today.weight > 0]])
    # wide enough that no trial shifts a hit out of it, and whole steps, so that no other cell's hits move the bins
    first = np.floor((np.log(energies.min()) - MAX_LN_FRACTION) / _FEW_STEP) - 1
    last = np.ceil((np.log(energies.max()) - MIN_LN_FRACTION) / _FEW_STEP) + 1
    widest = (float(np.exp(first * _FEW_STEP)), float(np.exp(last * _FEW_STEP)))
    is_few = n_inside < _FEW_HITS
    inner = _Search(low, high, _STEP, _least(reference, low))
    for is_chosen, search in ((~is_few, inner), (is_few, _Search(*widest, _FEW_STEP))):
        cells = np.flatnonzero(filled & is_chosen)
        n_bins = (np.log(search.high / search.low) + MAX_LN_FRACTION - MIN_LN_FRACTION) / search.step
        size = max(1, int(_BLOCK / n_bins))
        for start in range(0, cells.size, size):
            block = np.isin(np.arange(found.size), cells[start : start + size])
            found[block] = distance(reference.of_cells(block), today.of_cells(block), search)
    return np.asarray(np.exp(found))


def _closest(reference: CellHits, today: CellHits, search: _Search, *, power: int) -> FloatArray:
    """ln r at the smallest integral of |F - G|^power over ln E."""
    step, low = search.step, search.low
    n = max(1, round(np.log(search.high / low) / step))
    first, last = round(search.least / step), round(MAX_LN_FRACTION / step)
    below = np.cumsum(_histogram(reference, np.log(low), step, n), axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing lies in the domain: never the closest
        below /= below[:, -1:]
    spectrum = _histogram(today, np.log(low) + first * step, step, n + last - first)
    summed = np.concatenate([np.zeros((today.n_cells, 1)), np.cumsum(spectrum, axis=1)], axis=1)
    distance = np.full((today.n_cells, last - first + 1), np.inf)
    for k in range(last - first + 1):
        inside = summed[:, k + n] - summed[:, k]
        with np.errstate(invalid="ignore", divide="ignore"):
            gap = np.abs((summed[:, k + 1 : k + 1 + n] - summed[:, [k]]) / inside[:, None] - below)
        total = (gap if power == 1 else gap * gap).sum(axis=1) * step
        distance[:, k] = np.where(np.isfinite(total), total, np.inf)
    return _at_minimum(distance, np.arange(first, last + 1) * step)


def _closest_sinkhorn(reference: CellHits, today: CellHits, search: _Search) -> FloatArray:
    from ot.batch import solve_batch

    start = _closest(reference, today, search, power=1)
    if search.step > _STEP:  # the blur is small against the distances of so few hits
        return start
    low, high = search.low, search.high
    n = min(max(2, round(np.log(high / low) / _SINKHORN_BIN)), _SINKHORN_MAX_BINS)
    width = float(np.log(high / low)) / n
    reach = max(1, round(_SINKHORN_REACH / width))
    # energies of today are brought to the start first: what is left to find is small and the bins need not be fine
    at_start = replace(today, energy_mev=today.energy_mev / np.exp(np.where(np.isfinite(start), start, 0.0))[today.cell_index])
    a = _histogram(reference, np.log(low), width, n)
    b = _histogram(at_start, np.log(low) - reach * width, width, n + 2 * reach)
    b = np.lib.stride_tricks.sliding_window_view(b, n, axis=1)  # (cell, shift, bin)
    place = np.arange(n)
    cost = width * np.abs(place[:, None] - place)
    blur = max(_SINKHORN_BLUR, 2 * width)  # kernels narrower than the bins would only see the bins

    def transport(x: FloatArray, y: FloatArray) -> FloatArray:
        total = np.zeros(len(x))
        size = max(1, 2**16 // cost.size)  # chosen: plans of half a MB stay in the cache
        for i in range(0, len(x), size):
            part = slice(i, i + size)
            costs = np.broadcast_to(cost, (len(x[part]), *cost.shape))
            plan = solve_batch(costs, blur, x[part], y[part], max_iter=_SINKHORN_ITERATIONS, tol=0.0, method="sinkhorn", grad="detach")
            total[part] = plan.value_linear
        return total

    is_filled = (a.sum(axis=1) > 0)[:, None] & (b.sum(axis=2) > 0)
    cell, shift = np.nonzero(is_filled)
    x, y = a[cell], b[cell, shift]
    x, y = x / x.sum(axis=1, keepdims=True), y / y.sum(axis=1, keepdims=True)
    first_of_cell, inverse = np.unique(cell, return_index=True, return_inverse=True)[1:]
    itself = transport(x[first_of_cell], x[first_of_cell])[inverse]
    divergence = np.full(is_filled.shape, np.inf)
    divergence[cell, shift] = 2 * transport(x, y) - itself - transport(y, y)
    # what the iterations leave is no distance
    divergence[np.abs(divergence) < 1e-9] = 0.0
    return np.asarray(start + _at_minimum(divergence, np.arange(-reach, reach + 1) * width))


def _at_minimum(distance: FloatArray, shift: NDArray[np.floating]) -> FloatArray:
    """Shift at the smallest distance of each row, refined by the parabola through its neighbours; NaN in a row of inf."""
    # of equal distances the one nearest to no shift
    order = np.argsort(np.abs(shift), kind="stable")
    at = order[distance[:, order].argmin(axis=1)]
    row = np.arange(len(distance))
    middle = np.clip(at, 1, shift.size - 2)
    before, here, after = (distance[row, middle + k] for k in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        offset = (before - after) / (2 * (before - 2 * here + after))
    # equal distributions need no refining, and a minimum at the edge has no neighbour
    is_refined = np.isfinite(offset) & (here > 0) & (at == middle)
    step = shift[1] - shift[0]
    found = shift[at] + np.where(is_refined, np.clip(offset, -0.5, 0.5), 0.0) * step
    return np.where(np.isfinite(distance[row, at]), found, np.nan)


def _histogram(hits: CellHits, ln_low: float, step: float, n: int) -> FloatArray:
    """Weighted hits in bins of ln E, (cell, bin); those outside are left out."""
    # the small part keeps hits at an edge, such as equal energies at another scale, on one side of it
    place = np.floor((np.log(hits.energy_mev) - ln_low) / step + 1e-9).astype(np.int64)
    inside = (place >= 0) & (place < n)
    flat = np.bincount(hits.cell_index[inside] * n + place[inside], weights=hits.weight[inside], minlength=hits.n_cells * n)
    return flat.astype(np.float64).reshape(hits.n_cells, n)


def _n_between(hits: CellHits, low: float, high: float) -> FloatArray:
    inside = (hits.energy_mev >= low) & (hits.energy_mev < high)
    return np.asarray(np.bincount(hits.cell_index[inside], weights=hits.weight[inside], minlength=hits.n_cells), dtype=np.float64)


def _trimmed_mean(hits: CellHits) -> FloatArray:
    """Mean energy between the two quantiles, times the fraction of hits between them."""
    order = np.lexsort((hits.energy_mev, hits.cell_index))
    weight = hits.weight[order]
    summed = np.concatenate([[0.0], np.cumsum(weight)])
    before, total = summed[hits.start[:-1]], summed[hits.start[1:]] - summed[hits.start[:-1]]
    cell = hits.cell_index[order]
    low, high = (before + cut * total for cut in _TRIMMED)
    kept = np.clip(np.minimum(summed[1:], high[cell]) - np.maximum(summed[:-1], low[cell]), 0.0, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.bincount(cell, weights=kept * hits.energy_mev[order], minlength=hits.n_cells) / total, dtype=np.float64)


def _has_hits(reference: CellHits, today: CellHits) -> NDArray[np.bool_]:
    return (reference.n_hits > 0) & (today.n_hits > 0)


def _or_nan(above: FloatArray, below: FloatArray, is_known: NDArray[np.bool_]) -> FloatArray:
    found = np.full(above.size, np.nan)
    np.divide(above, below, out=found, where=is_known & (below > 0))
    return found


def _must_match(reference: CellHits, today: CellHits) -> None:
    if reference.n_cells != today.n_cells:
        raise ValueError(f"the reference has {reference.n_cells} cells and today's sample {today.n_cells}; choose the same cells in both")
