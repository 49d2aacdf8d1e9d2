"""Kinetics and hybrid as forecasters: nothing from the future, stored as fitted, better than repeating the last reading."""

from dataclasses import replace

import numpy as np
import pytest

from calolife.storage import load_model_state, save_model
from calolife.transparency.backtest import forecast_movement, window_count
from calolife.transparency.baselines import fit_persistence
from calolife.transparency.forecasters import load_model
from calolife.transparency.history import TransparencyHistory
from calolife.transparency.hybrid import fit_hybrid
from calolife.transparency.intervals import IntervalTable, interval_table
from calolife.transparency.kinetics import Kinetics, extend_kinetics, fit_kinetics, forecast_blocks
from calolife.transparency.statefilter import DEFAULT_SETTINGS
from calolife.transparency.synthetic import B_PER_IFB, TAU_D, simulate_history


def true_kinetics(history: TransparencyHistory) -> Kinetics:
    """The kinetics that made the synthetic crystals, with no crystal fitted: extending needs no more."""
    none, nothing = np.empty(0), np.empty(0, dtype=np.int64)
    return Kinetics(
        train_years=history.years, interval=IntervalTable.unknown(), tau_d=np.array([TAU_D]), b_per_ifb=np.array([B_PER_IFB]),
        weight=np.ones(1), log_error=np.zeros((2, len(TAU_D))), ring_ieta=np.array([66]), ring_scale=np.ones(1),
        xtal_id=nothing, ieta=nothing, amplitude=none, start_occupancy=none, end_occupancy=none, end_time_s=none, settings=DEFAULT_SETTINGS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def simulated():
    return simulate_history(n_crystals=40, n_years=1, seed=2, with_steps=False)


@pytest.fixture(scope="module")
def years():
    """Two years of three crystals, each with its own spread, common noise included."""
    return simulate_history(n_crystals=3, n_years=2, seed=5)[0]


@pytest.fixture(scope="module")
def kinetics(years):
    return fit_kinetics(years.select(years=years.years[:1]))


@pytest.fixture(scope="module", autouse=True)
def few_examples():
    """An eighth of the examples to learn from: what is tested here does not hang on the last percent of accuracy."""
    from calolife.transparency import hybrid

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid, "_N_ROW", 60_000)
        yield


@pytest.fixture(scope="module")
def hybrid(years, few_examples):
    return fit_hybrid(years.select(years=years.years[:1]))


def mape(model, block):
    origins = 24 + 24 * np.arange(window_count(block.n_readings))
    made = model.forecast(block, origins=origins, horizon=24)
    truth = block.transparency[:, made.row]
    return 100 * float(np.mean(np.abs(made.transparency / truth - 1))), np.mean(np.abs(made.transparency - truth) <= made.half95)


def test_amplitudes_of_the_truth_come_back(simulated):
    history, truth = simulated
    ring = history.select(ieta=[66])
    fitted = extend_kinetics(true_kinetics(ring), ring)
    at = np.searchsorted(truth.crystals.xtal_id, fitted.xtal_id)
    # drift of .08 % over 3 d against 250 d of data with damage of 6 % leaves a few parts in a hundred; the
    # degeneracy with the other components is included
    np.testing.assert_allclose(fitted.amplitude[0][:, 3] / truth.a_per_ifb[at][:, 3], 1.0, atol=0.1)


def test_a_crystal_does_not_depend_on_the_ring_it_is_extended_with(simulated):
    history, _ = simulated
    model = true_kinetics(history)
    whole = extend_kinetics(model, history)
    for ring in np.unique(whole.ieta):
        part = extend_kinetics(model, history.select(ieta=[int(ring)]))
        here = whole.ieta == ring
        np.testing.assert_array_equal(part.xtal_id, whole.xtal_id[here])
        np.testing.assert_allclose(part.amplitude, whole.amplitude[:, here], rtol=1e-6, atol=1e-10)  # sums in another order
        np.testing.assert_allclose(part.ring_scale, whole.ring_scale[whole.ring_ieta == ring], rtol=1e-9)


def test_blocks_together_are_forecast_as_alone(simulated):
    history, _ = simulated
    model = extend_kinetics(true_kinetics(history), history)
    origins = [24 + 24 * np.arange(window_count(b.n_readings)) for b in history.blocks]
    together = forecast_blocks(model, history.blocks, origins=origins, horizon=24)
    for block, at, one in zip(history.blocks, origins, together, strict=True):
        alone = model.forecast(block, origins=at, horizon=24)
        np.testing.assert_allclose(one.transparency, alone.transparency, rtol=1e-12)
        np.testing.assert_allclose(one.half95, alone.half95, rtol=1e-9)


