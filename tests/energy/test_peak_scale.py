"""The scale of energies and uncertainties: known shifts are taken back at every energy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calolife.energy.features import Prediction
from calolife.energy.lineshapes import fit_cruijff
from calolife.energy.peak_scale import PeakScale, fit_peak_scale
from calolife.energy.resolution import shortest_half


def skewed(n: int, *, seed: int) -> tuple[Prediction, np.ndarray]:
    """A narrow core and a tail to the left, both wider at low energy, and an uncertainty that is wrong by another factor there."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(2.0, 200.0, n)
    width = np.hypot(0.1 / np.sqrt(true), 0.005)
    lost = np.where(rng.random(n) < 0.3, 3.0 * width * rng.exponential(1.0, n), 0.0)
    energy = 1.01 * true * np.exp(width * rng.normal(size=n) - lost)
    return Prediction(energy, energy * width * np.where(energy < 20.0, 2.0, 0.5)), true


def test_peak_and_pulls_at_every_energy() -> None:
    scale = fit_peak_scale(*skewed(20_000, seed=1))
    bare, true = skewed(60_000, seed=2)
    found = scale.apply_to(bare)
    assert found.sigma_gev is not None
    for low, high in ((10.0, 20.0), (20.0, 50.0), (50.0, 100.0), (100.0, 200.0)):
        some = (true >= low) & (true < high)
        fit = fit_cruijff(found.energy_gev[some] / true[some])
        assert fit.mu == pytest.approx(1.0, abs=0.12 * fit.sigma_over_mu)
        pull = np.sort((found.energy_gev[some] - true[some]) / found.sigma_gev[some])
        # the factor of sigma jumps at 20 GeV, the scale passes from one to the other over an octave
        assert shortest_half(pull[None])[0] == pytest.approx(1.0, abs=0.06 if low >= 50.0 else 0.6)
    assert 5 <= scale.energy.shape[1] <= 7
    assert (np.diff(scale.energy[0]) > 0).all()


def test_a_shift_of_all_energies_is_taken_back() -> None:
    bare, true = skewed(5000, seed=3)
    assert bare.sigma_gev is not None
    shifted = Prediction(1.05 * bare.energy_gev, 1.05 * bare.sigma_gev)
    one, other = (fit_peak_scale(p, true).apply_to(p) for p in (bare, shifted))
    assert_allclose(other.energy_gev, one.energy_gev, rtol=2e-4)
    assert_allclose(other.sigma_gev, one.sigma_gev, rtol=2e-3)


def test_few_objects_are_one_bin_on_the_median() -> None:
    bare, true = skewed(60, seed=4)
    scale = fit_peak_scale(bare, true)
    assert scale.energy.shape == (2, 1)
    assert np.median(scale.apply_to(bare).energy_gev / true) == pytest.approx(1.0, abs=1e-12)


def test_bins_hold_enough_and_all() -> None:
    bare, true = skewed(450, seed=5)
    assert 1 <= fit_peak_scale(bare, true).energy.shape[1] <= 2
    same = Prediction(np.full(300, 50.0), np.full(300, 1.0))
    assert fit_peak_scale(same, 50.0 * np.random.default_rng(1).normal(1, 0.01, 300)).energy.shape[1] == 1


def test_stored_and_read_it_is_the_same() -> None:
    scale = fit_peak_scale(*skewed(1000, seed=6))
    again = PeakScale.from_state(scale.state())
    assert_array_equal(again.energy, scale.energy)
    assert_array_equal(again.sigma, scale.sigma)
