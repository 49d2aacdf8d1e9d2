"""Z bosons to electron pairs: kinematics that keep momentum, a line that is PDG's, a scale that shifts it, and the two conditions."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.optimize import minimize

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.presets import load_detector
from calolife.energy.lineshapes import Z_MASS_GEV, Z_WIDTH_GEV, fit_z_line
from calolife.energy.zpeaks import ZEvents, compare_z_peaks, dielectron_mass, fit_true_peak
from calolife.plots_zee import plot_z_peak
from calolife.zee import (
    Condition,
    ZPairs,
    ZProduction,
    barrel_eta,
    both_found,
    conditions_of,
    find_electrons,
    light_left,
    sample_z,
    z_particles,
)


@pytest.fixture(scope="module")
def barrel() -> CrystalCalorimeter:
    found = load_detector("cms-barrel")
    assert isinstance(found, CrystalCalorimeter)
    return found


@pytest.fixture(scope="module")
def pairs() -> ZPairs:
    return sample_z(20_000, seed=1)


def measured(pairs: ZPairs, *, condition: str = "toy", **factor: np.ndarray | float) -> ZEvents:
    """Events in which a model measures the true energy times a factor."""
    energy = pairs.electron_energy_gev
    return ZEvents(
        condition, np.arange(pairs.n_pairs), pairs.mass_gev, energy, pairs.electron_eta, pairs.electron_phi,
        {name: energy * by for name, by in factor.items()},
    )  # fmt: skip


def smeared(n: int, width: float, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, width, (n, 2))


def test_the_electrons_carry_the_momentum_of_the_z(pairs: ZPairs) -> None:
    electrons = pairs.electron_momentum_gev
    # boosts of some hundred GeV in double precision
    np.testing.assert_allclose(electrons.sum(axis=1), pairs.momentum_gev, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.sqrt((electrons[..., 1:] ** 2).sum(axis=-1)), electrons[..., 0], rtol=1e-12)


def test_the_mass_of_the_pair_is_that_of_the_z(pairs: ZPairs) -> None:
    mass = dielectron_mass(pairs.electron_energy_gev, pairs.electron_eta, pairs.electron_phi)
    np.testing.assert_allclose(mass, pairs.mass_gev, rtol=1e-12)


def test_a_line_without_smearing_has_the_mass_and_width_of_pdg() -> None:
    # as good as no acceptance, which would favour heavy pairs
    mass = sample_z(100_000, seed=2, largest_eta=7.0, least_pt_gev=0.0).mass_gev
    grid = np.linspace(60.0, 120.0, 4001)

    def loss(parameters: np.ndarray) -> float:
        m0, width = parameters
        area = np.trapezoid(1.0 / ((grid**2 - m0**2) ** 2 + (m0 * width) ** 2), grid)
        return float(np.log((mass**2 - m0**2) ** 2 + (m0 * width) ** 2).mean() + np.log(area))

    found = minimize(loss, [91.0, 2.0], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-12}).x
    # a Cauchy line: the variance of its centre is 2 (width / 2)^2 / n, that of its width 8 (width / 2)^2 / n
    error = Z_WIDTH_GEV * np.sqrt(np.array([0.5, 2.0]) / mass.size)
    np.testing.assert_array_less(np.abs(found - [Z_MASS_GEV, Z_WIDTH_GEV]), 4 * error)


def test_the_acceptance_does_not_move_the_peak(pairs: ZPairs) -> None:
    # within what 20,000 Z can tell: width / sqrt(2 n) = 12 MeV
    assert abs(fit_true_peak(measured(pairs)) - Z_MASS_GEV) < 4 * Z_WIDTH_GEV / math.sqrt(2 * pairs.n_pairs)


def test_the_decay_goes_as_one_plus_the_square_of_the_cosine() -> None:
    pairs = sample_z(20_000, seed=3, largest_eta=7.0, least_pt_gev=0.0)
    z, electron = pairs.momentum_gev, pairs.electron_momentum_gev[:, 0]
    along = np.einsum("ij,ij->i", electron[:, 1:], z[:, 1:])
    boosted = electron[:, 1:] - ((electron[:, 0] - along / (z[:, 0] + pairs.mass_gev)) / pairs.mass_gev)[:, None] * z[:, 1:]
    np.testing.assert_allclose(np.linalg.norm(boosted, axis=1), 0.5 * pairs.mass_gev, rtol=1e-9)
    # of slow ones every electron is inside, but for 1e-3 of the angles
    cosine = (boosted[:, 2] / (0.5 * pairs.mass_gev))[np.abs(pairs.rapidity) < 3.0]
    # means of c^2 and c^4 under 3/8 (1 + c^2) are 2/5 and 9/35
    for power, expected in ((1, 0.0), (2, 2 / 5), (4, 9 / 35)):
        moment = cosine**power
        assert abs(moment.mean() - expected) < 4 * moment.std() / math.sqrt(moment.size)


def test_the_spectrum_is_the_documented_one() -> None:
    pt = sample_z(20_000, seed=4, largest_eta=7.0, least_pt_gev=0.0).pt_gev
    assert pt.max() < 300.0
    # dN/dpT = 2 pT a^2 / (a^2 + pT^2)^2: half of it lies below a, but for the cut at 300 GeV
    assert abs((pt < 11.0).mean() - 0.5 * (1 + (11 / 300) ** 2)) < 4 * 0.5 / math.sqrt(pt.size)


def test_all_pairs_are_in_the_acceptance_and_the_others_counted(pairs: ZPairs) -> None:
    assert (np.abs(pairs.electron_eta) < 1.479).all()
    assert (pairs.electron_pt_gev > 20.0).all()
    # tried until inside: the same part of fresh ones is inside at the first try
    n = pairs.n_tried.size
    part = n / pairs.n_tried.sum()
    assert abs((pairs.n_tried == 1).mean() - part) < 4 * math.sqrt(2 * part * (1 - part) / n)


def test_a_pair_depends_on_its_number_and_the_seed_only() -> None:
    whole, part, other = sample_z(30, seed=5), sample_z(10, seed=5, first=20), sample_z(30, seed=6)
    for column in fields(ZPairs):
        assert np.array_equal(getattr(whole.between(20, 30), column.name), getattr(part, column.name))
    assert not np.isin(whole.mass_gev, other.mass_gev).any()


def test_showers_do_not_depend_on_how_they_are_cut(barrel: CrystalCalorimeter) -> None:
    production = ZProduction(barrel, 6, seed=7)
    whole, last = production.simulate(0, 12), production.simulate(8, 12)
    assert np.array_equal(whole.between(8, 12).energy_mev, last.energy_mev)
    assert np.array_equal(whole.between(8, 12).cell, last.cell)
    assert whole.pdg_id.tolist() == [11, -11] * 6
    np.testing.assert_allclose(whole.energy_gev.reshape(6, 2), production.pairs(0, 6).electron_energy_gev, rtol=1e-12)


def test_electrons_enter_where_they_point_to_at_three_degrees(barrel: CrystalCalorimeter, pairs: ZPairs) -> None:
    particles = z_particles(barrel, pairs, seed=1)
    eta, phi = barrel.eta_phi_at(*particles.position_mm.T)
    np.testing.assert_allclose(eta, pairs.electron_eta.ravel(), atol=1e-9)
    np.testing.assert_allclose((phi - pairs.electron_phi.ravel() + 1) % (2 * math.pi), 1, atol=1e-9)
    np.testing.assert_allclose(particles.direction[:, 2], math.cos(math.radians(3)), rtol=1e-12)
    n = particles.n_particles
    assert np.abs(particles.direction[:, :2].mean(axis=0)).max() < 4 * math.sin(math.radians(3)) / math.sqrt(2 * n)


def test_the_mass_scale_shifts_by_the_energy_scale(pairs: ZPairs) -> None:
    energy = pairs.electron_energy_gev * smeared(pairs.n_pairs, 0.015, seed=1)
    mass, scaled = (dielectron_mass(by * energy, pairs.electron_eta, pairs.electron_phi) for by in (1.0, 1.01))
    np.testing.assert_allclose(scaled, 1.01 * mass, rtol=1e-14)
    fit = fit_z_line(mass[:3000], range=(70.0, 110.0))
    after = fit_z_line(scaled[:3000], range=(1.01 * 70.0, 1.01 * 110.0))
    # the fit works in units of the median: the same steps to the same minimum, but for rounding
    np.testing.assert_allclose([after.mu, after.sigma], [1.01 * fit.mu, 1.01 * fit.sigma], rtol=1e-6)


def test_the_resolution_of_the_mass_is_that_of_an_electron_over_root_two(pairs: ZPairs) -> None:
    (peak,), _ = compare_z_peaks(measured(pairs, toy=smeared(pairs.n_pairs, 0.02, seed=2)), reference="toy", n_bootstrap=0)
    value, error = peak.resolution_percent
    assert abs(value - 2.0 / math.sqrt(2)) < 4 * error
    assert error < 0.05
    assert peak.fit is not None
    # the products of two Gaussians have a mean of 1, and their root 1 - 0.02^2 / 4
    assert abs(peak.shift_percent + 0.01) < 4 * 100 * peak.fit.errors["mu"] / Z_MASS_GEV


def test_models_are_compared_in_the_same_replicas(pairs: ZPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calolife.energy.zpeaks.LEAST_REPLICAS", 6)  # 40 take seconds
    few = pairs.between(0, 800)
    good, extra = smeared(800, 0.010, seed=3), smeared(800, 0.010, seed=4)
    events = measured(few, good=good, same=good, worse=good * extra)
    peaks, comparisons = compare_z_peaks(events, reference="good", n_bootstrap=6, seed=1)
    assert [p.model for p in peaks] == ["good", "same", "worse"]
    ratio = {(c.model, c.figure): c for c in comparisons}
    for figure in ("resolution", "resolution_same_tail", "effective_sigma"):
        same, worse = ratio["same", figure], ratio["worse", figure]
        assert (same.ratio, same.low, same.high) == (1.0, 1.0, 1.0)
        assert worse.low > 1.0
    # 1.4 times as wide
    assert abs(ratio["worse", "resolution"].ratio - math.sqrt(2)) < 4 * ratio["worse", "resolution"].ratio_error


def test_few_replicas_give_errors_and_no_intervals(pairs: ZPairs) -> None:
    events = measured(pairs.between(0, 800), good=smeared(800, 0.010, seed=3), other=smeared(800, 0.014, seed=4))
    _, comparisons = compare_z_peaks(events, reference="good", n_bootstrap=3)
    for c in comparisons:
        assert c.ratio_error > 0
        assert math.isnan(c.low)
        assert c.to_json_dict()["high"] is None


def test_too_few_events_have_no_fit_and_say_so(pairs: ZPairs) -> None:
    few = measured(pairs.between(0, 20), toy=1.0, other=1.1)
    peaks, comparisons = compare_z_peaks(few, reference="toy", n_bootstrap=3)
    assert peaks[0].fit is None
    assert "too few" in peaks[0].remark
    assert peaks[0].to_json_dict()["mass_gev"] == {"value": None, "uncertainty": None}
    assert comparisons[0].to_json_dict()["ratio"] is None
    assert math.isnan(fit_true_peak(few))


def test_measured_electrons_below_the_threshold_are_left_out(pairs: ZPairs) -> None:
    events = measured(pairs, half=0.5)
    pt = 0.5 * pairs.electron_pt_gev
    mass = 0.5 * pairs.mass_gev
    assert np.array_equal(events.is_kept("half"), (pt > 20).all(axis=1) & (mass >= 60))


def test_light_is_lost_most_at_the_ends_of_the_barrel(barrel: CrystalCalorimeter) -> None:
    left = light_left(barrel, 3.0, seed=1)
    lost = 1 - left
    eta = np.abs(barrel.eta_phi_at(*barrel.cell_position_mm(np.arange(barrel.n_cells))[:, :2].T)[0])
    for low, high in ((0.0, 0.3), (1.2, 1.48)):
        inside = (eta > low) & (eta < high)
        mean = 0.015 * (1 + (eta[inside] / barrel_eta(barrel)) ** 2)
        relative = lost[inside] / mean
        assert abs(relative.mean() - 1) < 4 * 0.25 / math.sqrt(inside.sum())
        assert abs(relative.std() - 0.25) < 4 * 0.25 / math.sqrt(2 * inside.sum())
    assert lost.min() > 0
    np.testing.assert_allclose(1 - light_left(barrel, 6.0, seed=1), 2 * lost, rtol=1e-12)
    assert (light_left(barrel, 0.0, seed=1) == 1).all()


def test_conditions_read_the_same_electrons_with_the_same_noise(barrel: CrystalCalorimeter) -> None:
    production = ZProduction(barrel, 30, seed=8)
    showers = production.simulate(0, production.n)
    conditions = (Condition("ideal"), Condition("also ideal"), Condition("dimmer", 0.0, 10.0), *conditions_of(0.5, 3.0)[1:])
    found = find_electrons([showers.between(0, 20), showers.between(20, 60)], barrel, conditions=conditions, seed=1)
    ideal, again, dimmer, realistic = found.values()
    assert np.array_equal(ideal.energy_mev, again.energy_mev)
    assert np.array_equal(ideal.shower, dimmer.shower)
    assert not np.array_equal(ideal.raw_energy_gev, realistic.raw_energy_gev)
    # 5 to 10 % of the light gone, and hits near the threshold with it; photo-electrons of 45 GeV scatter by 0.3 %
    ratio = dimmer.raw_energy_gev / ideal.raw_energy_gev
    assert 0.90 < ratio.mean() < 0.95
    assert np.std(ratio) < 0.02


def test_only_pairs_found_twice_make_an_event(barrel: CrystalCalorimeter) -> None:
    production = ZProduction(barrel, 10, seed=9)
    found = find_electrons([production.simulate(0, 20)], barrel, conditions=conditions_of(0.0, 0.0), seed=1)["ideal"]
    assert found.n_objects == 20
    some = found.select(~np.isin(found.shower, [0, 5, 8, 9]))
    pair, rows = both_found(some)
    assert pair.tolist() == [1, 3, 5, 6, 7, 8, 9]
    assert np.array_equal(some.shower[rows], np.stack([2 * pair, 2 * pair + 1], axis=1))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n": 0}, "n must be >= 1"),
        ({"seed": -1}, "below 2"),
        ({"first": -1}, "the others >= 0"),
        ({"largest_eta": 0.0}, "barrel ends"),
        ({"least_pt_gev": 30.0}, "half of the lightest Z"),
    ],
)
def test_a_sample_that_cannot_be_is_refused(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sample_z(**{"n": 5, "seed": 1, **wrong})  # type: ignore[arg-type]


def test_an_acceptance_that_nothing_enters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calolife.zee._MOST_TRIES", 20)
    with pytest.raises(ValueError, match="no pair inside"):
        sample_z(5, seed=1, largest_eta=1e-6)


def test_a_matrix_in_a_beam_is_no_barrel() -> None:
    matrix = load_detector("pbwo4-5x5")
    assert isinstance(matrix, CrystalCalorimeter)
    with pytest.raises(ValueError, match="is no barrel"):
        ZProduction(matrix, 5)


@pytest.mark.parametrize("loss", [-1.0, 51.0, math.nan])
def test_a_loss_out_of_range_is_refused(barrel: CrystalCalorimeter, loss: float) -> None:
    with pytest.raises(ValueError, match="loss_percent"):
        light_left(barrel, loss, seed=1)
    with pytest.raises(ValueError, match="light_loss_percent"):
        conditions_of(0.5, loss)


def test_wrong_shapes_and_references_are_refused(pairs: ZPairs) -> None:
    with pytest.raises(ValueError, match="all must be"):
        dielectron_mass([45.0, 45.0], [0.0, 0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="must be >= 0"):
        dielectron_mass([[45.0, -1.0]], [[0.0, 0.0]], [[0.0, 1.0]])
    events = measured(pairs.between(0, 100), toy=1.0)
    with pytest.raises(ValueError, match="energy_gev of toy"):
        replace(events, energy_gev={"toy": np.ones(3)})
    with pytest.raises(ValueError, match="is not one of toy"):
        compare_z_peaks(events, reference="bdt")
    with pytest.raises(ValueError, match="n_bootstrap = 1"):
        compare_z_peaks(events, reference="toy", n_bootstrap=1)


def test_the_figure_shows_every_model_and_the_ratio_to_the_reference(pairs: ZPairs) -> None:
    few = pairs.between(0, 1000)
    events = measured(few, good=smeared(1000, 0.01, seed=5), worse=smeared(1000, 0.02, seed=6))
    peaks, _ = compare_z_peaks(events, reference="good", n_bootstrap=0)
    mass = {p.model: events.mass_gev(p.model)[events.is_kept(p.model)] for p in peaks}
    ax = plot_z_peak(mass, {p.model: p.fit for p in peaks}, reference="good")
    assert [text.get_text().split(" ")[0] for text in ax.get_legend().get_texts()] == ["good", "worse"]
    (below,) = ax.child_axes
    curves = [line.get_ydata() for line in below.lines if len(np.asarray(line.get_ydata())) > 100]
    np.testing.assert_allclose(curves[0], 1.0)  # the reference over itself
    assert not plot_z_peak(mass, {"good": None, "worse": None}, reference="good").child_axes
    with pytest.raises(ValueError, match="no models"):
        plot_z_peak({}, {}, reference="good")
