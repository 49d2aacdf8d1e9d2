"""calolife: a calorimeter is designed, showered, used, aged, recalibrated and forecast.

The names below load on first use: importing the package loads none of the heavy libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calolife.errors import FileFormatError, MissingExtraError, NotConvergedError
    from calolife.runs import new_run, read_run
    from calolife.storage import read_history, save_model
    from calolife.transparency.backtest import backtest
    from calolife.transparency.forecasters import fit_model, load_model
    from calolife.transparency.history import Block, Forecast, TransparencyHistory
    from calolife.transparency.synthetic import simulate_history

__all__ = [
    "Block",
    "FileFormatError",
    "Forecast",
    "MissingExtraError",
    "NotConvergedError",
    "TransparencyHistory",
    "backtest",
    "fit_model",
    "load_model",
    "new_run",
    "read_history",
    "read_run",
    "save_model",
    "simulate_history",
]

_HOME = {
    "Block": "calolife.transparency.history",
    "FileFormatError": "calolife.errors",
    "Forecast": "calolife.transparency.history",
    "MissingExtraError": "calolife.errors",
    "NotConvergedError": "calolife.errors",
    "TransparencyHistory": "calolife.transparency.history",
    "backtest": "calolife.transparency.backtest",
    "fit_model": "calolife.transparency.forecasters",
    "load_model": "calolife.transparency.forecasters",
    "new_run": "calolife.runs",
    "read_history": "calolife.storage",
    "read_run": "calolife.runs",
    "save_model": "calolife.storage",
    "simulate_history": "calolife.transparency.synthetic",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'calolife' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
