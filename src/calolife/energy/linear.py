"""Energies that are linear in the layers: the visible energy as it is, one fitted scale, a weight per layer.

All three are homogeneous: layers scaled by a number give energies scaled by it. None is bound to be positive: a weight per
layer may be negative, and so may be the energy of a shower unlike those of the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from calolife.energy.features import EnergySample, FloatArray, Prediction, check_sample, check_training

__all__ = [
    "Linear",
    "ScaledSum",
    "Spread",
    "Uncalibrated",
    "fit_linear",
    "fit_spread",
    "fit_sum",
    "fit_uncalibrated",
    "fold_linear",
]

_MEV_PER_GEV = 1000.0
_PENALTIES = 10.0 ** np.arange(-6.0, 2.1, 0.25)  # in units of the mean squared singular value of the layers
_LEAST_COMPONENT = 1e-12  # chosen: below it a squared singular value is rounding
_LEAST_SIZE = 0.01  # chosen: of the brightest layer; the dimmest of a stack that pions were shot at has .05
_WITHIN = 0.683  # one standard deviation of a Gaussian
_MOST_BINS, _LEAST_PER_BIN = 30, 20  # chosen: a quantile of 20 showers is known to a fifth
_ROUNDS = 5  # chosen: more change no term by its error


@dataclass(frozen=True)
class Spread:
    """Standard deviation of the bulk of E' - E against the energy: stochastic, constant and noise terms in quadrature.

    Parameters
    ----------
    stochastic_gev_half : float [GeV^(1/2)]
        Grows with the root of the energy.
    constant : float
        Grows with the energy.
    noise_gev : float [GeV]
    lowest_gev : float [GeV]
        Below it the spread is as there: no shower told what it is.

    Examples
    --------
    >>> Spread(0.1, 0.0, 0.0).at(np.array([4.0, 100.0])).tolist()
    [0.2, 1.0]
    """

    stochastic_gev_half: float
    constant: float
    noise_gev: float
    lowest_gev: float = 0.0

    def at(self, energy_gev: FloatArray) -> FloatArray:
        """Standard deviation at predicted energies, (shower,) [GeV]."""
        e = np.maximum(energy_gev, self.lowest_gev)
        spread: FloatArray = np.hypot(np.hypot(self.stochastic_gev_half * np.sqrt(e), self.constant * e), self.noise_gev)
        return spread


@dataclass(frozen=True, eq=False)
class Uncalibrated:
    """The visible energy as it is: the paper's baseline.

    Parameters
    ----------
    n_layers : int
    digest : str
    """

    name: ClassVar[str] = "uncalibrated"
    n_layers: int
    digest: str = ""

    def predict(self, sample: EnergySample) -> Prediction:
        """Visible energy of each shower.

        Raises
        ------
        ValueError
            Another number of layers, or another detector, than that of the training.
        """
        check_sample(sample, n_layers=self.n_layers, digest=self.digest)
        return Prediction(sample.visible_mev / _MEV_PER_GEV)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return {}, {"n_layers": self.n_layers, "digest": self.digest}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Uncalibrated:
        return cls(int(meta["n_layers"]), str(meta["digest"]))


@dataclass(frozen=True, eq=False)
class ScaledSum:
    """The visible energy times one number.

    Parameters
    ----------
    n_layers : int
    scale : float
        True over visible energy.
    spread : Spread
        Of showers left out of the fit.
    digest : str
    """

    name: ClassVar[str] = "sum"
    n_layers: int
    scale: float
    spread: Spread
    digest: str = ""

    def predict(self, sample: EnergySample) -> Prediction:
        """Scaled visible energy of each shower.

        Raises
        ------
        ValueError
            Another number of layers, or another detector, than that of the training.
        """
        check_sample(sample, n_layers=self.n_layers, digest=self.digest)
        energy = self.scale * (sample.visible_mev / _MEV_PER_GEV)
        return Prediction(energy, self.spread.at(energy))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return {"spread": _as_array(self.spread)}, {"n_layers": self.n_layers, "digest": self.digest, "scale": self.scale}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> ScaledSum:
        return cls(int(meta["n_layers"]), float(meta["scale"]), Spread(*arrays["spread"].tolist()), str(meta["digest"]))


@dataclass(frozen=True, eq=False)
class Linear:
    """The sum of the layers, each times its weight.

    Parameters
    ----------
    weight : float array, (layer,)
        True over visible energy, layer by layer.
    penalty : float
        Chosen by leaving showers out; infinite where one scale for all layers was best.
    spread : Spread
        Of showers left out of the fit.
    left_out_gev : float array, (shower,) [GeV]
        Energy of each training shower by weights fitted without it, for its spread and response; not stored. No input
        for a model on top: see `fold_linear`.
    digest : str
    """

    name: ClassVar[str] = "linear"
    weight: FloatArray
    penalty: float
    spread: Spread
    left_out_gev: FloatArray
    digest: str = ""

    @property
    def n_layers(self) -> int:
        return int(self.weight.size)

    def predict(self, sample: EnergySample) -> Prediction:
        """Weighted sum of the layers of each shower; it may be negative.

        Raises
        ------
        ValueError
            Another number of layers, or another detector, than that of the training.
        """
        check_sample(sample, n_layers=self.n_layers, digest=self.digest)
        energy = _weigh(sample.layer_energy_mev, self.weight)
        return Prediction(energy, self.spread.at(energy))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        penalty = self.penalty if np.isfinite(self.penalty) else None  # JSON has no infinity
        return {"weight": self.weight, "spread": _as_array(self.spread)}, {"penalty": penalty, "digest": self.digest}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Linear:
        penalty = np.inf if meta["penalty"] is None else float(meta["penalty"])
        return cls(arrays["weight"], penalty, Spread(*arrays["spread"].tolist()), np.empty(0), str(meta["digest"]))


def fit_uncalibrated(sample: EnergySample, *, seed: int = 0) -> Uncalibrated:
    """The visible energy as it is; nothing is fitted, the sample tells the detector.

    Parameters
    ----------
    sample : EnergySample
    seed : int
        Not used; every fit takes one.
    """
    return Uncalibrated(sample.n_layers, sample.digest)


def fit_sum(sample: EnergySample, *, seed: int = 0) -> ScaledSum:
    """One scale for the visible energy, the one with the least mean((E - E')^2 / E).

    Parameters
    ----------
    sample : EnergySample
    seed : int
        Not used: nothing is drawn.

    Raises
    ------
    ValueError
        Fewer than 20 showers with visible energy.

    Examples
    --------
    >>> true_gev = np.linspace(1.0, 100.0, 30)
    >>> block = EnergySample(np.outer(true_gev, [300.0, 200.0]), true_gev, np.full(30, 22))   # half of all energy is seen
    >>> round(fit_sum(block).scale, 6)
    2.0
    """
    check_training(sample)
    visible, true = sample.visible_mev / _MEV_PER_GEV, sample.energy_gev
    u, b = visible / np.sqrt(true), np.sqrt(true)
    scale = float(u @ b / (u @ u))
    left_out = visible * _without_each(u, b)
    return ScaledSum(sample.n_layers, scale, fit_spread(left_out, true), sample.digest)


def fit_linear(sample: EnergySample, *, seed: int = 0) -> Linear:
    """A weight per layer, those with the least mean((E - E')^2 / E) plus a penalty on how far they are from one scale.

    Parameters
    ----------
    sample : EnergySample
    seed : int
        Not used: nothing is drawn.

    Returns
    -------
    Linear

    Raises
    ------
    ValueError
        Fewer than 20 showers with visible energy.

    Notes
    -----
    Ridge regression without intercept. The penalty falls on the departure of the weights from the best common scale, in
    units of each layer's spread, so that an infinite penalty is `fit_sum` and a finite one is chosen only where it
    predicts showers left out better. One singular value decomposition gives the left-out energy of every shower
    at every penalty (one by one, exact but for the units of the layers).

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> layers = rng.gamma(2.0, 100.0, (200, 3))
    >>> toy = EnergySample(layers, layers @ [0.02, 0.01, 0.04], np.full(200, -211))
    >>> fit_linear(toy).weight.round(2).tolist()
    [20.0, 10.0, 40.0]
    """
    check_training(sample)
    weight, penalty, left_out = _ridge(sample)
    return Linear(weight, penalty, fit_spread(left_out, sample.energy_gev), left_out, sample.digest)


def fold_linear(sample: EnergySample, *, n_folds: int = 10, seed: int = 0) -> FloatArray:
    """Linear energies of training showers, fitted without the fold of each: the input of a model on top.

    Parameters
    ----------
    sample : EnergySample
        Training showers.
    n_folds : int
    seed : int
        Of the folds.

    Returns
    -------
    float array, (shower,) [GeV]

    Raises
    ------
    ValueError
        Fewer than 20 showers with visible energy left in a fold's complement.

    Notes
    -----
    Energies left out one by one would tell the truth to a flexible model: they differ from those of the common weights by
    a part of each shower's own error. Those of a fold differ by the errors of all its showers together.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> layers = rng.gamma(2.0, 100.0, (200, 3))
    >>> toy = EnergySample(layers, layers @ [0.02, 0.01, 0.04], np.full(200, -211))
    >>> bool(np.allclose(fold_linear(toy), toy.energy_gev, rtol=1e-3))
    True
    """
    check_training(sample)
    mixed, found = np.random.default_rng(seed).permutation(sample.n_showers), np.empty(sample.n_showers)
    for held in np.array_split(mixed, n_folds):
        rest = np.setdiff1d(mixed, held)
        found[held] = _weigh(sample.layer_energy_mev[held], _ridge(sample.select(rest))[0])
    return found


def fit_spread(predicted_gev: FloatArray, true_gev: FloatArray) -> Spread:
    """Spread of predictions against the energy.

    Parameters
    ----------
    predicted_gev : float array, (shower,) [GeV]
        Of showers the model was not fitted on.
    true_gev : float array, (shower,) [GeV]

    Returns
    -------
    Spread
        Terms >= 0.

    Notes
    -----
    In bins of equal counts of E', the |E' - E| that 68.3 % of the showers stay below; its square is fitted by
    a^2 E' + b^2 E'^2 + c^2, every bin to the same relative error. Tails, which punch-through makes long, do not move it.

    Examples
    --------
    >>> true = np.linspace(1.0, 100.0, 4000)
    >>> noise = np.random.default_rng(1).standard_normal(4000)
    >>> spread = fit_spread(true + 0.2 * np.sqrt(true) * noise, true)
    >>> bool(abs(spread.at(np.array([25.0]))[0] - 1.0) < 0.05)
    True
    """
    order = np.argsort(predicted_gev, kind="stable")
    n_bins = int(np.clip(order.size // _LEAST_PER_BIN, 1, _MOST_BINS))
    bins = np.array_split(order, n_bins)
    energy = np.array([max(float(predicted_gev[b].mean()), 0.0) for b in bins])
    square = np.array([np.quantile(np.abs(predicted_gev[b] - true_gev[b]), _WITHIN) for b in bins]) ** 2
    terms = np.column_stack([energy, energy**2, np.ones(n_bins)])
    weight, found = np.maximum(square, 1e-6 * float(square.max()) or 1.0), np.zeros(3)
    for _ in range(_ROUNDS):
        relative = terms / weight[:, None]
        unit = np.maximum(np.sqrt((relative**2).mean(axis=0)), 1e-300)
        found = nnls(relative / unit, square / weight)[0] / unit
        # weights by the fit, not by the bins: those that came out low by chance would pull it down
        weight = np.maximum(terms @ found, 1e-3 * weight)
    a2, b2, c2 = found.tolist()
    return Spread(a2**0.5, b2**0.5, c2**0.5, float(energy[0]))


def _weigh(layer_energy_mev: FloatArray, weight: FloatArray) -> FloatArray:
    # not a matrix product: its rounding depends on how many showers there are
    energy: FloatArray = (layer_energy_mev * (weight / _MEV_PER_GEV)).sum(axis=1)
    return energy


def _ridge(sample: EnergySample) -> tuple[FloatArray, float, FloatArray]:
    """Weight of each layer, the penalty chosen, and the energy of each shower left out."""
    true, root = sample.energy_gev, np.sqrt(sample.energy_gev)
    layers = sample.layer_energy_mev / _MEV_PER_GEV / root[:, None]
    common = layers.sum(axis=1)  # what the common scale multiplies
    norm2 = common @ common
    size = np.sqrt((layers**2).mean(axis=0))
    # a layer that hardly saw anything keeps nearly the common scale: in units of its own it could have any weight
    size = np.maximum(size, _LEAST_SIZE * float(size.max()))
    design = layers / size
    # the common scale is free: it is projected out of the layers and the target, and comes back at the end
    scale = common @ root / norm2
    design = design - np.outer(common, common @ design / norm2)
    target = root - scale * common
    # by the normal equations: ten times faster than by the layers themselves, and no penalty here is as small as its rounding
    s2, v = np.linalg.eigh(design.T @ design)  # (component,), (layer, component)
    s2 = np.where(s2 > _LEAST_COMPONENT * s2[-1], s2, 0.0)
    s = np.sqrt(s2)
    along = v / np.where(s > 0, s, np.inf)  # (layer, component)
    u = design @ along  # (shower, component)
    inside = along.T @ (design.T @ target)
    # (component, penalty): how much of each component a penalty leaves
    candidates = np.append(_PENALTIES * max(float(s2.mean()), 1e-300), np.inf)
    kept = s2[:, None] / (s2[:, None] + candidates)
    leverage = (common**2 / norm2)[:, None] + (u**2) @ kept
    # a shower that alone holds a component cannot be left out: its residual is taken as it is, nearly without bound
    residual = (target[:, None] - u @ (kept * inside[:, None])) / np.maximum(1.0 - leverage, 1e-9)
    best = int(np.argmin((residual**2).mean(axis=0)))
    departure = along @ (kept[:, best] * inside) / size
    weight = departure + (scale - common @ (layers @ departure) / norm2)
    left_out = true - residual[:, best] * root
    penalty = float(_PENALTIES[best]) if best < _PENALTIES.size else np.inf
    return weight, penalty, left_out


def _without_each(u: FloatArray, b: FloatArray) -> FloatArray:
    """The scale of b against u, fitted without each entry in turn."""
    # a shower that alone makes the scale cannot be left out
    scale: FloatArray = (u @ b - u * b) / np.maximum(u @ u - u * u, _LEAST_COMPONENT * (u @ u))
    return scale


def _as_array(spread: Spread) -> FloatArray:
    return np.array([spread.stochastic_gev_half, spread.constant, spread.noise_gev, spread.lowest_gev])
