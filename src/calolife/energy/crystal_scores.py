"""How well models measured electrons and photons in crystals: Cruijff fits by region, energy, eta and pileup, with paired errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.energy.features import EnergySample, Prediction
from calolife.energy.lineshapes import LineFit, fit_cruijff
from calolife.energy.resolution import drawn, replica_counts, shortest_half, usual_edges
from calolife.energy.scores import particle_masks
from calolife.errors import NotConvergedError
from calolife.runs import json_number

__all__ = ["ETA_REGIONS", "CruijffScore", "bootstrap_cruijff", "score_crystals"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ETA_REGIONS: dict[str, tuple[float, float]] = {"central": (0.0, 0.8), "outer": (0.8, 1.1), "forward": (1.1, 1.48)}
"""Ranges of abs(eta), upper end excluded. Chosen: the material before the crystals of cms-barrel rises from one to the next."""

_FEWEST = 100  # chosen: sigma of fewer is not known to 7 %, and their tails are guesses
_JOINED = 300  # chosen: an energy bin of fewer is joined to the next; a third of it may be left in a region
# chosen: round energies, finer where the resolution changes
_ENERGIES_GEV = (1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 500.0, 700.0, 1000.0)
_FEW_ENERGIES = 20  # chosen: a scan has fewer energies, a spectrum more
_ETA_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.48)  # chosen: even steps, and the rim that leaks
_RHO_BINS = 5  # chosen: as many objects in each, so that the last reaches far into the pileup
_BINS = 100  # of a replica; chosen: a tenth of sigma wide, which costs the fit a thousandth of its precision
_NODES, _WEIGHTS = (x.tolist() for x in np.polynomial.legendre.leggauss(3))
_MOST_STEPS = 200  # chosen: three to eight steps are the rule, but one replica in thousands creeps along a tail
_AT_REST = 1e-4  # expected gain of -2 ln L by a further step; chosen: a hundredth of a standard error
_LEAST_SIGMA, _MOST_SIGMA, _MOST_ALPHA = 0.02, 10.0, 5.0  # the limits of `fit_cruijff`, in half the width of two thirds of the values
_MOST_FAILED = 0.1  # of the replicas; chosen: with more their spread is not that of the fit


@dataclass(frozen=True, eq=False)
class CruijffScore:
    """How well one model measured some of the objects: the Cruijff function through their E'/E.

    Parameters
    ----------
    model : str
    particle : str
        As in `EnergyScore`; ``"all"`` of objects of several particles only.
    eta_region : str
        A key of `ETA_REGIONS`, or ``"all"``.
    variable : {"all", "energy_gev", "abs_eta", "rho_gev"}
        What the objects are binned in: ``"all"`` for none.
    low, high, at : float
        Ends of the bin, and the mean of the variable in it; NaN without bins.
    n : int
        Objects.
    fit : LineFit or None
        Of E'/E; `LineFit.errors` are those of the curvature, the ones here are from the bootstrap.
    cruijff_mean, cruijff_mean_error : float
        Peak of the fit.
    cruijff_sigma_percent, cruijff_sigma_percent_error : float [%]
        sigma/mu, sigma the mean of both sides.
    sigma_eff_over_median_percent, sigma_eff_over_median_percent_error : float [%]
        Half of the shortest interval with 68.3 % of E'/E, over their median.
    pull_width, pull_width_error : float
        Half of the shortest interval with 68.3 % of (E' - E)/sigma(E): 1 says that sigma(E) is right. NaN for a model without sigma.
    ratio, ratio_low, ratio_high : float
        `cruijff_sigma_percent` over that of the reference on the same objects, with its paired 95 % interval; NaN for the reference.
    sigma_eff_ratio, sigma_eff_ratio_low, sigma_eff_ratio_high : float
        The same of `sigma_eff_over_median_percent`.
    mean_ratio, mean_ratio_low, mean_ratio_high : float
        The same of `cruijff_mean`.
    verdict : str
        ``"better"``, ``"worse"`` or ``"no difference"`` (the interval of the ratio holds 1); empty for the reference and without a fit.
    why : str
        Why there is no fit; empty with one.
    """

    model: str
    particle: str
    eta_region: str
    variable: str
    low: float
    high: float
    at: float
    n: int
    fit: LineFit | None
    cruijff_mean: float = math.nan
    cruijff_mean_error: float = math.nan
    cruijff_sigma_percent: float = math.nan
    cruijff_sigma_percent_error: float = math.nan
    sigma_eff_over_median_percent: float = math.nan
    sigma_eff_over_median_percent_error: float = math.nan
    pull_width: float = math.nan
    pull_width_error: float = math.nan
    ratio: float = math.nan
    ratio_low: float = math.nan
    ratio_high: float = math.nan
    sigma_eff_ratio: float = math.nan
    sigma_eff_ratio_low: float = math.nan
    sigma_eff_ratio_high: float = math.nan
    mean_ratio: float = math.nan
    mean_ratio_low: float = math.nan
    mean_ratio_high: float = math.nan
    verdict: str = ""
    why: str = ""

    def to_json_dict(self) -> dict[str, Any]:
        """A row of plain numbers; null for what is not known."""
        row: dict[str, Any] = {
            "model": self.model, "particle": self.particle, "eta_region": self.eta_region, "variable": self.variable,
            "low": json_number(self.low), "high": json_number(self.high), "at": json_number(self.at), "n": self.n,
        }  # fmt: skip
        row |= {name: json_number(getattr(self, name)) for name in _NUMBERS}
        row["p_value"] = None if self.fit is None else json_number(self.fit.p_value)
        row["n_outside"] = None if self.fit is None else self.fit.n_outside
        return row | {"verdict": self.verdict, "why": self.why}


_NUMBERS = (
    "cruijff_mean", "cruijff_mean_error", "cruijff_sigma_percent", "cruijff_sigma_percent_error",
    "sigma_eff_over_median_percent", "sigma_eff_over_median_percent_error", "pull_width", "pull_width_error",
    "ratio", "ratio_low", "ratio_high", "sigma_eff_ratio", "sigma_eff_ratio_low", "sigma_eff_ratio_high",
    "mean_ratio", "mean_ratio_low", "mean_ratio_high",
)  # fmt: skip


def score_crystals(
    models: Mapping[str, Prediction],
    sample: EnergySample,
    *,
    reference: str | None = None,
    edges_gev: Sequence[float] | None = None,
    n_bootstrap: int = 200,
    seed: int = 0,
    tell: Callable[[str, float, float], None] | None = None,
) -> tuple[CruijffScore, ...]:
    """Cruijff fits of several models to the same objects, for the whole detector, each region of it, and in bins.

    Parameters
    ----------
    models : mapping of str to Prediction
        Of all objects of the sample.
    sample : EnergySample
        Of crystals.
    reference : str, optional
        The model that ratios are to; none without.
    edges_gev : sequence of float, optional [GeV]
        Of the bins of true energy. By default round energies, or between those of a scan (20 at most), bins of fewer than 300 objects
        joined to the next.
    n_bootstrap : int
        Resamplings of the objects of each bin.
    seed : int
        Of the resampling.
    tell : function (what, done, total), optional
        Called after each cell.

    Returns
    -------
    tuple of CruijffScore
        Cell by cell, and in each model by model. Cells: all objects and each region; bins of energy in each of these; bins of
        abs(eta); bins of rho with as many objects in each, where rho is known and varies. Of objects of several particles all
        together, then each. Cells of fewer than 100 objects are left out.

    Raises
    ------
    ValueError
        No models, a sample of layers, predictions that do not fit or are not finite, a reference that is not there, edges that
        do not rise.

    Notes
    -----
    Objects are resampled within each cell, once for all models; `bootstrap_cruijff` tells how replicas are fitted. A bin is one test of
    many: of twenty verdicts one is wrong by chance.
    """
    if sample.objects is None:
        raise ValueError("the sample has layers, no crystals; score it with score_energy and energy_bins")
    if not models:
        raise ValueError("no models to score; give the predictions of at least one")
    if reference is not None and reference not in models:
        raise ValueError(f"reference {reference!r} is not among the models {', '.join(models)}; name one of them")
    energy = sample.energy_gev
    for name, made in models.items():
        if made.energy_gev.shape != energy.shape:
            raise ValueError(f"predictions of {name} have shape {made.energy_gev.shape}; {energy.size} objects need {energy.shape}")
        if not np.isfinite(made.energy_gev).all():
            at = int(np.argmin(np.isfinite(made.energy_gev)))
            raise ValueError(f"prediction of {name} for object {at} is {made.energy_gev[at]}; a model must measure every object")
    edges = _energy_edges(energy) if edges_gev is None else np.asarray(edges_gev, dtype=np.float64)
    if n_bootstrap < 2:
        raise ValueError(f"n_bootstrap = {n_bootstrap} must be >= 2; 200 gives errors to 5 %")
    if edges.size < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges_gev = {edges.tolist()} must be at least two, each above the one before")
    ratio = {name: made.energy_gev / energy for name, made in models.items()}
    pull = {
        name: (made.energy_gev - energy) / made.sigma_gev
        for name, made in models.items()
        if made.sigma_gev is not None and (made.sigma_gev > 0).all()
    }
    cells = [c for c in _cells(sample, edges) if c.index.size >= _FEWEST]
    rows: list[CruijffScore] = []
    for i, (cell, rng) in enumerate(zip(cells, np.random.default_rng(seed).spawn(len(cells)), strict=True)):
        rows += _score_cell(cell, ratio, pull, reference=reference, n_bootstrap=n_bootstrap, rng=rng)
        if tell is not None:
            tell("fitting peaks", i + 1, len(cells))
    return tuple(rows)


def bootstrap_cruijff(values: ArrayLike, fit: LineFit, counts: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Peak and sigma/mu of the Cruijff function in replicas of the values that a fit was made to.

    Parameters
    ----------
    values : float array, (value,)
        Those fitted, in any order.
    fit : LineFit
        Of `fit_cruijff` to them.
    counts : int array, (replica, value)
        How often each replica has each value.

    Returns
    -------
    mu, sigma_over_mu : float array, (replica,)
        NaN of a replica that found no maximum; of all, where a tenth or more of them did not.

    Raises
    ------
    ValueError
        Another shape than a Cruijff, or counts that do not fit.

    Notes
    -----
    Every replica is fitted: by likelihood in 100 equal bins, all replicas side by side, with the steps of Fisher's scoring from the
    parameters of the fit. What the fit held stays held, but for a tail that ended at none. The range of each replica reaches as
    many widths to each side of its median as that of the fit does of the values: a range taken from the values fluctuates with
    them, which is 6 % of the error of sigma/mu of electrons. What the bins change is taken out: mu is shifted, sigma/mu scaled,
    by what turns the binned fit of the values themselves into the one given.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> ratio = rng.normal(1.0, 0.02, 2000)
    >>> fit = fit_cruijff(ratio)
    >>> mu, relative = bootstrap_cruijff(ratio, fit, rng.multinomial(2000, np.full(2000, 1 / 2000), 100))
    >>> 0.7 < float(mu.std()) / fit.errors["mu"] < 1.4, 0.7 < float(relative.std()) / fit.sigma_over_mu_error < 1.4
    (True, True)
    """
    if fit.shape != "cruijff":
        raise ValueError(f"the fit is of a {fit.shape}; give one of fit_cruijff")
    at, many = np.asarray(values, dtype=np.float64), np.asarray(counts)
    if at.ndim != 1 or many.ndim != 2 or many.shape[1] != at.size:
        raise ValueError(f"values have shape {at.shape} and counts {many.shape}; they must be (value,) and (replica, value)")
    found = _Ordered(at, fit=fit)
    found.add(many)
    _, replicas = found.figures()
    return replicas[:, 0], 0.01 * replicas[:, 1]


@dataclass(frozen=True, eq=False)
class _Cell:
    """Objects that are scored together."""

    particle: str
    region: str
    variable: str
    low: float
    high: float
    at: float
    index: IntArray


def _cells(sample: EnergySample, edges_gev: FloatArray) -> Iterator[_Cell]:
    objects = sample.objects
    assert objects is not None
    eta = np.abs(np.asarray(objects.eta, dtype=np.float64))
    rho = np.asarray(objects.rho_gev, dtype=np.float64)
    masks = particle_masks(sample.pdg_id)
    every = np.ones(eta.size, dtype=np.bool_)
    particles = {"all": every, **masks} if len(masks) > 1 else masks
    regions = {"all": every, **{name: (eta >= low) & (eta < high) for name, (low, high) in ETA_REGIONS.items()}}
    for particle, is_it in particles.items():
        here = {name: is_it & inside for name, inside in regions.items()}
        for name, inside in here.items():
            yield _Cell(particle, name, "all", math.nan, math.nan, math.nan, np.flatnonzero(inside))
        for name, inside in here.items():
            yield from _binned_cells(particle, name, "energy_gev", sample.energy_gev, inside, edges_gev)
        yield from _binned_cells(particle, "all", "abs_eta", eta, is_it, np.array(_ETA_EDGES))
        yield from _binned_cells(particle, "all", "rho_gev", rho, is_it, _rho_edges(rho[is_it]))


def _binned_cells(
    particle: str, region: str, variable: str, value: FloatArray, inside: NDArray[np.bool_], edges: FloatArray
) -> Iterator[_Cell]:
    for low, high in pairwise(edges.tolist()):
        last = value <= high if high == edges[-1] else value < high
        index = np.flatnonzero(inside & (value >= low) & last)
        if index.size:
            yield _Cell(particle, region, variable, low, high, float(value[index].mean()), index)


def _energy_edges(energy_gev: FloatArray) -> FloatArray:
    if np.unique(energy_gev).size <= _FEW_ENERGIES:
        return usual_edges(energy_gev)
    low, high = float(energy_gev.min()), float(energy_gev.max())
    edges = [low]
    for edge in (e for e in _ENERGIES_GEV if low < e < high):
        if ((energy_gev >= edges[-1]) & (energy_gev < edge)).sum() >= _JOINED and (energy_gev >= edge).sum() >= _JOINED:
            edges.append(edge)
    return np.array([*edges, high])


def _rho_edges(rho_gev: FloatArray) -> FloatArray:
    """Edges with as many objects in each bin; none where rho is not known or everywhere the same."""
    known = rho_gev[np.isfinite(rho_gev)]
    if known.size == 0:
        return np.empty(0)
    edges = np.unique(np.quantile(known, np.linspace(0.0, 1.0, _RHO_BINS + 1)))
    return edges if edges.size > 1 else np.empty(0)


def _score_cell(
    cell: _Cell,
    ratio: Mapping[str, FloatArray],
    pull: Mapping[str, FloatArray],
    *,
    reference: str | None,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> list[CruijffScore]:
    """One row per model, of the same replicas."""
    values, why = {}, {}
    for name, v in ratio.items():
        fit, why[name] = _fitted(v[cell.index])
        values[name] = _Ordered(v[cell.index], fit=fit)
    pulls = {name: _Ordered(v[cell.index]) for name, v in pull.items()}
    for part in replica_counts(cell.index.size, n_bootstrap, rng):
        for found in (*values.values(), *pulls.values()):
            found.add(part)
    made = {name: v.figures() for name, v in values.items()}
    rows = []
    for name, (value, replicas) in made.items():
        numbers: dict[str, Any] = dict(zip(_FIGURES, value.tolist(), strict=True))
        errors: dict[str, Any] = {f"{key}_error": _scatter(replicas[:, k]) for k, key in enumerate(_FIGURES)}
        if name in pulls:
            numbers["pull_width"], errors["pull_width_error"] = float(pulls[name].halves[0]), _scatter(pulls[name].halves[1:])
        verdict = ""
        if reference is not None and name != reference:
            base, base_replicas = made[reference]
            for key, k in (("mean_ratio", 0), ("ratio", 1), ("sigma_eff_ratio", 2)):
                numbers[key] = float(value[k] / base[k]) if base[k] else math.nan
                numbers[f"{key}_low"], numbers[f"{key}_high"] = _interval(replicas[:, k], base_replicas[:, k])
            if np.isfinite(numbers["ratio_low"]):
                verdict = _verdict(numbers["ratio_low"], numbers["ratio_high"])
        row = CruijffScore(
            name, cell.particle, cell.region, cell.variable, cell.low, cell.high, cell.at, cell.index.size, values[name].fit,
            verdict=verdict, why=why[name],
        )  # fmt: skip
        rows.append(replace(row, **numbers, **errors))
    return rows


def _fitted(values: FloatArray) -> tuple[LineFit | None, str]:
    """The fit, or why there is none."""
    try:
        return fit_cruijff(values), ""
    except (ValueError, NotConvergedError) as error:  # values all the same, tails without end
        return None, str(error)


def _scatter(replicas: FloatArray) -> float:
    """Standard deviation of the replicas that have a value; NaN of one or none."""
    known = replicas[np.isfinite(replicas)]
    return float(known.std(ddof=1)) if known.size > 1 else math.nan


def _interval(above: FloatArray, below: FloatArray) -> tuple[float, float]:
    """Ends of the 95 % interval of a ratio, from the replicas that have both; NaN where there are none."""
    known = np.isfinite(above) & np.isfinite(below) & (below != 0)
    if known.sum() < 2:
        return math.nan, math.nan
    low, high = np.quantile(above[known] / below[known], (0.025, 0.975)).tolist()
    return low, high


def _verdict(low: float, high: float) -> str:
    return "better" if high < 1 else "worse" if low > 1 else "no difference"


_FIGURES = ("cruijff_mean", "cruijff_sigma_percent", "sigma_eff_over_median_percent")


class _Ordered:
    """Values of one model in one cell with their fit, ready to be counted many times."""

    def __init__(self, values: FloatArray, *, fit: LineFit | None = None) -> None:
        self.order = np.argsort(values, kind="stable")
        self.ordered = values[self.order]
        self.fit = fit
        self.parts: list[tuple[FloatArray, FloatArray]] = []
        self.binned: list[tuple[FloatArray, FloatArray]] = []
        self.add(np.ones((1, values.size), dtype=np.int64))  # the values as they are stand before all replicas

    def add(self, counts: IntArray) -> None:
        """Replicas, (replica, value), in the order that the values were given in."""
        many = counts[:, self.order]
        values = drawn(self.ordered, many)
        n = values.shape[1]
        quantiles = _at_quantiles(values)
        self.parts.append((shortest_half(values), 0.5 * (values[:, (n - 1) // 2] + values[:, n // 2])))
        if self.fit is None:
            return
        low, middle, high = _at_quantiles(self.ordered[None, :])[0].tolist()
        left, right = (middle - self.fit.range[0]) / (middle - low), (self.fit.range[1] - middle) / (high - middle)
        lowest = quantiles[:, 1] - left * (quantiles[:, 1] - quantiles[:, 0])
        highest = quantiles[:, 1] + right * (quantiles[:, 2] - quantiles[:, 1])
        edges = np.linspace(lowest, highest, _BINS + 1, axis=1)  # (replica, bin + 1)
        before = np.concatenate([np.zeros((len(many), 1), dtype=np.int64), np.cumsum(many, axis=1)], axis=1)
        begin = np.take_along_axis(before, np.searchsorted(self.ordered, edges), axis=1)
        self.binned.append((edges, np.diff(begin, axis=1).astype(np.float64)))

    @property
    def halves(self) -> FloatArray:
        """Half of the shortest interval with 68.3 % of the values and of each replica, (1 + replica,)."""
        return np.concatenate([half for half, _ in self.parts])

    def figures(self) -> tuple[FloatArray, FloatArray]:
        """`_FIGURES` of the values, (figure,), and of each replica, (replica, figure); NaN where there is no fit."""
        halves, medians = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        found = np.full((halves.size, 3), np.nan)
        found[:, 2] = 100 * np.divide(halves, medians, out=np.full_like(halves, np.nan), where=medians > 0)
        if self.fit is not None:
            mu, spread = _refitted(self.fit, *(np.concatenate(part) for part in zip(*self.binned, strict=True)))
            found[:, 0], found[:, 1] = mu, 100 * spread
        return found[0], found[1:]


def _at_quantiles(ordered: FloatArray) -> FloatArray:
    """Median and the ends of the middle 68.3 %, (replica, 3), of ordered values (replica, value)."""
    place = np.array([0.1585, 0.5, 0.8415]) * (ordered.shape[1] - 1)
    first = np.minimum(place.astype(np.int64), ordered.shape[1] - 2)
    found: FloatArray = ordered[:, first] + (place - first) * (ordered[:, first + 1] - ordered[:, first])
    return found


def _refitted(fit: LineFit, edges: FloatArray, binned: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Peak and sigma/mu, (1 + replica,), from edges (1 + replica, bin + 1) and entries; the first row is the values as they are.

    All NaN where a tenth or more found no maximum: the spread of the others is not that of the fit.
    """
    start = np.array(list(fit.parameters.values()))
    origin, unit = float(start[0]), 0.5 * float(start[1] + start[2])
    start[:3] = 0.0, math.log(start[1] / unit), math.log(start[2] / unit)
    # a tail that is not there in the values may be there in a replica
    is_free = np.array(
        [name not in fit.held or (name.startswith("alpha") and v in (0.0, _MOST_ALPHA)) for name, v in fit.parameters.items()]
    )
    found = _maxima((edges - origin) / unit, binned, start, is_free)
    is_found = np.isfinite(found[:, 0])
    if not is_found[0] or (~is_found).mean() > _MOST_FAILED:
        mu, spread = np.full((2, len(found)), np.nan)
    else:
        mu = origin + unit * found[:, 0]
        spread = 0.5 * unit * np.exp(found[:, 1:3]).sum(axis=1) / mu
        mu, spread = mu + (fit.mu - mu[0]), spread * (fit.sigma_over_mu / spread[0])
    mu[0], spread[0] = fit.mu, fit.sigma_over_mu
    return mu, spread


def _maxima(edges: FloatArray, binned: FloatArray, start: FloatArray, is_free: NDArray[np.bool_]) -> FloatArray:
    """Parameters of greatest likelihood, (replica, parameter), NaN where no maximum was found; widths by their logarithms."""
    n = len(binned)
    # three nodes to a bin: the shape is smooth within a tenth of sigma
    middle, half = 0.5 * (edges[:, 1:] + edges[:, :-1]), 0.5 * np.diff(edges, axis=1)
    nodes = (middle[:, :, None] + half[:, :, None] * np.array(_NODES)).reshape(n, -1)  # (replica, bin * node)
    low = np.array([-3.0, math.log(_LEAST_SIGMA), math.log(_LEAST_SIGMA), 0.0, 0.0])
    high = np.array([3.0, math.log(_MOST_SIGMA), math.log(_MOST_SIGMA), _MOST_ALPHA, _MOST_ALPHA])
    best = np.tile(start, (n, 1))
    log, slope, information = _likelihood(best, binned, nodes)
    damping, part = np.full(n, 1e-3), np.ones(n)  # of the steps
    done = np.zeros(n, dtype=np.bool_)
    for _ in range(_MOST_STEPS):
        at = np.flatnonzero(~done)
        if at.size == 0:
            break
        # a tail at the end of what is allowed stays there while the likelihood rises beyond it
        held = ~is_free | ((best[at] <= low) & (slope[at] < 0)) | ((best[at] >= high) & (slope[at] > 0))
        push = np.where(held, 0.0, slope[at])
        matrix = np.where(held[:, :, None] | held[:, None, :], 0.0, information[at])
        diagonal = np.where(held, 1.0, np.maximum(np.einsum("rii->ri", matrix), 1e-9))
        matrix[:, range(5), range(5)] = diagonal * (1.0 + damping[at, None])
        step = np.linalg.solve(matrix, push[:, :, None])[:, :, 0]
        rest = np.einsum("ri,ri->r", step, push) < _AT_REST
        done[at[rest]] = True
        at, step = at[~rest], step[~rest]
        if at.size == 0:
            continue
        # chosen: half a sigma and half a unit of the logarithms and tails at once, where a first step overshoots
        trial = np.clip(best[at] + part[at, None] * np.clip(step, -0.5, 0.5), low, high)
        moved = trial - best[at]
        before = np.einsum("ri,ri->r", moved, slope[at])
        new_log, new_slope, new_information = _likelihood(trial, binned[at], nodes[at])
        is_higher = new_log > log[at]
        up = at[is_higher]
        # where the likelihood is more curved than expected, whole steps would go back and forth across its top
        after = np.einsum("ri,ri->r", moved, new_slope)
        part[at] = np.clip(part[at] * np.divide(before, before - after, out=np.ones(at.size), where=before > after), 0.2, 1.0)
        best[up], log[up] = trial[is_higher], new_log[is_higher]
        slope[up], information[up] = new_slope[is_higher], new_information[is_higher]
        damping[up] = np.maximum(damping[up] / 10, 1e-9)
        damping[at[~is_higher]] *= 10
    best[~done] = np.nan
    return best


def _likelihood(parameters: FloatArray, binned: FloatArray, nodes: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """ln L, its slope and Fisher's information of each replica: (replica,), (replica, parameter), (replica, parameter, parameter)."""
    n_bins = binned.shape[1]
    mu, alpha = parameters[:, 0], parameters[:, 3:]
    sigma = np.exp(parameters[:, 1:3])
    d = nodes - mu[:, None]
    is_left = d < 0
    width = np.where(is_left, sigma[:, :1], sigma[:, 1:])
    u = (d / width) ** 2
    below = 1.0 / (2.0 + np.where(is_left, alpha[:, :1], alpha[:, 1:]) * u)
    height = np.exp(-u * below) * np.tile(_WEIGHTS, n_bins)  # bins of one width: it drops out
    square = height * below**2
    by_width, by_alpha = 4.0 * u * square, u**2 * square
    slopes = (
        4.0 * d / width**2 * square, np.where(is_left, by_width, 0.0), np.where(is_left, 0.0, by_width),
        np.where(is_left, by_alpha, 0.0), np.where(is_left, 0.0, by_alpha),
    )  # fmt: skip
    area = np.maximum(height.reshape(len(d), n_bins, -1).sum(axis=2), 1e-300)  # (replica, bin)
    change = np.stack([s.reshape(len(d), n_bins, -1).sum(axis=2) for s in slopes], axis=2) / area[:, :, None]  # (replica, bin, parameter)
    total = binned.sum(axis=1)
    share = area / area.sum(axis=1, keepdims=True)
    log = (binned * np.log(share)).sum(axis=1)
    change -= np.einsum("rb,rbp->rp", share, change)[:, None, :]
    slope = np.einsum("rb,rbp->rp", binned, change)
    information = (change * (share * total[:, None])[:, :, None]).transpose(0, 2, 1) @ change
    return log, slope, information
