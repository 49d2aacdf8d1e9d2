"""The ageing of cells from two unpaired samples: closure, invariances, readout, errors that hold."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from calolife.ageing.estimate import METHODS, estimate_ageing
from calolife.ageing.hits import brightest_cells
from calolife.detector.layers import Layer, LayeredCalorimeter, Readout
from calolife.detector.materials import material
from calolife.detector.presets import load_detector
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.simulation.engines import simulate_showers
from calolife.simulation.particles import sample_particles

FloatArray = NDArray[np.float64]
CALO = load_detector("cu-scint-24x24")


def pions(seed: int, n: int = 2500, *, energy_gev: float = 10.0, x_mm: float = 0.0, spot_mm: float = 30.0) -> Showers:
    beam = sample_particles(CALO, n, particle="pi-", energy_gev=energy_gev, beam_spot_mm=spot_mm, position_mm=(x_mm, 0.0), seed=seed)
    return simulate_showers(CALO, beam, seed=seed)


def aged(showers: Showers, fraction: FloatArray) -> Showers:
    return replace(showers, energy_mev=(showers.energy_mev * fraction[showers.cell]).astype(np.float32))


def linear_in_dose(showers: Showers, loss: float) -> FloatArray:
    dose = np.bincount(showers.cell, weights=showers.energy_mev, minlength=CALO.n_cells)
    return 1 - loss * dose / dose.max()


@pytest.fixture(scope="module")
def young() -> Showers:
    return pions(1)


@pytest.fixture(scope="module")
def later() -> Showers:
    return pions(2)


def test_a_known_loss_is_found_in_every_cell(young: Showers, later: Showers) -> None:
    truth = linear_in_dose(young, 0.2)
    found = estimate_ageing(young, aged(later, truth), cells=100, prior="none", n_bootstrap=40).ageing
    pull = (found.signal_fraction - truth[found.cell]) / found.uncertainty
    # 100 cells: mean within 4 / sqrt(100) with what they share, width within 4 / sqrt(200), and nobody far out
    assert abs(pull.mean()) < 0.5
    assert abs(pull.std() - 1) < 0.3
    assert np.abs(pull).max() < 4.5


def test_without_a_prior_no_cell_learns_from_another(young: Showers, later: Showers) -> None:
    cells = brightest_cells(young, 100)
    some = np.random.default_rng(3).choice(cells, 10, replace=False)
    fraction = np.ones(CALO.n_cells)
    fraction[some] = 0.8
    before = estimate_ageing(young, later, cells=100, prior="none", n_bootstrap=0).ageing
    after = estimate_ageing(young, aged(later, fraction), cells=100, prior="none", n_bootstrap=20).ageing
    is_aged = np.isin(after.cell, some)
    assert np.array_equal(after.signal_fraction[~is_aged], before.signal_fraction[~is_aged])
    assert np.abs((after.signal_fraction - 0.8) / after.uncertainty)[is_aged].max() < 4
    # the loss moves each cell's own estimate by that much; what is left is the step of the bins
    assert np.allclose(after.signal_fraction[is_aged] / before.signal_fraction[is_aged], 0.8, atol=0.01)


def test_identical_samples_have_not_aged(young: Showers) -> None:
    found = estimate_ageing(young, young, cells=50, prior="none", n_bootstrap=10)
    assert np.array_equal(found.ageing.signal_fraction, np.ones(50))
    assert any("in the reference too" in remark for remark in found.remarks)


@pytest.mark.parametrize("method", ["likelihood", "ratio", "trimmed", "cramer", "wasserstein"])
def test_the_order_of_events_does_not_matter(young: Showers, later: Showers, method: str) -> None:
    rng = np.random.default_rng(5)
    mixed = [sample.select(rng.permutation(sample.n_showers)) for sample in (young, later)]
    one = estimate_ageing(young, later, method=method, cells=30, prior="none", n_bootstrap=0).ageing
    other = estimate_ageing(*mixed, method=method, cells=30, prior="none", n_bootstrap=0).ageing
    assert np.allclose(one.signal_fraction, other.signal_fraction, rtol=1e-9)
    assert np.allclose(one.uncertainty, other.uncertainty, rtol=1e-9)


def test_the_cells_asked_for_together_do_not_matter(young: Showers, later: Showers) -> None:
    # the spectrum is shared by the 300 brightest cells in any case
    few = estimate_ageing(young, later, cells=brightest_cells(young, 30), prior="none", n_bootstrap=0).ageing
    many = estimate_ageing(young, later, cells=300, prior="none", n_bootstrap=0).ageing
    assert np.array_equal(few.signal_fraction, many.only(few.cell).signal_fraction)


def test_cells_may_be_numbered_otherwise(young: Showers, later: Showers) -> None:
    from calolife.showers.events import rotate90

    there = estimate_ageing(young, later, cells=40, prior="none", n_bootstrap=0).ageing
    turned = estimate_ageing(rotate90(young), rotate90(later), cells=40, prior="none", n_bootstrap=0).ageing
    # a quarter turn moves each cell's hits to another number and changes nothing else
    assert np.allclose(np.sort(there.signal_fraction), np.sort(turned.signal_fraction), rtol=1e-9)


def test_the_same_seed_gives_the_same_bytes(young: Showers, later: Showers) -> None:
    one, other = (estimate_ageing(young, later, cells=30, n_bootstrap=5, seed=4).ageing for _ in range(2))
    assert one.signal_fraction.tobytes() == other.signal_fraction.tobytes()
    assert one.uncertainty.tobytes() == other.uncertainty.tobytes()


def test_the_dose_helps_where_a_law_holds(young: Showers, later: Showers) -> None:
    truth = linear_in_dose(young, 0.107)
    found = estimate_ageing(young, aged(later, truth), cells=200, n_bootstrap=20).ageing
    with_dose = np.abs(found.signal_fraction - truth[found.cell]).mean()
    alone = np.abs(found.own_fraction - truth[found.cell]).mean()
    assert with_dose < 0.3 * alone


@pytest.mark.parametrize("spread", [0.03, 0.3, 0.6])
def test_the_dose_does_no_harm_where_none_holds(young: Showers, later: Showers, spread: float) -> None:
    truth = 1 - spread * np.random.default_rng(7).random(CALO.n_cells)
    found = estimate_ageing(young, aged(later, truth), cells=200, n_bootstrap=20).ageing
    with_dose = np.abs(found.signal_fraction - truth[found.cell]).mean()
    assert with_dose < 1.05 * np.abs(found.own_fraction - truth[found.cell]).mean()


@pytest.mark.parametrize(
    "readout",
    [
        Readout(threshold_mev=0.4),
        Readout(light_yield_pe_per_mev=15),
        Readout(noise_mev=0.1, threshold_mev=0.3),
        Readout(light_yield_pe_per_mev=15, noise_mev=0.08, threshold_mev=0.3),
        Readout(saturation_mev=4.0),
    ],
    ids=["threshold", "photo-statistics", "noise", "all", "saturation"],
)
def test_the_readout_is_taken_into_account(young: Showers, later: Showers, readout: Readout) -> None:
    truth = np.full(CALO.n_cells, 0.8)
    read = digitise(young, readout, seed=1), digitise(aged(later, truth), readout, seed=2)
    found = estimate_ageing(*read, cells=60, prior="none", n_bootstrap=5).ageing
    is_measured = found.status == "measured"
    assert is_measured.sum() > 40
    bias = (found.signal_fraction - 0.8)[is_measured]
    # half of the error of one cell: 60 cells share part of their errors
    assert abs(bias.mean()) < 0.5 * found.uncertainty[is_measured].mean()


def test_a_heavy_loss_is_found_above_a_threshold(young: Showers, later: Showers) -> None:
    # half of the light: a single particle reads 0.4 MeV, just above the cut; only these cells have aged
    cells = brightest_cells(young, 100)
    truth = np.ones(CALO.n_cells)
    truth[cells] = 0.5
    readout = Readout(threshold_mev=0.25)
    read = digitise(young, readout, seed=1), digitise(aged(later, truth), readout, seed=2)
    found = estimate_ageing(*read, cells=cells, prior="none", n_bootstrap=25).ageing
    is_measured = found.status == "measured"
    assert is_measured.sum() > 80
    assert np.abs((found.signal_fraction - 0.5) / found.uncertainty)[is_measured].max() < 5
    assert abs((found.signal_fraction - 0.5)[is_measured].mean()) < 0.5 * found.uncertainty[is_measured].mean()


def test_a_gain_is_not_clipped_and_is_told(young: Showers, later: Showers) -> None:
    found = estimate_ageing(young, aged(later, np.full(CALO.n_cells, 1.6)), cells=60, prior="none", n_bootstrap=20)
    assert abs(found.ageing.signal_fraction.mean() - 1.6) < 0.5 * found.ageing.uncertainty.mean()
    assert any("were the two given in this order?" in remark for remark in found.remarks)


def test_layers_of_two_thicknesses_do_not_share_a_spectrum() -> None:
    thin, thick = (Layer(material("G4_POLYSTYRENE"), t, is_active=True, cells=(6, 6)) for t in (3.0, 12.0))
    calo = LayeredCalorimeter("mixed", (), 180.0, 180.0).add_period(
        12, Layer(material("G4_Cu"), 20.0), thin, Layer(material("G4_Cu"), 20.0), thick
    )
    samples = []
    for seed in (1, 2):
        beam = sample_particles(calo, 1500, particle="pi-", energy_gev=10.0, beam_spot_mm=30.0, seed=seed)
        samples.append(simulate_showers(calo, beam, seed=seed))
    later = replace(samples[1], energy_mev=samples[1].energy_mev * np.float32(0.8))
    found = estimate_ageing(samples[0], later, cells=100, prior="none", n_bootstrap=20)
    assert found.method == "likelihood"
    pull = (found.ageing.signal_fraction - 0.8) / found.ageing.uncertainty
    assert abs(pull.mean()) < 0.5
    assert abs(pull.std() - 1) < 0.3


def test_electrons_get_a_method_that_suits_them() -> None:
    # in the core of an electron's shower each cell has a spectrum of its own
    samples = []
    for seed in (1, 2):
        beam = sample_particles(CALO, 800, particle="e-", energy_gev=10.0, beam_spot_mm=30.0, seed=seed)
        samples.append(simulate_showers(CALO, beam, seed=seed))
    later = aged(samples[1], np.full(CALO.n_cells, 0.8))
    found = estimate_ageing(samples[0], later, cells=150, prior="none", n_bootstrap=20)
    assert found.method == min(found.choice, key=lambda name: found.choice[name]) != "likelihood"
    assert any("between halves of the reference" in remark for remark in found.remarks)
    pull = ((found.ageing.signal_fraction - 0.8) / found.ageing.uncertainty)[found.ageing.status == "measured"]
    assert (np.abs(pull) < 1.96).mean() > 0.8


def test_a_handful_of_showers_measures_nothing(young: Showers, later: Showers) -> None:
    found = estimate_ageing(young.between(0, 3), later.between(0, 3), cells=50, n_bootstrap=5)
    assert not (found.ageing.status == "measured").any()
    assert np.isfinite(found.ageing.uncertainty).all()


def test_masked_cells_are_left_out(young: Showers, later: Showers) -> None:
    cells = brightest_cells(young, 20)
    found = estimate_ageing(young, later, cells=cells, masked=cells[:3], prior="none", n_bootstrap=0).ageing
    assert found.status[:3].tolist() == ["masked"] * 3
    assert (found.status[3:] == "measured").all()
    with pytest.raises(ValueError, match="masked cells"):
        estimate_ageing(young, later, cells=cells, masked=[23_040])


@pytest.mark.parametrize("beam", [{"energy_gev": 11.0}, {"energy_gev": 9.0}, {"x_mm": 10.0}, {"spot_mm": 40.0}], ids=str)
def test_a_shifted_beam_is_told_and_does_little(young: Showers, beam: dict[str, float]) -> None:
    truth = linear_in_dose(young, 0.107)
    found = estimate_ageing(young, aged(pions(3, **beam), truth), cells=100, prior="none", n_bootstrap=10)
    bias = (found.ageing.signal_fraction - truth[found.ageing.cell]).mean()
    assert abs(bias) < 0.5 * found.ageing.uncertainty.mean()
    assert any(shift.is_seen for shift in found.checks.shifts)
    assert any("half its error" in remark for remark in found.remarks)


def test_a_dead_and_a_hot_cell_break_nothing(young: Showers, later: Showers) -> None:
    readout = Readout(threshold_mev=0.2)
    cells = brightest_cells(young, 60)
    dead, hot = cells[10], cells[50]
    found = estimate_ageing(
        digitise(young, readout, seed=1), digitise(later, readout, seed=2, dead=[dead], hot=[hot]), cells=cells, n_bootstrap=20
    ).ageing
    status = dict(zip(found.cell.tolist(), found.status.tolist(), strict=True))
    assert (status[dead], status[hot]) == ("dead", "hot")
    assert np.isfinite(found.signal_fraction).all()
    assert np.isfinite(found.uncertainty).all()
    others = ~np.isin(found.cell, [dead, hot])
    assert np.abs((found.own_fraction - 1) / found.own_uncertainty)[others].max() < 4.5


@pytest.mark.parametrize(("prior", "widest"), [("none", 0.5), ("dose", 0.2)])
def test_a_cell_with_few_hits_is_not_guessed(young: Showers, later: Showers, prior: str, widest: float) -> None:
    found = estimate_ageing(young, later, prior=prior, n_bootstrap=2).ageing
    few = found.status == "prior-dominated"
    assert few.sum() > 20_000
    assert np.isfinite(found.uncertainty).all()
    assert (found.uncertainty[few] <= widest).all()
    assert prior == "dose" or np.array_equal(np.unique(found.signal_fraction[few]), [1.0])


def test_every_method_answers(young: Showers, later: Showers) -> None:
    from calolife.ageing.wgan import WganSettings

    pytest.importorskip("ot")
    for method in METHODS:
        settings = WganSettings(epochs=1) if method == "wgan" else None
        found = estimate_ageing(young, later, method=method, cells=10, prior="none", n_bootstrap=2, wgan=settings)
        assert np.isfinite(found.ageing.signal_fraction).all(), method
        assert np.isfinite(found.ageing.uncertainty).all(), method
        assert found.method == ("likelihood" if method == "auto" else method)


def toy(calo: LayeredCalorimeter, seed: int, fraction: FloatArray | float = 1.0, n: int = 500) -> Showers:
    """Independent hits: each cell in half of the showers, a peak at 1 MeV and a tail."""
    rng = np.random.default_rng(seed)
    shower, cell = np.nonzero(rng.random((n, calo.n_cells)) < 0.5)
    energy = rng.lognormal(0.0, 0.15, cell.size) + np.where(rng.random(cell.size) < 0.3, rng.exponential(1.0, cell.size), 0.0)
    scale = np.broadcast_to(fraction, (calo.n_cells,))[cell]
    return Showers.from_hits(calo, shower, cell, energy * scale, pdg_id=-211, energy_gev=np.full(n, 10.0))


def test_pulls_over_a_hundred_toys_are_unit_gaussians() -> None:
    calo = LayeredCalorimeter("toy", (Layer(material("G4_POLYSTYRENE"), 5.0, is_active=True, cells=(5, 2)),), 100.0, 40.0)
    truth = np.linspace(0.7, 1.05, calo.n_cells)
    pull, inside95 = [], 0
    for k in range(100):
        found = estimate_ageing(
            toy(calo, 2 * k), toy(calo, 2 * k + 1, truth), method="likelihood", prior="none", n_bootstrap=20, seed=k
        ).ageing
        pull.append((found.signal_fraction - truth) / found.uncertainty)
        inside95 += int((np.abs(pull[-1]) < 1.96).sum())
    values = np.concatenate(pull)
    print(f"pulls {values.mean():.3f} +- {values.std():.3f}, 68 %: {(np.abs(values) < 1).mean():.3f}, 95 %: {inside95 / values.size:.3f}")
    # 1,000 pulls: mean 0.03, width 0.02; 0.03 more for 20 replicas
    assert abs(values.mean()) < 0.13
    assert abs(values.std() - 1) < 0.1
    assert 0.63 < (np.abs(values) < 1).mean() < 0.75
    assert 0.92 < inside95 / values.size < 0.98


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "method 'magic' is not one of auto, ratio"),
        ({"prior": "hope"}, "prior 'hope' is not one of none, dose"),
        ({"cells": 0}, "0 cells asked for"),
        ({"cells": 30_000}, "detector 'cu-scint-24x24' has 23040"),
        ({"cells": [1, 23_040]}, "cell 23040 is not in the detector"),
        ({"cells": [0.5]}, "give a number of cells or one row of cell numbers"),
        ({"n_bootstrap": 1}, "n_bootstrap = 1 replicas give no spread"),
    ],
)
def test_wrong_options_are_refused(young: Showers, later: Showers, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        estimate_ageing(young, later, **change)  # type: ignore[arg-type]


def test_samples_that_do_not_belong_together_are_refused(young: Showers, later: Showers) -> None:
    other = replace(later, detector=replace(CALO, name="another", size_x_mm=721.0))
    nothing = later.select(np.zeros(later.n_showers, dtype=bool))
    dark = replace(later, energy_mev=np.zeros(later.n_hits, np.float32))
    read = digitise(later, Readout(threshold_mev=0.3), seed=1)
    read_otherwise = digitise(young, Readout(threshold_mev=0.5), seed=1)
    for first, second, message in [
        (young, other, "compare showers of one detector"),
        (young, nothing, "today's sample has no showers"),
        (nothing, later, "the reference has no showers"),
        (young, dark, "today's sample has no hit with energy"),
        (young, read, "digitise both alike, or neither"),
        (read_otherwise, read, "compare like with like"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimate_ageing(first, second)
