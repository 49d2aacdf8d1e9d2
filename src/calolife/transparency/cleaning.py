"""Readings of one ring and year put in order: duplicates, conflicts, luminosity that steps back, odd states flagged."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calolife.storage import Columns
from calolife.transparency.history import FLAG_LASER_FLIP, FLAG_PRE_BEAM_STEP, FLAG_REORDERED

__all__ = ["Cleaned", "InOrder", "clean_readings", "put_in_order"]

INV_UB_PER_INV_FB = 1e9
_CHUNK_ROWS = 1 << 18

_SAME_VALUE = 1e-6  # chosen: above the rounding of a printed float32, 100 times below the noise of a reading

# The two lasers of 13-16 June 2017: chosen around the measured steps of 1.9 to 2.6 %.
_FLIP_MIN, _FLIP_MAX = 0.015, 0.032
_FLIP_MISMATCH = 0.006  # chosen: a step and its way back differ by up to 0.4 % there
_FLIP_STAY_US = 24 * 3_600_000_000  # chosen: the longest stay on the other state was 8 h
_FLIP_GAP_US = 12 * 3_600_000_000  # chosen: over a longer gap the crystal itself may have changed by as much
_FLIP_SPAN_US, _FLIP_TIMES = 4 * 86_400_000_000, 4  # chosen: a single excursion is no flip; June 2017 has 11 in 3 days

# The steps of +0.4 % before the beam of 2017 and 2018: chosen to be above the scatter of a mean of 12 readings there.
_STEP_MIN, _STEP_READINGS, _STEP_SIGMA = 0.003, 12, 4.0


@dataclass(frozen=True, eq=False)
class Cleaned:
    """Readings in order of crystal, then time, and what was left out.

    Parameters
    ----------
    kept : int array, (reading,)
        Index into the input, in the new order.
    lumi_ifb : float array, (reading,) [1/fb]
        Delivered until the crystal's next reading; 0 after its last one.
    flag : uint8 array, (reading,)
    duplicate, conflict, stepped_back : int array
        Indices into the input that were left out: the crystal was already read at that time with the same values, or
        with others, or the luminosity counter is below an earlier one.
    n_reordered : int
        Readings newly found out of time order.
    """

    kept: NDArray[np.int64]
    lumi_ifb: NDArray[np.float64]
    flag: NDArray[np.uint8]
    duplicate: NDArray[np.int64]
    conflict: NDArray[np.int64]
    stepped_back: NDArray[np.int64]
    n_reordered: int


def clean_readings(
    xtal_id: NDArray[np.int32],
    time_us: NDArray[np.int64],
    *,
    transparency: NDArray[np.float64],
    counter_inv_ub: NDArray[np.float64],
    source: NDArray[np.int32],
    flag: NDArray[np.uint8],
) -> Cleaned:
    """Order the readings of one ring and year, and say what does not fit.

    Parameters
    ----------
    xtal_id, time_us : int array, (reading,)
        In the order they were read from their files.
    transparency : float array, (reading,)
    counter_inv_ub : float array, (reading,) [1/ub]
        Luminosity delivered since the start of the year.
    source : int32 array, (reading,)
        File of each reading; order is judged within a file.
    flag : uint8 array, (reading,)
        What is already known; FLAG_REORDERED is kept, the others are found again.

    Returns
    -------
    Cleaned

    Notes
    -----
    Of readings at the same time the one read first stays, also where another gives other values. Where the counter
    steps back, the fewest readings are left out that make it never fall: the release calls its counter approximate,
    and one wrong value, high or low, must not cost the readings around it. Luminosity is the difference of the counter
    between the readings that stay, so none is lost with a reading that does not.
    """
    n = xtal_id.size
    since = time_us - (time_us.min() if n else 0)
    bits = max(int(since.max()).bit_length(), 1) if n else 1
    flag = flag & np.uint8(FLAG_REORDERED)

    grouped, key = _grouped(xtal_id, source)
    group_start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if n else np.zeros(0, np.int64)
    t = since if grouped is None else since[grouped]
    group = np.zeros(n, dtype=np.int64)
    group[group_start[1:]] = 1
    lifted = t + (np.cumsum(group) << bits)
    late = lifted < np.maximum.accumulate(lifted) if n else np.zeros(0, bool)
    late_at = np.flatnonzero(late) if grouped is None else grouped[late]
    flag[late_at] |= FLAG_REORDERED

    when = (_ranks(xtal_id) << bits) + since
    order = np.arange(n) if (when[1:] >= when[:-1]).all() else np.argsort(when, kind="stable")
    when = when[order]
    is_duplicate = np.r_[False, when[1:] == when[:-1]] if n else np.zeros(0, bool)
    first_at_time = order[np.maximum.accumulate(np.where(is_duplicate, 0, np.arange(n)))[is_duplicate]]
    again, order = order[is_duplicate], order[~is_duplicate]
    is_same = np.ones(again.size, dtype=bool)
    for value in (transparency, counter_inv_ub):
        is_same &= np.isclose(value[again], value[first_at_time], rtol=_SAME_VALUE, atol=0.0)
    duplicate, conflict = np.sort(again[is_same]), np.sort(again[~is_same])

    back = _steps_back(xtal_id[order], counter_inv_ub[order])
    stepped_back, kept = np.sort(order[back]), order[~back]

    ids, counter, times = xtal_id[kept], counter_inv_ub[kept], time_us[kept]
    lumi = np.zeros(kept.size)
    same = ids[1:] == ids[:-1]
    lumi[:-1] = np.where(same, np.diff(counter), 0.0) / INV_UB_PER_INV_FB
    flags = flag[kept]
    log_t = np.log(transparency[kept])
    start = np.flatnonzero(np.r_[True, ~same]) if kept.size else np.zeros(0, np.int64)
    edges = np.r_[start, kept.size]
    for at in _laser_flips(edges, times, log_t):
        flags[at] |= FLAG_LASER_FLIP
    for index in _pre_beam_steps(edges, counter, log_t):
        flags[index] |= FLAG_PRE_BEAM_STEP
    return Cleaned(kept, lumi, flags, duplicate, conflict, stepped_back, int(late.sum()))


@dataclass(frozen=True, eq=False)
class InOrder:
    """A ring and year in order, and the new rows that did not fit.

    Parameters
    ----------
    columns : Columns
        What stays.
    rows : structured array, (row,)
        The new rows, by crystal.
    source : int32 array, (row,)
        File of each.
    duplicate, conflict, stepped_back : int array
        Indices into rows of what was left out; -1 for a reading stored earlier.
    """

    columns: Columns
    rows: NDArray[Any]
    source: NDArray[np.int32]
    duplicate: NDArray[np.int64]
    conflict: NDArray[np.int64]
    stepped_back: NDArray[np.int64]


def put_in_order(stored: Columns | None, parts: list[tuple[int, NDArray[Any]]]) -> InOrder:
    """Join new rows to the stored readings of their ring and year, and clean them all.

    Parameters
    ----------
    stored : Columns, or None
        Readings of an earlier call.
    parts : list of (int, structured array)
        Number of the file, and its rows: xtal_id, iphi, time_us, transparency, counter.

    Returns
    -------
    InOrder
    """
    rows = parts[0][1] if len(parts) == 1 else np.concatenate([p for _, p in parts])
    source = np.repeat(np.array([s for s, _ in parts], dtype=np.int32), [p.size for _, p in parts])
    xtal_id = np.ascontiguousarray(rows["xtal_id"])
    if (xtal_id[1:] < xtal_id[:-1]).any():
        order = np.argsort(xtal_id, kind="stable")
        rows, source, xtal_id = rows[order], source[order], xtal_id[order]
    starts = np.flatnonzero(np.r_[True, xtal_id[1:] != xtal_id[:-1]])
    # whole crystals at a time: arrays this small stay in the cache
    firsts = starts[np.r_[True, starts[1:] // _CHUNK_ROWS != starts[:-1] // _CHUNK_ROWS]].tolist()
    pieces: list[Columns] = []
    lost: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    n_old_done = 0
    for first, last in pairwise([*firsts, rows.size]):
        n_old = 0
        old = None
        if stored is not None:
            end = stored.xtal_id.size if last == rows.size else int(np.searchsorted(stored.xtal_id, xtal_id[last], "left"))
            old = slice(n_old_done, end)
            n_old, n_old_done = end - n_old_done, end
        piece, cleaned = _clean_piece(stored, old, rows=rows[first:last], source=source[first:last])
        pieces.append(piece)
        for into, index in zip(lost, (cleaned.duplicate, cleaned.conflict, cleaned.stepped_back), strict=True):
            into.append(np.where(index < n_old, -1, index - n_old + first))
    names = [f.name for f in fields(Columns)]
    columns = pieces[0] if len(pieces) == 1 else Columns(*(np.concatenate([getattr(p, n) for p in pieces]) for n in names))
    duplicate, conflict, stepped_back = (np.concatenate(x) for x in lost)
    return InOrder(columns, rows, source, duplicate, conflict, stepped_back)


def _clean_piece(stored: Columns | None, old: slice | None, *, rows: NDArray[Any], source: NDArray[np.int32]) -> tuple[Columns, Cleaned]:
    def joined(name: str, new: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(new) if stored is None else np.concatenate([getattr(stored, name)[old], new])

    xtal_id, iphi, time_us = joined("xtal_id", rows["xtal_id"]), joined("iphi", rows["iphi"]), joined("time_us", rows["time_us"])
    transparency, counter = joined("transparency", rows["transparency"]), joined("counter_inv_ub", rows["counter"])
    flag = joined("flag", np.zeros(rows.size, dtype=np.uint8))
    source = np.r_[np.full(xtal_id.size - rows.size, -1, dtype=np.int32), source]
    cleaned = clean_readings(xtal_id, time_us, transparency=transparency, counter_inv_ub=counter, source=source, flag=flag)
    k = cleaned.kept
    return Columns(xtal_id[k], iphi[k], time_us[k], transparency[k], cleaned.lumi_ifb, counter[k], cleaned.flag), cleaned


def _ranks(xtal_id: NDArray[np.int32]) -> NDArray[np.int64]:
    # a small number per crystal, so that it fits above the time in one int64
    low = int(xtal_id.min()) if xtal_id.size else 0
    return (xtal_id - low).astype(np.int64)


def _grouped(xtal_id: NDArray[np.int32], source: NDArray[np.int32]) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    key = (source.astype(np.int64) << 20) + xtal_id
    changes = np.flatnonzero(key[1:] != key[:-1])
    if np.unique(key[np.r_[changes, key.size - 1]] if key.size else key).size == changes.size + (key.size > 0):
        return None, key
    order = np.argsort(key, kind="stable")
    return order, key[order]


def _steps_back(xtal_id: NDArray[np.int32], counter: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Fewest readings to leave out so that the counter of every crystal never falls."""
    back = np.zeros(counter.size, dtype=bool)
    falls = np.flatnonzero((counter[1:] < counter[:-1]) & (xtal_id[1:] == xtal_id[:-1]))
    known: dict[bytes, NDArray[np.bool_]] = {}
    for crystal in np.unique(xtal_id[falls]):
        first, last = np.searchsorted(xtal_id, [crystal, crystal + 1])
        series = counter[first:last]
        code = series.tobytes()
        if code not in known:
            known[code] = ~_longest_rising(series)
        back[first:last] = known[code]
    return back


