"""The response brought to 1 at every true energy, by a function that rises."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from calolife.energy.features import Prediction
from calolife.energy.response import ResponseCorrection, fit_response

EDGES = [1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 85.0]

RESPONSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear already": lambda e: e,
    "scale": lambda e: 0.02 * e,
    "power": lambda e: 0.8 * e**1.08,
    "saturating": lambda e: e / (1 + e / 400),
    "offset": lambda e: e + 0.3,
    "non-compensating": lambda e: e * (1 - 0.3 * np.maximum(e, 0.9) ** -0.15),
}


def smeared(response: Callable[[np.ndarray], np.ndarray], n: int, *, seed: int, stochastic: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.uniform(1.0, 100.0, n)
    seen = response(true * (1 + stochastic * rng.standard_normal(n) / np.sqrt(true)))
    return seen, true


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_a_known_response_is_undone_for_new_showers(response: Callable[[np.ndarray], np.ndarray]) -> None:
    correction = fit_response(*smeared(response, 5000, seed=1), seed=1)
    seen, true = smeared(response, 50000, seed=2)
    ratio = correction.apply(seen) / true
    for low, high in pairwise(EDGES):
        inside = (true >= low) & (true < high)
        error = 0.1 / np.sqrt(low) / np.sqrt(inside.sum() / 10)  # of the tenth of them that it was fitted on
        assert abs(ratio[inside].mean() - 1) < 0.003 + 3 * error, (low, high)


def test_the_lean_of_a_least_squares_energy_to_the_middle_is_undone() -> None:
    rng = np.random.default_rng(1)
    true = rng.uniform(1.0, 100.0, 20000)
    seen = true * (1 + 0.12 * rng.standard_normal(true.size))
    # the best energy in the mean of squares at each seen energy: right on average there, not at each true energy
    order = np.argsort(seen)
    best = np.empty(true.size)
    best[order] = np.repeat([true[b].mean() for b in np.split(order, 200)], 100)
    correction = fit_response(best, true)
    top = true > 90
    before, after = (best / true)[top].mean(), (correction.apply(best) / true)[top].mean()
    print("above 90 GeV", before, "->", after)
    assert before < 0.98
    assert abs(after - 1) < 0.01


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
@pytest.mark.parametrize("n", [100, 5000])
def test_the_correction_rises_everywhere(response: Callable[[np.ndarray], np.ndarray], n: int) -> None:
    correction = fit_response(*smeared(response, n, seed=3))
    energy = np.concatenate([np.linspace(-10.0, 0.0, 50), np.geomspace(1e-6, 1e5, 20000)])
    assert (np.diff(correction.apply(energy)) > 0).all()


def test_predictions_that_know_nothing_are_still_put_in_order() -> None:
    rng = np.random.default_rng(1)
    correction = fit_response(rng.uniform(1.0, 100.0, 500), rng.uniform(1.0, 100.0, 500))
    assert (np.diff(correction.apply(np.geomspace(0.1, 1000.0, 1000))) > 0).all()


def test_a_pure_scale_gives_back_a_pure_scale() -> None:
    true = np.random.default_rng(1).uniform(1.0, 100.0, 400)
    correction = fit_response(0.02 * true, true)
    energy = np.array([-1.0, 0.0, 1e-3, 0.7, 1.3, 500.0])
    np.testing.assert_allclose(correction.apply(energy), 50.0 * energy, rtol=1e-6)


def test_outside_the_energies_of_the_fit_the_ratio_stays() -> None:
    correction = fit_response(*smeared(RESPONSES["power"], 3000, seed=4))
    low, high = np.exp(correction.log_energy[[0, -1]])
    for edge, beyond in ((low, low / 7), (high, 3 * high)):
        assert correction.apply(beyond) / beyond == pytest.approx(correction.apply(edge) / edge, rel=1e-12)


def test_a_response_of_one_is_left_as_it_is() -> None:
    correction = fit_response(*smeared(RESPONSES["linear already"], 5000, seed=5))
    energy = np.geomspace(5.0, 85.0, 30)
    np.testing.assert_allclose(correction.apply(energy), energy, rtol=0.005)  # 3 x 10 %/sqrt(5 GeV)/sqrt(800 showers of an octave)


def test_corrected_energies_do_not_depend_on_their_company() -> None:
    seen, true = smeared(RESPONSES["power"], 1000, seed=6)
    correction = fit_response(seen, true)
    np.testing.assert_array_equal(correction.apply(seen)[::3], correction.apply(seen[::3]))
    assert float(correction.apply(seen[4])) == correction.apply(seen)[4]


def test_the_same_showers_and_seed_give_the_same_correction_and_it_is_stored_whole() -> None:
    seen, true = smeared(RESPONSES["saturating"], 1000, seed=7)
    one, two = fit_response(seen, true, seed=3), fit_response(seen, true, seed=3)
    arrays, meta = one.state()
    assert arrays["log_ratio"].tobytes() == two.log_ratio.tobytes()
    np.testing.assert_array_equal(ResponseCorrection.from_state(arrays, meta).apply(seen), two.apply(seen))


def test_a_few_showers_that_left_nothing_do_not_move_it() -> None:
    seen, true = smeared(RESPONSES["power"], 5000, seed=8)
    spoiled = seen.copy()
    spoiled[:5] = [-1.0, 0.0, 1e-9, 2.0, 2.0]
    energy = np.geomspace(5.0, 85.0, 30)
    np.testing.assert_allclose(fit_response(spoiled, true).apply(energy), fit_response(seen, true).apply(energy), rtol=0.01)


def test_sigma_is_stretched_as_the_energies_are() -> None:
    correction = fit_response(*smeared(RESPONSES["power"], 5000, seed=9))
    energy, sigma = np.array([3.0, 30.0, 80.0]), np.array([0.1, 0.2, 0.3])
    found = correction.apply_to(Prediction(energy, sigma))
    half = 0.5 * (correction.apply(energy + sigma) - correction.apply(energy - sigma))
    np.testing.assert_allclose(found.sigma_gev, half, rtol=0.02)
    assert correction.apply_to(Prediction(energy)).sigma_gev is None
    assert (correction.apply_to(Prediction(np.array([-1.0, 0.0]), np.array([0.1, 0.1]))).sigma_gev > 0).all()


GOOD = np.linspace(1.0, 100.0, 200)


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (GOOD[:99], GOOD[:99], "99 showers are too few"),
        (GOOD, GOOD[:-1], "one of each per shower"),
        (np.where(GOOD > 50, np.nan, GOOD), GOOD, "must be finite"),
        (GOOD, GOOD - 1.0, "finite and > 0"),
        (GOOD, np.full(200, 10.0), "one true energy"),
    ],
    ids=["few", "lengths", "NaN", "no energy", "one energy"],
)
def test_what_tells_no_response_is_refused(predicted: np.ndarray, true: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_response(predicted, true)


@pytest.mark.parametrize(
    ("knots", "ratios", "message"),
    [([0.0], [0.0], "two columns"), ([0.0, 0.0], [0.0, 0.0], "must be finite and rise"), ([0.0, 1.0], [0.0, -2.0], "falls somewhere")],
)
def test_a_correction_that_does_not_rise_is_refused(knots: list[float], ratios: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResponseCorrection(np.array(knots), np.array(ratios))


def test_an_energy_that_is_not_finite_is_not_corrected_in_silence() -> None:
    with pytest.raises(ValueError, match="not finite"):
        fit_response(GOOD, GOOD).apply([1.0, np.nan])
