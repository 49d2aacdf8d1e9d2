"""The published network: the same from a seed, blind to the truth it predicts and to what stands beside a shower."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from calolife.energy.dnn import LAYERS_FIRST, LAYERS_LATER, Dnn, fit_dnn
from calolife.energy.features import EnergySample
from calolife.energy.linear import fit_sum
from calolife.storage import load_model_state, save_model

SMALL = {"layers": (16, 8), "epochs": 6}


def toy(n: int = 400, *, seed: int = 1) -> EnergySample:
    """Photons and pions of 1 to 100 GeV in 6 layers, of which the last three see half as much: no one scale fits both."""
    rng = np.random.default_rng(seed)
    energy = rng.uniform(1.0, 100.0, n)
    is_pion = rng.random(n) < 0.5
    early, late = np.array([5.0, 4.0, 2.0, 1.0, 0.5, 0.1]), np.array([0.5, 1.0, 2.0, 3.0, 3.0, 3.0])
    share = np.array([rng.dirichlet(late if pion else early) for pion in is_pion])
    seen = energy[:, None] * 1000 * share * [0.04, 0.04, 0.04, 0.02, 0.02, 0.02]
    return EnergySample(seen * rng.normal(1.0, 0.02, seen.shape), energy, np.where(is_pion, -211, 22), digest="toy")


def rel_loss(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(((predicted - true) ** 2 / true).mean())


def stored(model: Dnn) -> dict[str, bytes]:
    arrays, meta = model.state()
    return {name: value.tobytes() for name, value in arrays.items()} | {"meta": repr(sorted(meta.items())).encode()}


@pytest.fixture(scope="module")
def sample() -> EnergySample:
    return toy()


@pytest.fixture(scope="module")
def model(sample: EnergySample) -> Dnn:
    return fit_dnn(sample, seed=3, **SMALL)


def test_the_network_beats_one_scale(sample: EnergySample) -> None:
    test = toy(1000, seed=2)
    fitted = fit_dnn(sample, layers=(64, 32), epochs=150)
    ours, theirs = (rel_loss(m.predict(test).energy_gev, test.energy_gev) for m in (fitted, fit_sum(sample)))
    print(f"rel_loss: network {ours:.3f}, scaled sum {theirs:.3f}")
    assert ours < 0.5 * theirs


def test_same_seed_gives_the_same_bytes(sample: EnergySample, model: Dnn) -> None:
    assert stored(fit_dnn(sample, seed=3, **SMALL)) == stored(model)


def test_another_seed_gives_another_network(sample: EnergySample, model: Dnn) -> None:
    assert stored(fit_dnn(sample, seed=4, **SMALL)) != stored(model)


def test_the_order_of_the_training_showers_does_not_matter(sample: EnergySample, model: Dnn) -> None:
    shuffled = sample.select(np.random.default_rng(0).permutation(sample.n_showers))
    assert stored(fit_dnn(shuffled, seed=3, **SMALL)) == stored(model)


def test_a_killed_training_resumes_to_the_same_bytes(tmp_path, sample: EnergySample, model: Dnn) -> None:
    def interrupt(epoch):
        if epoch.number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_dnn(sample, seed=3, checkpoint_dir=tmp_path, progress=interrupt, **SMALL)
    epochs = []
    resumed = fit_dnn(sample, seed=3, checkpoint_dir=tmp_path, progress=epochs.append, **SMALL)
    assert [e.number for e in epochs] == [5, 6]
    assert stored(resumed) == stored(model)


def test_a_checkpoint_of_other_showers_is_refused(tmp_path, sample: EnergySample) -> None:
    fit_dnn(sample, layers=(4,), epochs=1, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="belongs to another training"):
        fit_dnn(toy(seed=5), layers=(4,), epochs=1, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("n_showers", [1, 7, 8, 9, 100, 399])
def test_a_shower_is_predicted_the_same_whatever_stands_beside_it(sample: EnergySample, model: Dnn, n_showers: int) -> None:
    alone = model.predict(sample).energy_gev
    order = np.random.default_rng(n_showers).permutation(sample.n_showers)[:n_showers]
    assert_array_equal(model.predict(sample.select(order)).energy_gev, alone[order])


def test_predictions_do_not_depend_on_how_many_are_made_at_once(model: Dnn) -> None:
    many = toy(2000, seed=7)
    whole = model.predict(many).energy_gev
    parts = [model.predict(many.select(part)).energy_gev for part in np.array_split(np.arange(2000), 7)]
    assert_array_equal(np.concatenate(parts), whole)


def test_the_truth_of_a_predicted_shower_is_not_looked_at(sample: EnergySample, model: Dnn) -> None:
    lied = replace(sample, energy_gev=sample.energy_gev[::-1], pdg_id=np.full(sample.n_showers, 11))
    for ours, theirs in zip(vars(model.predict(sample)).values(), vars(model.predict(lied)).values(), strict=True):
        assert_array_equal(ours, theirs)


def test_scales_come_from_the_showers_trained_on_alone(sample: EnergySample, model: Dnn) -> None:
    n_fitted = sample.n_showers - round(0.1 * sample.n_showers)
    ordered = sample.select(np.argsort(sample.fingerprint))
    fitted = ordered.select(np.random.default_rng(3).permutation(sample.n_showers)[-n_fitted:])
    assert_array_equal(model.mean, fitted.layer_energy_mev.mean(axis=0))
    assert_array_equal(model.width, fitted.layer_energy_mev.std(axis=0))
    assert model.scale_gev == fitted.energy_gev.mean()


def test_training_leaves_the_global_generators_alone(sample: EnergySample) -> None:
    with torch.random.fork_rng(devices=[]):
        before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        fit_dnn(sample, layers=(4,), epochs=2, dropout=0.5)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_numpy_predicts_what_the_network_answers(sample: EnergySample, model: Dnn) -> None:
    x = torch.from_numpy((sample.layer_energy_mev - model.mean) / model.width)
    for weight, bias in model.weights[:-1]:
        x = torch.nn.functional.gelu(x @ torch.from_numpy(weight).double().T + torch.from_numpy(bias))
    last = x @ torch.from_numpy(model.weights[-1][0]).double().T + torch.from_numpy(model.weights[-1][1])
    expected = model.scale_gev * torch.nn.functional.softplus(last[:, 0])
    # predictions are rounded to single precision
    np.testing.assert_allclose(model.predict(sample).energy_gev, expected.numpy(), rtol=2e-7)


def test_energies_are_above_zero_wherever_the_layers_are(model: Dnn) -> None:
    wild = EnergySample(np.array([[0.0] * 6, [1e5] * 6, [1e5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1e5]]), np.ones(4), np.full(4, 22))
    assert (model.predict(wild).energy_gev > 0).all()


def test_the_published_forms_are_within_reach(sample: EnergySample) -> None:
    later = fit_dnn(sample, epochs=1)
    first = fit_dnn(sample, layers=LAYERS_FIRST, dropout=0.0, epochs=1)
    assert (later.layers, later.dropout) == (LAYERS_LATER, 0.2) == ((256, 128, 64), 0.2)
    assert (first.layers, first.dropout) == ((256, 128), 0.0)


def test_training_curves_are_kept(model: Dnn) -> None:
    assert model.loss.shape == model.validation_loss.shape == (6,)
    assert model.best_epoch == 1 + int(model.validation_loss.argmin())


def test_a_stored_network_predicts_the_same(tmp_path, sample: EnergySample, model: Dnn) -> None:
    save_model(model, tmp_path)
    name, arrays, meta = load_model_state(tmp_path)
    again = Dnn.from_state(arrays, meta)
    assert name == "dnn"
    assert stored(again) == stored(model)
    for ours, theirs in zip(vars(again.predict(sample)).values(), vars(model.predict(sample)).values(), strict=True):
        assert_array_equal(ours, theirs)


def test_a_layer_that_saw_nothing_is_no_trouble(sample: EnergySample) -> None:
    blind = replace(sample, layer_energy_mev=sample.layer_energy_mev * [1, 1, 1, 1, 1, 0])
    assert np.isfinite(fit_dnn(blind, layers=(4,), epochs=1).predict(blind).energy_gev).all()


def test_the_spread_of_the_bulk_is_what_the_network_says(sample: EnergySample) -> None:
    fitted, test = fit_dnn(sample, layers=(64, 32), epochs=60), toy(1000, seed=2)
    made = fitted.predict(test)
    part = np.mean(np.abs(made.energy_gev - test.energy_gev) < made.sigma_gev)
    # fitted to 40 validation showers: a quantile of 40 is known to 0.07, and three of that are allowed
    assert part == pytest.approx(0.683, abs=0.22)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, r"layers = \(\) must be one whole number >= 1 or more"),
        ({"layers": (16, 0)}, r"layers = \(16, 0\) must be"),
        ({"dropout": 1.0}, "dropout = 1.0 must be >= 0 and < 1"),
        ({"dropout": -0.1}, "dropout = -0.1 must be >= 0"),
        ({"epochs": 0}, "epochs = 0 must be >= 1"),
        ({"device": "gpu"}, "device 'gpu' is unknown to PyTorch"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
    ],
)
def test_bad_settings_are_refused_in_one_line(sample: EnergySample, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fit_dnn(sample, **settings)
    assert "\n" not in str(caught.value)


def test_too_few_showers_are_refused() -> None:
    with pytest.raises(ValueError, match="too few to fit"):
        fit_dnn(toy(10))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (EnergySample(np.ones((2, 5)), np.ones(2), np.full(2, 22)), "have 5 layers, the model was fitted on 6"),
        (EnergySample(np.ones((2, 6)), np.ones(2), np.full(2, 22), digest="other"), "made in detector"),
    ],
)
def test_showers_of_another_detector_are_refused(model: Dnn, other: EnergySample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict(other)
