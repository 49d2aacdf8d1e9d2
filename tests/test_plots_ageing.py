"""Figures of ageing: what is drawn are the numbers given, and every axis says what it shows."""

import re

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from calolife.ageing.coefficients import Ageing
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Layer, LayeredCalorimeter
from calolife.detector.materials import material
from calolife.plots_ageing import (
    plot_against_dose,
    plot_against_truth,
    plot_cell_map,
    plot_distribution,
    plot_energy_sums,
    plot_pulls,
    plot_uncertainty,
)
from calolife.plots_methods import plot_against_events, plot_epochs, plot_methods

N_CELLS, SIGMA, OWN_SIGMA = 200, 0.003, 0.015


@pytest.fixture(scope="module")
def stack() -> LayeredCalorimeter:
    """Eight layers: six of 6 x 6 cells and two of 3 x 3."""
    absorber, plastic = material("G4_Cu"), material("G4_POLYSTYRENE")
    fine = LayeredCalorimeter("eight", (), 180.0, 180.0).add_period(
        6, Layer(absorber, 20.0), Layer(plastic, 5.0, is_active=True, cells=(6, 6))
    )
    return fine.add_period(2, Layer(absorber, 20.0), Layer(plastic, 5.0, is_active=True, cells=(3, 3)))


@pytest.fixture(scope="module")
def dose() -> np.ndarray:
    return np.linspace(5000.0, 1000.0, N_CELLS)


@pytest.fixture(scope="module")
def truth(dose: np.ndarray) -> Ageing:
    return Ageing(np.arange(N_CELLS), 1 - 0.107 * dose / dose.max())


@pytest.fixture(scope="module")
def found(truth: Ageing) -> Ageing:
    """An estimate with a prior; two cells are no measurement."""
    rng = np.random.default_rng(1)
    status = np.full(N_CELLS, "measured", dtype="U20")
    status[-50:], status[7], status[9] = "prior-dominated", "dead", "hot"
    fraction = truth.signal_fraction + SIGMA * rng.standard_normal(N_CELLS)
    own = truth.signal_fraction + OWN_SIGMA * rng.standard_normal(N_CELLS)
    return Ageing(truth.cell, fraction, np.full(N_CELLS, SIGMA), status, own, np.full(N_CELLS, OWN_SIGMA))


@pytest.fixture(scope="module")
def every(stack: LayeredCalorimeter, found: Ageing, truth: Ageing, dose: np.ndarray) -> dict:
    rng = np.random.default_rng(2)
    pull = (found.signal_fraction - truth.signal_fraction) / SIGMA
    young = rng.normal(270.0, 40.0, 2000)
    n_events = [500, 1000, 2000]
    return {
        "truth": plot_against_truth(found, truth, title="100 % of $ and _"),
        "map": plot_cell_map(stack, found, title="100 % of $ and _"),
        "distribution": plot_distribution(found, truth=truth),
        "pulls": plot_pulls({"With prior": pull}),
        "sums": plot_energy_sums({"Young": young, "Aged": 0.95 * young[:1500], "Corrected": young[500:]}),
        "dose": plot_against_dose(found, dose, truth=truth),
        "uncertainty": plot_uncertainty(found, dose, limit=np.full(N_CELLS, 0.014)),
        "epochs": plot_epochs([1, 2, 3], {"MAE": [0.05, 0.02, 0.03]}, kept_epoch=2, lines={"Best constant": 0.0165}),
        "events": plot_against_events(n_events, {"a": [0.04, 0.03, 0.02], "b": [0.4, 0.3, np.nan]}, limit=[0.04, 0.028, 0.02]),
        "methods": plot_methods(["one", "two"], [0.02, 0.01], error=[0.001, 0.001], lines={"Best constant": 0.0165}),
    }  # fmt: skip


NAMES = ["truth", "map", "distribution", "pulls", "sums", "dose", "uncertainty", "epochs", "events", "methods"]


@pytest.mark.parametrize("name", NAMES)
def test_axes_say_what_they_show(name: str, every: dict) -> None:
    ax = every[name]
    assert ax.get_xlabel()
    assert ax.get_ylabel() or name == "methods"  # there the methods are the labels


@pytest.mark.parametrize("name", ["map", "sums", "dose", "uncertainty"])
def test_quantities_with_a_unit_show_it(name: str, every: dict) -> None:
    assert re.search(r"\[.+\]", every[name].get_xlabel())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_plot_lies_outside_its_figure(name: str, every: dict) -> None:
    figure = every[name].get_figure(root=True)
    figure.draw_without_rendering()
    box, page = figure.get_tightbbox(), figure.bbox_inches
    assert min(box.x0, box.y0) > -0.01
    assert box.x1 < page.x1 + 0.01
    assert box.y1 < page.y1 + 0.01


