"""The table of materials: consistent in itself, with the physics behind it and with what is published."""

import math
from csv import DictReader
from importlib.resources import files

import pytest

from calolife.detector.materials import MULTIPLE_SCATTERING_ENERGY_MEV, Material, material, material_names, mixture

ROWS = list(DictReader(files("calolife").joinpath("data", "materials.csv").read_text(encoding="utf-8").splitlines()))
ELEMENTS = [name for name in material_names() if name in {"G4_Pb", "G4_Fe", "G4_W", "G4_Cu", "G4_Zn", "G4_Al", "G4_Si", "G4_lAr"}]


def test_every_number_has_a_source() -> None:
    assert [row for row in ROWS if not row["source"].strip()] == []


def test_no_number_is_given_twice() -> None:
    keys = [(row["material"], row["quantity"]) for row in ROWS]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", [name for name in material_names() if name != "G4_BRASS"])
@pytest.mark.parametrize("length", ["x0", "lambda"])
def test_published_lengths_in_cm_and_in_g_cm2_agree(name: str, length: str) -> None:
    given = {row["quantity"]: row["value"] for row in ROWS if row["material"] == name}
    in_cm = float(given[f"{length}_cm"]) * float(given["density_g_cm3"])
    assert in_cm == pytest.approx(float(given[f"{length}_g_cm2"]), rel=1.5e-3)  # quoted to 3 or 4 digits
    assert getattr(material(name), f"{length}_g_cm2") == in_cm


@pytest.mark.parametrize("name", ELEMENTS)
def test_radiation_lengths_follow_the_atomic_number(name: str) -> None:
    m = material(name)
    # source: PDG Review, Dahl's fit, "better than 2.5 % for all elements except helium" (5 % low)
    fit = 716.4 * m.a_eff / (m.z_eff * (m.z_eff + 1) * math.log(287 / math.sqrt(m.z_eff)))
    assert m.x0_g_cm2 == pytest.approx(fit, rel=0.025)


@pytest.mark.parametrize("name", ELEMENTS)
def test_critical_energies_follow_the_atomic_number(name: str) -> None:
    m = material(name)
    assert m.critical_energy_mev == pytest.approx(610 / (m.z_eff + 1.24), rel=0.06)  # source: PDG Review, fit to solids; scatter 4 %


@pytest.mark.parametrize("name", ELEMENTS)
def test_interaction_lengths_follow_the_mass_number(name: str) -> None:
    m = material(name)
    assert m.lambda_g_cm2 == pytest.approx(35 * m.a_eff ** (1 / 3), rel=0.05)  # source: the rule of thumb; geometry of a nucleus


@pytest.mark.parametrize("name", material_names())
def test_moliere_radius_is_radiation_length_over_critical_energy(name: str) -> None:
    m = material(name)
    assert m.moliere_cm == pytest.approx(MULTIPLE_SCATTERING_ENERGY_MEV * m.x0_cm / m.critical_energy_mev, rel=2e-3)  # quoted to 4 digits


def test_brass_lies_between_its_parts() -> None:
    brass, parts = material("G4_BRASS"), [material(n) for n in ("G4_Cu", "G4_Zn", "G4_Pb")]
    for quantity in ("x0_g_cm2", "lambda_g_cm2", "critical_energy_mev", "z_eff", "a_eff"):
        values = [getattr(m, quantity) for m in parts]
        assert min(values) < getattr(brass, quantity) < max(values), quantity
    assert brass.price_chf_per_cm_m2 == 200


def test_a_mixture_of_one_material_is_that_material() -> None:
    lead = material("G4_Pb")
    mixed = mixture("lead again", {"G4_Pb": 1.0}, density_g_cm3=lead.density_g_cm3)
    for quantity in ("x0_cm", "lambda_cm", "critical_energy_mev", "min_dedx_mev_cm", "z_eff", "a_eff"):
        assert getattr(mixed, quantity) == pytest.approx(getattr(lead, quantity), rel=1e-12)
    assert mixed.moliere_cm == pytest.approx(lead.moliere_cm, rel=2e-3)  # the table's is rounded


def test_a_mixture_of_mixtures_is_the_mixture_of_their_parts() -> None:
    half = mixture("half", {"G4_Fe": 0.5, "G4_Cu": 0.5}, density_g_cm3=8.0)
    twice = mixture("twice", {half: 0.5, material("G4_Pb"): 0.5}, density_g_cm3=9.0)
    flat = mixture("twice", {"G4_Fe": 0.25, "G4_Cu": 0.25, "G4_Pb": 0.5}, density_g_cm3=9.0)
    assert dict(twice.fractions) == pytest.approx(dict(flat.fractions))
    assert (twice.x0_cm, twice.moliere_cm) == pytest.approx((flat.x0_cm, flat.moliere_cm), rel=1e-12)


def test_half_the_density_doubles_the_lengths_of_a_mixture() -> None:
    dense, thin = (mixture("m", {"G4_Fe": 0.7, "G4_Cu": 0.3}, density_g_cm3=rho) for rho in (8.0, 4.0))
    assert (thin.x0_cm, thin.lambda_cm, thin.moliere_cm) == pytest.approx((2 * dense.x0_cm, 2 * dense.lambda_cm, 2 * dense.moliere_cm))


@pytest.mark.parametrize(
    ("asked", "hint"), [("pbwo4", "did you mean G4_PbWO4"), ("G4_PB", "G4_Pb"), ("lead", "G4_Pb"), ("polystyrene", "G4_POLYSTYRENE")]
)
def test_an_unknown_material_names_the_nearest(asked: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        material(asked)


@pytest.mark.parametrize(
    ("fractions", "density", "says"),
    [
        ({}, 8.0, "no parts"),
        ({"G4_Cu": 0.5}, 8.0, "sum to 0.5"),
        ({"G4_Cu": 1.5, "G4_Zn": -0.5}, 8.0, "must be > 0"),
        ({"G4_Cu": math.nan, "G4_Zn": 1.0}, 8.0, "must be > 0"),
        ({"G4_Cu": 1.0}, 0.0, "density_g_cm3"),
        ({"G4_Cuu": 1.0}, 8.0, "did you mean G4_Cu"),
    ],
)
def test_a_bad_mixture_is_refused(fractions: dict[str, float], density: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mixture("mine", fractions, density_g_cm3=density)


@pytest.mark.parametrize(("quantity", "value"), [("x0_cm", 0.0), ("lambda_cm", math.inf), ("birks_mm_per_mev", -1.0), ("z_eff", math.nan)])
def test_a_material_with_an_impossible_number_is_refused(quantity: str, value: float) -> None:
    needed = ("density_g_cm3", "x0_cm", "lambda_cm", "critical_energy_mev", "moliere_cm", "z_eff", "a_eff", "min_dedx_mev_cm")
    numbers = dict.fromkeys(needed, 1.0)
    with pytest.raises(ValueError, match=quantity):
        Material(name="bad", **{**numbers, quantity: value})
