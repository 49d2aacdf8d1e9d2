"""Material and field in front of crystals: what is radiated, what converts, where it arrives, and that energy is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.presets import load_detector
from calolife.simulation.engines import ENGINES, simulate_showers
from calolife.simulation.particles import PDG, Particles, sample_particles
from calolife.simulation.upstream import barrel_radius_mm, has_upstream, through_upstream

COLUMNS = ("pdg_id", "energy_gev", "position_mm", "direction", "shower")
AHEAD = (0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def barrel() -> CrystalCalorimeter:
    found = load_detector("cms-barrel")
    assert isinstance(found, CrystalCalorimeter)
    return found


def behind(barrel: CrystalCalorimeter, depth_x0: float) -> CrystalCalorimeter:
    return replace(barrel, upstream_x0=((0.0, depth_x0),))


def shot(barrel: CrystalCalorimeter, n: int, particle: str, energy_gev: float, *, eta: float = 0.3) -> Particles:
    """All to one place."""
    x, y = (float(v) for v in barrel.xy_mm_at(eta, 0.5))
    return sample_particles(barrel, n, particle=particle, energy_gev=energy_gev, position_mm=(x, y), seed=3)


def total_gev(arrived: Particles) -> np.ndarray:
    assert arrived.shower is not None
    return np.bincount(arrived.shower, arrived.energy_gev)


def same(a: Particles, b: Particles) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


@pytest.mark.parametrize("particle", ["e-", "e+", "gamma"])
def test_without_a_field_no_energy_is_lost(barrel: CrystalCalorimeter, particle: str) -> None:
    beam = sample_particles(barrel, 2000, particle=particle, energy_gev=(0.1, 100.0), seed=1)
    arrived = through_upstream(barrel, beam, seed=1, field_tesla=0.0)
    assert arrived.n_particles > 1.5 * beam.n_particles
    # each share is rounded once
    np.testing.assert_allclose(total_gev(arrived), beam.energy_gev, rtol=1e-13)


def test_with_a_field_only_what_curls_up_is_lost(barrel: CrystalCalorimeter) -> None:
    beam = sample_particles(barrel, 2000, particle="mix:e-=0.5,gamma=0.5", energy_gev=(0.1, 100.0), seed=1)
    arrived = through_upstream(barrel, beam, seed=1)
    lost = beam.energy_gev - total_gev(arrived)
    assert (lost > -1e-12 * beam.energy_gev).all()
    assert (lost > 0).mean() > 0.1
    # a circle through the vertex reaches the face if it is wider than half the radius
    least_gev = 0.2998 * 3.8 * 0.5e-3 * barrel_radius_mm(barrel)
    unradiated = through_upstream(behind(barrel, 0.0), shot(barrel, 1, "e-", 0.9 * least_gev, eta=0.0), seed=1)
    assert unradiated.energy_gev.tolist() == [1e-6]
    reaching = through_upstream(behind(barrel, 0.0), shot(barrel, 1, "e-", 1.1 * least_gev, eta=0.0), seed=1)
    assert reaching.energy_gev.tolist() == [1.1 * least_gev]


@pytest.mark.parametrize("depth_x0", [0.2, 0.7, 1.8])
def test_electrons_radiate_1_less_exp_of_the_depth(barrel: CrystalCalorimeter, depth_x0: float) -> None:
    n, energy_gev = 5_000, 100.0
    arrived = through_upstream(behind(barrel, depth_x0), shot(barrel, n, "e-", energy_gev), seed=1, field_tesla=0.0)
    assert arrived.shower is not None
    first = np.searchsorted(arrived.shower, np.arange(n))
    kept = arrived.energy_gev[first] / energy_gev
    # photons below 10 MeV stay: 4/3 x 10 MeV of 100 GeV an X0
    bias = 4.0 / 3.0 * 0.01 / energy_gev * depth_x0
    assert abs(kept.mean() - np.exp(-depth_x0)) < 4 * kept.std() / np.sqrt(n) + bias


def test_photons_radiated_have_the_spectrum_of_thin_material(barrel: CrystalCalorimeter) -> None:
    n, energy_gev, depth_x0 = 200_000, 10.0, 0.01
    arrived = through_upstream(behind(barrel, depth_x0), shot(barrel, n, "e-", energy_gev), seed=2, field_tesla=0.0)
    y = arrived.energy_gev[arrived.pdg_id == PDG["gamma"]] / energy_gev
    edges = np.array([0.01, 0.1, 0.3, 0.6, 1.0])
    integral = 4 / 3 * (np.log(edges) - edges) + edges**2 / 2
    expected = n * depth_x0 * np.diff(integral)
    count, _ = np.histogram(y, edges)
    # 1 % of the electrons have radiated before, and as many photons have converted: beside 4 standard deviations
    assert (np.abs(count - expected) < 4 * np.sqrt(expected) + 0.02 * expected).all()


@pytest.mark.parametrize("depth_x0", [0.1, 1.0])
def test_photons_convert_after_nine_sevenths(barrel: CrystalCalorimeter, depth_x0: float) -> None:
    n = 20_000
    arrived = through_upstream(behind(barrel, depth_x0), shot(barrel, n, "gamma", 20.0), seed=1, field_tesla=0.0)
    assert arrived.shower is not None
    first = np.searchsorted(arrived.shower, np.arange(n))
    whole = (arrived.pdg_id[first] == PDG["gamma"]) & (arrived.energy_gev[first] == 20.0)
    p = np.exp(-7 / 9 * depth_x0)
    assert abs(whole.mean() - p) < 4 * np.sqrt(p * (1 - p) / n)
    assert (arrived.pdg_id == PDG["e-"]).sum() == (arrived.pdg_id == PDG["e+"]).sum() > 0


@pytest.mark.parametrize("charge", [-1, 1])
@pytest.mark.parametrize("eta", [0.0, 1.2])
def test_electrons_are_displaced_as_a_circle_is(barrel: CrystalCalorimeter, charge: int, eta: float) -> None:
    calo, pt_gev = behind(barrel, 0.0), 20.0
    beam = shot(calo, 1, "e-" if charge < 0 else "e+", pt_gev * np.cosh(eta), eta=eta)
    arrived = through_upstream(calo, beam, seed=1)
    radius_m = 1e-3 * barrel_radius_mm(calo)
    turn = np.arcsin(0.2998 * 3.8 * radius_m / (2 * pt_gev))  # half the angle of the arc whose chord is the radius
    at_eta, at_phi = (float(v[0]) for v in calo.eta_phi_at(*arrived.position_mm.T))
    assert at_phi - 0.5 == pytest.approx(-charge * turn, rel=1e-4)  # the speed of light is quoted with 4 digits
    arc_m = 2 * turn * pt_gev / (0.2998 * 3.8)
    assert np.sinh(at_eta) == pytest.approx(np.sinh(eta) * arc_m / radius_m, rel=1e-4, abs=1e-9)
    # it comes in as flat as the circle cuts the face
    assert arrived.direction[0, 1] * np.cosh(eta) == pytest.approx(-charge * np.sin(turn), rel=1e-3)


def test_small_displacements_are_those_of_a_parabola(barrel: CrystalCalorimeter) -> None:
    calo = replace(behind(barrel, 0.0), phi_module_crystals=0)
    beam = shot(calo, 1, "e-", 100.0, eta=0.0)
    arrived = through_upstream(calo, beam, seed=1)
    length_m = 1e-3 * barrel_radius_mm(calo)
    # second order in turn: (7 mrad)^2
    expected_mm = 1e3 * 0.2998 * 3.8 * length_m**2 / (2 * 100.0)
    assert arrived.position_mm[0, 1] - beam.position_mm[0, 1] == pytest.approx(expected_mm, rel=1e-3)


def test_photons_lie_between_the_electron_and_where_it_pointed(barrel: CrystalCalorimeter) -> None:
    calo = behind(barrel, 0.5)
    beam = shot(calo, 3000, "e-", 30.0, eta=0.0)
    arrived = through_upstream(calo, beam, seed=1)
    is_photon = arrived.pdg_id == PDG["gamma"]
    shift = (arrived.position_mm[:, 1] - beam.position_mm[0, 1])[is_photon]
    farthest = 1e3 * 0.2998 * 3.8 * (1e-3 * barrel_radius_mm(calo)) ** 2 / (2 * 30.0)
    # radiated at the vertex: not displaced; the last photons follow the electron, which may have lost most of its energy
    assert (shift > -1e-6).mean() > 0.9
    assert 0.0 < np.median(shift) < farthest


def test_photons_in_front_of_nothing_are_not_touched(barrel: CrystalCalorimeter) -> None:
    beam = sample_particles(barrel, 500, particle="gamma", energy_gev=(1.0, 50.0), angle_deg=3.0, seed=1)
    assert same(through_upstream(behind(barrel, 0.0), beam, seed=1), beam)


@pytest.mark.parametrize("particle", ["pi-", "mu+", "neutron", "proton"])
def test_hadrons_and_muons_go_straight_through(barrel: CrystalCalorimeter, particle: str) -> None:
    beam = sample_particles(barrel, 100, particle=particle, energy_gev=5.0, seed=1)
    assert same(through_upstream(barrel, beam, seed=1), beam)


def test_no_table_changes_nothing(block: LayeredCalorimeter) -> None:
    for calo in (block, load_detector("pbwo4-5x5")):
        beam = sample_particles(calo, 10, particle="e-", energy_gev=5.0, seed=1)
        assert not has_upstream(calo)
        assert through_upstream(calo, beam, seed=1) is beam


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_a_shower_does_not_depend_on_the_chunk(barrel: CrystalCalorimeter, chunk: int) -> None:
    beam = sample_particles(barrel, 100, particle="mix:e-=0.4,gamma=0.4,pi-=0.2", energy_gev=(0.2, 20.0), seed=1)
    whole = through_upstream(barrel, beam, seed=1)
    for start in range(0, 100, chunk):
        stop = min(start + chunk, 100)
        assert same(through_upstream(barrel, beam.showers(start, stop), seed=1, first=start), whole.showers(start, stop))
    assert not same(through_upstream(barrel, beam, seed=2), whole)


def test_particles_of_one_shower_meet_different_chances(barrel: CrystalCalorimeter) -> None:
    x, y = (float(v) for v in barrel.xy_mm_at(1.0, 0.5))
    beam = Particles([11, 11], [50.0, 50.0], [[x, y]] * 2, [AHEAD] * 2, [0, 0])
    arrived = through_upstream(barrel, beam, seed=1, field_tesla=0.0)
    electrons = arrived.energy_gev[arrived.pdg_id == PDG["e-"]]
    assert electrons[0] != electrons[1]
    assert total_gev(arrived)[0] == pytest.approx(100.0, rel=1e-13)


def test_arrivals_point_into_the_face_and_lie_in_the_barrel(barrel: CrystalCalorimeter) -> None:
    beam = sample_particles(barrel, 3000, particle="e-", energy_gev=(0.5, 5.0), angle_deg=(0, 10), seed=1)
    arrived = through_upstream(barrel, beam, seed=1)
    assert (arrived.direction[:, 2] > 0).all()
    low = barrel.y_edges_mm[0, 0]
    assert (np.abs(arrived.position_mm[:, 1] - low - barrel.period_y_mm / 2) <= 0.501 * barrel.period_y_mm).all()


@pytest.mark.parametrize("given", [{"field_tesla": np.nan}, {"seed": -1}, {"first": -1}])
def test_wrong_numbers_are_refused(barrel: CrystalCalorimeter, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        through_upstream(barrel, shot(barrel, 1, "e-", 1.0), **{"seed": 1, **given})


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_keep_the_truth_of_what_was_shot(engine: str, request: pytest.FixtureRequest) -> None:
    if engine == "geant4":
        request.getfixturevalue("geant4_data")
    calo = replace(load_detector("pbwo4-5x5"), upstream_x0=((0.0, 1.0),))
    assert isinstance(calo, CrystalCalorimeter)
    beam = sample_particles(calo, 20, particle="mix:e-=0.5,gamma=0.5", energy_gev=(2.0, 5.0), seed=2)
    showers = simulate_showers(calo, beam, engine=engine, seed=2)
    assert showers.origin["upstream"] is True
    np.testing.assert_array_equal(showers.pdg_id, beam.pdg_id)
    np.testing.assert_array_equal(showers.energy_gev, beam.energy_gev)
    np.testing.assert_array_equal(showers.position_mm[:, :2], beam.position_mm)
    np.testing.assert_array_equal(showers.direction, beam.direction)
    again = simulate_showers(calo, beam.showers(12, 20), engine=engine, seed=2, first=12)
    np.testing.assert_array_equal(again.energy_mev, showers.select(np.arange(12, 20)).energy_mev)


def test_what_curls_up_counts_as_leaked(barrel: CrystalCalorimeter) -> None:
    showers = simulate_showers(barrel, shot(barrel, 5, "e-", 0.3, eta=0.0), seed=1)
    assert showers.leaked_mev is not None
    assert (showers.leaked_mev > 0.1 * 300).all()
    spent = showers.active_mev + showers.passive_mev + showers.leaked_mev + showers.invisible_mev  # type: ignore[operator]
    np.testing.assert_allclose(spent, 300.0, rtol=1e-6)


@pytest.mark.parametrize("particle", ["e-", "gamma"])
def test_showers_behind_material_are_spread_along_phi(barrel: CrystalCalorimeter, particle: str) -> None:
    showers = simulate_showers(barrel, shot(barrel, 200, particle, 20.0, eta=1.3), seed=1)
    at = barrel.cell_position_mm(showers.cell)[:, :2] - showers.position_mm[showers.shower_index, :2]
    mean = np.array([np.bincount(showers.shower_index, showers.energy_mev * v) for v in at.T]) / showers.visible_mev
    offset = at - mean.T[showers.shower_index]
    along_eta, along_phi = np.sqrt(np.average(offset**2, axis=0, weights=showers.energy_mev))
    # a 5 GeV photon leaves an electron of 15 GeV by some cm, a shower is 2 cm wide
    assert along_phi > 1.5 * along_eta
