"""Forecasters that a better one has to beat: persistence, and linear regression on readings and luminosity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from calolife.transparency.history import Block, FloatArray, Forecast, IntArray, TransparencyHistory
from calolife.transparency.intervals import IntervalTable, interval_table, time_at_fraction
from calolife.transparency.kinetics import sample_history

__all__ = ["Persistence", "Ridge", "decaying_luminosity", "fit_persistence", "fit_ridge"]

N_READ = 24  # readings seen before each window, the published encoder length; also the steps of the short regression

_DAY_S = 86400.0
# chosen: half a decade apart, from one reading interval to the longest stop of a year; inf is the plain sum
_SHORT_TAU_S = _DAY_S * np.array([0.02, 0.1, 0.5, 3.0, np.inf])
_LONG_TAU_SETS_S = (
    _DAY_S * np.array([np.inf]),
    _DAY_S * np.array([0.03, 3.0, np.inf]),
    _DAY_S * np.array([0.03, 0.3, 3.0, 12.0, np.inf]),
    _DAY_S * np.array([0.03, 0.3, 3.0, 12.0, 100.0, np.inf]),
)
_PENALTIES = 10.0 ** np.arange(-6.0, 2.5)  # in units of each feature's mean square
_SAMPLES_PER_RING = 40_000  # chosen: 1000 samples per coefficient; more moves no coefficient by its error
_MOST_DESCENTS, _DESCENT_TOLERANCE = 500, 1e-5  # chosen: far below what the noise leaves uncertain in a weight
_JUDGES = 400  # chosen: crystals that choose the kernels and penalty of the long regression
_FOLDS = (0.5, 0.75)  # time-ordered: fit before, judge between this and the next


@dataclass(frozen=True, eq=False)
class Persistence:
    """The last reading before the origin, repeated.

    Parameters
    ----------
    train_years : tuple of int
        Years the intervals were calibrated on; the forecast itself has no parameter.
    interval : IntervalTable
    """

    name: ClassVar[str] = "persistence"
    train_years: tuple[int, ...]
    interval: IntervalTable

    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast:
        """Forecast readings ``o ... o + horizon - 1`` of every crystal from each origin ``o``.

        Raises
        ------
        ValueError
            An origin before reading 24, or a horizon past the last reading.
        """
        row = _rows(block, origins=origins, horizon=horizon)
        last = block.transparency[:, row[:, 0] - 1]
        return _forecast(self, block, row, np.repeat(last[:, :, None], horizon, axis=2))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return dict(self.interval.state()), {"train_years": list(self.train_years)}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Persistence:
        return cls(tuple(meta["train_years"]), IntervalTable.from_state(arrays))


def fit_persistence(history: TransparencyHistory, *, seed: int = 0) -> Persistence:
    """Persistence with intervals calibrated on the last two fifths of the training span, on a sample of its crystals.

    Parameters
    ----------
    history : TransparencyHistory
        Training span.
    seed : int
        Not used; every fit takes one.
    """
    model = Persistence(history.years, IntervalTable.unknown())
    return replace(model, interval=interval_table(model, sample_history(history), start_s=time_at_fraction(history, 0.6)))


@dataclass(frozen=True, eq=False)
class Ridge:
    """Linear regression of log-transparency on the last 24 readings and on decaying sums of the known luminosity.

    Parameters
    ----------
    train_years : tuple of int
    interval : IntervalTable
    ring_ieta : int array, (ring,)
        Rings fitted; a crystal of another ring takes the one nearest in abs(ieta).
    short : float array, (ring, step, feature)
        Coefficients of each of the first 24 steps: differences of the last readings, luminosity terms.
    long_tau_s : float array, (kernel,) [s]
    long_ring : float array, (ring, kernel) [fb]
        Change of log-transparency per decaying luminosity sum, <= 0 so that without beam there is only recovery;
        used from step 24 on.
    xtal_id : int array, (crystal,)
    long : float array, (crystal, kernel) [fb]
        The same for each crystal fitted; others take their ring's.
    short_penalty, long_penalty : float
        Chosen inside the training span; in units of each feature's mean square.

    Notes
    -----
    A linear law knows no saturation: the loss per 1/fb of one year is carried to the next, so the free run
    of a year that is damaged more slowly is biased.
    """

    name: ClassVar[str] = "ridge"
    train_years: tuple[int, ...]
    interval: IntervalTable
    ring_ieta: IntArray
    short: FloatArray
    long_tau_s: FloatArray
    long_ring: FloatArray
    xtal_id: IntArray
    long: FloatArray
    short_penalty: float
    long_penalty: float

    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast:
        """Forecast readings ``o ... o + horizon - 1`` of every crystal from each origin ``o``.

        Raises
        ------
        ValueError
            An origin before reading 24, or a horizon past the last reading.
        """
        row = _rows(block, origins=origins, horizon=horizon)
        n_short = min(horizon, N_READ)
        distance = np.abs(np.abs(self.ring_ieta) - np.abs(block.ieta)[:, None])
        ring = np.argmin(2 * distance + (self.ring_ieta != block.ieta[:, None]), axis=1)  # its own side first
        log = np.empty((block.n_crystals, *row.shape))
        differences, last = _read_features(block, row[:, 0])
        shared = _luminosity_features(block, row[:, 0], n_short)
        n_diff = differences.shape[2]
        for r in np.unique(ring):
            here = ring == r
            weight = self.short[r, :n_short]
            known = np.einsum("wsf,sf->ws", shared, weight[:, n_diff:])
            log[here, :, :n_short] = differences[here] @ weight[:, :n_diff].T + known + last[here][:, :, None]
        if horizon > N_READ:
            log[:, :, N_READ:] = self._long(block, row, ring)
        return _forecast(self, block, row, np.exp(log))

    def _long(self, block: Block, row: IntArray, ring: IntArray) -> FloatArray:
        """Log-transparency of the steps from 24 on, (crystal, window, step - 24)."""
        at = np.minimum(np.searchsorted(self.xtal_id, block.xtal_id), self.xtal_id.size - 1)
        fitted = self.xtal_id[at] == block.xtal_id
        weight = np.where(fitted[:, None], self.long[at], self.long_ring[ring])
        stop = int(row.max()) + 1
        loss = weight @ decaying_luminosity(block.time_s[:stop], block.lumi_ifb[:stop], self.long_tau_s).T  # (crystal, reading)
        past = row[:, :1] - 1 - np.arange(N_READ)
        level = (np.log(block.transparency[:, past]) - loss[:, past]).mean(axis=2)
        made: FloatArray = level[:, :, None] + loss[:, row[:, N_READ:]]
        return made

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        names = ("ring_ieta", "short", "long_tau_s", "long_ring", "xtal_id", "long")
        arrays = {name: getattr(self, name) for name in names} | self.interval.state()
        meta = {"train_years": list(self.train_years), "short_penalty": self.short_penalty, "long_penalty": self.long_penalty}
        return arrays, meta

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Ridge:
        return cls(
            tuple(meta["train_years"]), IntervalTable.from_state(arrays), arrays["ring_ieta"], arrays["short"],
            arrays["long_tau_s"], arrays["long_ring"], arrays["xtal_id"], arrays["long"], meta["short_penalty"], meta["long_penalty"],
        )  # fmt: skip


def fit_ridge(history: TransparencyHistory, *, seed: int = 0) -> Ridge:
    """Ridge regression fitted to a training span in closed form.

    Parameters
    ----------
    history : TransparencyHistory
        Training span; penalties, kernels and intervals are chosen on its later part alone, intervals on a sample of crystals.
        A ring may lack a part of the span: it is judged on the parts it has.
    seed : int
        Not used: nothing is drawn.

    Returns
    -------
    Ridge

    Raises
    ------
    ValueError
        A span too short to choose a penalty on.
    """
    start_s = time_at_fraction(history, 0.6)
    probe = _fit_ridge(history.before(start_s))
    return replace(_fit_ridge(history), interval=interval_table(probe, sample_history(history), start_s=start_s))


def decaying_luminosity(time_s: FloatArray, lumi_ifb: FloatArray, tau_s: FloatArray) -> FloatArray:
    """Luminosity delivered so far, each bit of it forgotten with a time constant.

    Parameters
    ----------
    time_s : float array, (..., reading) [s]
    lumi_ifb : float array, (..., reading) [1/fb]
        Delivered at a constant rate from reading i to i + 1.
    tau_s : float array, (kernel,) [s]
        ``inf`` gives the plain sum.

    Returns
    -------
    float array, (..., reading, kernel) [1/fb]
        0 at the first reading: what came before is not known.

    Examples
    --------
    >>> decaying_luminosity(np.array([0.0, 10.0, 20.0]), np.array([2.0, 1.0, 0.0]), np.array([np.inf])).ravel().tolist()
    [0.0, 2.0, 3.0]
    """
    x = np.diff(time_s)[..., None] / tau_s  # (..., reading - 1, kernel)
    keep = np.exp(-x)
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = np.where(x > 0, -np.expm1(-x) / x, 1.0)
    total = np.zeros((*np.shape(time_s), np.size(tau_s)))
    for i in range(total.shape[-2] - 1):
        total[..., i + 1, :] = total[..., i, :] * keep[..., i, :] + lumi_ifb[..., i, None] * gain[..., i, :]
    return total


class _Model(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def train_years(self) -> tuple[int, ...]: ...
    @property
    def interval(self) -> IntervalTable: ...


def _rows(block: Block, *, origins: IntArray, horizon: int) -> IntArray:
    """Readings to forecast, (window, step)."""
    origins = np.atleast_1d(np.asarray(origins, dtype=np.int64))
    if origins.size == 0 or horizon < 1:
        raise ValueError(f"{origins.size} origins and a horizon of {horizon} readings; give at least one of each")
    if origins.min() < N_READ:
        raise ValueError(f"origin {origins.min()} leaves fewer than {N_READ} readings before it; start at {N_READ} or later")
    if origins.max() + horizon > block.n_readings:
        got = f"origin {origins.max()} + horizon {horizon}"
        raise ValueError(f"{got} passes the last of {block.n_readings} readings; the times and luminosity of every target must be known")
    return origins[:, None] + np.arange(horizon)


def _forecast(model: _Model, block: Block, row: IntArray, transparency: FloatArray) -> Forecast:
    horizon_s = block.time_s[row] - block.time_s[row[:, :1] - 1]
    half68, half95 = (np.broadcast_to(h, transparency.shape) for h in model.interval.at(horizon_s))
    return Forecast(model.name, model.train_years, block.year, block.xtal_id, row, horizon_s, transparency, half68, half95)


def _read_features(block: Block, origins: IntArray) -> tuple[FloatArray, FloatArray]:
    """Last readings less the very last, (crystal, window, 23), and the last, (crystal, window); logs."""
    past = np.log(block.transparency[:, origins[:, None] - N_READ + np.arange(N_READ)])
    return past[:, :, :-1] - past[:, :, -1:], past[:, :, -1]


def _luminosity_features(block: Block, origins: IntArray, n_steps: int) -> FloatArray:
    """Known times and luminosity seen from each origin, (window, step, feature); nothing before the 24 readings enters."""
    span = origins[:, None] + np.arange(-N_READ, n_steps)
    time_s = block.time_s[span]
    total = decaying_luminosity(time_s, block.lumi_ifb[span], _SHORT_TAU_S)  # (window, 24 + step, kernel)
    here, ahead = total[:, N_READ - 1 : N_READ], total[:, N_READ:]
    wait = (time_s[:, N_READ:] - time_s[:, N_READ - 1 : N_READ])[:, :, None] / _SHORT_TAU_S[:-1]
    one = np.ones((origins.size, n_steps, 1))
    return np.concatenate([ahead - here, np.broadcast_to(here, ahead.shape), -np.expm1(-wait), one], axis=2)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Second moments of a regression, additive over samples: (..., feature, feature), (..., feature), (...)."""

    xx: FloatArray
    xy: FloatArray
    yy: FloatArray
    n: float

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.n + other.n)

    def damped(self, penalty: float) -> FloatArray:
        size = np.einsum("...ii->...i", self.xx)
        floor = 1e-12 * size.max(axis=-1, keepdims=True) + 1e-300  # a feature that never moves gets weight 0
        made: FloatArray = self.xx + penalty * (size + floor)[..., None] * np.eye(size.shape[-1])
        return made

    def solve(self, penalty: float) -> FloatArray:
        return np.asarray(np.linalg.solve(self.damped(penalty), self.xy[..., None])[..., 0], dtype=np.float64)

    def solve_negative(self, penalty: float) -> FloatArray:
        """The same with every weight <= 0, by coordinate descent on all problems at once."""
        weight = self.solve(penalty)
        wrong = (weight > 0).any(axis=-1)
        xx, xy, w = self.damped(penalty)[wrong], self.xy[wrong], np.minimum(weight[wrong], 0.0)
        for _ in range(_MOST_DESCENTS if wrong.any() else 0):
            before = w.copy()
            for k in range(w.shape[-1]):
                pull = xy[..., k] - (xx[..., k, :] * w).sum(axis=-1)
                w[..., k] = np.minimum(w[..., k] + pull / xx[..., k, k], 0.0)
            if np.abs(w - before).max() <= _DESCENT_TOLERANCE * np.abs(w).max():
                break
        weight[wrong] = w
        return weight

    def squared_error(self, weight: FloatArray) -> float:
        quadratic = np.einsum("...i,...ij,...j->...", weight, self.xx, weight)
        return float((self.yy - 2 * (weight * self.xy).sum(axis=-1) + quadratic).sum())


