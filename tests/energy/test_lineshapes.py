"""Line shapes: closed forms, other people's implementations, and toys whose parameters come back with honest errors."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import brentq, minimize_scalar

from calolife.energy.lineshapes import (
    Z_MASS_GEV,
    Z_WIDTH_GEV,
    LineFit,
    cruijff,
    cruijff_cdf,
    double_crystal_ball,
    double_crystal_ball_cdf,
    fit_cruijff,
    fit_double_crystal_ball,
    fit_z_line,
    sample_z_mass,
    z_line,
    z_line_cdf,
)
from calolife.errors import NotConvergedError

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "numba_stats_lineshapes.json").read_text(encoding="utf-8"))
N_TOYS = 60
CRUIJFF = {"mu": 1.0, "sigma_left": 0.02, "sigma_right": 0.015, "alpha_left": 0.15, "alpha_right": 0.12}
CRUIJFF_RANGE = (0.85, 1.1)
BALL = {"mu": 1.0, "sigma": 0.02, "alpha_left": 1.2, "n_left": 3.0, "alpha_right": 1.5, "n_right": 4.0}
BALL_RANGE = (0.7, 1.3)
Z = {"mu": Z_MASS_GEV, "sigma": 1.5, "alpha": 1.2, "n": 3.0}
Z_RANGE = (70.0, 110.0)
FITS = {"cruijff": fit_cruijff, "double_crystal_ball": fit_double_crystal_ball, "z_line": fit_z_line}


def rest(parameters: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in parameters.items() if name != "mu"}


GRID = {
    "cruijff": (grid := np.linspace(*CRUIJFF_RANGE, 4001), cruijff_cdf(grid, 1.0, **rest(CRUIJFF), range=CRUIJFF_RANGE)),
    "double_crystal_ball": (grid := np.linspace(-1, 3, 40001), double_crystal_ball_cdf(grid, 1.0, **rest(BALL))),
}


def toy(shape: str, seed: int, n: int = 4000) -> np.ndarray:
    rng = np.random.default_rng([7, seed])
    if shape == "z_line":  # the smearing is scipy's
        mass = sample_z_mass(n, seed=seed, range=(20.0, 400.0))
        return mass + Z["sigma"] * stats.crystalball(Z["alpha"], Z["n"]).rvs(n, random_state=rng)
    at, cdf = GRID[shape]
    return np.interp(rng.random(n), cdf, at)


def fit_toy(shape: str, seed: int, *, bins: int | None, n: int = 4000) -> LineFit:
    within = {"cruijff": CRUIJFF_RANGE, "double_crystal_ball": BALL_RANGE, "z_line": Z_RANGE}[shape]
    return FITS[shape](toy(shape, seed, n), range=within, bins=bins)


@pytest.fixture(scope="module", params=["cruijff", "double_crystal_ball", "z_line"])
def toys(request: pytest.FixtureRequest) -> tuple[dict[str, float], list[LineFit]]:
    """Fits to toys with the truth; of the Z line binned, to save time."""
    truth = {"cruijff": CRUIJFF, "double_crystal_ball": BALL, "z_line": Z}[request.param]
    bins = 40 if request.param == "z_line" else None
    return truth, [fit_toy(request.param, seed, bins=bins) for seed in range(N_TOYS)]


# densities


@pytest.mark.parametrize(("left", "right"), [(0.0, 0.0), (0.3, 0.0), (0.05, 1.5), (5.0, 0.001)])
def test_cruijff_integrates_to_one_over_its_range(left: float, right: float) -> None:
    at = {"sigma_left": 0.5, "sigma_right": 2.0, "alpha_left": left, "alpha_right": right, "range": (-30.0, 50.0)}
    # quad's own error is 1e-10 here
    assert quad(lambda x: float(cruijff(x, 1.0, **at)), -30, 50, points=[0, 1, 3], limit=500, epsabs=1e-11)[0] == pytest.approx(1, abs=1e-9)


def test_cruijff_without_tails_is_a_gaussian_of_two_widths() -> None:
    x = np.linspace(-5, 9, 57)
    ours = cruijff(x, 1.0, sigma_left=0.5, sigma_right=2.0)
    # weights of the sides are their widths; both sides have the same peak
    theirs = np.where(x < 1, 2 * 0.5 * stats.norm.pdf(x, 1, 0.5), 2 * 2.0 * stats.norm.pdf(x, 1, 2.0)) / 2.5
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_cruijff_with_a_tail_that_vanishes_is_the_one_without() -> None:
    x, at = np.linspace(-4, 4, 33), {"sigma_left": 1.0, "sigma_right": 1.0, "range": (-8.0, 8.0)}
    # d(ln f)/d(alpha) = t^4 / 4, 64 at the ends
    np.testing.assert_allclose(cruijff(x, 0.0, **at, alpha_left=1e-9, alpha_right=1e-9), cruijff(x, 0.0, **at), rtol=2e-7)


def test_cruijff_cdf_is_the_integral_of_the_density() -> None:
    shape = {**rest(CRUIJFF), "range": CRUIJFF_RANGE}
    got = np.diff(cruijff_cdf([0.8, 0.9, 0.99, 1.02, 1.2], 1.0, **shape))
    parts = [(0.85, 0.9), (0.9, 0.99), (0.99, 1.02), (1.02, 1.1)]
    want = [quad(lambda x: float(cruijff(x, 1.0, **shape)), *part, points=[1.0] if part[0] < 1 < part[1] else None)[0] for part in parts]
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_cruijff_alpha_is_twice_the_beta_of_numba_stats() -> None:
    ref = REFERENCE["cruijff"]
    ours = cruijff(ref["values"], ref["parameters"]["mu"], **rest(ref["parameters"]), range=(-10.0, 10.0))
    ratio = ours / np.array(ref["density"])  # theirs is not normalised
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


def test_double_crystal_ball_is_that_of_numba_stats() -> None:
    ref = REFERENCE["double_crystal_ball"]
    shape = rest(ref["parameters"])
    np.testing.assert_allclose(
        double_crystal_ball(ref["values"], ref["parameters"]["mu"], **shape, is_log=True), ref["log_density"], rtol=1e-12
    )
    np.testing.assert_allclose(double_crystal_ball_cdf(ref["values"], ref["parameters"]["mu"], **shape), ref["cdf"], rtol=1e-12)


def test_double_crystal_ball_without_a_right_tail_is_that_of_scipy() -> None:
    x = np.array([-1e3, -8.0, -1.5, 0.0, 2.0, 5.0])
    ours = double_crystal_ball(x, 0.5, sigma=2.0, alpha_left=1.2, n_left=3.0, alpha_right=30.0, n_right=3.0)
    np.testing.assert_allclose(ours, stats.crystalball(1.2, 3.0, 0.5, 2.0).pdf(x), rtol=1e-12)


@pytest.mark.parametrize(("alpha", "n"), [(0.3, 1.5), (1.0, 2.0), (2.0, 100.0)])
def test_double_crystal_ball_integrates_to_one(alpha: float, n: float) -> None:
    shape = {"sigma": 1.0, "alpha_left": alpha, "n_left": n, "alpha_right": 1.5, "n_right": 3.0}
    inner = quad(lambda x: float(double_crystal_ball(x, 0.0, **shape)), -50, 50, points=[-alpha, 0, 1.5], limit=500, epsabs=1e-12)[0]
    outer = double_crystal_ball_cdf(-50.0, 0.0, **shape) + 1 - double_crystal_ball_cdf(50.0, 0.0, **shape)
    assert inner + outer == pytest.approx(1, abs=1e-9)


def test_a_tail_of_infinite_power_is_exponential() -> None:
    shape = {"sigma": 1.0, "alpha_left": 1.0, "alpha_right": 1.0, "n_left": 1e12, "n_right": 1e12}
    log = double_crystal_ball([-11.0, -21.0], 0.0, **shape, is_log=True)
    assert log[0] - log[1] == pytest.approx(10.0, rel=1e-9)  # u^2 / 2n is 2e-10


@pytest.mark.parametrize("far", [100.0, 1e6, 1e150])
def test_log_densities_are_finite_far_out(far: float) -> None:
    x = np.array([-far, far])
    both = [
        cruijff(x, 0.0, sigma_left=1.0, sigma_right=1.0, alpha_left=0.1, alpha_right=0.1, range=(-10.0, 10.0), is_log=True),
        cruijff(x, 0.0, sigma_left=1.0, sigma_right=1.0, is_log=True),
        double_crystal_ball(x, 0.0, sigma=1.0, alpha_left=2.0, n_left=50.0, alpha_right=1.0, n_right=1.1, is_log=True),
    ]
    assert np.isfinite(both).all()


# the Z line


def test_z_line_without_smearing_has_the_mass_and_width_of_the_pdg() -> None:
    bare = {"sigma": 0.0, "alpha": 1.0, "n": 3.0}
    peak = minimize_scalar(lambda m: -float(z_line(m, Z_MASS_GEV, **bare)), bounds=(85, 97), method="bounded", options={"xatol": 1e-9})
    half = -0.5 * peak.fun
    ends = [brentq(lambda m: float(z_line(m, Z_MASS_GEV, **bare)) - half, *pair) for pair in ((85, peak.x), (peak.x, 97))]
    assert peak.x == pytest.approx(Z_MASS_GEV, abs=1e-4)  # PDG quotes 1e-4 GeV; the line is flat to the last bit within 1e-7
    # the width of a relativistic line in m is Gamma (1 + Gamma^2 / 8 M^2), 1.0001 Gamma
    assert ends[1] - ends[0] == pytest.approx(Z_WIDTH_GEV, rel=2e-4)


def test_z_line_without_smearing_is_that_of_scipy() -> None:
    mass = np.array([20.0, 60.0, 88.0, 91.2, 95.0, 120.0, 1000.0])
    theirs = stats.rel_breitwigner(Z_MASS_GEV / Z_WIDTH_GEV, scale=Z_WIDTH_GEV)
    np.testing.assert_allclose(z_line(mass, Z_MASS_GEV, sigma=0.0, alpha=1.0, n=3.0), theirs.pdf(mass), rtol=1e-10)
    np.testing.assert_allclose(z_line_cdf(mass, Z_MASS_GEV, sigma=0.0, alpha=1.0, n=3.0), theirs.cdf(mass), rtol=1e-9)
    np.testing.assert_allclose(z_line(mass, Z_MASS_GEV, sigma=1e-4, alpha=3.0, n=30.0), theirs.pdf(mass), rtol=1e-6)


@pytest.mark.parametrize(("sigma", "alpha", "n"), [(0.3, 2.0, 1.5), (1.5, 1.2, 3.0), (5.0, 0.5, 80.0)])
def test_z_line_is_the_convolution_that_quad_finds(sigma: float, alpha: float, n: float) -> None:
    line, ball = stats.rel_breitwigner(Z_MASS_GEV / Z_WIDTH_GEV, scale=Z_WIDTH_GEV), stats.crystalball(alpha, n)
    for measured in (65.0, 89.0, 110.0):
        cuts = [measured + sigma * t for t in (-8.5, -2, 0, alpha, alpha + 5, alpha + 20)]
        cuts += [c for c in (Z_MASS_GEV - 5, Z_MASS_GEV - 1, Z_MASS_GEV + 1, Z_MASS_GEV + 5, 200.0, 2e3, 2e4) if c > cuts[0]]
        cuts.sort()
        parts = [
            quad(lambda m: line.pdf(m) * ball.pdf((measured - m) / sigma) / sigma, a, b, epsabs=1e-13, epsrel=1e-9)[0]  # noqa: B023
            for a, b in pairwise(cuts)
        ]
        assert float(z_line(measured, Z_MASS_GEV, sigma=sigma, alpha=alpha, n=n)) == pytest.approx(sum(parts), rel=2e-8)


def test_z_line_integrates_to_its_cdf() -> None:
    shape = rest(Z)
    for low, high in ((60.0, 85.0), (85.0, 95.0), (95.0, 120.0)):
        area = quad(lambda m: float(z_line(m, Z_MASS_GEV, **shape)), low, high, epsabs=1e-11)[0]
        assert area == pytest.approx(float(np.diff(z_line_cdf([low, high], Z_MASS_GEV, **shape))[0]), rel=1e-8)
    assert float(z_line_cdf(1e6, Z_MASS_GEV, **shape)) == pytest.approx(1, abs=1e-9)


def test_masses_of_the_sampler_follow_the_line() -> None:
    mass = sample_z_mass(5000, seed=4)
    ends = z_line_cdf([60.0, 120.0], Z_MASS_GEV, sigma=0.0, alpha=1.0, n=3.0)
    cdf = (z_line_cdf(np.sort(mass), Z_MASS_GEV, sigma=0.0, alpha=1.0, n=3.0) - ends[0]) / (ends[1] - ends[0])
    assert stats.kstest(cdf, "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(mass, sample_z_mass(5000, seed=4))


@pytest.mark.parametrize("bins", [None, 60])
def test_mass_scale_shifts_by_exactly_the_energy_scale(bins: int | None) -> None:
    mass, scale = toy("z_line", 1, 2000), 1.0123
    one = fit_z_line(mass, range=(70.0, 110.0), bins=bins)
    other = fit_z_line(scale * mass, range=(70.0 * scale, 110.0 * scale), bins=bins)
    # the same fit but for rounding, which MIGRAD's numerical derivatives raise
    assert other.mu / one.mu == pytest.approx(scale, rel=1e-7)
    assert other.sigma_over_mu == pytest.approx(one.sigma_over_mu, rel=1e-5)


def test_masses_without_smearing_give_the_mass_of_the_pdg() -> None:
    fit = fit_z_line(sample_z_mass(4000, seed=9), fixed={"sigma": 0.0, "alpha": 1.0, "n": 3.0})
    assert abs(fit.mu - Z_MASS_GEV) < 3 * fit.errors["mu"]
    # Cramer-Rao bound of a Lorentzian's location: sqrt(2) half its width / sqrt(n), on which a finite range has little effect
    assert fit.errors["mu"] == pytest.approx(Z_WIDTH_GEV / np.sqrt(2 * fit.n), rel=0.1)


# fits


def test_injected_parameters_come_back_with_unit_pulls(toys: tuple[dict[str, float], list[LineFit]]) -> None:
    truth, fits = toys
    pull = np.array([[(f.parameters[name] - value) / f.errors[name] for name, value in truth.items()] for f in fits])
    # mean and width have errors of 1/sqrt(n) and 1/sqrt(2 n); 0.1 more for the bias of likelihood, of order 1/sqrt(entries in tails)
    assert (np.abs(pull.mean(axis=0)) < 3 / np.sqrt(len(fits)) + 0.1).all()
    assert (np.abs(pull.std(axis=0, ddof=1) - 1) < 3 / np.sqrt(2 * len(fits)) + 0.05).all()


def test_chi2_of_the_toys_lies_where_chernoff_and_lehmann_put_it(toys: tuple[dict[str, float], list[LineFit]]) -> None:
    truth, fits = toys
    excess = np.array([f.chi2 - f.ndf for f in fits])
    spread = 3 * np.sqrt(2 * np.mean([f.ndf for f in fits]) / len(fits))
    assert -spread < excess.mean() < len(truth) + spread
    assert min(f.p_value for f in fits) > 1e-5


@pytest.mark.parametrize("shape", FITS)
def test_binned_and_unbinned_fits_agree(shape: str) -> None:
    free, binned = fit_toy(shape, 3, bins=None), fit_toy(shape, 3, bins=100)
    # what fine bins throw away is a small part of the error
    for name, error in free.errors.items():
        assert abs(free.parameters[name] - binned.parameters[name]) < 0.4 * error
        assert binned.errors[name] == pytest.approx(error, rel=0.15)
    assert (free.is_binned, binned.is_binned) == (False, True)


def test_a_fit_does_not_depend_on_the_unit() -> None:
    values = toy("double_crystal_ball", 5, 2000)
    one, other = fit_double_crystal_ball(values), fit_double_crystal_ball(50.0 * values - 3.0)
    assert other.mu == pytest.approx(50 * one.mu - 3, rel=1e-6)
    assert other.sigma_error == pytest.approx(50 * one.sigma_error, rel=1e-3)


def test_outliers_do_not_move_a_fit() -> None:
    values = toy("cruijff", 6, 2000)
    clean, spoilt = fit_cruijff(values), fit_cruijff(np.concatenate([values, [1e9, -1e9, 40.0]]))
    assert abs(spoilt.mu - clean.mu) < 0.2 * clean.errors["mu"]
    assert spoilt.n_outside == clean.n_outside + 3


@pytest.mark.parametrize("shape", ["cruijff", "double_crystal_ball"])
@pytest.mark.parametrize("values", ["gauss", "student", "radiative", "flat"])
def test_odd_values_are_fitted_from_their_own_starting_values(shape: str, values: str) -> None:
    rng = np.random.default_rng(3)
    of = {
        "gauss": rng.normal(1, 0.02, 300),
        "student": 1 + 0.02 * rng.standard_t(1.5, 300),
        "radiative": rng.normal(1, 0.01, 300) - np.where(rng.random(300) < 0.3, rng.exponential(0.05, 300), 0),
        "flat": rng.uniform(0.9, 1.1, 300),
    }
    fit = FITS[shape](of[values])
    assert 0.9 < fit.mu < 1.1
    assert fit.sigma_error > 0


@pytest.mark.parametrize("shape", ["cruijff", "double_crystal_ball"])
def test_twenty_values_are_enough(shape: str) -> None:
    fit = FITS[shape](np.random.default_rng(1).normal(1.0, 0.02, 20))
    assert 0.005 < fit.sigma < 0.04


def test_gaussian_values_have_a_cruijff_without_tails() -> None:
    fit = fit_cruijff(np.random.default_rng(2).normal(1.0, 0.02, 5000))
    assert fit.held  # at least one alpha is at the end of what is allowed
    assert all(np.isnan(fit.errors[name]) and fit.parameters[name] == 0 for name in fit.held)
    assert abs(fit.sigma - 0.02) < 4 * fit.sigma_error


def test_bootstrap_errors_are_those_of_the_curvature() -> None:
    fit = fit_cruijff(toy("cruijff", 8, 2000), range=CRUIJFF_RANGE, bins=60, n_bootstrap=60, seed=1)
    assert fit.bootstrap_errors is not None
    for name in ("mu", "sigma_left", "sigma_right"):
        # an error from 60 replicas is known to 9 %; three of them
        assert fit.bootstrap_errors[name] == pytest.approx(fit.errors[name], rel=0.28)


def test_bootstrap_repeats_with_its_seed() -> None:
    values = toy("double_crystal_ball", 8, 500)
    hold = {"n_left": 3.0, "n_right": 4.0}
    one, again, other = (fit_double_crystal_ball(values, fixed=hold, n_bootstrap=4, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.bootstrap_covariance, again.bootstrap_covariance)
    assert not np.array_equal(one.bootstrap_covariance, other.bootstrap_covariance)


def test_sigma_is_the_mean_of_both_sides_with_its_error() -> None:
    fit = fit_cruijff(toy("cruijff", 9), range=CRUIJFF_RANGE)
    at = list(fit.parameters).index("sigma_left")
    assert fit.sigma == pytest.approx(0.5 * (fit.parameters["sigma_left"] + fit.parameters["sigma_right"]))
    assert fit.sigma_error == pytest.approx(0.5 * np.sqrt(fit.covariance[at : at + 2, at : at + 2].sum()))
    assert fit.sigma_over_mu == pytest.approx(fit.sigma / fit.mu)
    assert fit.sigma_over_mu_error == pytest.approx(fit.sigma_error / fit.mu, rel=0.05)  # mu is known far better


@pytest.mark.parametrize("shape", FITS)
def test_density_of_a_fit_is_one_over_its_range_and_its_bins_hold_all(shape: str) -> None:
    fit = fit_toy(shape, 2, bins=60, n=1000)
    edges = np.linspace(*fit.range, 2001)
    middle = 0.5 * (edges[1:] + edges[:-1])
    assert fit.density(middle).sum() * np.diff(edges)[0] == pytest.approx(1, abs=1e-4)  # midpoint rule
    np.testing.assert_allclose(fit.expected(edges).sum(), fit.n, rtol=1e-9)
    assert float(fit.density(fit.range[1] + 1)) == 0
    assert json.loads(json.dumps(fit.to_json_dict(), allow_nan=False))["shape"] == shape


# bad input


GOOD = np.random.default_rng(1).normal(91.0, 3.0, 100)


@pytest.mark.parametrize("shape", FITS)
@pytest.mark.parametrize(
    ("values", "options", "says"),
    [
        (np.append(GOOD, np.nan), {}, r"values\[100\] is not finite"),
        (np.append(GOOD, np.inf), {}, r"values\[100\] is not finite"),
        (GOOD[:19], {}, "at least 20"),
        ([], {}, "at least 20"),
        (np.full(50, 91.0), {}, "two thirds of the values are 91"),
        (GOOD.reshape(10, 10), {}, "plain list"),
        (GOOD, {"range": (95.0, 95.0)}, "must rise"),
        (GOOD, {"range": (100.0, 90.0)}, "must rise"),
        (GOOD, {"range": (np.nan, 90.0)}, "must rise"),
        (GOOD, {"range": (200.0, 300.0)}, "0 of 100 values within"),
        (GOOD, {"range": (60.0, np.inf), "bins": 20}, "must end on both sides"),
        (GOOD, {"bins": 3}, "bins = 3 must be at least"),
        (GOOD, {"fixed": {"width": 1.0}}, "fixed has 'width'"),
        (GOOD, {"fixed": {"sigma": -1.0, "sigma_left": -1.0}}, "fixed"),
        (GOOD, {"n_bootstrap": 1}, "n_bootstrap = 1"),
    ],
)
def test_bad_input_is_named(shape: str, values: np.ndarray, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FITS[shape](values, **options)


def test_masses_that_are_not_smeared_say_so() -> None:
    with pytest.raises(NotConvergedError, match="smeared beyond the natural width"):
        fit_z_line(sample_z_mass(1000, seed=1), bins=60)


def test_a_cruijff_tail_needs_an_end() -> None:
    with pytest.raises(ValueError, match="has no integral over an endless side"):
        cruijff(0.0, 0.0, sigma_left=1.0, sigma_right=1.0, alpha_left=0.1, range=(-np.inf, 1.0))


@pytest.mark.parametrize("bad", [{"sigma": 0.0}, {"sigma": np.nan}, {"alpha_left": 0.0}, {"n_right": 1.0}])
def test_crystal_ball_parameters_out_of_range_are_named(bad: dict[str, float]) -> None:
    name = next(iter(bad))
    with pytest.raises(ValueError, match=f"{name} = "):
        double_crystal_ball(0.0, 1.0, **{**rest(BALL), **bad})


def test_a_crystal_ball_may_be_fitted_without_a_range() -> None:
    values = np.append(toy("double_crystal_ball", 4), 40.0)
    fit = fit_double_crystal_ball(values, range=(-np.inf, np.inf))
    assert (fit.n, fit.n_outside) == (values.size, 0)
    assert abs(fit.mu - 1) < 4 * fit.errors["mu"]


def test_an_edge_out_of_range_is_refused() -> None:
    fit = fit_cruijff(toy("cruijff", 1, 500), range=CRUIJFF_RANGE)
    with pytest.raises(ValueError, match="rise within the range"):
        fit.expected([0.5, 1.0])
