"""Mean showers in closed form: orderings, limits, and Geant4's depths."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calolife.detector.materials import material, material_names
from calolife.detector.presets import load_detector
from calolife.detector.shower_shapes import (
    MOLIERE_CONTAINMENT,
    em_containment,
    em_length_x0,
    hadronic_containment,
    hadronic_length_lambda,
    hadronic_max_lambda,
    radial_containment,
    shower_max_x0,
)

GEANT4 = json.loads((Path(__file__).parents[1] / "reference" / "geant4_shower_lengths.json").read_text(encoding="utf-8"))["value"]
WIDTHS = json.loads((Path(__file__).parents[1] / "reference" / "geant4_shower_widths.json").read_text(encoding="utf-8"))["value"]
EM = [row for row in GEANT4 if row["unit"] == "X0"]
HADRONS = [row for row in GEANT4 if row["unit"] == "lambda_I"]


def called(row: dict[str, object]) -> str:
    return f"{row['particle']} {row['energy_gev']:g} GeV in {row['material']}"


def test_photons_peak_one_x0_deeper_than_electrons() -> None:
    energy = np.geomspace(1, 1000, 7)
    assert np.allclose(shower_max_x0(energy, 7.43, particle="gamma") - shower_max_x0(energy, 7.43), 1.0)


def test_ten_times_the_energy_peaks_ln_10_deeper() -> None:
    assert float(shower_max_x0(100.0, 9.64) - shower_max_x0(10.0, 9.64)) == pytest.approx(math.log(10))


@pytest.mark.parametrize("row", EM, ids=called)
def test_maximum_is_that_of_geant4(row: dict[str, float]) -> None:
    ours = float(shower_max_x0(row["energy_gev"], material(row["material"]).critical_energy_mev, particle=row["particle"]))
    print(called(row), ours, row["max"])
    assert ours == pytest.approx(row["max"], abs=0.5)  # 24 to 80 showers: the parabola's maximum scatters by 0.4


@pytest.mark.parametrize("row", EM, ids=called)
@pytest.mark.parametrize("contained", [0.95, 0.99])
def test_em_lengths_are_those_of_geant4(row: dict[str, float], contained: float) -> None:
    ours = float(em_length_x0(row["energy_gev"], material(row["material"]), contained=contained, particle=row["particle"]))
    theirs = row[f"l{100 * contained:.0f}"]
    print(called(row), contained, ours, theirs)
    assert ours == pytest.approx(theirs, abs=1.2)  # what the docstring claims


@pytest.mark.parametrize("row", HADRONS, ids=called)
def test_hadronic_lengths_are_near_those_of_geant4(row: dict[str, float]) -> None:
    depth = np.linspace(0.1, 20, 400)
    ours = float(np.interp(0.95, hadronic_containment(row["energy_gev"], material(row["material"]), depth_lambda=depth), depth))
    print(called(row), ours, row["l95"])
    assert ours == pytest.approx(row["l95"], abs=1.1)  # slow neutrons: 1 lambda_I at 10 GeV, as the docstring says


@given(st.floats(1, 300), st.floats(0.05, 0.995), st.sampled_from(material_names()), st.sampled_from(["e-", "gamma"]))
def test_em_length_inverts_em_containment(energy_gev: float, contained: float, name: str, particle: str) -> None:
    of = material(name)
    depth = em_length_x0(energy_gev, of, contained=contained, particle=particle)
    assert float(em_containment(energy_gev, of, depth_x0=depth, particle=particle)) == pytest.approx(contained, abs=1e-9)


@given(st.floats(1, 300), st.sampled_from(material_names()))
def test_deeper_and_wider_contain_more(energy_gev: float, name: str) -> None:
    of = material(name)
    for values in (
        em_containment(energy_gev, of, depth_x0=np.linspace(0, 40, 41)),
        radial_containment(energy_gev, of, radius_moliere=np.linspace(0, 8, 41)),
        hadronic_containment(energy_gev, of, depth_lambda=np.linspace(0, 30, 41)),
    ):
        assert values[0] == 0
        assert (np.diff(values) > -1e-6).all()
        assert 0.95 < values[-1] <= 1 + 1e-6


def test_higher_energies_need_more_depth() -> None:
    energy = np.geomspace(2, 300, 12)
    for length in (em_length_x0(energy, material("G4_PbWO4"), contained=0.99), hadronic_max_lambda(energy), hadronic_length_lambda(energy)):
        assert (np.diff(length) > 0).all()


@pytest.mark.parametrize("name", ["G4_Pb", "G4_PbWO4", "G4_W"])
def test_one_moliere_radius_holds_90_percent_and_two_95(name: str) -> None:
    of = material(name)
    for radius, contained in MOLIERE_CONTAINMENT:
        ours = float(radial_containment(10.0, of, radius_moliere=radius))
        print(name, radius, ours, contained)
        assert ours == pytest.approx(contained, abs=0.025)  # a rule of thumb, and heavy materials scatter by 2 % around it


@pytest.mark.parametrize("row", WIDTHS, ids=lambda row: row["material"])
def test_radial_containment_is_that_of_geant4(row: dict[str, dict[str, float]]) -> None:
    for radius, within in row["within"].items():
        ours = float(radial_containment(row["energy_gev"], material(row["material"]), radius_moliere=float(radius)))
        print(row["material"], radius, ours, within)
        assert ours == pytest.approx(within, abs=0.02)  # what the docstring claims


def test_fabjan_and_bock_agree_on_iron_at_high_energy() -> None:
    for energy in (50.0, 100.0, 200.0):
        held = float(hadronic_containment(energy, material("G4_Fe"), depth_lambda=hadronic_length_lambda(energy)))
        assert held == pytest.approx(0.95, abs=0.02)  # two fits to different data


@pytest.mark.parametrize("depth_lambda", [200.0, 1e4, math.inf])
def test_nothing_leaks_from_a_hadron_calorimeter_without_end(depth_lambda: float) -> None:
    assert hadronic_containment(50.0, material("G4_Fe"), depth_lambda=depth_lambda) == pytest.approx(1.0, abs=1e-9)


def test_radial_containment_does_not_depend_on_the_shape_of_its_input() -> None:
    of, radius = material("G4_PbWO4"), np.array([0.5, 1.0, 2.0])
    table = radial_containment(np.array([[10.0], [50.0]]), of, radius_moliere=radius)
    assert table.shape == (2, 3)
    assert table[1, 2] == pytest.approx(float(radial_containment(50.0, of, radius_moliere=2.0)))


def test_stacks_are_taken_as_a_uniform_mixture() -> None:
    calo = load_detector("pb-scint-60")
    held = float(em_containment(10.0, calo.effective_material(), depth_x0=calo.depth_x0))
    assert 0.985 < held < 0.999


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: shower_max_x0(0.005, 7.43), "not above the critical energy"),
        (lambda: shower_max_x0(-1.0, 7.43), "finite and > 0"),
        (lambda: shower_max_x0(math.nan, 7.43), "finite and > 0"),
        (lambda: shower_max_x0(10.0, 0.0), "critical_energy_mev"),
        (lambda: shower_max_x0(10.0, 7.43, particle="pi-"), "no electromagnetic shower"),
        (lambda: em_length_x0(10.0, material("G4_Pb"), contained=1.0), "between 0 and 1"),
        (lambda: em_containment(10.0, material("G4_Pb"), depth_x0=-1.0), "depth_x0 must be >= 0"),
        (lambda: radial_containment(10.0, material("G4_Pb"), radius_moliere=math.nan), "radius_moliere must be >= 0"),
        (lambda: radial_containment(0.012, material("G4_Pb"), radius_moliere=1.0), "peaks at the surface of G4_Pb"),
        (lambda: hadronic_containment(0.0, material("G4_Pb"), depth_lambda=1.0), "finite and > 0"),
        (lambda: hadronic_containment(5.0, material("G4_Pb"), depth_lambda=-1.0), "depth_lambda must be >= 0"),
    ],
)
def test_what_makes_no_shower_is_refused(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()  # type: ignore[operator]
