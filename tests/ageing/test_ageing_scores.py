"""Scores: closed forms, and which cells count."""

import json
import math

import numpy as np
import pytest

from calolife.ageing.coefficients import Ageing
from calolife.ageing.scores import AgeingScore, r_squared, score_ageing


def test_the_truth_itself_scores_best() -> None:
    truth = Ageing([0, 1, 2], [0.7, 0.8, 0.9])
    score = score_ageing(Ageing([0, 1, 2], [0.7, 0.8, 0.9], [0.01, 0.01, 0.01]), truth)
    assert score == AgeingScore(0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 3)


def test_errors_and_bias_follow_their_definitions() -> None:
    score = score_ageing(Ageing([0, 1], [0.72, 0.79]), Ageing([0, 1], [0.7, 0.8]))
    assert score.mae == pytest.approx(0.015)
    assert score.bias == pytest.approx(0.005)
    assert score.r2 == pytest.approx(1 - (0.02**2 + 0.01**2) / (2 * 0.05**2))


def test_the_best_constant_has_no_r2() -> None:
    assert score_ageing(Ageing([0, 1, 2], [0.8] * 3), Ageing([0, 1, 2], [0.7, 0.8, 0.9])).r2 == pytest.approx(0, abs=1e-12)


def test_intervals_count_at_one_and_at_1_96_sigma() -> None:
    truth = Ageing(np.arange(4), np.full(4, 0.8))
    found = Ageing(np.arange(4), 0.8 + 0.01 * np.array([0.99, 1.5, -1.95, 2.0]), np.full(4, 0.01))
    score = score_ageing(found, truth)
    assert (score.coverage68, score.coverage95) == (0.25, 0.75)
    assert score.pull_mean == pytest.approx((0.99 + 1.5 - 1.95 + 2) / 4)


def test_honest_gaussian_errors_cover_as_they_should() -> None:
    rng = np.random.default_rng(1)
    n = 20_000
    r, sigma = rng.uniform(0.7, 1, n), rng.uniform(0.01, 0.03, n)
    score = score_ageing(Ageing(np.arange(n), r + sigma * rng.standard_normal(n), sigma), Ageing(np.arange(n), r))
    # four binomial errors
    assert score.coverage68 == pytest.approx(0.6827, abs=4 * math.sqrt(0.6827 * 0.3173 / n))
    assert score.coverage95 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / n))
    assert score.pull_mean == pytest.approx(0, abs=4 / math.sqrt(n))
    assert score.pull_width == pytest.approx(1, abs=4 / math.sqrt(2 * n))


@pytest.mark.parametrize("status", ["dead", "hot", "masked"])
def test_cells_that_were_not_estimated_do_not_count(status: str) -> None:
    found = Ageing([0, 1, 2], [0.7, 1.0, 0.9], [0.01] * 3, ["measured", status, "prior-dominated"])
    score = score_ageing(found, Ageing([0, 1, 2], [0.7, 0.5, 0.9]))
    assert (score.n, score.mae) == (2, 0.0)


def test_cells_the_truth_does_not_list_do_not_count() -> None:
    score = score_ageing(Ageing([2, 5, 9], [0.7, 0.8, 0.9]), Ageing([0, 5, 9, 11], [0.1, 0.8, 0.8, 0.1]))
    assert (score.n, score.mae) == (2, pytest.approx(0.05))


def test_own_scores_the_cells_before_the_prior() -> None:
    found = Ageing([0, 1], [0.7, 0.8], [0.01, 0.01], own_fraction=[0.74, 0.84], own_uncertainty=[0.1, 0.1])
    truth = Ageing([0, 1], [0.7, 0.8])
    assert score_ageing(found, truth).mae == pytest.approx(0.0)
    own = score_ageing(found, truth, own=True)
    assert own.mae == pytest.approx(0.04)
    assert own.pull_mean == pytest.approx(0.4)


def test_what_has_no_meaning_is_null_in_json() -> None:
    score = score_ageing(Ageing([0, 1], [0.7, 0.8], [np.nan, np.nan]), Ageing([0, 1], [0.9, 0.9]))
    told = json.loads(json.dumps(score.to_json_dict(), allow_nan=False))
    assert [name for name, value in told.items() if value is None] == ["r2", "coverage68", "coverage95", "pull_mean", "pull_width"]
    assert told["n"] == 2


def test_cells_without_an_uncertainty_count_for_the_error_alone() -> None:
    score = score_ageing(Ageing([0, 1], [0.7, 0.9], [np.nan, 0.2]), Ageing([0, 1], [0.8, 0.8]))
    assert (score.n, score.coverage68) == (2, 1.0)
    assert score.mae == pytest.approx(0.1)


def test_cells_with_the_same_truth_have_no_r2() -> None:
    truth = Ageing(np.arange(7), np.full(7, 0.893))  # their mean is off by a rounding error
    assert math.isnan(score_ageing(Ageing(np.arange(7), np.full(7, 0.9)), truth).r2)


@pytest.mark.parametrize("true", [np.full(7, 0.893), np.array([0.9]), np.zeros(0)])
def test_r2_of_a_truth_without_spread_has_no_meaning(true: np.ndarray) -> None:
    assert math.isnan(r_squared(true + 0.01, true))


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of the 1 cells"):
        score_ageing(Ageing([0], [0.7]), Ageing([1], [0.7]))
    with pytest.raises(ValueError, match="none of the 1 cells"):
        score_ageing(Ageing([0], [0.7], status=["dead"]), Ageing([0], [0.7]))


def test_another_detector_is_an_error() -> None:
    with pytest.raises(ValueError, match="give those of one"):
        score_ageing(Ageing([0], [0.7], detector_digest="a" * 64), Ageing([0], [0.7], detector_digest="b" * 64))
