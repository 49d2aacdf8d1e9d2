"""Materials: lengths, critical energy, energy loss and price, one source a number (`data/materials.csv`)."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

__all__ = ["MULTIPLE_SCATTERING_ENERGY_MEV", "Material", "material", "material_names", "mixture"]

MULTIPLE_SCATTERING_ENERGY_MEV = 21.2052
"""E_s = sqrt(4 pi / alpha) m_e c^2; source: PDG Review, "Passage of particles through matter"."""

_MAY_BE_ZERO = ("birks_mm_per_mev", "price_chf_per_cm_m2")
# what people call them, for the hint of an error
_COMMON_NAMES = {
    "lead": "G4_Pb", "iron": "G4_Fe", "steel": "G4_Fe", "tungsten": "G4_W", "copper": "G4_Cu", "zinc": "G4_Zn", "aluminium": "G4_Al",
    "aluminum": "G4_Al", "silicon": "G4_Si", "argon": "G4_lAr", "scintillator": "G4_POLYSTYRENE", "ps": "G4_POLYSTYRENE",
    "pwo": "G4_PbWO4",
}  # fmt: skip


@dataclass(frozen=True)
class Material:
    """One material, as a shower sees it and as a budget does.

    Parameters
    ----------
    name : str
        Geant4's NIST name (``G4_PbWO4``), or any name for a mixture of yours.
    density_g_cm3 : float [g/cm3]
    x0_cm, lambda_cm : float [cm]
        Radiation length; nuclear interaction length.
    critical_energy_mev : float [MeV]
        For electrons, in Rossi's definition.
    moliere_cm : float [cm]
    z_eff, a_eff : float
        Charge and mass [g/mol] of the atoms, averaged by mass fraction.
    min_dedx_mev_cm : float [MeV/cm]
        Energy loss of a minimum ionising particle.
    birks_mm_per_mev : float [mm/MeV]
        Birks' constant; 0: the light is taken as proportional to the deposit.
    price_chf_per_cm_m2 : float [CHF/(cm m2)] or None
        Price of 1 cm of thickness over 1 m2; None: not known, and then no cost is given.
    fractions : tuple of (str, float)
        Materials and mass fractions that it was mixed from; empty for a material of the table.

    Raises
    ------
    ValueError
        A number that is not finite, or not > 0 (Birks' constant and price: >= 0).

    Examples
    --------
    >>> round(material("G4_Pb").x0_g_cm2, 2)
    6.37
    """

    name: str
    density_g_cm3: float
    x0_cm: float
    lambda_cm: float
    critical_energy_mev: float
    moliere_cm: float
    z_eff: float
    a_eff: float
    min_dedx_mev_cm: float
    birks_mm_per_mev: float = 0.0
    price_chf_per_cm_m2: float | None = None
    fractions: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a material needs a name; give one such as 'G4_Pb'")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "fractions") or value is None:
                continue
            is_allowed = value >= 0 if field.name in _MAY_BE_ZERO else value > 0
            if not (math.isfinite(value) and is_allowed):
                bound = ">= 0" if field.name in _MAY_BE_ZERO else "> 0"
                raise ValueError(f"material {self.name}: {field.name} = {value:g} must be finite and {bound}")

    @property
    def x0_g_cm2(self) -> float:
        """Radiation length [g/cm2]."""
        return self.x0_cm * self.density_g_cm3

    @property
    def lambda_g_cm2(self) -> float:
        """Nuclear interaction length [g/cm2]."""
        return self.lambda_cm * self.density_g_cm3


def material(name: str) -> Material:
    """A material of the table.

    Parameters
    ----------
    name : str
        Geant4's NIST name, exactly.

    Returns
    -------
    Material

    Raises
    ------
    ValueError
        Not in the table; the message names the nearest one.

    Examples
    --------
    >>> material("G4_Fe").lambda_cm
    16.77
    """
    table = _table()
    if name not in table:
        lowered = {known.lower(): known for known in table}
        plain = name.lower().removeprefix("g4_")
        near = get_close_matches(f"g4_{plain}", lowered, n=1, cutoff=0.4)
        nearest = _COMMON_NAMES.get(plain) or (lowered[near[0]] if near else None)
        hint = f"did you mean {nearest}?" if nearest else f"use one of {', '.join(table)}"
        raise ValueError(f"unknown material {name!r}; {hint}")
    return table[name]


def material_names() -> tuple[str, ...]:
    """Names of all materials of the table.

    Examples
    --------
    >>> material_names()[:2]
    ('G4_Pb', 'G4_Fe')
    """
    return tuple(_table())


def mixture(
    name: str,
    fractions: Mapping[str, float] | Mapping[Material, float],
    *,
    density_g_cm3: float,
    birks_mm_per_mev: float = 0.0,
    price_chf_per_cm_m2: float | None = None,
) -> Material:
    """A material mixed from others.

    Parameters
    ----------
    name : str
    fractions : mapping of str or Material to float
        Mass fraction of each material (a name: of the table); they must sum to 1 within 0.01 and are then normalised.
    density_g_cm3 : float [g/cm3]
        Of the mixture: it does not follow from the parts of an alloy.
    birks_mm_per_mev : float [mm/MeV]
    price_chf_per_cm_m2 : float [CHF/(cm m2)], optional

    Returns
    -------
    Material

    Raises
    ------
    ValueError
        No parts, an unknown one, a fraction that is not > 0, fractions that do not sum to 1.

    Notes
    -----
    With w the mass fractions and lengths in g/cm2: 1/X0 = sum w/X0, 1/lambda = sum w/lambda, dE/dx = sum w dE/dx,
    Ec = X0 sum w Ec/X0, R_M = E_s X0/Ec, and Z and A averaged by w. Bragg additivity: chemical binding and the density effect of
    the mixture are left out. Source: PDG Review, "Passage of particles through matter"; Ec, Z and A after Grindhammer and Peters,
    hep-ex/0001020.

    Examples
    --------
    >>> steel = mixture("steel", {"G4_Fe": 0.99, "G4_Al": 0.01}, density_g_cm3=7.85)
    >>> round(steel.x0_cm, 2)
    1.77
    """
    parts = [(material(part) if isinstance(part, str) else part, w) for part, w in fractions.items()]
    return _mix(name, parts, density_g_cm3, birks_mm_per_mev, price_chf_per_cm_m2)


def _mix(name: str, parts: Sequence[tuple[Material, float]], density_g_cm3: float, birks: float, price: float | None) -> Material:
    if not parts:
        raise ValueError(f"mixture {name!r} has no parts; give mass fractions such as {{'G4_Cu': 0.7, 'G4_Zn': 0.3}}")
    for part, w in parts:
        if not (math.isfinite(w) and w > 0):
            raise ValueError(f"mixture {name!r}: fraction of {part.name} = {w:g} must be > 0; leave it out to have none of it")
    total = math.fsum(w for _, w in parts)
    if abs(total - 1) > 0.01:
        raise ValueError(f"mixture {name!r}: mass fractions sum to {total:g}, not to 1")
    if not (math.isfinite(density_g_cm3) and density_g_cm3 > 0):
        raise ValueError(f"mixture {name!r}: density_g_cm3 = {density_g_cm3:g} must be finite and > 0")
    weights = [(part, w / total) for part, w in parts]
    x0 = 1 / math.fsum(w / m.x0_g_cm2 for m, w in weights)
    # Rossi: at Ec an electron loses Ec per X0 by ionisation, so Ec/X0 adds like dE/dx
    critical = x0 * math.fsum(w * m.critical_energy_mev / m.x0_g_cm2 for m, w in weights)
    made_of: dict[str, float] = {}  # a mixture of mixtures is told by the materials of the table
    for m, w in weights:
        for part_name, share in (m.fractions if m.name not in _rows() else ()) or ((m.name, 1.0),):
            made_of[part_name] = made_of.get(part_name, 0.0) + w * share
    return Material(
        name=name,
        density_g_cm3=density_g_cm3,
        x0_cm=x0 / density_g_cm3,
        lambda_cm=1 / math.fsum(w / m.lambda_g_cm2 for m, w in weights) / density_g_cm3,
        critical_energy_mev=critical,
        moliere_cm=MULTIPLE_SCATTERING_ENERGY_MEV * x0 / critical / density_g_cm3,
        z_eff=math.fsum(w * m.z_eff for m, w in weights),
        a_eff=math.fsum(w * m.a_eff for m, w in weights),
        min_dedx_mev_cm=density_g_cm3 * math.fsum(w * m.min_dedx_mev_cm / m.density_g_cm3 for m, w in weights),
        birks_mm_per_mev=birks,
        price_chf_per_cm_m2=price,
        fractions=tuple(made_of.items()),
    )


@cache
def _rows() -> dict[str, dict[str, float | None]]:
    numbers: dict[str, dict[str, float | None]] = {}
    text = files("calolife").joinpath("data", "materials.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        numbers.setdefault(row["material"], {})[row["quantity"]] = float(row["value"]) if row["value"] else None
    return numbers


@cache
def _table() -> dict[str, Material]:
    table: dict[str, Material] = {}
    for name, entry in _rows().items():
        price = entry["price_chf_per_cm_m2"]
        given = {quantity: value for quantity, value in entry.items() if value is not None}
        density, birks = given["density_g_cm3"], given["birks_mm_per_mev"]
        parts = [(table[key.split()[1]], w) for key, w in given.items() if key.startswith("mass_fraction ")]
        if parts:
            table[name] = _mix(name, parts, density, birks, price)
            continue
        table[name] = Material(
            name=name,
            density_g_cm3=density,
            x0_cm=given["x0_cm"],
            lambda_cm=given["lambda_cm"],
            critical_energy_mev=given["critical_energy_mev"],
            moliere_cm=given["moliere_cm"],
            z_eff=given["z_eff"],
            a_eff=given["a_eff"],
            min_dedx_mev_cm=given["min_dedx_mev_cm2_g"] * density,
            birks_mm_per_mev=birks,
            price_chf_per_cm_m2=price,
        )
    return table
