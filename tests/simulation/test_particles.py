"""The particle gun: what it shoots, and that a shower does not depend on how many others are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.presets import load_detector
from calolife.simulation.particles import PDG, Particles, parse_particle, sample_particles

BEAM: dict[str, Any] = {"particle": "mix:gamma=0.5,pi-=0.5", "energy_gev": (1.0, 100.0), "beam_spot_mm": 30.0, "angle_deg": (0.0, 10.0)}
AHEAD = [0.0, 0.0, 1.0]


def same(a: Particles, b: Particles) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("pdg_id", "energy_gev", "position_mm", "direction"))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_sample_does_not_depend_on_its_chunks(block: LayeredCalorimeter, chunk: int) -> None:
    whole = sample_particles(block, 40, seed=3, **BEAM)
    for first in range(0, 40, chunk):
        n = min(chunk, 40 - first)
        assert same(sample_particles(block, n, seed=3, first=first, **BEAM), whole.showers(first, first + n))


def test_another_seed_gives_another_sample(block: LayeredCalorimeter) -> None:
    assert not same(sample_particles(block, 5, seed=1, **BEAM), sample_particles(block, 5, seed=2, **BEAM))


def test_a_range_is_flat_in_energy(block: LayeredCalorimeter) -> None:
    n = 10_000
    energy = sample_particles(block, n, seed=1, **BEAM).energy_gev
    count, _ = np.histogram(energy, 10, (1.0, 100.0))
    assert count.sum() == n
    # chi2 of 9 degrees of freedom: below 27.9 in 99.9 % of samples
    assert np.sum((count - n / 10) ** 2 / (n / 10)) < 27.9


def test_a_mixture_keeps_its_fractions(block: LayeredCalorimeter) -> None:
    n = 10_000
    sample = sample_particles(block, n, particle="mix:gamma=0.3,e-=0.7", energy_gev=5.0, seed=1)
    assert abs(np.mean(sample.pdg_id == PDG["gamma"]) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
    assert set(sample.pdg_id.tolist()) == {22, 11}


def test_the_beam_spot_has_its_width_and_stays_on_the_face(block: LayeredCalorimeter) -> None:
    n = 10_000
    narrow = sample_particles(block, n, particle="e-", energy_gev=5.0, beam_spot_mm=10.0, position_mm=(5.0, -7.0), seed=1).position_mm
    assert np.abs(narrow.mean(axis=0) - [5.0, -7.0]).max() < 4 * 10.0 / np.sqrt(n)
    assert np.abs(narrow.std(axis=0) - 10.0).max() < 4 * 10.0 / np.sqrt(2 * n)
    wide = sample_particles(block, n, particle="e-", energy_gev=5.0, beam_spot_mm=1000.0, seed=1).position_mm
    assert np.abs(wide).max() <= 150.0


def test_angles_fill_their_range_with_any_azimuth(block: LayeredCalorimeter) -> None:
    n = 10_000
    x, y, z = sample_particles(block, n, seed=1, **BEAM).direction.T
    angle = np.degrees(np.arccos(z))
    assert angle.max() <= 10.0
    assert abs(angle.mean() - 5.0) < 4 * 10.0 / np.sqrt(12 * n)
    azimuth = np.arctan2(y, x)
    assert abs(np.exp(1j * azimuth).mean()) < 4 / np.sqrt(n)


def test_a_barrel_is_hit_all_over_and_a_matrix_in_its_centre() -> None:
    barrel = load_detector("cms-barrel")
    at = sample_particles(barrel, 5000, particle="e-", energy_gev=5.0, seed=1).position_mm
    for values, low, size in zip(
        at.T, (barrel.x_edges_mm[0, 0], barrel.y_edges_mm[0, 0]), (barrel.size_x_mm, barrel.period_y_mm), strict=True
    ):
        assert low <= values.min() < low + 0.01 * size
        assert low + 0.99 * size < values.max() <= low + size
        assert abs(values.mean() - (low + size / 2)) < 4 * size / np.sqrt(12 * 5000)
    small = sample_particles(load_detector("pbwo4-5x5"), 5, particle="e-", energy_gev=5.0, seed=1)
    assert not small.position_mm.any()
    aimed = sample_particles(barrel, 5, particle="e-", energy_gev=5.0, position_mm=(100.0, 50.0), seed=1)
    assert (aimed.position_mm == [100.0, 50.0]).all()


def test_several_particles_of_a_shower_stay_together() -> None:
    particles = Particles([11, 22, 11], [8.0, 2.0, 5.0], [[0, 0], [1, 0], [9, 9]], [AHEAD] * 3, [0, 0, 1])
    assert particles.n_showers == 2
    incident = particles.incident()
    assert incident.energy_gev.tolist() == [10.0, 5.0]
    assert incident.pdg_id.tolist() == [11, 11]
    part = particles.showers(1, 2)
    assert part.energy_gev.tolist() == [5.0]
    assert part.shower is not None
    assert part.shower.tolist() == [0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"particle": "pi0"}, "unknown particle 'pi0'; did you mean 'pi-'"),
        ({"particle": "mix:gamma=0.5,pi-=0.4"}, "add up to 0.9; they must add up to 1"),
        ({"particle": "mix:gamma=0.5,gamma=0.5"}, "names a particle twice"),
        ({"particle": "mix:gamma,pi-"}, "'gamma' is not a particle with a fraction"),
        ({"particle": "mix:gamma=1.5,pi-=-0.5"}, "'pi-=-0.5' is not a particle with a fraction > 0"),
        ({"energy_gev": 0.0}, "a kinetic energy must be > 0"),
        ({"energy_gev": -5.0}, "a kinetic energy must be > 0"),
        ({"energy_gev": float("nan")}, "must be finite"),
        ({"energy_gev": (5.0, 6.0, 7.0)}, "is not a number or a pair"),
        ({"energy_gev": (5.0, 5.0)}, "energy_gev = 5 to 5 GeV; a range must rise"),
        ({"energy_gev": (5.0, float("inf"))}, "must be finite"),
        ({"angle_deg": (0.0, 90.0)}, "must lie in 0 to below 90"),
        ({"beam_spot_mm": -1.0}, "beam_spot_mm = -1"),
        ({"position_mm": (200.0, 0.0)}, "beside the detector; its face is -150 to 150 mm in x"),
        ({"n": 0}, "n must be >= 1"),
    ],
)
def test_a_wrong_beam_is_refused(block: LayeredCalorimeter, given: dict[str, Any], message: str) -> None:
    given = {"n": 3, "particle": "e-", "energy_gev": 5.0, "seed": 1} | given
    with pytest.raises(ValueError) as caught:
        sample_particles(block, given.pop("n"), **given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pdg_id", "energy", "direction", "shower", "message"),
    [
        ([11], [0.0], [AHEAD], None, "energy_gev of particle 0 is 0"),
        ([12], [1.0], [AHEAD], None, "pdg_id 12 is no particle the engines know"),
        ([11], [1.0], [[0.0, 0.0, -1.0]], None, "must be a unit vector with z > 0"),
        ([11], [1.0], [[0.0, 0.1, 1.0]], None, "must be a unit vector"),
        ([11, 11], [1.0], [AHEAD] * 2, None, "energy_gev has shape (1,); 2 particles need (2,)"),
        ([11, 11], [1.0, 1.0], [AHEAD] * 2, [0, 2], "must rise from 0 one by one"),
        ([11, 11], [1.0, 1.0], [AHEAD] * 2, [1, 0], "must rise from 0 one by one"),
        ([11.7], [1.0], [AHEAD], None, "pdg_id holds float64 values"),
    ],
)
def test_wrong_particles_are_refused(pdg_id: Any, energy: Any, direction: Any, shower: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Particles(pdg_id, energy, np.zeros((len(pdg_id), 2)), direction, shower)
    assert message in str(caught.value)


def test_a_single_name_is_a_mixture_of_one() -> None:
    codes, fractions = parse_particle("mu+")
    assert codes.tolist() == [-13]
    assert fractions.tolist() == [1.0]
