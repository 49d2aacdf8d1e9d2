"""Kinetics extended ring by ring are the kinetics fitted at once."""

import numpy as np
import pytest

from calolife.transparency.backtest import window_count
from calolife.transparency.history import TransparencyHistory
from calolife.transparency.intervals import IntervalTable
from calolife.transparency.kinetics import Kinetics, occupancy
from calolife.transparency.ringwise import extend_kinetics, forecast_blocks
from calolife.transparency.statefilter import DEFAULT_SETTINGS
from calolife.transparency.synthetic import B_PER_IFB, TAU_D, simulate_history


def true_kinetics(history: TransparencyHistory) -> Kinetics:
    """The kinetics that made the synthetic crystals, with no crystal fitted: extending needs no more."""
    n = len(TAU_D)
    return Kinetics(
        train_years=history.years, interval=IntervalTable.unknown(), tau_d=np.array([TAU_D]), b_per_ifb=np.array([B_PER_IFB]),
        weight=np.ones(1), ring_ieta=np.array([66]), ring_scale=np.ones(1), xtal_id=np.array([54000]), ieta=np.array([66]),
        amplitude=np.zeros((1, 1, n)), end_occupancy=np.zeros((1, 1, n)), end_time_s=np.zeros(1), settings=DEFAULT_SETTINGS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def simulated():
    return simulate_history(n_crystals=40, n_years=1, seed=2, with_steps=False)


def test_amplitudes_of_the_truth_come_back(simulated):
    history, truth = simulated
    ring = history.select(ieta=[66])
    fitted = extend_kinetics(true_kinetics(ring), ring)
    at = np.searchsorted(truth.crystals.xtal_id, fitted.xtal_id)
    # damage at the last reading with beam, of the slow component alone: drift of .08 % over 3 d against 250 d of data
    # with damage of 6 % leaves a few parts in a hundred; degeneracy with the other components is included
    ratio = fitted.amplitude[0][:, 3] / truth.a_per_ifb[at][:, 3]
    np.testing.assert_allclose(ratio, 1.0, atol=0.1)


def test_a_crystal_does_not_depend_on_the_ring_it_is_extended_with(simulated):
    history, _ = simulated
    model = true_kinetics(history)
    whole = extend_kinetics(model, history)
    for ring in np.unique(whole.ieta):
        part = extend_kinetics(model, history.select(ieta=[int(ring)]))
        here = whole.ieta == ring
        np.testing.assert_array_equal(part.xtal_id, whole.xtal_id[here])
        np.testing.assert_allclose(part.amplitude, whole.amplitude[:, here], rtol=1e-6, atol=1e-10)  # sums in another order
        np.testing.assert_allclose(part.ring_scale, whole.ring_scale[whole.ring_ieta == ring], rtol=1e-9)


def test_stacked_amplitudes_are_those_of_each_strand(simulated):
    from calolife.transparency.kinetics import _amplitudes, _strands
    from calolife.transparency.ringwise import _stacked_amplitudes

    strands = [s.thinned(8, s.xtal_id.size) for s in _strands(simulated[0])]
    F = [occupancy(s.time_s, s.lumi_ifb, tau_d=TAU_D, b_per_ifb=B_PER_IFB) for s in strands]
    stacked = _stacked_amplitudes(np.stack(F), np.stack([s.log_r for s in strands]), [0])
    for one, f, s in zip(stacked, F, strands, strict=True):
        # the reweighting multiplies differences of summation order (1e-16 of sums of 700 terms) by up to the largest weight, 1e5
        np.testing.assert_allclose(one, _amplitudes(f, s)[0], rtol=1e-5, atol=1e-8)


def test_blocks_together_are_forecast_as_alone(simulated):
    history, _ = simulated
    model = extend_kinetics(true_kinetics(history), history)
    origins = [24 + 24 * np.arange(window_count(b.n_readings)) for b in history.blocks]
    together = forecast_blocks(model, history.blocks, origins=origins, horizon=24)
    for block, at, one in zip(history.blocks, origins, together, strict=True):
        alone = model.forecast(block, origins=at, horizon=24)
        np.testing.assert_allclose(one.transparency, alone.transparency, rtol=1e-12)
        np.testing.assert_allclose(one.half95, alone.half95, rtol=1e-9)


def test_a_block_of_two_rings_is_refused(simulated):
    from dataclasses import replace

    history, _ = simulated
    block = history.blocks[0]
    mixed = replace(block, ieta=np.r_[block.ieta[:-1], block.ieta[-1] + 1])
    with pytest.raises(ValueError, match="give one ring a block"):
        forecast_blocks(true_kinetics(history), [mixed], origins=[np.array([24])], horizon=24)
