"""The daily job: only the past is known, the plan is used as given, the re-score is of the same forecast."""

import numpy as np
import pytest

from calolife.transparency.baselines import Ridge, fit_persistence, fit_ridge
from calolife.transparency.daily import forecast_ahead, rescore_outlook
from calolife.transparency.history import Block, TransparencyHistory
from calolife.transparency.schedule import LumiSchedule

DAY_S = 86400.0


@pytest.fixture(scope="module")
def ridge(toy_history: TransparencyHistory) -> Ridge:
    return fit_ridge(toy_history.select(years=[2016]))


def day_of_2017(history: TransparencyHistory, day: float) -> float:
    return float(next(history.of_year(2017)).time_s[0] + day * DAY_S)


def plan(start_s: float, *, days: float, ifb_per_day: float) -> LumiSchedule:
    return LumiSchedule(np.array([start_s - DAY_S, start_s + days * DAY_S]), np.array([(days + 1) * ifb_per_day]), "plan")


def test_the_luminosity_given_is_the_luminosity_planned(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    now_s = day_of_2017(toy_history, 30)
    (ahead,) = forecast_ahead(ridge, toy_history, schedule=plan(now_s, days=10, ifb_per_day=0.4), horizon_s=10 * DAY_S, from_s=now_s)
    # ten days of hourly readings, the last known one exactly now
    assert ahead.lumi_ifb.sum() == pytest.approx(4.0, rel=1e-9)
    assert ahead.time_s[0] == now_s + 3600.0
    assert ahead.time_s[-1] == now_s + 10 * DAY_S


def test_more_luminosity_means_less_transparency(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    now_s = day_of_2017(toy_history, 30)
    low, high = (
        forecast_ahead(ridge, toy_history, schedule=plan(now_s, days=10, ifb_per_day=rate), horizon_s=10 * DAY_S, from_s=now_s)[0]
        for rate in (0.1, 0.5)
    )
    assert (high.forecast.transparency[:, 0, -1] < low.forecast.transparency[:, 0, -1]).all()


def test_readings_after_now_move_no_forecast(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    now_s = day_of_2017(toy_history, 30)
    schedule = plan(now_s, days=5, ifb_per_day=0.4)
    changed = []
    for block in toy_history.blocks:
        later = (block.year == 2017) & (block.time_s > now_s)
        changed.append(
            Block(
                block.year, block.xtal_id, block.ieta, block.iphi, block.time_s, np.where(later, 0.0, block.lumi_ifb),
                np.where(later, 0.5, block.transparency),
            )
        )  # fmt: skip
    one, two = (
        forecast_ahead(ridge, h, schedule=schedule, horizon_s=5 * DAY_S, from_s=now_s)[0]
        for h in (toy_history, TransparencyHistory(tuple(changed)))
    )
    assert (one.forecast.transparency == two.forecast.transparency).all()


def test_now_is_the_last_reading_when_left_out(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    last_s = float(next(toy_history.of_year(2017)).time_s[-1])
    (ahead,) = forecast_ahead(ridge, toy_history, schedule=plan(last_s, days=2, ifb_per_day=0.0), horizon_s=2 * DAY_S)
    assert ahead.last_s == last_s


def test_a_plan_that_starts_late_is_said_to(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    now_s = day_of_2017(toy_history, 30)
    late = LumiSchedule(np.array([now_s + 3 * 3600.0, now_s + 2 * DAY_S]), np.array([0.5]), "late")
    with pytest.warns(UserWarning, match="starts after the last reading: none is assumed between"):
        (ahead,) = forecast_ahead(ridge, toy_history, schedule=late, horizon_s=DAY_S, from_s=now_s)
    assert ahead.lumi_ifb[:3].tolist() == [0.0, 0.0, 0.0]


def test_a_plan_that_ends_early_is_refused(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    now_s = day_of_2017(toy_history, 30)
    with pytest.raises(ValueError, match="give a longer schedule"):
        forecast_ahead(ridge, toy_history, schedule=plan(now_s, days=5, ifb_per_day=0.4), horizon_s=6 * DAY_S, from_s=now_s)


def test_crystals_with_times_of_their_own_are_forecast_apart(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    block = next(toy_history.of_year(2017))
    moved = Block(2017, [54359], [66], [360], block.time_s + 120.0, block.lumi_ifb, block.transparency[:1])
    both = TransparencyHistory((block, moved))
    now_s = day_of_2017(toy_history, 30)
    ahead = forecast_ahead(ridge, both, schedule=plan(now_s, days=3, ifb_per_day=0.4), horizon_s=3 * DAY_S, from_s=now_s)
    assert [o.block.xtal_id.tolist() for o in ahead] == [[54000, 54001, 54002], [54359]]
    assert ahead[1].last_s == now_s - 3600.0 + 120.0


def test_a_silent_crystal_is_named_and_the_rest_forecast(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    block = next(toy_history.of_year(2017))
    silent = Block(2017, [54359], [66], [360], block.time_s[:300], block.lumi_ifb[:300], block.transparency[:1, :300])
    both = TransparencyHistory((silent, block))
    now_s = day_of_2017(toy_history, 30)
    schedule = plan(now_s, days=3, ifb_per_day=0.4)
    with pytest.warns(UserWarning, match="left out: crystal 54359"):
        ahead = forecast_ahead(ridge, both, schedule=schedule, horizon_s=3 * DAY_S, from_s=now_s)
    alone = forecast_ahead(ridge, toy_history, schedule=schedule, horizon_s=3 * DAY_S, from_s=now_s)
    assert [o.block.xtal_id.tolist() for o in ahead] == [[54000, 54001, 54002]]
    assert (ahead[0].forecast.transparency == alone[0].forecast.transparency).all()
    with pytest.warns(UserWarning, match="left out: crystal 54359"):
        scores = rescore_outlook(ridge, both, schedule=schedule, from_s=now_s, horizon_s=3 * DAY_S)
    assert {s.xtal_id for s in scores} == {54000, 54001, 54002}


def test_delivered_as_planned_scores_the_same(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    block = next(toy_history.of_year(2017))
    now_s = day_of_2017(toy_history, 30)
    as_delivered = LumiSchedule(block.time_s, block.lumi_ifb[:-1], "delivered")
    scores = rescore_outlook(ridge, toy_history, schedule=as_delivered, from_s=now_s, horizon_s=10 * DAY_S)
    planned, delivered = ([s for s in scores if s.luminosity == name] for name in ("planned", "delivered"))
    # the plan is split at the same readings: equal up to rounding of the luminosity
    assert [s.mape_percent for s in planned] == pytest.approx([s.mape_percent for s in delivered], rel=1e-9)


def test_the_persistence_forecast_scores_as_persistence(toy_history: TransparencyHistory) -> None:
    model = fit_persistence(toy_history.select(years=[2016]))
    now_s = day_of_2017(toy_history, 30)
    scores = rescore_outlook(model, toy_history, schedule=plan(now_s, days=5, ifb_per_day=0.0), from_s=now_s, horizon_s=5 * DAY_S)
    assert all(s.mape_percent == pytest.approx(s.persistence_percent, rel=1e-12) for s in scores)


def test_no_readings_to_score_on_are_refused(ridge: Ridge, toy_history: TransparencyHistory) -> None:
    last_s = float(next(toy_history.of_year(2017)).time_s[-1])
    with pytest.raises(ValueError, match="no readings between"):
        rescore_outlook(ridge, toy_history, schedule=plan(last_s, days=5, ifb_per_day=0.0), from_s=last_s, horizon_s=5 * DAY_S)