def test_no_plot_registers_a_global_figure(every: dict) -> None:
    import matplotlib.pyplot as plt

    shown = [plt.figure(n) for n in plt.get_fignums()]
    assert not {id(ax.get_figure(root=True)) for ax in every.values()} & {id(figure) for figure in shown}


def test_plots_draw_on_the_axes_they_are_given(stack: LayeredCalorimeter, found: Ageing, truth: Ageing) -> None:
    for draw in (plot_against_truth, plot_distribution):
        ax = Figure().add_subplot()
        assert draw(found, truth=truth, ax=ax) is ax
    ax = Figure().add_subplot()
    assert plot_cell_map(stack, found, ax=ax) is ax


def legend(ax: object) -> str:
    return "\n".join(text.get_text() for text in ax.get_legend().get_texts())


def test_found_against_true_draws_every_usable_cell_with_its_error(every: dict, found: Ageing, truth: Ageing) -> None:
    (points,) = every["truth"].containers
    kept = ~np.isin(found.status, ["dead", "hot"])
    np.testing.assert_array_equal(points[0].get_xdata(), truth.signal_fraction[kept])
    np.testing.assert_array_equal(points[0].get_ydata(), found.signal_fraction[kept])
    (bars,) = points[2]
    assert np.ptp(bars.get_segments()[0][:, 1]) == pytest.approx(2 * SIGMA)
    mae = np.abs(found.signal_fraction - truth.signal_fraction)[kept].mean()
    assert f"MAE {mae:.3g}" in legend(every["truth"])


def test_cells_far_off_are_counted_in_the_legend(found: Ageing, truth: Ageing) -> None:
    far = found.signal_fraction.copy()
    far[100] = 3.0
    ax = plot_against_truth(Ageing(found.cell, far), truth)
    assert ax.get_ylim()[1] < 2
    assert "of 200 cells outside" in legend(ax)


def test_map_has_a_panel_per_layer_and_the_colours_are_the_fractions(stack: LayeredCalorimeter, found: Ageing, every: dict) -> None:
    panels = [c for c in every["map"].collections if isinstance(c, QuadMesh)]
    layer, *_ = stack.cell_index(found.cell)
    assert len(panels) == np.unique(layer).size
    drawn = np.concatenate([p.get_array().compressed() for p in panels])
    np.testing.assert_array_equal(np.sort(drawn), np.sort(found.signal_fraction))
    crosses = np.concatenate([line.get_xdata() for line in every["map"].lines])
    assert crosses.size == 2
    assert "2 cells dead, hot or masked" in every["map"].get_title()


def test_a_cell_of_the_map_lies_where_it_is_in_its_layer(stack: LayeredCalorimeter) -> None:
    corner, opposite = int(stack.cell_id(2, 5, 0)), int(stack.cell_id(2, 0, 5))  # right below, left above
    ax = plot_cell_map(stack, Ageing(np.sort([corner, opposite]), [0.9, 0.8]))
    (panel,) = (c for c in ax.collections if isinstance(c, QuadMesh))
    values = panel.get_array()  # rows from below, columns from the left
    of_cell = dict(zip(sorted([corner, opposite]), [0.9, 0.8], strict=True))
    assert values[0, -1] == of_cell[corner]
    assert values[-1, 0] == of_cell[opposite]


def test_map_of_crystals_is_one_panel() -> None:
    crystals = CrystalCalorimeter("matrix", material("G4_PbWO4"), (1, 2, 3), 5)
    ax = plot_cell_map(crystals, Ageing([0, 7, 14], [0.9, 0.8, 0.7]))
    assert sum(isinstance(c, QuadMesh) for c in ax.collections) == 1


def test_pulls_of_honest_errors_have_a_width_near_one(every: dict) -> None:
    text = legend(every["pulls"])
    width = float(re.search(r"width (\d\.\d+)", text).group(1))
    assert width == pytest.approx(1.0, abs=3 / np.sqrt(2 * N_CELLS))  # three standard errors


def test_energy_sums_are_scaled_to_the_same_area(every: dict) -> None:
    areas = {tuple(p.get_data().edges): 0 for p in every["sums"].patches}
    assert len(areas) == 1  # common bins
    for patch in every["sums"].patches:
        values, edges, _ = patch.get_data()
        assert float((values * np.diff(edges)).sum()) == pytest.approx(1.0, abs=0.02)  # .6 % lie outside the axes


def test_kept_epoch_is_marked_and_must_exist(every: dict) -> None:
    assert "Kept: epoch 2" in legend(every["epochs"])
    with pytest.raises(ValueError, match="kept_epoch = 9"):
        plot_epochs([1, 2], {"MAE": [1.0, 2.0]}, kept_epoch=9)


