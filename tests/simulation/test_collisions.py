"""Collisions against the numbers they are made from, and their independence of how a sample is cut.

Statistical tests allow 4 standard errors: one in 16,000 fails by chance, and the seeds are fixed.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calolife.cli import main
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.presets import load_detector
from calolife.runs import read_run
from calolife.showers.events import PDG
from calolife.showers.files import read_showers
from calolife.simulation.collisions import sample_collisions
from calolife.simulation.particles import Particles, sample_particles
from calolife.simulation.production import Production
from calolife.simulation.upstream import CURVATURE, FIELD_TESLA, barrel_radius_mm, through_upstream

N = 4000
CHARGED = 5.49  # per unit of eta at 13 TeV; source: CMS, PLB 751 (2015) 143
WIDEST = 1.479  # 85 crystals of 0.0174


@pytest.fixture(scope="module")
def barrel() -> CrystalCalorimeter:
    found = load_detector("cms-barrel")
    assert isinstance(found, CrystalCalorimeter)
    return found


@pytest.fixture(scope="module")
def collisions(barrel: CrystalCalorimeter) -> Particles:
    return sample_collisions(barrel, N, seed=1)


def same(a: Particles, b: Particles) -> bool:
    columns = ("pdg_id", "energy_gev", "position_mm", "direction", "shower")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns)


def counts(particles: Particles, which: np.ndarray) -> np.ndarray:
    assert particles.shower is not None
    return np.bincount(particles.shower[which], minlength=particles.n_showers)


def pions(particles: Particles, detector: CrystalCalorimeter) -> tuple[np.ndarray, np.ndarray]:
    """Invariant mass [GeV] of neighbouring photons of a collision, and the transverse momentum of both."""
    assert particles.shower is not None
    eta, phi = detector.eta_phi_at(*particles.position_mm.T)
    pt = particles.energy_gev / np.cosh(eta)
    p = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), particles.energy_gev], 1)
    is_photon = particles.pdg_id == PDG["gamma"]
    first = np.flatnonzero(is_photon[:-1] & is_photon[1:] & (np.diff(particles.shower) == 0))
    q = p[first] + p[first + 1]
    mass = np.sqrt(np.maximum(q[:, 3] ** 2 - np.sum(q[:, :3] ** 2, axis=1), 0.0))
    central = np.abs(np.arcsinh(q[:, 2] / np.hypot(q[:, 0], q[:, 1]))) < 0.5
    return mass[central], np.hypot(q[:, 0], q[:, 1])[central]


def test_photons_are_as_many_as_neutral_pions_send(barrel: CrystalCalorimeter, collisions: Particles) -> None:
    eta, _ = barrel.eta_phi_at(*collisions.position_mm.T)
    n = counts(collisions, (collisions.pdg_id == PDG["gamma"]) & (np.abs(eta) < 1.0))
    # 0.85 of charged hadrons are pions, half as many are neutral, two photons each: per unit of rapidity, which is eta for a photon
    pt = np.linspace(0.0, 100.0, 1_000_001)
    energy = np.hypot(pt, 0.13957)
    density = pt * (1 + (energy - 0.13957) / (6.6 * 0.145)) ** -6.6  # Tsallis: CMS, PRL 105 (2010) 022002
    velocity = np.sum(density * pt / energy) / density.sum()
    assert n.mean() / 2.0 == pytest.approx(0.85 * CHARGED / velocity, abs=4 * n.std() / np.sqrt(N) / 2.0)


def test_the_multiplicity_is_negative_binomial(collisions: Particles) -> None:
    n = counts(collisions, collisions.pdg_id != PDG["gamma"])
    # hadrons that arrive are a random part of all: the law stays, with the same k
    assert n.var() == pytest.approx(n.mean() + n.mean() ** 2 / 1.2, rel=4 * np.sqrt(8.0 / N))  # kurtosis of about 9


def test_photons_come_in_pairs_of_the_mass_of_the_pion(barrel: CrystalCalorimeter, collisions: Particles) -> None:
    mass, pt = pions(collisions, barrel)
    is_pion = np.abs(mass - 0.13498) < 1e-4  # rounding: energies of GeV squared, less each other
    assert is_pion.sum() > 0.45 * mass.size  # the other pairs are of the second photon and the next pion's first
    # CMS, PRL 105 (2010) 022002, charged hadrons at 7 TeV: 0.545 GeV +- 0.016
    assert pt[is_pion].mean() == pytest.approx(0.545, abs=0.016 + 4 * pt.std() / np.sqrt(is_pion.sum()))


def test_charged_hadrons_come_in_bent(barrel: CrystalCalorimeter, collisions: Particles) -> None:
    charged = collisions.pdg_id != PDG["gamma"]
    eta, _ = barrel.eta_phi_at(*collisions.position_mm[charged].T)
    momentum = np.sqrt((collisions.energy_gev[charged] + 0.13957) ** 2 - 0.13957**2)
    softest = 0.5 * CURVATURE * FIELD_TESLA * barrel_radius_mm(barrel)
    assert softest == pytest.approx(0.74, abs=0.005)
    assert (momentum > softest).all()
    # negative ones turn to larger phi; the tilt moves a direction by 3 degrees, and averages out
    sideways = -np.sign(collisions.pdg_id[charged]) * -collisions.direction[charged, 1]
    assert (sideways < np.sin(np.radians(3.0))).all()
    central = np.abs(eta) < 0.1  # momentum is transverse there: the angle to the radius is that between chord and circle
    angle = np.arcsin(softest / momentum[central])
    off = np.arcsin(np.abs(sideways[central])) - angle
    assert off.mean() == pytest.approx(0.0, abs=4 * off.std() / np.sqrt(off.size) + np.radians(0.3))  # 0.1 in eta: half a per cent of pT


def test_electrons_bend_by_the_same_formula(barrel: CrystalCalorimeter) -> None:
    softest = 0.5 * CURVATURE * FIELD_TESLA * barrel_radius_mm(barrel)
    bare = Particles([11], [5.0], [barrel.xy_mm_at(0.7, 0.2)], [[0.0, 0.0, 1.0]])
    empty = replace(barrel, upstream_x0=((0.0, 0.0),))
    at = barrel.eta_phi_at(*through_upstream(empty, bare, seed=1).position_mm.T)
    turn = np.arcsin(softest / (5.0 / np.cosh(0.7)))
    assert at[1][0] - 0.2 == pytest.approx(turn, rel=1e-6)
    assert np.sinh(at[0][0]) == pytest.approx(np.sinh(0.7) * turn / np.sin(turn), rel=1e-6)


def test_every_collision_has_a_particle_and_some_nothing_else(barrel: CrystalCalorimeter, collisions: Particles) -> None:
    eta, _ = barrel.eta_phi_at(*collisions.position_mm.T)
    assert collisions.n_showers == N
    assert (np.abs(eta) <= WIDEST + 1e-9).all()
    is_empty = collisions.incident().energy_gev == 1e-6
    assert (counts(collisions, np.ones(collisions.n_particles, bool))[is_empty] == 1).all()
    assert 0.01 < is_empty.mean() < 0.1


def test_collisions_do_not_depend_on_how_they_are_cut(barrel: CrystalCalorimeter, collisions: Particles) -> None:
    assert same(sample_collisions(barrel, 30, seed=1, first=90), collisions.showers(90, 120))
    assert not same(sample_collisions(barrel, 30, seed=2, first=90), collisions.showers(90, 120))


def test_collisions_shower_the_same_in_any_parts(barrel: CrystalCalorimeter) -> None:
    sample = Production(barrel, 40, particle="minbias", angle_deg=3.0, seed=2)
    whole, part = sample.simulate(0, 40), sample.simulate(15, 40)
    np.testing.assert_array_equal(part.energy_mev, whole.between(15, 40).energy_mev)
    assert 100 < whole.n_hits / 40 < 1000
    assert (whole.visible_mev <= 1e3 * whole.energy_gev + 1e-3).all()  # a photon of 1 keV may read a little more


def test_the_command_simulates_collisions(tmp_path: Path) -> None:
    command = ["showers", "simulate", "cms-barrel", "--particle", "minbias", "-n", "20", "--seed", "2", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert "energy" not in read_run(tmp_path / "run").config["options"]
    barrel = load_detector("cms-barrel")
    want = Production(barrel, 20, particle="minbias", angle_deg=3.0, seed=2).simulate(0, 20)
    np.testing.assert_array_equal(read_showers(tmp_path / "run").energy_mev, want.energy_mev)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["cms-barrel", "--particle", "minbias", "--energy", "5"], "--energy belongs to a beam"),
        (["cms-barrel", "--particle", "minbias", "--pt", "5"], "--pt belongs to a beam"),
        (["cms-barrel", "--particle", "minbias", "--beam-spot-mm", "5"], "--beam-spot-mm = 5.0 belongs to a beam"),
        (["pbwo4-5x5", "--particle", "minbias"], "no closed barrel of crystals"),
        (["cu-scint-24x24", "--particle", "minbias"], "no closed barrel of crystals"),
        (["cms-barrel", "--energy", "5", "--pt", "5"], "give one of them"),
        (["cu-scint-24x24", "--pt", "5"], "has no eta"),
    ],
)
def test_what_makes_no_sense_is_one_line(options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["showers", "simulate", *options, "-n", "5", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"n": 0}, {"first": -1}, {"seed": -1}, {"angle_deg": 90.0}, {"angle_deg": (3.0, 1.0)}])
def test_numbers_out_of_range_are_refused(barrel: CrystalCalorimeter, wrong: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        sample_collisions(barrel, **{"n": 5, "seed": 1, **wrong})


def test_transverse_momenta_are_flat_in_their_range(barrel: CrystalCalorimeter) -> None:
    beam = sample_particles(barrel, 2000, particle="e-", pt_gev=(1.0, 301.0), seed=3)
    eta, _ = barrel.eta_phi_at(*beam.position_mm.T)
    pt = beam.energy_gev / np.cosh(eta)
    assert (pt >= 1.0).all()
    assert (pt <= 301.0).all()
    assert pt.mean() == pytest.approx(151.0, abs=4 * 300 / np.sqrt(12 * 2000))
    assert np.corrcoef(pt, np.abs(eta))[0, 1] == pytest.approx(0.0, abs=4 / np.sqrt(2000))
    by_energy = sample_particles(barrel, 2000, particle="e-", energy_gev=(1.0, 301.0), seed=3)
    np.testing.assert_array_equal(beam.position_mm, by_energy.position_mm)


def test_exactly_one_of_energy_and_transverse_momentum_is_given(barrel: CrystalCalorimeter) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        sample_particles(barrel, 2, particle="e-", energy_gev=3.0, pt_gev=3.0, seed=1)
    with pytest.raises(ValueError, match="exactly one"):
        sample_particles(barrel, 2, particle="e-", seed=1)
    with pytest.raises(ValueError, match="transverse momentum must be > 0"):
        sample_particles(barrel, 2, particle="e-", pt_gev=0.0, seed=1)
