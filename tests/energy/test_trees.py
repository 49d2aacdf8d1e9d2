"""Trees on top of the linear energy: what they may see, what they gain, what they keep."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calolife.energy.features import EnergySample, sample_of
from calolife.energy.linear import fit_linear
from calolife.energy.trees import Trees, fit_trees
from calolife.errors import FileFormatError
from calolife.showers.files import read_layer_sums
from calolife.storage import load_model_state, save_model


def toy(n: int = 400, *, seed: int = 1, n_layers: int = 12) -> EnergySample:
    """Two kinds of showers that only their width tells apart, the wide ones seen half as well again, 10 %/sqrt(E); rough layers."""
    rng = np.random.default_rng(seed)
    energy = rng.uniform(1.0, 100.0, n)
    is_wide = rng.random(n) < 0.5
    width = np.where(is_wide, 0.25, 0.1)[:, None]
    depth = (np.arange(n_layers) + 0.5) / n_layers
    profile = np.exp(-0.5 * ((depth - 0.5 - rng.uniform(-0.1, 0.1, (n, 1))) / width) ** 2)
    profile /= profile.sum(axis=1, keepdims=True)
    seen = np.where(is_wide, 30.0, 20.0) * energy * (1 + 0.1 * rng.standard_normal(n) / np.sqrt(energy))
    # without it the weights of twelve smooth layers would tell the width as well
    profile = profile * rng.gamma(20.0, 1 / 20.0, profile.shape)
    profile /= profile.sum(axis=1, keepdims=True)
    return EnergySample(profile * seen[:, None], energy, np.where(is_wide, -211, 22))


@pytest.fixture(scope="module")
def trees() -> Trees:
    return fit_trees(replace(toy(), digest="a" * 64), seed=1)


def rel_loss(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean((predicted - true) ** 2 / true))


def test_a_response_that_depends_on_the_shape_is_undone(trees: Trees) -> None:
    new = toy(2000, seed=7)
    loss, linear = (rel_loss(m.predict(new).energy_gev, new.energy_gev) for m in (trees, fit_linear(toy())))
    print("trees", loss, "linear", linear, "bound", 0.01)
    assert loss < 0.5 * linear
    assert loss > 0.01 * 0.9  # no better than (10 %)^2 of the sampling, but for the chance of 2000 showers


def test_neither_order_nor_company_changes_a_prediction(trees: Trees) -> None:
    sample = toy(101, seed=2)
    mixed = np.random.default_rng(3).permutation(101)
    whole, shuffled, alone = (trees.predict(s) for s in (sample, sample.select(mixed), sample.select([5])))
    np.testing.assert_array_equal(shuffled.energy_gev, whole.energy_gev[mixed])
    np.testing.assert_array_equal(alone.energy_gev, whole.energy_gev[[5]])
    np.testing.assert_array_equal(shuffled.sigma_gev, whole.sigma_gev[mixed])


def test_the_truth_of_what_is_predicted_changes_nothing(trees: Trees) -> None:
    sample = toy(50, seed=2)
    other = replace(sample, energy_gev=sample.energy_gev[::-1], pdg_id=np.full(50, 11))
    np.testing.assert_array_equal(trees.predict(other).energy_gev, trees.predict(sample).energy_gev)


def test_particles_of_the_training_are_not_looked_at(trees: Trees) -> None:
    sample = replace(toy(), pdg_id=np.zeros(400), digest="a" * 64)
    assert fit_trees(sample, seed=1).text == trees.text


def test_the_same_seed_gives_the_same_trees_and_another_one_others(trees: Trees) -> None:
    sample = replace(toy(), digest="a" * 64)
    again, other = fit_trees(sample, seed=1), fit_trees(sample, seed=2)
    assert (again.text, again.spread_text, again.spread_scale) == (trees.text, trees.spread_text, trees.spread_scale)
    assert other.text != trees.text


def test_showers_held_out_change_no_tree(trees: Trees) -> None:
    sample = toy(500)
    train = np.arange(400)
    spoiled = replace(sample, layer_energy_mev=np.where(np.arange(500)[:, None] < 400, sample.layer_energy_mev, 7.0))
    assert fit_trees(sample.select(train), seed=1).text == fit_trees(spoiled.select(train), seed=1).text


def test_energies_left_out_are_those_of_showers_the_trees_did_not_see() -> None:
    sample = toy()
    spoiled = sample.energy_gev.copy()
    spoiled[17] *= 1.5
    seen, unseen = fit_trees(sample, seed=1), fit_trees(replace(sample, energy_gev=spoiled), seed=1)
    # one truth moves its own prediction only through the other showers' linear energies
    assert unseen.left_out_gev[17] == pytest.approx(seen.left_out_gev[17], rel=0.05)
    # trees of four fifths of few showers are worse than those of all, never better: 3 times the 10 % of 400 showers
    new = toy(2000, seed=8)
    ratio = rel_loss(seen.left_out_gev, sample.energy_gev) / rel_loss(seen.predict(new).energy_gev, new.energy_gev)
    assert 0.7 < ratio < 2.0


def test_nothing_is_printed_even_for_few_showers(capfd: pytest.CaptureFixture[str]) -> None:
    fit_trees(toy(20)).predict(toy(5, seed=2))
    assert capfd.readouterr() == ("", "")


def test_two_thirds_of_new_showers_lie_within_their_sigma(trees: Trees) -> None:
    new = toy(4000, seed=9)
    found = trees.predict(new)
    assert found.sigma_gev is not None
    within = np.mean(np.abs(found.energy_gev - new.energy_gev) < found.sigma_gev)
    assert within == pytest.approx(0.683, abs=0.07)  # 3 sqrt(.68 .32 / 400) of the sample it was fitted on


def test_a_stored_model_predicts_the_same_to_the_bit(trees: Trees, tmp_path: Path) -> None:
    save_model(trees, tmp_path)
    name, arrays, meta = load_model_state(tmp_path)
    assert name == "trees"
    back, there = Trees.from_state(arrays, meta).predict(toy(50, seed=2)), trees.predict(toy(50, seed=2))
    np.testing.assert_array_equal(back.energy_gev, there.energy_gev)
    np.testing.assert_array_equal(back.sigma_gev, there.sigma_gev)
    assert {p.name for p in tmp_path.iterdir()} == {"model.json", "model.safetensors"}


def test_showers_like_none_of_the_training_get_a_finite_energy(trees: Trees) -> None:
    odd = np.zeros((4, 12))
    odd[1, 0], odd[2, 11], odd[3] = 1e6, 1e-9, -1.0  # all in the first layer, next to nothing in the last, only noise below 0
    found = trees.predict(EnergySample(odd, np.ones(4), np.full(4, 22)))
    assert np.isfinite(found.energy_gev).all()
    assert (found.energy_gev >= trees.lowest_gev).all()
    assert found.sigma_gev is not None
    assert (found.sigma_gev > 0).all()


@pytest.mark.parametrize("n", [20, 25, 60])
def test_few_showers_are_enough(n: int) -> None:
    found = fit_trees(toy(n)).predict(toy(50, seed=2))
    assert np.isfinite(found.energy_gev).all()


def test_showers_without_energy_in_the_training_do_no_harm() -> None:
    sample = toy(200)
    layers = sample.layer_energy_mev.copy()
    layers[:5] = 0.0
    found = fit_trees(replace(sample, layer_energy_mev=layers)).predict(toy(50, seed=2))
    assert np.isfinite(found.energy_gev).all()


def test_what_the_cells_tell_is_read_where_they_are_there() -> None:
    sample = toy()
    hidden = np.random.default_rng(5).uniform(0.8, 1.2, 400)  # a response that only a cell knows
    told = replace(sample, layer_energy_mev=sample.layer_energy_mev * hidden[:, None], shape=hidden[:, None], shape_names=("hidden",))
    with_cells, without = fit_trees(told), fit_trees(replace(told, shape=np.empty((400, 0)), shape_names=()))
    assert rel_loss(with_cells.left_out_gev, told.energy_gev) < 0.5 * rel_loss(without.left_out_gev, told.energy_gev)
    with pytest.raises(ValueError, match="have no hidden"):
        with_cells.predict(sample)


@pytest.mark.parametrize("sample", [toy(19), EnergySample(np.zeros((50, 4)), np.ones(50), np.full(50, 22))], ids=["few", "empty"])
def test_too_little_to_train_on_is_refused(sample: EnergySample) -> None:
    with pytest.raises(ValueError, match=r"too few|left energy"):
        fit_trees(sample)


def test_showers_of_another_detector_are_refused(trees: Trees) -> None:
    with pytest.raises(ValueError, match="11 layers"):
        trees.predict(toy(5, n_layers=11))
    with pytest.raises(ValueError, match="detector bbbbbbbb"):
        trees.predict(replace(toy(5), digest="b" * 64))


def test_damaged_trees_are_said_to_be(trees: Trees) -> None:
    arrays, meta = trees.state()
    half = arrays["text"][: arrays["text"].size // 2]
    with pytest.raises(FileFormatError, match="train the model again"):
        Trees.from_state(arrays | {"text": half}, meta).predict(toy(5))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["stack_v2.h5", "stack_v3.h5"])
def test_trees_beat_the_weights_per_layer_on_geant4_showers(file: str) -> None:
    root = os.environ.get("CALOLIFE_DATA")
    if not root or not (Path(root) / "geant4" / file).is_file():
        pytest.skip(f"set CALOLIFE_DATA to a directory with geant4/{file}; 'calolife showers simulate --engine geant4' makes the like")
    sample = sample_of(read_layer_sums(Path(root) / "geant4" / file))
    mixed = np.random.default_rng(1).permutation(sample.n_showers)
    held, rest = np.split(mixed, [round(0.2 * sample.n_showers)])
    model, test = fit_trees(sample.select(rest)), sample.select(held)
    loss, linear = (rel_loss(m.predict(test).energy_gev, test.energy_gev) for m in (model, model.linear))
    print(file, "rel_loss trees", loss, "linear", linear)
    assert loss < 0.97 * linear
