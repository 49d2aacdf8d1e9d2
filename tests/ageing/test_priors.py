"""Empirical Bayes on the dose: it helps where a law holds, and lets go where none does."""

import numpy as np
import pytest
from numpy.typing import NDArray

from calolife.ageing.priors import shrink_to_dose

FloatArray = NDArray[np.float64]
DOSE = np.linspace(0.15, 1, 300) ** 2
LAWS = {
    "none": 0.0 * DOSE - 0.03,
    "linear": np.log(1 - 0.107 * DOSE),
    "root": np.log(1 - 0.2 * np.sqrt(DOSE)),
    "saturating": np.log(1 - 0.2 * (1 - np.exp(-3 * DOSE)) / (1 - np.exp(-3))),
    "heavy": np.log(1 - 0.6 * DOSE),
}


def found_and_true(law: FloatArray, scatter: float, error: float, seed: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    truth = law + scatter * rng.standard_normal(DOSE.size)
    own = truth + error * rng.standard_normal(DOSE.size)
    posterior = shrink_to_dose(own, np.full(DOSE.size, error**2), {"the reference": DOSE})
    return own, posterior.log_fraction, np.sqrt(posterior.variance), truth


@pytest.mark.parametrize("law", LAWS)
def test_a_law_that_holds_leaves_a_quarter_of_the_error(law: str) -> None:
    ratio = []
    for seed in range(5):
        own, mean, _, truth = found_and_true(LAWS[law], 0.0, 0.016, seed)
        ratio.append(np.abs(mean - truth).mean() / np.abs(own - truth).mean())
    print(law, np.round(ratio, 3))
    assert np.mean(ratio) < 0.25


@pytest.mark.parametrize("scatter", [0.03, 0.1, 0.3, 0.8])
def test_cells_that_scatter_keep_their_own_estimate(scatter: float) -> None:
    ratio = []
    for seed in range(5):
        own, mean, _, truth = found_and_true(LAWS["linear"], scatter, 0.016, seed)
        ratio.append(np.abs(mean - truth).mean() / np.abs(own - truth).mean())
    assert np.mean(ratio) < 1.05


@pytest.mark.parametrize("scatter", [0.005, 0.01, 0.02, 0.05])
def test_intervals_hold_what_they_say_where_cells_scatter(scatter: float) -> None:
    pull = []
    for seed in range(20):
        _, mean, sigma, truth = found_and_true(LAWS["linear"], scatter, 0.016, seed)
        pull.append((mean - truth) / sigma)
    inside = np.mean(np.abs(np.concatenate(pull)) < 1)
    # 6,000 cells: 0.006; what they share in each of 20 samples adds a few hundredths
    assert 0.63 < inside < 0.75


def test_strange_cells_keep_their_own_estimate() -> None:
    rng = np.random.default_rng(1)
    truth = LAWS["linear"].copy()
    truth[[10, 150, 290]] = np.log(0.6)
    own = truth + 0.016 * rng.standard_normal(DOSE.size)
    posterior = shrink_to_dose(own, np.full(DOSE.size, 0.016**2), {"the reference": DOSE})
    assert np.abs(posterior.log_fraction - own)[[10, 150, 290]].max() < 0.005
    others = np.delete(np.arange(DOSE.size), [10, 150, 290])
    assert np.abs(posterior.log_fraction - truth)[others].mean() < 0.3 * np.abs(own - truth)[others].mean()


def test_the_map_that_fits_is_taken() -> None:
    rng = np.random.default_rng(2)
    own = LAWS["heavy"] + 0.01 * rng.standard_normal(DOSE.size)
    posterior = shrink_to_dose(own, np.full(DOSE.size, 1e-4), {"noise": rng.random(DOSE.size), "the reference": DOSE})
    assert "in the dose of the reference" in posterior.law


def test_a_cell_without_hits_takes_the_law() -> None:
    variance = np.full(DOSE.size, 1e-4)
    variance[::2] = np.inf
    posterior = shrink_to_dose(np.where(np.isfinite(variance), LAWS["linear"], 99.0), variance, {"the reference": DOSE})
    assert np.abs(posterior.log_fraction - LAWS["linear"]).max() < 0.01
    assert (posterior.variance > 0).all()


def test_nothing_measured_is_nothing_known() -> None:
    posterior = shrink_to_dose(np.zeros(3), np.full(3, np.inf), {"the reference": np.array([0.1, 0.5, 1.0])})
    assert posterior.log_fraction.tolist() == [0, 0, 0]
    assert (posterior.variance >= 1).all()
