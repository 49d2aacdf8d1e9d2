"""Scores of forecasters on years they were not fitted to: the published protocol, its tasks, and error against horizon.

Two modes. ``window`` (the papers' Case 1): every 24 readings the truth so far is handed over and the next 24
are forecast. ``free-run`` (Case 2): the first 24 readings of the year are known, the rest is forecast at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calolife.transparency.history import Block, FloatArray, Forecast, IntArray, TransparencyHistory
from calolife.transparency.scores import (
    LEAK_SUFFIX,
    MODES,
    TASKS,
    BacktestResult,
    HorizonScore,
    Score,
    TableRow,
    is_leaky,
    join_scores,
    merge_results,
    published_table,
)  # fmt: skip

__all__ = [
    "HORIZONS_S",
    "LEAK_SUFFIX",
    "MODES",
    "SHORT_HORIZON_S",
    "TASKS",
    "BacktestResult",
    "HorizonScore",
    "Score",
    "TableRow",
    "backtest",
    "forecast_movement",
    "known_before",
    "mape_percent",
    "merge_results",
    "published_table",
    "task_runs",
    "window_count",
]

SHORT_HORIZON_S = 7 * 86400.0  # chosen: to a week ahead a forecast is a matter of the last readings, beyond it of the luminosity
HORIZONS_S = tuple(3600.0 * h for h in (6, 12, 24, 72, 168, 336, 720, 1440, 2160))  # 6 h ... 90 d

WINDOW = 24  # readings: the published encoder and decoder length and stride
_N_BOOT = 400  # chosen: the 2.5 % quantile then scatters by a tenth of the interval's width
_WEEK_WINDOWS = 10  # chosen: 10 windows of 24 readings are a week, longer than a fill and its recovery
_FEWEST_UNITS = 5  # chosen: fewer windows, resampled, say nothing of their scatter
_FREE_RUN_PARTS = 4  # chosen: free-run errors drift over months, so a quarter of the year is resampled at a time
_MOST_CRYSTALS = 2000  # chosen: larger blocks are scored ring by ring to bound memory
_MOST_VALUES = 20_000_000  # chosen: forecast values held at once, 160 MB an array
_STOP_IFB_PER_DAY = 0.01  # chosen: 2 % of a good day; the luminosity monitor's noise and beam tests stay below it in a stop
_DELIVERED_IFB = 0.1  # chosen: a quarter of a day of beam; before it there is no damage to recover from
_STOP_S = 2 * 86400.0  # a stop of two days or more is a recovery
_NEXT_FILL_IFB = (0.75, 1.25)  # the published "next fill": about 1 /fb ahead


class _Forecaster(Protocol):
    @property
    def train_years(self) -> tuple[int, ...]: ...
    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast: ...


def window_count(n_readings: int) -> int:
    """Windows of the published protocol in a year of this many readings.

    Raises
    ------
    ValueError
        Fewer than 48 readings.

    Examples
    --------
    >>> window_count(48), window_count(71), window_count(72)
    (1, 1, 2)
    """
    if n_readings < 2 * WINDOW:
        raise ValueError(f"{n_readings} readings hold no window; a year needs {2 * WINDOW} or more to be scored")
    return (n_readings - 2 * WINDOW) // WINDOW + 1


def mape_percent(forecast: FloatArray, reading: FloatArray) -> float:
    """Mean of abs(forecast - reading) / reading [%].

    Examples
    --------
    >>> round(mape_percent(np.array([0.9, 1.1]), np.array([1.0, 1.0])), 6)
    10.0
    """
    return float(100.0 * np.mean(np.abs(np.subtract(forecast, reading)) / np.asarray(reading)))


def backtest(
    models: Mapping[str, _Forecaster],
    history: TransparencyHistory,
    *,
    test_years: Iterable[int],
    modes: Sequence[str] = MODES,
    fit_seconds: Mapping[str, float] | None = None,
    with_last24: bool = True,
    tasks: Sequence[str] = TASKS,
    horizons_s: Sequence[float] = HORIZONS_S,
    allow_leak: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> BacktestResult:
    """Score forecasters on whole years.

    Parameters
    ----------
    models : mapping of name to fitted forecaster
        A name ending in ``-leak`` marks a model that looks at the test year; it is handed the whole year.
    history : TransparencyHistory
        Must hold the test years; other years are not looked at. A fitted year may be scored: it is marked as in-sample.
    test_years : iterable of int
    modes : sequence of {"window", "free-run"}
    fit_seconds : mapping of name to float [s], optional
    with_last24 : bool
        Add rows ``<model>-last24``: window mode, the model sees nothing of the year but the 24 readings before each window.
    tasks : sequence of str
        Published tasks to score, names in `TASKS`; none when empty.
    horizons_s : sequence of float [s]
        Horizons to measure the error at; none when empty.
    allow_leak : bool
        Accept ``-leak`` models.
    seed : int
        Of the bootstrap.
    progress : callable, optional
        Told what is scored next.

    Returns
    -------
    BacktestResult

    Raises
    ------
    ValueError
        No model, an unknown mode or task, a year that the history does not have, a crystal-year too short, a leaky model
        without `allow_leak`.

    Notes
    -----
    Readings that a model may not know are NaN in what it is handed: in free run everything from reading 24 on, in
    window mode everything from the last window on (one call makes all windows; `forecast_movement` checks
    that none of them looks further than its own origin).
    """
    years = sorted({int(y) for y in test_years})
    if not models or not years:
        raise ValueError(f"{len(models)} models and {len(years)} test years; give at least one of each")
    if unknown := sorted(set(modes) - set(MODES)):
        raise ValueError(f"mode {unknown[0]!r} is not one of {', '.join(MODES)}")
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ValueError(f"task {unknown[0]!r} is not one of {', '.join(TASKS)}")
    if leaky := sorted(name for name in models if is_leaky(name) and not allow_leak):
        raise ValueError(f"model {leaky[0]!r} looks at the test year; ask for leaky rows explicitly or leave it out")
    tested = history.select(years=years)
    for block in tested.blocks:
        if block.n_readings < 2 * WINDOW:
            which = f"crystal {block.xtal_id[0]} has {block.n_readings} readings in {block.year}"
            raise ValueError(f"{which}; {2 * WINDOW} or more are needed to score it: leave it out")
        if (future := np.isnan(block.transparency.sum(axis=1))).any():
            first = block.xtal_id[future][0]
            raise ValueError(f"crystal {first} has readings in {block.year} that are still to come (NaN); score past years only")

    def tell(name: str, what: str, year: int) -> None:
        if progress is not None:
            progress(f"{name}: {what}, {year}")

    scores, of_tasks, horizons = [], [], []
    for year in years:
        blocks = list(tested.of_year(year))
        for name, model in models.items():
            made: dict[str, Score] = {}
            for mode in modes:
                tell(name, mode, year)
                made[mode] = join_scores(
                    [_scored(name, mode, model, block, _mode_runs(mode, block), seed=seed) for block in _parts(blocks)]
                )
                scores.append(made[mode])
            if with_last24 and "window" in modes and name != "persistence" and not is_leaky(name):
                tell(name, "window from 24 readings", year)
                scores.append(join_scores([_scored_last24(name, model, block, seed=seed) for block in _parts(blocks)]))
            for task in tasks:
                tell(name, task, year)
                if task == "year-to-year" and "free-run" in made:
                    of_tasks.append(replace(made["free-run"], mode=task))
                    continue
                found = [_scored(name, task, model, block, runs, seed=seed) for block in _parts(blocks) if (runs := task_runs(block, task))]
                if found:
                    of_tasks.append(join_scores(found))
            if horizons_s:
                tell(name, "error against horizon", year)
                horizons.append(_horizons(name, model, year, _parts(blocks), np.array(horizons_s, dtype=np.float64)))
    return BacktestResult(tuple(scores), tuple(of_tasks), tuple(horizons), dict(fit_seconds or {}))


def task_runs(block: Block, task: str) -> list[tuple[IntArray, int, NDArray[np.bool_]]]:
    """Forecasts that a published task asks for in one year of readings.

    Parameters
    ----------
    block : Block
    task : {"next-fill", "recovery", "year-to-year"}
        Next fill: readings by which 0.75 to 1.25 /fb were delivered since the last known reading, from every 48th
        reading. Recovery: from the first reading of each stop of two days or more to its end; a stop is readings between
        which less than 0.01 /fb per day was delivered, after at least 0.1 /fb in the year. Year to year: the free run.

    Returns
    -------
    list of (origins, horizon, is_target)
        int array, (window,); readings; bool array, (window, step).

    Raises
    ------
    ValueError
        A task that is not one of these.
    """
    if task == "year-to-year":
        return _mode_runs("free-run", block)
    if task == "next-fill":
        horizon = 10 * WINDOW  # chosen: about a week, in which most fills of 1 /fb are done
        origins = np.arange(WINDOW, block.n_readings - horizon + 1, 2 * WINDOW)
        delivered = np.concatenate([[0.0], np.cumsum(block.lumi_ifb[:-1])])
        ahead = delivered[origins[:, None] + np.arange(horizon)] - delivered[origins - 1, None] if origins.size else np.zeros((0, horizon))
        is_target = (ahead >= _NEXT_FILL_IFB[0]) & (ahead <= _NEXT_FILL_IFB[1])
        some = is_target.any(axis=1)
        return [(origins[some], horizon, is_target[some])] if some.any() else []
    if task == "recovery":
        runs = []
        delivered = np.concatenate([[0.0], np.cumsum(block.lumi_ifb[:-1])])
        is_idle = block.lumi_ifb[:-1] * 86400.0 < _STOP_IFB_PER_DAY * np.diff(block.time_s)
        idle = np.concatenate([[False], is_idle, [False]])
        edges = np.flatnonzero(np.diff(idle.astype(np.int8)))
        for first, last in edges.reshape(-1, 2):  # no beam between readings first and last
            if delivered[first] < _DELIVERED_IFB:
                continue
            origin = max(int(first) + 1, WINDOW)
            horizon = int(last) + 1 - origin
            if horizon >= 2 and block.time_s[last] - block.time_s[origin - 1] >= _STOP_S:
                runs.append((np.array([origin]), horizon, np.ones((1, horizon), dtype=bool)))
        return runs
    raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")


def forecast_movement(model: _Forecaster, block: Block, *, origins: IntArray, horizon: int, seed: int = 0) -> float:
    """Largest change of any forecast when every reading from its origin on is changed: 0 for a model that does not look ahead.

    Parameters
    ----------
    model : forecaster
    block : Block
    origins : int array, (window,)
        Forecast together, then one at a time with all later readings of all crystals scaled at random.
    horizon : int
    seed : int

    Returns
    -------
    float
        In units of transparency; inf if a forecast turns NaN.
    """
    rng = np.random.default_rng(seed)
    together = model.forecast(block, origins=np.asarray(origins, dtype=np.int64), horizon=horizon)
    worst = 0.0
    for w, origin in enumerate(together.row[:, 0]):
        changed = block.transparency.copy()
        changed[:, origin:] *= rng.uniform(0.5, 1.0, size=changed[:, origin:].shape)
        alone = model.forecast(replace(block, transparency=changed), origins=np.array([origin]), horizon=horizon)
        for name in ("transparency", "half68", "half95"):
            one, other = getattr(alone, name)[:, 0], getattr(together, name)[:, w]
            moved = np.abs(one - other)
            if name != "transparency":  # a model without intervals has none in both
                moved = np.where(np.isnan(one) & np.isnan(other), 0.0, moved)
            worst = max(worst, float(np.where(np.isnan(moved), np.inf, moved).max()))
    return worst


def known_before(block: Block, stop: int) -> Block:
    """The block as it was known before reading `stop`: later readings are NaN, their flags gone; times and luminosity stay."""
    transparency, flag = block.transparency.copy(), np.array(block.flag)
    transparency[:, stop:] = np.nan
    flag[:, stop:] = 0
    return replace(block, transparency=transparency, flag=flag)


_Runs = list[tuple[IntArray, int, NDArray[np.bool_]]]


def _parts(blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks, very large ones ring by ring: one ring is copied at a time."""
    for block in blocks:
        if block.n_crystals <= _MOST_CRYSTALS:
            yield block
        else:
            for ieta in np.unique(block.ieta):
                yield block.crystals(block.ieta == ieta)


