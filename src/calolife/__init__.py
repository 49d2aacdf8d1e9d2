"""calolife: a calorimeter is designed, showered, used, aged, recalibrated and forecast.

The names below load on first use: importing the package loads none of the heavy libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calolife.detector.crystals import CrystalCalorimeter
    from calolife.detector.layers import Layer, LayeredCalorimeter, Readout
    from calolife.detector.limits import check_limits
    from calolife.detector.materials import Material, material
    from calolife.detector.presets import load_detector
    from calolife.errors import FileFormatError, MissingExtraError, NotConvergedError
    from calolife.runs import new_run, read_run
    from calolife.showers.digitise import digitise
    from calolife.showers.events import Showers
    from calolife.showers.files import read_showers, write_showers
    from calolife.simulation.engines import simulate_showers
    from calolife.simulation.particles import Particles, sample_particles
    from calolife.storage import read_history, save_model
    from calolife.transparency.backtest import backtest
    from calolife.transparency.forecasters import fit_model, load_model
    from calolife.transparency.history import Block, Forecast, TransparencyHistory
    from calolife.transparency.synthetic import simulate_history

__all__ = [
    "Block",
    "CrystalCalorimeter",
    "FileFormatError",
    "Forecast",
    "Layer",
    "LayeredCalorimeter",
    "Material",
    "MissingExtraError",
    "NotConvergedError",
    "Particles",
    "Readout",
    "Showers",
    "TransparencyHistory",
    "backtest",
    "check_limits",
    "digitise",
    "fit_model",
    "load_detector",
    "load_model",
    "material",
    "new_run",
    "read_history",
    "read_run",
    "read_showers",
    "sample_particles",
    "save_model",
    "simulate_history",
    "simulate_showers",
    "write_showers",
]

_HOME = {
    "Block": "calolife.transparency.history",
    "CrystalCalorimeter": "calolife.detector.crystals",
    "FileFormatError": "calolife.errors",
    "Forecast": "calolife.transparency.history",
    "Layer": "calolife.detector.layers",
    "LayeredCalorimeter": "calolife.detector.layers",
    "Material": "calolife.detector.materials",
    "MissingExtraError": "calolife.errors",
    "NotConvergedError": "calolife.errors",
    "Particles": "calolife.simulation.particles",
    "Readout": "calolife.detector.layers",
    "Showers": "calolife.showers.events",
    "TransparencyHistory": "calolife.transparency.history",
    "backtest": "calolife.transparency.backtest",
    "check_limits": "calolife.detector.limits",
    "digitise": "calolife.showers.digitise",
    "fit_model": "calolife.transparency.forecasters",
    "load_detector": "calolife.detector.presets",
    "load_model": "calolife.transparency.forecasters",
    "material": "calolife.detector.materials",
    "new_run": "calolife.runs",
    "read_history": "calolife.storage",
    "read_run": "calolife.runs",
    "read_showers": "calolife.showers.files",
    "sample_particles": "calolife.simulation.particles",
    "save_model": "calolife.storage",
    "simulate_history": "calolife.transparency.synthetic",
    "simulate_showers": "calolife.simulation.engines",
    "write_showers": "calolife.showers.files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'calolife' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
