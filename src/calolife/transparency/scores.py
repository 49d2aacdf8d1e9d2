"""What a backtest measured: scores per crystal, their means with paired intervals, merged, tabulated, as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from calolife.runs import json_number
from calolife.transparency.history import FloatArray, IntArray

__all__ = [
    "LEAK_SUFFIX",
    "MODES",
    "TASKS",
    "BacktestResult",
    "HorizonScore",
    "Score",
    "TableRow",
    "is_leaky",
    "join_scores",
    "merge_results",
    "published_table",
]

MODES = ("window", "free-run")
TASKS = ("next-fill", "recovery", "year-to-year")
LEAK_SUFFIX = "-leak"


@dataclass(frozen=True, eq=False)
class Score:
    """How well one model forecast one year in one mode, or in one task.

    Parameters
    ----------
    model : str
    mode : str
        ``"window"``, ``"free-run"`` or a name in `TASKS`.
    year : int
    is_in_sample : bool
        The model was fitted to this year.
    xtal_id : int array, (crystal,)
    n_windows, n_targets : int array, (crystal,)
        Forecasts made, readings compared.
    mape_percent : float array, (crystal,) [%]
        Mean of abs(forecast - reading) / reading.
    persistence_percent : float array, (crystal,) [%]
        The same for the last known reading, repeated.
    skill, skill_low, skill_high : float array, (crystal,)
        1 - MAPE / MAPE of persistence on the same readings, and its 95 % interval: paired, drawn in blocks of
        neighbouring windows, the year closed to a circle.
    coverage68, coverage95 : float array, (crystal,)
        Fraction of the readings inside the intervals; NaN where the model gives none.
    boot_weight, boot_mape, boot_persistence : float array, (replica,)
        Sums over crystals of random weights, and of weighted MAPE of the model and of persistence: they add up over crystals.
    forecast_s : float [s]
        Time the forecasts took.

    Notes
    -----
    Windows of one year share their weather: the interval speaks of other weeks of that year and, for
    the mean, of other crystals, not of other years. With a few blocks (free run, recovery) it is too narrow.
    """

    model: str
    mode: str
    year: int
    is_in_sample: bool
    xtal_id: IntArray
    n_windows: IntArray
    n_targets: IntArray
    mape_percent: FloatArray
    persistence_percent: FloatArray
    skill: FloatArray
    skill_low: FloatArray
    skill_high: FloatArray
    coverage68: FloatArray
    coverage95: FloatArray
    boot_weight: FloatArray
    boot_mape: FloatArray
    boot_persistence: FloatArray
    forecast_s: float

    @property
    def mean_mape_percent(self) -> float:
        """Mean over crystals of their MAPE [%]."""
        return float(self.mape_percent.mean())

    @property
    def mape_percent_interval(self) -> tuple[float, float]:
        """95 % interval of the mean MAPE [%], over crystals and windows."""
        low, high = np.quantile(self.boot_mape / self.boot_weight, (0.025, 0.975))
        return float(low), float(high)

    @property
    def mean_skill(self) -> float:
        """1 - mean MAPE / mean MAPE of persistence."""
        return float(1 - self.mape_percent.mean() / self.persistence_percent.mean())

    @property
    def mean_skill_interval(self) -> tuple[float, float]:
        """95 % interval of the mean skill, paired, over crystals and windows; NaN with too few windows to resample."""
        if np.isnan(self.skill_low).all():
            return math.nan, math.nan
        low, high = np.quantile(1 - self.boot_mape / self.boot_persistence, (0.025, 0.975))
        return float(low), float(high)


@dataclass(frozen=True, eq=False)
class HorizonScore:
    """Error of one model against how far ahead it looks, over one year.

    Parameters
    ----------
    model : str
    year : int
    horizon_s : float array, (horizon,) [s]
    error_percent : float array, (horizon,) [%]
        Sum over targets of abs(forecast - reading) / reading.
    n_targets : int array, (horizon,)
        Crystals times origins; the same readings for every model.
    """

    model: str
    year: int
    horizon_s: FloatArray
    error_percent: FloatArray
    n_targets: IntArray

    @property
    def mape_percent(self) -> FloatArray:
        """Mean absolute percentage error at each horizon, (horizon,) [%]; NaN where nothing was compared."""
        with np.errstate(invalid="ignore"):
            made: FloatArray = self.error_percent / self.n_targets
        return made


@dataclass(frozen=True, eq=False)
class BacktestResult:
    """Everything a backtest measured.

    Parameters
    ----------
    scores : tuple of Score
        One per model, mode and year.
    tasks : tuple of Score
        One per model, task and year.
    horizons : tuple of HorizonScore
    fit_seconds : dict of str to float [s]
        As given; a model that is missing has none.
    """

    scores: tuple[Score, ...]
    tasks: tuple[Score, ...] = ()
    horizons: tuple[HorizonScore, ...] = ()
    fit_seconds: Mapping[str, float] = field(default_factory=dict)

    def score(self, model: str, mode: str, year: int) -> Score:
        """The score of one model in one mode or task and year.

        Raises
        ------
        ValueError
            It was not measured.
        """
        for score in self.scores + self.tasks:
            if (score.model, score.mode, score.year) == (model, mode, year):
                return score
        have = ", ".join(sorted({s.model for s in self.scores}))
        raise ValueError(f"no score of {model} in {mode}, {year}; the models scored are {have}")

    def to_json_dict(self) -> dict[str, Any]:
        """Plain numbers: ``results`` per crystal, ``mean`` over crystals, ``tasks``, ``horizons``; null for what is not known."""
        results = [
            {
                "model": s.model, "mode": s.mode, "year": s.year, "crystal": int(s.xtal_id[c]),
                "mape_percent": json_number(s.mape_percent[c]), "skill": json_number(s.skill[c]),
                "coverage68": json_number(s.coverage68[c]), "coverage95": json_number(s.coverage95[c]),
                "skill_low": json_number(s.skill_low[c]), "skill_high": json_number(s.skill_high[c]),
                "n_windows": int(s.n_windows[c]), "n_targets": int(s.n_targets[c]), "in_sample": s.is_in_sample,
            }
            for s in self.scores for c in range(s.xtal_id.size)
        ]  # fmt: skip
        horizons = [
            {
                "model": h.model, "year": h.year, "horizon_h": float(h.horizon_s[i] / 3600.0),
                "mape_percent": json_number(h.mape_percent[i]), "n_targets": int(h.n_targets[i]),
            }
            for h in self.horizons for i in range(h.horizon_s.size)
        ]  # fmt: skip
        return {
            "results": results,
            "mean": [self._mean_row(s, "mode") for s in self.scores],
            "tasks": [self._mean_row(s, "task") for s in self.tasks],
            "horizons": horizons,
            "fit_seconds": {model: json_number(seconds) for model, seconds in self.fit_seconds.items()},
        }

    def _mean_row(self, score: Score, kind: str) -> dict[str, Any]:
        skill_low, skill_high = score.mean_skill_interval
        mape_low, mape_high = score.mape_percent_interval
        return {
            "model": score.model, kind: score.mode, "year": score.year, "mape_percent": json_number(score.mean_mape_percent),
            "mape_percent_low": json_number(mape_low), "mape_percent_high": json_number(mape_high),
            "skill": json_number(score.mean_skill), "skill_low": json_number(skill_low), "skill_high": json_number(skill_high),
            "coverage68": json_number(score.coverage68.mean()), "coverage95": json_number(score.coverage95.mean()),
            "n_crystals": score.xtal_id.size, "n_targets": int(score.n_targets.sum()),
            "fit_s": json_number(self.fit_seconds.get(score.model.removesuffix("-last24"), math.nan)),
            "forecast_s": json_number(score.forecast_s),
            "in_sample": score.is_in_sample, "leak": is_leaky(score.model),
        }  # fmt: skip


@dataclass(frozen=True)
class TableRow:
    """One cell of the published Table 1 beside ours.

    Parameters
    ----------
    layout : str
        ``"Model-S"`` (one crystal) or ``"Model-R"`` (a ring).
    strategy : str
        R, M or T: recursive, mixed or teacher-forced training.
    mode : str
    year : int
    published_percent : tuple of float, (lowest, highest) [%]
        Range of the published models in this mode and year.
    model : str
        Our row's name.
    ours_percent : float [%]
        NaN where it was not measured.
    n_crystals : int
    """

    layout: str
    strategy: str
    mode: str
    year: int
    published_percent: tuple[float, float]
    model: str
    ours_percent: float
    n_crystals: int


# mean MAPE [%] over 360 crystals, lowest and highest of the published models, all with the test year's scalers.
# Source: arXiv:2303.15291, Table 1 (its four models; single cells are not kept here)
_PUBLISHED_PERCENT = {
    ("window", 2016): (0.168, 0.194),
    ("window", 2017): (0.223, 0.263),
    ("window", 2018): (0.291, 0.391),
    ("free-run", 2016): (0.516, 0.888),
    ("free-run", 2017): (0.673, 0.836),
    ("free-run", 2018): (1.147, 1.327),
}


def merge_results(results: Iterable[BacktestResult]) -> BacktestResult:
    """Results of different crystals as one: score a large detector ring by ring, then merge.

    Raises
    ------
    ValueError
        Nothing to merge, or a crystal scored twice.
    """
    every = list(results)
    if not every:
        raise ValueError("no results to merge; give at least one")
    seconds: dict[str, float] = {}
    for result in every:
        for name, value in result.fit_seconds.items():
            seconds[name] = max(value, seconds.get(name, 0.0))
    horizons: dict[tuple[str, int], HorizonScore] = {}
    for h in [h for result in every for h in result.horizons]:
        if (k := horizons.get((h.model, h.year))) is not None:
            h = replace(h, error_percent=k.error_percent + h.error_percent, n_targets=k.n_targets + h.n_targets)
        horizons[h.model, h.year] = h
    return BacktestResult(
        _grouped(s for result in every for s in result.scores), _grouped(s for result in every for s in result.tasks),
        tuple(horizons.values()), seconds,
    )  # fmt: skip


def published_table(
    result: BacktestResult, *, cells: Mapping[tuple[str, str], str], years: Iterable[int] = (2016, 2017, 2018)
) -> tuple[TableRow, ...]:
    """The layout of the published Table 1 with our numbers beside the published range.

    Parameters
    ----------
    result : BacktestResult
    cells : mapping of (layout, strategy) to model name
        For example ``{("Model-S", "R"): "lstm-s-r-leak"}``; a cell that is not given or was not scored is NaN.
    years : iterable of int

    Notes
    -----
    The published numbers are means over 360 crystals, made with scalers fitted to each test year. They are quoted as
    the range over the published models.
    """
    known = {(s.model, s.mode, s.year): s for s in result.scores}
    rows = []
    for layout in ("Model-S", "Model-R"):
        for strategy in ("R", "M", "T"):
            model = cells.get((layout, strategy), "")
            for mode in MODES:
                for year in years:
                    score = known.get((model, mode, year))
                    published = _PUBLISHED_PERCENT.get((mode, year), (math.nan, math.nan))
                    ours, n = (math.nan, 0) if score is None else (score.mean_mape_percent, score.xtal_id.size)
                    rows.append(TableRow(layout, strategy, mode, year, published, model, ours, n))
    return tuple(rows)


def is_leaky(name: str) -> bool:
    """Whether a model of this name is marked as one that looks at the test year."""
    return name.endswith(LEAK_SUFFIX)


_PER_CRYSTAL = (
    "xtal_id", "n_windows", "n_targets", "mape_percent", "persistence_percent",
    "skill", "skill_low", "skill_high", "coverage68", "coverage95",
)  # fmt: skip


def join_scores(scores: Sequence[Score]) -> Score:
    """Scores of one model, mode and year over different crystals as one, crystals in order.

    Raises
    ------
    ValueError
        A crystal scored twice.
    """
    xtal_id = np.concatenate([s.xtal_id for s in scores])
    order = np.argsort(xtal_id, kind="stable")
    if (np.diff(xtal_id[order]) == 0).any():
        raise ValueError(f"crystal {xtal_id[order][:-1][np.diff(xtal_id[order]) == 0][0]} was scored twice; score each crystal once")
    per_crystal = {name: np.concatenate([getattr(s, name) for s in scores])[order] for name in _PER_CRYSTAL}
    return Score(
        scores[0].model, scores[0].mode, scores[0].year, scores[0].is_in_sample, **per_crystal,
        boot_weight=sum((s.boot_weight for s in scores), np.zeros(scores[0].boot_weight.size)),
        boot_mape=sum((s.boot_mape for s in scores), np.zeros(scores[0].boot_weight.size)),
        boot_persistence=sum((s.boot_persistence for s in scores), np.zeros(scores[0].boot_weight.size)),
        forecast_s=sum(s.forecast_s for s in scores),
    )  # fmt: skip


def _grouped(scores: Iterable[Score]) -> tuple[Score, ...]:
    groups: dict[tuple[str, str, int], list[Score]] = {}
    for s in scores:
        groups.setdefault((s.model, s.mode, s.year), []).append(s)
    return tuple(join_scores(group) for group in groups.values())