def _fit_ridge(history: TransparencyHistory) -> Ridge:
    """Everything but the intervals."""
    ring_ieta = np.unique(np.concatenate([b.ieta for b in history.blocks]))
    cuts = [-np.inf, *(time_at_fraction(history, f) for f in _FOLDS), np.inf]
    folds = [[_short_sums(history, int(i), start_s=cuts[k], stop_s=cuts[k + 1]) for k in range(len(cuts) - 1)] for i in ring_ieta]
    folds = [[part for part in ring if part.n] for ring in folds]
    if empty := [int(i) for i, ring in zip(ring_ieta, folds, strict=True) if not ring]:
        raise ValueError(f"ring {empty[0]} has no {2 * N_READ} readings in a row in the training span; train on a longer span")
    if all(len(ring) == 1 for ring in folds):
        raise ValueError(f"a part of the training span has no {2 * N_READ} readings in a row; train on a longer span")
    error = np.zeros(_PENALTIES.size)
    short = []
    for ring in folds:
        known = ring[0]
        for part in ring[1:]:
            error += [part.squared_error(known.solve(penalty)) for penalty in _PENALTIES]
            known = known + part
        short.append(known)
    short_penalty = float(_PENALTIES[np.argmin(error)])

    judges = _thinned(history, _JUDGES)
    long_error = np.array([_long_errors(judges, cuts[1:-1], tau_s) for tau_s in _LONG_TAU_SETS_S])
    best, which = np.unravel_index(np.argmin(long_error), long_error.shape)
    long_tau_s, long_penalty = _LONG_TAU_SETS_S[best], float(_PENALTIES[which])
    xtal_id, ieta, moments = _long_sums(history, long_tau_s)
    long = moments.solve_negative(long_penalty)
    long_ring = np.stack([long[ieta == i].mean(axis=0) for i in ring_ieta])
    short_weight = np.stack([moment.solve(short_penalty) for moment in short])
    return Ridge(
        history.years, IntervalTable.unknown(), ring_ieta, short_weight, long_tau_s, long_ring, xtal_id, long, short_penalty, long_penalty
    )


