"""The mean of trees and network: what it says of both, stored and read, on scale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_drn_model import SMALL, toy

from calolife.energy.blend import Blend, fit_blend
from calolife.energy.features import EnergySample
from calolife.energy.models import load_energy_model
from calolife.energy.resolution import shortest_half
from calolife.storage import save_model


@pytest.fixture(scope="module")
def sample() -> EnergySample:
    return toy(1500)


@pytest.fixture(scope="module")
def blend(sample: EnergySample) -> Blend:
    return fit_blend(sample, seed=3, **SMALL)


def test_the_energy_is_the_geometric_mean_of_both(sample: EnergySample, blend: Blend) -> None:
    one, other = (m.predict(sample).energy_gev for m in (blend.bdt, blend.drn))
    scale = np.exp(blend.scale.energy[1])
    assert scale.size == 1  # 150 objects left out: one bin
    assert_allclose(blend.predict(sample).energy_gev, scale * np.sqrt(one * other), rtol=1e-12)


def test_it_is_on_scale_for_the_objects_left_out(sample: EnergySample, blend: Blend) -> None:
    left_out = np.flatnonzero(np.isfinite(blend.left_out_gev))
    assert left_out.size == 150
    judged = sample.select(left_out)
    found = blend.predict(judged)
    assert_allclose(found.energy_gev, blend.left_out_gev[left_out], rtol=1e-6)
    assert np.median(found.energy_gev / judged.energy_gev) == pytest.approx(1.0, abs=1e-6)
    pull = np.sort((found.energy_gev - judged.energy_gev) / found.sigma_gev)
    assert shortest_half(pull[None])[0] == pytest.approx(1.0, abs=1e-6)


def test_both_leave_out_the_same_objects(sample: EnergySample, blend: Blend) -> None:
    assert_array_equal(np.isfinite(blend.bdt.left_out_gev), np.isfinite(blend.drn.left_out_gev))


def test_a_stored_blend_predicts_the_same(tmp_path: Path, sample: EnergySample, blend: Blend) -> None:
    save_model(blend, tmp_path)
    found = load_energy_model(tmp_path).predict(sample)
    assert_array_equal(found.energy_gev, blend.predict(sample).energy_gev)
    assert_array_equal(found.sigma_gev, blend.predict(sample).sigma_gev)


def test_the_truth_is_not_looked_at(sample: EnergySample, blend: Blend) -> None:
    other = replace(sample, energy_gev=sample.energy_gev[::-1])
    assert_array_equal(blend.predict(other).energy_gev, blend.predict(sample).energy_gev)


def test_another_detector_and_layers_are_refused(sample: EnergySample, blend: Blend) -> None:
    with pytest.raises(ValueError, match="the model was fitted on"):
        blend.predict(replace(sample, digest="f" * 64))
    with pytest.raises(ValueError, match="reads"):
        blend.predict(EnergySample(np.ones((40, 1)), np.ones(40), np.full(40, 22)))
