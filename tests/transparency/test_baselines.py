from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calolife.transparency.backtest import forecast_movement, mape_percent
from calolife.transparency.baselines import Ridge, decaying_luminosity, fit_persistence, fit_ridge
from calolife.transparency.history import Block, TransparencyHistory

FITS = [fit_persistence, fit_ridge]
DAY_S = 86400.0


@pytest.fixture(scope="module")
def train(toy_history: TransparencyHistory) -> TransparencyHistory:
    return toy_history.select(years=[2016])


@pytest.fixture(scope="module")
def test_block(toy_history: TransparencyHistory) -> Block:
    return next(toy_history.of_year(2017))


@pytest.fixture(scope="module")
def ridge(train: TransparencyHistory) -> Ridge:
    return fit_ridge(train)


@pytest.fixture(scope="module", params=FITS)
def model(request, train: TransparencyHistory):
    return request.param(train)


def windows(block: Block) -> np.ndarray:
    return np.arange(24, block.n_readings - 23, 24)


# the decaying sum of luminosity is exact


@given(st.integers(0, 100), st.floats(0.01, 100.0))
@settings(max_examples=25, deadline=None)
def test_splitting_an_interval_changes_no_decaying_sum(seed: int, tau_day: float) -> None:
    rng = np.random.default_rng(seed)
    time_s = np.cumsum(rng.uniform(600, 20_000, 30))
    lumi = rng.uniform(0, 0.1, 30)
    tau_s = np.array([tau_day * DAY_S, np.inf])
    coarse = decaying_luminosity(time_s, lumi, tau_s)
    cut = rng.uniform(0.1, 0.9)
    fine_time = np.insert(time_s, 11, time_s[10] + cut * (time_s[11] - time_s[10]))
    fine_lumi = np.insert(lumi, 11, (1 - cut) * lumi[10])
    fine_lumi[10] = cut * lumi[10]
    fine = np.delete(decaying_luminosity(fine_time, fine_lumi, tau_s), 11, axis=0)
    np.testing.assert_allclose(fine, coarse, rtol=1e-10, atol=1e-14)  # the solution per interval is exact: only rounding differs


def test_decaying_sum_falls_exponentially_without_luminosity() -> None:
    time_s = np.array([0.0, 10.0, 10.0 + 2 * DAY_S])
    total = decaying_luminosity(time_s, np.array([1.0, 0.0, 0.0]), np.array([DAY_S, np.inf]))
    assert total[2, 0] / total[1, 0] == pytest.approx(np.exp(-2.0), rel=1e-12)
    assert total[2, 1] == total[1, 1] == 1.0


# persistence


def test_persistence_is_exactly_the_last_reading(train: TransparencyHistory, test_block: Block) -> None:
    origins = np.array([24, 100, 777])
    made = fit_persistence(train).forecast(test_block, origins=origins, horizon=50)
    assert (made.transparency == test_block.transparency[:, origins - 1][:, :, None]).all()


# what ridge learns


def test_ridge_recovers_a_linear_law(ridge: Ridge) -> None:
    """ln R is linear in the plain luminosity sum, without noise: both the window and the free run are exact."""
    rng = np.random.default_rng(5)

    def year(label: int) -> Block:
        time_s = label * 366 * DAY_S + np.cumsum(rng.uniform(2000, 4000, 2000))
        lumi = np.where(rng.random(2000) < 0.5, rng.uniform(0, 0.02, 2000), 0.0)
        total = decaying_luminosity(time_s, lumi, np.array([np.inf]))[:, 0]
        return Block(label, [54000], [66], [1], time_s, lumi, 0.97 * np.exp(-0.004 * total)[None])

    model = fit_ridge(TransparencyHistory((year(2016),)))
    truth = year(2017)
    for origins, horizon in ((windows(truth), 24), (np.array([24]), 1968)):
        made = model.forecast(truth, origins=origins, horizon=horizon)
        # the loss over the year is 4 %; the smallest penalty, 1e-6 of the mean square, shrinks what is learned by about 1e-5 of it
        np.testing.assert_allclose(made.transparency, truth.transparency[:, made.row], rtol=1e-5)


