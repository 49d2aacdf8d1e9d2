"""Colour centres: the exact solution, its limits, and what a fit gets back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.optimize import nnls

from calolife.transparency.centres import (
    Strand,
    amplitudes,
    chain_strands,
    fit_shared,
    log_errors,
    nonnegative_least_squares,
    occupancy,
    ring_dose_scale,
    search_shared,
)
from calolife.transparency.synthetic import B_PER_IFB, NO_NOISE, TAU_D, simulate_history

DAY = 86400.0


def schedule(n=300, seed=0):
    """Readings every hour or two, luminosity in half of the intervals."""
    rng = np.random.default_rng(seed)
    time_s = np.cumsum(rng.uniform(2000, 8000, n))
    return time_s, np.where(rng.random(n) < 0.5, rng.uniform(0, 0.05, n), 0.0)


def test_without_luminosity_there_is_only_recovery():
    time_s, _ = schedule()
    F = occupancy(time_s, np.zeros(time_s.size), tau_d=[0.1, 5.0, np.inf], b_per_ifb=[1.0, 0.1, 0.1], start=[1.0, 2.0, 3.0])
    assert (np.diff(F[:2], axis=1) < 0).all()
    expected = 2.0 * np.exp(-(time_s - time_s[0]) / (5.0 * DAY))
    np.testing.assert_allclose(F[1], expected, rtol=1e-12)
    np.testing.assert_array_equal(F[2], 3.0)  # centres that never recover stay


def test_the_exact_solution_is_a_fine_numerical_integration():
    time_s, lumi = schedule(40)
    tau, b = np.array([0.05, 3.0]), np.array([20.0, 0.5])
    F = occupancy(time_s, lumi, tau_d=tau, b_per_ifb=b, start=[0.01, 0.2])
    state = np.array([0.01, 0.2])
    for i in range(time_s.size - 1):
        dt = (time_s[i + 1] - time_s[i]) / DAY
        rate = lumi[i] / dt
        state = solve_ivp(lambda _, f, r=rate: -f / tau + r * (1 - b * f), (0, dt), state, rtol=1e-10, atol=1e-13).y[:, -1]
    np.testing.assert_allclose(F[:, -1], state, rtol=1e-7)  # the integrator's tolerance over 39 intervals


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=4, unique=True), st.floats(0, 2), st.floats(0, 30), st.floats(0.01, 500))
def test_splitting_an_interval_changes_nothing(cuts, lumi, b, tau):
    inner = np.sort(cuts)
    whole = occupancy([0, DAY], [lumi, 0], tau_d=[tau], b_per_ifb=[b], start=[0.1])
    times = DAY * np.r_[0, inner, 1]
    split = occupancy(times, np.r_[lumi * np.diff(np.r_[0, inner, 1]), 0], tau_d=[tau], b_per_ifb=[b], start=[0.1])
    np.testing.assert_allclose(split[0, -1], whole[0, -1], rtol=1e-9, atol=1e-15)


def test_centres_saturate_at_one_over_b():
    time_s = DAY * np.arange(400)
    F = occupancy(time_s, np.full(400, 5.0), tau_d=[np.inf], b_per_ifb=[0.25])
    assert (F <= 4.0).all()
    assert F[0, -1] == pytest.approx(4.0, rel=1e-12)


def test_small_doses_add_up_linearly():
    time_s, lumi = schedule()
    one = occupancy(time_s, lumi, tau_d=[3.0], b_per_ifb=[0.0])
    two = occupancy(time_s, 2 * lumi, tau_d=[3.0], b_per_ifb=[0.0])
    np.testing.assert_allclose(two, 2 * one, rtol=1e-12)


def test_nonnegative_least_squares_agrees_with_the_active_set_walk():
    rng = np.random.default_rng(1)
    A = rng.standard_normal((200, 30, 4)) + rng.standard_normal((200, 30, 1))
    y = rng.standard_normal((200, 30))
    x = nonnegative_least_squares(np.einsum("kni,knj->kij", A, A), np.einsum("kni,kn->ki", A, y))
    expected = np.array([nnls(a, v)[0] for a, v in zip(A, y, strict=True)])
    np.testing.assert_allclose(x, expected, atol=1e-7)  # normal equations lose half the digits


def noisy_strand(seed, *, n=1200, n_crystal=3, noise=3e-4):
    """A year of hourly-ish readings of crystals with two kinds of centres and white noise."""
    rng = np.random.default_rng(seed)
    gap = rng.uniform(3, 7, n) * 3600
    time_s = np.cumsum(gap)
    beam = (np.arange(n) // 90) % 5 < 4  # a stop after four stretches of beam
    lumi = np.where(beam & (rng.random(n) < 0.7), gap / DAY * rng.uniform(0.2, 0.6, n), 0.0)
    tau, b = np.array([4.0, 60.0]), np.array([2.0, 0.05])
    a = np.array([[0.05, 0.004], [0.08, 0.003], [0.03, 0.006]])[:n_crystal]
    F = occupancy(time_s, lumi, tau_d=tau, b_per_ifb=b)
    log_r = -0.02 - a @ F + noise * rng.standard_normal((n_crystal, n))
    return Strand(66, np.arange(n_crystal), time_s, lumi, np.full(n, 2016), np.arange(n), log_r), np.log([tau, b]), a


def test_noise_free_amplitudes_come_back_exactly():
    strand, log_tau_b, a = noisy_strand(0, noise=0.0)
    F = strand.occupancy(*np.exp(log_tau_b), 1.0)
    got, residual = amplitudes(F, strand.log_r, strand.starts)
    np.testing.assert_allclose(got, a, rtol=1e-6)  # a ridge of 1e-10 keeps degenerate subsets solvable
    assert np.abs(residual).max() < 1e-7


def test_a_level_that_jumps_between_years_moves_no_amplitude():
    strand, log_tau_b, _ = noisy_strand(1)
    year = np.where(np.arange(strand.time_s.size) < 500, 2016, 2017)
    F = strand.occupancy(*np.exp(log_tau_b), 1.0)
    starts = np.unique(year, return_index=True)[1]
    before, _ = amplitudes(F, strand.log_r, starts)
    after, _ = amplitudes(F, strand.log_r + np.where(year == 2017, 0.005, 0.0), starts)
    np.testing.assert_allclose(after, before, rtol=1e-6)


@pytest.mark.slow
def test_fitted_tau_and_b_scatter_about_the_truth_by_their_errors():
    pulls = []
    for seed in range(200):
        strand, truth, _ = noisy_strand(seed)
        found, _ = search_shared([strand], np.ones(1), truth + 0.2, n_try=400)
        pulls.append((found - truth) / log_errors([strand], np.ones(1), found))
    pulls = np.array(pulls).reshape(200, -1)
    # the mean of 200 pulls scatters by 1/sqrt(200) = 0.07 and their width by 0.05: 3.5 sigma for 4 numbers each
    np.testing.assert_allclose(pulls.mean(axis=0), 0, atol=3.5 * 0.07)
    np.testing.assert_allclose(pulls.std(axis=0), 1, atol=3.5 * 0.05)


def test_a_ring_with_twice_the_dose_is_found():
    strand, log_tau_b, a = noisy_strand(3)
    tau, b = np.exp(log_tau_b)
    rng = np.random.default_rng(0)
    doubled = Strand(
        67, strand.xtal_id, strand.time_s, strand.lumi_ifb, strand.year, strand.row,
        -a @ strand.occupancy(tau, b, 2.0) + 3e-4 * rng.standard_normal(strand.log_r.shape),
    )  # fmt: skip
    # the grid is half a power of two, refined by a parabola
    assert ring_dose_scale(doubled, np.exp(log_tau_b)) == pytest.approx(2.0, rel=0.15)


def test_thinning_changes_no_occupancy_at_the_readings_it_keeps():
    strand, log_tau_b, _ = noisy_strand(2)
    fast = np.log([[0.02, 60.0], [2.0, 0.05]])  # half an hour: gone before the next fitted reading
    thin = strand.thinned(7, 3)
    for tau, b in (np.exp(log_tau_b), np.exp(fast)):
        whole = strand.occupancy(tau, b, 1.0)
        np.testing.assert_array_equal(thin.occupancy(tau, b, 1.0)[:, thin.row], whole[:, ::7])


def test_the_fit_of_a_synthetic_year_reaches_the_noise():
    history, _ = simulate_history(n_crystals=4, n_years=1, seed=1, noise=NO_NOISE, with_steps=False)
    strands = [s.thinned(4, 4) for s in chain_strands(history)]
    _, _, loss = fit_shared(strands, n_try=400)
    truth = np.log([TAU_D, B_PER_IFB])
    at_truth = search_shared(strands, np.ones(len(strands)), truth, n_try=1)[1]
    # noise-free readings: what remains is luminosity spread evenly between readings, at the truth too
    assert loss < max(2 * at_truth, 0.02)
