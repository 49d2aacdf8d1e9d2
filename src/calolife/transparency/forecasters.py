"""The forecasters by name: fit one, load one, and which one a mode uses when none is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from calolife.storage import load_model_state
from calolife.transparency.baselines import Persistence, Ridge, fit_persistence, fit_ridge
from calolife.transparency.history import TransparencyHistory
from calolife.transparency.hybrid import Hybrid, fit_hybrid
from calolife.transparency.kinetics import Kinetics, fit_kinetics

__all__ = ["DEFAULT_MODEL", "MODELS", "fit_model", "load_model"]


def _fit_lstm(history: TransparencyHistory, *, seed: int = 0) -> Any:
    from calolife.transparency.seq2seq import fit_lstm  # loads torch

    return fit_lstm(history, seed=seed)


MODELS: dict[str, Callable[..., Any]] = {
    "persistence": fit_persistence,
    "ridge": fit_ridge,
    "kinetics": fit_kinetics,
    "lstm": _fit_lstm,
    "hybrid": fit_hybrid,
}

# what won inside the training span and on synthetic histories: benchmarks/transparency_default.py
DEFAULT_MODEL: dict[str, str] = {"window": "hybrid", "free-run": "kinetics"}


def fit_model(name: str, history: TransparencyHistory, *, seed: int = 0) -> Any:
    """Fit the model of this name to a training span.

    Parameters
    ----------
    name : {"persistence", "ridge", "kinetics", "lstm", "hybrid"}
    history : TransparencyHistory
        The training span, nothing else.
    seed : int

    Returns
    -------
    forecaster
        Has ``forecast(block, origins=..., horizon=...)`` and ``state()``.

    Raises
    ------
    ValueError
        An unknown name, or a span too short for the model.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not one of {', '.join(MODELS)}")
    return MODELS[name](history, seed=seed)


def load_model(directory: str | Path) -> Any:
    """The forecaster stored in a run directory.

    Raises
    ------
    FileFormatError
        No model there, or a damaged one.
    """
    name, arrays, meta = load_model_state(directory)
    if name == "lstm":
        from calolife.transparency.seq2seq import Lstm

        return Lstm.from_state(arrays, meta)
    kinds: dict[str, Any] = {"persistence": Persistence, "ridge": Ridge, "kinetics": Kinetics, "hybrid": Hybrid}
    if name not in kinds:
        raise ValueError(f"{directory} holds a model {name!r}; this version knows {', '.join(MODELS)}")
    return kinds[name].from_state(arrays, meta)
