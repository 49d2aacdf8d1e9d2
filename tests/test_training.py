"""The supervised loop: every sample once an epoch, seeds, early stopping, and a resumption that leaves no trace."""

import math
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from calolife.errors import FileFormatError, NotConvergedError
from calolife.training import SCHEDULES, Epoch, Training, dropout, find_devices, initialise, train

X = torch.linspace(-1, 1, 50).reshape(-1, 1)
Y = torch.sin(3 * X)


def small_net(seed: int = 0) -> nn.Module:
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    initialise(net, seed=seed)
    return net


def fitted(net: nn.Module, **settings) -> Training:
    def noisy_loss(net, sample, generator):  # the noise makes the result depend on the generator
        noise = 0.1 * torch.randn(sample.numel(), 1, generator=generator)
        return nn.functional.mse_loss(net(X[sample]), Y[sample] + noise)

    given = {"n_samples": 50, "epochs": 6, "batch_size": 16, "validate": lambda: nn.functional.mse_loss(net(X), Y).item()}
    return train(net, noisy_loss, **(given | settings))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("n_samples", [1, 16, 17, 50])
def test_one_epoch_visits_each_sample_once(n_samples):
    net, visits, sizes = small_net(), torch.zeros(n_samples, dtype=torch.int64), []

    def loss(net, sample, generator):
        visits.index_add_(0, sample, torch.ones_like(sample))
        sizes.append(sample.numel())
        return net(X[sample]).square().mean()

    train(net, loss, n_samples=n_samples, epochs=3, batch_size=16)
    assert (visits == 3).all()
    assert max(sizes) <= 16
    assert max(sizes) - min(sizes) <= 1


def test_samples_come_in_a_new_order_each_epoch():
    net, seen = small_net(), []

    def loss(net, sample, generator):
        seen.append(tuple(sample.tolist()))
        return net(X[sample]).square().mean()

    train(net, loss, n_samples=50, epochs=4, batch_size=50)
    assert len(set(seen)) == 4


def test_same_seed_gives_the_same_weights():
    one, two = small_net(), small_net()
    fitted(one, seed=5)
    fitted(two, seed=5)
    assert same_weights(one, two)


def test_another_seed_gives_other_weights():
    one, two = small_net(), small_net()
    fitted(one, seed=5)
    fitted(two, seed=6)
    assert not same_weights(one, two)


def test_training_leaves_the_global_generator_alone():
    with torch.random.fork_rng(devices=[]):
        before = torch.random.get_rng_state()
        net = nn.Linear(1, 1, device="meta").to_empty(device="cpu")
        initialise(net, seed=3)
        train(net, lambda net, i, g: (net(X[i]) - Y[i]).square().mean(), n_samples=50, epochs=2)
        assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("layer", "bound"), [(nn.Linear(100, 400), 0.1), (nn.LSTM(3, 100, 2), 0.1), (nn.GRU(3, 25), 0.2)], ids=["linear", "lstm", "gru"]
)
def test_weights_start_uniform_within_pytorchs_bounds(layer, bound):
    initialise(layer, seed=1)
    drawn = torch.cat([p.detach().flatten() for p in layer.parameters()]).numpy()
    assert np.abs(drawn).max() <= bound
    # a uniform deviate on +-b has rms b/sqrt(3), known from n draws to sqrt(1/5n) (kurtosis 9/5)
    assert np.sqrt((drawn**2).mean()) == pytest.approx(bound / math.sqrt(3), rel=4 * math.sqrt(1 / (5 * drawn.size)))


def test_a_layer_without_a_known_initialisation_is_refused():
    with pytest.raises(TypeError, match="Conv1d"):
        initialise(nn.Sequential(nn.Conv1d(1, 1, 3)), seed=0)