def test_a_block_of_two_rings_is_refused_together_and_split_alone(simulated):
    history, _ = simulated
    model = extend_kinetics(true_kinetics(history), history)
    block = history.blocks[0]
    mixed = replace(block, ieta=np.r_[block.ieta[:-1], block.ieta[-1] + 1])
    with pytest.raises(ValueError, match="give one ring a block"):
        forecast_blocks(model, [mixed], origins=[np.array([24])], horizon=24)
    made = model.forecast(mixed, origins=np.array([48]), horizon=24)
    alone = model.forecast(mixed.crystals([mixed.n_crystals - 1]), origins=np.array([48]), horizon=24)
    np.testing.assert_array_equal(made.xtal_id, mixed.xtal_id)
    np.testing.assert_allclose(made.transparency[-1], alone.transparency[0], rtol=1e-12)


@pytest.mark.parametrize("name", ["kinetics", "hybrid"])
def test_readings_from_the_origin_on_move_no_forecast(name, years, request):
    model = request.getfixturevalue(name)
    block = years.blocks[-1]
    # a sum in another order moves the last of 16 digits; a reading moves the fourth
    assert forecast_movement(model, block, origins=np.array([24]), horizon=240) < 1e-12
    assert forecast_movement(model, block, origins=np.array([24, 48, 700]), horizon=24) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kinetics", "hybrid"])
def test_readings_after_the_training_span_move_no_fitted_number_and_no_forecast(name, years):
    fit = {"kinetics": fit_kinetics, "hybrid": fit_hybrid}[name]
    block = years.blocks[0]
    end_s = float(block.time_s[3000])
    later = block.transparency.copy()
    later[:, 3000:] *= 0.9
    changed = TransparencyHistory((replace(block, transparency=later),))
    model, again = fit(TransparencyHistory((block,)).before(end_s)), fit(changed.before(end_s))
    for key, value in model.state()[0].items():
        np.testing.assert_array_equal(again.state()[0][key], value, err_msg=key)
    made, moved = (m.forecast(b, origins=np.array([2900]), horizon=24) for m, b in ((model, block), (again, changed.blocks[0])))
    np.testing.assert_array_equal(moved.transparency, made.transparency)


def test_readings_of_other_crystals_after_the_origin_move_no_forecast(hybrid, years):
    block = years.blocks[-1]
    changed = block.transparency.copy()
    changed[1:, 700:] *= 0.95
    made, again = (hybrid.forecast(b, origins=np.array([700]), horizon=24) for b in (block, replace(block, transparency=changed)))
    np.testing.assert_allclose(again.transparency, made.transparency, rtol=0, atol=1e-12)  # as above


@pytest.mark.slow
def test_two_training_years_carry_their_state_into_the_third():
    history, _ = simulate_history(n_crystals=2, n_years=3, seed=7, with_steps=False)
    first, second, third = history.years
    model = fit_kinetics(history.select(years=[first, second]))
    for year in (second, third):
        block = next(history.of_year(year))
        made = model.forecast(block, origins=np.array([24]), horizon=24 * window_count(block.n_readings))
        truth = block.transparency[:, made.row]
        repeated = block.transparency[:, [23]][:, :, None]
        error, base = (np.abs(f / truth - 1).mean() for f in (made.transparency, repeated))
        assert error < 0.5 * base  # a year of damage is several percent; an unirradiated start would miss most of it
    skipped = fit_kinetics(history.select(years=[first, third]))
    start = next(history.of_year(second))
    begun = skipped.curves(start)[0][:, 0]
    assert (begun < 0).all()  # a year between training years starts where the earlier one ended, not unirradiated


@pytest.mark.slow
def test_rings_and_ragged_crystals_are_fitted_together():
    history, _ = simulate_history(n_crystals=60, n_years=1, seed=3, with_steps=False)
    rings = np.unique([b.ieta[0] for b in history.blocks])[:2]
    assert rings.size == 2
    history = history.select(ieta=rings)
    blocks = [b.crystals(np.arange(min(2, b.n_crystals))) for b in history.blocks]
    short = blocks[-1].readings(0, 100)
    with pytest.warns(UserWarning, match=f"fewer than 240 readings of crystals {short.xtal_id[0]}"):
        model = fit_kinetics(TransparencyHistory((*blocks[:-1], short)))
    whole = history.blocks[-1]
    made = model.forecast(whole, origins=np.array([1200]), horizon=24)
    assert np.abs(made.transparency / whole.transparency[:, made.row] - 1).mean() < 0.01


