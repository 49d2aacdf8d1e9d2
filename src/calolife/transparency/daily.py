"""The daily job: readings up to now and the planned luminosity in, the coming transparency out; scored when the truth is in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import numpy as np

from calolife.transparency.history import Block, FloatArray, Forecast, IntArray, TransparencyHistory
from calolife.transparency.schedule import LumiSchedule, lumi_between

__all__ = ["Outlook", "OutlookScore", "forecast_ahead", "repeat_until", "rescore_outlook"]

_N_KNOWN = 24  # readings every forecaster needs before its origin
_LONGEST_GAP_S = 86400.0  # chosen: a plan made today starts within a day of the last reading
_MOST_NAMED = 20
_SILENT_S = 86400.0  # chosen: a crystal is read every hour or less; a day without is a fault of its own


class _Forecaster(Protocol):
    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast: ...


@dataclass(frozen=True, eq=False)
class Outlook:
    """Forecast of the crystals of one block from their last known reading on.

    Parameters
    ----------
    block : Block
        Known readings, then the future ones (NaN) with the luminosity planned.
    forecast : Forecast
        One window: its rows are the future ones.
    """

    block: Block
    forecast: Forecast

    @property
    def last_s(self) -> float:
        """Time of the last known reading [s]."""
        return float(self.block.time_s[self.forecast.row[0, 0] - 1])

    @property
    def time_s(self) -> FloatArray:
        """Times of the forecast readings, (step,) [s]."""
        made: FloatArray = self.block.time_s[self.forecast.row[0]]
        return made

    @property
    def lumi_ifb(self) -> FloatArray:
        """Luminosity planned since the reading before, (step,) [1/fb]."""
        made: FloatArray = self.block.lumi_ifb[self.forecast.row[0] - 1]
        return made


@dataclass(frozen=True)
class OutlookScore:
    """How an outlook fared, against the readings that came.

    Parameters
    ----------
    luminosity : {"planned", "delivered"}
        What the model was given for the future.
    xtal_id : int
    n_readings : int
    mape_percent, persistence_percent : float [%]
        Of the model, and of the last known reading repeated.
    coverage68, coverage95 : float
    delivered_ifb, lumi_ifb : float [1/fb]
        Delivered over the readings scored, and what the model was given.
    """

    luminosity: str
    xtal_id: int
    n_readings: int
    mape_percent: float
    persistence_percent: float
    coverage68: float
    coverage95: float
    delivered_ifb: float
    lumi_ifb: float


def forecast_ahead(
    model: _Forecaster,
    history: TransparencyHistory,
    *,
    schedule: LumiSchedule,
    horizon_s: float,
    from_s: float | None = None,
    step_s: float | None = None,
) -> tuple[Outlook, ...]:
    """Transparency of every crystal that is still read, from now on.

    Parameters
    ----------
    model : forecaster
    history : TransparencyHistory
    schedule : LumiSchedule
        Luminosity of the future; must reach from the last known reading to the horizon.
    horizon_s : float [s]
    from_s : float [s], optional
        Now: readings after it are not looked at. The last reading of the history when left out.
    step_s : float [s], optional
        Time between forecast readings; the median of the known ones when left out.

    Returns
    -------
    tuple of Outlook
        One per block of the year that `from_s` falls in.

    Raises
    ------
    ValueError
        No crystal with 24 readings in that year before `from_s`, a schedule that does not cover the horizon, or a step
        longer than the horizon.

    Warns
    -----
    UserWarning
        The schedule starts up to a day after the last known reading: no luminosity is assumed between. Crystals whose last
        reading is more than a day older than the newest are named and not forecast.
    """
    now_s = max(float(b.time_s[-1]) for b in history.blocks) if from_s is None else from_s
    known = _known_blocks(history, now_s)
    made = []
    for block in known:
        last_s = float(block.time_s[-1])
        step = float(np.median(np.diff(block.time_s))) if step_s is None else step_s
        n_steps = int((now_s + horizon_s - last_s) // step)
        if n_steps < 1:
            raise ValueError(
                f"a horizon of {horizon_s / 3600:g} h is shorter than the {step / 3600:g} h between readings; give a longer horizon"
            )
        future_s: FloatArray = last_s + step * np.arange(n_steps + 1, dtype=np.float64)
        lumi = lumi_between(_reaching_back(schedule, last_s), future_s)
        made.append(_outlook(model, block, future_s[1:], lumi))
    return tuple(made)


def repeat_until(schedule: LumiSchedule, stop_s: float) -> LumiSchedule:
    """A schedule such as the nominal week, repeated until it covers a time.

    Examples
    --------
    >>> week = LumiSchedule([0.0, 86400.0, 604800.0], [1.0, 0.0], "one day in seven")
    >>> repeat_until(week, 1000000.0).total_ifb
    2.0
    """
    period_s = float(schedule.time_s[-1] - schedule.time_s[0])
    n = max(1, int(np.ceil((stop_s - schedule.time_s[0]) / period_s)))
    starts = period_s * np.arange(n)
    time_s = np.append((schedule.time_s[:-1] + starts[:, None]).ravel(), schedule.time_s[0] + n * period_s)
    return replace(schedule, time_s=time_s, lumi_ifb=np.tile(schedule.lumi_ifb, n))


def rescore_outlook(
    model: _Forecaster, history: TransparencyHistory, *, schedule: LumiSchedule, from_s: float, horizon_s: float
) -> tuple[OutlookScore, ...]:
    """Score an outlook against the readings that came, with the luminosity planned then and with the one delivered.

    Parameters
    ----------
    model : forecaster
        The one that made the outlook.
    history : TransparencyHistory
        Readings and delivered luminosity, past `from_s`.
    schedule : LumiSchedule
        As planned.
    from_s, horizon_s : float [s]
        As in `forecast_ahead`.

    Returns
    -------
    tuple of OutlookScore
        Two per crystal: planned, delivered. As in `forecast_ahead`, not for crystals that were silent.

    Raises
    ------
    ValueError
        No reading after `from_s` within the horizon.

    Notes
    -----
    The forecast is made again for the times at which the readings came, from the same known readings: nothing is
    interpolated. The difference of the two scores is what the error of the plan cost.
    """
    scores: list[OutlookScore] = []
    known = _known_blocks(history, from_s)
    forecast_ids = np.concatenate([b.xtal_id for b in known])
    for block in history.of_year(known[0].year):
        if block.xtal_id[0] not in forecast_ids:
            continue
        n = int(np.searchsorted(block.time_s, from_s, side="right"))
        stop = int(np.searchsorted(block.time_s, from_s + horizon_s, side="right"))
        if stop <= n:
            continue
        seen = block.readings(0, stop)
        times = seen.time_s[n - 1 :]
        planned = lumi_between(_reaching_back(schedule, float(times[0])), times)
        delivered = seen.lumi_ifb[n - 1 : -1]
        truth = seen.transparency[:, n:]
        persistence = 100 * np.abs(seen.transparency[:, n - 1 : n] / truth - 1).mean(axis=1)
        for name, lumi in (("planned", planned), ("delivered", delivered)):
            forecast = _outlook(model, block.readings(0, n), times[1:], lumi).forecast
            miss = np.abs(forecast.transparency[:, 0] - truth)
            mape = 100 * (miss / truth).mean(axis=1)
            inside = [(miss <= half[:, 0]).mean(axis=1) for half in (forecast.half68, forecast.half95)]
            scores.extend(
                OutlookScore(
                    name, int(block.xtal_id[c]), stop - n, float(mape[c]), float(persistence[c]), float(inside[0][c]), float(inside[1][c]),
                    float(delivered.sum()), float(lumi.sum()),
                )
                for c in range(block.n_crystals)
            )  # fmt: skip
    if not scores:
        raise ValueError(f"no readings between {_text(from_s)} and {_text(from_s + horizon_s)} in the data; give the data that has them")
    return tuple(scores)


def _known_blocks(history: TransparencyHistory, now_s: float) -> Sequence[Block]:
    """The blocks of the year that a time falls in, cut there; those of crystals that are not read any more are left out."""
    started = [b for b in history.blocks if b.time_s[0] <= now_s]
    if not started:
        raise ValueError(f"no readings up to {_text(now_s)}; the first is of {_text(min(float(b.time_s[0]) for b in history.blocks))}")
    year = max(b.year for b in started)
    known = []
    for block in started:
        n = int(np.searchsorted(block.time_s, now_s, side="right"))
        if block.year == year and n >= _N_KNOWN:
            known.append(block.readings(0, n))
    if not known:
        raise ValueError(f"fewer than {_N_KNOWN} readings in {year} up to {_text(now_s)}; give more readings or a later time")
    newest_s = max(float(b.time_s[-1]) for b in known)
    read = [b for b in known if b.time_s[-1] >= newest_s - _SILENT_S]
    if len(read) < len(known):
        silent = np.sort(np.concatenate([b.xtal_id for b in known if b.time_s[-1] < newest_s - _SILENT_S])).tolist()
        named = ", ".join(map(str, silent[:_MOST_NAMED])) + (f" ... ({len(silent)} in all)" if len(silent) > _MOST_NAMED else "")
        warnings.warn(f"not read in the day before {_text(newest_s)} and left out: crystal {named}", stacklevel=3)
    return read


def _reaching_back(schedule: LumiSchedule, last_s: float) -> LumiSchedule:
    gap_s = float(schedule.time_s[0]) - last_s
    if not 0 < gap_s <= _LONGEST_GAP_S:
        return schedule
    # one text for all crystals: the warning is shown once
    warnings.warn("the luminosity starts after the last reading: none is assumed between them", stacklevel=3)
    return replace(schedule, time_s=np.append(last_s, schedule.time_s), lumi_ifb=np.append(0.0, schedule.lumi_ifb))


def _outlook(model: _Forecaster, known: Block, time_s: FloatArray, lumi_ifb: FloatArray) -> Outlook:
    """Forecast readings at these times; `lumi_ifb[i]` is delivered before `time_s[i]`."""
    assert known.flag is not None
    to_come = np.full((known.n_crystals, time_s.size), np.nan)
    block = replace(
        known,
        time_s=np.concatenate([known.time_s, time_s]),
        lumi_ifb=np.concatenate([known.lumi_ifb[:-1], lumi_ifb, [0.0]]),
        transparency=np.concatenate([known.transparency, to_come], axis=1),
        flag=np.concatenate([known.flag, np.zeros(to_come.shape, dtype=np.uint8)], axis=1),
    )
    return Outlook(block, model.forecast(block, origins=np.array([known.n_readings]), horizon=time_s.size))


def _text(time_s: float) -> str:
    return datetime.fromtimestamp(float(time_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
