import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from calolife.energy.crystal_scores import CruijffScore
from calolife.energy.lineshapes import LineFit, fit_cruijff
from calolife.plots_crystals import plot_cruijff_curves, plot_likelihood, plot_overtraining, plot_ratio_fits

N = 2000


@pytest.fixture(scope="module")
def ratio() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: 1.0 + width * rng.standard_t(5, N) for name, width in (("drn", 0.008), ("bdt", 0.010), ("sum", 0.02))}


@pytest.fixture(scope="module")
def fits(ratio: dict[str, np.ndarray]) -> dict[str, LineFit]:
    return {name: fit_cruijff(v) for name, v in ratio.items()}


def rows_of(variable: str, *, edges: list[float], sigma: dict[str, float]) -> list[CruijffScore]:
    """Scores by hand: sigma/mu the same in all bins, ratios to bdt."""
    rows = []
    for low, high in pairwise(edges):
        for model, s in sigma.items():
            r = s / sigma["bdt"]
            given = {} if model == "bdt" else {"ratio": r, "ratio_low": r - 0.03, "ratio_high": r + 0.03}
            given |= {} if model == "bdt" else {"mean_ratio": 1.001, "mean_ratio_low": 0.999, "mean_ratio_high": 1.003}
            rows.append(
                CruijffScore(
                    model,
                    "e-",
                    "all",
                    variable,
                    low,
                    high,
                    0.5 * (low + high),
                    500,
                    None,
                    cruijff_mean=1.001,
                    cruijff_mean_error=0.001,
                    cruijff_sigma_percent=s,
                    cruijff_sigma_percent_error=0.03 * s,
                    **given,
                )
            )
    return rows


@pytest.fixture(scope="module")
def rows() -> list[CruijffScore]:
    return rows_of("energy_gev", edges=[1.0, 10.0, 50.0, 100.0, 300.0], sigma={"bdt": 1.0, "drn": 0.93, "sum": 1.9})


@pytest.fixture(scope="module")
def every(ratio: dict, fits: dict, rows: list) -> dict:
    in_eta = rows_of("abs_eta", edges=[0.0, 0.4, 0.8, 1.48], sigma={"bdt": 1.0, "drn": 0.93})
    in_rho = rows_of("rho_gev", edges=[0.0, 5.0, 20.0], sigma={"bdt": 1.0, "drn": 0.93, "sum": 9.0})
    half = N // 2
    both = fit_cruijff(ratio["drn"][:half]), fit_cruijff(ratio["drn"][half:])
    return {
        "ratio": plot_ratio_fits(ratio, fits, title="100 % of $ and _"),
        "log": plot_ratio_fits(ratio, fits, is_log=True),
        "unfitted": plot_ratio_fits({"drn": ratio["drn"]}, {}),
        "sigma": plot_cruijff_curves(rows, reference="bdt", title="e-; objects_1.h5"),
        "mean": plot_cruijff_curves(rows, figure="mean", reference="bdt"),
        "eta": plot_cruijff_curves(in_eta, reference="bdt"),
        "rho": plot_cruijff_curves(in_rho, figure="sigma"),
        "overtraining": plot_overtraining(ratio["drn"][:half], ratio["drn"][half:], fits=both),
        "overtraining log": plot_overtraining(ratio["drn"][:half], ratio["drn"][half:], is_log=True),
        "likelihood": plot_likelihood([1.0, -0.5, -1.0], [0.9, -0.6, -0.5], best_epoch=2),
    }


NAMES = ["ratio", "log", "unfitted", "sigma", "mean", "eta", "rho", "overtraining", "overtraining log", "likelihood"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_plot_lies_outside_its_figure(name: str, every: dict) -> None:
    figure = every[name].figure
    figure.draw_without_rendering()  # a warning is an error
    box, page = figure.get_tightbbox(), figure.bbox_inches
    assert (box.x0, box.y0) > (-0.01, -0.01)
    assert box.x1 < page.x1 + 0.01
    assert box.y1 < page.y1 + 0.01
    assert every[name].get_xlabel()
    assert every[name].get_ylabel()


def legend(ax: object) -> str:
    return "\n".join(text.get_text() for text in ax.get_legend().get_texts())


def test_legend_gives_peak_and_resolution_of_each_fit(every: dict, fits: dict) -> None:
    text = legend(every["ratio"])
    assert re.search(r"drn: \$\\mu\$ = 1\.00\d+ \$\\pm\$ 0\.000\d+, \$\\sigma/\\mu\$ = 0\.\d+ \$\\pm\$ 0\.\d+ %", text)
    assert f"{100 * fits['sum'].sigma_over_mu:.2f}"[:3] in text


def test_the_curve_is_the_fit_at_the_height_of_the_histogram(ratio: dict, fits: dict) -> None:
    ax = plot_ratio_fits({"drn": ratio["drn"]}, {"drn": fits["drn"]})
    (curve,) = ax.get_lines()
    histogram = ax.patches[0].get_data()
    width = histogram.edges[1] - histogram.edges[0]
    # entries of all bins within the range of the fit, and those of the curve
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) / width == pytest.approx(fits["drn"].n, rel=1e-3)
    peak = 0.5 * (histogram.edges[:-1] + histogram.edges[1:])[histogram.values.argmax()]
    # the fullest of many bins is no more than two sigma off
    assert abs(peak - fits["drn"].mu) < 2 * fits["drn"].sigma