def _longest_rising(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    # patience sorting from the end, so that of two readings that contradict each other the later one goes
    tails: list[float] = []
    tail_at: list[int] = []
    previous = np.full(values.size, -1)
    for i in range(values.size - 1, -1, -1):
        v = -values[i]
        pile = bisect_right(tails, v)
        previous[i] = tail_at[pile - 1] if pile else -1
        tails[pile : pile + 1] = [v]
        tail_at[pile : pile + 1] = [i]
    keep = np.zeros(values.size, dtype=bool)
    i = tail_at[-1]
    while i >= 0:
        keep[i] = True
        i = int(previous[i])
    return keep


def _laser_flips(edges: NDArray[np.int64], time_us: NDArray[np.int64], log_t: NDArray[np.float64]) -> list[slice]:
    """Stays on the second of two states that a crystal's response flips between."""
    step, gap = np.diff(log_t), np.diff(time_us)
    is_jump = (np.abs(step) > _FLIP_MIN) & (np.abs(step) < _FLIP_MAX) & (gap > 0) & (gap < _FLIP_GAP_US)
    is_jump[edges[1:-1] - 1] = False
    jumps = np.flatnonzero(is_jump)
    found: list[slice] = []
    bounds = np.searchsorted(jumps, edges)
    for first, last in pairwise(bounds):
        if last - first < 2 * _FLIP_TIMES:
            continue
        at = jumps[first:last]
        stays: list[tuple[int, int]] = []
        k = 0
        while k < at.size - 1:
            a, b = int(at[k]), int(at[k + 1])
            if abs(step[a] + step[b]) < _FLIP_MISMATCH and time_us[b] - time_us[a + 1] < _FLIP_STAY_US:
                stays.append((a + 1, b + 1))
                k += 2
            else:
                k += 1
        begun = np.array([time_us[a] for a, _ in stays], dtype=np.int64)
        near = np.searchsorted(begun, begun + _FLIP_SPAN_US, "right") - np.searchsorted(begun, begun - _FLIP_SPAN_US, "left")
        found += [slice(a, b) for (a, b), n_near in zip(stays, near, strict=True) if n_near >= _FLIP_TIMES]
    return found


def _pre_beam_steps(edges: NDArray[np.int64], counter: NDArray[np.float64], log_t: NDArray[np.float64]) -> list[int]:
    """First readings after a step of the response before the first luminosity of the year."""
    w = _STEP_READINGS
    found = []
    for first, last in pairwise(edges):
        # 1 /nb: what the counter moves by before collisions is noise of the luminosity monitors
        n = int(np.searchsorted(counter[first:last], counter[first] + 1e3, "right"))
        if n < 2 * w or n == last - first:
            continue
        y = log_t[first : first + n]
        total, square = np.cumsum(np.r_[0.0, y - y[0]]), np.cumsum(np.r_[0.0, (y - y[0]) ** 2])
        middle = np.arange(w, n - w + 1)
        left, right = (total[middle] - total[middle - w]) / w, (total[middle + w] - total[middle]) / w
        step = right - left
        if np.abs(step).max() < _STEP_MIN:
            continue
        scatter = (square[middle + w] - square[middle - w]) / w - left**2 - right**2
        clear = np.abs(step) / np.sqrt(np.maximum(scatter, 1e-12) / w)
        score = np.where((np.abs(step) > _STEP_MIN) & (clear > _STEP_SIGMA), clear, 0.0)
        while (best := int(score.argmax())) >= 0 and score[best] > 0:
            at = int(middle[best])
            # one bad reading moves a mean but not a median
            if abs(np.median(y[at : at + w]) - np.median(y[at - w : at])) > _STEP_MIN:
                found.append(int(first) + at)
            score[max(0, best - w) : best + w + 1] = 0.0
    return found
