"""What the regressors see: layers and shapes of showers, whatever their size and order."""

from dataclasses import replace

import numpy as np
import pytest

from calolife.detector.layers import Layer, LayeredCalorimeter
from calolife.detector.materials import material
from calolife.detector.presets import load_detector
from calolife.energy.features import (
    CELL_FEATURES,
    SHAPE_FEATURES,
    EnergySample,
    check_sample,
    check_training,
    concatenate_samples,
    sample_of,
    shape_features,
)
from calolife.showers.events import Showers
from calolife.showers.files import LayerSums


def stack(cells: tuple[int, int] = (6, 6)) -> LayeredCalorimeter:
    layers = Layer(material("G4_Cu"), 20.0), Layer(material("G4_POLYSTYRENE"), 5.0, is_active=True, cells=cells)
    return LayeredCalorimeter("small", (), 180.0, 180.0).add_period(4, *layers)


def made_up(detector: LayeredCalorimeter, n: int = 50, seed: int = 1) -> Showers:
    rng = np.random.default_rng(seed)
    shower = np.repeat(np.arange(n), rng.poisson(12, n))
    cell, energy = rng.integers(0, detector.n_cells, shower.size), rng.exponential(2.0, shower.size)
    return Showers.from_hits(detector, shower, cell, energy, pdg_id=rng.choice([-211, 22], n), energy_gev=rng.uniform(1, 100, n))


@pytest.fixture(scope="module")
def showers() -> Showers:
    return made_up(stack())


def shape(sample: EnergySample, name: str) -> np.ndarray:
    return sample.shape[:, sample.shape_names.index(name)]


def test_shapes_do_not_depend_on_the_size_of_the_shower() -> None:
    layers = np.random.default_rng(1).exponential(10.0, (40, 17))
    # a power of two scales without rounding
    np.testing.assert_array_equal(shape_features(1024.0 * layers), shape_features(layers))


def test_each_shower_has_the_same_shapes_alone_and_among_others() -> None:
    layers = np.random.default_rng(2).exponential(10.0, (30, 153))
    together = shape_features(layers)
    alone = np.concatenate([shape_features(layers[i : i + 1]) for i in range(30)])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("n_layers", [1, 3, 10, 156])
def test_a_flat_profile_has_its_centre_in_the_middle_and_equal_groups(n_layers: int) -> None:
    found = dict(zip(SHAPE_FEATURES, shape_features(np.ones((1, n_layers)))[0], strict=True))
    assert found["centroid"] == pytest.approx(0.5)
    assert found["width"] == pytest.approx(np.sqrt((1 - 1 / n_layers**2) / 12))  # of n equal points
    assert found["depth_50"] == pytest.approx(0.5)
    assert found["depth_90"] == pytest.approx(0.9)
    assert found["effective_layers"] == pytest.approx(1.0)
    assert [found[f"group_{i}"] for i in range(10)] == pytest.approx([0.1] * 10)


