"""Comparison of two samples: known differences come out, within their uncertainties, and nothing else does."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calolife.detector.layers import Layer, LayeredCalorimeter
from calolife.detector.materials import material
from calolife.detector.presets import load_detector
from calolife.showers.events import Showers
from calolife.simulation.compare import (
    QUANTITIES,
    Sample,
    active_depth_x0,
    compare_samples,
    contained_mev,
    effective_sigma,
    layer_width_mm,
    profile_max_x0,
)

N = 1000


def toy(*, seed: int, n: int = N, scale: float = 1.0, width: float = 0.1, top: float = 6.0) -> Showers:
    """Showers with a gamma profile of known maximum in a block of 25 X0, all energy in two cells of each layer."""
    crystal = material("G4_PbWO4")
    layer = Layer(crystal, 10.0 * crystal.x0_cm, is_active=True, cells=(20, 20))
    block = LayeredCalorimeter("toy", (layer,) * 25, 400.0, 400.0)
    rng = np.random.default_rng(seed)
    depth = np.arange(25) + 0.5
    mean = depth**3 * np.exp(-3 * depth / top)
    energy = 1000 * scale * rng.normal(1, width, size=(n, 1)) * mean / mean.sum() * rng.normal(1, 0.05, size=(n, 25)).clip(0.5)
    shower, at = np.repeat(np.arange(n), 50), np.tile(np.repeat(np.arange(25), 2), n)
    # 60 % of a layer in the cell beside the axis, 40 % in one 100 mm away
    cell = block.cell_id(at, np.tile([10, 15], 25 * n), np.full(50 * n, 10))
    share = np.tile([0.6, 0.4], 25 * n)
    return Showers.from_hits(
        block, shower, cell, np.repeat(energy.ravel(), 2) * share, pdg_id=11, energy_gev=np.ones(n),
        position_mm=np.zeros((n, 3)), direction=np.tile([0.0, 0.0, 1.0], (n, 1)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> Sample:
    return Sample(toy(seed=1))


def found(reference: Sample, trial: Sample, *quantities: str) -> dict:
    return {c.quantity: c for c in compare_samples(reference, trial, quantities=quantities, n_resamples=100)}


def test_effective_sigma_of_a_gaussian_is_its_standard_deviation() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=200_000)
    # density at the ends of the interval gives 0.6 % at this size; three of them
    assert float(effective_sigma(values)) == pytest.approx(2.0, rel=0.02)


@given(st.floats(-100, 100), st.floats(0.01, 100))
def test_effective_sigma_ignores_shifts_and_scales_with_the_values(shift: float, scale: float) -> None:
    values = np.random.default_rng(3).normal(size=200)
    assert float(effective_sigma(scale * values + shift)) == pytest.approx(scale * float(effective_sigma(values)), rel=1e-9)


def test_far_tails_do_not_move_the_effective_sigma() -> None:
    values = np.random.default_rng(4).normal(size=5000)
    spoiled = values.copy()
    spoiled[:25] = -1e3
    # a shortest interval without 0.5 % of the values is 1 % wider
    assert float(effective_sigma(spoiled)) == pytest.approx(float(effective_sigma(values)), rel=0.02)


@pytest.mark.parametrize("top", [3.0, 6.2, 11.0])
@pytest.mark.parametrize("step", [0.25, 1.0, 1.45])
def test_the_maximum_of_a_gamma_profile_comes_back(top: float, step: float) -> None:
    depth = np.arange(step, 30, step)
    assert profile_max_x0(depth, 7.0 * depth**2.4 * np.exp(-2.4 * depth / top)) == pytest.approx(top, rel=1e-6)


def test_a_falling_profile_has_no_maximum() -> None:
    assert math.isnan(profile_max_x0(np.arange(1.0, 11.0), np.exp(-np.arange(10.0))))


def test_active_layers_lie_where_their_absorbers_put_them() -> None:
    calo = load_detector("cu-scint-24x24")
    copper, plastic = material("G4_Cu").x0_cm, material("G4_POLYSTYRENE").x0_cm
    depth = active_depth_x0(calo)
    assert depth[0] == pytest.approx(2 / copper + 0.25 / plastic)
    assert np.diff(depth) == pytest.approx(np.full(39, 2 / copper + 0.5 / plastic))


def test_a_sample_does_not_differ_from_itself(reference: Sample) -> None:
    made = compare_samples(reference, reference, quantities=QUANTITIES, n_resamples=20)
    assert {c.quantity: c.difference for c in made} == {c.quantity: 0.0 for c in made}


def test_a_larger_response_is_found_in_the_mean_and_in_every_layer(reference: Sample) -> None:
    made = found(reference, Sample(toy(seed=2, scale=1.05)), "mean", "layers")
    for c in (made["mean visible energy"], made["layer mean, worst"]):
        assert abs(c.difference - 0.05) < 4 * c.difference_error  # the worst of 11 layers may lie 3 sigma away
    assert made["mean visible energy"].difference_error == pytest.approx(0.1 * 1.05 * math.sqrt(2 / N), rel=0.1)


@pytest.mark.parametrize("quantity", ["resolution, effective sigma", "resolution, rms"])
def test_a_wider_response_is_found(reference: Sample, quantity: str) -> None:
    made = found(reference, Sample(toy(seed=5, width=0.12, n=4 * N)), "resolution")[quantity]
    assert abs(made.difference - 0.2) < 3 * made.difference_error
    assert made.difference_error < 0.08  # sigma of a width is 1/sqrt(2 n) of it, three times that for a shortest interval


def test_a_deeper_maximum_is_found(reference: Sample) -> None:
    made = found(reference, Sample(toy(seed=6, top=6.5)), "shower-max")["longitudinal maximum"]
    assert made.reference == pytest.approx(6.0, abs=3 * made.reference_error + 1e-9)
    assert abs(made.difference - 0.5) < 3 * made.difference_error


def test_the_uncertainty_of_a_difference_is_the_scatter_of_repeated_samples() -> None:
    pulls = []
    for k in range(40):
        made = compare_samples(
            Sample(toy(seed=100 + k, n=300)), Sample(toy(seed=200 + k, n=300)), quantities=("mean", "resolution", "shower-max")
        )
        pulls.append([c.difference / c.difference_error for c in made])
    # 40 pulls: their mean is known to 0.16, their width to 0.11; three of them
    assert np.abs(np.mean(pulls, axis=0)).max() < 0.5
    assert np.abs(np.std(pulls, axis=0) - 1).max() < 0.35


def test_the_worst_layer_of_equal_samples_is_about_as_far_off_as_chance_says() -> None:
    worst = [found(Sample(toy(seed=2 * k)), Sample(toy(seed=2 * k + 1)), "layers")["layer mean, worst"] for k in range(10)]
    ratio = np.mean([abs(c.difference) for c in worst]) / np.mean([c.by_chance for c in worst])
    assert 0.6 < ratio < 1.5  # ten samples whose common shift alone scatters by 75 % of its mean


def test_energy_within_a_radius_of_the_axis_is_what_lies_in_those_cells(reference: Sample) -> None:
    within = contained_mev(reference.showers, radius_mm=[5.0, 50.0, 500.0])
    # the near cell's centre is 14 mm from the axis, the far one's 110 mm
    np.testing.assert_allclose(within / reference.visible_mev[:, None], np.tile([0.0, 0.6, 1.0], (N, 1)), rtol=1e-5)


def test_containment_follows_a_slanted_axis() -> None:
    showers = toy(seed=1, n=2)
    slanted = Showers(
        showers.detector, showers.offsets, showers.cell, showers.energy_mev, showers.pdg_id, showers.energy_gev,
        np.tile([-50.0, 10.0, 0.0], (2, 1)), np.tile(np.array([0.6, 0.0, 0.8]), (2, 1)),
    )  # fmt: skip
    layer = slanted.layer == 8  # 75.65 mm deep: the axis passes x = 6.7 mm there
    expected = np.bincount(slanted.shower_index[layer], slanted.energy_mev[layer])
    keep = np.flatnonzero(layer)
    one = Showers(
        slanted.detector, [0, 2, 4], slanted.cell[keep], slanted.energy_mev[keep], slanted.pdg_id, slanted.energy_gev,
        slanted.position_mm, slanted.direction,
    )  # fmt: skip
    np.testing.assert_allclose(contained_mev(one, radius_mm=10.0)[:, 0], 0.6 * expected, rtol=1e-6)


def test_layer_widths_are_rms_distances_from_the_centre_of_gravity(reference: Sample) -> None:
    # 60 % and 40 % at 100 mm from one another: sqrt(0.6 * 40^2 + 0.4 * 60^2)
    np.testing.assert_allclose(layer_width_mm(reference.showers), math.sqrt(2400.0), rtol=1e-4)


def test_an_empty_layer_has_no_width() -> None:
    calo = load_detector("cu-scint-24x24")
    showers = Showers.from_hits(calo, [0, 0, 1], [0, 1, 0], [1.0, 1.0, 1.0], pdg_id=11, energy_gev=[1.0, 1.0])
    width = layer_width_mm(showers)
    assert width[0, 0] == pytest.approx(15.0)
    assert width[1, 0] == 0
    assert (width[:, 1:] == 0).all()


def test_scaled_cells_shift_every_quantile_alike_and_fill_as_many_cells(reference: Sample) -> None:
    made = found(reference, Sample(toy(seed=1, scale=1.1)), "spectrum", "occupancy")
    assert [c.difference for q, c in made.items() if q.startswith("cell energy")] == pytest.approx([0.1] * 6, rel=1e-5)
    assert made["cells per shower"].difference == 0


def test_cells_below_the_threshold_are_left_out(reference: Sample) -> None:
    energy = np.asarray(reference.showers.energy_mev)
    cut = float(np.median(energy))
    made = compare_samples(reference, reference, quantities=("spectrum", "occupancy"), threshold_mev=cut, n_resamples=5)
    assert made[0].reference > cut
    total = next(c for c in made if c.quantity == "cells per shower")
    assert total.reference == pytest.approx((energy > cut).sum() / N)


def test_thin_layers_are_also_compared_in_groups() -> None:
    calo = load_detector("pb-scint-fe-v2")
    rng = np.random.default_rng(0)
    cells = calo.cell_id(np.tile(np.arange(156), 50), 5, 5)
    energy = rng.normal(1, 0.1, size=156 * 50)
    showers = Showers.from_hits(calo, np.repeat(np.arange(50), 156), cells, energy, pdg_id=-211, energy_gev=np.full(50, 10.0))
    made = found(Sample(showers), Sample(showers), "layers")
    # 1/156 a layer: none holds 2 %, four together do
    assert list(made) == ["layer group mean, worst"]
    assert made["layer group mean, worst"].where == "layers 0 to 3"


def test_more_resamples_or_another_seed_change_uncertainties_only(reference: Sample) -> None:
    trial = Sample(toy(seed=9))
    first = compare_samples(reference, trial, quantities=QUANTITIES, n_resamples=20, seed=1)
    second = compare_samples(reference, trial, quantities=QUANTITIES, n_resamples=20, seed=2)
    assert [c.difference for c in first] == [c.difference for c in second]


def test_an_unknown_quantity_is_named() -> None:
    sample = Sample(toy(seed=1, n=2))
    with pytest.raises(ValueError, match="'widths' is not one of mean, resolution"):
        compare_samples(sample, sample, quantities=("widths",))


def test_samples_of_two_detectors_are_refused() -> None:
    calo = load_detector("cu-scint-24x24")
    other = Sample(Showers.from_hits(calo, [0, 1], [0, 0], [1.0, 1.0], pdg_id=11, energy_gev=[1.0, 1.0]))
    with pytest.raises(ValueError, match="two detectors"):
        compare_samples(other, Sample(toy(seed=1, n=2)))


def test_a_sample_without_light_is_refused(reference: Sample) -> None:
    calo = reference.showers.detector
    dark = Sample(Showers.from_hits(calo, [], [], [], pdg_id=11, energy_gev=[1.0, 1.0]))
    with pytest.raises(ValueError, match="the trial has no cell above 0 MeV"):
        compare_samples(reference, dark, quantities=QUANTITIES)
    with pytest.raises(ValueError, match="the reference has no cell above 1e\\+09 MeV"):
        compare_samples(reference, reference, quantities=("spectrum",), threshold_mev=1e9)


def test_containment_in_a_barrel_looks_across_the_seam() -> None:
    barrel = load_detector("cms-barrel")
    cell = barrel.cell_id([1, 1], [1, 360])
    at_mm = barrel.cell_position_mm(cell[:1])
    axis = [[at_mm[0, 0], at_mm[0, 1], 0.0]]
    ahead = [[0.0, 0.0, 1.0]]
    showers = Showers.from_hits(barrel, [0, 0], cell, [2.0, 1.0], pdg_id=11, energy_gev=[1.0], position_mm=axis, direction=ahead)
    assert contained_mev(showers, radius_mm=[10.0, 40.0]).tolist() == [[2.0, 3.0]]


def test_one_shower_is_no_sample() -> None:
    with pytest.raises(ValueError, match="at least two"):
        Sample(toy(seed=1, n=2).select([0]))


def test_containment_needs_an_impact_point() -> None:
    calo = load_detector("cu-scint-24x24")
    showers = Showers.from_hits(calo, [0, 1], [0, 0], [1.0, 1.0], pdg_id=11, energy_gev=[1.0, 1.0])
    with pytest.raises(ValueError, match="not known"):
        contained_mev(showers, radius_mm=10.0)
