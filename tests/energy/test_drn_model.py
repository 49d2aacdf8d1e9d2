"""The fitted network: the same from a seed, after a kill and in any order; calibrated; plain about what it cannot read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from calolife.detector.presets import load_detector
from calolife.energy.drn_model import DrnModel, fit_drn
from calolife.energy.features import EnergySample
from calolife.energy.objects import CRYSTAL_FEATURES, EVENT_INPUTS, Objects
from calolife.energy.resolution import shortest_half
from calolife.storage import load_model_state, save_model

BARREL = load_detector("cms-barrel")
SMALL = {"width": 8, "hidden": 8, "k": 4, "epochs": 3, "batch_size": 64}


def toy(n: int = 300, *, seed: int = 1, most: int = 12) -> EnergySample:
    """Objects of 5 to 100 GeV that lose the more the fewer crystals were hit, smeared by 1 %."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(5.0, 100.0, n)
    count = rng.integers(1, most, n)
    raw = true * (0.7 + 0.02 * count) * rng.normal(1.0, 0.01, n)
    of = np.repeat(np.arange(n), count)
    ring, iphi = rng.integers(10, 70, n), rng.integers(20, 340, n)
    first = np.concatenate([[0], np.cumsum(count)])
    place = np.arange(of.size) - first[of]
    share = np.exp(-place.astype(float)) * rng.uniform(0.5, 1.5, of.size)
    energy = 1000.0 * raw[of] * share / np.bincount(of, share)[of]
    cell = BARREL.cell_id(ring[of] + place // 3, iphi[of] + place % 3)
    objects = Objects(
        BARREL, first, cell, energy, np.zeros(of.size), cell[first[:-1]], 0.0174 * ring, rho_gev=np.full(n, np.nan),
        hadronic_gev=np.full(n, np.nan),
    )  # fmt: skip
    features = rng.normal(size=(n, len(CRYSTAL_FEATURES)))
    features[:, 0] = objects.raw_energy_gev
    features[:, 1] = 0.0  # one that never varies
    return EnergySample(
        1000.0 * objects.raw_energy_gev[:, None], true, np.full(n, 11), features, CRYSTAL_FEATURES, digest=BARREL.digest, objects=objects
    )


def stored(model: DrnModel) -> dict[str, bytes]:
    arrays, meta = model.state()
    return {name: value.tobytes() for name, value in arrays.items()} | {"meta": repr(sorted(meta.items())).encode()}


@pytest.fixture(scope="module")
def sample() -> EnergySample:
    return toy()


@pytest.fixture(scope="module")
def model(sample: EnergySample) -> DrnModel:
    return fit_drn(sample, seed=3, **SMALL)


@pytest.fixture(scope="module")
def trained() -> DrnModel:
    return fit_drn(toy(4000), seed=1, width=16, hidden=16, k=4, epochs=6, batch_size=64)


def test_the_network_beats_the_raw_energy(trained: DrnModel) -> None:
    test = toy(1000, seed=2)
    raw = test.visible_mev / 1000 / test.energy_gev
    found = trained.predict(test).energy_gev / test.energy_gev
    widths = [np.diff(np.quantile(r / np.median(r), [0.16, 0.84]))[0] / 2 for r in (found, raw)]
    print(f"half width: network {widths[0]:.4f}, raw {widths[1]:.4f}")
    assert widths[0] < 0.4 * widths[1]  # the smearing leaves 1 % of 8 %


def test_pulls_have_width_one_on_other_objects(trained: DrnModel) -> None:
    test = toy(4000, seed=2)
    found = trained.predict(test)
    pull = np.sort((found.energy_gev - test.energy_gev) / found.sigma_gev)
    # a 16 % quantile of n pulls has an error of 1.5 / sqrt(n); four of those of 400 validation objects, and of 4,000 test objects
    assert shortest_half(pull[None])[0] == pytest.approx(1.0, abs=4 * 1.5 / np.sqrt(2) * np.hypot(1 / np.sqrt(400), 1 / np.sqrt(4000)))
    assert np.median(pull) == pytest.approx(0.0, abs=4 * 1.25 * np.hypot(1 / np.sqrt(400), 1 / np.sqrt(4000)))


def test_same_seed_gives_the_same_bytes(sample: EnergySample, model: DrnModel) -> None:
    assert stored(fit_drn(sample, seed=3, **SMALL)) == stored(model)


def test_the_weights_do_not_depend_on_the_threads(sample: EnergySample, model: DrnModel) -> None:
    assert stored(fit_drn(sample, seed=3, n_threads=1, **SMALL)) == stored(model)


def test_another_seed_gives_another_network(sample: EnergySample, model: DrnModel) -> None:
    assert stored(fit_drn(sample, seed=4, **SMALL)) != stored(model)


def test_the_order_of_the_training_objects_does_not_matter(sample: EnergySample, model: DrnModel) -> None:
    shuffled = sample.select(np.random.default_rng(0).permutation(sample.n_showers))
    assert stored(fit_drn(shuffled, seed=3, **SMALL)) == stored(model)


@pytest.mark.parametrize(("n_done", "left"), [(2, [3, 1, 2, 3, 4, 5, 6]), (5, [3, 4, 5, 6])])  # all layers, then the output layers alone
def test_a_killed_training_resumes_to_the_same_bytes(tmp_path, sample: EnergySample, model: DrnModel, n_done: int, left: list[int]) -> None:
    seen = []

    def interrupt(epoch):
        seen.append(epoch)
        if len(seen) == n_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_drn(sample, seed=3, checkpoint_dir=tmp_path, progress=interrupt, **SMALL)
    epochs = []
    resumed = fit_drn(sample, seed=3, checkpoint_dir=tmp_path, progress=epochs.append, **SMALL)
    assert [e.number for e in epochs] == left
    assert stored(resumed) == stored(model)


def test_a_checkpoint_of_other_objects_is_refused(tmp_path, sample: EnergySample) -> None:
    fit_drn(sample, checkpoint_dir=tmp_path, **SMALL | {"epochs": 1})
    with pytest.raises(ValueError, match="belongs to another training"):
        fit_drn(toy(seed=5), checkpoint_dir=tmp_path, **SMALL | {"epochs": 1})


def test_training_leaves_the_global_generators_alone(sample: EnergySample) -> None:
    with torch.random.fork_rng(devices=[]):
        before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        fit_drn(sample, **SMALL | {"epochs": 1})
        assert torch.equal(torch.random.get_rng_state(), before)
        assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_a_stored_model_predicts_the_same(tmp_path, sample: EnergySample, model: DrnModel) -> None:
    save_model(model, tmp_path)
    name, arrays, meta = load_model_state(tmp_path)
    assert name == "drn"
    again = DrnModel.from_state(arrays, meta)
    for ours, theirs in zip(vars(again.predict(sample)).values(), vars(model.predict(sample)).values(), strict=True):
        assert_array_equal(ours, theirs)
    assert stored(again) == stored(model)


@pytest.mark.parametrize("n_objects", [1, 7, 100])
def test_an_object_is_predicted_alike_whatever_stands_beside_it(sample: EnergySample, model: DrnModel, n_objects: int) -> None:
    alone = model.predict(sample)
    order = np.random.default_rng(n_objects).permutation(sample.n_showers)[:n_objects]
    found = model.predict(sample.select(order))
    assert_allclose(found.energy_gev, alone.energy_gev[order], rtol=1e-5)
    assert_allclose(found.sigma_gev, alone.sigma_gev[order], rtol=1e-4)


def test_threads_change_no_energy(model: DrnModel) -> None:
    many = toy(1000, seed=7)
    assert_array_equal(model.predict(many, n_threads=2).energy_gev, model.predict(many).energy_gev)


def test_the_truth_of_a_predicted_object_is_not_looked_at(sample: EnergySample, model: DrnModel) -> None:
    lied = replace(sample, energy_gev=sample.energy_gev[::-1], pdg_id=np.full(sample.n_showers, 22))
    for ours, theirs in zip(vars(model.predict(sample)).values(), vars(model.predict(lied)).values(), strict=True):
        assert_array_equal(ours, theirs)


def test_validation_objects_are_left_out_and_told(sample: EnergySample, model: DrnModel) -> None:
    is_told = np.isfinite(model.left_out_gev)
    assert is_told.sum() == round(0.1 * sample.n_showers)
    assert_allclose(model.left_out_gev[is_told], model.predict(sample.select(is_told)).energy_gev, rtol=1e-6)


def test_an_object_of_one_hit_has_an_energy_and_an_uncertainty(model: DrnModel) -> None:
    one = toy(50, most=2, seed=3)
    assert (one.objects.n_hits == 1).all()
    found = model.predict(one)
    assert (np.isfinite(found.energy_gev) & (found.energy_gev > 0)).all()
    assert (np.isfinite(found.sigma_gev) & (found.sigma_gev > 0)).all()


def test_an_object_without_hits_is_refused(sample: EnergySample) -> None:
    offsets = sample.objects.hit_offsets.copy()
    offsets[5] = offsets[4]
    with pytest.raises(ValueError, match="object 4 has no hits; leave it out"):
        replace(sample.objects, hit_offsets=offsets)


def test_an_energy_that_is_no_number_is_refused(sample: EnergySample) -> None:
    energy = sample.objects.energy_mev.copy()
    energy[7] = np.nan
    with pytest.raises(ValueError, match="energy_mev of hit 7 is nan"):
        replace(sample.objects, energy_mev=energy)


def test_objects_of_another_detector_are_refused(sample: EnergySample, model: DrnModel) -> None:
    with pytest.raises(ValueError, match=r"were made in detector .* the model was fitted on"):
        model.predict(replace(sample, digest="f" * 64))


def test_sums_of_layers_are_refused_by_fit_and_model(model: DrnModel) -> None:
    layers = EnergySample(np.ones((40, 1)), np.ones(40), np.full(40, 22))
    for refused in (fit_drn, model.predict):
        with pytest.raises(ValueError, match="model drn reads the hits of objects in crystals"):
            refused(layers)


def test_a_network_of_the_hits_alone_reads_no_features(sample: EnergySample) -> None:
    bare = fit_drn(sample, seed=3, reads_features=False, **SMALL)
    assert bare.event_inputs == EVENT_INPUTS
    without = replace(sample, shape=np.empty((sample.n_showers, 0)), shape_names=())
    assert_array_equal(bare.predict(without).energy_gev, bare.predict(sample).energy_gev)


def test_missing_features_are_refused(sample: EnergySample, model: DrnModel) -> None:
    without = replace(sample, shape=np.empty((sample.n_showers, 0)), shape_names=())
    with pytest.raises(ValueError, match="the showers have no raw_energy_gev, which the model reads"):
        model.predict(without)


def test_features_are_found_by_their_names(sample: EnergySample, model: DrnModel) -> None:
    turned = replace(sample, shape=sample.shape[:, ::-1], shape_names=sample.shape_names[::-1])
    assert_array_equal(model.predict(turned).energy_gev, model.predict(sample).energy_gev)


def test_the_scales_of_features_come_from_the_objects_trained_on(sample: EnergySample, model: DrnModel) -> None:
    """Those left out for validation may be anything."""
    is_left_out = np.isfinite(model.left_out_gev)
    shape = sample.shape.copy()
    shape[is_left_out] *= 100.0
    other = fit_drn(replace(sample, shape=shape), seed=3, **SMALL)
    for name in ("event_centre", "event_spread"):
        assert_array_equal(other.weights[name], model.weights[name])
    n = len(EVENT_INPUTS)
    assert_array_equal(model.weights["event_centre"][:n], 0.0)
    assert_allclose(model.weights["event_centre"][n], sample.shape[~is_left_out, 0].mean(), rtol=1e-5)
    assert model.weights["event_spread"][n + 1] == 1.0


def test_too_few_objects_are_refused(sample: EnergySample) -> None:
    with pytest.raises(ValueError, match="5 showers are too few"):
        fit_drn(sample.select(np.arange(5)))


@pytest.mark.parametrize("name", ["width", "hidden", "k", "blocks", "epochs", "batch_size", "n_threads"])
def test_a_size_of_zero_is_refused(sample: EnergySample, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} = 0 must be >= 1"):
        fit_drn(sample, **SMALL | {name: 0})


def test_a_model_of_other_inputs_is_refused(model: DrnModel) -> None:
    arrays, meta = model.state()
    with pytest.raises(ValueError, match="the model reads hit_inputs x, this calolife makes row"):
        DrnModel.from_state(arrays, meta | {"hit_inputs": ["x"]})
