"""Response and resolution against energy, and their three terms, every number with its error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.errors import NotConvergedError
from calolife.runs import json_number

if TYPE_CHECKING:
    from iminuit import Minuit

__all__ = [
    "TERMS",
    "EnergyBins",
    "Resolution",
    "drawn",
    "effective_sigma",
    "energy_bins",
    "fit_resolution",
    "replica_counts",
    "shortest_half",
    "usual_edges",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TERMS = ("stochastic", "noise", "constant")
_FRACTION = 0.683  # of a Gaussian within one standard deviation
_FEWEST_IN_BIN = 10  # chosen: the standard deviation of fewer is not known to a quarter of itself, nor is its error
_USUAL_IN_BIN = 30  # chosen: the standard deviation is known to 13 %
_FEW_ENERGIES = 20  # chosen: a beam test has fewer energies, a simulated spectrum more
# chosen: round energies, about as many showers of a flat spectrum in each above 10 GeV; 5 and 85 stand for the usual limits of a test
_ROUND_GEV = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 85.0)
_CHUNK = 1 << 22  # chosen: numbers held at once, 32 MB
_SEEN = 2.0  # errors; chosen: what is shown as a value; see `fit_resolution` for how little two errors say
_ONE_SIDED_95 = 1.645  # standard deviations of a Gaussian
_RISE_68, _RISE_95 = 1.0, _ONE_SIDED_95**2  # of -2 ln L


@dataclass(frozen=True, eq=False)
class EnergyBins:
    """Response and resolution in bins of true energy, with standard errors.

    Parameters
    ----------
    edges_gev : float array, (bin + 1,) [GeV]
    n : int array, (bin,)
        Showers in each.
    energy_gev : float array, (bin,) [GeV]
        1 / mean(1/E): the energy at which sigma/E = S/sqrt(E) is what the showers of the bin have together. The middle
        of a bin is not: over 1 to 2 GeV it lies 4 % higher.
    response, response_error : float array, (bin,)
        Mean of E'/E, E' the predicted energy.
    median_response, median_response_error : float array, (bin,)
        The same without regard to tails.
    resolution, resolution_error : float array, (bin,)
        Standard deviation of E'/E over the response: a common factor of all predictions drops out.
    sigma_eff, sigma_eff_error : float array, (bin,)
        `effective_sigma` of E'/E over the median response; too small in bins with few showers (see there).

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> energy = rng.uniform(5, 85, 4000)
    >>> bins = energy_bins(1.02 * energy + 0.5 * np.sqrt(energy) * rng.normal(size=4000), energy, edges_gev=[5, 20, 85])
    >>> bool((abs(bins.linearity - 0.02) < 4 * bins.response_error).all()), int(bins.n.sum())
    (True, 4000)
    """

    edges_gev: FloatArray
    n: IntArray
    energy_gev: FloatArray
    response: FloatArray
    response_error: FloatArray
    median_response: FloatArray
    median_response_error: FloatArray
    resolution: FloatArray
    resolution_error: FloatArray
    sigma_eff: FloatArray
    sigma_eff_error: FloatArray

    @property
    def linearity(self) -> FloatArray:
        """Response - 1, (bin,); its error is `response_error`."""
        return self.response - 1.0

    def to_json_dict(self) -> list[dict[str, Any]]:
        """One row of plain numbers per bin."""
        names = ("response", "median_response", "resolution", "sigma_eff")
        return [
            {
                "low_gev": float(self.edges_gev[b]), "high_gev": float(self.edges_gev[b + 1]), "energy_gev": float(self.energy_gev[b]),
                "n": int(self.n[b]),
                **{key: float(getattr(self, key)[b]) for name in names for key in (name, f"{name}_error")},
            }
            for b in range(self.n.size)
        ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Resolution:
    """Resolution sigma/E = S/sqrt(E) (+) N/E (+) C of a calorimeter, added in quadrature.

    Parameters
    ----------
    stochastic : float [sqrt(GeV)]
        S: 0.10 is 10 % at 1 GeV.
    noise : float [GeV]
        N.
    constant : float
        C.
    covariance : float array, (term, term)
        Of S, N, C in this order and these units.
    upper95 : tuple of float
        Limits that the terms are below at 95 % confidence. The number to quote of a term that is not seen.
    chi2 : float
        Of the points about the curve (`fit_resolution` says which); NaN without a fit.
    ndf : int
        Points less terms.

    Raises
    ------
    ValueError
        A term below zero, no term above zero, or a covariance that is not (3, 3).

    Examples
    --------
    >>> ecal = Resolution(stochastic=0.028, noise=0.12, constant=0.003)
    >>> round(100 * float(ecal.at(50.0)), 2)   # percent
    0.55
    """

    stochastic: float
    noise: float
    constant: float
    covariance: FloatArray = field(default_factory=lambda: np.zeros((3, 3)))
    upper95: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    chi2: float = np.nan
    ndf: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "covariance", np.ascontiguousarray(self.covariance, dtype=np.float64))
        for name in TERMS:
            if not (np.isfinite(got := getattr(self, name)) and got >= 0):
                raise ValueError(f"{name} = {got} must be finite and >= 0; only its square enters the resolution")
        if not self._terms.any():
            raise ValueError("all three terms are 0; a resolution needs one that is > 0")
        if self.covariance.shape != (3, 3):
            raise ValueError(f"covariance has shape {self.covariance.shape}; it must be (3, 3), of {', '.join(TERMS)}")

    @property
    def _terms(self) -> FloatArray:
        return np.array([self.stochastic, self.noise, self.constant])

    @property
    def errors(self) -> FloatArray:
        """Standard errors of S, N, C, (term,)."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def is_seen(self) -> tuple[bool, bool, bool]:
        """Whether each of S, N, C is above two of its errors; of one that is not, tables and figures give the limit."""
        s, n, c = (self._terms > _SEEN * self.errors).tolist()
        return s, n, c

    def at(self, energy_gev: ArrayLike) -> FloatArray:
        """sigma/E at energies (...) [GeV] that must be > 0."""
        value: FloatArray = np.sqrt(_shapes(_above_zero(energy_gev)) @ self._terms**2)
        return value

    def error_at(self, energy_gev: ArrayLike) -> FloatArray:
        """Standard error of `at`, (...), all correlations in it.

        Notes
        -----
        To first order: a term at zero adds nothing to it, so that the band does not tell how large that term may be.
        """
        energy = _above_zero(energy_gev)
        slope = _shapes(energy) * self._terms / self.at(energy)[..., None]
        error: FloatArray = np.sqrt(np.einsum("...i,ij,...j->...", slope, self.covariance, slope))
        return error

    def to_json_dict(self) -> dict[str, Any]:
        """Terms with errors and limits, covariance and goodness of fit, as plain numbers; null for what is not known."""
        found: dict[str, Any] = {}
        for name, unit, value, error, upper in zip(TERMS, _UNITS, self._terms, self.errors, self.upper95, strict=True):
            found[name] = {"value": float(value), "uncertainty": float(error), "upper95": json_number(upper), "unit": unit}
        return {**found, "covariance": self.covariance.tolist(), "chi2": json_number(self.chi2), "ndf": self.ndf}


