"""The simple estimators: exact where they must be, blind to order, one cell at a time, and as good as was measured."""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from calolife.ageing.estimators import SIMPLE_METHODS, cramer_fraction, spectrum_domain
from calolife.ageing.hits import CellHits
from calolife.errors import MissingExtraError

pytest.importorskip("ot", reason="Sinkhorn needs the extra transport")

METHODS = pytest.mark.parametrize("fit", SIMPLE_METHODS.values(), ids=SIMPLE_METHODS)
# half a step of 0.5 % in ln E for the distances, a third of a bin of 3.5 % for Sinkhorn
DISCRETISATION = {"ratio": 1e-12, "trimmed": 1e-12, "cramer": 0.0025, "wasserstein": 0.0025, "sinkhorn": 0.012}


def toy(n_showers: int = 2000, n_cells: int = 20, *, seed: int = 1, r: np.ndarray | float = 1.0, occupancy: float = 0.2) -> CellHits:
    """Hits as in a scintillator tile behind absorber: 40 % soft, 35 % a peak at 0.85 MeV, 25 % a shower's tail."""
    rng = np.random.default_rng(seed)
    cell, shower = np.nonzero(rng.random((n_cells, n_showers)) < occupancy)
    n = cell.size
    kind = rng.random(n)
    soft = np.exp(rng.uniform(np.log(0.02), np.log(0.6), n))
    peak = 0.85 + 0.06 * rng.gumbel(size=n)
    tail = np.exp(rng.exponential(0.9, n))
    energy = np.where(kind < 0.4, soft, np.where(kind < 0.75, peak, tail)) * np.broadcast_to(r, n_cells)[cell]
    return CellHits(n_cells, shower, cell, energy, np.zeros(n, np.int8), np.ones(n_showers))


def scaled(hits: CellHits, r: np.ndarray | float) -> CellHits:
    return replace(hits, energy_mev=hits.energy_mev * np.broadcast_to(r, hits.n_cells)[hits.cell_index])


def doubled(hits: CellHits) -> CellHits:
    """Every shower twice."""
    order = np.argsort(np.tile(hits.cell_index, 2), kind="stable")
    return CellHits(
        hits.n_cells, np.concatenate([hits.shower, hits.shower + hits.n_showers])[order], np.tile(hits.cell_index, 2)[order],
        np.tile(hits.energy_mev, 2)[order], np.tile(hits.topology, 2)[order], np.tile(hits.shower_weight, 2),
    )  # fmt: skip


def only(hits: CellHits, kept: np.ndarray) -> CellHits:
    columns = ("shower", "cell_index", "energy_mev", "topology")
    return replace(hits, **{name: getattr(hits, name)[kept] for name in columns})


def without(hits: CellHits, cell: int) -> CellHits:
    return only(hits, hits.cell_index != cell)


@pytest.fixture(scope="module")
def reference() -> CellHits:
    return toy(seed=1)


@pytest.fixture(scope="module")
def today() -> CellHits:
    return toy(seed=2, r=0.9)


@pytest.mark.parametrize("name", SIMPLE_METHODS)
def test_an_exact_scale_is_found(name: str, reference: CellHits) -> None:
    r = np.linspace(0.5, 1.3, reference.n_cells)
    found = SIMPLE_METHODS[name](reference, scaled(reference, r))
    assert np.abs(np.log(found / r)).max() < DISCRETISATION[name]


@METHODS
def test_identical_samples_give_one(fit: Callable[..., np.ndarray], reference: CellHits) -> None:
    np.testing.assert_allclose(fit(reference, reference), 1.0, rtol=1e-12)


@METHODS
def test_the_order_of_the_showers_changes_nothing(fit: Callable[..., np.ndarray], reference: CellHits, today: CellHits) -> None:
    def shuffled(hits: CellHits, seed: int) -> CellHits:
        rng = np.random.default_rng(seed)
        new = rng.permutation(hits.n_showers)
        order = rng.permutation(hits.shower.size)
        order = order[np.argsort(hits.cell_index[order], kind="stable")]
        return replace(hits, shower=new[hits.shower[order]], cell_index=hits.cell_index[order], energy_mev=hits.energy_mev[order])

    np.testing.assert_allclose(fit(shuffled(reference, 3), shuffled(today, 4)), fit(reference, today), rtol=1e-9)


