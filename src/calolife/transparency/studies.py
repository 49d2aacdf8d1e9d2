"""Comparisons that fit and score: models side by side, the published table, its sequence-length scan."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from calolife.transparency.backtest import HORIZONS_S, SHORT_HORIZON_S, TASKS, backtest, known_before, mape_percent, window_count
from calolife.transparency.forecasters import DEFAULT_MODEL, MODELS, fit_model
from calolife.transparency.history import Block, Forecast, IntArray, TransparencyHistory
from calolife.transparency.hybrid import fit_hybrid
from calolife.transparency.scores import LEAK_SUFFIX, MODES, BacktestResult, HorizonScore, TableRow, merge_results, published_table

__all__ = ["Comparison", "Network", "Rescaled", "compare_models", "fit_named", "resolve_name", "scan_lengths", "score_published_table"]

_WINDOW = 24
# to a week ahead the window model is used, beyond it the free-run one; each scores what it is used for
_TASKS = {"window": tuple(t for t in TASKS if t != "year-to-year"), "free-run": ("year-to-year",)}
_HORIZONS_S = {
    "window": tuple(h for h in HORIZONS_S if h <= SHORT_HORIZON_S),
    "free-run": tuple(h for h in HORIZONS_S if h > SHORT_HORIZON_S),
}
_STRATEGIES = {"R": "recursive", "M": "mixed", "T": "teacher"}

Tell = Callable[[str, float, float], None]
"""Told (what, done, total) while a study runs."""


class _Forecaster(Protocol):
    @property
    def train_years(self) -> tuple[int, ...]: ...
    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast: ...


@dataclass(frozen=True)
class Network:
    """Settings of the `lstm`; see `fit_lstm`."""

    hidden: int = 64
    epochs: int = 200
    strategy: str = "recursive"
    teacher_forcing: float = 0.5
    encoder_length: int = 24
    decoder_length: int = 24
    stride: int = 24
    features: tuple[str, ...] = ()
    patience: int | None = 30
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Rescaled:
    """Any forecaster, its forecasts shifted and stretched to the mean and spread of the readings they are compared with.

    For comparison with published figures only: it knows the answer's average and spread over everything it is asked for at
    once, in window mode and free run the whole year. Over less than a year that would be the answer itself, so no task
    and no horizon is scored with it.

    Parameters
    ----------
    model : forecaster
    """

    model: _Forecaster

    @property
    def train_years(self) -> tuple[int, ...]:
        return self.model.train_years

    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast:
        """The model's forecast, rescaled crystal by crystal; `block` must hold the true readings."""
        made = self.model.forecast(block, origins=origins, horizon=horizon)
        truth = block.transparency[:, made.row]
        mean, mean_true = (a.mean(axis=(1, 2), keepdims=True) for a in (made.transparency, truth))
        std, std_true = (a.std(axis=(1, 2), keepdims=True) for a in (made.transparency, truth))
        stretch = np.divide(std_true, std, out=np.ones_like(std), where=std > 0)
        return replace(made, model=made.model + LEAK_SUFFIX, transparency=mean_true + (made.transparency - mean) * stretch)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scores of several models, and the models.

    Parameters
    ----------
    result : BacktestResult
    models : mapping of (row name, mode) to forecaster
    default : mapping of mode to model name
        What the row ``default`` is, in each mode.
    fit_s : mapping of (row name, mode) to float [s]
    """

    result: BacktestResult
    models: Mapping[tuple[str, str], _Forecaster]
    default: Mapping[str, str]
    fit_s: Mapping[tuple[str, str], float]

    def to_json_dict(self) -> dict[str, Any]:
        """As `BacktestResult.to_json_dict`, with ``default``; the fit times are those of each mode's own model."""
        document = self.result.to_json_dict()
        for row in document["mean"]:
            row["fit_s"] = self.fit_s[row["model"].removesuffix("-last24"), row["mode"]]
        return document | {"default": dict(self.default)}


def resolve_name(name: str, *, mode: str) -> str:
    """The model a name stands for in a mode: itself, or the default of the mode.

    Raises
    ------
    ValueError
        Not a model.
    """
    if name == "default":
        return DEFAULT_MODEL[mode]
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not one of default, {', '.join(MODELS)}")
    return name


