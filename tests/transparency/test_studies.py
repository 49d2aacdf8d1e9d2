"""Comparisons: honest rows are honest, leaky ones are leaky and named, every length forecasts the same readings."""

import numpy as np
import pytest

from calolife.transparency import studies
from calolife.transparency.backtest import HORIZONS_S, SHORT_HORIZON_S, forecast_movement
from calolife.transparency.baselines import Persistence, Ridge, fit_persistence, fit_ridge
from calolife.transparency.forecasters import DEFAULT_MODEL
from calolife.transparency.history import Block, Forecast, TransparencyHistory
from calolife.transparency.studies import Network, Rescaled, compare_models, resolve_name, scan_lengths, score_published_table

SMALL = Network(hidden=4, epochs=1)


def test_a_rescaled_forecast_has_the_mean_and_spread_of_the_truth(toy_history: TransparencyHistory) -> None:
    block = next(toy_history.of_year(2017))
    model = Rescaled(fit_ridge(toy_history.select(years=[2016])))
    made = model.forecast(block, origins=np.array([24]), horizon=240)
    truth = block.transparency[:, made.row]
    assert made.transparency.mean(axis=(1, 2)) == pytest.approx(truth.mean(axis=(1, 2)), rel=1e-12)
    assert made.transparency.std(axis=(1, 2)) == pytest.approx(truth.std(axis=(1, 2)), rel=1e-9)


def test_a_rescaled_forecast_is_caught_looking_ahead(toy_history: TransparencyHistory) -> None:
    block = next(toy_history.of_year(2017))
    ridge = fit_ridge(toy_history.select(years=[2016]))
    assert forecast_movement(ridge, block, origins=np.array([24, 480]), horizon=24) == 0.0
    assert forecast_movement(Rescaled(ridge), block, origins=np.array([24, 480]), horizon=24) > 0.0


def test_test_years_move_no_fitted_model(toy_history: TransparencyHistory) -> None:
    whole = compare_models(["ridge"], toy_history, train_years=[2016], test_years=[2017], modes=["window"])
    alone = fit_ridge(toy_history.select(years=[2016]))
    arrays, _ = whole.models["ridge", "window"].state()
    assert all((arrays[name] == value).all() for name, value in alone.state()[0].items())


def test_modes_scored_apart_equal_modes_scored_together(toy_history: TransparencyHistory) -> None:
    names = ["ridge", "persistence"]
    both = compare_models(names, toy_history, train_years=[2016], test_years=[2017], modes=["window", "free-run"]).result
    one = compare_models(names, toy_history, train_years=[2016], test_years=[2017], modes=["free-run"]).result
    assert both.score("ridge", "free-run", 2017).mean_mape_percent == one.score("ridge", "free-run", 2017).mean_mape_percent
    assert {t.mode for t in both.tasks} == {"next-fill", "recovery", "year-to-year"}
    assert len({(t.model, t.mode, t.year) for t in both.tasks}) == len(both.tasks)


@pytest.mark.parametrize("modes", [("window", "free-run"), ("free-run", "window")])
def test_default_is_at_each_horizon_the_model_it_would_be_used_for(
    modes: tuple[str, ...], toy_history: TransparencyHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEFAULT_MODEL, "window", "ridge")
    monkeypatch.setitem(DEFAULT_MODEL, "free-run", "persistence")
    names = ["default", "ridge", "persistence"]
    found = compare_models(names, toy_history, train_years=[2016], test_years=[2017], modes=modes).result
    default, ridge, persistence = (h.error_percent for h in found.horizons)
    short = np.array(HORIZONS_S) <= SHORT_HORIZON_S
    assert all(tuple(h.horizon_s) == HORIZONS_S for h in found.horizons)
    assert (default[short] == ridge[short]).all()
    assert (default[~short] == persistence[~short]).all()
    assert ridge[short].sum() != persistence[short].sum()


def test_a_model_named_twice_is_scored_once(toy_history: TransparencyHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULT_MODEL, "window", "ridge")
    n_calls = []
    forecast = Ridge.forecast

    def counted(self: Ridge, block: Block, **where: object) -> Forecast:
        n_calls[-1] += 1
        return forecast(self, block, **where)

    monkeypatch.setattr(Ridge, "forecast", counted)
    found = []
    for names in (["ridge"], ["ridge", "default"]):
        n_calls.append(0)
        found.append(compare_models(names, toy_history, train_years=[2016], test_years=[2017], modes=["window"]).result)
    assert n_calls[0] == n_calls[1] > 0
    for row in ("", "-last24"):
        one, two = (found[1].score(name + row, "window", 2017) for name in ("ridge", "default"))
        assert (one.mape_percent == two.mape_percent).all()