@METHODS
def test_the_order_of_the_cells_changes_nothing(fit: Callable[..., np.ndarray], reference: CellHits, today: CellHits) -> None:
    new = np.random.default_rng(5).permutation(reference.n_cells)

    def relabelled(hits: CellHits) -> CellHits:
        order = np.argsort(new[hits.cell_index], kind="stable")
        return replace(hits, shower=hits.shower[order], cell_index=new[hits.cell_index][order], energy_mev=hits.energy_mev[order])

    np.testing.assert_allclose(fit(relabelled(reference), relabelled(today))[new], fit(reference, today), rtol=1e-9)


@METHODS
def test_a_weight_of_two_is_every_shower_twice(fit: Callable[..., np.ndarray], reference: CellHits, today: CellHits) -> None:
    weighted = fit(reference.weighted(2 * reference.shower_weight), today)
    np.testing.assert_allclose(weighted, fit(doubled(reference), today), rtol=1e-9)
    np.testing.assert_allclose(fit(reference, today.weighted(2 * today.shower_weight)), fit(reference, doubled(today)), rtol=1e-9)


@METHODS
def test_a_shower_of_weight_zero_is_not_there(fit: Callable[..., np.ndarray], reference: CellHits, today: CellHits) -> None:
    spoilt = replace(today, energy_mev=np.where(today.shower < 500, 50.0, today.energy_mev))
    weight = (np.arange(today.n_showers) >= 500).astype(float)
    np.testing.assert_allclose(fit(reference, spoilt.weighted(weight)), fit(reference, today.weighted(weight)), rtol=1e-9)


@METHODS
def test_ten_aged_cells_are_found_and_move_no_other(fit: Callable[..., np.ndarray]) -> None:
    n_cells = 100
    reference, unaged = toy(3000, n_cells, seed=11), toy(3000, n_cells, seed=12)
    chosen = np.random.default_rng(13).choice(n_cells, 10, replace=False)
    others = np.setdiff1d(np.arange(n_cells), chosen)
    r = np.ones(n_cells)
    r[chosen] = 0.8
    before, after = fit(reference, unaged), fit(reference, scaled(unaged, r))
    np.testing.assert_array_equal(after[others], before[others])
    sigma = before[others].std()
    # each within four of its errors, their mean within four of its own; 0.005 for the discretisation
    assert np.abs(after[chosen] - 0.8).max() < 4 * 0.8 * sigma + 0.005
    assert abs(after[chosen].mean() - 0.8) < 4 * 0.8 * sigma / np.sqrt(10) + 0.005


@METHODS
def test_cells_with_few_hits_do_not_move_with_another(fit: Callable[..., np.ndarray]) -> None:
    reference, today = toy(200, 10, seed=14, occupancy=0.08), toy(200, 10, seed=15, occupancy=0.08)
    before, after = fit(reference, today), fit(reference, scaled(today, np.where(np.arange(10) == 4, 0.63, 1.0)))
    np.testing.assert_allclose(np.delete(after, 4), np.delete(before, 4), rtol=1e-9)
    assert after[4] != before[4]


@METHODS
def test_a_cell_without_hits_is_nan_and_breaks_nothing(fit: Callable[..., np.ndarray], reference: CellHits, today: CellHits) -> None:
    found = fit(without(reference, 3), without(today, 7))
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 7]
    others = np.setdiff1d(np.arange(20), [3, 7])
    # without cell 3 the domain may be another one; within it nothing may change
    np.testing.assert_allclose(found[others], fit(without(reference, 3), today)[others], rtol=1e-12)


@METHODS
def test_a_cell_that_lost_its_weight_is_nan(fit: Callable[..., np.ndarray], reference: CellHits, today: CellHits) -> None:
    of_cell = np.unique(today.shower[today.cell_index == 4])
    weight = np.ones(today.n_showers)
    weight[of_cell] = 0
    assert np.flatnonzero(np.isnan(fit(reference, today.weighted(weight)))).tolist() == [4]


