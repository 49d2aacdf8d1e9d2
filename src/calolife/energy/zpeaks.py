"""The Z peak as energy regressors measure it: masses of electron pairs, their fits, and which model has the narrower peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.energy.lineshapes import LineFit, fit_z_line
from calolife.energy.resolution import effective_sigma
from calolife.energy.zline import Z_MASS_GEV, Z_RANGE_GEV
from calolife.errors import NotConvergedError
from calolife.runs import json_number

__all__ = ["LEAST_REPLICAS", "ZComparison", "ZEvents", "ZPeak", "compare_z_peaks", "dielectron_mass", "fit_true_peak"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Report = Callable[[str, float, float], None]

LEAST_REPLICAS = 40  # of a 95 % interval; chosen: a fortieth lies below its lower end, which of fewer is beyond them all

_FEWEST = 50  # masses; chosen: fewer give no width worth its error
_FIGURES = ("resolution", "resolution_same_tail", "effective_sigma")
_CORE = 0.5  # chosen: with a tail from half a sigma on, the Crystal Ball is all tail
_MOST_FAILED = 0.1  # of the replicas; chosen: with more their spread is not that of the fit


def dielectron_mass(energy_gev: ArrayLike, eta: ArrayLike, phi: ArrayLike) -> FloatArray:
    """Invariant mass of two electrons.

    Parameters
    ----------
    energy_gev : float array, (event, 2) [GeV]
        Measured energies; the mass is proportional to the root of their product.
    eta, phi : float array, (event, 2); phi [rad]
        Directions at the vertex.

    Returns
    -------
    float array, (event,) [GeV]

    Raises
    ------
    ValueError
        Shapes that differ, or an energy below 0.

    Notes
    -----
    m^2 = 2 pT pT' (cosh(eta - eta') - cos(phi - phi')), pT = E / cosh(eta); without the mass of the electron.
    Source: PDG Review, "Kinematics".

    Examples
    --------
    >>> dielectron_mass([[45.0, 45.0]], [[0.0, 0.0]], [[0.0, np.pi]]).tolist()
    [90.0]
    """
    energy, at_eta, at_phi = (np.asarray(values, dtype=np.float64) for values in (energy_gev, eta, phi))
    if energy.ndim != 2 or energy.shape[1] != 2 or not energy.shape == at_eta.shape == at_phi.shape:
        raise ValueError(f"energy_gev, eta and phi have shapes {energy.shape}, {at_eta.shape} and {at_phi.shape}; all must be (event, 2)")
    if not (energy >= 0).all():
        raise ValueError("energy_gev must be >= 0; drop the events without a measured energy")
    pt = energy / np.cosh(at_eta)
    # 2 sinh^2 + 2 sin^2 of half the distance: precise for electrons side by side, too
    apart = 2.0 * (np.sinh(0.5 * (at_eta[:, 0] - at_eta[:, 1])) ** 2 + np.sin(0.5 * (at_phi[:, 0] - at_phi[:, 1])) ** 2)
    return np.asarray(np.sqrt(2.0 * pt[:, 0] * pt[:, 1] * apart))


@dataclass(frozen=True, eq=False)
class ZEvents:
    """Electron pairs as one condition of the detector shows them to several models; column 0 is the electron, 1 the positron.

    Parameters
    ----------
    condition : str
    pair : int array, (event,)
        Number of the pair among those simulated.
    true_mass_gev : float array, (event,) [GeV]
    true_energy_gev, eta, phi : float array, (event, 2) [GeV], [rad]
        Energy and direction at the vertex.
    energy_gev : mapping of str to float array, (event, 2) [GeV]
        What each model measures.
    least_pt_gev : float [GeV]
        Transverse momentum, from measured energy and true direction, that both electrons must exceed.

    Raises
    ------
    ValueError
        Shapes that do not fit.
    """

    condition: str
    pair: IntArray
    true_mass_gev: FloatArray
    true_energy_gev: FloatArray
    eta: FloatArray
    phi: FloatArray
    energy_gev: Mapping[str, FloatArray]
    least_pt_gev: float = 20.0

    def __post_init__(self) -> None:
        n = self.n_events
        columns = {"true_mass_gev": self.true_mass_gev, **{k: getattr(self, k) for k in ("true_energy_gev", "eta", "phi")}}
        for name, values in (columns | {f"energy_gev of {k}": v for k, v in self.energy_gev.items()}).items():
            wanted = (n,) if name == "true_mass_gev" else (n, 2)
            if values.shape != wanted:
                raise ValueError(f"{name} has shape {values.shape}; {n} events need {wanted}")

    @property
    def n_events(self) -> int:
        return self.pair.size

    def mass_gev(self, model: str) -> FloatArray:
        """Masses that a model measures, (event,) [GeV], of all events."""
        return dielectron_mass(np.maximum(self.energy_gev[model], 0.0), self.eta, self.phi)

    def is_kept(self, model: str) -> BoolArray:
        """Events in which both electrons are above `least_pt_gev` and the mass is within the window of the fit, (event,)."""
        pt, mass = self.energy_gev[model] / np.cosh(self.eta), self.mass_gev(model)
        low, high = Z_RANGE_GEV
        return np.asarray((pt > self.least_pt_gev).all(axis=1) & (mass >= low) & (mass <= high))


@dataclass(frozen=True, eq=False)
class ZPeak:
    """The peak of one model in one condition.

    Parameters
    ----------
    model, condition : str
    n : int
        Events in the fit.
    n_events : int
        Events in which both electrons were found.
    fit : LineFit or None
        None where there are too few events or the fit did not converge; `remark` says which. It also says where the tail
        takes over so early that sigma is no resolution: the effective sigma then is.
    effective_sigma_gev, effective_sigma_error_gev : float [GeV]
        Half the shortest interval with 68.3 % of the masses: natural width and resolution together. Error from the bootstrap.
    remark : str
    """

    model: str
    condition: str
    n: int
    n_events: int
    fit: LineFit | None
    effective_sigma_gev: float
    effective_sigma_error_gev: float
    remark: str = ""

    @property
    def shift_percent(self) -> float:
        """Peak of the Breit-Wigner against the mass of the Z [%]; NaN without a fit."""
        return math.nan if self.fit is None else 100.0 * (self.fit.mu / Z_MASS_GEV - 1.0)

    @property
    def resolution_percent(self) -> tuple[float, float]:
        """sigma of the Crystal Ball over the peak, and its standard error [%]; NaN without a fit."""
        if self.fit is None:
            return math.nan, math.nan
        return 100.0 * self.fit.sigma_over_mu, 100.0 * self.fit.sigma_over_mu_error

    def to_json_dict(self) -> dict[str, Any]:
        """All of it, with value and uncertainty of each figure; null for what is not known."""
        fit = self.fit
        mu, mu_error, sigma, sigma_error = (math.nan,) * 4 if fit is None else (fit.mu, fit.errors["mu"], fit.sigma, fit.sigma_error)
        figures = {
            "mass_gev": (mu, mu_error), "shift_percent": (self.shift_percent, 100.0 * mu_error / Z_MASS_GEV),
            "sigma_gev": (sigma, sigma_error), "resolution_percent": self.resolution_percent,
            "effective_sigma_gev": (self.effective_sigma_gev, self.effective_sigma_error_gev),
        }  # fmt: skip
        return {
            "model": self.model, "condition": self.condition, "n": self.n, "n_events": self.n_events,
            **{name: {"value": json_number(value), "uncertainty": json_number(error)} for name, (value, error) in figures.items()},
            "fit": None if fit is None else fit.to_json_dict(), "remark": self.remark,
        }  # fmt: skip


@dataclass(frozen=True)
class ZComparison:
    """One model's peak against the reference's, in the same events.

    Parameters
    ----------
    condition, model, reference : str
    figure : {"resolution", "resolution_same_tail", "effective_sigma"}
        sigma / mu of the fit; the same with the tail of all models held at that of the reference's fit; or effective sigma over
        the median mass.
    ratio, ratio_error : float
        The model's over the reference's; its standard error from paired replicas.
    low, high : float
        95 % interval: quantiles of the replicas; NaN of fewer than 40.
    n_replicas : int
    """

    condition: str
    model: str
    reference: str
    figure: str
    ratio: float
    ratio_error: float
    low: float
    high: float
    n_replicas: int

    def to_json_dict(self) -> dict[str, Any]:
        """All of it; null for what is not known."""
        return {name: json_number(v) if isinstance(v, float) else v for name, v in vars(self).items()}


def fit_true_peak(events: ZEvents) -> float:
    """Peak of a Breit-Wigner fitted to the true masses of the events, [GeV]: what the acceptance alone moves; NaN for fewer than 50."""
    if events.n_events < _FEWEST:
        return math.nan
    try:
        return fit_z_line(events.true_mass_gev, fixed={"sigma": 0.0, "alpha": 1.0, "n": 3.0}).mu
    except NotConvergedError:
        return math.nan


def compare_z_peaks(
    events: ZEvents, *, reference: str, n_bootstrap: int = 100, seed: int = 0, tell: Report = lambda *_: None
) -> tuple[tuple[ZPeak, ...], tuple[ZComparison, ...]]:
    """Peaks of all models of one condition, and their widths against a reference in the same events.

    Parameters
    ----------
    events : ZEvents
    reference : str
        One of the models.
    n_bootstrap : int
        Replicas; 0: no errors of ratios, fewer than 40: no 95 % intervals.
    seed : int
        Of the resampling.
    tell : callable
        Called with ("replicas", done, wanted).

    Returns
    -------
    tuple of ZPeak
        In the order of the models.
    tuple of ZComparison
        Three figures for each model but the reference; NaN where a fit is missing.

    Raises
    ------
    ValueError
        An unknown reference, a number of replicas that is 1 or below 0.

    Notes
    -----
    A replica draws as many events as there are, with repetition; every model is cut and fitted in the same replica, with the power
    of the tail held at that of its own fit, which hardly anything depends on. sigma and the place where the tail begins make up
    for one another, so that the ratio of two free fits is known badly; with one tail for all it is known as well as that of the
    effective sigmas. Replicas in which a fit of either model fails are left out of their ratio; with a tenth of them failed
    there is neither error nor interval.
    """
    if reference not in events.energy_gev:
        raise ValueError(f"reference {reference!r} is not one of {', '.join(events.energy_gev)}")
    if n_bootstrap < 0 or n_bootstrap == 1:
        raise ValueError(f"n_bootstrap = {n_bootstrap} must be 0 or >= 2; 100 give errors to 7 %")
    mass = {m: events.mass_gev(m) for m in events.energy_gev}
    kept = {m: events.is_kept(m) for m in events.energy_gev}
    fitted = {m: _fit(mass[m][kept[m]]) for m in mass}
    base = fitted[reference][0]
    tail = None if base is None else {name: base.parameters[name] for name in ("alpha", "n")}
    replicas = {m: np.full((n_bootstrap, len(_FIGURES) + 1), math.nan) for m in mass}
    rng = np.random.default_rng(seed)
    for i in range(n_bootstrap):
        drawn = rng.integers(0, max(events.n_events, 1), events.n_events)
        for m, (fit, _) in fitted.items():
            own = None if fit is None else {"n": fit.parameters["n"], **{name: fit.parameters[name] for name in fit.held}}
            replicas[m][i] = _figures(mass[m][drawn[kept[m][drawn]]], own, tail)
        tell("replicas", i + 1, n_bootstrap)
    peaks = []
    for m, (fit, remark) in fitted.items():
        chosen = mass[m][kept[m]]
        effective = effective_sigma(chosen) if chosen.size else math.nan
        error = float(replicas[m][:, -1].std(ddof=1)) if n_bootstrap else math.nan
        peaks.append(ZPeak(m, events.condition, chosen.size, events.n_events, fit, effective, error, remark))
    best = {m: _figures(mass[m][kept[m]], None, tail) for m in mass}
    for m, (fit, _) in fitted.items():
        best[m][0] = math.nan if fit is None else fit.sigma_over_mu
    comparisons = []
    for m in mass:
        for k, figure in enumerate(_FIGURES):
            if m != reference:
                ratio = float(best[m][k] / best[reference][k])
                spread = _interval(replicas[m][:, k] / replicas[reference][:, k]) if math.isfinite(ratio) else (math.nan,) * 3
                comparisons.append(ZComparison(events.condition, m, reference, figure, ratio, *spread, n_bootstrap))
    return tuple(peaks), tuple(comparisons)


def _fit(mass: FloatArray) -> tuple[LineFit | None, str]:
    if mass.size < _FEWEST:
        return None, f"no fit: {mass.size} events are too few, it takes {_FEWEST}"
    try:
        fit = fit_z_line(mass)
    except NotConvergedError as error:
        return None, f"no fit: {error}"
    alpha = fit.parameters["alpha"]
    early = f"the tail begins {alpha:.2f} sigma below the peak: sigma is not the resolution, look at the effective sigma"
    return fit, early if alpha < _CORE else ""


def _figures(mass: FloatArray, own: Mapping[str, float] | None, tail: Mapping[str, float] | None) -> FloatArray:
    """The figures of `_FIGURES`, and the effective sigma itself; NaN for what cannot be told."""
    if mass.size < 2:
        return np.full(len(_FIGURES) + 1, math.nan)
    effective = effective_sigma(mass)
    return np.array([_resolution(mass, own), _resolution(mass, tail), effective / float(np.median(mass)), effective])


def _resolution(mass: FloatArray, held: Mapping[str, float] | None) -> float:
    if held is None:
        return math.nan
    try:
        return fit_z_line(mass, fixed=held).sigma_over_mu
    except (NotConvergedError, ValueError):  # too few different events in the window
        return math.nan


def _interval(ratio: FloatArray) -> tuple[float, float, float]:
    """Standard error and 95 % interval of replicas; NaN where too many failed, and the interval where there are too few."""
    known = ratio[np.isfinite(ratio)]
    if known.size < max(2, (1.0 - _MOST_FAILED) * ratio.size):
        return math.nan, math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975]).tolist() if ratio.size >= LEAST_REPLICAS else (math.nan, math.nan)
    return float(known.std(ddof=1)), low, high
