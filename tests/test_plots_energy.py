import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from calolife.energy.resolution import EnergyBins, Resolution, energy_bins, fit_resolution
from calolife.energy.scores import particle_masks
from calolife.plots_energy import (
    plot_energy_response,
    plot_predicted,
    plot_profiles,
    plot_pulls,
    plot_residuals,
    plot_resolution_curve,
    plot_training,
)

N = 1500
TRUTH = {22: Resolution(0.10, 0.0, 0.01), -211: Resolution(0.5, 0.3, 0.04)}


@pytest.fixture(scope="module")
def showers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted, true energy, particle."""
    rng = np.random.default_rng(1)
    energy, pdg = rng.uniform(1, 100, N), rng.choice([22, -211], N)
    sigma = np.where(pdg == 22, TRUTH[22].at(energy), TRUTH[-211].at(energy))
    return energy * (1 + sigma * rng.standard_normal(N)), energy, pdg


@pytest.fixture(scope="module")
def bins(showers: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, EnergyBins]:
    predicted, energy, pdg = showers
    return {name: energy_bins(predicted[m], energy[m], n_bootstrap=50) for name, m in particle_masks(pdg).items()}


@pytest.fixture(scope="module")
def fits(bins: dict[str, EnergyBins]) -> dict[str, Resolution]:
    return {name: fit_resolution(b.energy_gev, b.resolution, b.resolution_error) for name, b in bins.items()}


@pytest.fixture(scope="module")
def every(showers: tuple[np.ndarray, np.ndarray, np.ndarray], bins: dict, fits: dict) -> dict:
    predicted, energy, pdg = showers
    masks = particle_masks(pdg)
    residual = {name: (predicted / energy - 1)[m] for name, m in masks.items()}
    layers = energy[:, None] * np.exp(-0.5 * ((np.arange(20) - 5 - np.log(energy)[:, None]) / 3) ** 2)
    return {
        "predicted": plot_predicted(predicted, energy, of_particle=masks),
        "density": plot_predicted(np.tile(predicted, 4), np.tile(energy, 4), title="100 % of $ and _"),
        "response": plot_energy_response(bins),
        "median": plot_energy_response(bins, is_robust=True, band=0.02),
        "resolution": plot_resolution_curve(bins, fits=fits),
        "effective": plot_resolution_curve(bins, is_effective=True),
        "residuals": plot_residuals(residual),
        "pulls": plot_pulls({"all": 5 * np.concatenate(list(residual.values()))}),
        "training": plot_training([3.0, 2.0, 1.0], [3.0, 1.5, 1.6], best_epoch=2),
        "profiles": plot_profiles(layers, energy, of_particle=masks),
    }


NAMES = ["predicted", "density", "response", "median", "resolution", "effective", "residuals", "pulls", "training", "profiles"]


@pytest.mark.parametrize("name", NAMES)
def test_axes_carry_a_symbol_or_name_and_a_unit(name: str, every: dict) -> None:
    ax = every[name]
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    # response and pulls have no unit of their own; epochs are counted
    assert name == "pulls" or re.search(r"\[.+\]", ax.get_xlabel() + ax.get_ylabel())


@pytest.mark.parametrize("name", NAMES)
def test_every_plot_can_be_drawn_without_a_warning(name: str, every: dict) -> None:
    every[name].figure.draw_without_rendering()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_plot_lies_outside_its_figure(name: str, every: dict) -> None:
    figure = every[name].figure
    figure.draw_without_rendering()
    box, page = figure.get_tightbbox(), figure.bbox_inches
    assert box.x0 > -0.01
    assert box.y0 > -0.01
    assert box.x1 < page.x1 + 0.01
    assert box.y1 < page.y1 + 0.01


def test_no_plot_registers_a_global_figure(every: dict) -> None:
    import matplotlib.pyplot as plt

    shown = [plt.figure(n) for n in plt.get_fignums()]
    assert not {id(ax.figure) for ax in every.values()} & {id(figure) for figure in shown}


def test_plots_draw_on_the_axes_they_are_given(bins: dict, showers: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ax = Figure().add_subplot()
    assert plot_energy_response(bins, ax=ax) is ax
    ax = Figure().add_subplot()
    assert plot_predicted(*showers[:2], ax=ax) is ax


def legend(ax: object) -> str:
    return "\n".join(text.get_text() for text in ax.get_legend().get_texts())


def test_every_shower_is_drawn_once_in_its_particle_s_colour(every: dict, showers: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ax = every["predicted"]
    assert sum(len(c.get_offsets()) for c in ax.collections) == N
    (below,) = ax.child_axes
    assert sum(len(c.get_offsets()) for c in below.collections) == N  # those out of range as triangles
    assert f"({int((showers[2] == 22).sum())})" in legend(ax)


def test_band_of_the_response_is_as_wide_as_asked(every: dict) -> None:
    for name, half in (("response", 0.01), ("median", 0.02)):
        (band,) = every[name].patches
        assert band.get_extents().transformed(every[name].transData.inverted()).height == pytest.approx(2 * half)
        assert f"{100 * half:g} %" in legend(every[name])


def test_response_points_are_the_numbers_given(every: dict, bins: dict) -> None:
    drawn = [container[0].get_ydata() for container in every["response"].containers]
    np.testing.assert_array_equal(drawn[0], bins["gamma"].response)
    np.testing.assert_array_equal(drawn[1], bins["pi-"].response)


def test_a_point_far_off_does_not_flatten_the_others_and_is_marked_by_an_arrow(bins: dict) -> None:
    far = bins["gamma"].response.copy()
    far[0] = 3.0
    ax = plot_energy_response({**bins, "far": replace(bins["gamma"], response=far)})
    assert ax.get_ylim()[1] < 2
    arrows = np.concatenate([c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)])
    assert ax.containers[2][0].get_xdata()[0] in arrows[:, 0]
    assert (arrows[:, 1] < ax.get_ylim()[1]).all()


@pytest.mark.parametrize("draw", [plot_energy_response, plot_resolution_curve])
def test_legend_of_many_models_stands_beside_the_axes(draw: object, bins: dict) -> None:
    ax = draw({f"model {k}": bins["gamma"] for k in range(8)})
    ax.figure.draw_without_rendering()
    legend, page = ax.get_legend().get_window_extent(), ax.figure.bbox
    assert legend.x0 > ax.get_window_extent().x1
    assert legend.x1 < page.x1
    assert legend.y0 > 0
    colours = {str(container[0].get_color()) for container in ax.containers}
    assert len(colours) == 8


def test_a_fit_without_a_degree_of_freedom_has_no_band(bins: dict) -> None:
    n_bands = [
        len(
            plot_resolution_curve(
                {"gamma": bins["gamma"]}, fits={"gamma": Resolution(0.1, 0.1, 0.01, np.eye(3) * 1e-6, ndf=ndf)}
            ).collections
        )
        for ndf in (0, 3)
    ]
    assert n_bands[1] == n_bands[0] + 1


def test_legend_gives_the_terms_with_errors_and_units(every: dict, fits: dict) -> None:
    text = legend(every["resolution"])
    assert r"$\gamma$: $S$ = " in text
    assert r"$\pm$" in text
    assert r"% $\sqrt{\mathrm{GeV}}$" in text
    assert f"{100 * fits['pi-'].stochastic:.0f}" in text or f"{100 * fits['pi-'].stochastic:.1f}" in text


def test_a_term_that_is_not_seen_is_drawn_as_its_limit(bins: dict) -> None:
    covariance = np.diag([0.01, 0.05, 0.001]) ** 2
    fit = Resolution(0.1, 0.02, 0.01, covariance, (0.12, 0.1, 0.012), 5.0, 6)
    text = legend(plot_resolution_curve({"gamma": bins["gamma"]}, fits={"gamma": fit}))
    assert "$N$ < 0.1 GeV" in text
    assert r"$S$ = 10.0 $\pm$ 1.0 %" in text
    assert r"$C$ = 1.00 $\pm$ 0.10 %" in text


def test_curve_drawn_is_the_fit(every: dict, fits: dict, bins: dict) -> None:
    curve = next(line for line in every["resolution"].get_lines() if len(line.get_xdata()) == 200)
    np.testing.assert_allclose(curve.get_ydata(), 100 * fits["gamma"].at(curve.get_xdata()))
    assert curve.get_xdata()[[0, -1]] == pytest.approx(bins["gamma"].edges_gev[[0, -1]])


def test_residuals_say_their_effective_sigma_and_what_lies_outside() -> None:
    inside = 0.01 * np.linspace(-1, 1, 980)
    text = legend(plot_residuals({"trees": np.concatenate([inside, np.full(20, 9.0)])}))
    assert text.startswith("trees: ")
    assert "2 % outside" in text
    assert re.search(r"= 0\.\d{3} %", text)


def test_residuals_that_are_all_the_same_can_be_drawn() -> None:
    plot_residuals({"perfect": np.zeros(10)}).figure.draw_without_rendering()


def test_the_epoch_that_was_kept_is_marked(every: dict) -> None:
    star = every["training"].get_lines()[-1]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2, 1.5)
    assert "epoch 2, 1.5 GeV" in legend(every["training"])


def test_training_without_validation_marks_its_own_loss() -> None:
    ax = plot_training([3.0, 2.0], [np.nan, np.nan], best_epoch=2)
    assert ax.get_lines()[-1].get_ydata()[0] == 2.0
    assert "Validation" not in legend(ax)


def test_profiles_are_per_gev_of_incident_energy() -> None:
    energy = np.array([1.0, 3.0])
    ax = plot_profiles(energy[:, None] * np.array([[2.0, 1.0]]), energy, edges_gev=[0.5, 5.0])
    (stairs,) = ax.patches
    np.testing.assert_allclose(stairs.get_data().values, [2.0, 1.0])


def test_profiles_of_one_energy_can_be_drawn() -> None:
    plot_profiles(np.ones((4, 3)), np.full(4, 10.0)).figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: plot_predicted([], []), "no showers"),
        (lambda: plot_energy_response({}), "no series"),
        (lambda: plot_resolution_curve({}), "no series"),
        (lambda: plot_residuals({}), "nothing to draw"),
        (lambda: plot_pulls({"a": []}), "nothing to draw"),
        (lambda: plot_training([], [], best_epoch=1), "best_epoch = 1 of 0"),
        (lambda: plot_profiles(np.empty((0, 3)), np.empty(0)), "no showers"),
        (lambda: plot_profiles(np.ones((4, 3)), np.ones(4), edges_gev=[1, 2, 3, 4, 5, 6]), "at most 4"),
        (lambda: plot_profiles(np.ones((4, 3)), np.ones(4), edges_gev=[2, 3]), "give other edges_gev"),
    ],
)
def test_nothing_to_draw_is_said(draw: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        draw()


def test_a_fit_of_a_series_that_is_not_there_is_refused(bins: dict) -> None:
    with pytest.raises(ValueError, match="name the fits as the series"):
        plot_resolution_curve(bins, fits={"dnn": Resolution(0.1, 0, 0)})
