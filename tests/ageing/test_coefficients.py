"""Signal fractions: their algebra, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calolife.ageing.coefficients import STATUSES, Ageing


@st.composite
def ageings(draw: st.DrawFn) -> Ageing:
    """Up to eight of thirty cells, fractions from 0.05 to 2 (estimates may exceed 1), errors up to 0.5."""
    cells = sorted(draw(st.sets(st.integers(0, 29), max_size=8)))
    n = len(cells)
    fraction = draw(st.lists(st.floats(0.05, 2.0), min_size=n, max_size=n))
    error = draw(st.lists(st.just(0.0) | st.floats(1e-6, 0.5), min_size=n, max_size=n))
    return Ageing(np.array(cells, dtype=np.int64), fraction, error)


EVERY = np.arange(30)


@given(ageings(), ageings())
def test_compose_multiplies_signal_fractions_cell_by_cell(a: Ageing, b: Ageing) -> None:
    both = a.compose(b)
    # a product of two float64, in one order or the other
    np.testing.assert_allclose(both.at(EVERY), a.at(EVERY) * b.at(EVERY), rtol=1e-15)
    np.testing.assert_array_equal(both.cell, np.union1d(a.cell, b.cell))


@given(ageings(), ageings())
def test_the_order_of_two_ageings_does_not_matter(a: Ageing, b: Ageing) -> None:
    np.testing.assert_allclose(a.compose(b).at(EVERY), b.compose(a).at(EVERY), rtol=1e-15)
    np.testing.assert_allclose(a.compose(b).uncertainty, b.compose(a).uncertainty, rtol=1e-12, atol=1e-300)


@given(ageings(), ageings(), ageings())
def test_composition_is_associative(a: Ageing, b: Ageing, c: Ageing) -> None:
    np.testing.assert_allclose(a.compose(b).compose(c).at(EVERY), a.compose(b.compose(c)).at(EVERY), rtol=1e-14)


@given(ageings())
def test_an_ageing_and_its_inverse_undo_each_other(a: Ageing) -> None:
    np.testing.assert_allclose(a.compose(a.inverse()).at(EVERY), 1.0, rtol=1e-14)
    again = a.inverse().inverse()
    np.testing.assert_allclose(again.signal_fraction, a.signal_fraction, rtol=1e-14)
    np.testing.assert_allclose(again.uncertainty, a.uncertainty, rtol=1e-13)


def test_relative_uncertainties_add_in_quadrature() -> None:
    both = Ageing([1, 2], [0.5, 0.8], [0.03 * 0.5, 0.0]).compose(Ageing([1, 2], [0.9, 0.5], [0.04 * 0.9, 0.01]))
    np.testing.assert_allclose(both.uncertainty / both.signal_fraction, [0.05, 0.02])


def test_the_coefficient_is_undamaged_over_damaged() -> None:
    assert Ageing([4], [0.8]).coefficient.tolist() == [1.25]


def test_a_cell_that_is_not_listed_is_unaged() -> None:
    assert Ageing([4], [0.8]).at([3, 4, 5]).tolist() == [1.0, 0.8, 1.0]
    assert Ageing(np.zeros(0, dtype=int), []).at([3]).tolist() == [1.0]


def test_signal_fractions_above_one_are_kept() -> None:
    assert Ageing([0], [1.7], [0.5]).signal_fraction.tolist() == [1.7]


def test_the_status_that_says_less_survives_composition() -> None:
    for i, one in enumerate(STATUSES):
        for j, other in enumerate(STATUSES):
            both = Ageing([1], [0.9], status=[one]).compose(Ageing([1], [0.9], status=[other]))
            assert both.status.tolist() == [STATUSES[max(i, j)]]


def test_columns_of_a_part_stay_together() -> None:
    a = Ageing([1, 5, 9], [0.9, 0.8, 0.7], [0.1, 0.2, 0.3], ["measured", "dead", "hot"], [0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    part = a.only([9, 5, 77])
    assert (part.cell.tolist(), part.signal_fraction.tolist(), part.uncertainty.tolist()) == ([5, 9], [0.8, 0.7], [0.2, 0.3])
    assert (part.status.tolist(), part.own_fraction.tolist(), part.own_uncertainty.tolist()) == (["dead", "hot"], [0.6, 0.7], [0.5, 0.6])


def test_numbers_cannot_be_changed_in_place() -> None:
    given_numbers = np.array([0.9, 0.8])
    a = Ageing([1, 2], given_numbers)
    with pytest.raises(ValueError, match="read-only"):
        a.signal_fraction[0] = 0.5
    given_numbers[0] = 0.1  # the caller's own array stays theirs
    assert a.signal_fraction[0] == 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [0.9]), "give one number per cell"),
        (([2, 1], [0.9, 0.9]), "sort them"),
        (([1, 1], [0.9, 0.9]), "each once"),
        (([-1, 1], [0.9, 0.9]), "from 0 on"),
        (([1.5], [0.9]), "cell numbers"),
        (([1], [0.0]), "cell 1 is 0; it must be finite and > 0"),
        (([1], [-0.5]), "must be finite and > 0"),
        (([1], [np.nan]), "must be finite and > 0"),
        (([1], [np.inf]), "must be finite and > 0"),
        (([1], [0.9], [-0.1]), "must be >= 0, or NaN"),
        (([1], [0.9], [0.1], ["fine"]), "status must be one of measured"),
        (([1], [0.9], [0.1], ["dead", "dead"]), "status must be one of measured"),
        (([1], [0.9], None, None, [0.9, 0.9]), "own_fraction has shape"),
    ],
)
def test_what_is_no_ageing_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ageing(*arguments)  # type: ignore[arg-type]


def test_ageings_of_two_detectors_are_not_composed() -> None:
    with pytest.raises(ValueError, match="compose those of one"):
        Ageing([1], [0.9], detector_digest="a" * 64).compose(Ageing([1], [0.9], detector_digest="b" * 64))
    assert Ageing([1], [0.9], detector_digest="a" * 64).compose(Ageing([1], [0.9])).detector_digest == "a" * 64