def fit_named(
    name: str,
    history: TransparencyHistory,
    *,
    seed: int,
    network: Network | None = None,
    checkpoint_dir: Path | None = None,
    tell: Tell | None = None,
) -> Any:
    """Fit the model of this name.

    Parameters
    ----------
    name : str
    history : TransparencyHistory
        Training span.
    seed : int
    network : Network, optional
        For ``lstm``; its defaults when left out.
    checkpoint_dir : path, optional
        Where a training that was stopped is taken up.
    tell : function, optional

    Returns
    -------
    forecaster
    """
    if name == "hybrid":
        if tell is not None:
            tell("fit hybrid", 0, 1)
        return fit_hybrid(
            history, seed=seed, checkpoint_dir=checkpoint_dir,
            progress=None if tell is None else lambda done, n: tell("fit hybrid", done, n),
        )  # fmt: skip
    if name != "lstm":
        if tell is not None:
            tell(f"fit {name}", 0, 1)
        made = fit_model(name, history, seed=seed)
        if tell is not None:
            tell(f"fit {name}", 1, 1)
        return made
    from calolife.transparency.seq2seq import fit_lstm  # loads torch

    net = network or Network()
    return fit_lstm(
        history, seed=seed, hidden=net.hidden, epochs=net.epochs, strategy=net.strategy, teacher_forcing=net.teacher_forcing,
        encoder_length=net.encoder_length, decoder_length=net.decoder_length, stride=net.stride, features=net.features,
        patience=net.patience, device=net.device, checkpoint_dir=checkpoint_dir,
        progress=None if tell is None else lambda e: tell(f"fit {name}", e.number, e.n_epochs),
    )  # fmt: skip


def compare_models(
    names: Sequence[str],
    history: TransparencyHistory,
    *,
    train_years: Iterable[int],
    test_years: Iterable[int],
    modes: Sequence[str],
    seed: int = 0,
    network: Network | None = None,
    published_leak: bool = False,
    checkpoint_dir: Path | None = None,
    tell: Tell | None = None,
) -> Comparison:
    """Fit models on some years and score them on others.

    Parameters
    ----------
    names : sequence of str
        Models, or ``default``: the default of each mode.
    history : TransparencyHistory
    train_years, test_years : iterable of int
    modes : sequence of {"window", "free-run"}
    seed : int
    network : Network, optional
    published_leak : bool
        Add rows ``<name>-leak``: the ``lstm`` with the test year's scales, as published; any other model with its forecasts
        rescaled to the test year's mean and spread, in the two modes alone: no task, no horizon.
    checkpoint_dir : path, optional
        Fitted networks are kept here, one folder a model, and taken up after a kill.
    tell : function, optional

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        An unknown model, or what `backtest` refuses.

    Warns
    -----
    UserWarning
        Tested crystals that were not fitted, or a test year before the training years.

    Notes
    -----
    The window mode scores next fill, recovery and horizons up to 7 days; the free run year to year and the longer
    horizons. So ``default`` is, at each horizon and in each task, the model it would be used for.
    """
    wanted = {(name, mode): resolve_name(name, mode=mode) for name in dict.fromkeys(names) for mode in modes}
    test = tuple(test_years)
    history.select(years=test)  # refused before any model is fitted, not after
    training = history.select(years=train_years)
    strange = np.setdiff1d(history.select(years=test).xtal_ids, training.xtal_ids)
    if strange.size:
        some = ", ".join(map(str, strange[:3]))
        warnings.warn(f"{strange.size} tested crystals were not fitted ({some}): they are forecast as the mean of their ring", stacklevel=2)
    if min(test) < min(training.years):
        warnings.warn(f"{min(test)} lies before the training years: the state of the crystals then is not known", stacklevel=2)
    fitted: dict[str, _Forecaster] = {}
    took: dict[str, float] = {}
    for model in dict.fromkeys(wanted.values()):
        started = time.perf_counter()
        folder = None if checkpoint_dir is None else checkpoint_dir / model
        fitted[model] = fit_named(model, training, seed=seed, network=network, checkpoint_dir=folder, tell=tell)
        took[model] = time.perf_counter() - started
    leaky = {model: _leaky(model, made) for model, made in fitted.items() if published_leak and model != "persistence"}
    rows: dict[tuple[str, str], _Forecaster] = {}
    for (name, mode), model in wanted.items():
        rows[name, mode] = fitted[model]
        if model in leaky:
            rows[name + LEAK_SUFFIX, mode] = leaky[model]
    fit_s = {(name, mode): took[wanted[name.removesuffix(LEAK_SUFFIX), mode]] for name, mode in rows}
    parts = [
        _score_mode(mode, {name: row for (name, m), row in rows.items() if m == mode}, history, test_years=test, seed=seed, tell=tell)
        for mode in modes  # a row called "default" holds another model in each mode
    ]
    seconds: dict[str, float] = {}
    for (name, _), value in fit_s.items():
        seconds[name] = max(value, seconds.get(name, 0.0))
    joined = BacktestResult(
        tuple(s for p in parts for s in p.scores), tuple(t for p in parts for t in p.tasks), _joined_horizons(parts), seconds
    )  # fmt: skip
    return Comparison(joined, rows, {mode: DEFAULT_MODEL[mode] for mode in modes}, fit_s)