def _thinned(history: TransparencyHistory, most: int) -> TransparencyHistory:
    """About so many of the crystals, spread evenly over their numbers."""
    xtal_ids = history.xtal_ids
    return history if xtal_ids.size <= most else history.select(xtal_ids=xtal_ids[:: -(-xtal_ids.size // most)])


def _short_sums(history: TransparencyHistory, ieta: int, *, start_s: float, stop_s: float) -> _Sums:
    """Moments of the first 24 steps, one row per step, over one ring; every target lies in [start_s, stop_s)."""
    picked = []
    for block in history.blocks:
        ring = block.ieta == ieta
        if not ring.any():
            continue
        first, last = np.searchsorted(block.time_s, [start_s, stop_s])
        origins = np.arange(max(int(first), N_READ), int(last) - N_READ + 1)
        if origins.size:
            picked.append((block.crystals(ring), origins))
    stride = -(-sum(b.n_crystals * o.size for b, o in picked) // _SAMPLES_PER_RING)
    n_feature = N_READ - 1 + 3 * _SHORT_TAU_S.size
    sums = _Sums(np.zeros((N_READ, n_feature, n_feature)), np.zeros((N_READ, n_feature)), np.zeros(N_READ), 0.0)
    for block, every in picked:
        origins = every[::stride]
        differences, last_log = _read_features(block, origins)
        shared = _luminosity_features(block, origins, N_READ)
        change = np.log(block.transparency[:, origins[:, None] + np.arange(N_READ)]) - last_log[:, :, None]
        n = change.shape[0] * change.shape[1]
        flat = differences.reshape(n, -1)  # (crystal, window, 23) -> (sample, 23)
        for step in range(N_READ):
            known = np.broadcast_to(shared[:, step], (block.n_crystals, *shared[:, step].shape)).reshape(n, -1)
            x = np.concatenate([flat, known], axis=1)
            y = change[:, :, step].ravel()
            sums.xx[step] += x.T @ x
            sums.xy[step] += x.T @ y
            sums.yy[step] += y @ y
        sums = replace(sums, n=sums.n + n)
    return sums


def _long_sums(history: TransparencyHistory, tau_s: FloatArray) -> tuple[IntArray, IntArray, _Sums]:
    """Crystals, their rings, and moments of each crystal about its own mean of each year."""
    xtal_id = history.xtal_ids
    ieta = np.zeros_like(xtal_id)
    xx, xy = np.zeros((xtal_id.size, tau_s.size, tau_s.size)), np.zeros((xtal_id.size, tau_s.size))
    for block in history.blocks:
        at = np.searchsorted(xtal_id, block.xtal_id)
        ieta[at] = block.ieta
        x = decaying_luminosity(block.time_s, block.lumi_ifb, tau_s)
        x = x - x.mean(axis=0)
        xx[at] += x.T @ x
        xy[at] += np.log(block.transparency) @ x
    return xtal_id, ieta, _Sums(xx, xy, np.zeros(xtal_id.size), float(history.n_readings))


def _long_errors(history: TransparencyHistory, cuts_s: list[float], tau_s: FloatArray) -> list[float]:
    """Mean absolute error of log-transparency per penalty: fitted before each cut, run from there to the end of each year."""
    total, n = np.zeros(_PENALTIES.size), 0
    for cut_s in cuts_s:
        xtal_id, _, moments = _long_sums(history.before(cut_s), tau_s)
        weights = np.stack([moments.solve_negative(penalty) for penalty in _PENALTIES])  # (penalty, crystal, kernel)
        mean = weights.mean(axis=1, keepdims=True)
        for block in history.blocks:
            origin = max(int(np.searchsorted(block.time_s, cut_s)), N_READ)
            target = np.arange(origin, block.n_readings, N_READ)  # every 24th reading judges as well as all
            at = np.minimum(np.searchsorted(xtal_id, block.xtal_id), xtal_id.size - 1)
            weight = np.where((xtal_id[at] == block.xtal_id)[:, None], weights[:, at], mean)
            x = decaying_luminosity(block.time_s, block.lumi_ifb, tau_s)
            x = x - x[origin - N_READ : origin].mean(axis=0)
            log = np.log(block.transparency)
            log = log[:, target] - log[:, origin - N_READ : origin].mean(axis=1, keepdims=True)
            total += [np.abs(log - w @ x[target].T).sum() for w in weight]
            n += log.size
    return list(total / max(n, 1))
