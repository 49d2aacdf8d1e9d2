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
from calolife.training import Epoch, Training, initialise, train

X = torch.linspace(-1, 1, 50).reshape(-1, 1)
Y = torch.sin(3 * X)


def small_net(seed: int = 0) -> nn.Module:
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    initialise(net, seed=seed)
    return net


def fitted(net: nn.Module, **settings) -> Training:
    def noisy_loss(sample, generator):  # the noise makes the result depend on the generator
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

    def loss(sample, generator):
        visits.index_add_(0, sample, torch.ones_like(sample))
        sizes.append(sample.numel())
        return net(X[sample]).square().mean()

    train(net, loss, n_samples=n_samples, epochs=3, batch_size=16)
    assert (visits == 3).all()
    assert max(sizes) <= 16
    assert max(sizes) - min(sizes) <= 1


def test_samples_come_in_a_new_order_each_epoch():
    net, seen = small_net(), []

    def loss(sample, generator):
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
        train(net, lambda i, g: (net(X[i]) - Y[i]).square().mean(), n_samples=50, epochs=2)
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


@pytest.mark.parametrize("changed", [{"seed": 1}, {"lr": 0.1}, {"batch_size": 8}, {"identity": "other data"}], ids=lambda c: next(iter(c)))
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
        train(net, lambda i, g: net(X[i]).mean() * math.inf, n_samples=50, epochs=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs = 0 must be >= 1"),
        ({"n_samples": 0}, "n_samples = 0 must be >= 1"),
        ({"batch_size": 0}, "batch_size = 0 must be >= 1"),
        ({"patience": 0}, "patience = 0 must be >= 1"),
        ({"lr": 0.0}, "lr = 0.0 must be > 0"),
        ({"patience": 5, "validate": None}, "needs a validation loss"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fitted(small_net(), **settings)
