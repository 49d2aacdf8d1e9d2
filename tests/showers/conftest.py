"""A small stack, a crystal matrix, random showers in them, and the ready Geant4 samples where they are."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Layer, LayeredCalorimeter, Readout
from calolife.detector.materials import material
from calolife.showers.events import Showers


@pytest.fixture(scope="session")
def small_stack() -> LayeredCalorimeter:
    """Four layers of 6 x 6 cells."""
    layers = Layer(material("G4_Cu"), 20.0), Layer(material("G4_POLYSTYRENE"), 5.0, is_active=True, cells=(6, 6))
    return LayeredCalorimeter("small", (), 180.0, 180.0).add_period(4, *layers)


@pytest.fixture(scope="session")
def crystals() -> CrystalCalorimeter:
    return CrystalCalorimeter("matrix", material("G4_PbWO4"), (1, 2, 3, 4, 5), 5, readout=Readout(noise_mev=40.0))


@pytest.fixture(scope="session")
def make_showers() -> Callable[..., Showers]:
    """``make_showers(detector, n, seed=...)``: uniform cells and exponential energies; not physics, but every column is filled."""
    return toy_showers


@pytest.fixture(scope="session")
def pions(small_stack: LayeredCalorimeter) -> Showers:
    """500 made-up showers of about 12 hits."""
    return toy_showers(small_stack, 500, seed=1)


def toy_showers(detector: LayeredCalorimeter | CrystalCalorimeter, n: int, *, seed: int, n_hits: int = 12) -> Showers:
    rng = np.random.default_rng(seed)
    shower = np.repeat(np.arange(n), rng.poisson(n_hits, n))
    direction = rng.standard_normal((n, 3)) + np.array([0.0, 0.0, 5.0])
    return Showers.from_hits(
        detector,
        shower,
        rng.integers(0, detector.n_cells, shower.size),
        rng.exponential(2.0, shower.size),
        pdg_id=rng.choice([-211, 11], n),
        energy_gev=rng.uniform(1.0, 100.0, n),
        position_mm=np.column_stack([rng.normal(0.0, 30.0, (n, 2)), np.zeros(n)]),
        direction=direction / np.linalg.norm(direction, axis=1, keepdims=True),
        origin={"engine": "toy", "seed": seed},
        active_mev=rng.uniform(0.0, 100.0, n),
        leaked_mev=rng.uniform(0.0, 100.0, n),
    )


@pytest.fixture(scope="session")
def geant4_samples() -> Path:
    """The folder of ready Geant4 samples: pions_ref.h5 (cells) and stack_v2.h5 (layer sums)."""
    root = os.environ.get("CALOLIFE_DATA")
    if not root:
        pytest.skip("set CALOLIFE_DATA to a directory with geant4/pions_ref.h5; 'calolife showers simulate --engine geant4' makes the like")
    folder = Path(root) / "geant4"
    if not folder.is_dir():
        pytest.skip(f"CALOLIFE_DATA is {root} but has no geant4/ in it")
    return folder