def _score_mode(
    mode: str, rows: Mapping[str, _Forecaster], history: TransparencyHistory, *, test_years: Sequence[int], seed: int, tell: Tell | None
) -> BacktestResult:
    """Scores of one mode, each model once: a second name of it gets a copy of its rows."""
    named: dict[int, list[str]] = {}
    for name, row in rows.items():
        named.setdefault(id(row), []).append(name)
    scores, tasks, horizons = [], [], []
    for names in named.values():
        first, row = names[0], rows[names[0]]
        whole_years_only = isinstance(row, Rescaled)
        made = backtest(
            {first: row}, history, test_years=test_years, modes=[mode], tasks=() if whole_years_only else _TASKS[mode],
            horizons_s=() if whole_years_only else _HORIZONS_S[mode], allow_leak=first.endswith(LEAK_SUFFIX), seed=seed,
            progress=None if tell is None else lambda what: tell(f"score {what}", 0, 1),
        )  # fmt: skip
        for name in names:
            scores += [replace(s, model=name + s.model.removeprefix(first)) for s in made.scores]
            tasks += [replace(t, model=name) for t in made.tasks]
            horizons += [replace(h, model=name) for h in made.horizons]
    order = {name: k for k, name in enumerate(rows)}
    scores.sort(key=lambda s: (s.year, order[s.model.removesuffix("-last24")]))
    tasks.sort(key=lambda t: (t.year, order[t.model]))
    horizons.sort(key=lambda h: (h.year, order[h.model]))
    return BacktestResult(tuple(scores), tuple(tasks), tuple(horizons))


def _joined_horizons(results: Sequence[BacktestResult]) -> tuple[HorizonScore, ...]:
    """One score per model and year, its horizons from all results."""
    found: dict[tuple[str, int], list[HorizonScore]] = {}
    for h in (h for r in results for h in r.horizons):
        found.setdefault((h.model, h.year), []).append(h)
    joined = []
    for (model, year), parts in found.items():
        horizon_s, error, n = (np.concatenate(a) for a in zip(*((p.horizon_s, p.error_percent, p.n_targets) for p in parts), strict=True))
        order = np.argsort(horizon_s)
        joined.append(HorizonScore(model, year, horizon_s[order], error[order], n[order]))
    return tuple(joined)


def _leaky(name: str, model: Any) -> _Forecaster:
    if name != "lstm":
        return Rescaled(model)
    from calolife.transparency.seq2seq import LeakyLstm

    return LeakyLstm(model)


