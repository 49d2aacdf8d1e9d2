"""Kalman filter on what the kinetics leave over: level, correlated noise and gain of each component.

The observation is y = ln R - (kinetics), in units of ln R, and the state

    level    random walk: sigma_day per sqrt(day), sigma_ifb per sqrt(1/fb)
    drift    Ornstein-Uhlenbeck: correlated noise of laser and reference diodes
    gain_j   relative error of the amplitude of component j, a random walk

The covariance depends on times and luminosities alone, so all crystals of a block share one gain; blocks, and
candidate settings, run side by side in the batch axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calolife.transparency.history import FloatArray, IntArray

__all__ = ["DEFAULT_SETTINGS", "SETTINGS", "FilterInput", "filter_forecast", "tune_settings"]

SETTINGS = ("sigma_day", "sigma_ifb", "noise", "clip", "drift", "drift_tau_d", "gain_start", "gain_day")
# chosen: start of the search; the settings used are always tuned inside the training span
DEFAULT_SETTINGS: FloatArray = np.array([1e-4, 1e-4, 2.5e-3, 3.7, 1.8e-3, 0.65, 0.085, 0.055])
_DAY_S = 86400.0
_LEVEL_START = 1e-2  # chosen: wider than any step between two readings of a healthy crystal


@dataclass(frozen=True, eq=False)
class FilterInput:
    """One block as the filter sees it.

    Parameters
    ----------
    time_s : float array, (reading,) [s]
    lumi_ifb : float array, (reading,) [1/fb]
        Between reading i and i + 1.
    residual : float array, (crystal, reading)
        ln R minus the kinetics; NaN where there is no reading (yet). All are first read at the same row.
    curve : float array, (component, reading)
        Contribution of each component to ln R, averaged over the block's crystals.
    origins : int array, (window,)
        First row of each forecast, each after that first reading.
    """

    time_s: FloatArray
    lumi_ifb: FloatArray
    residual: FloatArray
    curve: FloatArray
    origins: IntArray


def filter_forecast(inputs: list[FilterInput], settings: FloatArray, *, horizon: int) -> list[FloatArray]:
    """Forecast residuals of each block from each of its origins.

    Parameters
    ----------
    inputs : list of FilterInput
        All with the same number of components.
    settings : float array, (8,) or (block, 8)
        In the order of `SETTINGS`.
    horizon : int
        Readings per forecast.

    Returns
    -------
    list of float array, (crystal, window, horizon)
        NaN where a forecast would run past the block.

    Notes
    -----
    A forecast from origin o has seen residual[:, :o] and nothing else. Innovations beyond `clip` standard deviations are
    clipped: the response sometimes jumps (two lasers) and comes back. Cost grows linearly with readings
    and crystals; the covariance recursion is shared by a block's crystals.
    """
    theta = np.broadcast_to(np.asarray(settings, dtype=np.float64), (len(inputs), len(SETTINGS)))
    q_day, q_ifb, noise, clip, drift, drift_tau, gain_start, gain_day = theta.T
    n_block, n_component = len(inputs), inputs[0].curve.shape[0]
    d = 2 + n_component
    # rows before the first reading hold no information: start there
    first = [int(np.argmax(np.isfinite(i.residual).any(axis=0))) for i in inputs]
    stop = [int(i.origins.max()) for i in inputs]
    n_step = max(s - f for f, s in zip(first, stop, strict=True))
    n_crystal = max(i.residual.shape[0] for i in inputs)
    dt_d = np.zeros((n_step, n_block))
    lumi = np.zeros((n_step, n_block))
    H = np.zeros((n_step, n_block, d))
    y = np.full((n_step, n_block, n_crystal), np.nan)
    for k, (i, f, s) in enumerate(zip(inputs, first, stop, strict=True)):
        n = s - f
        dt_d[1:n, k] = np.diff(i.time_s[f:s]) / _DAY_S
        lumi[1:n, k] = i.lumi_ifb[f : s - 1]
        H[:n, k, :2] = 1.0
        H[:n, k, 2:] = i.curve[:, f:s].T
        y[:n, k, : i.residual.shape[0]] = i.residual[:, f:s].T
    rho = np.exp(-dt_d / drift_tau)
    grow = np.zeros((n_step, n_block, d))
    grow[:, :, 0] = q_day**2 * dt_d + q_ifb**2 * lumi
    grow[:, :, 1] = drift**2 * (1 - rho**2)
    grow[:, :, 2:] = (gain_day**2 * dt_d)[:, :, None]

    known = np.isfinite(y)
    y = np.where(known, y, 0.0)
    P = np.zeros((n_block, d, d))
    diagonal = np.einsum("bii->bi", P)
    diagonal[:, 0] = _LEVEL_START**2
    diagonal[:, 1] = drift**2
    diagonal[:, 2:] = (gain_start**2)[:, None]
    x = np.zeros((n_block, n_crystal, d))
    x[:, :, 0] = y[0]
    noise2 = noise**2
    seen = np.any(known, axis=2)
    is_complete = np.all(known, axis=(1, 2))
    # a crystal missing where its neighbours were read keeps its state; the shared gain is then slightly too small for it
    states: list[dict[int, FloatArray]] = [{} for _ in inputs]
    wanted: dict[int, list[int]] = {}
    for k, i in enumerate(inputs):
        for o in np.unique(i.origins):
            wanted.setdefault(int(o) - first[k] - 1, []).append(k)
    for step in range(n_step):
        if step:
            r = rho[step]
            x[:, :, 1] *= r[:, None]
            P[:, 1, :] *= r[:, None]
            P[:, :, 1] *= r[:, None]
            diagonal += grow[step]
        h = H[step]
        PH = (P @ h[:, :, None])[:, :, 0]
        S = (h * PH).sum(axis=1) + noise2
        K = PH / S[:, None]
        innovation = y[step] - (x @ h[:, :, None])[:, :, 0]
        limit = (clip * np.sqrt(S))[:, None]
        innovation = np.minimum(np.maximum(innovation, -limit), limit)
        if not is_complete[step]:
            innovation = innovation * known[step]
            K = K * seen[step, :, None]
        x += innovation[:, :, None] * K[:, None, :]
        P -= K[:, :, None] * PH[:, None, :]
        for k in wanted.get(step, ()):
            states[k][step] = x[k].copy()
    return [
        _extrapolate(i, [states[k][int(o) - first[k] - 1] for o in i.origins], float(drift_tau[k]), horizon) for k, i in enumerate(inputs)
    ]


def _extrapolate(i: FilterInput, states: list[FloatArray], drift_tau_d: float, horizon: int) -> FloatArray:
    n_crystal, n_reading = i.residual.shape
    row = i.origins[:, None] + np.arange(horizon)  # (window, horizon)
    inside = row < n_reading
    row = np.where(inside, row, n_reading - 1)
    x = np.stack(states, axis=1)[:n_crystal]  # (crystal, window, d)
    ahead_d = (i.time_s[row] - i.time_s[i.origins - 1][:, None]) / _DAY_S
    made: FloatArray = x[:, :, :1] + x[:, :, 1:2] * np.exp(-ahead_d / drift_tau_d)
    made = made + np.einsum("cwj,jwh->cwh", x[:, :, 2:], i.curve[:, row])
    made[:, ~inside] = np.nan
    return made


def tune_settings(
    inputs: list[FilterInput], *, horizon: int = 24, seed: int = 0, n_round: int = 8, n_candidate: int = 48
) -> tuple[FloatArray, float]:
    """Settings with the smallest mean absolute forecast error over the inputs' windows.

    Parameters
    ----------
    inputs : list of FilterInput
        Residuals of kinetics that were fitted before each input's first origin.
    horizon : int
    seed : int
    n_round, n_candidate : int
        Rounds of the cross-entropy search, and settings tried in each.

    Returns
    -------
    float array, (8,)
        In the order of `SETTINGS`.
    float
        Mean absolute error reached, in ln R.

    Notes
    -----
    Cross-entropy search in the logarithm of the settings: each round draws candidates from a normal
    distribution and refits it to the best sixth. All candidates of a round run as one batch.
    """
    rng = np.random.default_rng(seed)
    mean = np.log(DEFAULT_SETTINGS)
    width = np.array([2.0, 2.0, 0.7, 0.4, 0.7, 0.7, 0.7, 0.7])  # chosen: spans a factor 2 to 7 either way
    best, best_cost = mean, np.inf
    truth = [i.residual[:, np.minimum(i.origins[:, None] + np.arange(horizon), i.residual.shape[1] - 1)] for i in inputs]
    for _ in range(n_round):
        tried = mean + width * rng.standard_normal((n_candidate, mean.size))
        tried[0] = best
        batch = [i for _ in range(n_candidate) for i in inputs]
        theta = np.repeat(np.exp(tried), len(inputs), axis=0)
        made = filter_forecast(batch, theta, horizon=horizon)
        cost = np.array([_mean_error(made[c * len(inputs) : (c + 1) * len(inputs)], truth) for c in range(n_candidate)])
        order = np.argsort(cost, kind="stable")
        if cost[order[0]] < best_cost:
            best, best_cost = tried[order[0]], float(cost[order[0]])
        elite = tried[order[: n_candidate // 6]]
        mean, width = elite.mean(axis=0), np.maximum(elite.std(axis=0), 0.02)
    return np.exp(best), best_cost


def _mean_error(made: list[NDArray[np.float64]], truth: list[NDArray[np.float64]]) -> float:
    total = sum(float(np.nansum(np.abs(m - t))) for m, t in zip(made, truth, strict=True))
    return total / sum(int(np.isfinite(m - t).sum()) for m, t in zip(made, truth, strict=True))
