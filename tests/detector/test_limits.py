"""Budget, room and advice."""

import math

import pytest

from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.limits import check_limits
from calolife.detector.presets import load_detector


@pytest.mark.parametrize("name", ["pb-scint-fe-v2", "triple-fe-v42"])
def test_published_designs_are_within_the_limits(name: str) -> None:
    assert check_limits(load_detector(name), budget_chf=50000, max_length_cm=200, size_cm=(50, 50)).violations == ()


def test_v1_breaks_the_budget_and_the_length() -> None:
    broken = check_limits(load_detector("pbwo4-fe-v1"), budget_chf=50000, max_length_cm=200, size_cm=(50, 50)).violations
    assert [text.split()[0] for text in broken] == ["cost", "length"]
    assert "200.34 cm" in broken[1]


def test_a_limit_that_is_met_exactly_is_not_broken() -> None:
    thirds = LayeredCalorimeter("thirds", (), 500, 500)
    for _ in range(30):
        thirds = thirds.add_layer("G4_Pb", 200 / 3, is_active=True)
    assert thirds.length_cm != 200 or thirds.z_mm[-1] != 2000  # the sum is not exact, and must not matter
    assert check_limits(thirds, max_length_cm=200).violations == ()
    assert check_limits(thirds, max_length_cm=199.999).violations != ()


@pytest.mark.parametrize(("size_cm", "axes"), [((50, 50), ""), ((49, 50), "x"), ((50, 49), "y"), ((1, 1), "xy")])
def test_size_is_checked_along_both_sides(size_cm: tuple[float, float], axes: str) -> None:
    broken = check_limits(load_detector("pb-scint-60"), size_cm=size_cm).violations
    assert [text.split(" along ")[1][0] for text in broken] == list(axes)


def test_thin_detectors_are_advised_not_refused() -> None:
    checked = check_limits(load_detector("pb-scint-60"), budget_chf=50000)
    assert checked.violations == ()
    assert [text.split(":")[0] for text in checked.advice] == ["electrons", "hadrons"]


def test_25_radiation_lengths_are_enough_advice() -> None:
    assert [text.split(":")[0] for text in check_limits(load_detector("pbwo4-block")).advice] == ["hadrons"]


def test_a_very_deep_detector_could_be_shorter() -> None:
    deep = LayeredCalorimeter("deep", (), 500, 500).add_layer("G4_Fe", 2000.0, is_active=True)
    assert "can be saved" in check_limits(deep).advice[0]


def test_an_unknown_price_breaks_a_budget_and_is_advice_without_one() -> None:
    silicon = LayeredCalorimeter("si", (), 100, 100).add_layer("G4_Si", 0.3, is_active=True)
    assert "no price of G4_Si" in check_limits(silicon, budget_chf=1).violations[0]
    checked = check_limits(silicon)
    assert checked.cost_chf is None
    assert "no price of G4_Si" in checked.advice[0]


@pytest.mark.parametrize("limit", [{"budget_chf": -1.0}, {"budget_chf": math.nan}, {"max_length_cm": 0.0}, {"size_cm": (50.0, -1.0)}])
def test_an_impossible_limit_is_refused(limit: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be finite and"):
        check_limits(load_detector("pb-scint-60"), **limit)


def test_a_detector_that_reads_nothing_out_is_refused() -> None:
    with pytest.raises(ValueError, match="no active layer"):
        check_limits(LayeredCalorimeter("wall", (), 100, 100).add_layer("G4_Fe", 100.0))
