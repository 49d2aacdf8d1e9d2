"""The readout against closed forms, and its independence of how a sample is cut.

Statistical tests allow 4 standard errors: one in 16,000 fails by chance, and the seeds are fixed.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter, Readout
from calolife.showers.digitise import digitise, draw_cells
from calolife.showers.events import Showers

CELL = 40


def one_cell(detector: LayeredCalorimeter, n: int, energy_mev: float) -> Showers:
    """The same energy in the same cell of every shower."""
    return Showers.from_hits(detector, np.arange(n), np.full(n, CELL), np.full(n, energy_mev), pdg_id=22, energy_gev=np.ones(n))


def nothing(detector: LayeredCalorimeter, n: int) -> Showers:
    return Showers.from_hits(detector, [], [], [], pdg_id=22, energy_gev=np.ones(n)) if n else one_cell(detector, 0, 1.0)


def hits(showers: Showers) -> list[tuple[int, int, float]]:
    return list(zip(showers.shower_index.tolist(), showers.cell.tolist(), showers.energy_mev.tolist(), strict=True))


def test_an_ideal_readout_changes_no_energy(pions: Showers) -> None:
    rechits = digitise(pions, Readout(), seed=1)
    assert hits(rechits) == hits(pions)
    assert (rechits.kind, rechits.readout) == ("rechit", Readout())


def test_the_detector_brings_its_readout(crystals: CrystalCalorimeter, make_showers: Callable[..., Showers]) -> None:
    rechits = digitise(make_showers(crystals, 4, seed=1), seed=1)
    assert rechits.readout == crystals.readout
    assert rechits.n_hits == 4 * crystals.n_cells  # noise and no threshold: every crystal is read


@pytest.mark.parametrize("mean_pe", [0.3, 2.0, 40.0, 3e4, 4e6])
def test_photo_electrons_are_poisson(mean_pe: float, small_stack: LayeredCalorimeter) -> None:
    n, light_yield = 20_000, 10.0
    showers = one_cell(small_stack, n, mean_pe / light_yield)
    count = digitise(showers, Readout(light_yield_pe_per_mev=light_yield), seed=2).visible_mev * light_yield
    # float32 energies: one part in 2^24 of the count
    np.testing.assert_allclose(count, np.round(count), atol=mean_pe * 2**-22)
    assert count.mean() == pytest.approx(mean_pe, abs=4 * np.sqrt(mean_pe / n))
    # standard error of a variance, with the excess kurtosis 1/mean of a Poisson
    assert count.var() == pytest.approx(mean_pe, rel=4 * np.sqrt((2 + 1 / mean_pe) / n))


@pytest.mark.parametrize("mean_pe", [0.3, 2.0, 9.0])
def test_photo_electron_counts_have_poisson_probabilities(mean_pe: float, small_stack: LayeredCalorimeter) -> None:
    n = 20_000
    count = np.round(digitise(one_cell(small_stack, n, mean_pe), Readout(light_yield_pe_per_mev=1.0), seed=3).visible_mev).astype(int)
    most = int(stats.poisson.isf(1e-3, mean_pe))
    found = np.bincount(np.minimum(count, most), minlength=most + 1)
    expected = n * np.append(stats.poisson.pmf(np.arange(most), mean_pe), stats.poisson.sf(most - 1, mean_pe))
    assert stats.chisquare(found, expected).pvalue > 1e-4


def test_noise_has_its_width_and_no_bias(small_stack: LayeredCalorimeter) -> None:
    n, noise = 20_000, 0.5
    read = digitise(one_cell(small_stack, n, 50.0), Readout(noise_mev=noise, threshold_mev=40.0), seed=4).visible_mev
    assert read.mean() == pytest.approx(50.0, abs=4 * noise / np.sqrt(n))
    assert read.std() == pytest.approx(noise, rel=4 / np.sqrt(2 * n))
    assert stats.kstest((read - 50.0) / noise, "norm").pvalue > 1e-4


def test_without_a_threshold_every_cell_is_read_with_its_noise(small_stack: LayeredCalorimeter) -> None:
    n, noise = 1000, 0.5
    rechits = digitise(one_cell(small_stack, n, 7.0), Readout(noise_mev=noise), seed=5)
    grid = rechits.energy_mev.reshape(n, small_stack.n_cells)
    assert grid[:, CELL].mean() == pytest.approx(7.0, abs=4 * noise / np.sqrt(n))
    others = np.delete(grid, CELL, axis=1)
    assert others.mean() == pytest.approx(0.0, abs=4 * noise / np.sqrt(others.size))
    assert others.std() == pytest.approx(noise, rel=4 / np.sqrt(2 * others.size))


def test_noise_of_cells_and_showers_is_uncorrelated(small_stack: LayeredCalorimeter) -> None:
    n = 4000
    grid = digitise(nothing(small_stack, n), Readout(noise_mev=1.0), seed=6).energy_mev.reshape(n, -1)
    between_cells = np.corrcoef(grid.T) - np.eye(small_stack.n_cells)
    # the largest of 10,296 pairs lies near 3.9 standard errors; 5.5 is one in 2,500
    assert np.abs(between_cells).max() < 5.5 / np.sqrt(n)
    next_shower = (grid[1:] * grid[:-1]).mean()
    assert next_shower == pytest.approx(0.0, abs=4 / np.sqrt(grid.size))


@pytest.mark.parametrize("threshold_sigma", [0.1, 1.0, 2.5, 4.0])
def test_empty_cells_fire_with_the_tail_of_the_noise(threshold_sigma: float, small_stack: LayeredCalorimeter) -> None:
    n, noise = 5000, 0.2
    rechits = digitise(nothing(small_stack, n), Readout(noise_mev=noise, threshold_mev=threshold_sigma * noise), seed=7)
    tail = stats.norm.sf(threshold_sigma)
    n_tries = n * small_stack.n_cells
    assert rechits.n_hits == pytest.approx(n_tries * tail, abs=4 * np.sqrt(n_tries * tail * (1 - tail)))
    above = stats.norm.sf(rechits.energy_mev.astype(float) / noise) / tail
    # thousands of rechits in the tail; rounding to float32 is far below the step of the test
    assert stats.kstest(above, "uniform").pvalue > 1e-4
    per_cell = np.bincount(rechits.cell, minlength=small_stack.n_cells)
    spread = ((per_cell - n * tail) ** 2 / (n * tail * (1 - tail))).sum()
    assert stats.chi2.sf(spread, small_stack.n_cells) > 1e-4
    if n * tail > 100:  # showers fire independently of each other: binomial in each
        n_hit = np.diff(rechits.offsets)
        wanted = small_stack.n_cells * tail * (1 - tail)
        assert n_hit.var() == pytest.approx(wanted, rel=4 * np.sqrt((2 + 1 / wanted) / n))


def test_a_hit_cell_passes_the_threshold_with_its_own_noise(small_stack: LayeredCalorimeter) -> None:
    n = 20_000
    rechits = digitise(one_cell(small_stack, n, 1.0), Readout(noise_mev=0.5, threshold_mev=1.4), seed=8)
    passed, expected = (rechits.cell == CELL).sum(), stats.norm.sf(0.8)
    assert passed == pytest.approx(n * expected, abs=4 * np.sqrt(n * expected * (1 - expected)))


def test_no_light_leaves_a_cell_as_empty_as_its_neighbours(small_stack: LayeredCalorimeter) -> None:
    n, tail = 5000, stats.norm.sf(2.0)
    # 1e-9 MeV at 1 photo-electron per MeV: no light in any of the showers
    rechits = digitise(one_cell(small_stack, n, 1e-9), Readout(1.0, noise_mev=1.0, threshold_mev=2.0), seed=9)
    assert (rechits.cell == CELL).sum() == pytest.approx(n * tail, abs=4 * np.sqrt(n * tail))


def test_saturation_is_a_ceiling(pions: Showers) -> None:
    rechits = digitise(pions, Readout(saturation_mev=2.0), seed=1)
    np.testing.assert_array_equal(rechits.energy_mev, np.minimum(pions.energy_mev, 2.0))


def test_the_threshold_drops_what_lies_below(pions: Showers) -> None:
    rechits = digitise(pions, Readout(threshold_mev=1.5), seed=1)
    assert hits(rechits) == [h for h in hits(pions) if h[2] >= 1.5]


def test_dead_cells_read_nothing_whatever_the_noise(pions: Showers) -> None:
    dead = [0, 7, 143]
    for readout in (Readout(noise_mev=1.0), Readout(noise_mev=1.0, threshold_mev=0.5)):
        rechits = digitise(pions, readout, seed=1, dead=dead, pileup=pions, pileup_mean=3.0)
        assert not np.isin(rechits.cell, dead).any()


def test_dead_cells_leave_the_others_as_they_were(pions: Showers) -> None:
    readout = Readout(5.0, 0.2, 0.5)
    all_alive, some_dead = digitise(pions, readout, seed=1), digitise(pions, readout, seed=1, dead=[3, 4])
    assert hits(some_dead) == [h for h in hits(all_alive) if h[1] not in (3, 4)]


def test_hot_cells_are_in_every_shower(pions: Showers) -> None:
    n = pions.n_showers
    rechits = digitise(pions.select([0] * n), Readout(threshold_mev=0.3), seed=1, hot=[9, 100], hot_mev=2.0)
    read = rechits.energy_mev[rechits.cell == 9].astype(float)
    assert read.size == n
    assert np.bincount(rechits.cell, minlength=144)[100] == n
    below = pions.energy_mev[: pions.offsets[1]][pions.cell[: pions.offsets[1]] == 9].sum()
    # an exponential of mean 2 MeV on top of the threshold and of what the cell reads
    assert (read - below).mean() == pytest.approx(2.3, abs=4 * 2.0 / np.sqrt(n))


def test_pileup_adds_a_poisson_number_of_showers(small_stack: LayeredCalorimeter) -> None:
    n, mean = 20_000, 3.0
    overlaid = digitise(nothing(small_stack, n), Readout(), seed=10, pileup=one_cell(small_stack, 5, 1.0), pileup_mean=mean).visible_mev
    assert overlaid.mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / n))
    assert overlaid.var() == pytest.approx(mean, rel=4 * np.sqrt((2 + 1 / mean) / n))


def test_pileup_draws_every_shower_of_its_sample_alike(small_stack: LayeredCalorimeter) -> None:
    each = Showers.from_hits(small_stack, range(4), range(4), np.ones(4), pdg_id=22, energy_gev=np.ones(4))
    overlaid = digitise(nothing(small_stack, 10_000), Readout(), seed=11, pileup=each, pileup_mean=2.0)
    drawn = np.bincount(overlaid.cell, weights=overlaid.energy_mev)
    assert stats.chisquare(drawn).pvalue > 1e-4


def test_a_range_of_pileup_draws_a_mean_for_each_shower(small_stack: LayeredCalorimeter) -> None:
    n, low, high = 5_000, 10.0, 60.0
    options = {"seed": 12, "pileup": one_cell(small_stack, 5, 1.0), "pileup_mean": (low, high)}
    overlaid = digitise(nothing(small_stack, n), Readout(), **options)
    count = overlaid.visible_mev
    variance = 35.0 + (high - low) ** 2 / 12  # Poisson of the mean, and the flat mean itself
    assert count.mean() == pytest.approx(35.0, abs=4 * np.sqrt(variance / n))
    assert count.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / n))
    assert {name: overlaid.origin[name] for name in ("pileup_mean", "pileup_mean_low", "pileup_mean_high")} == {
        "pileup_mean": 35.0, "pileup_mean_low": low, "pileup_mean_high": high,
    }  # fmt: skip
    parts = [digitise(nothing(small_stack, b - a), Readout(), first=a, **options) for a, b in pairwise((0, 3, 40, 100))]
    np.testing.assert_array_equal(np.concatenate([part.visible_mev for part in parts]), count[:100])


@pytest.mark.parametrize("light_yield", [0.0, 0.5, 2.25])
def test_cells_dropped_unread_are_those_that_the_threshold_drops(
    light_yield: float, small_stack: LayeredCalorimeter, make_showers: Callable[..., Showers], monkeypatch: pytest.MonkeyPatch
) -> None:
    soft = make_showers(small_stack, 300, seed=1, n_hits=60)
    showers = replace(soft, energy_mev=soft.energy_mev * 20.0)
    readout = Readout(light_yield_pe_per_mev=light_yield, noise_mev=40.0, threshold_mev=120.0)
    options = {"seed": 13, "pileup": showers.between(0, 50), "pileup_mean": 2.0, "dead": [7]}
    quick = digitise(showers, readout, **options)
    monkeypatch.setattr("calolife.showers.digitise._is_surely_dropped", lambda shower, *_: np.zeros(shower.size, np.bool_))
    assert hits(quick) == hits(digitise(showers, readout, **options))


def test_pileup_is_summed_alike_in_a_grid_and_by_sorting(pions: Showers, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"seed": 14, "pileup": pions.between(100, 200), "pileup_mean": 5.0}
    grid = digitise(pions, Readout(), **options)
    monkeypatch.setattr("calolife.showers.digitise._GRID_CELLS", 10)
    by_sorting = digitise(pions, Readout(), **options)
    np.testing.assert_array_equal(grid.cell, by_sorting.cell)
    np.testing.assert_allclose(grid.energy_mev, by_sorting.energy_mev, rtol=1e-6)


def test_pileup_keeps_the_truth_of_the_showers(pions: Showers) -> None:
    overlaid = digitise(pions, Readout(), seed=1, pileup=pions, pileup_mean=2.0)
    np.testing.assert_array_equal(overlaid.energy_gev, pions.energy_gev)
    assert overlaid.origin["pileup_mean"] == 2.0


@given(cuts=st.lists(st.integers(0, 60), max_size=5), readout=st.sampled_from([Readout(8.0, 0.2, 0.5, 6.0), Readout(8.0, 0.2)]))
@settings(max_examples=20, deadline=None)
def test_the_result_does_not_depend_on_how_the_sample_is_cut(cuts: list[int], readout: Readout, pions: Showers) -> None:
    sample = pions.between(0, 60)
    extras = {"dead": [5, 6], "hot": [9], "pileup": pions.between(100, 200), "pileup_mean": 1.5}
    edges = [0, *sorted(cuts), 60]
    parts = [digitise(sample.between(a, b), readout, seed=12, first=a, **extras) for a, b in pairwise(edges)]
    assert hits(Showers.concatenate(parts)) == hits(digitise(sample, readout, seed=12, **extras))


def test_blocks_of_memory_do_not_show(pions: Showers, monkeypatch: pytest.MonkeyPatch) -> None:
    readout = Readout(8.0, 0.2, 0.3)
    whole = digitise(pions, readout, seed=1)
    monkeypatch.setattr("calolife.showers.digitise._BLOCK_RECHITS", 100)
    assert hits(digitise(pions, readout, seed=1)) == hits(whole)


def test_the_seed_decides(pions: Showers) -> None:
    readout = Readout(8.0, 0.2, 0.3)
    assert hits(digitise(pions, readout, seed=1)) == hits(digitise(pions, readout, seed=1))
    assert hits(digitise(pions, readout, seed=1)) != hits(digitise(pions, readout, seed=2))


def test_more_dead_cells_hold_the_fewer(small_stack: LayeredCalorimeter) -> None:
    few, many = draw_cells(small_stack, 0.05, seed=1), draw_cells(small_stack, 0.5, seed=1)
    assert (few.size, many.size) == (7, 72)
    assert np.isin(few, many).all()
    assert draw_cells(small_stack, 1.0, seed=1).tolist() == list(range(144))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: digitise(digitise(s, Readout(), seed=1), seed=1), "these showers are rechits already"),
        (lambda s: digitise(s, seed=-1), "must be whole numbers >= 0"),
        (lambda s: digitise(s, seed=1, dead=[144]), "dead cell 144 is not in the detector; it has cells 0 to 143"),
        (lambda s: digitise(s, seed=1, hot=[-1]), "hot cell -1 is not in the detector"),
        (lambda s: digitise(s, seed=1, dead=[0.5]), "give cell numbers"),
        (lambda s: digitise(s, seed=1, dead=[4], hot=[4]), "cell 4 is both dead and hot"),
        (lambda s: digitise(s, seed=1, hot=[4], hot_mev=0.0), "hot_mev = 0.0 must be finite and > 0"),
        (lambda s: digitise(s, seed=1, pileup_mean=-1.0), "pileup_mean = -1.0 must be finite and >= 0"),
        (lambda s: digitise(s, seed=1, pileup_mean=(3.0, 1.0), pileup=s), "it must rise"),
        (lambda s: digitise(s, seed=1, pileup_mean=(0.0, np.inf), pileup=s), "must be finite and >= 0"),
        (lambda s: digitise(s, seed=1, pileup_mean=(0.0, 1.0, 2.0), pileup=s), "or two such numbers"),  # type: ignore[arg-type]
        (lambda s: digitise(s, seed=1, pileup_mean=1.0), "needs showers to draw from"),
        (lambda s: digitise(s, seed=1, pileup_mean=1.0, pileup=s.select([])), "the pileup sample is empty"),
        (lambda s: digitise(s, seed=1, pileup_mean=1.0, pileup=digitise(s, Readout(), seed=1)), "the pileup sample holds rechits"),
        (
            lambda s: digitise(s, seed=1, pileup_mean=1.0, pileup=replace(s, detector=replace(s.detector, name="other"))),
            "pileup was made in detector 'other'",
        ),
        (lambda s: digitise(s.select([0] * 2_000_000), Readout(noise_mev=0.1), seed=1), "at most 2e.08 fit: raise the threshold"),
        (lambda s: draw_cells(s.detector, 1.5, seed=1), "fraction = 1.5 must be between 0 and 1"),
    ],
)
def test_a_bad_request_is_told_in_one_line(call: Callable[[Showers], object], words: str, pions: Showers) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call(pions)
    assert "\n" not in str(caught.value)
