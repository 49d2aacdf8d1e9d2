"""The side view: what it shows is where the layers are."""

import pytest

from calolife.detector.drawing import plot_detector
from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.materials import mixture
from calolife.detector.presets import load_detector, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_drawn_with_labels(name: str) -> None:
    ax = plot_detector(load_detector(name))
    assert "[cm]" in ax.get_xlabel()
    assert "[cm]" in ax.get_ylabel()
    assert name in ax.get_title()


def test_every_layer_is_one_slab_at_its_place() -> None:
    calo = load_detector("triple-fe-v42")
    assert isinstance(calo, LayeredCalorimeter)
    slabs = plot_detector(calo).collections[0].get_paths()
    assert len(slabs) == calo.n_layers
    assert [slab.vertices[:, 0].min() for slab in slabs] == pytest.approx(list(calo.z_mm[:-1] / 10))
    assert [slab.vertices[:, 0].max() for slab in slabs] == pytest.approx(list(calo.z_mm[1:] / 10))


def test_the_legend_names_each_material_as_active_or_passive() -> None:
    legend = plot_detector(load_detector("triple-fe-v42")).get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["Pb, passive", "POLYSTYRENE, active", "PbWO4, passive", "Fe, passive"]


def test_materials_of_ones_own_have_colours_of_their_own() -> None:
    calo = LayeredCalorimeter("mine", (), 100, 100)
    for i in range(3):
        calo = calo.add_layer(mixture(f"alloy {i}", {"G4_Fe": 1.0}, density_g_cm3=5.0 + i), 10.0, is_active=True, section=f"part {i}")
    colours = plot_detector(calo).collections[0].get_facecolors()
    assert len({tuple(colour) for colour in colours}) == 3


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="no layers to draw"):
        plot_detector(LayeredCalorimeter("empty", (), 100, 100))


def test_a_dollar_in_a_name_is_no_formula() -> None:
    lead = mixture("$lead_$", {"G4_Pb": 1.0}, density_g_cm3=11.0)
    calo = LayeredCalorimeter("for $x^$", (), 100.0, 100.0).add_layer(lead, 2.0, is_active=True, section="$a_$")
    plot_detector(calo).get_figure(root=True).canvas.draw()  # type: ignore[union-attr]
