"""Luminosity schedules: totals, splitting, files."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calolife.errors import FileFormatError
from calolife.transparency.schedule import (
    SCHEDULE_NAMES,
    LumiSchedule,
    beam_period,
    lhc_year,
    lumi_between,
    named_schedule,
    open_schedule,
    read_schedule,
)

DAY_S = 86400.0


def edges_and_lumi():
    return st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.lists(st.floats(60.0, 1e6), min_size=n, max_size=n), st.lists(st.floats(0.0, 5.0), min_size=n, max_size=n))
    )


@settings(deadline=None, max_examples=60)
@given(edges_and_lumi(), st.lists(st.floats(0.0, 1.0), max_size=20))
def test_splitting_an_interval_changes_no_luminosity(plan, cut):
    step, lumi = plan
    time_s = 1.5e9 + np.concatenate([[0.0], np.cumsum(step)])
    schedule = LumiSchedule(time_s, lumi, "plan")
    ends = np.array([time_s[0], time_s[-1]])
    fine = np.sort(np.clip(np.concatenate([ends, time_s[0] + np.array(cut) * (time_s[-1] - time_s[0])]), *ends))
    # times near 1.5e9 s are exact to 2e-7 s and steps are 60 s or more: 4e-9 of an interval for each of the two ends
    np.testing.assert_allclose(lumi_between(schedule, fine).sum(), lumi_between(schedule, ends)[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(lumi_between(schedule, ends)[0], sum(lumi), rtol=1e-12)


def test_a_schedule_on_its_own_edges_gives_itself_back():
    schedule = lhc_year(2018, seed=3)
    # the running total reaches 65 /fb: rounding at 65 * 2e-16 per step of the sum
    np.testing.assert_allclose(lumi_between(schedule, schedule.time_s), schedule.lumi_ifb, rtol=0, atol=1e-13)


def test_an_interval_without_beam_has_exactly_no_luminosity():
    schedule = lhc_year(2017, seed=3)
    _, beam_s, end_s, _ = beam_period(2017)
    quiet = np.concatenate([np.linspace(schedule.time_s[0], beam_s, 50)])
    assert (lumi_between(schedule, quiet) == 0.0).all()
    assert (lumi_between(schedule, np.linspace(end_s, schedule.time_s[-1], 50)) == 0.0).all()


@pytest.mark.parametrize(("year", "total_ifb"), [(2016, 40.0), (2017, 50.0), (2018, 65.0), (2022, 65.0)])
def test_a_year_delivers_its_total(year, total_ifb):
    assert lhc_year(year, seed=8).total_ifb == pytest.approx(total_ifb, rel=1e-12)


def test_a_year_can_be_asked_for_another_total():
    assert lhc_year(2018, seed=8, delivered_ifb=12.5).total_ifb == pytest.approx(12.5, rel=1e-12)


def _fills(schedule):
    is_beam = np.concatenate([[0], (schedule.lumi_ifb > 0).astype(int), [0]])
    start, stop = np.flatnonzero(np.diff(is_beam) == 1), np.flatnonzero(np.diff(is_beam) == -1)
    return schedule.time_s[start], schedule.time_s[stop]


def test_luminosity_decays_within_every_fill():
    schedule = lhc_year(2016, seed=2)
    rate = schedule.lumi_ifb / np.diff(schedule.time_s)
    inside = (rate[:-1] > 0) & (rate[1:] > 0)
    # at most 6 h of turnaround separate fills, so neighbours with luminosity are of one fill
    assert (rate[1:][inside] < rate[:-1][inside]).all()


def test_fills_last_about_18_hours_and_turnarounds_at_least_4():
    lengths, gaps = [], []
    for seed in range(5):
        start, stop = _fills(lhc_year(2018, seed=seed))
        lengths.append(stop - start)
        gaps.append(start[1:] - stop[:-1])
    length_h, gap_h = np.concatenate(lengths) / 3600, np.concatenate(gaps) / 3600
    # full fills are 18 +- 3 h; dumps (mean 22 h) leave exp(-18/22) = 44 % of them full
    assert 15 < np.quantile(length_h, 0.75) < 20
    assert length_h.max() < 18 + 5 * 3
    assert gap_h.min() >= 4.0 - 2 / 3600  # whole seconds


def test_there_are_technical_stops_of_a_week_and_no_beam_in_winter():
    schedule = lhc_year(2018, seed=4)
    start, stop = _fills(schedule)
    gap_d = (start[1:] - stop[:-1]) / DAY_S
    # six months of beam hold two or three runs of 10-12 weeks
    assert 1 <= (gap_d > 7).sum() <= 3
    _, beam_s, end_s, _ = beam_period(2018)
    assert start[0] >= beam_s
    assert stop[-1] <= end_s


def test_intensity_ramps_up():
    schedule = lhc_year(2018, seed=4)
    _, beam_s, *_ = beam_period(2018)
    week = lumi_between(schedule, beam_s + 7 * DAY_S * np.arange(6))
    assert week[0] < 0.3 * week[4]


def test_the_same_seed_gives_the_same_year_and_another_does_not():
    one, same, other = lhc_year(2018, seed=1), lhc_year(2018, seed=1), lhc_year(2018, seed=2)
    np.testing.assert_array_equal(one.time_s, same.time_s)
    np.testing.assert_array_equal(one.lumi_ifb, same.lumi_ifb)
    assert one.time_s.size != other.time_s.size or not np.array_equal(one.time_s, other.time_s)


def test_consecutive_years_join():
    assert lhc_year(2016, seed=1).time_s[-1] == lhc_year(2017, seed=1).time_s[0]


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_a_named_schedule_begins_when_asked(name):
    start_s = datetime(2018, 7, 3, 11, tzinfo=UTC).timestamp()
    schedule = open_schedule(name, start_s=start_s)
    assert schedule.time_s[0] == start_s
    assert schedule.label == name


def test_a_nominal_week_lasts_a_week_and_a_stop_delivers_nothing():
    week = named_schedule("nominal-week")
    assert week.time_s[-1] - week.time_s[0] == 7 * DAY_S
    # seven fills of 18 h that start at 1.7 /fb a day: 7 * 1.7 * .75 / (1 + 18/34)
    assert week.total_ifb == pytest.approx(7 * 1.7 * 0.75 / (1 + 18 / 34), rel=1e-12)
    assert named_schedule("stop").total_ifb == 0.0


def test_a_file_gives_the_luminosity_of_each_interval(tmp_path: Path):
    path = tmp_path / "plan.csv"
    path.write_text("note,time,lumi_ifb\na,2018-05-01T00:00:00Z,0.5\nb,2018-05-01 06:00:00,0\nc,2018-05-01T12:00:00+02:00,0.25\n")
    schedule = read_schedule(path)
    hours = (schedule.time_s - datetime(2018, 5, 1, tzinfo=UTC).timestamp()) / 3600
    assert hours.tolist() == [0, 6, 10, 14]  # the last interval is as long as the one before
    assert schedule.lumi_ifb.tolist() == [0.5, 0.0, 0.25]


TWO = "2018-05-01T00:00:00Z,1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; a schedule has the columns time and lumi_ifb"),
        ("time,lumi_ifb\n", "0 intervals; at least two are needed"),
        ("time,lumi_ifb\n" + TWO, "1 intervals; at least two are needed"),
        ("when,lumi_ifb\n" + TWO, "no column time"),
        ("time,lumi\n" + TWO, "no column lumi_ifb .*a forecast needs the luminosity of each future interval"),
        ("time,lumi_ifb\n" + TWO + "2018-05-02T00:00:00Z,-0.1\n", r"line 3: lumi_ifb = -0.1 must be >= 0"),
        ("time,lumi_ifb\n" + TWO + "2018-05-02T00:00:00Z,\n", "line 3: lumi_ifb '' is not a number"),
        ("time,lumi_ifb\n" + TWO + "2018-05-02T00:00:00Z,nan\n", "line 3: lumi_ifb is 'nan'"),
        ("time,lumi_ifb\n" + TWO + "2018-04-30T00:00:00Z,1\n", "line 3: time 2018-04-30T00:00:00Z is not after the line before"),
        ("time,lumi_ifb\n" + TWO + TWO, "line 3: .* is not after the line before"),
        ("time,lumi_ifb\n" + TWO + "next Tuesday,1\n", "line 3: time 'next Tuesday' cannot be read"),
        ("time,lumi_ifb\n" + TWO + "2018-05-02T00:00:00Z\n", "line 3: 1 fields for 2 columns"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "plan.csv"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_schedule(path)
    assert "\n" not in str(caught.value)


def test_a_binary_file_is_refused(tmp_path: Path):
    path = tmp_path / "plan.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(FileFormatError, match="not a text file"):
        read_schedule(path)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"neither a file nor a named schedule; named: lhc-2018-like, nominal-week, stop"):
        open_schedule("next-year")


def test_times_beyond_the_schedule_are_refused():
    week = named_schedule("nominal-week")
    with pytest.raises(ValueError, match=r"covers 2018-01-01T00:00:00Z to 2018-01-08T00:00:00Z but .* is needed"):
        lumi_between(week, [week.time_s[0], week.time_s[-1] + 1])


@pytest.mark.parametrize(
    ("time_s", "lumi", "message"),
    [
        ([0.0, 1.0], [1.0, 1.0], "2 edges for 2 intervals"),
        ([0.0, 0.0], [1.0], "increase"),
        ([0.0, 1.0], [-1.0], ">= 0"),
        ([0.0, 1.0], [np.nan], ">= 0"),
    ],
)
def test_an_impossible_schedule_is_refused(time_s, lumi, message):
    with pytest.raises(ValueError, match=message):
        LumiSchedule(time_s, lumi, "plan")