@METHODS
def test_no_showers_at_all_are_nan(fit: Callable[..., np.ndarray], reference: CellHits) -> None:
    nothing = CellHits(20, np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0, np.int8), np.zeros(0))
    for pair in ((reference, nothing), (nothing, reference), (nothing, nothing)):
        assert np.isnan(fit(*pair)).all()


@METHODS
def test_a_cell_with_one_hit_has_an_answer(fit: Callable[..., np.ndarray], reference: CellHits, today: CellHits) -> None:
    first = int(np.flatnonzero(today.cell_index == 5)[0])
    single = only(today, (today.cell_index != 5) | (np.arange(today.shower.size) == first))
    found = fit(reference, single)
    assert np.isfinite(found).all()
    assert (found > 0).all()


@METHODS
def test_four_times_the_showers_halve_the_scatter(fit: Callable[..., np.ndarray]) -> None:
    scatter = [fit(toy(n, 150, seed=21), toy(n, 150, seed=22)).std() for n in (2000, 8000)]
    # 150 cells tell a scatter to 6 %, so the ratio of two of them to 8 %; three of those, and outliers at small numbers
    assert 1.5 < scatter[0] / scatter[1] < 2.7


@METHODS
def test_different_cells_are_refused(fit: Callable[..., np.ndarray], reference: CellHits) -> None:
    with pytest.raises(ValueError, match="20 cells and today's sample 5; choose the same cells"):
        fit(reference, toy(100, 5))


@METHODS
def test_the_seed_changes_nothing(fit: Callable[..., np.ndarray], reference: CellHits, today: CellHits) -> None:
    np.testing.assert_array_equal(fit(reference, today, seed=1), fit(reference, today, seed=2))


@pytest.mark.parametrize("name", ["cramer", "wasserstein", "sinkhorn"])
def test_distances_do_better_than_the_mean_energy(name: str) -> None:
    reference, today = toy(5000, 100, seed=31), toy(5000, 100, seed=32, r=0.9)
    error = {n: np.abs(SIMPLE_METHODS[n](reference, today) - 0.9).mean() for n in ("ratio", name)}
    assert error[name] < error["ratio"] / 2


@pytest.mark.parametrize("name", ["cramer", "wasserstein", "sinkhorn"])
def test_a_threshold_below_the_domain_does_no_harm(name: str) -> None:
    reference, today = toy(5000, 100, seed=41), toy(5000, 100, seed=42, r=0.85)
    cut = SIMPLE_METHODS[name](*(only(hits, hits.energy_mev > 0.2) for hits in (reference, today)))
    # the mean of 100 cells, each known to 3 to 4 %
    assert abs(cut.mean() - 0.85) < 4 * cut.std() / 10


def test_with_few_hits_cramer_is_the_median_difference_of_ln_e() -> None:
    # E|X + s - Y| is least where s is the median of Y - X: the Hodges-Lehmann shift
    rng = np.random.default_rng(51)
    x, y = rng.normal(0, 0.3, (2, 15))
    make = [CellHits(1, np.arange(15), np.zeros(15, int), np.exp(v), np.zeros(15, np.int8), np.ones(15)) for v in (x, y)]
    # two bins of 2 %, the coarser grid for few hits
    assert np.log(cramer_fraction(*make)[0]) == pytest.approx(np.median(y[:, None] - x), abs=0.04)


@pytest.mark.parametrize("unit", [1.0, 1e-3])
def test_the_domain_finds_the_peak_in_any_unit(reference: CellHits, unit: float) -> None:
    low, high = spectrum_domain(scaled(reference, unit))
    assert 0.3 < low / unit < 0.8  # the peak stands at 0.85 MeV, 0.06 MeV wide
    assert 0.95 < high / unit < 4


def test_without_pot_sinkhorn_says_what_to_install(reference: CellHits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    monkeypatch.setitem(sys.modules, "ot.batch", None)
    with pytest.raises(MissingExtraError, match=r'pip install "calolife\[transport\]"'):
        SIMPLE_METHODS["sinkhorn"](reference, reference)