def _mode_runs(mode: str, block: Block) -> _Runs:
    n = window_count(block.n_readings)
    if mode == "window":
        return [(WINDOW * np.arange(1, n + 1), WINDOW, np.ones((n, WINDOW), dtype=bool))]
    return [(np.array([WINDOW]), WINDOW * n, np.ones((1, WINDOW * n), dtype=bool))]


def _forecasts(name: str, model: _Forecaster, block: Block, origins: IntArray, horizon: int) -> Iterable[tuple[slice, Forecast, float]]:
    """Forecasts from these origins, some windows at a time, with the seconds each took."""
    step = max(1, _MOST_VALUES // (block.n_crystals * horizon))
    for first in range(0, origins.size, step):
        some = slice(first, first + step)
        known = block if is_leaky(name) else known_before(block, int(origins[some].max()))
        started = time.perf_counter()
        made = model.forecast(known, origins=origins[some], horizon=horizon)
        yield some, made, time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class _Units:
    """Sums over the targets of each resampled unit: (crystal, unit), (unit,), inside the intervals (crystal,)."""

    error: FloatArray
    persistence: FloatArray
    n: IntArray
    inside68: FloatArray
    inside95: FloatArray


def _units(block: Block, made: Forecast, is_target: NDArray[np.bool_], *, unit: int | None) -> _Units:
    """Errors in % summed per window or, with `unit`, per so many steps of the one window."""
    reading = block.transparency[:, made.row]
    miss = np.abs(made.transparency - reading)
    last = block.transparency[:, made.row[:, 0] - 1][:, :, None]
    error = np.where(is_target, 100.0 * miss / reading, 0.0)
    persistence = np.where(is_target, 100.0 * np.abs(last - reading) / reading, 0.0)
    if (bad := np.isnan(error).any(axis=(1, 2))).any():
        raise ValueError(f"{made.model} forecast NaN for crystal {block.xtal_id[bad][0]} in {block.year}; refit it")
    with_intervals = ~np.isnan(made.half95).any(axis=(1, 2))
    inside = [np.where(with_intervals, ((miss <= half) & is_target).sum(axis=(1, 2)), np.nan) for half in (made.half68, made.half95)]
    n = is_target
    if unit is not None:  # (crystal, 1, unit * step) -> (crystal, unit, step)
        error, persistence, n = (a.reshape(*a.shape[:-2], -1, unit) for a in (error, persistence, n))
    return _Units(error.sum(axis=-1), persistence.sum(axis=-1), n.sum(axis=-1), inside[0], inside[1])


def _scored(name: str, mode: str, model: _Forecaster, block: Block, runs: _Runs, *, seed: int) -> Score:
    unit = WINDOW if mode in ("free-run", "year-to-year") else None
    units, seconds = [], 0.0
    for origins, horizon, is_target in runs:
        for some, made, took in _forecasts(name, model, block, origins, horizon):
            seconds += took
            units.append(_units(block, made, is_target[some], unit=unit))
    return _score(name, mode, model, block, units, n_windows=sum(o.size for o, _, _ in runs), seconds=seconds, seed=seed)


def _scored_last24(name: str, model: _Forecaster, block: Block, *, seed: int) -> Score:
    """Window mode with every reading older than the last 24 hidden; times and luminosities of the year stay known."""
    ((origins, _, is_target),) = _mode_runs("window", block)
    units, seconds = [], 0.0
    for w, origin in enumerate(origins):
        seen = block.transparency[:, : int(origin) + WINDOW].copy()
        seen[:, : int(origin) - WINDOW] = np.nan
        part = replace(block.readings(0, int(origin) + WINDOW), transparency=seen)
        for _, made, took in _forecasts(name, model, part, np.array([int(origin)]), WINDOW):
            seconds += took
            units.append(_units(part, made, is_target[w : w + 1], unit=None))
    return _score(f"{name}-last24", "window", model, block, units, n_windows=origins.size, seconds=seconds, seed=seed)


def _score(
    name: str, mode: str, model: _Forecaster, block: Block, units: list[_Units], *, n_windows: int, seconds: float, seed: int
) -> Score:
    error = np.concatenate([u.error for u in units], axis=1)
    persistence = np.concatenate([u.persistence for u in units], axis=1)
    n = np.concatenate([u.n for u in units])
    n_units, n_targets = n.size, int(n.sum())
    length = {"window": _WEEK_WINDOWS, "next-fill": _WEEK_WINDOWS // 2}.get(mode, -(-n_units // _FREE_RUN_PARTS))
    if mode == "recovery":
        length = 1  # stops are weeks apart
    count = _block_counts(n_units, length, seed=seed)  # (replica, unit)
    drawn = count @ n
    boot_mape, boot_persistence = (count @ error.T) / drawn[:, None], (count @ persistence.T) / drawn[:, None]  # (replica, crystal)
    weight = np.stack([np.random.default_rng([seed, int(x)]).exponential(size=_N_BOOT) for x in block.xtal_id], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        skill = 1 - error.sum(axis=1) / persistence.sum(axis=1)
        low, high = np.quantile(1 - boot_mape / boot_persistence, (0.025, 0.975), axis=0)
    if n_units < _FEWEST_UNITS:
        low = high = np.full(block.n_crystals, np.nan)
    each = np.ones(block.n_crystals, dtype=np.int64)
    return Score(
        name, mode, block.year, block.year in model.train_years, block.xtal_id, n_windows * each, n_targets * each,
        error.sum(axis=1) / n_targets, persistence.sum(axis=1) / n_targets, skill, low, high,
        np.sum([u.inside68 for u in units], axis=0) / n_targets, np.sum([u.inside95 for u in units], axis=0) / n_targets,
        weight.sum(axis=1), (weight * boot_mape).sum(axis=1), (weight * boot_persistence).sum(axis=1), seconds,
    )  # fmt: skip


def _block_counts(n_units: int, length: int, *, seed: int) -> FloatArray:
    """How often each unit is drawn when blocks of neighbours are, (replica, unit); the last unit's neighbour is the first.

    Blocks start at the same fractions of the year on every time grid, so that crystals read at other minutes are resampled together.
    """
    length = max(1, min(length, n_units))
    n_blocks = -(-n_units // length)
    start_fraction = np.random.default_rng(seed).random((_N_BOOT, n_blocks))
    start = (start_fraction * n_units).astype(np.int64)
    drawn = ((start[:, :, None] + np.arange(length)) % n_units).reshape(_N_BOOT, -1)[:, :n_units]
    flat = drawn + n_units * np.arange(_N_BOOT)[:, None]
    return np.bincount(flat.ravel(), minlength=_N_BOOT * n_units).reshape(_N_BOOT, n_units).astype(np.float64)


def _horizons(name: str, model: _Forecaster, year: int, blocks: Iterable[Block], horizon_s: FloatArray) -> HorizonScore:
    error, n = np.zeros(horizon_s.size), np.zeros(horizon_s.size, dtype=np.int64)
    short = horizon_s <= SHORT_HORIZON_S
    for block in blocks:
        for group, n_origins in ((short, 96), (~short, 24)):  # chosen: every few days, every fortnight
            within = [h for h in np.flatnonzero(group) if block.time_s[-1] - block.time_s[WINDOW - 1] >= horizon_s[h]]
            if not within:
                continue
            every, targets = _horizon_targets(block, horizon_s[within], n_origins)
            for origins, target in _of_one_length(every, targets, block.n_readings):
                length = int((target - origins[:, None]).max()) + 1
                for some, made, _ in _forecasts(name, model, block, origins, length):
                    for k, h in enumerate(within):
                        hit = target[some, k] >= 0
                        step = (target[some, k] - origins[some])[hit]
                        reading = block.transparency[:, target[some, k][hit]]
                        error[h] += (100 * np.abs(made.transparency[:, np.flatnonzero(hit), step] - reading) / reading).sum()
                        n[h] += reading.size
    return HorizonScore(name, year, horizon_s, error, n)


def _of_one_length(origins: IntArray, target: IntArray, n_readings: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Origins that can be forecast together, to the farthest target of any; then, one by one, those too late in the year for it."""
    if not origins.size:
        return
    fits = origins + int((target - origins[:, None]).max()) < n_readings
    if fits.any():
        yield origins[fits], target[fits]
    for w in np.flatnonzero(~fits):
        yield origins[w : w + 1], target[w : w + 1]


def _horizon_targets(block: Block, horizon_s: FloatArray, n_origins: int) -> tuple[IntArray, IntArray]:
    """Origins spread over the year, (window,), and the reading nearest to each horizon, (window, horizon); -1 where none is near."""
    final = int(np.searchsorted(block.time_s, block.time_s[-1] - horizon_s.min(), side="right"))
    origins = np.unique(np.linspace(WINDOW, max(min(final, block.n_readings - 1), WINDOW), n_origins).astype(np.int64))
    wanted = block.time_s[origins - 1, None] + horizon_s
    above = np.clip(np.searchsorted(block.time_s, wanted), 1, block.n_readings - 1)
    target = np.where(block.time_s[above] - wanted < wanted - block.time_s[above - 1], above, above - 1)
    near = np.abs(block.time_s[target] - wanted) <= np.maximum(0.1 * horizon_s, 3600.0)  # chosen: a tenth of the horizon, at least an hour
    target = np.where(near & (target >= origins[:, None]), target, -1)
    some = (target >= 0).any(axis=1)
    return origins[some], target[some]
