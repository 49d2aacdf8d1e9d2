"""The adversarial fit: it finds losses, its critics are what they claim, seeds, weights, and a resumption that leaves no trace."""

import math
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calolife.ageing import wgan
from calolife.ageing.hits import CellHits
from calolife.ageing.wgan import PENALTIES, TRANSFORMS, WganFit, WganSettings, fit_wgan
from calolife.errors import FileFormatError, NotConvergedError

N_CELLS = 4
SHORT = WganSettings(epochs=4, batch=50, critic=(16,), lr_weight=1e-2)
LONG = replace(SHORT, epochs=40, n_critic=2, critic=(32,), ema=0.9, lr_critic=2e-2)
CHECKPOINT = "wgan.safetensors"


def toy_hits(signal_fraction=1.0, *, n_showers: int = 400, seed: int = 1) -> CellHits:
    """A MIP peak of 0.8 MeV, 20 % wide, in three showers out of four; and softer and denser hits."""
    rng = np.random.default_rng(seed)
    shape = (N_CELLS, n_showers)
    energy = np.where(rng.random(shape) < 0.8, 0.8 * rng.lognormal(0.0, 0.2, shape), rng.lognormal(0.5, 1.2, shape))
    cell, shower = np.nonzero(rng.random(shape) < 0.75)
    aged = energy[cell, shower] * np.broadcast_to(signal_fraction, N_CELLS)[cell]
    return CellHits(N_CELLS, shower, cell, aged, np.zeros(cell.size, np.int8), np.ones(n_showers))


def same(one: WganFit, two: WganFit) -> bool:
    pairs = zip(one.epochs, two.epochs, strict=True)
    curves = all(repr((a.critic_loss, a.wasserstein, a.cramer)) == repr((b.critic_loss, b.wasserstein, b.cramer)) for a, b in pairs)
    fractions = all(
        np.array_equal(a.signal_fraction, b.signal_fraction, equal_nan=True) for a, b in zip(one.epochs, two.epochs, strict=True)
    )
    return curves and fractions and one.best_epoch == two.best_epoch


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_strong_common_loss_is_found_from_weights_of_one(penalty):
    fit = fit_wgan(toy_hits(), toy_hits(0.8), settings=replace(LONG, penalty=penalty, start="one"))
    # the batches of a short training are small: its weights still swing by a third of the loss
    assert fit.signal_fraction == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_follows_the_loss(transform):
    fit = fit_wgan(toy_hits(), toy_hits(0.8), settings=replace(LONG, transform=transform, start="one"))
    assert fit.epochs[-1].signal_fraction.mean() < 0.9


def test_the_loss_of_each_cell_is_found_in_it():
    truth = np.array([0.75, 0.95, 0.8, 0.9])
    fit = fit_wgan(toy_hits(), toy_hits(truth), settings=LONG)
    assert np.abs(fit.signal_fraction - truth).mean() < np.abs(truth - truth.mean()).mean()  # better than the best constant
    assert np.corrcoef(fit.signal_fraction, truth)[0, 1] > 0.9


def test_unpaired_showers_tell_a_strong_loss_too():
    fit = fit_wgan(toy_hits(), toy_hits(0.8, seed=2), settings=LONG)
    # 20 % wide peaks of 240 trained hits each: 2 % a cell for the best of estimators, this one allowed 3 of twice that
    assert fit.signal_fraction == pytest.approx(0.8, abs=0.12)


def test_weights_are_signal_fractions_not_coefficients():
    fit = fit_wgan(toy_hits(), toy_hits(0.7), settings=SHORT)
    assert (fit.signal_fraction < 0.85).all()


def test_more_light_than_before_is_not_clipped():
    fit = fit_wgan(toy_hits(), toy_hits(1.1), settings=SHORT)
    assert (fit.signal_fraction > 1.02).all()


def test_the_published_recipe_says_so():
    assert WganSettings.published().is_published
    assert not replace(WganSettings.published(), epochs=99).is_published
    assert not WganSettings().is_published


