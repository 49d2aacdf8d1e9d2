"""Luminosity schedules: what a machine delivers, or plans to deliver, and when."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from calolife.errors import FileFormatError
from calolife.transparency.history import FloatArray

__all__ = ["SCHEDULE_NAMES", "LumiSchedule", "beam_period", "lhc_year", "lumi_between", "named_schedule", "open_schedule", "read_schedule"]

_HOUR_S = 3600.0
_DAY_S = 86400.0

SCHEDULE_NAMES = ("lhc-2018-like", "nominal-week", "stop")

# First reading, first beam, last beam, last reading (month, day) and delivered 1/fb: the calendars follow
# the public CMS readings of crystals 54000 and 54001 (beam from 24 April 2016, 25 May 2017, 17 April 2018;
# 41.4, 51.7 and 67.9 /fb), rounded. A year that is not listed runs like 2018.
_CALENDAR = {
    2016: ((3, 21), (4, 24), (10, 27), (12, 5), 40.0),
    2017: ((3, 1), (5, 25), (11, 26), (12, 1), 50.0),
    2018: ((3, 1), (4, 17), (10, 25), (12, 7), 65.0),
}

# chosen: round numbers that give fills and gaps like those of 2016-2018 (lengths: median 12 h, a tenth
# under 3 h, a tenth over 20-26 h; gaps: median 3-5 h, a tenth over 17-25 h, from the same readings)
_FILL_H = (18.0, 3.0)  # planned length of a fill: mean and spread
_DUMP_H = 22.0  # mean time to an unplanned beam dump
_TURNAROUND_H = (4.0, 6.0)
_FAULT = (0.4, 12.0)  # probability and mean length [h] of a fault that delays the next fill
_BURN_OFF_H = 34.0  # L = L0/(1 + t/34 h)^2: equal beams used up by collisions; 17 h lifetime at the start
_RUN_D = (70.0, 84.0)  # a technical stop every 10 to 12 weeks
_MD_D = (3.0, 5.0)  # machine development: no collisions; before each stop and half way between two
_STOP_D = (6.0, 8.0)
_RAMP_D = 24.0  # intensity ramp-up at the start of the year
_STOP_RAMP_D = 3.0  # and after a stop
_GROWTH = 0.2  # the peak grows by a fifth over the year
_FILL_SCATTER = 0.06


@dataclass(frozen=True, eq=False)
class LumiSchedule:
    """Luminosity delivered in consecutive intervals, at a constant rate within each.

    Parameters
    ----------
    time_s : float array, (interval + 1,) [s]
        Edges of the intervals since 1970-01-01 UTC, strictly increasing.
    lumi_ifb : float array, (interval,) [1/fb]
        Delivered between edge i and edge i + 1.
    label : str

    Raises
    ------
    ValueError
        No interval, edges that do not increase, negative or unknown luminosity.

    Examples
    --------
    >>> day = LumiSchedule([0.0, 64800.0, 86400.0], [0.8, 0.0], "one fill")
    >>> round(day.total_ifb, 3)
    0.8
    """

    time_s: FloatArray
    lumi_ifb: FloatArray
    label: str

    def __post_init__(self) -> None:
        time = np.array(self.time_s, dtype=np.float64)
        lumi = np.array(self.lumi_ifb, dtype=np.float64)
        if time.ndim != 1 or lumi.ndim != 1 or lumi.size < 1 or time.size != lumi.size + 1:
            raise ValueError(f"schedule {self.label!r}: {time.size} edges for {lumi.size} intervals; give one edge more than intervals")
        if not np.isfinite(time).all() or (np.diff(time) <= 0).any():
            raise ValueError(f"schedule {self.label!r}: the edges must be finite and increase")
        if not np.isfinite(lumi).all() or (lumi < 0).any():
            raise ValueError(f"schedule {self.label!r}: lumi_ifb must be finite and >= 0 in every interval")
        for name, array in (("time_s", time), ("lumi_ifb", lumi)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def total_ifb(self) -> float:
        return float(self.lumi_ifb.sum())

    def starting(self, time_s: float) -> LumiSchedule:
        """The same schedule, moved so that its first interval begins at this time."""
        return replace(self, time_s=self.time_s + (time_s - self.time_s[0]))


def lumi_between(schedule: LumiSchedule, time_s: ArrayLike) -> FloatArray:
    """Luminosity between consecutive times.

    Parameters
    ----------
    schedule : LumiSchedule
    time_s : float array, (time,) [s]
        Non-decreasing, within the schedule.

    Returns
    -------
    float array, (time - 1,) [1/fb]

    Raises
    ------
    ValueError
        A time outside the schedule: what is delivered there is not known.

    Notes
    -----
    The rate is constant within an interval of the schedule, so that intervals cut in two add up to the whole.

    Examples
    --------
    >>> plan = LumiSchedule([0.0, 10.0, 20.0], [1.0, 0.0], "plan")
    >>> lumi_between(plan, [0.0, 5.0, 15.0]).tolist()
    [0.5, 0.5]
    """
    t = np.asarray(time_s, dtype=np.float64)
    if (np.diff(t) < 0).any():
        raise ValueError("the times must not decrease; sort them first")
    first, last = schedule.time_s[0], schedule.time_s[-1]
    if t.size and (t[0] < first or t[-1] > last):
        raise ValueError(
            f"schedule {schedule.label!r} covers {_text(first)} to {_text(last)} but {_text(t[0])} to {_text(t[-1])} is needed; "
            "give a longer schedule (luminosity 0 in a stop) or a shorter horizon"
        )
    # From the nearest earlier edge, not from the start of the year: an interval keeps its own precision,
    # and one without luminosity is exactly 0.
    edge = np.clip(np.searchsorted(schedule.time_s, t, side="right") - 1, 0, schedule.lumi_ifb.size - 1)
    part = schedule.lumi_ifb[edge] * (t - schedule.time_s[edge]) / np.diff(schedule.time_s)[edge]
    total = np.concatenate([[0.0], np.cumsum(schedule.lumi_ifb)])[edge]
    inside = edge[1:] == edge[:-1]
    return np.where(inside, np.diff(part), np.maximum(np.diff(total) + np.diff(part), 0.0))


def beam_period(year: int) -> tuple[float, float, float, float]:
    """First reading, first beam, last beam and last reading of a year of `lhc_year` [s]."""
    *days, _ = _CALENDAR.get(year, _CALENDAR[2018])
    first, beam, end, last = (datetime(year, month, day, tzinfo=UTC).timestamp() for month, day in days)
    return first, beam, end, last


def lhc_year(year: int, *, seed: int, delivered_ifb: float | None = None, step_s: float = 1800.0) -> LumiSchedule:
    """One calendar year of an LHC-like machine.

    Parameters
    ----------
    year : int
        2016, 2017 and 2018 have their own calendar and total; another year runs like 2018.
    seed : int
    delivered_ifb : float [1/fb], optional
        Total of the year; 40, 50 and 65 /fb for 2016, 2017 and 2018 when left out.
    step_s : float [s]
        The rate of a fill is constant over steps of this length.

    Returns
    -------
    LumiSchedule
        From 1 January to 31 December, so that consecutive years join.

    Raises
    ------
    ValueError
        A total below 0 or a step that is not positive.

    Notes
    -----
    Fills planned for 18 +- 3 h, cut short by dumps; turnarounds of 4-6 h and faults; intensity ramp-up;
    machine development and technical stops every 10-12 weeks; no luminosity in winter. Within a fill
    L = L0/(1 + t/34 h)^2, the law of equal beams lost to collisions alone. Not modelled: levelling, ion
    runs, changes of filling scheme. The same year and seed give the same schedule.

    Examples
    --------
    >>> round(lhc_year(2017, seed=1).total_ifb, 6)
    50.0
    """
    total_ifb = _CALENDAR.get(year, _CALENDAR[2018])[4] if delivered_ifb is None else float(delivered_ifb)
    if not (np.isfinite(total_ifb) and total_ifb >= 0):
        raise ValueError(f"delivered_ifb = {delivered_ifb} must be >= 0")
    if not step_s > 0:
        raise ValueError(f"step_s = {step_s} must be > 0")
    rng = np.random.default_rng([seed, year])
    _, beam_s, end_s, _ = beam_period(year)
    edges, lumi = [datetime(year, 1, 1, tzinfo=UTC).timestamp()], list[float]()
    for run_s, stop_s in _running(rng, beam_s, end_s):
        t = run_s
        while t < stop_s:
            t += _HOUR_S * rng.uniform(*_TURNAROUND_H)
            if rng.random() < _FAULT[0]:
                t += _HOUR_S * rng.exponential(_FAULT[1])
            length_s = _HOUR_S * min(max(rng.normal(*_FILL_H), 6.0), rng.exponential(_DUMP_H))
            length_s = round(min(length_s, stop_s - t))
            t = float(round(t))
            if length_s < 0.25 * _HOUR_S:
                continue
            ramp = min(1.0, (0.1 + (t - beam_s) / _DAY_S / _RAMP_D) ** 2, 0.5 + 0.5 * (t - run_s) / _DAY_S / _STOP_RAMP_D)
            peak = ramp * (1 + _GROWTH * (t - beam_s) / (end_s - beam_s)) * rng.lognormal(0.0, _FILL_SCATTER)
            cut = np.append(np.arange(0.0, length_s, step_s), length_s)
            delivered = cut / (1 + cut / (_BURN_OFF_H * _HOUR_S))
            edges.append(t)
            lumi.append(0.0)
            edges.extend((t + cut[1:]).tolist())
            lumi.extend((peak * np.diff(delivered)).tolist())
            t += length_s
    edges.append(datetime(year + 1, 1, 1, tzinfo=UTC).timestamp())
    lumi.append(0.0)
    scale = total_ifb / sum(lumi)
    return LumiSchedule(np.array(edges), scale * np.array(lumi), f"LHC-like {year}")


def _running(rng: np.random.Generator, beam_s: float, end_s: float) -> list[tuple[float, float]]:
    """Start and end of each period of physics between machine development and technical stops."""
    periods, t = [], beam_s
    while t < end_s:
        run_s = _DAY_S * rng.uniform(*_RUN_D)
        middle_s = t + run_s * rng.uniform(0.4, 0.6)
        md_s = _DAY_S * rng.uniform(*_MD_D)
        stop_s = _DAY_S * (rng.uniform(*_MD_D) + rng.uniform(*_STOP_D))
        periods += [(t, middle_s), (middle_s + md_s, t + run_s)]
        t += run_s + stop_s
    return [(a, min(b, end_s)) for a, b in periods if a < end_s]


def named_schedule(name: str, *, start_s: float | None = None) -> LumiSchedule:
    """A schedule that needs no file.

    Parameters
    ----------
    name : {"lhc-2018-like", "nominal-week", "stop"}
        A year as 2018; a week of full fills, 18 h with 5 h between them, 0.83 /fb each; a year without beam.
    start_s : float [s], optional
        Time at which it begins; 1 January 2018 when left out. "lhc-2018-like" begins with its first fills,
        not with the winter stop, when it is moved.

    Raises
    ------
    ValueError
        Another name.

    Examples
    --------
    >>> named_schedule("stop").total_ifb
    0.0
    """
    origin = datetime(2018, 1, 1, tzinfo=UTC).timestamp()
    if name == "lhc-2018-like":
        schedule = replace(lhc_year(2018, seed=2018), label=name)
        if start_s is not None:
            first = int(np.searchsorted(schedule.time_s, beam_period(2018)[1]))
            schedule = replace(schedule, time_s=schedule.time_s[first:], lumi_ifb=schedule.lumi_ifb[first:])
    elif name == "nominal-week":
        cut = np.arange(0.0, 18.25, 0.5)
        delivered = 1.7 / 24 * cut / (1 + cut / _BURN_OFF_H)  # chosen: 1.7 /fb a day at the start, a good fill of 2018
        one = np.append(np.diff(delivered), 0.0)
        hours = (23.0 * np.arange(7)[:, None] + np.append(cut[:-1], 18.0)).ravel()
        schedule = LumiSchedule(origin + _HOUR_S * np.append(hours, 168.0), np.tile(one, 7), name)
    elif name == "stop":
        schedule = LumiSchedule(origin + _DAY_S * np.arange(0.0, 366.0), np.zeros(365), name)
    else:
        raise ValueError(f"no schedule is called {name!r}; allowed: {', '.join(SCHEDULE_NAMES)}, or give a CSV file")
    return schedule if start_s is None else schedule.starting(start_s)


def open_schedule(source: str | Path, *, start_s: float | None = None) -> LumiSchedule:
    """A named schedule, moved to begin at ``start_s``, or a CSV file as it is.

    Raises
    ------
    ValueError
        Neither a known name nor an existing file.
    FileFormatError
        A file that is not a schedule; see `read_schedule`.
    """
    if str(source) in SCHEDULE_NAMES:
        return named_schedule(str(source), start_s=start_s)
    if not Path(source).exists():
        raise ValueError(f"{source} is neither a file nor a named schedule; named: {', '.join(SCHEDULE_NAMES)}")
    return read_schedule(Path(source))


def read_schedule(path: Path) -> LumiSchedule:
    """Planned or delivered luminosity from a CSV file.

    Parameters
    ----------
    path : Path
        Columns ``time`` (START of the interval, ISO 8601; UTC unless it names an offset) and ``lumi_ifb``
        (luminosity of the interval, 1/fb; 0 in a stop). Other columns are ignored. An interval ends where
        the next one starts; the last is taken as long as the one before it.

    Raises
    ------
    FileFormatError
        Missing columns, no or one interval, a time that cannot be read or does not increase, luminosity
        that is missing, not a number or negative. The message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            if not any(header):
                raise FileFormatError(f"{path}: empty; a schedule has the columns time and lumi_ifb")
            if "time" not in header:
                raise FileFormatError(f"{path}: no column time (has {', '.join(header)}); give the start of each interval in ISO 8601, UTC")
            if "lumi_ifb" not in header:
                raise FileFormatError(
                    f"{path}: no column lumi_ifb (has {', '.join(header)}); a forecast needs the luminosity of each future interval "
                    "in 1/fb, 0 in a stop"
                )
            at_time, at_lumi = header.index("time"), header.index("lumi_ifb")
            time, lumi = list[float](), list[float]()
            for row in rows:
                if not any(field.strip() for field in row):
                    continue
                where = f"{path}, line {rows.line_num}"
                if len(row) <= max(at_time, at_lumi):
                    raise FileFormatError(f"{where}: {len(row)} fields for {len(header)} columns; the file may be cut short")
                time.append(_seconds(row[at_time].strip(), where))
                lumi.append(_lumi(row[at_lumi].strip(), where))
                if len(time) > 1 and time[-1] <= time[-2]:
                    raise FileFormatError(f"{where}: time {row[at_time].strip()} is not after the line before; sort the intervals")
    except UnicodeDecodeError:
        raise FileFormatError(f"{path}: not a text file; give a CSV with the columns time and lumi_ifb") from None
    if len(time) < 2:
        raise FileFormatError(f"{path}: {len(time)} intervals; at least two are needed, the next start ends an interval")
    return LumiSchedule(np.append(time, 2 * time[-1] - time[-2]), np.array(lumi), path.name)


def _seconds(text: str, where: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise FileFormatError(f"{where}: time {text!r} cannot be read; write it as 2018-05-01T06:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _lumi(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise FileFormatError(f"{where}: lumi_ifb {text!r} is not a number; give 1/fb per interval, 0 in a stop") from None
    if not np.isfinite(value):
        raise FileFormatError(f"{where}: lumi_ifb is {text!r}; give 1/fb per interval, 0 in a stop")
    if value < 0:
        raise FileFormatError(f"{where}: lumi_ifb = {text} must be >= 0")
    return value


def _text(time_s: float) -> str:
    return datetime.fromtimestamp(float(time_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
