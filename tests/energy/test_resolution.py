"""Response, resolution and its three terms: closure on toys, symmetries, and what happens at zero."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calolife.energy.resolution import (
    TERMS,
    EnergyBins,
    Resolution,
    effective_sigma,
    energy_bins,
    fit_resolution,
    usual_edges,
)
from calolife.errors import NotConvergedError

EDGES_GEV = np.geomspace(1.0, 100.0, 11)
N_SEEDS = 200


def toy(truth: Resolution, seed: int, *, n: int = 4000, n_bootstrap: int = 60) -> EnergyBins:
    """Gaussian showers of a flat log-spectrum, 1 to 100 GeV, in ten bins."""
    rng = np.random.default_rng(seed)
    energy = np.exp(rng.uniform(0.0, np.log(100.0), n))
    predicted = energy * (1 + truth.at(energy) * rng.standard_normal(n))
    return energy_bins(predicted, energy, edges_gev=EDGES_GEV, n_bootstrap=n_bootstrap, seed=seed)


def fits_of(truth: Resolution) -> list[Resolution]:
    binned = (toy(truth, seed) for seed in range(N_SEEDS))
    return [fit_resolution(b.energy_gev, b.resolution, b.resolution_error) for b in binned]


def terms(fit: Resolution) -> np.ndarray:
    return np.array([fit.stochastic, fit.noise, fit.constant])


@pytest.fixture(scope="module")
def seen() -> tuple[Resolution, list[Resolution]]:
    truth = Resolution(0.30, 0.25, 0.03)  # each many standard errors above 0
    return truth, fits_of(truth)


@pytest.fixture(scope="module")
def noiseless() -> tuple[Resolution, list[Resolution]]:
    truth = Resolution(0.30, 0.0, 0.03)
    return truth, fits_of(truth)


@pytest.mark.parametrize("term", range(3), ids=TERMS)
def test_injected_terms_come_back_with_unit_pulls(term: int, seen: tuple[Resolution, list[Resolution]]) -> None:
    truth, fits = seen
    pull = np.array([(terms(f)[term] - terms(truth)[term]) / f.errors[term] for f in fits])
    # mean and width of 200 pulls have errors of 1/sqrt(200) and 1/sqrt(400); three of them
    assert abs(pull.mean()) < 3 / np.sqrt(N_SEEDS)
    assert abs(pull.std(ddof=1) - 1) < 3 / np.sqrt(2 * N_SEEDS)


def test_chi2_of_the_toys_is_their_degrees_of_freedom(seen: tuple[Resolution, list[Resolution]]) -> None:
    fits = seen[1]
    assert {f.ndf for f in fits} == {EDGES_GEV.size - 1 - 3}
    # the variance of chi2 is 2 ndf; errors known to 9 % from 60 replicas and 3 % of spread each raise it by a few percent
    assert np.mean([f.chi2 for f in fits]) == pytest.approx(7, abs=3 * np.sqrt(14 / N_SEEDS) + 0.05 * 7)


def test_curve_with_its_error_holds_the_truth_as_often_as_it_says(seen: tuple[Resolution, list[Resolution]]) -> None:
    truth, fits = seen
    at = np.array([2.0, 20.0, 90.0])
    pull = np.array([(f.at(at) - truth.at(at)) / f.error_at(at) for f in fits])
    assert (np.abs(pull.mean(axis=0)) < 3 / np.sqrt(N_SEEDS)).all()
    assert (np.abs(pull.std(axis=0, ddof=1) - 1) < 3 / np.sqrt(2 * N_SEEDS)).all()


def test_noise_that_is_not_there_comes_out_as_zero_every_second_time(noiseless: tuple[Resolution, list[Resolution]]) -> None:
    fits = noiseless[1]
    assert min(f.noise for f in fits) >= 0
    at_zero = np.array([f.noise < 0.2 * f.errors[1] for f in fits])
    assert abs(at_zero.mean() - 0.5) < 3 * 0.5 / np.sqrt(N_SEEDS) + 0.05  # N^2 is Gaussian about 0, less what 0.2 errors hold


def test_limit_on_noise_that_is_not_there_holds(noiseless: tuple[Resolution, list[Resolution]]) -> None:
    fits = noiseless[1]
    assert all(np.isfinite(f.upper95[1]) and f.upper95[1] > f.noise for f in fits)
    # four bins see it best: a limit below half of what would double the variance at the first bin's energy would be a miracle
    assert 0.05 < np.median([f.upper95[1] for f in fits]) < 0.35


def test_stochastic_and_constant_term_bear_with_noise_at_zero(noiseless: tuple[Resolution, list[Resolution]]) -> None:
    truth, fits = noiseless
    for term in (0, 2):
        pull = np.array([(terms(f)[term] - terms(truth)[term]) / f.errors[term] for f in fits])
        # noise cannot go below 0, so what it takes by chance comes off the stochastic term: less than half an error
        assert abs(pull.mean()) < 0.5
        assert 0.75 < pull.std(ddof=1) < 1.25


def test_a_term_at_zero_is_quoted_by_a_limit_and_tied_to_no_other() -> None:
    energy = np.geomspace(2.0, 80.0, 8)
    truth = Resolution(0.2, 0.0, 0.0).at(energy)
    fit = fit_resolution(energy, truth, 0.03 * truth)
    assert fit.stochastic == pytest.approx(0.2, rel=0.01)
    assert fit.noise < 0.1 * fit.upper95[1]
    assert fit.constant < 0.1 * fit.upper95[2]
    assert fit.covariance[1, 0] == fit.covariance[1, 2] == fit.covariance[2, 0] == 0
    assert (np.linalg.eigvalsh(fit.covariance) > 0).all()


def test_exact_points_give_exact_terms() -> None:
    energy = np.geomspace(1.0, 100.0, 9)
    truth = Resolution(0.11, 0.4, 0.007)
    fit = fit_resolution(energy, truth.at(energy), 0.01 * truth.at(energy))
    np.testing.assert_allclose(terms(fit), terms(truth), rtol=1e-3)  # a hundredth of the smallest error
    assert fit.chi2 < 1e-4


def test_terms_left_out_are_zero_without_error() -> None:
    energy = np.geomspace(1.0, 100.0, 9)
    truth = Resolution(0.11, 0.0, 0.007)
    fit = fit_resolution(energy, truth.at(energy), 0.01 * truth.at(energy), terms=("constant", "stochastic"))
    assert (fit.noise, fit.errors[1], fit.upper95[1], fit.ndf) == (0.0, 0.0, 0.0, 7)
    np.testing.assert_allclose([fit.stochastic, fit.constant], [0.11, 0.007], rtol=1e-3)


def test_small_errors_make_it_the_usual_chi2() -> None:
    energy = np.geomspace(1.0, 100.0, 9)
    truth = Resolution(0.11, 0.4, 0.007)
    rng = np.random.default_rng(3)
    error = 1e-3 * truth.at(energy)
    measured = truth.at(energy) + error * rng.standard_normal(9)
    fit = fit_resolution(energy, measured, error)
    assert fit.chi2 == pytest.approx(float((((measured - fit.at(energy)) / error) ** 2).sum()), rel=0.01)  # third order: 1e-3 x pulls


def test_terms_add_in_quadrature() -> None:
    assert float(Resolution(0.3, 0.0, 0.4).at(1.0)) == pytest.approx(0.5)
    assert float(Resolution(0.0, 2.0, 0.0).at(10.0)) == pytest.approx(0.2)


def test_error_of_the_curve_at_high_energy_is_that_of_the_constant() -> None:
    fit = Resolution(0.1, 0.2, 0.01, np.diag([0.01, 0.02, 0.001]) ** 2)
    assert float(fit.error_at(1e9)) == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(("n", "sigma"), [(100_000, 2.5)])
def test_effective_sigma_of_a_gaussian_is_its_sigma(n: int, sigma: float) -> None:
    value = np.random.default_rng(1).normal(7.0, sigma, n)
    # the shortest of many intervals is biased: 0.1 % at this n
    assert effective_sigma(value) == pytest.approx(sigma, rel=3 / np.sqrt(n) + 2e-3)


def test_effective_sigma_does_not_hear_tails() -> None:
    rng = np.random.default_rng(2)
    core = rng.normal(size=20_000)
    tailed = np.where(rng.random(20_000) < 0.02, 50.0, core)
    assert tailed.std() > 5
    assert effective_sigma(tailed) == pytest.approx(effective_sigma(core), rel=0.05)  # 2 % fewer in the core: 0.683/0.98


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.floats(-100, 100), st.floats(0.01, 100))
def test_effective_sigma_moves_and_scales_as_a_width_does(values: list[float], shift: float, factor: float) -> None:
    value = np.array(values)
    assert effective_sigma(factor * value + shift) == pytest.approx(factor * effective_sigma(value), rel=1e-9, abs=1e-9)
    assert effective_sigma(value[::-1]) == effective_sigma(value)


def test_effective_sigma_is_the_shortest_interval_there_is() -> None:
    value = np.sort(np.random.default_rng(4).exponential(size=200))
    by_hand = min(value[i + 136] - value[i] for i in range(200 - 136)) / 2  # 137 = ceil(0.683 x 200) values
    assert effective_sigma(value) == by_hand


def test_a_common_factor_moves_the_response_but_not_the_resolution() -> None:
    rng = np.random.default_rng(5)
    energy = rng.uniform(1, 100, 2000)
    predicted = energy + 0.3 * np.sqrt(energy) * rng.standard_normal(2000)
    one, half = (energy_bins(f * predicted, energy) for f in (1.0, 0.5))
    for name in ("resolution", "resolution_error", "sigma_eff", "sigma_eff_error"):
        np.testing.assert_allclose(getattr(half, name), getattr(one, name), rtol=1e-9)
    for name in ("response", "response_error", "median_response", "median_response_error"):
        np.testing.assert_allclose(getattr(half, name), 0.5 * getattr(one, name), rtol=1e-9)
    np.testing.assert_allclose(half.linearity, half.response - 1)


def test_order_of_showers_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    energy = rng.uniform(1, 100, 1000)
    predicted = energy * rng.normal(1, 0.1, 1000)
    order = rng.permutation(1000)
    a, b = energy_bins(predicted, energy), energy_bins(predicted[order], energy[order])
    for name in ("response", "resolution", "resolution_error", "sigma_eff_error", "energy_gev"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12)


def test_energy_of_a_wide_bin_is_where_the_stochastic_term_is_that_of_its_showers() -> None:
    rng = np.random.default_rng(7)
    n = 200_000
    energy = rng.uniform(1.0, 10.0, n)
    predicted = energy + 0.2 * np.sqrt(energy) * rng.standard_normal(n)
    bins = energy_bins(predicted, energy, edges_gev=[1.0, 10.0], n_bootstrap=10)
    assert bins.energy_gev[0] == pytest.approx(9 / np.log(10), rel=0.01)  # 3.9 GeV, where the middle is 5.5
    # the pooled ratio is no Gaussian: its kurtosis makes the error somewhat more than 1/sqrt(2n)
    assert bins.resolution[0] == pytest.approx(0.2 / np.sqrt(bins.energy_gev[0]), rel=3 * 1.5 / np.sqrt(2 * n))


def test_bootstrap_errors_of_a_gaussian_are_the_known_ones() -> None:
    n, sigma = 2000, 0.1
    rng = np.random.default_rng(8)
    bins = energy_bins(10 * rng.normal(1, sigma, n), np.full(n, 10.0), n_bootstrap=2000)
    mean = sigma / np.sqrt(n)
    for name, error in {"response": mean, "median_response": np.sqrt(np.pi / 2) * mean, "resolution": mean / np.sqrt(2)}.items():
        # 1.6 % from 2,000 replicas, 1.6 % from sigma itself; the median's rests on the density at one point: 20 %
        assert getattr(bins, f"{name}_error")[0] == pytest.approx(error, rel=0.2 if name == "median_response" else 0.08)


def test_tails_make_the_error_of_the_resolution_larger_than_a_gaussian_s() -> None:
    n = 2000
    bins = energy_bins(10 * (1 + 0.05 * np.random.default_rng(9).standard_t(4, n)), np.full(n, 10.0))
    assert bins.resolution_error[0] > 1.5 * bins.resolution[0] / np.sqrt(2 * n)


def test_same_seed_same_numbers_and_another_seed_others() -> None:
    rng = np.random.default_rng(10)
    energy = rng.uniform(1, 100, 600)
    predicted = energy * rng.normal(1, 0.1, 600)
    a, b, c = (energy_bins(predicted, energy, seed=s) for s in (1, 1, 2))
    assert a.to_json_dict() == b.to_json_dict()
    assert (a.resolution_error != c.resolution_error).any()
    np.testing.assert_array_equal(a.resolution, c.resolution)


def test_each_shower_is_in_one_bin() -> None:
    energy = np.repeat([1.0, 2.0, 4.0], 20)
    bins = energy_bins(energy, energy, edges_gev=[1.0, 2.0, 4.0])
    assert bins.n.tolist() == [20, 40]  # an edge belongs to the bin above, the last edge to the last bin


def test_usual_edges_hold_every_shower_and_enough_in_each_bin() -> None:
    energy = np.random.default_rng(11).uniform(1, 100, 1200)
    edges = usual_edges(energy)
    assert edges[0] == energy.min()
    assert edges[-1] == energy.max()
    assert np.histogram(energy, edges)[0].min() >= 30
    assert {5.0, 10.0, 85.0} <= set(edges.tolist())


def test_a_beam_test_gets_a_bin_for_each_energy() -> None:
    energy = np.repeat([10.0, 20.0, 50.0, 100.0], 50)
    bins = energy_bins(energy, energy)
    np.testing.assert_allclose(bins.energy_gev, [10, 20, 50, 100], rtol=1e-12)
    assert bins.n.tolist() == [50] * 4


@pytest.mark.parametrize("energy", [np.full(40, 7.0), np.linspace(3.0, 4.0, 25), np.geomspace(0.003, 5000.0, 400)])
def test_usual_edges_suit_any_spectrum(energy: np.ndarray) -> None:
    assert energy_bins(energy, energy).n.sum() == energy.size


def test_json_of_bins_and_fit_is_plain() -> None:
    bins = toy(Resolution(0.3, 0.25, 0.03), 1)
    fit = fit_resolution(bins.energy_gev, bins.resolution, bins.resolution_error)
    rows, record = json.loads(json.dumps(bins.to_json_dict())), json.loads(json.dumps(fit.to_json_dict(), allow_nan=False))
    assert [row["n"] for row in rows] == bins.n.tolist()
    assert rows[0]["resolution_error"] == bins.resolution_error[0]
    assert record["stochastic"] == {
        "value": fit.stochastic, "uncertainty": fit.errors[0], "upper95": fit.upper95[0], "unit": "sqrt(GeV)"
    }  # fmt: skip
    assert json.dumps(Resolution(0.1, 0, 0).to_json_dict(), allow_nan=False)


ONES = np.ones(30)


@pytest.mark.parametrize(
    ("predicted", "energy", "settings", "says"),
    [
        (ONES[:3], ONES, {}, "3 predictions for 30"),
        (ONES, 0 * ONES, {}, "must be > 0"),
        (np.nan * ONES, ONES, {}, "not finite"),
        (ONES, ONES, {"edges_gev": [2.0, 1.0]}, "each above the one before"),
        (ONES, ONES, {"edges_gev": [1.0, 2.0, 3.0]}, "bin 1, 2 to 3 GeV, has 0 showers"),
        (-ONES, ONES, {}, "response of -1"),
        (ONES, ONES, {"n_bootstrap": 1}, "n_bootstrap = 1"),
    ],
)
def test_bad_bins_are_refused(predicted: np.ndarray, energy: np.ndarray, settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        energy_bins(predicted, energy, **settings)


@pytest.mark.parametrize(
    ("energy", "resolution", "error", "settings", "says"),
    [
        ([1, 2, 3], [0.1, 0.1], [0.1, 0.1, 0.1], {}, "resolution has 2 points"),
        ([1, 2, 3], [0.1, -0.1, 0.1], [0.1, 0.1, 0.1], {}, "resolution of point 1 is -0.1"),
        ([1, 2, 3], [0.1, 0.1, 0.1], [0.1, 0.0, 0.1], {}, "error of point 1 is 0.0"),
        ([1, 2, 2], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1], {}, "2 different energies cannot tell 3 terms"),
        ([1, 2, 3], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1], {"terms": ["sampling"]}, "stochastic, noise, constant"),
        ([0, 2, 3], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1], {}, "energies must be > 0"),
    ],
)
def test_bad_points_are_refused(energy: list, resolution: list, error: list, settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit_resolution(energy, resolution, error, **settings)


def test_energies_too_close_to_tell_the_terms_do_not_pass_for_a_fit() -> None:
    energy = 10 * (1 + 1e-9 * np.arange(5))
    with pytest.raises(NotConvergedError, match=r"fit fewer terms|leave it out"):
        fit_resolution(energy, np.full(5, 0.1), np.full(5, 0.01))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ((-0.1, 0, 0.1), "stochastic = -0.1"),
        ((0, 0, 0), "all three terms are 0"),
        ((0.1, np.nan, 0), "noise = nan"),
        ((1, 0, 0, np.eye(2)), "covariance has shape"),
    ],
)
def test_a_resolution_checks_itself(record: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Resolution(*record)
