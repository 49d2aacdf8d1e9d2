"""Linearity after the fact: a monotone correction that brings the mean response to 1 at every true energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from calolife.energy.features import FloatArray, Prediction

__all__ = ["LEAST_SHOWERS", "ResponseCorrection", "check_response", "fit_response"]

_N_KNOTS = 24  # chosen: a fifth of an octave between 1 and 100 GeV; the smoothing decides how many of them count
_SMOOTHING = 10.0 ** np.arange(-1.0, 6.1, 0.5)
_N_FOLDS = 5
_MOST_ROUNDS, _CLOSED = 6, 5e-4  # chosen: well below the 1 % asked for; two or three rounds reach it
_LEAST_SLOPE = 0.2  # chosen: d ln f / d ln E'; a flatter correction would throw showers of different energies together
LEAST_SHOWERS = 100  # chosen: below it the mean response is not known to a percent


@dataclass(frozen=True, eq=False)
class ResponseCorrection:
    """A rising function of the predicted energy.

    Parameters
    ----------
    log_energy : float array, (knot,) [ln GeV]
        Predicted energies, rising.
    log_ratio : float array, (knot,)
        ln(corrected / predicted) at the knots; as at the nearest one outside them.

    Raises
    ------
    ValueError
        Fewer than two knots, knots that do not rise, or a correction that falls.

    Examples
    --------
    >>> tenth_up = ResponseCorrection(np.log([1.0, 100.0]), np.log([1.1, 1.1]))
    >>> tenth_up.apply([0.0, 10.0, 200.0]).round(9).tolist()
    [0.0, 11.0, 220.0]
    """

    log_energy: FloatArray
    log_ratio: FloatArray

    def __post_init__(self) -> None:
        for name in ("log_energy", "log_ratio"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float64))
        if self.log_energy.ndim != 1 or self.log_energy.size < 2 or self.log_energy.shape != self.log_ratio.shape:
            raise ValueError(f"{self.log_energy.shape} knots with {self.log_ratio.shape} ratios; give two columns of one length >= 2")
        if not (np.isfinite(self.log_energy).all() and np.isfinite(self.log_ratio).all() and (np.diff(self.log_energy) > 0).all()):
            raise ValueError("the knots of the correction must be finite and rise; fit it again")
        if (np.diff(self.log_energy + self.log_ratio) <= 0).any():
            raise ValueError("the correction falls somewhere, so two energies would get the same; fit it again")

    def apply(self, energy_gev: ArrayLike) -> FloatArray:
        """Corrected energies.

        Parameters
        ----------
        energy_gev : float array, (...) [GeV]
            As predicted; those <= 0 get the ratio of the lowest knot.

        Returns
        -------
        float array, (...) [GeV]

        Raises
        ------
        ValueError
            An energy that is not finite.
        """
        energy = np.asarray(energy_gev, dtype=np.float64)
        if not np.isfinite(energy).all():
            raise ValueError("an energy to be corrected is not finite; mend the prediction")
        corrected: FloatArray = np.where(energy > 0, np.exp(self._log_corrected(energy)), energy * np.exp(self.log_ratio[0]))
        return corrected

    def apply_to(self, prediction: Prediction) -> Prediction:
        """Corrected energies, and their spread stretched as the energies around each are."""
        energy = prediction.energy_gev
        corrected = self.apply(energy)
        if prediction.sigma_gev is None:
            return Prediction(corrected)
        # slope over one part in a thousand: the curve has no structure as fine
        slope = (self.apply(energy * 1.001) - corrected) / np.where(energy == 0, 1.0, energy * 0.001)
        slope = np.where(energy == 0, np.exp(self.log_ratio[0]), slope)
        return Prediction(corrected, prediction.sigma_gev * slope)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return {"log_energy": self.log_energy, "log_ratio": self.log_ratio}, {}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> ResponseCorrection:
        return cls(arrays["log_energy"], arrays["log_ratio"])

    def _log_corrected(self, energy: FloatArray) -> FloatArray:
        first, last = self.log_energy[0], self.log_energy[-1]
        log_energy = np.log(np.maximum(energy, 1e-300))
        inside = np.clip(log_energy, first, last)
        # PCHIP of rising values rises; outside the ratio stays, so the slope there is 1
        curve = PchipInterpolator(self.log_energy, self.log_energy + self.log_ratio)
        found: FloatArray = curve(inside) + (log_energy - inside)
        return found


def fit_response(predicted_gev: ArrayLike, true_gev: ArrayLike, *, seed: int = 0) -> ResponseCorrection:
    """The correction after which the mean of E'/E is 1 at every true energy.

    Parameters
    ----------
    predicted_gev : float array, (shower,) [GeV]
        Of training showers by a model that was fitted without each: left-out predictions. Those of showers that the
        model knows hide what it does to new ones.
    true_gev : float array, (shower,) [GeV]
    seed : int
        Of the folds that choose the smoothing.

    Returns
    -------
    ResponseCorrection

    Raises
    ------
    ValueError
        Fewer than 100 showers, columns of different lengths, energies that are not finite, true ones that are not > 0,
        all at one true energy.

    Notes
    -----
    A model fitted by least squares is right on average among showers of one PREDICTED energy; among showers of one TRUE
    energy it leans to the middle of the training range, the more the worse its resolution. This correction turns that
    round: the mean of E'/E as a smooth function of ln E is divided out at E = E', and again until nothing is left.
    The smooth function is a spline with penalised bends, as smooth as five folds say. What is linear in truth gets
    noisier in return: the published loss of the corrected model is a little larger.
    One function for all particles: it cannot move photons against pions.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> true = rng.uniform(1.0, 100.0, 5000)
    >>> seen = 0.7 * true**1.05 * (1 + 0.05 * rng.standard_normal(5000))
    >>> corrected = fit_response(seen, true).apply(seen)
    >>> bool(abs(np.mean(corrected / true) - 1) < 0.003)
    True
    """
    predicted, true = np.asarray(predicted_gev, dtype=np.float64), np.asarray(true_gev, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != true.shape:
        raise ValueError(f"{predicted.shape} predicted and {true.shape} true energies; give one of each per shower")
    if not (np.isfinite(predicted).all() and np.isfinite(true).all() and (true > 0).all()):
        raise ValueError("predicted energies must be finite, true ones finite and > 0; drop what is not")
    check_response(true)
    log_true = np.log(true)
    knots = np.linspace(log_true.min(), log_true.max(), _N_KNOTS)
    basis = _hats(log_true, knots)
    fold = np.random.default_rng(seed).permutation(true.size) % _N_FOLDS
    # a factor first, so that the knots lie where the predictions are even for a sum that is not calibrated
    scale = float(true.sum() / predicted.sum()) if predicted.sum() > 0 else 1.0
    found = ResponseCorrection(knots - np.log(scale), np.full(_N_KNOTS, np.log(scale)))
    for _ in range(_MOST_ROUNDS):
        ratio = found.apply(predicted) / true
        mean = _smooth(basis, ratio, weight=_weights(log_true, ratio), fold=fold)
        log_corrected = found.log_energy + found.log_ratio
        divided = log_corrected - np.log(np.interp(log_corrected, knots, mean))
        found = ResponseCorrection(found.log_energy, _rising(found.log_energy, divided) - found.log_energy)
        if np.abs(mean - 1).max() < _CLOSED:
            break
    return found


def check_response(true_gev: FloatArray) -> None:
    """Check that showers of these true energies, (shower,) [GeV], tell a response against energy.

    Raises
    ------
    ValueError
        Fewer than 100, or all at one energy.
    """
    if true_gev.size < LEAST_SHOWERS:
        raise ValueError(f"{true_gev.size} showers are too few to correct the response; give at least {LEAST_SHOWERS}")
    if np.log(true_gev.max() / true_gev.min()) < 1e-6:
        raise ValueError("all showers have one true energy, which tells no response against energy; give a range of energies")


def _hats(x: FloatArray, knots: FloatArray) -> FloatArray:
    """Weights of the knots in linear interpolation, (shower, knot)."""
    step = knots[1] - knots[0]
    hats: FloatArray = np.maximum(0.0, 1.0 - np.abs(x[:, None] - knots) / step)
    return hats


def _weights(log_true: FloatArray, ratio: FloatArray) -> FloatArray:
    """1 / variance of the ratios at each energy, by the half-width that holds two thirds: tails do not count."""
    bins = np.array_split(np.argsort(log_true, kind="stable"), max(2, min(15, ratio.size // 50)))
    half = np.array([np.quantile(np.abs(ratio[b] - np.median(ratio[b])), 0.683) for b in bins])
    half = np.maximum(half, 1e-2 * half.max() + 1e-9)
    spread = np.exp(np.interp(log_true, [log_true[b].mean() for b in bins], np.log(half)))
    weight: FloatArray = 1.0 / spread**2
    return weight


def _smooth(basis: FloatArray, y: FloatArray, *, weight: FloatArray, fold: NDArray[np.int64]) -> FloatArray:
    """Values at the knots of the penalised spline, kept positive."""
    # all that the fits and their losses need of each fold: basis.T W basis, basis.T W y and y.T W y
    parts = []
    for k in range(_N_FOLDS):
        mine = fold == k
        weighted = basis[mine].T * weight[mine]
        parts.append((weighted @ basis[mine], weighted @ y[mine], float(weight[mine] @ y[mine] ** 2)))
    gram, side = sum((p[0] for p in parts), np.zeros_like(parts[0][0])), sum((p[1] for p in parts), np.zeros_like(parts[0][1]))
    bend = np.diff(np.eye(basis.shape[1]), n=2, axis=0)
    # in units of the mean weight of a knot; the tiny one holds knots that no shower is near
    unit = float(np.trace(gram)) / basis.shape[1]
    penalties = [unit * 1e-3 * s * bend.T @ bend + 1e-12 * unit * np.eye(basis.shape[1]) for s in _SMOOTHING]
    losses = []
    for penalty in penalties:
        left_out = [np.linalg.solve(gram - g + penalty, side - s) for g, s, _ in parts]
        losses.append(sum(float(v @ g @ v - 2 * v @ s) + yy for v, (g, s, yy) in zip(left_out, parts, strict=True)))
    found: FloatArray = np.linalg.solve(gram + penalties[int(np.argmin(losses))], side)
    return np.maximum(found, 0.05)


def _rising(x: FloatArray, y: FloatArray) -> FloatArray:
    """The curve with its flat and falling stretches tilted up; the middle knot stays where it is."""
    steps = np.maximum(np.diff(y), _LEAST_SLOPE * np.diff(x))
    risen = np.concatenate([[0.0], np.cumsum(steps)])
    middle = x.size // 2
    found: FloatArray = risen - risen[middle] + y[middle]
    return found