def test_points_are_the_numbers_given(every: dict, rows: list) -> None:
    ax = every["sigma"]
    drawn = {c.get_label(): c[0].get_ydata() for c in ax.containers}
    for model in ("bdt", "drn", "sum"):
        np.testing.assert_array_equal(drawn[model], [r.cruijff_sigma_percent for r in rows if r.model == model])
    below = {c.get_label(): c[0].get_ydata() for c in ax.child_axes[0].containers}
    np.testing.assert_array_equal(below["drn"], [r.ratio for r in rows if r.model == "drn"])
    assert "bdt" not in below


def test_a_model_far_from_the_reference_does_not_flatten_the_others_and_is_marked_by_arrows(every: dict) -> None:
    below = every["sigma"].child_axes[0]
    assert below.get_ylim()[1] < 1.2
    arrows = np.concatenate([c.get_offsets() for c in below.collections if isinstance(c, PathCollection)])
    assert len(arrows) == 4  # the sum in each bin
    assert (arrows[:, 1] < below.get_ylim()[1]).all()


def test_without_a_reference_there_is_no_lower_panel(every: dict) -> None:
    assert not every["rho"].child_axes


def test_energies_over_decades_are_drawn_on_a_logarithmic_axis_and_eta_is_not(every: dict) -> None:
    assert (every["sigma"].get_xscale(), every["eta"].get_xscale()) == ("log", "linear")


def test_both_kinds_of_overtraining_have_the_same_area(every: dict) -> None:
    ax = every["overtraining"]
    histogram = next(p for p in ax.patches if hasattr(p, "get_data")).get_data()
    points = ax.containers[0][0].get_ydata()
    # what lies outside the axis, a few per cent of each, is not drawn
    assert histogram.values.sum() == pytest.approx(1.0, abs=0.06)
    assert points.sum() == pytest.approx(1.0, abs=0.06)
    assert f"Held out ({N // 2})" in legend(ax)


def test_the_step_that_was_kept_is_marked(every: dict) -> None:
    star = every["likelihood"].get_lines()[-1]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2, -0.6)


def test_plots_draw_on_the_axes_they_are_given(ratio: dict, rows: list) -> None:
    ax = Figure().add_subplot()
    assert plot_ratio_fits(ratio, {}, ax=ax) is ax
    ax = Figure().add_subplot()
    assert plot_cruijff_curves(rows, reference="bdt", ax=ax) is ax


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda ratio, rows: plot_ratio_fits({}, {}), "nothing to draw"),
        (lambda ratio, rows: plot_ratio_fits({"a": []}, {}), "nothing to draw"),
        (lambda ratio, rows: plot_ratio_fits(ratio, {"dnn": None}), "name the fits as the series"),
        (lambda ratio, rows: plot_cruijff_curves(rows, figure="width"), "must be sigma or mean"),
        (lambda ratio, rows: plot_cruijff_curves([]), "0 rows to draw and none has a fit"),
        (lambda ratio, rows: plot_cruijff_curves([replace(rows[0], variable="all")]), "give bins of one variable"),
        (lambda ratio, rows: plot_cruijff_curves([rows[0], replace(rows[0], variable="abs_eta")]), "they are of"),
        (lambda ratio, rows: plot_cruijff_curves(rows, reference="best"), "reference 'best' is not among"),
        (lambda ratio, rows: plot_overtraining([], [1.0]), "nothing to draw"),
        (lambda ratio, rows: plot_likelihood([], [], best_epoch=1), "best_epoch = 1 of 0"),
    ],
)
def test_nothing_to_draw_is_said(draw: object, says: str, ratio: dict, rows: list) -> None:
    with pytest.raises(ValueError, match=says):
        draw(ratio, rows)
