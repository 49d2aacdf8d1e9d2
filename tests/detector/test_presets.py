"""Detectors from TOML and back, and what a wrong file is told."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Layer, LayeredCalorimeter, Readout
from calolife.detector.materials import material, mixture
from calolife.detector.presets import from_toml, load_detector, preset_names, to_toml
from calolife.errors import FileFormatError

GOOD = """
name = "mine"
size_mm = [500, 500]

[readout]
noise_mev = 0.1

[[section]]
name = "em"
repeat = 60
layers = [
  { material = "G4_Pb", thickness_mm = 2 },
  { material = "G4_POLYSTYRENE", thickness_mm = 2.0, active = true, cells = [10, 10] },
]
"""
CRYSTALS = 'kind = "crystals"\nname = "c"\nmaterial = "G4_PbWO4"\nieta = [-2, 2]\nn_phi = 4\n'

ours = mixture("steel", {"G4_Fe": 0.9, "G4_Cu": 0.1}, density_g_cm3=7.9, price_chf_per_cm_m2=60.0)
materials = st.sampled_from([material("G4_Pb"), material("G4_Si"), material("G4_POLYSTYRENE"), ours])
thickness = st.floats(1e-3, 1e4)
names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=10)
layers = st.builds(
    lambda of, mm, n, is_active: Layer(of, mm, is_active, n if is_active else (1, 1)),
    materials, thickness, st.tuples(st.integers(1, 99), st.integers(1, 99)), st.booleans(),
)  # fmt: skip
sections = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8"), max_size=6), st.integers(1, 5), st.lists(layers, min_size=1, max_size=4)),
    min_size=1, max_size=4,
)  # fmt: skip


@pytest.mark.parametrize("name", preset_names())
def test_presets_survive_toml(name: str) -> None:
    detector = load_detector(name)
    again = from_toml(to_toml(detector))
    assert again == detector
    assert again.digest == detector.digest


@given(names, st.floats(1.0, 1e4), sections, st.floats(0, 1e3), st.floats(0, 10))
@settings(max_examples=100, deadline=None)
def test_any_layered_detector_survives_toml(name: str, size_mm: float, made: list, light: float, noise: float) -> None:  # type: ignore[type-arg]
    calo = LayeredCalorimeter(name, (), size_mm, 100.0, Readout(light_yield_pe_per_mev=light, noise_mev=noise, saturation_mev=1e4))
    for section, n, period in made:
        calo = calo.add_period(n, *(Layer(lay.material, lay.thickness_mm, lay.is_active, lay.cells, section) for lay in period))
    calo = calo.add_layer("G4_POLYSTYRENE", 1.0, is_active=True)
    again = from_toml(to_toml(calo))
    assert again == calo
    assert again.digest == calo.digest


def test_crystals_of_a_material_of_ones_own_survive_toml() -> None:
    calo = CrystalCalorimeter("c", ours, (-2, -1, 1), 4, gap_mm=0.5, upstream_x0=((0.0, 0.4), (1.0, 2.0)), readout=Readout(noise_mev=40))
    assert from_toml(to_toml(calo)) == calo


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("cu-scint-24x24", "896b486f42e01040d0d025682265dac82c258df7bfca10d3af27cb5a5899c61d"),
        ("pbwo4-5x5", "90084d5bd8ed7cf076b59541e12952b8b18d2195f68a8276b3e28cff88327865"),
    ],
)
def test_a_digest_stays_what_it_was(name: str, digest: str) -> None:
    # files of showers name it: another way to compute it would make them all unreadable
    assert load_detector(name).digest == digest


def test_long_stacks_are_written_as_periods() -> None:
    text = to_toml(load_detector("triple-fe-v42"))
    assert text.count("[[section]]") == 6
    assert "repeat = 60" in text


def test_a_byte_order_mark_is_no_typo(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD, encoding="utf-8-sig")
    assert load_detector(tmp_path / "mine.toml") == from_toml(GOOD)


def test_a_file_is_loaded_like_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_detector(path) == load_detector(str(path)) == from_toml(GOOD)
    assert load_detector(path).readout.noise_mev == 0.1


def test_cells_may_be_given_by_their_size() -> None:
    assert from_toml(GOOD.replace("cells = [10, 10]", "cell_mm = 50")) == from_toml(GOOD)
    assert from_toml(GOOD.replace("cells = [10, 10]", "cell_mm = [50.0, 50]")) == from_toml(GOOD)


def test_a_material_of_ones_own_may_be_mixed_in_the_file() -> None:
    text = GOOD.replace('"G4_Pb"', '"steel"') + (
        '[[custom_material]]\nname = "steel"\ndensity_g_cm3 = 7.9\nprice_chf_per_cm_m2 = 60\nfractions = { G4_Fe = 0.9, G4_Cu = 0.1 }\n'
    )
    calo = from_toml(text)
    assert isinstance(calo, LayeredCalorimeter)
    assert calo.layers[0].material == ours
    assert calo.cost_chf == pytest.approx(12 * 0.25 * 60)


BAD = {
    "zero thickness": (GOOD.replace("thickness_mm = 2 }", "thickness_mm = 0 }"), "(em), layer 1: layer of G4_Pb: thickness_mm = 0"),
    "negative thickness": (GOOD.replace("thickness_mm = 2 }", "thickness_mm = -2 }"), "thickness_mm = -2 must be finite and > 0"),
    "thickness not a number": (GOOD.replace("thickness_mm = 2 }", "thickness_mm = nan }"), "thickness_mm = nan must be finite"),
    "thickness as text": (GOOD.replace("thickness_mm = 2 }", 'thickness_mm = "2" }'), "thickness_mm = '2' must be a number"),
    "thickness beyond floats": (GOOD.replace("thickness_mm = 2 }", f"thickness_mm = {10**400} }}"), "too large"),
    "no thickness": (GOOD.replace(", thickness_mm = 2 }", " }"), "thickness_mm is missing"),
    "thickness of a planet": (GOOD.replace("thickness_mm = 2 }", "thickness_mm = 1e308 }"), "is more than 1e+09; thicknesses are in mm"),
    "unknown material": (GOOD.replace("G4_Pb", "G4_PB"), "unknown material 'G4_PB'; did you mean G4_Pb?"),
    "no cells": (GOOD.replace("[10, 10]", "[0, 10]"), "cells = 0x10 must be two whole numbers >= 1"),
    "half a cell": (GOOD.replace("[10, 10]", "[2.5, 10]"), "cells = [2.5, 10] must be two whole numbers"),
    "cells that do not tile": (GOOD.replace("cells = [10, 10]", "cell_mm = 30"), "cells of 30 mm do not tile the 500 mm along x"),
    "cells larger than the layer": (GOOD.replace("cells = [10, 10]", "cell_mm = 700"), "do not tile"),
    "cells of no size": (GOOD.replace("cells = [10, 10]", "cell_mm = 0"), "do not tile"),
    "cells given twice": (GOOD.replace("cells = [10, 10]", "cells = [10, 10], cell_mm = 50"), "keep one"),
    "cells in a passive layer": (GOOD.replace("active = true, ", ""), "passive"),
    "a typo in a layer": (GOOD.replace("thickness_mm = 2 }", "thicknes_mm = 2 }"), "unknown key 'thicknes_mm'; did you mean thickness_mm?"),
    "a typo in a section": (GOOD.replace("repeat", "repeats"), "section 1: unknown key 'repeats'; did you mean repeat?"),
    "a typo at the top": (GOOD.replace("size_mm", "sizes_mm"), "unknown key 'sizes_mm'; did you mean size_mm?"),
    "a typo in the readout": (GOOD.replace("noise_mev", "noise"), "readout: unknown key 'noise'; did you mean noise_mev?"),
    "no active layer": (GOOD.replace("active = true, cells = [10, 10]", "active = false"), "no active layer"),
    "active as text": (GOOD.replace("true", '"yes"'), "active = 'yes' must be true or false"),
    "no sections": ('name = "m"\nsize_mm = [1, 1]\n', "section is missing"),
    "an empty section": (GOOD + "[[section]]\nlayers = []\n", "adds nothing"),
    "no repetition": (GOOD.replace("repeat = 60", "repeat = 0"), "repeat = 0"),
    "too many repetitions": (GOOD.replace("repeat = 60", "repeat = 1000000000"), "more than 100000 layers"),
    "three sizes": (GOOD.replace("[500, 500]", "[500, 500, 3]", 1), "must be two lengths"),
    "no size": (GOOD.replace("[500, 500]", "[500, 0]", 1), "size_y_mm = 0 must be finite and > 0"),
    "negative noise": (GOOD.replace("0.1", "-0.1"), "noise_mev = -0.1 must be finite and >= 0"),
    "no name": (GOOD.replace('"mine"', '""'), "name"),
    "not TOML": ("name = mine", "is not TOML"),
    "brackets without end": ("name = " + "[" * 20_000, "nest too deep"),
    "a number of 5000 digits": (f"name = {'9' * 5000}", "is not TOML"),
    "another kind": ('kind = "wires"\n' + GOOD, 'kind = "wires" is not "layers" or "crystals"'),
    "a material of the table again": (GOOD + '[[custom_material]]\nname = "G4_Fe"\n', "already there"),
    "half a material": (GOOD + '[[custom_material]]\nname = "m"\ndensity_g_cm3 = 1\nx0_cm = 2\n', "lambda_cm is missing"),
    "a material of nothing": (GOOD + '[[custom_material]]\nname = "m"\ndensity_g_cm3 = 1\n', "no parts"),
    "rows backwards": (CRYSTALS.replace("[-2, 2]", "[2, -2]"), "ieta = [2, -2] must be the first and the last row"),
    "no columns": (CRYSTALS.replace("n_phi = 4", "n_phi = 0"), "n_phi = 0"),
    "a typo in crystals": (CRYSTALS + "gap = 1\n", "unknown key 'gap'; did you mean gap_mm?"),
    "upstream out of order": (CRYSTALS + "upstream_x0 = [[1.0, 0.4], [0.0, 0.4]]\n", "ascending"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_file_is_told_in_one_line(what: str) -> None:
    text, says = BAD[what]
    with pytest.raises(FileFormatError) as caught:
        from_toml(text, what="mine.toml")
    message = str(caught.value)
    assert message.startswith("mine.toml")
    assert says in message
    assert "\n" not in message
    assert len(message) < 250


def test_a_name_that_is_nothing_names_the_nearest_preset() -> None:
    with pytest.raises(ValueError, match="did you mean pb-scint-60"):
        load_detector("pb-scint60")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="not text"):
        load_detector(path)
