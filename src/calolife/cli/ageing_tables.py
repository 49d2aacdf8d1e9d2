"""What runs of `calolife ageing` keep and show: coefficients, scores, comparisons, and figures with the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calolife.cli.options import print_table

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes

    from calolife.ageing.checks import Checks
    from calolife.ageing.coefficients import Ageing
    from calolife.ageing.estimate import AgeingEstimate
    from calolife.ageing.scores import AgeingScore
    from calolife.runs import Metric, Run
    from calolife.showers.events import Showers

__all__ = [
    "Comparison",
    "ComparisonRow",
    "compare_estimates",
    "comparison_json",
    "limit_mae",
    "must_have_scores",
    "print_comparison",
    "print_estimate",
    "save_comparison",
    "save_estimate",
    "score_estimate",
    "to_json_dict",
]

FloatArray = NDArray[np.float64]

_USABLE = ("measured", "prior-dominated")
_N_DRAWS = 1000  # chosen: the ends of a 95 % interval are then known to 5 % of its width
_MAE_OF_SIGMA = math.sqrt(2 / math.pi)  # mean absolute deviation of a unit Gaussian
_MOST_NAMED = 10  # chosen: dead cells named on screen; the files name all
_BASELINE = "best constant"
_USUAL = "likelihood"  # what auto takes where nothing speaks against it


@dataclass(frozen=True)
class ComparisonRow:
    """One method of a comparison.

    Parameters
    ----------
    name : str
    mae, mae_error : float
        Over the cells of the comparison; standard error over the cells.
    r2 : float
    coverage68, coverage95 : float
        NaN without errors.
    over_limit : float
        mae over that of the statistical limit.
    seconds : float
    difference, low, high : float
        mae minus that of auto without a prior, and its 95 % interval.
    """

    name: str
    mae: float
    mae_error: float
    r2: float
    coverage68: float
    coverage95: float
    over_limit: float
    seconds: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return "no difference" if self.low <= 0 <= self.high else "better" if self.high < 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Methods on the same cells.

    Parameters
    ----------
    rows : tuple of ComparisonRow
        auto first, the best constant last.
    cell : int array, (cell,)
        Cells that every method could use.
    true_fraction : float array, (cell,)
    found : mapping of str to float array, (cell,)
        Signal fraction of each method.
    limit_mae : float
        NaN where unknown.
    n_showers : tuple of int
        Of both samples.
    smaller : mapping of str to mapping of int to (mae, mae_error, limit_mae)
        The same with fewer events.
    """

    rows: tuple[ComparisonRow, ...]
    cell: NDArray[np.int64]
    true_fraction: FloatArray
    found: Mapping[str, FloatArray]
    limit_mae: float
    n_showers: tuple[int, int]
    smaller: Mapping[str, Mapping[int, tuple[float, float, float]]]


def score_estimate(found: AgeingEstimate, truth: Ageing | None) -> dict[str, AgeingScore]:
    """Scores against the truth, by what is scored.

    Returns
    -------
    dict of str to AgeingScore
        ``result`` of all cells that have one and that the truth lists, ``measured`` of those with hits enough, ``own`` of
        the latter before any prior; nothing without a truth or such a cell.
    """
    from calolife.ageing.scores import score_ageing

    made: dict[str, AgeingScore] = {}
    if truth is None or not (scored := _scored(found, truth)).any():
        return made
    made["result"] = score_ageing(found.ageing, truth)
    if (measured := found.ageing.only(found.ageing.cell[scored & (found.ageing.status == "measured")])).n_cells:
        made["measured"] = score_ageing(measured, truth)
        made["own"] = score_ageing(measured, truth, own=True)
    return made


