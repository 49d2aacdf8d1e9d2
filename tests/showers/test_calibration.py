"""Light lost before the readout and calibration after it, against closed forms.

Statistical tests allow 4 standard errors: one in 16,000 fails by chance, and the seeds are fixed.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter, Readout
from calolife.detector.presets import load_detector
from calolife.showers.calibration import BARREL_READOUT, intercalibration, read_out, scale_cells
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers

CELL = 7


def one_crystal(detector: CrystalCalorimeter, n: int, energy_mev: float) -> Showers:
    """The same energy in the same crystal of every shower."""
    return Showers.from_hits(detector, np.arange(n), np.full(n, CELL), np.full(n, energy_mev), pdg_id=22, energy_gev=np.ones(n))


def same_hits(one: Showers, other: Showers) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("offsets", "cell", "energy_mev"))


def test_a_perfect_detector_is_digitised_as_ever(crystals: CrystalCalorimeter, make_showers: Callable[..., Showers]) -> None:
    showers = make_showers(crystals, 50, seed=1)
    plain, ours = digitise(showers, BARREL_READOUT, seed=3), read_out(showers, BARREL_READOUT, seed=3)
    assert same_hits(ours, plain)
    assert ours.origin == plain.origin


# --- intercalibration


@pytest.mark.parametrize("width_percent", [0.3, 2.0, 20.0])
def test_factors_have_their_width_around_one(width_percent: float) -> None:
    factor = intercalibration(load_detector("cms-barrel"), width_percent, seed=1)
    width, n = width_percent / 100, factor.size
    assert factor.mean() == pytest.approx(1.0, abs=4 * width / np.sqrt(n))
    assert factor.std() == pytest.approx(width, rel=4 / np.sqrt(2 * n))
    assert factor.min() > 0


def test_neighbours_have_nothing_in_common(crystals: CrystalCalorimeter) -> None:
    factor = intercalibration(load_detector("cms-barrel"), 1.0, seed=2) - 1
    for step in (1, 360):
        assert np.corrcoef(factor[step:], factor[:-step])[0, 1] == pytest.approx(0.0, abs=4 / np.sqrt(factor.size))


def test_a_larger_width_stretches_the_same_factors(crystals: CrystalCalorimeter) -> None:
    one, two = (intercalibration(crystals, w, seed=5) for w in (1.0, 2.0))
    np.testing.assert_allclose(two - 1, 2 * (one - 1), rtol=1e-9)
    assert not np.array_equal(one, intercalibration(crystals, 1.0, seed=6))
    assert (intercalibration(crystals, 0.0, seed=5) == 1).all()


def test_miscalibration_stays_in_the_rechits(crystals: CrystalCalorimeter, make_showers: Callable[..., Showers]) -> None:
    showers = make_showers(crystals, 30, seed=1)
    good = read_out(showers, BARREL_READOUT, seed=4)
    bad = read_out(showers, BARREL_READOUT, seed=4, intercalibration_percent=3.0, calibration_seed=9)
    np.testing.assert_array_equal(bad.cell, good.cell)  # the threshold acted before
    expected = good.energy_mev * intercalibration(crystals, 3.0, seed=9)[good.cell]
    np.testing.assert_allclose(bad.energy_mev, expected, rtol=1e-6)  # float32
    assert (bad.origin["intercalibration_percent"], bad.origin["calibration_seed"]) == (3.0, 9)


def test_samples_of_one_detector_share_its_factors(crystals: CrystalCalorimeter) -> None:
    showers = one_crystal(crystals, 1, 1000.0)
    first, second = (read_out(showers, Readout(), seed=s, intercalibration_percent=2.0, calibration_seed=1) for s in (1, 2))
    assert first.energy_mev.tolist() == second.energy_mev.tolist()
    assert read_out(showers, Readout(), seed=2, intercalibration_percent=2.0).energy_mev.tolist() != first.energy_mev.tolist()


# --- light


@pytest.mark.parametrize("fraction", [0.3, 0.7, 1.0, 1.1])
def test_correction_gives_the_mean_back_and_not_the_width(fraction: float, crystals: CrystalCalorimeter) -> None:
    n, energy, readout = 20_000, 1000.0, Readout(light_yield_pe_per_mev=2.25, noise_mev=40.0, threshold_mev=50.0)
    rechits = read_out(one_crystal(crystals, n, energy), readout, seed=1, signal_fraction=np.full(25, fraction))
    read = rechits.energy_mev[rechits.cell == CELL].astype(float)
    width = np.sqrt(energy / (2.25 * fraction) + (40.0 / fraction) ** 2)  # photo-statistics of the light left, noise scaled up
    assert read.mean() == pytest.approx(energy, abs=4 * width / np.sqrt(n))
    assert read.std() == pytest.approx(width, rel=4 / np.sqrt(2 * n))
    assert rechits.origin["light"] == "corrected"


def test_light_left_uncorrected_is_missing(crystals: CrystalCalorimeter) -> None:
    n, fraction = 20_000, np.linspace(0.5, 1.0, 25)
    showers, readout = one_crystal(crystals, n, 800.0), Readout(2.25, 40.0, 50.0)
    rechits = read_out(showers, readout, seed=1, signal_fraction=fraction, is_corrected=False)
    read = rechits.energy_mev[rechits.cell == CELL]
    width = np.sqrt(800.0 * fraction[CELL] / 2.25 + 40.0**2)
    assert read.mean() == pytest.approx(800.0 * fraction[CELL], abs=4 * width / np.sqrt(n))
    assert rechits.origin["light"] == "not corrected"


def test_the_threshold_cuts_the_light_that_is_left(crystals: CrystalCalorimeter) -> None:
    readout, half = Readout(threshold_mev=60.0), np.full(25, 0.5)
    for energy, n_read in ((119.0, 0), (121.0, 1)):
        assert read_out(one_crystal(crystals, 1, energy), readout, seed=1, signal_fraction=half).n_hits == n_read


def test_the_light_of_pileup_is_lost_too(crystals: CrystalCalorimeter) -> None:
    nothing = Showers.from_hits(crystals, [], [], [], pdg_id=22, energy_gev=np.ones(2000))
    overlay = {"seed": 1, "pileup": one_crystal(crystals, 3, 10.0), "pileup_mean": 2.0}
    full = read_out(nothing, Readout(), **overlay)
    half = read_out(nothing, Readout(), signal_fraction=np.full(25, 0.5), is_corrected=False, **overlay)
    np.testing.assert_allclose(half.visible_mev, 0.5 * full.visible_mev, rtol=1e-6)


@given(fraction=st.lists(st.floats(0.05, 1.2), min_size=25, max_size=25))
@settings(max_examples=20, deadline=None)
def test_without_a_readout_correction_undoes_the_loss(
    fraction: list[float], crystals: CrystalCalorimeter, make_showers: Callable[..., Showers]
) -> None:
    showers = make_showers(crystals, 20, seed=2)
    rechits = read_out(showers, Readout(), seed=1, signal_fraction=fraction)
    np.testing.assert_allclose(rechits.energy_mev, showers.energy_mev, rtol=1e-6)


def test_the_result_does_not_depend_on_how_the_sample_is_cut(crystals: CrystalCalorimeter, make_showers: Callable[..., Showers]) -> None:
    showers = make_showers(crystals, 40, seed=3)
    options = {"seed": 2, "signal_fraction": np.linspace(0.6, 1.0, 25), "intercalibration_percent": 1.0}
    parts = [read_out(showers.between(a, b), BARREL_READOUT, first=a, **options) for a, b in ((0, 7), (7, 40))]
    assert same_hits(Showers.concatenate(parts), read_out(showers, BARREL_READOUT, **options))


def test_the_barrel_brings_its_readout(crystals: CrystalCalorimeter) -> None:
    barrel = load_detector("cms-barrel")
    assert barrel.readout == BARREL_READOUT == Readout(light_yield_pe_per_mev=2.25, noise_mev=40.0, threshold_mev=160.0)
    showers = Showers.from_hits(barrel, [0], [300], [900.0], pdg_id=22, energy_gev=[1.0])
    assert read_out(showers, seed=1).readout == BARREL_READOUT


def test_dead_and_hot_crystals_are_those_of_digitise(crystals: CrystalCalorimeter, make_showers: Callable[..., Showers]) -> None:
    options = {"seed": 2, "dead": [3], "hot": [5], "hot_mev": 50.0}
    showers = make_showers(crystals, 40, seed=3)
    assert same_hits(read_out(showers, BARREL_READOUT, **options), digitise(showers, BARREL_READOUT, **options))


def test_two_of_the_barrels_crystals_fire_by_noise() -> None:
    barrel = load_detector("cms-barrel")
    nothing = Showers.from_hits(barrel, [], [], [], pdg_id=22, energy_gev=np.ones(400))
    n_hits = read_out(nothing, BARREL_READOUT, seed=1).n_hits
    assert n_hits / 400 == pytest.approx(61200 * 3.167e-5, abs=4 * np.sqrt(1.94 / 400))  # the Gaussian above 4 widths


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: intercalibration(s.detector, -1.0, seed=1), "width_percent = -1 must be between 0 and 20"),
        (lambda s: intercalibration(s.detector, np.nan, seed=1), "width_percent = nan must be between"),
        (lambda s: intercalibration(s.detector, 1.0, seed=-1), "seed = -1 must be a whole number"),
        (lambda s: scale_cells(s, np.ones(24)), "factor has shape .24,.; detector 'matrix' has 25 cells"),
        (lambda s: scale_cells(s, np.zeros(25)), "factor of cell 0 is 0; it must be finite and > 0"),
        (lambda s: read_out(s, seed=1, signal_fraction=np.full(25, np.nan)), "signal_fraction of cell 0 is nan"),
        (lambda s: read_out(digitise(s, Readout(), seed=1), seed=1, signal_fraction=np.ones(25)), "these showers are rechits already"),
        (
            lambda s: read_out(
                s, seed=1, signal_fraction=np.ones(25), pileup_mean=1.0, pileup=replace(s, detector=replace(s.detector, name="other"))
            ),
            "pileup was made in detector 'other'",
        ),
    ],
)
def test_a_bad_request_is_told_in_one_line(call: Callable[[Showers], object], words: str, crystals: CrystalCalorimeter) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call(one_crystal(crystals, 2, 100.0))
    assert "\n" not in str(caught.value)


def test_layers_are_scaled_as_well(small_stack: LayeredCalorimeter, make_showers: Callable[..., Showers]) -> None:
    showers = make_showers(small_stack, 5, seed=1)
    halved = scale_cells(showers, np.full(small_stack.n_cells, 0.5))
    np.testing.assert_allclose(halved.visible_mev, 0.5 * showers.visible_mev, rtol=1e-6)