def test_a_crystal_first_read_late_is_forecast_as_if_alone(kinetics, years):
    block = years.blocks[-1]
    hidden = block.transparency.copy()
    hidden[1, :600] = np.nan
    late = replace(block, transparency=hidden)
    together, alone = (kinetics.forecast(b, origins=np.array([720, 960]), horizon=24) for b in (late, late.crystals([1])))
    # the ring's mean curve is that of all three crystals or of one: the same to a few 1e-5
    np.testing.assert_allclose(together.transparency[1], alone.transparency[0], atol=1e-4)
    with pytest.raises(ValueError, match=f"crystal {block.xtal_id[1]} has no reading before reading 480 of {block.year}"):
        kinetics.forecast(late, origins=np.array([480, 720]), horizon=24)


@pytest.mark.slow
def test_a_stopped_hybrid_goes_on_to_the_same_numbers(years, tmp_path, hybrid):
    training = years.select(years=years.years[:1])

    class Stop(Exception):
        pass

    def stop(done, _):
        if done == 6:
            raise Stop

    with pytest.raises(Stop):
        fit_hybrid(training, checkpoint_dir=tmp_path, progress=stop)
    seen = []
    again = fit_hybrid(training, checkpoint_dir=tmp_path, progress=lambda done, n: seen.append((done, n)))
    assert len(seen) < seen[-1][1]  # epochs that were kept are not run again
    for key, value in hybrid.state()[0].items():
        np.testing.assert_array_equal(again.state()[0][key], value, err_msg=key)


@pytest.mark.parametrize("name", ["kinetics", "hybrid"])
def test_a_stored_model_forecasts_the_same_numbers(name, years, request, tmp_path):
    model = request.getfixturevalue(name)
    save_model(model, tmp_path)
    assert load_model_state(tmp_path)[0] == name
    block = years.blocks[-1]
    made, again = (m.forecast(block, origins=np.array([240, 480]), horizon=24) for m in (model, load_model(tmp_path)))
    np.testing.assert_array_equal(again.transparency, made.transparency)
    np.testing.assert_array_equal(again.half95, made.half95)


@pytest.mark.parametrize("name", ["kinetics", "hybrid"])
def test_windows_of_a_new_year_beat_the_last_reading_and_are_covered(name, years, request):
    model = request.getfixturevalue(name)
    block = years.blocks[-1]
    error, covered = mape(model, block)
    base, _ = mape(fit_persistence(years.select(years=years.years[:1])), block)
    assert error < 0.8 * base  # chosen: a fifth better, twice the scatter between synthetic years
    assert 0.85 < covered <= 1.0  # the target on real data is 90 to 99 %; three crystals of one year scatter by a few percent


def test_the_order_of_crystals_is_free(kinetics, hybrid, years):
    block = years.blocks[-1]
    order = np.array([2, 0, 1])
    for model in (kinetics, hybrid):
        made = model.forecast(block, origins=np.array([240]), horizon=24)
        turned = model.forecast(block.crystals(order), origins=np.array([240]), horizon=24)
        np.testing.assert_allclose(turned.transparency, made.transparency[order], rtol=1e-6)  # float32 network


def test_hidden_early_readings_are_missing_not_wrong(kinetics, hybrid, years):
    block = years.blocks[-1]
    hidden = block.transparency.copy()
    hidden[:, :576] = np.nan
    part = replace(block, transparency=hidden)
    for model in (kinetics, hybrid):
        made = model.forecast(part, origins=np.array([600]), horizon=24)
        assert np.isfinite(made.transparency).all()
        assert np.abs(made.transparency / block.transparency[:, made.row] - 1).mean() < 0.005


def test_a_crystal_not_fitted_takes_its_rings_amplitudes(kinetics, years):
    block = years.blocks[-1]
    stranger = replace(block.crystals([0]), xtal_id=np.array([54300]))
    made = kinetics.forecast(stranger, origins=np.array([1200]), horizon=24)
    assert np.abs(made.transparency / stranger.transparency[:, made.row] - 1).mean() < 0.01


def test_too_short_a_span_is_one_clear_line(years):
    short = TransparencyHistory((years.blocks[0].readings(1000, 1100),))
    with pytest.raises(ValueError, match="100 readings of a crystal are too few to fit kinetics; give at least 240"):
        fit_kinetics(short)


