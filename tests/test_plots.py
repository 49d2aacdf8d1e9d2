import re

import numpy as np
import pytest

from calolife.plots import plot_coverage, plot_forecast, plot_horizon, plot_lengths, plot_mape, plot_response, plot_visible
from calolife.transparency.backtest import BacktestResult, backtest
from calolife.transparency.baselines import fit_persistence
from calolife.transparency.history import Forecast, TransparencyHistory


@pytest.fixture(scope="module")
def result(toy_history: TransparencyHistory) -> BacktestResult:
    model = fit_persistence(toy_history.select(years=[2016]))
    return backtest({"persistence": model, "again": model}, toy_history, test_years=[2017])


@pytest.fixture(scope="module")
def forecast(toy_history: TransparencyHistory) -> Forecast:
    block = next(toy_history.of_year(2017))
    return fit_persistence(toy_history.select(years=[2016])).forecast(block, origins=np.arange(24, 1416, 24), horizon=24)


@pytest.fixture(scope="module")
def every(toy_history: TransparencyHistory, result: BacktestResult, forecast: Forecast) -> dict:
    block = next(toy_history.of_year(2017))
    window = [s for s in result.scores if s.mode == "window"]
    return {
        "response": plot_response(toy_history),
        "forecast": plot_forecast(block, forecast, xtal_id=54001),
        "mape": plot_mape(window),
        "horizon": plot_horizon(result.horizons),
        "lengths": plot_lengths({"window, 2017": {24: 0.2, 6: 0.3}}),
        "coverage": plot_coverage(result.scores),
    }


NAMES = ["response", "forecast", "mape", "horizon", "lengths", "coverage"]


@pytest.mark.parametrize("name", NAMES)
def test_axes_carry_a_symbol_or_name_and_a_unit(name: str, every: dict) -> None:
    ax = every[name]
    assert ax.get_xlabel()
    if name != "coverage":
        assert ax.get_ylabel()
    has_unit = re.search(r"\[.+\]", ax.get_xlabel() + ax.get_ylabel())
    assert has_unit


@pytest.mark.parametrize("name", NAMES)
def test_every_plot_can_be_drawn_without_a_warning(name: str, every: dict) -> None:
    every[name].figure.canvas.draw()


def test_no_plot_registers_a_global_figure(every: dict) -> None:
    import matplotlib.pyplot as plt

    shown = [plt.figure(n) for n in plt.get_fignums()]
    assert not {id(ax.figure) for ax in every.values()} & {id(figure) for figure in shown}


def test_plots_draw_on_the_axes_they_are_given(result: BacktestResult) -> None:
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert plot_horizon(result.horizons, ax=ax) is ax


def test_forecast_plot_shows_the_readings_and_the_forecast(toy_history: TransparencyHistory, forecast: Forecast) -> None:
    block = next(toy_history.of_year(2017))
    ax = plot_forecast(block, forecast, xtal_id=54001, start_s=block.time_s[240], stop_s=block.time_s[479])
    readings, made = ax.get_lines()
    np.testing.assert_array_equal(readings.get_ydata(), block.transparency[1, 240:480])
    np.testing.assert_array_equal(made.get_ydata(), forecast.transparency[1].ravel()[216:456])
    assert len(ax.collections) == 2  # 95 % and 68 % bands


def test_no_line_crosses_a_long_gap(toy_history: TransparencyHistory) -> None:
    (line,) = plot_response(toy_history).get_lines()
    assert np.isnan(line.get_ydata()).sum() == 1  # the winter between the two years


def test_horizon_plot_leaves_out_horizons_without_targets(result: BacktestResult) -> None:
    for line, horizon in zip(plot_horizon(result.horizons).get_lines(), result.horizons, strict=True):
        assert len(line.get_xdata()) == (horizon.n_targets > 0).sum() < horizon.horizon_s.size


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_mape([]), "no scores to draw"),
        (lambda: plot_horizon([]), "no horizons to draw"),
        (lambda: plot_lengths({}), "at least one series"),
        (lambda: plot_coverage([]), "none of the scores has intervals"),
    ],
)
def test_nothing_to_draw_is_an_error(draw, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def test_forecast_plot_of_a_stranger_names_the_crystals_there_are(toy_history: TransparencyHistory, forecast: Forecast) -> None:
    with pytest.raises(ValueError, match=r"crystal 7 .* pick one of \[54000, 54001, 54002\]"):
        plot_forecast(next(toy_history.of_year(2017)), forecast, xtal_id=7)


def test_visible_energy_of_a_range_is_drawn_as_a_fraction_for_each_particle() -> None:
    energy_gev = np.linspace(1.0, 10.0, 100)
    is_pion = np.arange(100) < 40
    visible_mev = 1e3 * energy_gev * np.where(is_pion, 0.5, 0.9) + np.tile([-10.0, 10.0], 50)
    ax = plot_visible(visible_mev, energy_gev=energy_gev, of_particle={"pi-": is_pion, "e-": ~is_pion}, title="for $x^$")
    ax.figure.canvas.draw()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [label.split("\n")[0] for label in labels] == ["40 pi- showers", "60 e- showers"]
    assert ax.get_xlabel().startswith("Visible over incident energy")
    assert "MeV" not in ax.get_xlabel() + ax.get_ylabel()


def test_the_legend_gives_all_numbers_to_the_digit_of_the_error() -> None:
    ax = plot_visible(np.tile([2501.04, 2521.04], 200))
    assert ax.get_legend().get_texts()[0].get_text() == "400 showers\nmean 2511.0 $\\pm$ 0.5 MeV, rms 10.0 MeV"
