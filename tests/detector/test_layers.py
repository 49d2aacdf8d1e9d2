"""Layered calorimeters: what adds up, what does not depend on order, and how cells are numbered."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calolife.detector.layers import Layer, LayeredCalorimeter, Readout, fold_periods
from calolife.detector.materials import Material, material, mixture
from calolife.detector.presets import load_detector, preset_names

PUBLISHED = json.loads((Path(__file__).parents[1] / "reference" / "published_stacks.json").read_text(encoding="utf-8"))["value"]
PRICED = ("G4_Pb", "G4_Fe", "G4_W", "G4_Cu", "G4_BRASS", "G4_POLYSTYRENE", "G4_PbWO4")

passive = st.builds(Layer, st.sampled_from(PRICED).map(material), st.floats(0.01, 500.0))
active = st.builds(
    Layer, st.sampled_from(PRICED).map(material), st.floats(0.01, 500.0), st.just(True), st.tuples(st.integers(1, 30), st.integers(1, 30))
)
stacks = st.lists(st.one_of(passive, active), min_size=1, max_size=40)


def calorimeter(layers: list[Layer], *, size_mm: float = 500.0) -> LayeredCalorimeter:
    return LayeredCalorimeter("test", tuple(layers), size_mm, size_mm)


def totals(calo: LayeredCalorimeter) -> tuple[float, ...]:
    return calo.cost_chf, calo.length_cm, calo.depth_x0, calo.depth_lambda, calo.sampling_fraction


@given(stacks, st.randoms())
def test_order_of_the_layers_changes_no_total(layers: list[Layer], random: object) -> None:
    shuffled = list(layers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert totals(calorimeter(shuffled)) == totals(calorimeter(layers))


@given(stacks, stacks)
def test_cost_length_and_depth_add_up(front: list[Layer], back: list[Layer]) -> None:
    a, b, both = (totals(calorimeter(layers))[:4] for layers in (front, back, front + back))
    assert both == pytest.approx([x + y for x, y in zip(a, b, strict=True)], rel=1e-12)


@given(stacks)
def test_sections_add_up_to_the_total(layers: list[Layer]) -> None:
    calo = calorimeter([replace(layer, section=str(i // 5)) for i, layer in enumerate(layers)])
    for quantity in ("n_layers", "n_active", "n_cells", "length_cm", "depth_x0", "depth_lambda", "cost_chf"):
        summed = math.fsum(getattr(section, quantity) for section in calo.sections())
        assert getattr(calo.total, quantity) == pytest.approx(summed, rel=1e-12)


@given(stacks)
def test_doubling_all_thicknesses_doubles_cost_and_depth_and_keeps_the_sampling_fraction(layers: list[Layer]) -> None:
    *once, sampling = totals(calorimeter(layers))
    *twice, sampling_twice = totals(calorimeter([replace(layer, thickness_mm=2 * layer.thickness_mm) for layer in layers]))
    assert twice == pytest.approx([2 * x for x in once], rel=1e-12)
    assert sampling_twice == pytest.approx(sampling, rel=1e-12)


@given(stacks)
def test_doubling_the_sides_changes_the_cost_fourfold_and_no_depth(layers: list[Layer]) -> None:
    cost, *depths = totals(calorimeter(layers))
    cost_twice, *depths_twice = totals(calorimeter(layers, size_mm=1000.0))
    assert cost_twice == pytest.approx(4 * cost, rel=1e-12)
    assert depths_twice == depths


@given(stacks)
def test_effective_material_is_as_deep_as_the_layers(layers: list[Layer]) -> None:
    calo = calorimeter(layers)
    of = calo.effective_material()
    assert calo.length_cm / of.x0_cm == pytest.approx(calo.depth_x0, rel=1e-9)
    assert calo.length_cm / of.lambda_cm == pytest.approx(calo.depth_lambda, rel=1e-9)


@given(st.lists(active, min_size=1, max_size=12), st.data())
def test_cell_index_inverts_cell_id(layers: list[Layer], data: st.DataObject) -> None:
    calo = calorimeter([Layer(material("G4_Pb"), 1.0), *layers])
    cell = np.array(data.draw(st.lists(st.integers(0, calo.n_cells - 1), min_size=1, max_size=20)))
    assert np.array_equal(calo.cell_id(*calo.cell_index(cell)), cell)


def test_cells_are_numbered_along_y_first_then_x_then_layer() -> None:
    calo = load_detector("cu-scint-24x24")
    assert isinstance(calo, LayeredCalorimeter)
    layer, ix, iy = np.meshgrid(np.arange(40), np.arange(24), np.arange(24), indexing="ij")
    assert np.array_equal(calo.cell_id(layer, ix, iy), (layer * 24 + ix) * 24 + iy)


def test_cells_tile_their_layer() -> None:
    calo = calorimeter([Layer(material("G4_POLYSTYRENE"), 4.0, True, (5, 2))])
    position = calo.cell_position_mm(np.arange(10))
    assert np.allclose(np.unique(position[:, 0]), [-200, -100, 0, 100, 200])
    assert np.allclose(np.unique(position[:, 1]), [-125, 125])
    assert np.allclose(position[:, 2], 2.0)


def test_turning_a_detector_by_90_degrees_turns_its_cells() -> None:
    layers = [Layer(material("G4_POLYSTYRENE"), 4.0, True, (4, 6)), Layer(material("G4_POLYSTYRENE"), 2.0, True, (3, 3))]
    turned = [replace(layer, cells=layer.cells[::-1]) for layer in layers]
    here, there = LayeredCalorimeter("a", tuple(layers), 400, 600), LayeredCalorimeter("b", tuple(turned), 600, 400)
    layer, ix, iy = here.cell_index(np.arange(here.n_cells))
    n_x = here.cell_grid[layer, 0]
    at, at_turned = here.cell_position_mm(np.arange(here.n_cells)), there.cell_position_mm(there.cell_id(layer, iy, n_x - 1 - ix))
    assert np.allclose(np.stack([at[:, 1], -at[:, 0], at[:, 2]], axis=1), at_turned)


@pytest.mark.parametrize(("cell", "says"), [(-1, "cell -1"), (10, "not in 0..9")])
def test_a_cell_that_is_not_there_is_named(cell: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        calorimeter([Layer(material("G4_POLYSTYRENE"), 4.0, True, (5, 2))]).cell_index(cell)


@pytest.mark.parametrize(("index", "says"), [((1, 0, 0), "active layer 1"), ((0, 5, 0), "5 x 2 cells"), ((0, 0, -1), "5 x 2 cells")])
def test_an_index_that_is_not_there_is_named(index: tuple[int, int, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        calorimeter([Layer(material("G4_POLYSTYRENE"), 4.0, True, (5, 2))]).cell_id(*index)


@pytest.mark.parametrize(("name", "quantity"), [(n, q) for n, entry in PUBLISHED.items() for q in entry])
def test_published_stacks_come_out(name: str, quantity: str) -> None:
    ours, theirs = getattr(load_detector(name), quantity), PUBLISHED[name][quantity]
    print(name, quantity, ours, theirs)
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_v42_has_143_active_layers_and_passive_lead_tungstate() -> None:
    calo = load_detector("triple-fe-v42")
    assert isinstance(calo, LayeredCalorimeter)
    assert calo.n_active == 143
    assert {layer.is_active for layer in calo.layers if layer.material.name == "G4_PbWO4"} == {False}


def test_sampling_fraction_is_the_share_of_a_minimum_ionising_particle() -> None:
    lead, plastic = material("G4_Pb"), material("G4_POLYSTYRENE")
    calo = calorimeter([Layer(lead, 2.0), Layer(plastic, 2.0, True)])
    assert calo.sampling_fraction == pytest.approx(plastic.min_dedx_mev_cm / (plastic.min_dedx_mev_cm + lead.min_dedx_mev_cm))


def test_a_homogeneous_block_samples_everything() -> None:
    assert load_detector("pbwo4-block").sampling_fraction == 1.0


def test_a_material_without_a_price_gives_no_cost() -> None:
    calo = calorimeter([Layer(material("G4_Si"), 0.3, True), Layer(material("G4_W"), 3.0)])
    assert calo.total.cost_chf is None
    with pytest.raises(ValueError, match="price of G4_Si is not known"):
        _ = calo.cost_chf


@given(stacks)
@settings(max_examples=50)
def test_folded_periods_unfold_to_the_same_layers(layers: list[Layer]) -> None:
    doubled = tuple(layers[:3] * 4 + layers)
    assert tuple(layer for n, period in fold_periods(doubled) for layer in period * n) == doubled


@pytest.mark.parametrize("name", preset_names())
def test_digest_is_of_the_description(name: str) -> None:
    calo = load_detector(name)
    assert calo.digest == replace(calo).digest
    assert calo.digest != replace(calo, name="other").digest
    assert calo.digest != replace(calo, readout=Readout(noise_mev=0.1)).digest


def test_whole_numbers_and_floats_are_the_same_detector() -> None:
    whole = LayeredCalorimeter("a", (Layer(material("G4_Fe"), 2, True),), 500, 500)
    floats = LayeredCalorimeter("a", (Layer(material("G4_Fe"), 2.0, True),), 500.0, 500.0)
    assert whole == floats
    assert whole.digest == floats.digest


@pytest.mark.parametrize("thickness_mm", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_thickness_is_refused(thickness_mm: float) -> None:
    with pytest.raises(ValueError, match=r"thickness_mm = .* must be finite and > 0; drop the layer"):
        Layer(material("G4_Pb"), thickness_mm)


@pytest.mark.parametrize("cells", [(0, 1), (1, -1), (2.5, 2), (1,), ()])
def test_impossible_cells_are_refused(cells: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two whole numbers"):
        Layer(material("G4_Pb"), 1.0, True, cells)


def test_cells_of_a_passive_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="passive"):
        Layer(material("G4_Pb"), 1.0, cells=(2, 2))


@pytest.mark.parametrize(
    "numbers", [{"noise_mev": -1.0}, {"light_yield_pe_per_mev": math.nan}, {"threshold_mev": 2.0, "saturation_mev": 1.0}]
)
def test_an_impossible_readout_is_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="readout"):
        Readout(**numbers)


def test_a_calorimeter_without_active_layer_says_so() -> None:
    with pytest.raises(ValueError, match="no active layer"):
        calorimeter([Layer(material("G4_Pb"), 1.0)]).require_active()


@pytest.mark.parametrize("size_mm", [0.0, -5.0, math.nan])
def test_an_impossible_size_is_refused(size_mm: float) -> None:
    with pytest.raises(ValueError, match="size_x_mm"):
        calorimeter([], size_mm=size_mm)


def test_more_cells_than_can_be_numbered_are_refused() -> None:
    with pytest.raises(ValueError, match="cells are more than"):
        calorimeter([Layer(material("G4_Si"), 1.0, True, (100_000, 100_000))])


@pytest.mark.parametrize(
    "pair",
    [
        (material("G4_Pb"), replace(material("G4_Pb"), price_chf_per_cm_m2=500.0)),
        (mixture("steel", {"G4_Fe": 1.0}, density_g_cm3=7.9), mixture("steel", {"G4_Fe": 1.0}, density_g_cm3=7.8)),
    ],
    ids=["lead of another price", "two steels"],
)
def test_a_name_stands_for_one_material(pair: tuple[Material, Material]) -> None:
    # to_toml would write what from_toml cannot read
    calo = LayeredCalorimeter("mine", (), 100.0, 100.0).add_layer(pair[0], 2.0, is_active=True)
    with pytest.raises(ValueError, match="is already there with other numbers; give yours another name"):
        calo.add_layer(pair[1], 2.0)


def test_a_layer_is_added_as_a_layer_or_by_its_parts() -> None:
    empty, layer = LayeredCalorimeter("mine", (), 100.0, 100.0), Layer(material("G4_Si"), 0.3, True, (2, 2), "em")
    assert empty.add_layer(layer) == empty.add_layer("G4_Si", 0.3, is_active=True, cells=(2, 2), section="em")
    with pytest.raises(TypeError, match="a Layer has its own thickness"):
        empty.add_layer(layer, 2.0)
    with pytest.raises(TypeError, match="a material needs its thickness_mm"):
        empty.add_layer("G4_Si")


def test_a_calorimeter_is_printed_in_one_line() -> None:
    assert repr(load_detector("pb-scint-60")) == "LayeredCalorimeter('pb-scint-60', 120 layers, 150000 cells, 24 cm, 21.7 X0)"