def test_a_span_without_luminosity_is_refused(years):
    block = years.blocks[0]
    dark = TransparencyHistory((replace(block, lumi_ifb=np.zeros(block.n_readings)),))
    with pytest.raises(ValueError, match="no luminosity in the training span"):
        fit_kinetics(dark)


def test_origins_outside_the_block_are_refused(kinetics, years):
    block = years.blocks[0]
    with pytest.raises(ValueError, match="origins start at 1"):
        kinetics.forecast(block, origins=np.array([block.n_readings - 3]), horizon=24)


class _Exact:
    """A forecaster whose errors are known: the reading plus white noise of a given size, by ring."""

    def __init__(self, sigma):
        self.sigma = sigma

    def forecast(self, block, *, origins, horizon):
        from calolife.transparency.history import Forecast

        row = origins[:, None] + np.arange(horizon)
        sigma = self.sigma[int(block.ieta[0])]
        noise = sigma * np.random.default_rng([int(origins[0]), int(block.ieta[0])]).standard_normal((block.n_crystals, *row.shape))
        nan = np.full_like(noise, np.nan)
        horizon_s = block.time_s[row] - block.time_s[origins - 1][:, None]
        return Forecast("exact", (0,), block.year, block.xtal_id, row, horizon_s, block.transparency[:, row] + noise, nan, nan)


def test_conformal_half_widths_are_the_quantiles_of_the_errors(years):
    block = years.blocks[0]
    start = block.time_s[block.n_readings // 2]
    table = interval_table(_Exact({66: 1e-3}), TransparencyHistory((block,)), start_s=start)
    # |normal| has its 68 and 95 % quantiles at 0.994 and 1.960 sigma; a bin holds thousands of readings, and the table takes
    # the largest so far of 13 bins, which lifts it by 2 to 3 standard errors (2 % each)
    np.testing.assert_allclose(table.half68, 0.994e-3, rtol=0.12)
    np.testing.assert_allclose(table.half95, 1.960e-3, rtol=0.12)


def test_half_widths_grow_as_a_random_walk_past_the_table():
    table = IntervalTable(np.array([3600.0, 86400.0]), np.array([1e-3, 2e-3]), np.array([2e-3, 4e-3]))
    half68, half95 = table.at(np.array([3600.0, 86400.0, 4 * 86400.0]))
    np.testing.assert_allclose(half68, [1e-3, 2e-3, 4e-3])
    np.testing.assert_allclose(half95, 2 * half68)


def test_nan_in_the_training_span_is_named(years):
    block = years.blocks[0]
    holed = block.transparency.copy()
    holed[1, 50] = np.nan
    with pytest.raises(ValueError, match=f"crystal {block.xtal_id[1]} has NaN readings in {block.year}"):
        fit_kinetics(TransparencyHistory((replace(block, transparency=holed),)))


def test_rings_with_larger_errors_get_wider_intervals(years):
    block = years.blocks[0]
    far = replace(block, ieta=np.full(3, 100), xtal_id=block.xtal_id + 20000)
    table = interval_table(
        _Exact({66: 1e-3, 100: 4e-3}), TransparencyHistory((block, far)), start_s=block.time_s[block.n_readings // 2]
    )  # fmt: skip
    _, half95 = table.at(np.array([6 * 3600.0]), ieta=np.array([66, 100]))
    np.testing.assert_allclose(half95[:, 0], [1.96e-3, 7.84e-3], rtol=0.12)  # as in the test above


@pytest.mark.slow
def test_real_years_not_fitted_reach_the_gates(cms_data, monkeypatch):
    from calolife.storage import read_history
    from calolife.transparency import hybrid
    from calolife.transparency.forecasters import DEFAULT_MODEL

    monkeypatch.setattr(hybrid, "_N_ROW", 500_000)
    history = read_history(cms_data)
    training = history.select(years=[2016])
    fits = {"kinetics": fit_kinetics, "hybrid": fit_hybrid}
    window, free = (fits[DEFAULT_MODEL[mode]](training) for mode in ("window", "free-run"))
    for year, window_gate, free_gate in ((2017, 0.100, 0.80), (2018, 0.105, 0.95)):
        block = next(history.of_year(year))
        error, covered = mape(window, block)
        assert error <= window_gate
        assert 0.90 <= covered <= 0.99
        made = free.forecast(block, origins=np.array([24]), horizon=24 * window_count(block.n_readings))
        truth = block.transparency[:, made.row]
        assert 100 * np.abs(made.transparency / truth - 1).mean() <= free_gate
        assert np.mean(np.abs(made.transparency - truth) <= made.half95) >= 0.85