def test_the_best_weights_are_kept_and_training_stops_when_validation_worsens():
    net, weights = small_net(), []
    scores = iter([3.0, 2.0, 1.0, 4.0, 4.0, 4.0, 4.0])

    def validate():
        weights.append({name: p.clone() for name, p in net.state_dict().items()})
        return next(scores)

    done = fitted(net, epochs=100, patience=3, validate=validate)
    assert (done.best_epoch, len(done.loss), done.is_stopped_early) == (3, 6, True)
    assert all(torch.equal(p, weights[2][name]) for name, p in net.state_dict().items())


def test_without_validation_the_last_weights_are_kept():
    done = fitted(small_net(), epochs=4, validate=None)
    assert (done.best_epoch, done.is_stopped_early) == (4, False)
    assert np.isnan(done.validation_loss).all()


def test_progress_reports_every_epoch():
    epochs: list[Epoch] = []
    done = fitted(small_net(), epochs=4, progress=epochs.append)
    assert [e.number for e in epochs] == [1, 2, 3, 4]
    assert tuple(e.loss for e in epochs) == done.loss
    assert {e.n_epochs for e in epochs} == {4}


def test_interrupted_training_keeps_the_best_weights_and_resumes_to_the_same_bytes(tmp_path):
    def interrupt(epoch):
        if epoch.number == 3:
            raise KeyboardInterrupt

    whole, broken, resumed = small_net(), small_net(), small_net()
    done = fitted(whole, checkpoint_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(broken, checkpoint_dir=tmp_path / "broken", progress=interrupt)
    stored = load_file(tmp_path / "broken" / "checkpoint.safetensors")
    assert all(torch.equal(p, stored[f"best.{name}"]) for name, p in broken.state_dict().items())

    assert fitted(resumed, checkpoint_dir=tmp_path / "broken") == done
    assert same_weights(whole, resumed)
    name = "checkpoint.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_training_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        import test_training as t
        t.fitted(t.small_net(), epochs=40, patience=40, checkpoint_dir=Path(sys.argv[1]), progress=lambda e: time.sleep(0.05))
    """)
    fitted(small_net(), epochs=40, patience=40, checkpoint_dir=tmp_path / "whole")
    whole, killed = (tmp_path / name / "checkpoint.safetensors" for name in ("whole", "killed"))

    child = subprocess.Popen([sys.executable, "-c", script, str(killed.parent)], cwd=Path(__file__).parent)
    while not killed.exists() and child.poll() is None:
        time.sleep(0.005)
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert killed.read_bytes() != whole.read_bytes()

    fitted(small_net(), epochs=40, patience=40, checkpoint_dir=killed.parent)
    assert killed.read_bytes() == whole.read_bytes()


def test_a_finished_training_is_not_trained_further(tmp_path):
    first, again = small_net(), small_net()
    done = fitted(first, checkpoint_dir=tmp_path)
    assert fitted(again, checkpoint_dir=tmp_path, progress=lambda e: pytest.fail("an epoch was run")) == done
    assert same_weights(first, again)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1}, {"lr": 0.1}, {"batch_size": 8}, {"identity": "other data"}, {"weight_decay": 0.1}, {"clip_norm": 1.0},
        {"schedule": "plateau"},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changed):
    fitted(small_net(), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=f"another training.*{next(iter(changed))}"):
        fitted(small_net(), checkpoint_dir=tmp_path, **changed)


def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path):
    fitted(small_net(), checkpoint_dir=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileFormatError, match="delete it to start again"):
        fitted(small_net(), checkpoint_dir=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_training():
    net = small_net()
    with pytest.raises(NotConvergedError, match=r"epoch 1; lower lr"):
        train(net, lambda net, i, g: net(X[i]).mean() * math.inf, n_samples=50, epochs=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs = 0 must be >= 1"),
        ({"n_samples": 0}, "n_samples = 0 must be >= 1"),
        ({"batch_size": 0}, "batch_size = 0 must be >= 1"),
        ({"patience": 0}, "patience = 0 must be >= 1"),
        ({"lr": 0.0}, "lr = 0.0 must be > 0"),
        ({"patience": 5, "validate": None}, "needs a validation loss"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1 must be >= 0"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0 must be > 0"),
        ({"schedule": "steps"}, "schedule 'steps' is unknown; choose one of constant, cosine, plateau"),
        ({"schedule": "plateau", "validate": None}, "schedule 'plateau' needs a validation loss"),
        ({"device": "gpu"}, "device 'gpu' is unknown to PyTorch; write cpu, cuda"),
        ({"device": "cpu,cuda:99"}, "device 'cuda:99' is not there"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fitted(small_net(), **settings)


def interrupted_and_resumed(folder: Path, **settings) -> tuple[Training, bytes]:
    """A training stopped after its second and its sixth epoch, and the bytes of its last checkpoint."""

    def interrupt(epoch):
        if epoch.number in (2, 6):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fitted(small_net(), checkpoint_dir=folder, progress=interrupt, **settings)
    done = fitted(small_net(), checkpoint_dir=folder, **settings)
    return done, (folder / "checkpoint.safetensors").read_bytes()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_leaves_no_trace_of_an_interruption(tmp_path, schedule):
    # patience of one epoch and a step far too long: the plateau is reached again and again
    settings = {"epochs": 12, "schedule": schedule, "lr": 0.3, "weight_decay": 0.01, "clip_norm": 0.5}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("calolife.training._PLATEAU_PATIENCE", 1)
        done = fitted(small_net(), checkpoint_dir=tmp_path / "whole", **settings)
        again, stored = interrupted_and_resumed(tmp_path / "broken", **settings)
    assert again == done
    assert stored == (tmp_path / "whole" / "checkpoint.safetensors").read_bytes()


def steps_taken(schedule: str, *, epochs: int, scores: list[float]) -> list[float]:
    """Step size of each epoch: what Adam moves a weight by under a constant gradient, but for its epsilon."""
    line = nn.Linear(1, 1, bias=False)
    initialise(line, seed=0)
    at = [line.weight.item()]
    left = iter(scores)

    def validate():
        at.append(line.weight.item())
        return next(left)

    train(line, lambda net, i, g: net.weight.sum(), n_samples=1, epochs=epochs, lr=0.1, schedule=schedule, validate=validate)
    return (-np.diff(at)).tolist()


def test_the_cosine_falls_from_lr_towards_zero():
    made = steps_taken("cosine", epochs=4, scores=[1.0] * 4)
    # float32 weights of order 1 are known to 1e-7
    assert made == pytest.approx([0.1 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)], abs=1e-6)


def test_the_plateau_halves_the_step_after_ten_epochs_without_gain():
    scores = [2.0, 1.0, *[1.5] * 10, *[1.0] * 10, 0.5, 0.5]
    assert steps_taken("plateau", epochs=24, scores=scores) == pytest.approx([0.1] * 12 + [0.05] * 10 + [0.025] * 2, abs=1e-6)


def test_a_finished_cosine_is_not_prolonged(tmp_path):
    fitted(small_net(), checkpoint_dir=tmp_path, schedule="cosine", epochs=3)
    with pytest.raises(ValueError, match=r"another training.*epochs 3, now 4"):
        fitted(small_net(), checkpoint_dir=tmp_path, schedule="cosine", epochs=4)


def test_weight_decay_draws_unused_weights_to_zero():
    net = nn.Linear(1, 1)
    initialise(net, seed=0)
    before = net.weight.item()
    # AdamW: each of the 5 steps takes off lr x decay = 0.05; the loss moves the bias alone
    train(net, lambda net, i, g: net.bias.sum() + 0 * net.weight.sum(), n_samples=1, epochs=5, lr=0.1, weight_decay=0.5)
    assert net.weight.item() == pytest.approx(before * 0.95**5, rel=1e-5)


def test_clipping_bounds_the_gradient_of_all_weights_together():
    net, seen = small_net(), []
    shorten = nn.utils.clip_grad_norm_

    def spied(parameters, most):
        before = shorten(parameters, most)
        seen.append((before.item(), math.sqrt(sum(p.grad.square().sum().item() for p in parameters))))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nn.utils, "clip_grad_norm_", spied)
        train(net, lambda net, i, g: 1000 * net(X[i]).square().mean(), n_samples=50, epochs=3, clip_norm=0.5)
    assert min(before for before, _ in seen) > 0.5
    assert max(after for _, after in seen) == pytest.approx(0.5, rel=1e-4)  # PyTorch divides by the length + 1e-6


@pytest.mark.parametrize("device", ["cpu,cpu", "cpu,cpu,cpu"])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.01, "clip_norm": 0.5, "schedule": "cosine"}, {"batch_size": 1}])
def test_several_devices_train_as_one(device, settings):
    def quiet_loss(net, sample, generator):
        return nn.functional.mse_loss(net(X[sample]), Y[sample])

    one, several = small_net(), small_net()
    given = {"n_samples": 50, "epochs": 6, "batch_size": 16, "lr": 0.01} | settings
    alone = train(one, quiet_loss, validate=lambda: quiet_loss(one, torch.arange(50), None).item(), **given)
    shared = train(several, quiet_loss, validate=lambda: quiet_loss(several, torch.arange(50), None).item(), device=device, **given)
    # single precision, some 20 to 300 steps
    assert shared.loss == pytest.approx(alone.loss, rel=1e-4)
    assert shared.validation_loss == pytest.approx(alone.validation_loss, rel=1e-4)


def test_each_device_gets_its_own_copy_and_each_sample_goes_to_one():
    net, seen, nets = small_net(), [], set()

    def loss(net, sample, generator):
        nets.add(id(net))
        seen.extend(sample.tolist())
        return net(X[sample]).square().mean()

    train(net, loss, n_samples=50, epochs=1, batch_size=16, device="cpu,cpu")
    assert sorted(seen) == list(range(50))
    assert len(nets) == 2


def test_mixed_precision_leaves_the_cpu_alone():
    one, two = small_net(), small_net()
    assert fitted(one, is_mixed=True) == fitted(two)
    assert same_weights(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mixed_precision_computes_the_loss_in_bfloat16():
    net, kinds = small_net(), []
    x, y = X.cuda(), Y.cuda()

    def loss(net, sample, generator):
        made = net(x[sample])
        kinds.append(made.dtype)
        return nn.functional.mse_loss(made.float(), y[sample])

    done = train(net, loss, n_samples=50, epochs=20, batch_size=16, lr=0.02, device="cuda", is_mixed=True)
    assert set(kinds) == {torch.bfloat16}
    assert done.loss[-1] < 0.5 * done.loss[0]
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one():
    data = {t.device: t for t in (torch.cat([X, Y], 1).to(d) for d in find_devices("cuda:0,cuda:1"))}

    def loss(net, sample, generator):
        x, y = data[sample.device][sample].split(1, dim=1)
        return nn.functional.mse_loss(net(x), y)

    given = {"n_samples": 50, "epochs": 6, "batch_size": 16}
    one, two = small_net(), small_net()
    alone = train(one, loss, device="cuda:0", **given)
    assert train(two, loss, device="cuda:0,cuda:1", **given).loss == pytest.approx(alone.loss, rel=1e-4)


def test_dropout_keeps_the_mean_and_drops_the_rate():
    made = dropout(torch.ones(100_000), 0.2, torch.Generator().manual_seed(1))
    assert set(made.unique().tolist()) == {0.0, 1.25}
    # binomial
    assert (made == 0).double().mean().item() == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 100_000))


def test_dropout_without_a_generator_changes_nothing():
    assert torch.equal(dropout(X, 0.5, None), X)


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.LSTM(1, 4, 2, dropout=0.1)], ids=["dropout", "lstm"])
def test_a_layer_that_draws_from_the_global_generator_is_refused(layer):
    with pytest.raises(ValueError, match=r"global generator.*calolife\.training\.dropout"):
        train(nn.Sequential(nn.Linear(1, 1), layer), lambda net, i, g: net(X[i]).mean(), n_samples=50, epochs=1)
