"""Line shapes fitted to energy ratios and to the Z mass, by likelihood, with errors and goodness of fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc

from calolife.energy.peaks import (
    cruijff,
    cruijff_areas,
    cruijff_cdf,
    cruijff_log,
    crystal_ball_areas,
    crystal_ball_log,
    double_crystal_ball,
    double_crystal_ball_cdf,
)
from calolife.energy.zline import (
    Z_MASS_GEV,
    Z_RANGE_GEV,
    Z_WIDTH_GEV,
    sample_z_mass,
    z_areas,
    z_likelihood,
    z_line,
    z_line_cdf,
    z_log,
)
from calolife.errors import NotConvergedError
from calolife.runs import json_number

if TYPE_CHECKING:
    from iminuit import Minuit

__all__ = [
    "Z_MASS_GEV",
    "Z_WIDTH_GEV",
    "LineFit",
    "cruijff",
    "cruijff_cdf",
    "double_crystal_ball",
    "double_crystal_ball_cdf",
    "fit_cruijff",
    "fit_double_crystal_ball",
    "fit_z_line",
    "sample_z_mass",
    "z_line",
    "z_line_cdf",
]
FloatArray = NDArray[np.float64]
Range = tuple[float, float]
_FEW = 200  # values; chosen: fewer do not always tell a tail from a wide core
_FEWEST = 20  # chosen: five or six parameters and a chi2 need a few entries each
_REACH = {"cruijff": 5.0, "double_crystal_ball": 10.0}  # widths; chosen: a Cruijff levels off further out, a power law does not
_IN_CELL = 5  # entries a bin must expect for Pearson's chi2; source: Cochran, Ann. Math. Stat. 23 (1952) 315
_MOST_CELLS = 50  # chosen: finer ones do not see a wrong tail any better
_AT_LIMIT = 1e-3  # of a parameter's span; chosen: MIGRAD has no covariance closer to a limit
_MOST_FAILED = 0.1  # of bootstrap replicas; chosen: with more their spread is not that of the fit


@dataclass(frozen=True, eq=False)
class LineFit:
    """A line shape fitted to values, with everything that tells how far to trust it.

    Parameters
    ----------
    shape : {"cruijff", "double_crystal_ball", "z_line"}
    parameters : dict of str to float
        In the unit of the values; `mu` is the peak, for a Z line that of the Breit-Wigner: mu / Z_MASS_GEV is the energy scale.
    covariance : float array, (parameter, parameter)
        From the curvature of the likelihood, in the order of `parameters`; zero for those held.
    chi2 : float
        Pearson's, on bins; the fit itself is one of likelihood.
    ndf : int
        Bins less 1 less free parameters.
    n, n_outside : int
        Values in and out of the range.
    range : (float, float)
        What was fitted; the shape is normalised within.
    is_binned : bool
    held : tuple of str
        Parameters without an error: given as fixed, or at the end of what is allowed (a tail that is not there).
    bootstrap_covariance : float array, (parameter, parameter), or None
        Of the fits to resampled values.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> fit = fit_cruijff(rng.normal(1.0, 0.02, 4000))
    >>> abs(fit.mu - 1) < 5 * fit.errors["mu"], 0.018 < fit.sigma < 0.022, fit.p_value > 1e-4
    (True, True, True)
    """

    shape: str
    parameters: dict[str, float]
    covariance: FloatArray
    chi2: float
    ndf: int
    n: int
    n_outside: int
    range: Range
    is_binned: bool
    held: tuple[str, ...] = ()
    bootstrap_covariance: FloatArray | None = None

    @property
    def errors(self) -> dict[str, float]:
        """Standard error of each parameter from `covariance`; NaN for those held."""
        return self._errors(self.covariance)

    @property
    def bootstrap_errors(self) -> dict[str, float] | None:
        """Standard error of each parameter from the bootstrap; None without one."""
        return None if self.bootstrap_covariance is None else self._errors(self.bootstrap_covariance)

    @property
    def mu(self) -> float:
        """Peak of the line, or of the Breit-Wigner under it."""
        return self.parameters["mu"]

    @property
    def sigma(self) -> float:
        """(sigma_left + sigma_right) / 2 of a Cruijff; sigma of the Crystal Ball otherwise."""
        return float(self._sigma_slope @ np.array(list(self.parameters.values())))

    @property
    def sigma_error(self) -> float:
        """Standard error of `sigma`, from the bootstrap where there is one; NaN if it was held."""
        return self._propagated(self._sigma_slope)

    @property
    def sigma_over_mu(self) -> float:
        """`sigma` / `mu`: the resolution, whatever the scale."""
        return self.sigma / self.mu

    @property
    def sigma_over_mu_error(self) -> float:
        """Standard error of `sigma_over_mu`, from the bootstrap where there is one; NaN if sigma was held."""
        slope = self._sigma_slope / self.mu
        slope[list(self.parameters).index("mu")] = -self.sigma / self.mu**2
        return self._propagated(slope) if np.isfinite(self.sigma_error) else math.nan

    @property
    def p_value(self) -> float:
        """Probability of a chi2 as large or larger; NaN without degrees of freedom.

        Notes
        -----
        A little too small for an unbinned fit: its chi2 lies between the distributions of ndf and of ndf + free parameters.
        Source: Chernoff and Lehmann, Ann. Math. Stat. 25 (1954) 579.
        """
        return float(chdtrc(self.ndf, self.chi2)) if self.ndf > 0 else math.nan

    def density(self, values: ArrayLike) -> FloatArray:
        """Probability density at values (...), 1 over the range of the fit; 0 outside."""
        at = np.asarray(values, dtype=np.float64)
        low, high = self.range
        model, parameters = _MODELS[self.shape], np.array(list(self.parameters.values()))
        area = model.areas(parameters, np.array([low, high]))[0]
        inside: FloatArray = np.where((at >= low) & (at <= high), np.exp(model.log_density(parameters, at)) / area, 0.0)
        return inside

    def expected(self, edges: ArrayLike) -> FloatArray:
        """Entries expected in bins, (bin,), between edges (bin + 1,) within the range: the curve to draw over a histogram."""
        at = np.asarray(edges, dtype=np.float64)
        low, high = self.range
        if at.ndim != 1 or at.size < 2 or not (np.diff(at) > 0).all() or at[0] < low or at[-1] > high:
            raise ValueError(f"edges of shape {at.shape} must be at least two that rise within the range {low:g} to {high:g} of the fit")
        model, parameters = _MODELS[self.shape], np.array(list(self.parameters.values()))
        expected: FloatArray = self.n * model.areas(parameters, at) / model.areas(parameters, np.array([low, high]))[0]
        return expected

    def to_json_dict(self) -> dict[str, Any]:
        """Parameters with errors, covariance and goodness of fit, as plain numbers; null for what is not known."""
        boot = self.bootstrap_errors or dict.fromkeys(self.parameters, math.nan)
        rows = {
            name: {"value": value, "uncertainty": json_number(self.errors[name]), "bootstrap_uncertainty": json_number(boot[name])}
            for name, value in self.parameters.items()
        }
        return {
            "shape": self.shape, "parameters": rows, "covariance": self.covariance.tolist(), "held": list(self.held),
            "sigma": {"value": self.sigma, "uncertainty": json_number(self.sigma_error)},
            "sigma_over_mu": {"value": self.sigma_over_mu, "uncertainty": json_number(self.sigma_over_mu_error)},
            "chi2": json_number(self.chi2), "ndf": self.ndf, "p_value": json_number(self.p_value),
            "n": self.n, "n_outside": self.n_outside, "range": [json_number(end) for end in self.range], "is_binned": self.is_binned,
        }  # fmt: skip

    @property
    def _sigma_slope(self) -> FloatArray:
        """Change of `sigma` with each parameter, (parameter,)."""
        is_width = np.array([name.startswith("sigma") for name in self.parameters], dtype=np.float64)
        slope: FloatArray = is_width / is_width.sum()
        return slope

    def _errors(self, covariance: FloatArray) -> dict[str, float]:
        spread = np.sqrt(np.diag(covariance)).tolist()
        return {name: math.nan if name in self.held else e for name, e in zip(self.parameters, spread, strict=True)}

    def _propagated(self, slope: FloatArray) -> float:
        covariance = self.covariance if self.bootstrap_covariance is None else self.bootstrap_covariance
        variance = float(slope @ covariance @ slope)
        return math.sqrt(variance) if variance > 0 else math.nan


def fit_cruijff(
    values: ArrayLike,
    *,
    range: Range | None = None,
    bins: int | None = None,
    fixed: Mapping[str, float] | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> LineFit:
    """Cruijff function fitted to values by maximum likelihood.

    Parameters
    ----------
    values : float array, (value,)
        Such as E_pred / E_true.
    range : (float, float), optional
        Values outside are left out and counted. By default five widths to each side of the median, each side's width from its
        median to the 15.85 % or 84.15 % quantile: deaf to outliers.
    bins : int, optional
        Equal bins over the range, for a binned likelihood; by default each value counts where it is.
    fixed : dict of str to float, optional
        Parameters to hold: of mu, sigma_left, sigma_right, alpha_left, alpha_right.
    n_bootstrap : int
        Fits to resampled values; 0 for none, 100 give errors to 7 %.
    seed : int
        Of the resampling.

    Returns
    -------
    LineFit
        `sigma_over_mu` is what CMS calls the resolution.

    Raises
    ------
    ValueError
        Values that are not finite or all the same, fewer than 20 in the range, a range that does not rise, too few bins.
    NotConvergedError
        No minimum with a covariance from any starting point, or a tenth of the bootstrap without one.

    Notes
    -----
    Minimised by MIGRAD (iminuit) from starting values that are quantiles about the mode. alpha = 0 is the end of what is
    allowed: there the parameter is held and the fit is that of a Gaussian side. Of fewer than 200 values that do not tell the
    tails, these are held at 0.1, and if need be mu at the median; `held` says so.

    Examples
    --------
    >>> ratio = np.random.default_rng(2).normal(1.0, 0.02, 1000)
    >>> outliers = np.concatenate([ratio, [9.0, -50.0]])
    >>> fit = fit_cruijff(outliers)
    >>> fit.n_outside, abs(fit.mu - fit_cruijff(ratio).mu) < 0.1 * fit.errors["mu"]
    (2, True)
    """
    return _fit("cruijff", values, range, bins, fixed, n_bootstrap, seed)


def fit_double_crystal_ball(
    values: ArrayLike,
    *,
    range: Range | None = None,
    bins: int | None = None,
    fixed: Mapping[str, float] | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> LineFit:
    """Double-sided Crystal Ball fitted to values by maximum likelihood; arguments and errors as in `fit_cruijff`.

    Parameters
    ----------
    range : (float, float), optional
        May be endless for an unbinned fit. By default ten widths to each side of the median (see `fit_cruijff`).
    fixed : dict of str to float, optional
        Parameters to hold: of mu, sigma, alpha_left, n_left, alpha_right, n_right.

    Returns
    -------
    LineFit

    Notes
    -----
    alpha of 0.1 to 5 and n of 1.01 to 100 are allowed. With few values in a tail its alpha and n are hardly told apart: the
    errors of both are then large and far from Gaussian. Hold n to compare samples.

    Examples
    --------
    >>> fit = fit_double_crystal_ball(1 + 0.02 * np.random.default_rng(3).standard_t(3.0, 3000), fixed={"n_left": 3.0, "n_right": 3.0})
    >>> abs(fit.mu - 1) < 5 * fit.errors["mu"], fit.held
    (True, ('n_left', 'n_right'))
    """
    return _fit("double_crystal_ball", values, range, bins, fixed, n_bootstrap, seed)


def fit_z_line(
    mass_gev: ArrayLike,
    *,
    range: Range | None = None,
    bins: int | None = None,
    fixed: Mapping[str, float] | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> LineFit:
    """Z line fitted to masses of electron pairs by maximum likelihood; arguments and errors as in `fit_cruijff`.

    Parameters
    ----------
    mass_gev : float array, (pair,) [GeV]
    range : (float, float), optional [GeV]
        By default 60 to 120.
    fixed : dict of str to float, optional
        Parameters to hold: of mu, sigma, alpha, n.

    Returns
    -------
    LineFit
        mu / Z_MASS_GEV is the energy scale, sigma_over_mu the resolution of the mass: 1 / sqrt(2) of that of one electron.

    Raises
    ------
    NotConvergedError
        Also where the masses are not smeared beyond the natural width.

    Notes
    -----
    No background. Masses, range and held parameters times a factor give mu and sigma times that factor.

    Examples
    --------
    >>> mass = sample_z_mass(3000, seed=1) + np.random.default_rng(2).normal(0.0, 1.5, 3000)
    >>> fit = fit_z_line(1.01 * mass, fixed={"alpha": 5.0, "n": 2.0}, bins=60)
    >>> abs(fit.mu / Z_MASS_GEV - 1.01) < 0.002, abs(fit.sigma - 1.5) < 5 * fit.sigma_error
    (True, True)
    """
    return _fit("z_line", mass_gev, range, bins, fixed, n_bootstrap, seed)


class _Model(NamedTuple):
    """What the fit needs of a shape; parameters in the order of `names`, mu first, widths next."""

    names: tuple[str, ...]
    lower: tuple[float, ...]  # limits, in widths about the median; of the Z line in GeV of the true Z
    upper: tuple[float, ...]
    starts: tuple[tuple[float, ...], ...]  # of the tails, one after the other until the fit converges
    log_density: Callable[[FloatArray, FloatArray], FloatArray]  # (parameters, values): normalised or not
    areas: Callable[[FloatArray, FloatArray], FloatArray]  # (parameters, edges): integrals with the same norm


class _Values(NamedTuple):
    """Values in the unit of the fit: (value - origin) / unit."""

    x: FloatArray  # those in the range, in order
    origin: float
    unit: float
    low: float
    high: float
    edges: FloatArray | None  # of a binned fit


Objective = Callable[[FloatArray], float]


def _fit(
    shape: str, values: ArrayLike, range: Range | None, bins: int | None, fixed: Mapping[str, float] | None, n_bootstrap: int, seed: int
) -> LineFit:
    model = _MODELS[shape]
    every = np.asarray(values, dtype=np.float64)
    if every.ndim != 1:
        raise ValueError(f"values have shape {every.shape}; they must be a plain list of numbers")
    if not np.isfinite(every).all():
        raise ValueError(f"values[{int(np.argmin(np.isfinite(every)))}] is not finite; drop it or mend what made it")
    if n_bootstrap < 0 or n_bootstrap == 1:
        raise ValueError(f"n_bootstrap = {n_bootstrap} must be 0 or >= 2; 100 give errors to 7 %")
    if bins is not None and bins < len(model.names) + 2:
        raise ValueError(f"bins = {bins} must be at least {len(model.names) + 2} for the {len(model.names)} parameters of a {shape}")
    low, high = _default_range(shape, every) if range is None else (float(range[0]), float(range[1]))
    if not low < high:
        raise ValueError(f"range = ({low:g}, {high:g}) must rise")
    if not (math.isfinite(low) and math.isfinite(high)) and (shape != "double_crystal_ball" or bins is not None):
        raise ValueError(f"range = ({low:g}, {high:g}) must end on both sides; only an unbinned double_crystal_ball goes on for ever")
    if shape == "z_line" and low <= 0:
        raise ValueError(f"range = ({low:g}, {high:g}) GeV must begin above 0; the Z is usually 60 to 120")
    inside = np.sort(every[(every >= low) & (every <= high)])
    # the default range may leave a few of them out
    if inside.size < (_FEWEST if range is not None or shape == "z_line" else _FEWEST // 2):
        raise ValueError(f"{inside.size} of {every.size} values within {low:g} to {high:g}; at least {_FEWEST} are needed: widen the range")
    origin, unit = _units(shape, inside)
    edges = None if bins is None else (np.linspace(low, high, bins + 1) - origin) / unit
    data = _Values((inside - origin) / unit, origin, unit, (low - origin) / unit, (high - origin) / unit, edges)
    factor, shift = _to_user(model, data)
    given = _given(shape, model, fixed, factor, shift)
    minuit, held = _minimum(shape, model, data, given)
    best = np.array(minuit.values)
    chi2, ndf = _quality(model, data, best, len(model.names) - len(held))
    covariance = np.array(minuit.covariance) * np.outer(factor, factor)
    boot = None
    if n_bootstrap:
        replicas = _bootstrap(shape, model, data, best, held, n_bootstrap, seed)
        boot = np.cov(replicas, rowvar=False) * np.outer(factor, factor)
    return LineFit(
        shape, dict(zip(model.names, (factor * best + shift).tolist(), strict=True)), covariance, chi2, ndf, inside.size,
        every.size - inside.size, (low, high), bins is not None, tuple(n for n in model.names if n in held), boot,
    )  # fmt: skip


def _default_range(shape: str, values: FloatArray) -> Range:
    if shape == "z_line":
        return Z_RANGE_GEV
    if values.size < _FEWEST:
        raise ValueError(f"{values.size} values; at least {_FEWEST} are needed for a fit")
    low, middle, high = np.quantile(values, [0.1585, 0.5, 0.8415])
    if not low < high:
        raise ValueError(f"two thirds of the values are {middle:g}; a line needs a width: fit what is not rounded or stuck")
    # chosen: 0.2, a side may be that much steeper than the other
    left, right = (max(side, 0.2 * (high - low)) for side in (middle - low, high - middle))
    return float(middle - _REACH[shape] * left), float(middle + _REACH[shape] * right)


def _units(shape: str, values: FloatArray) -> tuple[float, float]:
    """Origin and unit of the fit, which then does the same whatever the unit of the values."""
    low, middle, high = np.quantile(values, [0.1585, 0.5, 0.8415]).tolist()
    if not low < high:
        raise ValueError(f"two thirds of the values are {middle:g}; a line needs a width: fit what is not rounded or stuck")
    return (0.0, middle / Z_MASS_GEV) if shape == "z_line" else (middle, 0.5 * (high - low))


def _to_user(model: _Model, data: _Values) -> tuple[FloatArray, FloatArray]:
    """Factor and shift of each parameter from the unit of the fit to that of the values, (parameter,)."""
    has_unit = np.array([name == "mu" or name.startswith("sigma") for name in model.names])
    return np.where(has_unit, data.unit, 1.0), np.where([name == "mu" for name in model.names], data.origin, 0.0)


def _given(shape: str, model: _Model, fixed: Mapping[str, float] | None, factor: FloatArray, shift: FloatArray) -> dict[str, float]:
    """Parameters that the caller holds, in the unit of the fit."""
    given = {}
    for name, value in (fixed or {}).items():
        if name not in model.names:
            raise ValueError(f"fixed has {name!r}; a {shape} has {', '.join(model.names)}")
        k = model.names.index(name)
        given[name] = (value - shift[k]) / factor[k]
        # a width of a Z line may be held at zero, what others may be is where a fit could end
        lower = 0.0 if shape == "z_line" and name == "sigma" else model.lower[k]
        if not lower <= given[name] <= model.upper[k]:
            allowed = [float(factor[k] * end + shift[k]) for end in (lower, model.upper[k])]
            raise ValueError(f"fixed {name} = {value:g} must be within {allowed[0]:.4g} to {allowed[1]:.4g} for these values")
    if len(given) == len(model.names):
        raise ValueError("all parameters are fixed; leave at least one to fit")
    return given


def _objective(shape: str, model: _Model, data: _Values) -> Objective:
    """-ln L of values or of bins as a function of the parameters."""
    if data.edges is not None:
        return _of_counts(model, data.edges, np.histogram(data.x, data.edges)[0])
    if shape == "z_line":
        return z_likelihood(data.x, data.low, data.high)
    x, ends = data.x, np.array([data.low, data.high])

    def minus_log_likelihood(parameters: FloatArray) -> float:
        area = model.areas(parameters, ends)[0]
        return float(x.size * math.log(area) - model.log_density(parameters, x).sum())

    return minus_log_likelihood


def _of_counts(model: _Model, edges: FloatArray, count: NDArray[np.int64]) -> Objective:
    filled, n = count > 0, int(count.sum())

    def minus_log_likelihood(parameters: FloatArray) -> float:
        area = model.areas(parameters, edges)
        # a bin with entries that the shape does not reach at all: worst there is, but a number
        log = np.log(np.maximum(area[filled], 1e-300))
        return float(n * math.log(area.sum()) - count[filled] @ log)

    return minus_log_likelihood


def _minuit(model: _Model, objective: Objective, start: FloatArray, held: Mapping[str, float]) -> Minuit:
    from iminuit import Minuit

    minuit = Minuit(objective, start, name=model.names)
    minuit.errordef = Minuit.LIKELIHOOD
    for name, low, high in zip(model.names, model.lower, model.upper, strict=True):
        # a limit turns a held parameter outside of it away
        minuit.limits[name] = None if name in held else (low, high)
        minuit.fixed[name] = name in held
    # chosen: a tenth of the statistical spread of one value is no worse a first step than any
    minuit.errors = [0.1 if name == "mu" else 0.05 * max(abs(value), 0.1) for name, value in zip(model.names, start, strict=True)]
    return minuit


def _minimum(shape: str, model: _Model, data: _Values, given: Mapping[str, float]) -> tuple[Minuit, dict[str, float]]:
    """The best fit, with its covariance, and the parameters held."""
    objective = _objective(shape, model, data)
    n_tails = len(model.starts[0])
    peak = _starting_peak(shape, data.x, len(model.names) - n_tails)
    why = "found no minimum with a covariance"
    attempts = [(tails, dict(given)) for tails in model.starts]
    if data.x.size < _FEW:
        usual = {**dict(zip(model.names[-n_tails:], model.starts[0], strict=True)), **given}
        attempts += [(model.starts[0], usual), (model.starts[0], {"mu": float(np.median(data.x)), **usual})]
    for tails, held in attempts:
        start = np.array([*peak, *tails])
        while len(held) < len(model.names):
            for name, value in held.items():
                start[model.names.index(name)] = value
            minuit = _minuit(model, objective, start, held)
            minuit.migrad()
            if not minuit.valid:
                minuit.simplex().migrad()
            start = np.array(minuit.values)
            ended = _at_limits(model, start, held)
            if ended.keys() & {"mu", "sigma", "sigma_left", "sigma_right"}:
                why = f"ran away: {', '.join(sorted(ended))} went to the end of what is allowed"
                break
            if not ended:
                minuit.hesse()
                if minuit.valid and minuit.covariance is not None and minuit.fmin.has_posdef_covar:
                    return minuit, held
                break
            held.update(ended)
    natural = "; the masses may not be smeared beyond the natural width" if shape == "z_line" else ""
    raise NotConvergedError(
        f"the {shape} fit of {data.x.size} values {why}, from {len(attempts)} starting points{natural}: "
        "change the range or hold a parameter with fixed"
    )


def _at_limits(model: _Model, found: FloatArray, held: Mapping[str, float]) -> dict[str, float]:
    """Free parameters that are at the end of what is allowed, each with that end; and the power of a tail that begins beyond."""
    ended: dict[str, float] = {}
    for name, value, low, high in zip(model.names, found.tolist(), model.lower, model.upper, strict=True):
        if name in held:
            continue
        margin = _AT_LIMIT * (high - low)
        if value < low + margin or value > high - margin:
            ended[name] = low if value < low + margin else high
    for name in [name for name in (*ended, *held) if name.startswith("alpha")]:
        power = "n" + name.removeprefix("alpha")
        k = model.names.index(name)
        if power in model.names and power not in held and {**ended, **held}[name] == model.upper[k]:
            ended[power] = float(found[model.names.index(power)])
    return ended


def _starting_peak(shape: str, x: FloatArray, n_first: int) -> list[float]:
    """Peak and widths from the values: the mode by halves, and how far two thirds of each side reach."""
    near = x
    for _ in (1, 2, 3):  # chosen: an eighth of the values still tells the peak to a fraction of sigma
        half = (near.size + 1) // 2
        first = int(np.argmin(near[half - 1 :] - near[: near.size - half + 1]))
        near = near[first : first + half]
    mode = float(np.median(near))
    if shape == "z_line":
        spread = 0.5 * float(np.subtract(*np.quantile(x, [0.8415, 0.1585])))
        # two thirds of a Breit-Wigner are within 0.92 Gamma; the middle three quarters of it say little of sigma
        return [mode, math.sqrt(max(spread**2 - (0.92 * Z_WIDTH_GEV) ** 2, 0.5**2))]
    # chosen: 0.1 of the width of all, for a side that has few values
    sides = [max(float(np.quantile(side, 0.683)), 0.1) if side.size else 1.0 for side in (mode - x[x < mode], x[x >= mode] - mode)]
    return [mode, *sides] if n_first == 3 else [mode, 0.5 * sum(sides)]


def _quality(model: _Model, data: _Values, best: FloatArray, n_free: int) -> tuple[float, int]:
    """Pearson's chi2 and degrees of freedom, in the bins of the fit joined or else in cells with as many values each."""
    n = data.x.size
    if data.edges is None:
        cells = int(np.clip(n // _IN_CELL, n_free + 2, _MOST_CELLS))
        within = np.unique(np.quantile(data.x, np.linspace(0, 1, cells + 1)[1:-1]))
        edges = np.concatenate([[data.low], within[(within > data.low) & (within < data.high)], [data.high]])
    else:
        edges = data.edges
    area = model.areas(best, edges)
    expected = n * area / area.sum()
    observed = np.histogram(data.x, edges)[0].astype(np.float64)
    if data.edges is not None:
        # from the left, a new bin wherever the last one is full; what is left at the end goes to the last
        label, held, bin_of = 0, 0.0, []
        for content in expected.tolist():
            bin_of.append(label)
            held += content
            if held >= _IN_CELL:
                label, held = label + 1, 0.0
        joined = np.minimum(bin_of, max(label - 1, 0))
        expected = np.bincount(joined, expected).astype(np.float64)
        observed = np.bincount(joined, observed).astype(np.float64)
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    return chi2, max(expected.size - 1 - n_free, 0)


def _bootstrap(
    shape: str, model: _Model, data: _Values, best: FloatArray, held: Mapping[str, float], n_bootstrap: int, seed: int
) -> FloatArray:
    """Parameters fitted to resampled values, (replica, parameter), from the best fit on, the same ones held."""
    count = None if data.edges is None else np.histogram(data.x, data.edges)[0]
    found, n_failed = [], 0
    for rng in np.random.default_rng(seed).spawn(n_bootstrap):
        if count is None or data.edges is None:
            objective = _objective(shape, model, data._replace(x=np.sort(rng.choice(data.x, data.x.size))))
        else:
            objective = _of_counts(model, data.edges, rng.multinomial(data.x.size, count / data.x.size))
        minuit = _minuit(model, objective, best, held)
        minuit.migrad()
        if minuit.valid:
            found.append(np.array(minuit.values))
        else:
            n_failed += 1
    if n_failed > _MOST_FAILED * n_bootstrap:
        raise NotConvergedError(f"{n_failed} of {n_bootstrap} bootstrap fits of the {shape} failed; hold a parameter with fixed")
    return np.array(found)


_MODELS = {
    # chosen limits: a core ten times narrower or wider than two thirds of the values, tails between none and hardly a peak
    "cruijff": _Model(
        ("mu", "sigma_left", "sigma_right", "alpha_left", "alpha_right"), (-3.0, 0.02, 0.02, 0.0, 0.0), (3.0, 10.0, 10.0, 5.0, 5.0),
        ((0.1, 0.1), (0.02, 0.02), (0.5, 0.5), (0.5, 0.02)), cruijff_log, cruijff_areas,
    ),
    "double_crystal_ball": _Model(
        ("mu", "sigma", "alpha_left", "n_left", "alpha_right", "n_right"),
        (-3.0, 0.02, 0.1, 1.01, 0.1, 1.01), (3.0, 10.0, 5.0, 100.0, 5.0, 100.0),
        ((1.5, 3.0, 1.5, 3.0), (1.0, 8.0, 1.0, 8.0), (2.5, 2.0, 2.5, 2.0), (1.0, 3.0, 2.5, 5.0)), crystal_ball_log, crystal_ball_areas,
    ),
    "z_line": _Model(
        ("mu", "sigma", "alpha", "n"), (60.0, 0.05, 0.1, 1.01), (130.0, 20.0, 5.0, 100.0),
        ((1.5, 3.0), (1.0, 8.0), (2.5, 2.0)), z_log, z_areas,
    ),
}  # fmt: skip
