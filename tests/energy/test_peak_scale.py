"""The scale of energies and uncertainties: known shifts are taken back at every energy."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calolife.energy.features import Prediction
from calolife.energy.lineshapes import fit_cruijff
from calolife.energy.peak_scale import PeakScale, _bins, fit_peak_scale
from calolife.energy.resolution import shortest_half


def skewed(n: int, *, seed: int, low: float = 2.0, high: float = 200.0) -> tuple[Prediction, np.ndarray]:
    """A narrow core and a tail to the left, both wider at low energy, and an uncertainty that is wrong by a factor of the energy."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(low, high, n)
    width = np.hypot(0.1 / np.sqrt(true), 0.005)
    lost = np.where(rng.random(n) < 0.3, 3.0 * width * rng.exponential(1.0, n), 0.0) + np.where(rng.random(n) < 0.02, 1.0, 0.0)
    energy = 1.01 * true * np.exp(width * rng.normal(size=n) - lost)
    return Prediction(energy, energy * width * 3.0 * energy**-0.3), true


@pytest.mark.parametrize("ends", [(2.0, 200.0), (50.0, 100.0), (100.0, 210.0)])
def test_peak_and_pulls_at_every_energy(ends: tuple[float, float]) -> None:
    scale = fit_peak_scale(*skewed(20_000, seed=1, low=ends[0], high=ends[1]))
    bare, true = skewed(60_000, seed=2, low=ends[0], high=ends[1])
    found = scale.apply_to(bare)
    assert found.sigma_gev is not None
    edges = np.geomspace(max(ends[0], 10.0), ends[1], 5)
    for low, high in itertools.pairwise(edges):
        some = (true >= low) & (true < high)
        fit = fit_cruijff(found.energy_gev[some] / true[some])
        assert fit.mu == pytest.approx(1.0, abs=0.25 * fit.sigma_over_mu)  # 200 objects of the least bin know it to 0.1
        pull = np.sort((found.energy_gev[some] - true[some]) / found.sigma_gev[some])
        assert shortest_half(pull[None])[0] == pytest.approx(
            1.0, abs=0.12
        )  # 2.5 % of a bin, and a straight line between knots; one factor: 0.3
    assert (np.diff(scale.energy[0]) > 0).all()
    assert scale.energy.shape[1] > (3 if ends[0] < 10.0 else 0)


def test_energies_that_are_lines() -> None:
    rng = np.random.default_rng(3)
    true = np.repeat([20.0, 100.0], 2000)
    energy = true * np.exp(0.02 * rng.normal(size=4000) - (rng.random(4000) < 0.05) * rng.exponential(0.5, 4000))
    found = fit_peak_scale(Prediction(energy, 0.01 * energy), true).apply_to(Prediction(energy, 0.01 * energy))
    assert found.sigma_gev is not None
    for line in (20.0, 100.0):
        here = true == line
        assert np.median(found.energy_gev[here]) == pytest.approx(line, rel=0.002)
        assert np.median(found.sigma_gev[here]) == pytest.approx(0.02 * line, rel=0.1)
    # what lost most of its energy is not pushed back onto the line
    far = energy < 0.5 * true
    assert far.sum() > 50
    assert (found.energy_gev[far] < 1.05 * energy[far]).all()


def test_a_response_without_a_peak_and_energies_of_zero_are_survived() -> None:
    rng = np.random.default_rng(4)
    true = rng.uniform(10.0, 100.0, 2000)
    flat = true * rng.uniform(0.2, 1.8, 2000)
    flat[:5] = 0.0
    found = fit_peak_scale(Prediction(flat, np.full(2000, 5.0)), true).apply_to(Prediction(flat, np.full(2000, 5.0)))
    assert np.isfinite(found.energy_gev).all()
    assert found.sigma_gev is not None
    assert np.isfinite(found.sigma_gev).all()
    # a model that knows nothing: one factor
    useless = Prediction(np.full(2000, 30.0), np.full(2000, 5.0))
    assert fit_peak_scale(useless, true).energy.shape == (2, 1)


@pytest.mark.parametrize("knots", [np.zeros((2, 0)), np.zeros(3), np.full((2, 1), np.nan), np.array([[2.0, 1.0], [0.0, 0.0]])])
def test_what_is_no_curve_is_refused(knots: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the scale of sigma is no curve"):
        PeakScale(np.zeros((2, 1)), knots)


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
    for seed, least in ((1, 200), (2, 1000), (3, 50)):
        log_energy = np.log(np.random.default_rng(seed).uniform(1.0, 300.0, 3000))
        bins = _bins(log_energy, least=least)
        assert sorted(np.concatenate(bins)) == list(range(3000))
        assert min(b.size for b in bins) >= least
        assert all(log_energy[a].max() <= log_energy[b].min() for a, b in itertools.pairwise(bins))
    assert len(_bins(np.zeros(20), least=200)) == 1


def test_stored_and_read_it_is_the_same() -> None:
    scale = fit_peak_scale(*skewed(1000, seed=6))
    again = PeakScale.from_state(scale.state())
    assert_array_equal(again.energy, scale.energy)
    assert_array_equal(again.sigma, scale.sigma)
