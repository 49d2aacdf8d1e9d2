"""Checks of two samples: what was put in is found, and nothing else."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from calolife.ageing.checks import LEAST_SHOWERS, Checks, check_samples
from calolife.detector.layers import Readout
from calolife.detector.presets import load_detector
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.simulation.engines import simulate_showers
from calolife.simulation.particles import sample_particles

CALO = load_detector("cu-scint-24x24")
READOUT = Readout(light_yield_pe_per_mev=10.0, noise_mev=0.1, threshold_mev=0.3)
N = 2000


@cache
def pions(seed: int, *, n: int = N, energy_gev: float = 10.0, x_mm: float = 0.0, spot_mm: float = 30.0) -> Showers:
    beam = sample_particles(CALO, n, particle="pi-", energy_gev=energy_gev, position_mm=(x_mm, 0.0), beam_spot_mm=spot_mm, seed=seed)
    return simulate_showers(CALO, beam, seed=seed)


def dose() -> np.ndarray:
    reference = pions(1)
    return np.bincount(reference.cell, weights=reference.energy_mev, minlength=CALO.n_cells)


def aged(showers: Showers, *, loss: float = 0.3) -> Showers:
    fraction = 1 - loss * dose() / dose().max()
    return replace(showers, energy_mev=(showers.energy_mev * fraction[showers.cell]).astype(np.float32))


@cache
def read_out(seed: int, *, is_aged: bool = False, **beam: float) -> Showers:
    showers = pions(seed, **beam)
    return digitise(aged(showers) if is_aged else showers, READOUT, seed=seed)


def seen(checks: Checks) -> set[str]:
    return {shift.quantity for shift in checks.shifts if shift.is_seen}


def is_clean(checks: Checks) -> bool:
    return not (seen(checks) or checks.n_shared or checks.dead.size or checks.hot.size) and checks.reference_weight is None


BEAMS = {
    "energy up": ({"energy_gev": 11.0}, {"beam energy"}),
    "energy down": ({"energy_gev": 9.0}, {"beam energy"}),
    "moved": ({"x_mm": 10.0}, {"beam position x"}),
    "wider": ({"spot_mm": 40.0}, {"spot width x", "spot width y"}),
}


@pytest.mark.parametrize("name", BEAMS)
@pytest.mark.parametrize("kind", ["simhit", "rechit"])
def test_a_shifted_beam_is_seen_in_aged_showers(name: str, kind: str) -> None:
    beam, expected = BEAMS[name]
    today = aged(pions(7, **beam)) if kind == "simhit" else read_out(7, is_aged=True, **beam)
    checks = check_samples(pions(1) if kind == "simhit" else read_out(1), today)
    found = seen(checks)
    # depth grows with the logarithm of the energy
    assert expected <= found <= expected | ({"longitudinal centroid"} if "energy" in name else set())
    assert checks.dead.size + checks.hot.size + checks.n_shared == 0
    assert len([r for r in checks.remarks if "differs by" in r]) == len(found)


def test_the_size_of_a_shift_is_told() -> None:
    shift = {s.quantity: s for s in check_samples(pions(1), pions(8, energy_gev=11.0, x_mm=10.0)).shifts}
    # hits grow as a power of the energy that is good to 20 %
    assert shift["beam energy"].difference == pytest.approx(10.0, abs=0.2 * 10.0 + 3 * shift["beam energy"].uncertainty)
    assert shift["beam position x"].difference == pytest.approx(10.0, abs=3 * shift["beam position x"].uncertainty + 0.5)


@pytest.mark.parametrize("kind", ["simhit", "rechit"])
def test_light_loss_looks_neither_like_a_shift_nor_like_dead_cells(kind: str) -> None:
    pair = (pions(1), aged(pions(2))) if kind == "simhit" else (read_out(1), read_out(2, is_aged=True))
    assert is_clean(check_samples(*pair))


def test_equal_independent_samples_are_clean() -> None:
    pool = pions(3, n=4000)
    parts = [pool.between(200 * i, 200 * (i + 1)) for i in range(20)]
    # 20 comparisons at 4 standard deviations: a false one in 1 of 100 runs of this test
    assert all(is_clean(check_samples(parts[i], parts[i - 1])) for i in range(20))


def test_uncertainties_of_shifts_are_honest() -> None:
    pool = pions(3, n=4000)
    parts = [pool.between(100 * i, 100 * (i + 1)) for i in range(40)]
    pairs = [check_samples(parts[2 * i], parts[2 * i + 1]) for i in range(20)]
    pull = np.array([[s.difference / s.uncertainty for s in c.shifts] for c in pairs])
    # 120 pulls, correlated at worst in x: the width of 20 is good to 16 %, of 120 to 6.5 %
    assert abs(pull.std() - 1) < 3 * 0.1


def test_weights_give_the_reference_the_beam_of_today() -> None:
    reference, today = pions(1), pions(9, x_mm=10.0, spot_mm=36.0)
    checks = check_samples(reference, today)
    weight = checks.reference_weight
    assert weight is not None
    assert weight.mean() == pytest.approx(1.0)
    assert checks.n_effective == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    assert f"{checks.n_effective:.0f} effective showers of {N}" in checks.remarks[-1]
    # the true impact points, which the weights have not seen; a centre is 10 mm uncertain, so that a tenth of the shift stays
    x, x_today = reference.position_mm[:, 0], today.position_mm[:, 0]
    mean = np.average(x, weights=weight)
    assert mean == pytest.approx(x_today.mean(), abs=0.15 * 10 + 3 * 36 / np.sqrt(checks.n_effective))
    assert np.sqrt(np.average((x - mean) ** 2, weights=weight)) > x.std() + 0.5 * (x_today.std() - x.std())


def test_weights_make_a_moved_beam_harmless_to_mean_energies() -> None:
    reference, today = pions(1), pions(7, x_mm=10.0)
    weight = check_samples(reference, today).reference_weight
    assert weight is not None
    left, right = (np.argsort(-dose())[:300] for _ in range(2))
    x = CALO.cell_position_mm(left)[:, 0]
    left, right = left[x < -20], right[x > 20]

    def change(w: np.ndarray) -> float:
        before = np.bincount(reference.cell, weights=reference.energy_mev * w[reference.shower_index], minlength=CALO.n_cells)
        now = np.bincount(today.cell, weights=today.energy_mev, minlength=CALO.n_cells)
        return float(np.log(now[right].sum() / before[right].sum()) - np.log(now[left].sum() / before[left].sum()))

    assert abs(change(weight)) < 0.25 * abs(change(np.ones(N)))


def test_an_energy_shift_alone_gives_no_weights() -> None:
    checks = check_samples(pions(1), pions(7, energy_gev=11.0))
    assert checks.reference_weight is None
    assert checks.n_effective == N
    assert "not weighted" in checks.remarks[-1]


@pytest.mark.parametrize("x_mm", [100.0, 250.0])
def test_weights_that_leave_few_showers_are_not_given(x_mm: float) -> None:
    checks = check_samples(pions(1), pions(11, n=500, x_mm=x_mm))
    assert checks.reference_weight is None
    assert "no weights" in checks.remarks[-1]


def test_weights_are_the_least_change_that_has_the_means() -> None:
    from calolife.ageing.checks import _tilted

    x = np.random.default_rng(0).normal(size=4000)
    weight = _tilted(x[:, None], np.array([0.3]))
    assert weight is not None
    # a Gaussian tilted to another mean stays one: ln w is linear in x
    assert np.average(x, weights=weight) == pytest.approx(0.3, abs=1e-7)
    assert np.ptp(np.diff(np.log(weight)[np.argsort(x)]) / np.diff(np.sort(x))) < 1e-3
    assert _tilted(x[:, None], np.array([9.0])) is None


@pytest.mark.parametrize("kind", ["simhit", "rechit"])
@pytest.mark.parametrize("share", [1.0, 0.05])
def test_shared_events_are_found_in_any_order(kind: str, share: float) -> None:
    rng = np.random.default_rng(5)
    n_shared = round(share * N)
    copies, others = pions(1).select(rng.permutation(N)[:n_shared]), pions(2).between(0, N - n_shared)
    today = aged(Showers.concatenate([copies, others]).select(rng.permutation(N)))
    reference = pions(1)
    if kind == "rechit":  # other noise and photo-statistics on the same light
        reference, today = read_out(1), digitise(today, READOUT, seed=99)
    checks = check_samples(reference, today)
    assert checks.n_shared == pytest.approx(n_shared, rel=0.03)
    assert checks.shared_fraction == pytest.approx(share, rel=0.03)
    assert "in the reference too" in checks.remarks[0]


@pytest.mark.parametrize(("detector", "particle"), [("pbwo4-5x5", "e-"), ("pb-scint-60", "gamma")])
def test_similar_showers_are_not_taken_for_copies(detector: str, particle: str) -> None:
    calo = load_detector(detector)
    n = 500
    first, second = (
        simulate_showers(calo, sample_particles(calo, n, particle=particle, energy_gev=10.0, beam_spot_mm=5.0, seed=s), seed=s)
        for s in (1, 2)
    )
    assert is_clean(check_samples(first, second))
    scale = np.random.default_rng(0).uniform(0.7, 1.0, calo.n_cells)
    copies = replace(first, energy_mev=(first.energy_mev * scale[first.cell]).astype(np.float32))
    assert check_samples(first, copies).n_shared > 0.9 * n


def test_one_cell_per_layer_claims_nothing_on_equal_samples() -> None:
    layers = tuple(replace(layer, cells=(1, 1)) if layer.is_active else layer for layer in CALO.layers)
    calo = replace(CALO, name="towers", layers=layers)
    first, second = (simulate_showers(calo, sample_particles(calo, 1000, particle="pi-", energy_gev=10.0, seed=s), seed=s) for s in (1, 2))
    checks = check_samples(first, second)
    assert is_clean(checks)
    dead = second.cell != 5
    n_hit = np.bincount(second.shower_index[dead], minlength=1000)
    blind = replace(second, offsets=np.concatenate([[0], np.cumsum(n_hit)]), cell=second.cell[dead], energy_mev=second.energy_mev[dead])
    assert check_samples(first, blind).dead.tolist() == [5]


DEAD, HOT = (np.array(rank) for rank in ([0, 10, 100, 400], [1, 20, 150, 500, 2000, 8000, 20000]))


@pytest.mark.parametrize(("x_mm", "where"), [(0.0, "today"), (10.0, "today"), (10.0, "reference")])
def test_dead_and_hot_cells_are_found_also_under_a_moved_beam(x_mm: float, where: str) -> None:
    order = np.argsort(-dose(), kind="stable")
    dead, hot = order[DEAD], order[HOT]
    young, old = pions(1), aged(pions(7, x_mm=x_mm))
    marked = {"dead": dead, "hot": hot}
    reference = digitise(young, READOUT, seed=3, **(marked if where == "reference" else {}))
    today = digitise(old, READOUT, seed=4, **(marked if where == "today" else {}))
    checks = check_samples(reference, today)
    assert checks.dead.tolist() == np.sort(dead).tolist()
    assert checks.hot.tolist() == np.sort(hot).tolist()
    assert ("beam position x" in seen(checks)) == (x_mm > 0)


def test_cells_with_ten_times_their_occupancy_are_hot() -> None:
    today = pions(2)
    count = np.bincount(pions(1).cell, minlength=CALO.n_cells)
    # cells that fire in 1 to 5 % of the showers
    some = np.random.default_rng(4).permutation(np.flatnonzero((count > 0.01 * N) & (count < 0.05 * N)))[:10]
    rng = np.random.default_rng(3)
    glow = rng.random((N, 10)) < np.minimum(9 * count[some] / N, 0.9)
    shower, k = np.nonzero(glow)
    hits = [
        np.concatenate(pair) for pair in ((today.shower_index, shower), (today.cell, some[k]), (today.energy_mev, np.full(k.size, 1.0)))
    ]
    noisy = Showers.from_hits(CALO, *hits, pdg_id=today.pdg_id, energy_gev=today.energy_gev)
    checks = check_samples(pions(1), noisy)
    assert checks.hot.tolist() == np.sort(some).tolist()
    assert checks.dead.size == 0


def test_a_dead_board_is_found_whole() -> None:
    board = CALO.cell_id(5, *(i.ravel() for i in np.meshgrid(np.arange(10, 14), np.arange(10, 14))))
    checks = check_samples(read_out(1), digitise(pions(2), READOUT, seed=2, dead=board))
    assert set(checks.dead) == set(board)
    assert checks.hot.size == 0


@pytest.mark.parametrize("n", [1, 3, 10])
def test_a_handful_of_showers_claims_nothing(n: int) -> None:
    for reference, today in ((pions(1), pions(2)), (pions(1).between(0, n), pions(2).between(0, n)), (pions(1).between(0, n), pions(2))):
        checks = check_samples(reference, today.between(0, n) if reference.n_showers == N else today)
        assert is_clean(checks)
        assert checks.shifts == ()
        assert f"it takes {LEAST_SHOWERS}" in checks.remarks[-1]


def test_showers_without_hits_are_harmless() -> None:
    empty = Showers.from_hits(CALO, [], [], [], pdg_id=-211, energy_gev=np.full(60, 10.0))
    for pair in ((empty, empty), (pions(1).between(0, 100), empty), (empty, pions(1).between(0, 100))):
        assert not seen(check_samples(*pair))


def test_the_same_samples_give_the_same_answer() -> None:
    first, second = (check_samples(pions(1), pions(9, x_mm=10.0, spot_mm=36.0)) for _ in range(2))
    assert first.remarks == second.remarks
    assert np.array_equal(first.reference_weight, second.reference_weight)


def test_bad_input_is_named() -> None:
    few = pions(1).between(0, 3)
    with pytest.raises(ValueError, match="compare samples of one detector"):
        check_samples(few, replace(few, detector=replace(CALO, name="another")))
    with pytest.raises(ValueError, match="sample today has no showers"):
        check_samples(few, few.between(0, 0))
    with pytest.raises(ValueError, match="signal_fraction = 0"):
        check_samples(few, few, signal_fraction=0.0)
    with pytest.raises(ValueError, match="fired_above_mev = -1"):
        check_samples(few, few, fired_above_mev=-1.0)