def test_a_mirrored_shower_has_mirrored_shapes() -> None:
    layers = np.random.default_rng(3).exponential(10.0, (20, 12))
    there, back = (dict(zip(SHAPE_FEATURES, shape_features(x).T, strict=True)) for x in (layers, layers[:, ::-1]))
    np.testing.assert_allclose(there["centroid"], 1 - back["centroid"], rtol=1e-12)
    np.testing.assert_allclose(there["skewness"], -back["skewness"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(there["depth_90"], 1 - back["depth_10"], rtol=1e-12)
    np.testing.assert_allclose(there["group_2"], back["group_7"], rtol=1e-12)


@pytest.mark.parametrize("layers", [np.zeros((2, 5)), np.array([[-1.0, 0.0, -2.0, 0.0, 0.0]])], ids=["no energy", "only noise below 0"])
def test_a_shower_without_energy_has_zeros_for_shapes(layers: np.ndarray) -> None:
    assert not shape_features(layers).any()


def test_cell_shapes_do_not_depend_on_which_showers_stand_beside(showers: Showers) -> None:
    among, alone = sample_of(showers), sample_of(showers.select([7]))
    assert among.shape_names == CELL_FEATURES
    np.testing.assert_array_equal(among.shape[7], alone.shape[0])


def test_one_hit_is_its_own_centre_and_has_no_width() -> None:
    calo = stack()
    one = sample_of(Showers.from_hits(calo, [0], [calo.cell_id(1, 5, 3)], [3.0], pdg_id=22, energy_gev=[1.0]))
    assert shape(one, "width_mm")[0] == 0
    assert shape(one, "hottest_cell")[0] == 1
    assert shape(one, "edge")[0] == 1
    assert shape(one, "centre_mm")[0] == pytest.approx(np.hypot(75.0, 15.0))  # cells of 30 mm: x = 5.5, y = 3.5 cells from the rim


def test_two_equal_hits_are_half_their_distance_wide() -> None:
    calo = stack()
    cells = calo.cell_id([0, 2], [2, 4], [2, 2])
    two = sample_of(Showers.from_hits(calo, [0, 0], cells, [3.0, 3.0], pdg_id=22, energy_gev=[1.0]))
    assert shape(two, "width_mm")[0] == pytest.approx(30.0)
    assert shape(two, "log_effective_cells")[0] == pytest.approx(np.log(2))


def test_layers_of_one_cell_have_no_cell_shapes() -> None:
    assert sample_of(made_up(stack((1, 1)))).shape_names == ()


def test_layer_sums_and_cells_give_the_same_layers(showers: Showers) -> None:
    sums = LayerSums(showers.layer_energy_mev(), showers.energy_gev, showers.pdg_id)
    np.testing.assert_array_equal(sample_of(sums).layer_energy_mev, sample_of(showers).layer_energy_mev)
    assert sample_of(sums).digest == ""
    assert sample_of(showers).digest == showers.detector.digest


def test_an_empty_shower_has_finite_shapes(showers: Showers) -> None:
    empty = Showers.from_hits(showers.detector, [], [], [], pdg_id=22, energy_gev=[1.0])
    assert not sample_of(empty).shape.any()


def test_parts_joined_are_the_whole(showers: Showers) -> None:
    whole = sample_of(showers)
    joined = concatenate_samples([whole.select(np.arange(20)), whole.select(np.arange(20, 50))])
    np.testing.assert_array_equal(joined.fingerprint, whole.fingerprint)
    np.testing.assert_array_equal(joined.shape, whole.shape)


def test_showers_of_crystals_are_superclusters() -> None:
    crystals = load_detector("pbwo4-5x5")
    shower = Showers.from_hits(crystals, [0, 0], [12, 13], [1900.0, 100.0], pdg_id=22, energy_gev=[2.1], position_mm=[[0.0, 0.0, 0.0]])
    sample = sample_of(shower)
    assert sample.layer_energy_mev.tolist() == [[2000.0]]
    assert sample.objects is not None
    with pytest.raises(ValueError, match="none of the 1 showers has a matched supercluster"):
        sample_of(Showers.from_hits(crystals, [0], [0], [1.0], pdg_id=22, energy_gev=[1.0]))


PLAIN = EnergySample(np.ones((2, 3)), [1.0, 2.0], [22, 22], digest="a" * 64)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([PLAIN, EnergySample(np.ones((1, 4)), [1.0], [22])], "4 layers and sample 0 3"),
        ([PLAIN, replace(PLAIN, digest="b" * 64)], "detector bbbbbbbb, sample 0 in aaaaaaaa"),
        ([PLAIN, replace(PLAIN, shape=np.ones((2, 1)), shape_names=("x",))], "other shapes"),
    ],
    ids=["nothing", "layers", "detector", "shapes"],
)
def test_samples_that_do_not_belong_together_are_refused(samples: list[EnergySample], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        concatenate_samples(samples)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([[np.nan, 1.0]], [1.0], [22]), "layer_energy_mev of shower 0 is not finite"),
        (([[1.0, 1.0]], [0.0], [22]), "energy_gev of shower 0 is 0"),
        (([1.0, 1.0], [1.0], [22]), r"must be \(shower, layer\)"),
        (([[1.0, 1.0]], [1.0, 2.0], [22]), "1 showers need"),
    ],
    ids=["NaN", "no energy", "one axis", "lengths"],
)
def test_a_sample_that_cannot_be_is_refused(columns: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnergySample(*columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"n_layers": 4, "digest": ""}, "have 3 layers, the model was fitted on 4"),
        ({"n_layers": 3, "digest": "b" * 64}, "detector aaaaaaaa, the model was fitted on bbbbbbbb"),
        ({"n_layers": 3, "digest": "", "shape_names": ("edge",)}, "have no edge"),
    ],
    ids=["layers", "detector", "cells"],
)
def test_a_model_of_another_detector_is_refused(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sample(PLAIN, **wanted)  # type: ignore[arg-type]


def test_an_unknown_detector_is_compared_by_its_layers_only() -> None:
    check_sample(PLAIN, n_layers=3, digest="")
    check_sample(replace(PLAIN, digest=""), n_layers=3, digest="b" * 64)


@pytest.mark.parametrize(
    ("layers", "message"), [(np.ones((19, 3)), "19 showers are too few"), (np.zeros((50, 3)), "only 0 of 50 showers left energy")]
)
def test_too_little_to_train_on_is_refused(layers: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_training(EnergySample(layers, np.ones(len(layers)), np.full(len(layers), 22)))