def test_every_epoch_is_recorded_and_reported():
    seen = []
    fit = fit_wgan(toy_hits(), toy_hits(0.8), settings=SHORT, progress=seen.append)
    assert tuple(seen) == fit.epochs
    assert [epoch.number for epoch in seen] == [1, 2, 3, 4]
    assert all(np.isfinite([epoch.critic_loss, epoch.wasserstein, epoch.cramer]).all() for epoch in seen)


def test_the_epoch_of_the_smallest_held_out_distance_is_kept():
    fit = fit_wgan(toy_hits(), toy_hits(0.9), settings=replace(SHORT, epochs=12, lr_weight=0.05, start="one"))
    assert fit.best_epoch == 1 + np.argmin([epoch.cramer for epoch in fit.epochs])
    assert np.array_equal(fit.signal_fraction, fit.epochs[fit.best_epoch - 1].signal_fraction)


def test_without_held_out_showers_the_last_epoch_is_kept():
    fit = fit_wgan(toy_hits(), toy_hits(0.9), settings=replace(SHORT, held_out=0.0, stop="last"))
    assert fit.best_epoch == 4
    assert all(math.isnan(epoch.cramer) for epoch in fit.epochs)


def test_held_out_showers_change_no_training():
    reference, today = toy_hits(), toy_hits(0.8)
    _, held = wgan._split(today, SHORT.held_out, wgan._stream(5, 1, 1))
    assert 0 < np.count_nonzero(held.weight) < today.energy_mev.size
    changed = replace(today, energy_mev=np.where(held.weight > 0, 10.0, today.energy_mev))
    one, two = (fit_wgan(reference, hits, settings=SHORT, seed=5) for hits in (today, changed))
    assert [epoch.wasserstein for epoch in one.epochs] == [epoch.wasserstein for epoch in two.epochs]
    assert np.array_equal(one.epochs[-1].signal_fraction, two.epochs[-1].signal_fraction)
    assert one.epochs[-1].cramer < two.epochs[-1].cramer


def test_same_seed_same_result_and_another_seed_another():
    one, two, other = (fit_wgan(toy_hits(), toy_hits(0.8), settings=SHORT, seed=seed) for seed in (3, 3, 4))
    assert same(one, two)
    assert not same(one, other)


def test_the_global_generator_and_threads_are_left_alone():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    fit_wgan(toy_hits(), toy_hits(0.8), settings=replace(SHORT, penalty="spectral"))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_showers_of_no_weight_are_not_seen():
    today = toy_hits(0.8)
    weight = (np.arange(400) % 2).astype(float)
    spoiled = replace(today, energy_mev=np.where(weight[today.shower] > 0, today.energy_mev, 50.0))
    one, two = (fit_wgan(toy_hits(), hits.weighted(weight), settings=SHORT) for hits in (today, spoiled))
    assert same(one, two)


def test_the_weights_decide_which_showers_count():
    reference, today = toy_hits(), toy_hits(0.7)
    is_young = today.shower % 2 == 0
    mixed = replace(today, energy_mev=np.where(is_young, today.energy_mev / 0.7, today.energy_mev))
    heavy = np.where(np.arange(400) % 2 == 0, 9.0, 1.0)
    few, many = (fit_wgan(reference, mixed.weighted(weight), settings=SHORT).signal_fraction for weight in (10 - heavy, heavy))
    assert (many > few + 0.1).all()