def score_published_table(
    history: TransparencyHistory,
    *,
    train_years: Iterable[int],
    years: Iterable[int],
    network: Network,
    seed: int = 0,
    tell: Tell | None = None,
) -> tuple[tuple[TableRow, ...], BacktestResult]:
    """The published Table 1, with networks trained here beside it, leak and all, and our default model.

    Parameters
    ----------
    history : TransparencyHistory
    train_years, years : iterable of int
    network : Network
        Size and length of training; its strategy is replaced by each of the three.
    seed : int
    tell : function, optional

    Returns
    -------
    tuple of TableRow, BacktestResult
        The rows hold the leaky scores, as published; the result has the honest ones and the default's too.

    Raises
    ------
    ValueError
        No crystal was read in every year.

    Warns
    -----
    UserWarning
        Crystals that lack a year are left out of all rows.

    Notes
    -----
    Model-S is one network per crystal, Model-R one network for all crystals given, which need not be a full ring.
    Fit seconds of Model-S are the sum over its networks, those of ``default`` the sum over the modes' models.
    """
    wanted, fitted_years = tuple(years), tuple(train_years)
    history = _read_every_year(history.select(years={*wanted, *fitted_years}))
    training = history.select(years=fitted_years)
    results, cells = [], {}
    n_done, n_all = 0, len(_STRATEGIES) * (1 + training.xtal_ids.size)

    def score(models: Mapping[str, _Forecaster], part: TransparencyHistory) -> BacktestResult:
        return backtest(
            models, part, test_years=wanted, with_last24=False, tasks=(), horizons_s=(), allow_leak=True, seed=seed
        )  # fmt: skip

    for letter, strategy in _STRATEGIES.items():
        settings = replace(network, strategy=strategy)
        for layout in ("s", "r"):
            name = f"lstm-{layout}-{letter.lower()}"
            cells["Model-" + layout.upper(), letter] = name + LEAK_SUFFIX
            groups = [[int(x)] for x in training.xtal_ids] if layout == "s" else [training.xtal_ids.tolist()]
            made, seconds = [], 0.0
            for ids in groups:
                if tell is not None:
                    tell("networks", n_done, n_all)
                started = time.perf_counter()
                model = fit_named("lstm", training.select(xtal_ids=ids), seed=seed, network=settings)
                seconds += time.perf_counter() - started
                made.append(score({name: model, name + LEAK_SUFFIX: _leaky("lstm", model)}, history.select(xtal_ids=ids)))
                n_done += 1
            results.append(replace(merge_results(made), fit_seconds={name: seconds, name + LEAK_SUFFIX: seconds}))
    ours = compare_models(["default"], history, train_years=training.years, test_years=wanted, modes=MODES, seed=seed)
    own = {ours.default[mode]: ours.fit_s["default", mode] for mode in MODES}
    results.append(replace(ours.result, fit_seconds={"default": sum(own.values())}))
    scores = tuple(s for r in results for s in r.scores)
    joined = BacktestResult(scores, fit_seconds={name: value for r in results for name, value in r.fit_seconds.items()})
    return published_table(joined, cells=cells, years=wanted), joined


def _read_every_year(history: TransparencyHistory) -> TransparencyHistory:
    """The crystals that every year of the history has."""
    every = history.xtal_ids
    common = every
    for year in history.years:
        common = np.intersect1d(common, history.select(years=[year]).xtal_ids)
    years = ", ".join(map(str, history.years))
    if not common.size:
        raise ValueError(f"none of {every.size} crystals was read in each of {years}; choose other years or crystals")
    if lost := np.setdiff1d(every, common).tolist():
        named = ", ".join(map(str, lost[:4])) + (f" ... {lost[-1]} ({len(lost)} in all)" if len(lost) > 4 else "")
        warnings.warn(f"left out, not read in each of {years}: crystal {named}", stacklevel=3)
    return history.select(xtal_ids=common)


def scan_lengths(
    history: TransparencyHistory,
    lengths: Sequence[int],
    *,
    train_years: Iterable[int],
    test_years: Iterable[int],
    network: Network,
    seed: int = 0,
    tell: Tell | None = None,
) -> dict[str, dict[int, float]]:
    """Window error of the network against the length of its sequences, encoded and decoded.

    Parameters
    ----------
    history : TransparencyHistory
    lengths : sequence of int
        Readings, L_E = L_D = stride.
    train_years, test_years : iterable of int
    network : Network
    seed : int
    tell : function, optional

    Returns
    -------
    dict of series to {length: mean MAPE [%]}
        One series per test year. Windows of 24 readings as everywhere, but from the longest length on, so that every
        length forecasts the same readings.

    Raises
    ------
    ValueError
        A length below 2, or a year too short for the longest.
    """
    if not lengths or min(lengths) < 2:
        raise ValueError(f"lengths {', '.join(map(str, lengths)) or '(none)'}: give two readings or more, such as 6,12,24")
    training = history.select(years=train_years)
    tested = history.select(years=test_years)
    first = _WINDOW * -(-max(*lengths, _WINDOW) // _WINDOW)
    found: dict[str, dict[int, float]] = {str(year): {} for year in tested.years}
    for k, length in enumerate(lengths):
        if tell is not None:
            tell("lengths", k, len(lengths))
        settings = replace(network, encoder_length=length, decoder_length=length, stride=length)
        model = fit_named("lstm", training, seed=seed, network=settings)
        for year in tested.years:
            values = []
            for block in tested.of_year(year):
                origins = _WINDOW * np.arange(1, window_count(block.n_readings) + 1)
                origins = origins[origins >= first]
                if not origins.size:
                    raise ValueError(f"{block.n_readings} readings in {year} are too few for a length of {max(lengths)}; leave it out")
                made = model.forecast(known_before(block, int(origins[-1])), origins=origins, horizon=_WINDOW)
                truth = block.transparency[:, made.row]
                values += [mape_percent(made.transparency[c], truth[c]) for c in range(block.n_crystals)]
            found[str(year)][length] = float(np.mean(values))
    return found