def test_a_rescaled_row_has_no_task_and_no_horizon(toy_history: TransparencyHistory) -> None:
    result = compare_models(
        ["ridge"], toy_history, train_years=[2016], test_years=[2017], modes=["window", "free-run"], published_leak=True
    ).result
    assert {s.model for s in result.scores} == {"ridge", "ridge-last24", "ridge-leak"}
    assert {t.model for t in result.tasks} == {h.model for h in result.horizons} == {"ridge"}


def test_an_unknown_model_is_refused_before_any_fit(toy_history: TransparencyHistory) -> None:
    with pytest.raises(ValueError, match="model 'ridgee' is not one of default,"):
        compare_models(["ridge", "ridgee"], toy_history, train_years=[2016], test_years=[2017], modes=["window"])


@pytest.mark.parametrize("mode", ["window", "free-run"])
def test_default_is_a_model(mode: str) -> None:
    assert resolve_name("default", mode=mode) == resolve_name(resolve_name("default", mode=mode), mode=mode)


def test_the_published_table_has_six_networks_and_our_default(toy_history: TransparencyHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULT_MODEL, "window", "ridge")  # the quickest: the table is tested, not the default
    monkeypatch.setitem(DEFAULT_MODEL, "free-run", "ridge")
    part = toy_history.select(xtal_ids=[54000, 54001])
    rows, result = score_published_table(part, train_years=[2016], years=[2017], network=SMALL)
    assert {(r.layout, r.strategy) for r in rows} == {(s, t) for s in ("Model-S", "Model-R") for t in "RMT"}
    assert all(np.isfinite(r.ours_percent) and r.model.endswith("-leak") and r.n_crystals == 2 for r in rows)
    assert np.isfinite(result.score("default", "window", 2017).mean_mape_percent)


def test_the_table_compares_the_same_crystals_in_every_row(toy_history: TransparencyHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULT_MODEL, "window", "persistence")
    monkeypatch.setitem(DEFAULT_MODEL, "free-run", "persistence")
    fitted, tested = toy_history.blocks
    part = TransparencyHistory((fitted.crystals([0, 1]), tested.crystals([1, 2])))
    with pytest.warns(UserWarning, match=r"not read in each of 2016, 2017: crystal 54000, 54002"):
        _, result = score_published_table(part, train_years=[2016], years=[2017], network=SMALL)
    assert {tuple(s.xtal_id.tolist()) for s in result.scores} == {(54001,)}
    assert all(result.fit_seconds[f"lstm-{layout}-{s}"] > 0 for layout in "sr" for s in "rmt")


def test_a_table_of_no_common_crystal_is_refused(toy_history: TransparencyHistory) -> None:
    fitted, tested = toy_history.blocks
    part = TransparencyHistory((fitted.crystals([0]), tested.crystals([1])))
    with pytest.raises(ValueError, match="none of 2 crystals was read in each of 2016, 2017"):
        score_published_table(part, train_years=[2016], years=[2017], network=SMALL)


def test_a_scan_hands_no_reading_from_the_last_origin_on(toy_history: TransparencyHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    class Watched(Persistence):
        def forecast(self, block: Block, *, origins, horizon: int) -> Forecast:
            shown.append(np.isnan(block.transparency[:, origins.max() :]).all())
            return super().forecast(block, origins=origins, horizon=horizon)

    def fit(name: str, history: TransparencyHistory, **settings: object) -> Watched:
        model = fit_persistence(history)
        return Watched(model.train_years, model.interval)

    monkeypatch.setattr(studies, "fit_named", fit)
    scan_lengths(toy_history, [6, 48], train_years=[2016], test_years=[2017], network=SMALL)
    assert shown == [True, True]


def test_a_scan_scores_every_length_in_every_year(toy_history: TransparencyHistory) -> None:
    found = scan_lengths(toy_history, [6, 48], train_years=[2016], test_years=[2017], network=SMALL)
    assert set(found) == {"2017"}
    assert set(found["2017"]) == {6, 48}


def test_a_length_of_one_reading_is_refused(toy_history: TransparencyHistory) -> None:
    with pytest.raises(ValueError, match="give two readings or more"):
        scan_lengths(toy_history, [1], train_years=[2016], test_years=[2017], network=SMALL)
