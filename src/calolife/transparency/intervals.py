"""Conformal prediction intervals: half-widths against horizon, from readings the model was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calolife.transparency.history import Block, FloatArray, Forecast, IntArray, TransparencyHistory

__all__ = ["IntervalTable", "interval_table", "time_at_fraction"]

LEVELS = (0.68, 0.95)
_BIN_EDGES_S = 3600.0 * np.array([0.0, 1, 2, 4, 8, 14, 24, 48, 120, 240, 480, 960, 1920, 3840])


class _Forecaster(Protocol):
    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast: ...


@dataclass(frozen=True, eq=False)
class IntervalTable:
    """Half-width of the central intervals against horizon.

    Parameters
    ----------
    horizon_s : float array, (point,) [s]
        Increasing; half-widths between points are interpolated, past the last one they grow with the
        square root of the horizon (a random walk).
    half68, half95 : float array, (point,)
        In units of transparency, times the scale of the ring.
    ring : int array, (ring,)
        |ieta|, increasing.
    scale : float array, (ring,)
        Typical residual of these rings over that of all; between rings it is interpolated.
    """

    horizon_s: FloatArray
    half68: FloatArray
    half95: FloatArray
    ring: IntArray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    scale: FloatArray = field(default_factory=lambda: np.ones(1))

    @classmethod
    def unknown(cls) -> IntervalTable:
        """No interval known: every half-width is NaN."""
        return cls(np.array([1.0]), np.array([np.nan]), np.array([np.nan]))

    def at(self, horizon_s: FloatArray, *, ieta: IntArray | None = None) -> tuple[FloatArray, FloatArray]:
        """Half-widths (68 %, 95 %) at these horizons [s], any shape; (crystal, ...) for crystals of these rings."""
        h = np.maximum(np.asarray(horizon_s, dtype=np.float64), 1.0)
        grow = np.sqrt(np.maximum(h / self.horizon_s[-1], 1.0))
        x, grid = np.log(h), np.log(self.horizon_s)
        half68, half95 = np.interp(x, grid, self.half68) * grow, np.interp(x, grid, self.half95) * grow
        if ieta is None:
            return half68, half95
        scale = np.interp(np.abs(ieta), self.ring, self.scale).reshape(-1, *(1,) * h.ndim)
        return half68 * scale, half95 * scale

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays to store; `from_state` takes them back."""
        return {f"interval_{f.name}": getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]]) -> IntervalTable:
        return cls(**{f.name: arrays[f"interval_{f.name}"] for f in fields(cls)})


def time_at_fraction(history: TransparencyHistory, fraction: float) -> float:
    """Time [s] before which this fraction of the readings was taken (each shared time grid counts once)."""
    times = np.concatenate([b.time_s for b in history.blocks])
    return float(np.quantile(times, fraction))


def interval_table(model: _Forecaster, history: TransparencyHistory, *, start_s: float, window: int = 24, n_long: int = 8) -> IntervalTable:
    """Half-widths that would have covered the readings from `start_s` on.

    Parameters
    ----------
    model : forecaster
        Must not have been fitted to any reading from `start_s` on.
    history : TransparencyHistory
        Training span; nothing after it is looked at.
    start_s : float [s]
    window : int
        Readings per window; windows follow one another from `start_s` to the end.
    n_long : int
        Forecasts to the end of each block, from equally spaced origins: they fill the long horizons.

    Returns
    -------
    IntervalTable

    Raises
    ------
    ValueError
        Fewer than two windows after `start_s`.

    Notes
    -----
    Split conformal: the half-width of a horizon bin is the empirical (1 + 1/n) quantile of |residual|, made
    monotonic in the horizon. Residuals are first divided by the median |residual| of their ring over a day, so
    that strongly irradiated rings get wider intervals; that scale is kept. Readings close in time share their
    error, so coverage over few windows scatters more than n suggests.
    """
    residuals: list[FloatArray] = []
    horizons: list[FloatArray] = []
    rings: list[IntArray] = []
    for block in history.blocks:
        first = int(np.searchsorted(block.time_s, start_s))
        first = max(first, window)
        n_windows = (block.n_readings - first) // window
        if n_windows < 2:
            continue
        runs = [(first + window * np.arange(n_windows), window)]
        for origin in first + ((block.n_readings - first - window) * np.arange(n_long)) // n_long:
            runs.append((np.array([origin]), block.n_readings - int(origin)))
        for origins, horizon in runs:
            made = model.forecast(block, origins=origins.astype(np.int64), horizon=horizon)
            residual = np.abs(block.transparency[:, made.row] - made.transparency)
            residuals.append(residual.reshape(block.n_crystals, -1))
            horizons.append(np.broadcast_to(made.horizon_s.ravel(), residuals[-1].shape))
            rings.append(np.broadcast_to(np.abs(block.ieta)[:, None], residuals[-1].shape))
    if not residuals:
        raise ValueError(f"fewer than {2 * window} readings to calibrate intervals on; train on a longer span")
    residual = np.concatenate([r.ravel() for r in residuals])
    horizon_s = np.concatenate([h.ravel() for h in horizons])
    ring_of = np.concatenate([r.ravel() for r in rings])
    is_near = horizon_s < 86400.0
    ring = np.unique(ring_of)
    typical = np.array([np.median(residual[is_near & (ring_of == r)]) for r in ring]) if ring.size > 1 else np.ones(1)
    if not (np.isfinite(typical) & (typical > 0)).all():
        typical = np.ones(ring.size)
    scale = typical / np.median(typical)
    residual = residual / scale[np.searchsorted(ring, ring_of)]
    which = np.digitize(horizon_s, _BIN_EDGES_S) - 1
    points, half = [], []
    for b in range(_BIN_EDGES_S.size):
        here = residual[which == b]
        if here.size < 50:  # chosen: fewer readings do not hold a 95 % quantile
            continue
        rank = np.minimum(np.array(LEVELS) * (1 + 1 / here.size), 1.0)
        points.append(float(np.median(horizon_s[which == b])))
        half.append(np.quantile(here, rank, method="higher"))
    if not points:
        rank = np.minimum(np.array(LEVELS) * (1 + 1 / residual.size), 1.0)
        points, half = [float(np.median(horizon_s))], [np.quantile(residual, rank, method="higher")]
    widths = np.maximum.accumulate(np.array(half), axis=0)
    return IntervalTable(np.maximum(np.array(points), 1.0), widths[:, 0], widths[:, 1], ring, scale)