_UNITS = ("sqrt(GeV)", "GeV", "")


def effective_sigma(value: ArrayLike, *, fraction: float = _FRACTION) -> float:
    """Half of the shortest interval that holds 68.3 % of the values: sigma for a Gaussian, and deaf to tails.

    Parameters
    ----------
    value : float array, (shower,)
    fraction : float
        Part of the values inside, > 0 and <= 1.

    Returns
    -------
    float
        In the unit of the values; 0 for a single one.

    Raises
    ------
    ValueError
        No values, one that is not finite, or a fraction out of range.

    Notes
    -----
    The shortest of many intervals: too small in small samples, by 13 % for 30 Gaussian values, 6 % for 100, 3 % for 300
    and 2 % for 1,000. Compare it between samples of one size.

    Examples
    --------
    >>> effective_sigma([0.0, 4.0, 5.0, 6.0, 99.0], fraction=0.6)
    1.0
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction} must be > 0 and <= 1; 0.683 is one standard deviation of a Gaussian")
    ordered = np.sort(_checked("value", value))
    return float(shortest_half(ordered[None, :], fraction=fraction)[0])


def energy_bins(
    predicted_gev: ArrayLike,
    energy_gev: ArrayLike,
    *,
    edges_gev: Sequence[float] | FloatArray | None = None,
    n_bootstrap: int = 300,
    seed: int = 0,
) -> EnergyBins:
    """Response and resolution in bins of true energy.

    Parameters
    ----------
    predicted_gev : float array, (shower,) [GeV]
    energy_gev : float array, (shower,) [GeV]
        True energies.
    edges_gev : float array, (bin + 1,), optional [GeV]
        Showers outside are left out; the last bin holds its upper edge. By default `usual_edges`.
    n_bootstrap : int
        Resamplings of the showers of each bin that the errors come from.
    seed : int
        Of the resampling.

    Returns
    -------
    EnergyBins

    Raises
    ------
    ValueError
        Arrays that do not fit, energies that are not > 0, edges that do not rise, a bin with fewer than 10 showers
        or with a mean or median response that is not > 0.

    Notes
    -----
    Errors are those of the bootstrap: tails count as they are. They speak of other showers, not of another training.
    """
    predicted, energy = _checked("predicted_gev", predicted_gev), _above_zero(_checked("energy_gev", energy_gev))
    if predicted.size != energy.size:
        raise ValueError(f"{predicted.size} predictions for {energy.size} true energies; give one for each shower")
    if n_bootstrap < 2:
        raise ValueError(f"n_bootstrap = {n_bootstrap} must be >= 2; 300 gives errors to 4 %")
    edges = usual_edges(energy) if edges_gev is None else _checked("edges_gev", edges_gev)
    if edges.size < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges_gev = {edges.tolist()} must be at least two, each above the one before")
    bin_of = np.searchsorted(edges, energy, side="right") - 1
    bin_of[energy == edges[-1]] = edges.size - 2
    rows, at, counts = [], [], []
    for b, rng in enumerate(np.random.default_rng(seed).spawn(edges.size - 1)):
        inside = bin_of == b
        n = int(inside.sum())
        where = f"bin {b}, {edges[b]:g} to {edges[b + 1]:g} GeV,"
        if n < _FEWEST_IN_BIN:
            raise ValueError(f"{where} has {n} showers; at least {_FEWEST_IN_BIN} are needed: widen the bins or add showers")
        ratio = np.sort(predicted[inside] / energy[inside])
        if not (ratio.mean() > 0 and np.median(ratio) > 0):
            raise ValueError(f"{where} has a response of {ratio.mean():.3g}; a resolution needs one > 0: mend the predictions")
        replicas = np.concatenate([_figures(drawn(ratio, c)) for c in replica_counts(n, n_bootstrap, rng)])
        rows.append(np.column_stack([_figures(ratio[None, :])[0], replicas.std(axis=0, ddof=1)]))
        at.append(1.0 / np.mean(1.0 / energy[inside]))
        counts.append(n)
    value = np.array(rows)  # (bin, figure, value and error)
    of = {name: value[:, k, 0] for k, name in enumerate(_BIN_FIGURES)}
    errors = {f"{name}_error": value[:, k, 1] for k, name in enumerate(_BIN_FIGURES)}
    return EnergyBins(edges_gev=edges, n=np.array(counts, dtype=np.int64), energy_gev=np.array(at), **of, **errors)


def usual_edges(energy_gev: ArrayLike) -> FloatArray:
    """Edges [GeV] of energy bins that have something in them.

    Parameters
    ----------
    energy_gev : float array, (shower,) [GeV]

    Returns
    -------
    float array, (bin + 1,) [GeV]
        Between the energies of a beam test (no more than 20, with 10 showers or more each); else round numbers, with
        bins of fewer than 30 showers joined to the next one.

    Examples
    --------
    >>> usual_edges(np.linspace(1, 100, 1000)).tolist()
    [1.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 85.0, 100.0]
    >>> usual_edges(np.repeat([10.0, 40.0], 100)).tolist()
    [5.0, 20.0, 80.0]
    """
    energy = _above_zero(_checked("energy_gev", energy_gev))
    different, count = np.unique(energy, return_counts=True)
    low, high = float(different[0]), float(different[-1])
    if different.size <= _FEW_ENERGIES and count.min() >= _FEWEST_IN_BIN:
        between = np.sqrt(different[:-1] * different[1:])
        first = different[0] ** 2 / between[0] if between.size else low / 2
        last = different[-1] ** 2 / between[-1] if between.size else high * 2
        return np.concatenate([[first], between, [last]])
    decades = 10.0 ** np.arange(np.floor(np.log10(low)) - 3, np.ceil(np.log10(high)) + 3)
    below = [step * d for d in decades if d < 1 for step in (1.0, 2.0, 5.0)]
    above = [step * d for d in decades if d >= 100 for step in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)]
    inner = [e for e in (*below, *_ROUND_GEV, *above) if low < e < high]
    edges = [low]
    for edge in inner:
        # a bin from the last edge kept to this one; the showers above the last edge must make a bin too
        if ((energy >= edges[-1]) & (energy < edge)).sum() >= _USUAL_IN_BIN and (energy >= edge).sum() >= _USUAL_IN_BIN:
            edges.append(float(edge))
    return np.array([*edges, high])


def fit_resolution(energy_gev: ArrayLike, resolution: ArrayLike, error: ArrayLike, *, terms: Sequence[str] = TERMS) -> Resolution:
    """Stochastic, noise and constant term through measured resolutions.

    Parameters
    ----------
    energy_gev : float array, (point,) [GeV]
        For bins, `EnergyBins.energy_gev`.
    resolution, error : float array, (point,)
        sigma/E and its standard error, both > 0.
    terms : sequence of str
        Those of ``"stochastic"``, ``"noise"``, ``"constant"`` to be fitted; the others are 0.

    Returns
    -------
    Resolution

    Raises
    ------
    ValueError
        Arrays that do not fit, a number that is not finite or not > 0, fewer different energies than terms, a term
        that is not one of the three.
    NotConvergedError
        No minimum with a positive covariance.

    Notes
    -----
    Minimised with MIGRAD (iminuit): -2 ln L = sum of nu (x - 1 - ln x), x = measured / fitted variance, nu = (resolution
    / error)^2 / 2. It is exact for standard deviations of Gaussian samples and becomes chi2 for small errors. Plain chi2
    would be drawn low: points that fluctuate down come with smaller errors.

    Covariance by HESSE. Only squares of the terms enter, so none comes out below 0. A term that is 0 comes out as 0
    about every second time; the slope there is 0 and HESSE means nothing. The error of a term below its error is
    instead how far up -2 ln L rises by 1 (MINOS), its correlations are left out, and `Resolution.upper95` is the number
    to quote. Shown as a value is a term above two of its errors (`Resolution.is_seen`), but only at four is it proven: its
    square is then two standard deviations from 0.

    Examples
    --------
    >>> energy = np.array([2.0, 5.0, 10.0, 20.0, 50.0, 100.0])
    >>> truth = Resolution(0.5, 0.3, 0.02).at(energy)
    >>> fit = fit_resolution(energy, truth, 0.02 * truth)
    >>> round(fit.stochastic, 3), round(fit.noise, 3), round(fit.constant, 3), fit.ndf
    (0.5, 0.3, 0.02, 3)
    """
    from iminuit import Minuit
    from scipy.optimize import nnls

    energy = _above_zero(_checked("energy_gev", energy_gev))
    measured, sigma = _checked("resolution", resolution), _checked("error", error)
    for name, values in (("resolution", measured), ("error", sigma)):
        if values.size != energy.size:
            raise ValueError(f"{name} has {values.size} points and energy_gev {energy.size}; give one for each")
        if not (values > 0).all():
            raise ValueError(f"{name} of point {int(np.argmin(values))} is {values.min()}; it must be > 0")
    chosen = [TERMS.index(t) for t in terms if t in TERMS]
    if not chosen or len(chosen) != len(set(terms)) or len(chosen) != len(terms):
        raise ValueError(f"terms = {list(terms)}; they must be different ones of {', '.join(TERMS)}")
    if np.unique(energy).size < len(chosen):
        raise ValueError(f"{np.unique(energy).size} different energies cannot tell {len(chosen)} terms; add points or fit fewer terms")

    shapes = _shapes(energy)[:, chosen]  # (point, term)
    variance = measured**2
    nu = 0.5 * (measured / sigma) ** 2

    def deviance(p: FloatArray) -> float:
        x = variance / (shapes @ p**2)
        return float(np.sum(nu * (x - 1 - np.log(x))))

    def slope(p: FloatArray) -> FloatArray:
        fitted = shapes @ p**2
        found: FloatArray = 2 * p * (shapes.T @ (nu * (1 - variance / fitted) / fitted))
        return found

    # linear in the squares: the answer but for the weights
    squares, _ = nnls(shapes / variance[:, None], np.ones(energy.size))
    most = np.min(measured[:, None] / np.sqrt(shapes), axis=0)  # a larger term alone would be above every point
    names = [TERMS[k] for k in chosen]
    # a term that starts at 0 would stay there whatever the points say: the slope is 0
    minuit = Minuit(deviance, np.maximum(np.sqrt(squares), 0.1 * most), grad=slope, name=names)
    minuit.errordef = Minuit.LEAST_SQUARES
    minuit.errors = 0.05 * most
    minuit.strategy = 2
    minuit.migrad()
    if not minuit.valid:
        minuit.simplex().migrad()
    if not minuit.valid or not np.isfinite(minuit.fval):
        raise NotConvergedError("the resolution fit found no minimum; look at the points, or fit fewer terms")
    best, least = np.abs(np.array(minuit.values)), float(minuit.fval)
    minuit.hesse()
    matrix = None if minuit.covariance is None else np.array(minuit.covariance)
    if matrix is None or not minuit.fmin.has_posdef_covar:
        # at 0 the valley may be flat to second order: the terms that are not there do not touch the others
        is_there = best > 1e-3 * most
        matrix = _without(minuit, names, is_there)
    hesse = np.sqrt(np.diag(matrix))
    upper = best + _ONE_SIDED_95 * hesse

    for j, name in enumerate(names):
        if best[j] < hesse[j]:
            matrix[j, :] = matrix[:, j] = 0.0
            matrix[j, j] = (_reach(minuit, name, best, most[j], least + _RISE_68) - best[j]) ** 2
            upper[j] = _reach(minuit, name, best, most[j], least + _RISE_95)
    if not (np.isfinite(matrix).all() and (np.linalg.eigvalsh(matrix) > 0).all()):
        raise NotConvergedError(f"the resolution fit has no covariance; the points do not tell {', '.join(names)} apart: fit fewer terms")
    value, limit, covariance = np.zeros(3), np.zeros(3), np.zeros((3, 3))
    value[chosen], limit[chosen], covariance[np.ix_(chosen, chosen)] = best, upper, matrix
    s, n, c = value.tolist()
    return Resolution(s, n, c, covariance, (limit[0], limit[1], limit[2]), least, energy.size - len(chosen))


def replica_counts(n: int, n_bootstrap: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """How often each of n showers is in each bootstrap replica, in parts (replica, shower) that memory holds."""
    at_once = max(1, _CHUNK // n)
    for first in range(0, n_bootstrap, at_once):
        rows = min(at_once, n_bootstrap - first)
        shower = rng.integers(0, n, (rows, n))
        shower += n * np.arange(rows)[:, None]
        yield np.bincount(shower.ravel(), minlength=rows * n).reshape(rows, n)


def drawn(ordered: FloatArray, counts: IntArray) -> FloatArray:
    """Values of each replica in order, (replica, shower), from ordered values (shower,) and their counts (replica, shower)."""
    return np.repeat(np.broadcast_to(ordered, counts.shape).ravel(), counts.ravel()).reshape(counts.shape)


def shortest_half(ordered: FloatArray, *, fraction: float = _FRACTION) -> FloatArray:
    """Half of the shortest interval with so much of each row, (replica,), of ordered values (replica, shower)."""
    n = ordered.shape[1]
    inside = max(1, int(np.ceil(fraction * n - 1e-9)))  # 0.6 * 5 is 3, whatever its last bit
    half: FloatArray = 0.5 * (ordered[:, inside - 1 :] - ordered[:, : n - inside + 1]).min(axis=1)
    return half


_BIN_FIGURES = ("response", "median_response", "resolution", "sigma_eff")


def _figures(ordered: FloatArray) -> FloatArray:
    """The four figures of a bin, (replica, figure), from its ordered E'/E, (replica, shower)."""
    n = ordered.shape[1]
    mean = ordered.mean(axis=1)
    median = 0.5 * (ordered[:, (n - 1) // 2] + ordered[:, n // 2])
    return np.column_stack([mean, median, ordered.std(axis=1, ddof=1) / mean, shortest_half(ordered) / median])


def _without(minuit: Minuit, names: Sequence[str], is_there: NDArray[np.bool_]) -> FloatArray:
    """Covariance of the terms that are there, the others held; theirs is infinite, for `_reach` to replace."""
    for name, free in zip(names, is_there, strict=True):
        minuit.fixed[name] = not free
    minuit.hesse()
    matrix = np.diag(np.where(is_there, 0.0, np.inf))
    if minuit.covariance is None or not minuit.fmin.has_posdef_covar:
        raise NotConvergedError(f"the resolution fit has no covariance; the points do not tell {', '.join(names)} apart: fit fewer terms")
    matrix[np.ix_(is_there, is_there)] = np.array(minuit.covariance)[np.ix_(is_there, is_there)]
    minuit.fixed = [False] * len(names)
    return matrix


def _reach(minuit: Minuit, name: str, best: FloatArray, most: float, level: float) -> float:
    """Value above the best of one term at which -2 ln L, least over the others, comes up to a level."""
    from scipy.optimize import brentq

    start = float(best[list(minuit.parameters).index(name)])

    def above(value: float) -> float:
        minuit.values = best
        minuit.values[name] = value
        minuit.fixed[name] = True
        minuit.migrad()
        minuit.fixed[name] = False
        return float(minuit.fval) - level

    step = 0.05 * most
    while above(start + step) < 0:
        step *= 2
        if step > 1e3 * most:
            raise NotConvergedError(f"the resolution fit does not bound {name}; the points do not tell it: leave it out of terms")
    return float(brentq(above, start, start + step, rtol=1e-4))


def _shapes(energy_gev: FloatArray) -> FloatArray:
    """What multiplies S^2, N^2 and C^2 in (sigma/E)^2, (..., term)."""
    return np.stack([1 / energy_gev, 1 / energy_gev**2, np.ones_like(energy_gev)], axis=-1)


def _checked(name: str, values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; it must be a list of at least one number")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not finite; drop it or mend what made it")
    return array


def _above_zero(energy_gev: ArrayLike) -> FloatArray:
    energy = np.asarray(energy_gev, dtype=np.float64)
    if not (energy > 0).all():
        raise ValueError(f"energy_gev has {energy.min():g} in it; energies must be > 0")
    return energy