@pytest.mark.parametrize("horizon", [24, 1392])
def test_ridge_beats_persistence(horizon: int, ridge: Ridge, train: TransparencyHistory, test_block: Block) -> None:
    origins = windows(test_block) if horizon == 24 else np.array([24])
    error = []
    for model in (ridge, fit_persistence(train)):
        made = model.forecast(test_block, origins=origins, horizon=horizon)
        error.append(mape_percent(made.transparency, test_block.transparency[:, made.row]))
    assert error[0] < 0.5 * error[1]  # luminosity moves the toy response by many times its noise


def test_without_luminosity_ridge_free_run_only_recovers(ridge: Ridge, test_block: Block) -> None:
    stopped = test_block.lumi_ifb.copy()
    stopped[200:] = 0.0
    made = ridge.forecast(replace(test_block, lumi_ifb=stopped), origins=np.array([200]), horizon=500).transparency[:, 0]
    assert (np.diff(made[:, 24:], axis=1) >= -1e-9).all()


def test_ridge_sees_nothing_of_the_year_before_the_last_24_readings_in_window_mode(ridge: Ridge, test_block: Block) -> None:
    whole = ridge.forecast(test_block, origins=np.array([600]), horizon=24)
    cut = ridge.forecast(test_block.readings(576, 624), origins=np.array([24]), horizon=24)
    np.testing.assert_allclose(cut.transparency, whole.transparency, rtol=1e-12)


def test_a_crystal_that_was_not_fitted_takes_its_rings_law(ridge: Ridge, test_block: Block) -> None:
    stranger = replace(test_block, xtal_id=test_block.xtal_id + 200)
    made = ridge.forecast(stranger, origins=np.array([24]), horizon=240)
    assert np.isfinite(made.transparency).all()


def test_a_ring_that_was_not_fitted_takes_the_nearest(train: TransparencyHistory, test_block: Block) -> None:
    low = replace(next(iter(train.blocks)), xtal_id=[1, 2, 3], ieta=[-2, -2, -2])
    low = replace(low, transparency=1.0 - 0.1 * (1.0 - low.transparency))  # a tenth of the loss
    model = fit_ridge(TransparencyHistory((*train.blocks, low)))
    origins = windows(test_block)

    def made(ieta: int) -> np.ndarray:
        block = replace(test_block, xtal_id=test_block.xtal_id + 200, ieta=np.full(3, ieta))
        return model.forecast(block, origins=origins, horizon=24).transparency

    assert (made(-60) == made(66)).all()
    assert (made(3) == made(-2)).all()
    assert (made(3) != made(66)).any()


# rules every forecaster keeps


def test_readings_from_the_first_target_on_move_no_forecast(model, test_block: Block) -> None:
    assert forecast_movement(model, test_block, origins=np.array([24, 48, 700]), horizon=24) == pytest.approx(0.0, abs=1e-14)
    assert forecast_movement(model, test_block, origins=np.array([24]), horizon=1200) == 0.0


def test_forecast_is_the_same_when_the_future_is_not_there(model, test_block: Block) -> None:
    hidden = test_block.transparency.copy()
    hidden[:, 24:] = np.nan
    seen = model.forecast(test_block, origins=np.array([24]), horizon=600)
    blind = model.forecast(replace(test_block, transparency=hidden), origins=np.array([24]), horizon=600)
    assert (seen.transparency == blind.transparency).all()


@pytest.mark.parametrize("fit", FITS)
def test_readings_after_the_training_span_move_no_fitted_number(fit, toy_history: TransparencyHistory) -> None:
    block = next(toy_history.of_year(2016))
    end_s = block.time_s[900]
    changed = block.transparency.copy()
    changed[:, 900:] *= 0.9
    one = fit(TransparencyHistory((block,)).before(end_s)).state()
    two = fit(TransparencyHistory((replace(block, transparency=changed),)).before(end_s)).state()
    assert one[1] == two[1]
    for name, values in one[0].items():
        np.testing.assert_array_equal(values, two[0][name])


@pytest.mark.parametrize("fit", FITS)
def test_order_of_crystals_is_free(fit, toy_history: TransparencyHistory, test_block: Block) -> None:
    order = np.array([2, 0, 1])
    train = next(toy_history.of_year(2016))
    straight = fit(TransparencyHistory((train,))).forecast(test_block, origins=np.array([24, 96]), horizon=48)
    turned = fit(TransparencyHistory((train.crystals(order),))).forecast(test_block.crystals(order), origins=np.array([24, 96]), horizon=48)
    np.testing.assert_allclose(turned.transparency, straight.transparency[order], rtol=1e-9)  # sums in another order
    np.testing.assert_allclose(turned.half95, straight.half95[order], rtol=1e-6)


