"""Geant4 where its data are, and two small detectors that it showers quickly."""

import os

import pytest

from calolife.detector.layers import Layer, LayeredCalorimeter
from calolife.detector.materials import material


@pytest.fixture(scope="session")
def geant4_data() -> str:
    """The folder of Geant4's data."""
    pytest.importorskip("calzone", reason='calzone is not installed: pip install "calolife[geant4]"')
    folder = os.environ.get("GEANT4_DATA_DIR")
    if not folder:
        pytest.skip("set GEANT4_DATA_DIR to the folder of Geant4's data; python -m calzone download FOLDER gets them")
    return folder


@pytest.fixture(scope="session")
def block() -> LayeredCalorimeter:
    """Lead tungstate, 25 layers of 1 X0, all active."""
    return LayeredCalorimeter("block", (Layer(material("G4_PbWO4"), 8.9, is_active=True, cells=(60, 60)),) * 25, 300.0, 300.0)


@pytest.fixture(scope="session")
def sandwich() -> LayeredCalorimeter:
    """Iron and polystyrene, 20 periods."""
    period = (Layer(material("G4_Fe"), 20.0), Layer(material("G4_POLYSTYRENE"), 5.0, is_active=True, cells=(10, 10)))
    return LayeredCalorimeter("sandwich", period * 20, 500.0, 500.0)
