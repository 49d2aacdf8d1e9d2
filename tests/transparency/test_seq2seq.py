"""The published LSTM: what its decoder sees, what it may know, and what it does on histories with known physics."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calolife.training import initialise
from calolife.transparency.history import Block, TransparencyHistory
from calolife.transparency.seq2seq import LeakyLstm, Lstm, Seq2Seq, _fitted_scales, _windows, fit_lstm

HOUR_S = 3600.0


def decay_history(*, n_crystals: int = 2, n_days: int = 50, noise: float = 2e-5, xtal_id: int = 54000) -> TransparencyHistory:
    """One colour centre that heals in 12 h, under fills of 12 to 18 h with stops of 4 to 10 h between them: hourly readings."""
    n = 24 * n_days
    rng = np.random.default_rng(1)
    is_fill = np.zeros(n, dtype=bool)
    at = 0
    while at < n:
        length, stop = rng.integers(12, 19), rng.integers(4, 11)
        is_fill[at : at + length] = True
        at += length + stop
    lumi = np.where(is_fill, 0.02, 0.0)
    damage = np.zeros(n)
    for i in range(1, n):
        damage[i] = (damage[i - 1] + lumi[i - 1]) * np.exp(-1 / 12)
    amplitude = 0.1 * (1 + 0.2 * np.arange(n_crystals))[:, None]
    transparency = 0.95 * np.exp(-amplitude * damage) + noise * rng.standard_normal((n_crystals, n))
    ids = xtal_id + np.arange(n_crystals)
    time_s = 1.4e9 + HOUR_S * np.arange(n)
    return TransparencyHistory((Block(2016, ids, np.full(n_crystals, 66), 1 + np.arange(n_crystals), time_s, lumi, transparency),))


HISTORY = decay_history()
BLOCK = HISTORY.blocks[0]


def quick(history: TransparencyHistory = HISTORY, **settings) -> Lstm:
    return fit_lstm(history, **({"hidden": 8, "epochs": 3} | settings))


@pytest.fixture(scope="module")
def model() -> Lstm:
    return quick(epochs=10)


def block_with(block: Block, transparency: np.ndarray) -> Block:
    return replace(block, transparency=transparency)


def net_of(n_inputs: int = 2, hidden: int = 8) -> Seq2Seq:
    with torch.random.fork_rng(devices=[]):
        net = Seq2Seq(n_inputs, hidden)
    initialise(net, seed=1)
    return net


# what the network does


@pytest.mark.parametrize("is_forced", [(True,) * 23, (True,) * 22 + (False,), (False,) * 23], ids=["all", "mixed", "none"])
def test_forced_and_recursive_decoding_agree_when_the_predictions_are_the_truth(is_forced):
    net, draw = net_of(), torch.Generator().manual_seed(2)
    past, known = torch.randn(5, 24, 2, generator=draw), torch.randn(5, 24, 1, generator=draw)
    with torch.no_grad():
        recursive = net(past, known)
        forced = net(past, known, recursive, is_forced)
    # the same sums in another order: a few float32 roundings over 24 steps
    torch.testing.assert_close(forced, recursive, rtol=0, atol=24 * torch.finfo(torch.float32).eps)


def test_a_forced_step_sees_the_true_reading_before_it_and_no_other():
    net, draw = net_of(), torch.Generator().manual_seed(2)
    past, known, truth = (torch.randn(s, generator=draw) for s in ((5, 24, 2), (5, 6, 1), (5, 6)))
    moved = truth.clone()
    moved[:, 2] += 1
    with torch.no_grad():
        changed = (net(past, known, moved, (True,) * 5) - net(past, known, truth, (True,) * 5)).abs().amax(dim=0)
        unforced = net(past, known, moved, (True, True, False, False, False)) - net(past, known, truth, (True, True, False, False, False))
    assert (changed[:3] == 0).all()
    assert (changed[3:] > 0).all()
    assert (unforced == 0).all()


@pytest.mark.parametrize("row", [24, 30, 47])
def test_a_reading_depends_on_the_luminosity_before_it_and_not_on_later_luminosity(model, row):
    lumi = BLOCK.lumi_ifb.copy()
    lumi[row - 1] += 0.01
    moved = replace(BLOCK, lumi_ifb=lumi)
    made, changed = (model.forecast(b, origins=np.array([24]), horizon=24).transparency[0, 0] for b in (BLOCK, moved))
    assert (made[: row - 24] == changed[: row - 24]).all()
    assert (made[row - 24 :] != changed[row - 24 :]).all()


def test_windows_are_the_published_ones():
    scales = replace_scales(quick(epochs=1))
    fitted, tail = _windows(scales, HISTORY, 24, np.inf)
    n = (BLOCK.n_readings - 48) // 24 + 1
    past, known, truth = (t.numpy().reshape(2, n, *t.shape[1:]) for t in fitted)
    assert tail is None
    np.testing.assert_array_equal(truth.reshape(2, -1), BLOCK.transparency[:, 24 : 24 + 24 * n].astype(np.float32))
    np.testing.assert_array_equal(past[:, :, :, 0].reshape(2, -1), BLOCK.transparency[:, : 24 * n].astype(np.float32))
    np.testing.assert_array_equal(known[0, :, :, 0].ravel(), BLOCK.lumi_ifb[23 : 23 + 24 * n].astype(np.float32))


def replace_scales(model: Lstm) -> Lstm:
    """The model with scales that change nothing."""
    return replace(model, mean=np.zeros_like(model.mean), std=np.ones_like(model.std))


def test_windows_with_a_missing_reading_are_left_out():
    transparency = BLOCK.transparency.copy()
    transparency[0, 100] = np.nan
    with_gap = TransparencyHistory((block_with(BLOCK, transparency),))
    scales = replace_scales(quick(epochs=1))
    (whole, *_), _ = _windows(scales, HISTORY, 24, np.inf)
    (kept, *_), _ = _windows(scales, with_gap, 24, np.inf)
    assert whole.shape[0] - kept.shape[0] == 2  # reading 100 is a target of one window and encoded by the next


# free run


def test_free_run_encodes_its_own_predictions_window_by_window(model):
    run = model.forecast(BLOCK, origins=np.array([24]), horizon=72).transparency[:, 0]
    transparency = BLOCK.transparency.copy()
    for k in range(3):
        step = model.forecast(block_with(BLOCK, transparency), origins=np.array([24 + 24 * k]), horizon=24).transparency[:, 0]
        transparency[:, 24 + 24 * k : 48 + 24 * k] = step
    # readings pass through float32 scaling between the steps
    np.testing.assert_allclose(run, transparency[:, 24:96], rtol=1e-6)


def test_a_shorter_horizon_is_the_start_of_a_longer_one(model):
    long = model.forecast(BLOCK, origins=np.array([24, 50]), horizon=60)
    short = model.forecast(BLOCK, origins=np.array([24, 50]), horizon=31)
    np.testing.assert_allclose(short.transparency, long.transparency[:, :, :31], rtol=1e-6)


@pytest.mark.parametrize("lengths", [(6, 6), (12, 24), (48, 12)], ids=str)
def test_other_lengths_forecast_too(lengths):
    past, step = lengths
    made = quick(encoder_length=past, decoder_length=step, stride=step).forecast(BLOCK, origins=np.array([past, 60]), horizon=50)
    assert made.transparency.shape == (2, 2, 50)
    assert np.isfinite(made.transparency).all()


# what it may know


def test_changing_readings_from_the_origin_on_moves_no_forecast(model):
    transparency = BLOCK.transparency.copy()
    transparency[:, 100:] = np.nan
    for origins, horizon in ((np.array([24, 52, 100]), 24), (np.array([100]), 480)):
        made, blind = (model.forecast(b, origins=origins, horizon=horizon) for b in (BLOCK, block_with(BLOCK, transparency)))
        np.testing.assert_array_equal(made.transparency[:, -1], blind.transparency[:, -1])


def test_changing_times_and_luminosity_after_the_horizon_moves_no_forecast():
    model = quick(features=("time_step",))
    lumi, time_s = BLOCK.lumi_ifb.copy(), BLOCK.time_s.copy()
    lumi[123:] += 0.05
    time_s[124:] += 777.0
    later = replace(BLOCK, lumi_ifb=lumi, time_s=time_s)
    made, blind = (model.forecast(b, origins=np.array([100]), horizon=24) for b in (BLOCK, later))
    np.testing.assert_array_equal(made.transparency, blind.transparency)


def test_scales_are_those_of_the_readings_trained_on():
    tail_s = float(np.quantile(BLOCK.time_s, 0.85))
    transparency = BLOCK.transparency.copy()
    transparency[:, BLOCK.time_s >= tail_s] *= 0.9
    darker = TransparencyHistory((block_with(BLOCK, transparency),))
    for one, other in zip(_fitted_scales(HISTORY, tail_s, ()), _fitted_scales(darker, tail_s, ()), strict=True):
        np.testing.assert_array_equal(one, other)
    fitted = quick(darker)
    early = BLOCK.transparency[:, BLOCK.time_s < tail_s]
    np.testing.assert_allclose(fitted.mean[:, 0], early.mean(axis=1), rtol=1e-12)  # summed in another order
    np.testing.assert_allclose(fitted.std[:, 0], early.std(axis=1), rtol=1e-9)


def test_readings_after_the_training_span_move_no_fitted_number():
    cut_s = BLOCK.time_s[900]
    transparency = BLOCK.transparency.copy()
    transparency[:, 900:] *= 0.9
    darker = TransparencyHistory((block_with(BLOCK, transparency),))
    one, other = (quick(h.before(cut_s)).state()[0] for h in (HISTORY, darker))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_the_leaky_variant_does_move_with_the_readings_it_forecasts(model):
    transparency = BLOCK.transparency.copy()
    transparency[:, 100:] *= 0.99
    made, moved = (LeakyLstm(model).forecast(b, origins=np.array([100]), horizon=24) for b in (BLOCK, block_with(BLOCK, transparency)))
    assert made.model == "lstm-leak"
    assert (made.transparency != moved.transparency).all()


def test_a_crystal_that_was_not_trained_on_gets_the_average_scale(model):
    stranger = replace(BLOCK, xtal_id=[54001, 60000])
    mean, std = model._scale_of(stranger)
    np.testing.assert_array_equal(mean, [model.mean[1], model.mean.mean(axis=0)])
    np.testing.assert_array_equal(std, [model.std[1], model.std.mean(axis=0)])


# fitting


def test_beats_persistence_on_a_single_colour_centre():
    model = fit_lstm(HISTORY, hidden=16, epochs=100, patience=None)
    n = (BLOCK.n_readings - 48) // 24 + 1
    made = model.forecast(BLOCK, origins=24 + 24 * np.arange(n), horizon=24)
    truth = BLOCK.transparency[:, made.row]
    error = np.abs(made.transparency - truth).mean()
    last = np.abs(BLOCK.transparency[:, made.row[:, 0] - 1][:, :, None] - truth).mean()
    assert error < 0.5 * last


@pytest.mark.parametrize("strategy", ["recursive", "teacher", "mixed"])
def test_same_seed_gives_the_same_weights(strategy):
    one, two, other = (quick(strategy=strategy, seed=s).weights for s in (3, 3, 4))
    assert all((one[name] == two[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


@pytest.mark.parametrize("strategy", ["teacher", "mixed"])
def test_no_teacher_forcing_is_the_recursive_strategy(strategy):
    one, two = quick(strategy=strategy, teacher_forcing=0.0).weights, quick(strategy="recursive").weights
    assert all((one[name] == two[name]).all() for name in one)


def test_strategies_teach_different_weights():
    weights = [quick(strategy=s, epochs=6).weights["readout.weight"] for s in ("recursive", "teacher", "mixed")]
    assert not any((weights[i] == weights[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_tail_is_not_trained_on():
    tail_s = float(np.quantile(BLOCK.time_s, 0.85))
    transparency = BLOCK.transparency.copy()
    transparency[:, BLOCK.time_s >= tail_s] *= 0.95
    darker = TransparencyHistory((block_with(BLOCK, transparency),))
    one, other = quick(epochs=1), quick(darker, epochs=1)
    assert all((one.weights[name] == other.weights[name]).all() for name in one.weights)
    assert (one.interval.half95 != other.interval.half95).all()


def test_intervals_cover_the_readings_they_were_calibrated_on(model):
    first = int(np.searchsorted(BLOCK.time_s, np.quantile(BLOCK.time_s, 0.85)))
    n = (BLOCK.n_readings - first) // 24
    made = model.forecast(BLOCK, origins=first + 24 * np.arange(n), horizon=24)
    inside = np.abs(BLOCK.transparency[:, made.row] - made.transparency) <= made.half95
    assert inside.mean() >= 0.95  # split conformal covers its own calibration set at least so often


def test_the_published_schedule_trains_on_everything_and_has_no_interval():
    model = quick(patience=None)
    made = model.forecast(BLOCK, origins=np.array([24]), horizon=24)
    assert model.best_epoch == 3
    np.testing.assert_allclose(model.mean[:, 0], BLOCK.transparency.mean(axis=1), rtol=1e-12)  # summed in another order
    assert np.isnan(made.half95).all()


@pytest.mark.parametrize("features", [(), ("time_step",)], ids=["published", "time_step"])
def test_a_stored_model_forecasts_the_same(features):
    model = quick(features=features)
    back = Lstm.from_state(*model.state())
    one, two = (m.forecast(BLOCK, origins=np.array([24, 96]), horizon=30) for m in (model, back))
    for name in ("transparency", "half68", "half95"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_training_killed_and_resumed_forecasts_the_same_bytes(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        import test_seq2seq as t
        t.quick(epochs=12, strategy="mixed", checkpoint_dir=Path(sys.argv[1]), progress=lambda e: time.sleep(0.2))
    """)
    checkpoint = tmp_path / "checkpoint.safetensors"
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parent, env=os.environ)
    while not checkpoint.exists() and child.poll() is None:
        time.sleep(0.005)
    time.sleep(0.3)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    ran = []
    resumed = quick(epochs=12, strategy="mixed", checkpoint_dir=tmp_path, progress=ran.append).state()[0]
    whole = quick(epochs=12, strategy="mixed").state()[0]
    assert 0 < len(ran) < 12
    assert all(resumed[name].tobytes() == value.tobytes() for name, value in whole.items())


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    quick(checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="belongs to another training"):
        quick(decay_history(noise=3e-5), checkpoint_dir=tmp_path)


# bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "hidden = 0 must be >= 1"),
        ({"epochs": 0}, "epochs = 0 must be >= 1"),
        ({"stride": 0}, "stride = 0 must be >= 1"),
        ({"patience": 0}, "patience = 0 must be >= 1"),
        ({"strategy": "telepathy"}, "strategy 'telepathy' is unknown; choose one of recursive, teacher, mixed"),
        ({"teacher_forcing": 1.5}, r"teacher_forcing = 1\.5 is a probability"),
        ({"teacher_forcing": float("nan")}, "teacher_forcing = nan is a probability"),
        ({"features": ("phase_of_moon",)}, "feature 'phase_of_moon' is unknown; choose from time_step"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        quick(**settings)


@pytest.mark.parametrize(("n_days", "patience"), [(1, None), (4, 5)], ids=["no window", "no window in the tail"])
def test_a_history_too_short_is_refused(n_days, patience):
    with pytest.raises(ValueError, match=r"too few readings: .* train on a longer span or use shorter lengths"):
        quick(decay_history(n_days=n_days), patience=patience)


@pytest.mark.parametrize(
    ("origins", "horizon", "message"),
    [
        ([23], 24, "origin 23 leaves fewer than the 24 readings"),
        ([24, 1190], 24, r"a horizon of 24 from reading 1190 needs times and luminosity of 1214 readings; the block has 1200"),
        ([24], 0, "horizon = 0"),
        ([], 24, "from 0 origins"),
    ],
)
def test_origins_outside_the_block_are_refused(model, origins, horizon, message):
    with pytest.raises(ValueError, match=message):
        model.forecast(BLOCK, origins=np.array(origins, dtype=np.int64), horizon=horizon)


def test_a_missing_reading_before_the_origin_is_refused(model):
    transparency = BLOCK.transparency.copy()
    transparency[1, 90] = np.nan
    with pytest.raises(ValueError, match="crystal 54001 has no reading at row 90"):
        model.forecast(block_with(BLOCK, transparency), origins=np.array([100]), horizon=24)


def test_intervals_of_many_crystals_are_calibrated_on_few(monkeypatch):
    n_crystals = []
    forecast = Lstm.forecast

    def counted(self, block, *, origins, horizon):
        n_crystals.append(block.n_crystals)
        return forecast(self, block, origins=origins, horizon=horizon)

    monkeypatch.setattr(Lstm, "forecast", counted)
    many = BLOCK.crystals(np.arange(60) % BLOCK.n_crystals)
    many = replace(many, xtal_id=np.arange(60), iphi=1 + np.arange(60))
    model = quick(TransparencyHistory((many,)))
    assert 0 < max(n_crystals) <= 20
    assert np.isfinite(model.interval.half95).all()