def test_one_epoch_draws_each_shower_as_often_as_its_weight_says():
    weight = np.array([0.0, 1.0, 2.0, 1.0, 0.0, 2.0, 0.0, 2.0])
    hits = CellHits(1, np.arange(8), np.zeros(8, int), np.ones(8), np.zeros(8, np.int8), weight)
    sample = wgan._Sample(hits, torch.device("cpu"))
    orders = [sample.drawn(8, torch.Generator().manual_seed(k)).numpy() for k in range(20)]
    assert all(np.array_equal(np.bincount(order, minlength=8), weight) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_a_batch_holds_the_energies_of_its_showers():
    hits = toy_hits(n_showers=30)
    dense = np.zeros((30, N_CELLS), np.float32)
    dense[hits.shower, hits.cell_index] = hits.energy_mev
    rows = torch.tensor([7, 3, 7, 29])  # twice the same: a replica may draw it so
    assert np.array_equal(wgan._Sample(hits, torch.device("cpu")).matrix(rows).numpy(), dense[rows.numpy()])


@pytest.mark.parametrize("is_spectral", [False, True])
def test_the_slope_of_the_critic_is_its_gradient(is_spectral):
    critic = wgan._Critic(5, (8, 6), is_spectral=is_spectral, seed=1)
    seen = torch.randn((10, 5), generator=torch.Generator().manual_seed(2), requires_grad=True)
    (expected,) = torch.autograd.grad(critic(seen).sum(), seen)
    torch.testing.assert_close(critic.slope(seen), expected)


def test_a_spectral_critic_is_no_steeper_than_one():
    critic = wgan._Critic(5, (8, 6), is_spectral=True, seed=1)
    for _ in range(200):
        critic.iterate()
    largest = [torch.linalg.matrix_norm(weight, 2).item() for weight in critic.matrices()]
    assert largest == pytest.approx([1.0, 1.0, 1.0], abs=1e-3)  # the iteration converges as powers of a ratio below 1


def test_a_clipped_critic_stays_in_its_range(tmp_path):
    fit_wgan(toy_hits(), toy_hits(0.8), settings=replace(SHORT, penalty="clip", clip=0.02), checkpoint_dir=tmp_path)
    weights = [value for name, value in load_file(tmp_path / CHECKPOINT).items() if name.startswith("critic.")]
    assert max(value.abs().max().item() for value in weights) == pytest.approx(0.02)


def test_the_distance_of_two_single_hits_is_that_of_their_logarithms():
    hits = [CellHits(1, np.zeros(1, int), np.zeros(1, int), np.array([e]), np.zeros(1, np.int8), np.ones(1)) for e in (1.0, math.exp(0.5))]
    assert wgan._cramer(*hits, np.ones(1)) == pytest.approx(0.25)  # 1 x 1 / 2 times 1^2 over 0.5
    assert wgan._cramer(*hits, np.array([math.exp(0.5)])) == pytest.approx(0.0, abs=1e-15)


def test_the_distance_is_smallest_at_the_true_loss():
    tried = np.arange(0.7, 0.9, 0.02)
    distances = [wgan._cramer(toy_hits(), toy_hits(0.8), np.full(N_CELLS, r)) for r in tried]
    assert tried[np.argmin(distances)] == pytest.approx(0.8)


def test_a_cell_without_hits_is_not_guessed():
    today = toy_hits(0.8)
    kept = {name: getattr(today, name)[today.cell_index != 2] for name in ("shower", "cell_index", "energy_mev", "topology")}
    fit = fit_wgan(toy_hits(), replace(today, **kept), settings=SHORT)
    assert np.isnan(fit.signal_fraction).tolist() == [False, False, True, False]
    assert np.isfinite(fit.epochs[-1].cramer)


def test_interrupted_fit_resumes_to_the_same_bytes(tmp_path):
    def interrupt(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    samples = toy_hits(), toy_hits(0.8)
    settings = replace(SHORT, penalty="spectral")
    whole = fit_wgan(*samples, settings=settings, checkpoint_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit_wgan(*samples, settings=settings, checkpoint_dir=tmp_path / "broken", progress=interrupt)
    resumed = fit_wgan(*samples, settings=settings, checkpoint_dir=tmp_path / "broken")
    assert same(whole, resumed)
    assert (tmp_path / "broken" / CHECKPOINT).read_bytes() == (tmp_path / "whole" / CHECKPOINT).read_bytes()
    fit_wgan(*samples, settings=settings, checkpoint_dir=tmp_path / "whole", progress=lambda e: pytest.fail("an epoch was run"))


def test_killed_fit_resumes_to_the_same_bytes(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        import test_wgan as t
        def kill(epoch):
            if epoch.number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        t.fit_wgan(t.toy_hits(), t.toy_hits(0.8), settings=t.SHORT, checkpoint_dir=Path(sys.argv[1]), progress=kill)
    """)
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path / "killed")], cwd=Path(__file__).parent, check=False)
    assert child.returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        fit_wgan(toy_hits(), toy_hits(0.8), settings=SHORT, checkpoint_dir=tmp_path / name)
    assert (tmp_path / "killed" / CHECKPOINT).read_bytes() == (tmp_path / "whole" / CHECKPOINT).read_bytes()


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"settings": replace(SHORT, ema=0.5)}, {"today": toy_hits(0.9)}], ids=["seed", "settings", "today"]
)
def test_a_checkpoint_of_another_fit_is_refused(tmp_path, changed):
    given = {"reference": toy_hits(), "today": toy_hits(0.8), "settings": SHORT, "checkpoint_dir": tmp_path}
    fit_wgan(**given)
    with pytest.raises(ValueError, match="belongs to another fit"):
        fit_wgan(**(given | changed))


def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"torn")
    with pytest.raises(FileFormatError, match="delete it to start again"):
        fit_wgan(toy_hits(), toy_hits(0.8), settings=SHORT, checkpoint_dir=tmp_path)


def test_a_critic_that_is_not_finite_stops_the_fit():
    with pytest.raises(NotConvergedError, match="lower lr_critic"):
        fit_wgan(toy_hits(), toy_hits(0.8), settings=replace(SHORT, lr_critic=1e30))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs = 0 must be >= 1"),
        ({"batch": 0}, "batch = 0"),
        ({"n_critic": 0}, "n_critic = 0"),
        ({"critic": ()}, "at least one hidden layer"),
        ({"critic": (16, 0)}, "each of size >= 1"),
        ({"penalty": "none"}, "choose one of gradient, clip, spectral"),
        ({"start": "zero"}, "choose one of median, one"),
        ({"transform": "log"}, "choose one of peak, tanh, energy"),
        ({"stop": "best"}, "choose one of cramer, last"),
        ({"lr_critic": 0.0}, "lr_critic = 0.0 must be > 0"),
        ({"lr_weight": math.nan}, "lr_weight = nan"),
        ({"clip": -1.0}, "clip = -1.0"),
        ({"penalty_weight": math.inf}, "penalty_weight = inf"),
        ({"ema": 1.0}, "ema = 1.0 must be at least 0 and below 1"),
        ({"held_out": -0.1}, "held_out = -0.1"),
        ({"held_out": 0.0}, "set held_out to 0.2, or stop to 'last'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WganSettings(**settings)


def test_samples_of_other_cells_are_refused():
    with pytest.raises(ValueError, match="reference has 5 cells and today 4"):
        fit_wgan(replace(toy_hits(), n_cells=5), toy_hits(), settings=SHORT)


def test_a_sample_without_hits_is_refused():
    with pytest.raises(ValueError, match="today has no hits"):
        fit_wgan(toy_hits(), toy_hits().weighted(np.zeros(400)), settings=SHORT)


def test_too_few_showers_to_hold_out_are_refused():
    with pytest.raises(ValueError, match="give more showers"):
        fit_wgan(toy_hits(n_showers=2), toy_hits(n_showers=2), settings=SHORT)


def test_no_held_out_hits_to_stop_by_are_refused():
    def one_hit_each(cell):  # no cell is hit in both samples
        return CellHits(2, np.arange(20), np.full(20, cell), np.ones(20), np.zeros(20, np.int8), np.ones(20))

    with pytest.raises(ValueError, match="set stop to 'last'"):
        fit_wgan(one_hit_each(0), one_hit_each(1), settings=SHORT)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"'cuda:99'.*device='cpu'"):
        fit_wgan(toy_hits(), toy_hits(), settings=SHORT, device="cuda:99")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_what_the_cpu_finds():
    cpu, gpu = (fit_wgan(toy_hits(), toy_hits(0.8), settings=SHORT, device=device) for device in ("cpu", "cuda"))
    assert gpu.signal_fraction == pytest.approx(cpu.signal_fraction, abs=0.02)  # sums in another order