def test_the_best_method_stands_on_top(every: dict) -> None:
    ax = every["methods"]
    names = dict(zip(ax.get_yticks(), [t.get_text() for t in ax.get_yticklabels()], strict=True))
    assert names[max(names)] == "two"


def test_a_single_cell_can_be_drawn(stack: LayeredCalorimeter) -> None:
    few = Ageing([3], [0.9], [0.01])
    dose = np.array([10.0])
    for ax in (
        plot_against_truth(few, few), plot_cell_map(stack, few), plot_distribution(few), plot_against_dose(few, dose),
        plot_uncertainty(few, dose), plot_pulls({"all": np.zeros(1)}), plot_energy_sums({"Young": np.ones(1)}),
    ):  # fmt: skip
        ax.get_figure(root=True).draw_without_rendering()


def test_cells_that_the_truth_does_not_list_are_not_drawn_as_unaged(found: Ageing, truth: Ageing, dose: np.ndarray) -> None:
    few = truth.only(np.arange(0, N_CELLS, 2))
    (line,) = (line for line in plot_against_dose(found, dose, truth=few).lines if line.get_label() == "True")
    kept = np.isin(few.cell, found.cell[~np.isin(found.status, ["dead", "hot"])])
    assert sorted(line.get_ydata()) == sorted(few.signal_fraction[kept])
    assert f"True: mean {few.signal_fraction[kept].mean():.4f}" in legend(plot_distribution(found, truth=few))
    assert "True" not in legend(plot_distribution(found, truth=Ageing([100_000], [0.9])))


def test_single_showers_lie_inside_the_axes_of_their_sums() -> None:
    ax = plot_energy_sums({"Young": [20.0], "Aged": [10.0]})
    assert all(patch.get_data().values.sum() > 0 for patch in ax.patches)


def test_methods_that_are_never_wrong_and_a_best_constant_of_0_can_be_drawn() -> None:
    for value, constant in (([0.02, 0.01], 0.0), ([0.02, 0.0], 0.0), ([0.0], 0.0), ([0.0, 0.01], 0.01)):
        ax = plot_methods([f"m{k}" for k in range(len(value))], value, lines={"Best constant": constant, "Statistical limit": 0.01})
        ax.get_figure(root=True).draw_without_rendering()
        assert "Statistical limit: 0.01" in legend(ax)
    for mae in ([np.nan, np.nan], [0.0, 0.0], [0.01, 0.01]):
        ax = plot_against_events([100, 200], {"a": mae}, error={"a": [np.nan, np.nan]}, limit=[np.nan, 0.01])
        ax.get_figure(root=True).draw_without_rendering()


def test_cells_that_are_all_alike_can_be_drawn(stack: LayeredCalorimeter) -> None:
    same = Ageing(np.arange(5), np.full(5, 0.9), np.full(5, 0.01))
    for ax in (
        plot_against_truth(same, same), plot_cell_map(stack, same), plot_distribution(same, truth=same), plot_uncertainty(same, np.ones(5)),
        plot_against_dose(same, np.zeros(5), truth=same), plot_pulls({"all": np.full(5, 0.3)}), plot_energy_sums({"Young": np.zeros(5)}),
        plot_epochs([1, 2], {"MAE": [0.0, np.nan]}, kept_epoch=2, lines={"Best constant": 0.0}),
    ):  # fmt: skip
        ax.get_figure(root=True).draw_without_rendering()


def test_all_cells_of_a_large_detector_can_be_drawn() -> None:
    n = 23_040
    rng = np.random.default_rng(3)
    many = Ageing(np.arange(n), rng.normal(0.97, 0.01, n), np.full(n, 0.01))
    for ax in (plot_against_truth(many, many), plot_distribution(many), plot_against_dose(many, np.arange(n) + 1.0)):
        ax.get_figure(root=True).draw_without_rendering()


def test_nothing_to_draw_is_an_error(stack: LayeredCalorimeter, truth: Ageing) -> None:
    dead = Ageing([1], [0.9], status=["dead"])
    for draw in (
        lambda: plot_against_truth(dead, truth), lambda: plot_distribution(dead), lambda: plot_against_dose(dead, [1.0]),
        lambda: plot_uncertainty(Ageing([1], [0.9]), [1.0]), lambda: plot_pulls({}), lambda: plot_energy_sums({}),
        lambda: plot_epochs([], {}), lambda: plot_against_events([], {}), lambda: plot_methods([], []),
        lambda: plot_cell_map(stack, Ageing([], [])), lambda: plot_cell_map(stack, Ageing([10_000], [0.9])),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"; "):
            draw()
