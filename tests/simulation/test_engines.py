"""One call for every engine."""

from __future__ import annotations

import numpy as np
import pytest

from calolife.detector.layers import Layer, LayeredCalorimeter
from calolife.detector.materials import material
from calolife.simulation.engines import ENGINES, simulate_showers
from calolife.simulation.particles import Particles, sample_particles
from calolife.simulation.production import Production, summarise


def one() -> Particles:
    return Particles([11], [1.0], [[0.0, 0.0]], [[0.0, 0.0, 1.0]])


def test_an_unknown_engine_is_refused(block: LayeredCalorimeter) -> None:
    with pytest.raises(ValueError, match="engine 'geant5' is not one of fast, geant4"):
        simulate_showers(block, one(), engine="geant5")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_detector_that_reads_nothing_out_is_refused(engine: str) -> None:
    absorber = LayeredCalorimeter("absorber", (Layer(material("G4_Fe"), 100.0),), 100.0, 100.0)
    with pytest.raises(ValueError, match="no active layer"):
        simulate_showers(absorber, one(), engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_keeps_the_truth(engine: str, block: LayeredCalorimeter, request: pytest.FixtureRequest) -> None:
    if engine == "geant4":
        request.getfixturevalue("geant4_data")
    beam = sample_particles(block, 6, particle="mix:e-=0.5,gamma=0.5", energy_gev=(1.0, 3.0), beam_spot_mm=20.0, angle_deg=(0, 5), seed=2)
    showers = simulate_showers(block, beam, engine=engine, seed=2)
    assert showers.kind == "simhit"
    assert showers.detector.digest == block.digest
    np.testing.assert_array_equal(showers.pdg_id, beam.pdg_id)
    np.testing.assert_array_equal(showers.energy_gev, beam.energy_gev)
    np.testing.assert_array_equal(showers.position_mm[:, :2], beam.position_mm)
    np.testing.assert_array_equal(showers.position_mm[:, 2], 0.0)
    np.testing.assert_array_equal(showers.direction, beam.direction)
    assert showers.origin["engine"] == engine
    assert showers.origin["seed"] == 2
    assert showers.origin["birks"] is True
    assert (showers.visible_mev > 0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_parts_hold_what_the_whole_holds(engine: str, block: LayeredCalorimeter, request: pytest.FixtureRequest) -> None:
    if engine == "geant4":
        request.getfixturevalue("geant4_data")
    sample = Production(block, 10, particle="e-", energy_gev=(1.0, 2.0), engine=engine, seed=4)
    whole, part = sample.simulate(0, 10), sample.simulate(7, 10)
    for name in ("cell", "energy_mev", "pdg_id", "energy_gev", "active_mev"):
        np.testing.assert_array_equal(getattr(whole.select(np.arange(7, 10)), name), getattr(part, name), err_msg=name)


def test_a_summary_is_that_of_the_whole_sample(block: LayeredCalorimeter) -> None:
    from calolife.showers.events import Showers

    rng = np.random.default_rng(1)
    n = 400
    visible = rng.normal(50.0, 5.0, n)
    showers = Showers.from_hits(block, np.arange(n), np.full(n, 3700), visible, pdg_id=11, energy_gev=np.full(n, 1.0))
    whole = summarise([showers])
    cut = summarise([showers.select(np.arange(100)), showers.select(np.arange(100, n))])
    assert whole.resolution[0] == pytest.approx(np.std(visible, ddof=1) / np.mean(visible), rel=1e-6)
    assert whole.resolution[1] == pytest.approx(whole.resolution[0] / np.sqrt(2 * n), rel=0.2)  # Gaussian, kurtosis 3 +- 0.24
    assert whole.visible_fraction[0] == pytest.approx(np.mean(visible) / 1000, rel=1e-6)
    assert whole.layer_mean_mev[1] == pytest.approx(np.mean(visible), rel=1e-6)
    assert whole.layer_error_mev[1] == pytest.approx(5.0 / np.sqrt(n), rel=0.2)
    assert cut.resolution == pytest.approx(whole.resolution)
    np.testing.assert_allclose(cut.layer_mean_mev, whole.layer_mean_mev)
    single = summarise([showers.select(np.arange(1))])
    assert np.isnan(single.resolution).all()