def limit_mae(found: AgeingEstimate, *, among: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute error at the statistical limit, over the measured cells or some others; NaN where it is not known."""
    sigma = found.limit_uncertainty[found.ageing.status == "measured" if among is None else among]
    sigma = sigma[np.isfinite(sigma)]
    return float(_MAE_OF_SIGMA * sigma.mean()) if sigma.size else math.nan


def to_json_dict(found: AgeingEstimate, *, scores: Mapping[str, AgeingScore], remarks: Sequence[str]) -> dict[str, Any]:
    """What ``--json`` prints."""
    a = found.ageing
    cells = [
        {"cell": cell, "signal_fraction": fraction, "uncertainty": uncertainty, "status": status}
        for cell, fraction, uncertainty, status in zip(
            a.cell.tolist(), a.signal_fraction.tolist(), a.uncertainty.tolist(), a.status.tolist(), strict=True
        )
    ]
    return {
        "method": found.method, "prior": found.prior, "n_cells": a.n_cells, "seconds": found.seconds, "cells": cells,
        "score": scores["result"].to_json_dict() if "result" in scores else None,
        "measured_score": scores["measured"].to_json_dict() if "measured" in scores else None,
        "own_score": scores["own"].to_json_dict() if "own" in scores else None,
        "limit_mae": limit_mae(found), "law": found.law, "choice": dict(found.choice), "checks": _checks(found.checks),
        "remarks": list(remarks),
    }  # fmt: skip


def save_estimate(
    run: Run, young: Showers, aged: Showers, found: AgeingEstimate, *, truth: Ageing | None, scores: Mapping[str, AgeingScore]
) -> list[str]:
    """Keep the coefficients, the checks, metrics and figures.

    Returns
    -------
    list of str
        One remark for each figure that had nothing to show.
    """
    from calolife.ageing.files import AGEING_FILE, write_ageing
    from calolife.runs import write_json, write_metrics, write_table

    write_ageing(run.path / AGEING_FILE, found.ageing)
    write_json(run, "checks", _finite(_checks(found.checks) | {"choice": dict(found.choice), "remarks": list(found.remarks)}))
    write_metrics(run, _metrics(found, scores))
    if found.epochs:
        write_table(run, "epochs", _epoch_table(found, truth))
    return _save_figures(run, young, aged, found, truth=truth)


def print_estimate(
    found: AgeingEstimate, young: Showers, aged: Showers, *, truth: Ageing | None, scores: Mapping[str, AgeingScore]
) -> None:
    """The result in a few lines."""
    a = found.ageing
    usable, measured = np.isin(a.status, _USABLE), a.status == "measured"
    prior = f"{found.prior} prior" + (f" ({found.law})" if found.law else "") if found.prior != "none" else "no prior"
    print(
        f"{found.method}, {prior}: {a.n_cells} cells of {young.detector.name}, {young.n_showers} + {aged.n_showers} showers, "
        f"{found.seconds:.1f} s"
    )
    if found.choice and found.method != _USUAL:
        errors = ", ".join(f"{name} {_digits(error)}" for name, error in sorted(found.choice.items(), key=lambda of: of[1]))
        print(f"auto chose {found.method}: errors between halves of the reference {errors}")
    if usable.any():
        r = a.signal_fraction[usable]
        typical = f"typical error {_digits(float(np.median(a.uncertainty[usable])))}"
        if found.prior != "none" and measured.any():
            typical += f", {_digits(float(np.median(a.own_uncertainty[measured])))} from the own hits of a measured cell"
        print(f"signal fraction: mean {r.mean():.4f}, {r.min():.4f} to {r.max():.4f}; {typical}")
    counts = ", ".join(f"{n} {name}" for name in dict.fromkeys(a.status.tolist()) if (n := int((a.status == name).sum())))
    print(f"cells: {counts}")
    for name in ("dead", "hot", "masked"):
        if (listed := a.cell[a.status == name]).size:
            more = f" and {listed.size - _MOST_NAMED} more" if listed.size > _MOST_NAMED else ""
            print(f"{name}: {', '.join(map(str, listed[:_MOST_NAMED].tolist()))}{more}")
    if truth is None or not scores:
        return
    limit = limit_mae(found, among=_scored(found, truth) & measured)
    is_mixed = scores.get("measured") != scores["result"]
    rows = [["result", *_score_cells(scores["result"], math.nan if is_mixed else limit)]]
    if is_mixed and "measured" in scores:
        rows.append(["measured cells", *_score_cells(scores["measured"], limit)])
    if found.prior != "none" and "own" in scores:
        rows.append(["their own hits alone" if is_mixed else "own hits alone", *_score_cells(scores["own"], limit)])
    print_table("against the truth", ["", "cells", "MAE", "R2", "in 68 %", "in 95 %", "MAE / limit"], rows)


def compare_estimates(
    found: Mapping[tuple[str, str], AgeingEstimate],
    truth: Ageing,
    *,
    n_showers: tuple[int, int],
    smaller: Mapping[tuple[str, str], Mapping[int, AgeingEstimate]],
    has_errors: bool = True,
    seed: int = 0,
) -> Comparison:
    """Score estimates on the cells that all of them can use.

    Parameters
    ----------
    found : mapping of (name, prior) to AgeingEstimate
        By the name that the method was asked for, with ("auto", "none"), which the others are held against.
    truth : Ageing
    n_showers : tuple of int
    smaller : mapping of (name, prior) to mapping of int to AgeingEstimate
        With fewer events.
    has_errors : bool
        The uncertainties are errors: without replicas they are the statistical limit, and say nothing of a method.
    seed : int

    Raises
    ------
    ValueError
        No cell that has a result and a truth.

    Notes
    -----
    The intervals are of a bootstrap over cells, on the same draws for every method.
    """
    from calolife.ageing.scores import r_squared

    auto = found["auto", "none"]
    must_have_scores(auto, truth)
    common = _scored(auto, truth)
    for e in found.values():
        common &= _scored(e, truth)  # what is dead, hot or masked is so for every method
    assert common.any()
    cell = auto.ageing.cell[common]
    true = truth.at(cell)
    limit = limit_mae(auto, among=common)
    names = {key: _name(*key, e.method) for key, e in found.items()}
    fractions = {names[key]: e.ageing.signal_fraction[common] for key, e in found.items()}
    fractions[_BASELINE] = np.full(cell.size, float(np.median(true)))
    off = {name: np.abs(value - true) for name, value in fractions.items()}
    own = off[names["auto", "none"]]
    draws = np.random.default_rng([seed, 5]).integers(0, cell.size, (_N_DRAWS, cell.size))
    rows = []
    for name, value in fractions.items():
        key = next((k for k in found if names[k] == name), None)
        inside = (math.nan, math.nan)
        if key is not None and has_errors:
            sigma = found[key].ageing.uncertainty[common]
            inside = float((off[name] <= sigma).mean()), float((off[name] <= 1.96 * sigma).mean())
        low, high = (float(q) for q in np.quantile((off[name] - own)[draws].mean(axis=1), [0.025, 0.975]))
        mae = float(off[name].mean())
        rows.append(ComparisonRow(
            name, mae, _spread_of_mean(off[name]), r_squared(value, true), *inside, mae / limit,
            math.nan if key is None else found[key].seconds, mae - float(own.mean()), low, high,
        ))  # fmt: skip
    few: dict[str, dict[int, tuple[float, float, float]]] = {}
    for key, of_size in smaller.items():
        for n, e in of_size.items():
            ok = common & _scored(e, truth)
            if ok.any():
                error = np.abs(e.ageing.signal_fraction[ok] - truth.at(e.ageing.cell[ok]))
                few.setdefault(names[key], {})[n] = float(error.mean()), _spread_of_mean(error), limit_mae(e, among=ok)
    return Comparison(tuple(rows), cell, true, fractions, limit, n_showers, few)


def must_have_scores(found: AgeingEstimate, truth: Ageing) -> None:
    """Refuse to compare where no cell could be scored.

    Raises
    ------
    ValueError
        No cell has a result and is listed in the truth.
    """
    if not _scored(found, truth).any():
        a = found.ageing
        counts = ", ".join(f"{n} {name}" for name in dict.fromkeys(a.status.tolist()) if (n := int((a.status == name).sum())))
        raise ValueError(f"no cell has both a result and a truth (of {a.n_cells} cells: {counts}); ask for others with --cells or --mask")


def save_comparison(run: Run, comparison: Comparison) -> list[str]:
    """Keep the table, the fractions of every method, and the figures.

    Returns
    -------
    list of str
        One remark for each figure that had nothing to show.
    """
    import polars as pl

    from calolife.plots_methods import plot_against_events, plot_methods
    from calolife.runs import Metric, write_metrics, write_table

    n = comparison.cell.size
    rows = [_row_dict(r) for r in comparison.rows]
    table = pl.DataFrame(rows, infer_schema_length=None)
    write_table(run, "comparison", table)
    write_table(run, "cells", pl.DataFrame({"cell": comparison.cell, "true_fraction": comparison.true_fraction, **comparison.found}))
    metrics = {f"mae {r.name}": Metric(r.mae, r.mae_error, "", n) for r in comparison.rows}
    metrics |= {f"seconds {r.name}": Metric(r.seconds, math.nan, "s", n) for r in comparison.rows if math.isfinite(r.seconds)}
    metrics["mae at the statistical limit"] = Metric(comparison.limit_mae, math.nan, "", n)
    write_metrics(run, metrics)
    shown = [r for r in comparison.rows if r.name != _BASELINE]
    (constant,) = (r for r in comparison.rows if r.name == _BASELINE)
    lines = {_BASELINE.capitalize(): constant.mae}
    if math.isfinite(comparison.limit_mae):
        lines = {"Statistical limit": comparison.limit_mae} | lines
    first, then = comparison.n_showers
    left_out: list[str] = []

    def draw_methods() -> Axes:
        return plot_methods(
            [r.name for r in shown], [r.mae for r in shown], error=[r.mae_error for r in shown], lines=lines,
            title=f"{n} cells, {first} + {then} showers",
        )  # fmt: skip

    _keep_figure(run, "methods", draw_methods, table, left_out)
    if not comparison.smaller:
        return left_out
    least = min(comparison.n_showers)
    series: dict[str, dict[int, tuple[float, float, float]]] = {name: dict(of) for name, of in comparison.smaller.items()}
    for r in shown:
        if r.name in series:
            series[r.name].setdefault(least, (r.mae, r.mae_error, comparison.limit_mae))
    sizes = sorted({size for of in series.values() for size in of})
    at = pl.DataFrame(
        [
            {"method": m, "n_events": k, "mae": mae, "mae_error": error, "limit_mae": limit}
            for m, of in series.items()
            for k, (mae, error, limit) in sorted(of.items())
        ],
        infer_schema_length=None,
    )
    write_table(run, "events", at)
    nan3 = (math.nan, math.nan, math.nan)
    # auto may have no cell at one of the sizes
    least_limit = {k: of[2] for k, of in series.get(comparison.rows[0].name, {}).items()}
    column = {name: np.array([of.get(k, nan3) for k in sizes]) for name, of in series.items()}
    limit = np.array([least_limit.get(k, math.nan) for k in sizes])

    def draw_events() -> Axes:
        return plot_against_events(
            sizes, {m: c[:, 0] for m, c in column.items()}, error={m: c[:, 1] for m, c in column.items()},
            limit=limit if np.isfinite(limit).any() else None, title=f"{n} cells",
        )  # fmt: skip

    _keep_figure(run, "error-against-events", draw_events, at, left_out)
    return left_out


def print_comparison(comparison: Comparison) -> None:
    """The table of the methods."""
    first, then = comparison.n_showers
    rows = [
        [
            r.name, _digits(r.mae) + (f" +- {_digits(r.mae_error)}" if math.isfinite(r.mae_error) else ""),
            f"{r.r2:.2f}" if math.isfinite(r.r2) else "", _percent(r.coverage68), _percent(r.coverage95),
            f"{r.over_limit:.2f}" if math.isfinite(r.over_limit) else "", f"{r.seconds:.1f}" if math.isfinite(r.seconds) else "",
            "" if k == 0 else f"{r.difference:+.4f} [{r.low:+.4f}, {r.high:+.4f}]", "" if k == 0 else r.verdict,
        ]
        for k, r in enumerate(comparison.rows)
    ]  # fmt: skip
    header = ["", "MAE", "R2", "in 68 %", "in 95 %", "MAE / limit", "time [s]", "MAE - auto [95 %]", "verdict"]
    print_table(f"{comparison.cell.size} cells, {first} + {then} showers; MAE of the signal fraction", header, rows)
    if math.isfinite(comparison.limit_mae):
        print(f"statistical limit: MAE {_digits(comparison.limit_mae)}")
    print("the best constant knows the truth: a method above it is worse than one number for all cells")
    if comparison.smaller:
        sizes = sorted({n for of in comparison.smaller.values() for n in of})
        body = [[name, *(_digits(of[n][0]) if n in of else "" for n in sizes)] for name, of in comparison.smaller.items()]
        print_table("MAE against events in each sample", ["", *map(str, sizes)], body)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "n_cells": int(comparison.cell.size), "n_showers": list(comparison.n_showers), "limit_mae": comparison.limit_mae,
        "methods": [_row_dict(r) for r in comparison.rows],
        "events": {name: {str(n): of[n][0] for n in sorted(of)} for name, of in comparison.smaller.items()},
    }  # fmt: skip


def _metrics(found: AgeingEstimate, scores: Mapping[str, AgeingScore]) -> dict[str, Metric]:
    from calolife.runs import Metric

    a = found.ageing
    usable = np.isin(a.status, _USABLE)
    n = int(usable.sum())
    metrics = {"seconds": Metric(found.seconds, math.nan, "s", a.n_cells)}
    if n:
        r = a.signal_fraction[usable]
        least = int(r.argmin())
        metrics["mean signal fraction"] = Metric(float(r.mean()), _spread_of_mean(r), "", n)
        metrics["smallest signal fraction"] = Metric(float(r[least]), float(a.uncertainty[usable][least]), "", n)
        if np.isfinite(a.uncertainty[usable]).any():
            metrics["median uncertainty"] = Metric(float(np.nanmedian(a.uncertainty[usable])), math.nan, "", n)
    for name in dict.fromkeys(a.status.tolist()):
        metrics[f"{name} cells"] = Metric(float((a.status == name).sum()), math.nan, "", a.n_cells)
    if math.isfinite(limit := limit_mae(found)):
        metrics["mae at the statistical limit"] = Metric(limit, math.nan, "", n)
    for suffix, name in (("", "result"), (" of measured cells", "measured"), (" of own hits", "own")):
        if name not in scores or (name != "result" and scores[name] == scores["result"]):
            continue
        score = scores[name]
        metrics[f"mae{suffix}"] = Metric(score.mae, math.nan, "", score.n)
        metrics[f"r2{suffix}"] = Metric(score.r2, math.nan, "", score.n)
        for level, p in (("68", score.coverage68), ("95", score.coverage95)):
            metrics[f"coverage of {level} % intervals{suffix}"] = Metric(100 * p, 100 * math.sqrt(p * (1 - p) / score.n), "%", score.n)
    return metrics


def _keep_figure(run: Run, name: str, draw: Callable[[], Axes], numbers: pl.DataFrame, left_out: list[str]) -> None:
    """A figure with its numbers. One with nothing to show is left out: by now the work is done, and its result stands."""
    from calolife.runs import write_plot

    try:
        drawn = draw()
    except ValueError as error:
        left_out.append(f"figure {name} left out: {error}")
        return
    write_plot(run, name, drawn, numbers)


def _save_figures(run: Run, young: Showers, aged: Showers, found: AgeingEstimate, *, truth: Ageing | None) -> list[str]:
    """Figures of an estimate; told is what was left out."""
    import polars as pl

    from calolife import plots_ageing as plots
    from calolife.ageing.files import AGEING_FILE

    a = found.ageing
    left_out: list[str] = []
    usable = np.isin(a.status, _USABLE)
    title = f"{found.method}, " + (f"{found.prior} prior" if found.prior != "none" else "no prior")
    table = pl.read_parquet(run.path / AGEING_FILE).with_columns(
        pl.Series("dose_mev", found.dose_mev), pl.Series("limit_uncertainty", found.limit_uncertainty)
    )
    if truth is not None:
        true = [r if is_listed else None for r, is_listed in zip(truth.at(a.cell), np.isin(a.cell, truth.cell), strict=True)]
        table = table.with_columns(pl.Series("true_fraction", true, dtype=pl.Float64))
    _keep_figure(run, "map", lambda: plots.plot_cell_map(young.detector, a, title=title), table, left_out)
    if not usable.any():
        return [*left_out, f"none of the {a.n_cells} cells is measured or prior-dominated: only the map is drawn"]
    drawings: dict[str, Callable[[], Axes]] = {
        "distribution": lambda: plots.plot_distribution(a, truth=truth, title=title),
        "fraction-against-dose": lambda: plots.plot_against_dose(a, found.dose_mev, truth=truth, title=title),
        "uncertainty-against-dose": lambda: plots.plot_uncertainty(a, found.dose_mev, limit=found.limit_uncertainty, title=title),
    }
    if truth is not None and _scored(found, truth).any():
        drawings["found-against-true"] = lambda: plots.plot_against_truth(a, truth, title=title)
    for name, draw in drawings.items():
        _keep_figure(run, name, draw, table, left_out)
    sums = _energy_sums(young, aged, a)
    of = "all cells" if usable.sum() == young.detector.n_cells else f"{usable.sum()} of {young.detector.n_cells} cells"
    longest = max(v.size for v in sums.values())
    padded = {
        f"{name.lower().replace(' ', '_')}_mev": np.pad(v.astype(np.float64), (0, longest - v.size), constant_values=np.nan)
        for name, v in sums.items()
    }
    numbers = pl.DataFrame(padded).fill_nan(None)
    _keep_figure(run, "energy-sums", lambda: plots.plot_energy_sums(sums, of=of, title=title), numbers, left_out)
    if truth is not None and (pulls := _pulls(found, truth)):
        numbers = pl.DataFrame({"cell": a.cell[_scored(found, truth)], **pulls})
        _keep_figure(run, "pulls", lambda: plots.plot_pulls(pulls, title=title), numbers, left_out)
    if found.epochs:
        _save_epochs(run, found, truth, title=title, left_out=left_out)
    return left_out


def _save_epochs(run: Run, found: AgeingEstimate, truth: Ageing | None, *, title: str, left_out: list[str]) -> None:
    from calolife.plots_methods import plot_epochs

    table = _epoch_table(found, truth)
    kept = _kept_epoch(found)
    number = table["epoch"].to_numpy()

    def keep(name: str, values: Mapping[str, FloatArray], *, lines: Mapping[str, float] | None = None, what: str) -> None:
        if any(np.isfinite(v).any() for v in values.values()):
            _keep_figure(
                run, name, lambda: plot_epochs(number, values, kept_epoch=kept, lines=lines, what=what, title=title), table, left_out
            )

    keep("training", {"Critic": np.abs(table["wasserstein"].to_numpy())}, what="Distance that the critic sees [its own slope]")
    held = table["held_out_cramer"].to_numpy()
    keep("held-out-distance", {"Held out": held}, what="Distance of the held-out hits, mean over cells")
    if truth is None or not (scored := _scored(found, truth)).any():
        return
    true = truth.at(found.ageing.cell[scored])
    lines = {"Best constant": float(np.abs(true - np.median(true)).mean())}
    if math.isfinite(limit := limit_mae(found, among=scored & (found.ageing.status == "measured"))):
        lines = {"Statistical limit": limit} | lines
    what = r"MAE of the signal fraction $\langle |\hat r - r| \rangle$"
    keep("mae-per-epoch", {"Weights of the epoch": table["mae"].to_numpy()}, lines=lines, what=what)


def _epoch_table(found: AgeingEstimate, truth: Ageing | None) -> pl.DataFrame:
    import polars as pl

    columns: dict[str, Any] = {
        "epoch": [e.number for e in found.epochs], "critic_loss": [e.critic_loss for e in found.epochs],
        "wasserstein": [e.wasserstein for e in found.epochs], "held_out_cramer": [e.cramer for e in found.epochs],
    }  # fmt: skip
    if truth is not None and (scored := _scored(found, truth)).any():
        true = truth.at(found.ageing.cell[scored])
        off = [np.abs(e.signal_fraction[scored] - true) for e in found.epochs]
        columns["mae"] = [float(np.nanmean(o)) if np.isfinite(o).any() else math.nan for o in off]
    return pl.DataFrame(columns)


def _kept_epoch(found: AgeingEstimate) -> int:
    held = np.array([e.cramer for e in found.epochs])
    return found.epochs[int(np.nanargmin(held)) if np.isfinite(held).any() else -1].number


def _scored(found: AgeingEstimate, truth: Ageing) -> NDArray[np.bool_]:
    """Cells with a result that the truth lists."""
    return np.isin(found.ageing.status, _USABLE) & np.isin(found.ageing.cell, truth.cell)


def _energy_sums(young: Showers, aged: Showers, ageing: Ageing) -> dict[str, FloatArray]:
    """Energy of the cells with a result in each shower: young, aged, and aged divided by the signal fraction."""
    usable = ageing.only(ageing.cell[np.isin(ageing.status, _USABLE)])
    same = np.zeros(young.detector.n_cells)
    same[usable.cell] = 1.0
    corrected: FloatArray = same / usable.at(np.arange(young.detector.n_cells))

    def sums(showers: Showers, weight: FloatArray) -> FloatArray:
        energy = showers.energy_mev * weight[showers.cell]
        return np.asarray(np.bincount(showers.shower_index, weights=energy, minlength=showers.n_showers), dtype=np.float64)

    return {"Young": sums(young, same), "Aged": sums(aged, same), "Corrected": sums(aged, corrected)}


def _pulls(found: AgeingEstimate, truth: Ageing) -> dict[str, FloatArray]:
    a = found.ageing
    scored = _scored(found, truth)
    true = truth.at(a.cell[scored])
    columns = {"Result": (a.signal_fraction, a.uncertainty)}
    if found.prior != "none":
        columns = {"With prior": columns["Result"], "Own hits alone": (a.own_fraction, a.own_uncertainty)}
    made = {}
    for name, (value, sigma) in columns.items():
        ok = np.isfinite(value[scored]) & (sigma[scored] > 0)
        if name == "Own hits alone":
            ok &= a.status[scored] == "measured"
        pull = np.full(true.size, np.nan)
        pull[ok] = (value[scored][ok] - true[ok]) / sigma[scored][ok]
        if ok.any():
            made[name] = pull
    return made


def _checks(checks: Checks) -> dict[str, Any]:
    shifts = [
        {
            "quantity": s.quantity, "unit": s.unit, "reference": float(s.reference), "today": float(s.today),
            "difference": float(s.difference), "uncertainty": float(s.uncertainty), "is_seen": bool(s.is_seen),
        }
        for s in checks.shifts
    ]  # fmt: skip
    return {
        "shared_fraction": float(checks.shared_fraction), "n_shared": int(checks.n_shared), "shifts": shifts,
        "dead": np.asarray(checks.dead).tolist(), "hot": np.asarray(checks.hot).tolist(),
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """The same with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row_dict(r: ComparisonRow) -> dict[str, Any]:
    return {
        "method": r.name, "mae": r.mae, "mae_error": r.mae_error, "r2": r.r2, "coverage68": r.coverage68, "coverage95": r.coverage95,
        "mae_over_limit": r.over_limit, "seconds": r.seconds, "difference": r.difference, "difference_low": r.low,
        "difference_high": r.high, "verdict": r.verdict,
    }  # fmt: skip


def _name(asked: str, prior: str, method: str) -> str:
    called = f"{method} (auto)" if asked == "auto" else asked
    return called if prior == "none" else f"{called}, {prior} prior"


def _spread_of_mean(value: FloatArray) -> float:
    return float(value.std(ddof=1) / math.sqrt(value.size)) if value.size > 1 else math.nan


def _score_cells(score: AgeingScore, limit: float) -> list[str]:
    over = f"{score.mae / limit:.2f}" if math.isfinite(limit) else ""
    r2 = f"{score.r2:.3f}" if math.isfinite(score.r2) else ""
    return [str(score.n), _digits(score.mae), r2, _percent(score.coverage68), _percent(score.coverage95), over]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %" if math.isfinite(fraction) else ""


def _digits(value: float) -> str:
    """Two digits, no exponent."""
    if not (math.isfinite(value) and value > 0):
        return f"{value:g}"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"