@pytest.mark.parametrize("fit", FITS)
def test_crystals_on_grids_of_their_own_are_forecast_as_on_a_shared_one(fit, toy_history: TransparencyHistory, test_block: Block) -> None:
    train = next(toy_history.of_year(2016))
    shared = fit(TransparencyHistory((train,)))
    own = fit(TransparencyHistory(tuple(train.crystals([c]) for c in range(train.n_crystals))))
    one = shared.forecast(test_block, origins=np.array([24, 96]), horizon=48).transparency
    two = own.forecast(test_block, origins=np.array([24, 96]), horizon=48).transparency
    np.testing.assert_allclose(two, one, rtol=1e-9)


def test_saved_state_forecasts_identically(model, test_block: Block) -> None:
    again = type(model).from_state(*model.state())
    one, two = (m.forecast(test_block, origins=np.array([24, 240]), horizon=72) for m in (model, again))
    assert again.train_years == model.train_years
    for name in ("transparency", "half68", "half95"):
        assert (getattr(one, name) == getattr(two, name)).all()


@pytest.mark.parametrize(
    ("origins", "horizon", "message"),
    [
        ([23], 24, "origin 23 leaves fewer than 24 readings"),
        ([24, 1420], 24, "passes the last of 1440 readings"),
        ([24], 0, "at least one of each"),
        ([], 24, "at least one of each"),
    ],
)
def test_origin_or_horizon_outside_the_year_is_refused(model, origins, horizon, message, test_block: Block) -> None:
    with pytest.raises(ValueError, match=message):
        model.forecast(test_block, origins=np.array(origins, dtype=np.int64), horizon=horizon)


@pytest.mark.parametrize("fit", FITS)
def test_a_training_span_of_a_day_is_refused(fit, train: TransparencyHistory) -> None:
    with pytest.raises(ValueError, match="longer"):
        fit(train.before(next(iter(train.blocks)).time_s[30]))


# many crystals


@pytest.mark.parametrize("fit", FITS)
def test_intervals_of_many_crystals_are_calibrated_on_few(fit, train: TransparencyHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    block = train.blocks[0]
    many = block.crystals(np.arange(300) % block.n_crystals)
    many = replace(many, xtal_id=np.arange(300), iphi=1 + np.arange(300))
    n_crystals = []
    kind = type(fit(train))
    forecast = kind.forecast

    def counted(self, block: Block, *, origins, horizon: int):
        n_crystals.append(block.n_crystals)
        return forecast(self, block, origins=origins, horizon=horizon)

    monkeypatch.setattr(kind, "forecast", counted)
    model = fit(TransparencyHistory((many,)))
    assert max(n_crystals) <= 20
    assert np.isfinite(model.interval.half95).all()


def test_a_ring_that_lacks_a_year_is_fitted_on_the_other(toy_history: TransparencyHistory) -> None:
    first, second = toy_history.blocks
    late = replace(second.crystals([2]), ieta=np.array([5]))
    model = fit_ridge(TransparencyHistory((first.crystals([0, 1]), second.crystals([0, 1]), replace(late, time_s=late.time_s + 60.0))))
    assert model.ring_ieta.tolist() == [5, 66]
    made = model.forecast(late, origins=np.array([480]), horizon=24)
    own = fit_ridge(TransparencyHistory((second,))).forecast(late, origins=np.array([480]), horizon=24)
    persistence = np.abs(late.transparency[:, 479:480] - late.transparency[:, 480:504]).mean()
    assert np.abs(made.transparency - own.transparency).mean() < 0.1 * persistence  # the same law from the same readings


def test_a_ring_without_enough_readings_is_refused_by_name(toy_history: TransparencyHistory) -> None:
    first, _ = toy_history.blocks
    short = replace(first.crystals([2]), ieta=np.array([5])).readings(0, 40)
    with pytest.raises(ValueError, match="ring 5 has no 48 readings in a row"):
        fit_ridge(TransparencyHistory((first.crystals([0, 1]), short)))
