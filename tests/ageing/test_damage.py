"""Dose, damage laws, and damage laid on showers and taken off again.

Statistical tests allow 4 standard errors: one in 16,000 fails by chance, and the seeds are fixed.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calolife.ageing.coefficients import Ageing
from calolife.ageing.damage import LAWS, age_showers, correct_showers, damage_ageing, dose_gy, dose_mev, silent_cells
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Layer, LayeredCalorimeter, Readout
from calolife.detector.materials import material
from calolife.detector.presets import load_detector
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers

ABSORBER, TILES = Layer(material("G4_Cu"), 20.0), Layer(material("G4_POLYSTYRENE"), 5.0, is_active=True, cells=(6, 6))
STACK = LayeredCalorimeter("small", (), 180.0, 180.0).add_period(4, ABSORBER, TILES)
N_CELLS = STACK.n_cells
EVERY = np.arange(N_CELLS)
FLOAT32 = 2.0**-23  # spacing of float32 around 1


def toy(n: int, *, seed: int, n_hits: float = 25.0, detector: LayeredCalorimeter | CrystalCalorimeter = STACK) -> Showers:
    """Energies from nothing to some MeV: half of the hits pile up at that of a minimum ionising particle, about 1 MeV."""
    rng = np.random.default_rng(seed)
    shower = np.repeat(np.arange(n), rng.poisson(n_hits, n))
    mip = rng.gamma(20.0, 0.05, shower.size)
    energy = np.where(rng.random(shower.size) < 0.5, mip, rng.exponential(1.5, shower.size))
    return Showers.from_hits(
        detector, shower, rng.integers(0, detector.n_cells, shower.size), energy, pdg_id=-211, energy_gev=np.full(n, 10.0)
    )


def uniform(fraction: float, detector: LayeredCalorimeter | CrystalCalorimeter = STACK) -> Ageing:
    return Ageing(np.arange(detector.n_cells), np.full(detector.n_cells, fraction), label=f"{fraction:g} everywhere")


PIONS = toy(400, seed=1)


# --- dose


def test_the_doses_add_up_to_the_visible_energy() -> None:
    dose = dose_mev(PIONS)
    assert dose.shape == (N_CELLS,)
    # float64 sums of the same float32 numbers in another order
    assert dose.sum() == pytest.approx(PIONS.visible_mev.sum(), rel=1e-12)
    np.testing.assert_allclose(dose_mev(PIONS.between(0, 100)) + dose_mev(PIONS.between(100, 400)), dose, rtol=1e-12)


def test_a_gray_is_a_joule_per_kilogram() -> None:
    # 30 x 30 x 5 mm of polystyrene, 1.06 g/cm3: 4.77 g
    joule = np.full(N_CELLS, 1 / 1.602176634e-13)
    np.testing.assert_allclose(dose_gy(STACK, joule), 1 / 4.77e-3, rtol=1e-12)
    mass_kg = 1.06e-3 * 18.0 * 18.0 * 0.5  # of a layer
    assert dose_gy(STACK, joule)[:36].sum() == pytest.approx(36**2 / mass_kg, rel=1e-12)


def test_cells_of_layers_with_other_grids_have_their_own_mass() -> None:
    fine = Layer(material("G4_POLYSTYRENE"), 2.5, is_active=True, cells=(12, 12))
    both = LayeredCalorimeter("two grids", (), 180.0, 180.0).add_period(1, ABSORBER, TILES, ABSORBER, fine)
    dose = dose_gy(both, np.ones(both.n_cells))
    np.testing.assert_allclose(dose[36:], 8 * dose[0], rtol=1e-12)  # a quarter of the area, half of the thickness


def test_crystals_have_the_dose_of_their_volume() -> None:
    matrix = CrystalCalorimeter("matrix", material("G4_PbWO4"), (1, 2, 3), 3)
    mass_kg = material("G4_PbWO4").density_g_cm3 * 2.2 * 2.2 * 23.0 * 1e-3
    np.testing.assert_allclose(dose_gy(matrix, np.ones(9)), 1.602176634e-13 / mass_kg, rtol=1e-12)


# --- laws


@pytest.mark.parametrize(
    ("law", "at_quarter"),
    # u = 1/4: u; (1 - exp(-3/4)) / (1 - exp(-3)); sqrt(u)
    [("linear", 0.25), ("saturating", 0.5276334472589853 / 0.950212931632136), ("sqrt", 0.5)],
)
def test_laws_have_their_closed_forms(law: str, at_quarter: float) -> None:
    dose = np.zeros(N_CELLS)
    dose[[3, 50]] = 8.0, 2.0
    loss = 1 - damage_ageing(STACK, dose, law=law, max_loss=0.107).signal_fraction
    assert loss[3] == pytest.approx(0.107, rel=1e-12)
    assert loss[50] == pytest.approx(0.107 * at_quarter, rel=1e-12)
    assert not np.delete(loss, [3, 50]).any()


@pytest.mark.parametrize("law", LAWS)
@given(scale=st.floats(1e-6, 1e9), max_loss=st.floats(0.001, 0.999))
@settings(deadline=None)
def test_only_the_shape_of_the_dose_matters(law: str, scale: float, max_loss: float) -> None:
    dose = dose_mev(PIONS)
    a = damage_ageing(STACK, dose, law=law, max_loss=max_loss).signal_fraction
    np.testing.assert_allclose(damage_ageing(STACK, scale * dose, law=law, max_loss=max_loss).signal_fraction, a, rtol=1e-9)
    assert (np.diff(a[np.argsort(dose)]) <= 0).all()  # more dose, never more signal
    assert a.min() == pytest.approx(1 - max_loss, rel=1e-9)


def test_the_scatter_has_its_width_in_every_cell() -> None:
    calo = load_detector("cu-scint-24x24")
    dose = np.linspace(0.0, 1.0, calo.n_cells)
    smooth = damage_ageing(calo, dose, max_loss=0.3).signal_fraction
    deviate = (damage_ageing(calo, dose, max_loss=0.3, scatter=0.02, seed=5).signal_fraction / smooth - 1) / 0.02
    n = calo.n_cells
    assert deviate.mean() == pytest.approx(0.0, abs=4 / np.sqrt(n))
    assert deviate.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * n))
    assert stats.kstest(deviate, "norm").pvalue > 1e-4
    # neither dose nor neighbour tells anything about it
    assert abs(np.corrcoef(deviate, dose)[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(deviate[1:], deviate[:-1])[0, 1]) < 4 / np.sqrt(n)


def test_the_scatter_of_a_cell_is_its_own() -> None:
    dose = dose_mev(PIONS)
    a, b = (damage_ageing(STACK, d, max_loss=0.1, scatter=0.05, seed=3).signal_fraction for d in (dose, dose[::-1]))
    smooth = [damage_ageing(STACK, d, max_loss=0.1).signal_fraction for d in (dose, dose[::-1])]
    # the other dose moves the fraction, not the draw
    np.testing.assert_allclose(a / smooth[0], b / smooth[1], rtol=1e-12)
    assert (a != damage_ageing(STACK, dose, max_loss=0.1, scatter=0.05, seed=4).signal_fraction).all()


def test_a_wild_scatter_leaves_every_cell_a_signal() -> None:
    calo = load_detector("cu-scint-24x24")
    fraction = damage_ageing(calo, np.ones(calo.n_cells), max_loss=0.9, scatter=0.99, seed=1).signal_fraction
    assert 0.01 <= fraction.min() < 0.011
    assert np.isfinite(fraction).all()
    assert fraction.max() > 0.3  # values above the smooth 0.1 are not cut


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"law": "cubic"}, "law 'cubic' is not one of linear, saturating, sqrt"),
        ({"max_loss": 0.0}, "max_loss = 0 must be above 0 and below 1"),
        ({"max_loss": 1.0}, "max_loss = 1 must be above 0 and below 1"),
        ({"max_loss": -0.1}, "max_loss = -0.1"),
        ({"max_loss": float("nan")}, "max_loss = nan"),
        ({"scatter": -0.01}, "scatter = -0.01 must be from 0"),
        ({"scatter": 1.0}, "scatter = 1 must be from 0 to below 1"),
        ({"scatter": float("nan")}, "scatter = nan"),
        ({"seed": -1}, "seed = -1 must be a whole number"),
        ({"dose_mev": np.zeros(N_CELLS)}, "no cell has any dose"),
        ({"dose_mev": -np.ones(N_CELLS)}, "no cell has any dose"),
        ({"dose_mev": np.ones(5)}, "has 144 cells: give one dose each"),
        ({"dose_mev": np.full(N_CELLS, np.nan)}, "dose_mev of cell 0 is nan"),
    ],
)
def test_damage_that_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"dose_mev": np.ones(N_CELLS), "max_loss": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        damage_ageing(STACK, arguments.pop("dose_mev"), **arguments)  # type: ignore[arg-type]


# --- simhits: exact

FRACTIONS = st.lists(st.floats(0.05, 1.5), min_size=N_CELLS, max_size=N_CELLS).map(lambda f: Ageing(EVERY, f))


@settings(deadline=None, max_examples=30)
@given(FRACTIONS, FRACTIONS)
def test_ageing_by_r_and_then_by_s_is_ageing_by_r_s(r: Ageing, s: Ageing) -> None:
    one_by_one, at_once = age_showers(age_showers(PIONS, r), s), age_showers(PIONS, r.compose(s))
    np.testing.assert_array_equal(one_by_one.cell, at_once.cell)
    # the energy between the two is rounded to float32 once more
    np.testing.assert_allclose(one_by_one.energy_mev, at_once.energy_mev, rtol=2 * FLOAT32)


@settings(deadline=None, max_examples=30)
@given(FRACTIONS)
def test_correcting_undoes_ageing(r: Ageing) -> None:
    back = correct_showers(age_showers(PIONS, r), r)
    np.testing.assert_allclose(back.energy_mev, PIONS.energy_mev, rtol=2 * FLOAT32)
    np.testing.assert_array_equal(back.offsets, PIONS.offsets)
    np.testing.assert_allclose(age_showers(age_showers(PIONS, r), r.inverse()).energy_mev, PIONS.energy_mev, rtol=3 * FLOAT32)


def test_every_simhit_keeps_its_cell_and_loses_its_part() -> None:
    aged = age_showers(PIONS, Ageing([3, 50], [0.5, 1.25], label="two cells"))
    factor = np.where(PIONS.cell == 3, 0.5, np.where(PIONS.cell == 50, 1.25, 1.0))
    np.testing.assert_array_equal(aged.energy_mev, (PIONS.energy_mev * factor).astype(np.float32))
    np.testing.assert_array_equal(aged.cell, PIONS.cell)
    assert (aged.kind, aged.readout, aged.origin["aged"]) == ("simhit", None, "two cells")
    assert age_showers(aged, Ageing([3], [0.9], label="more")).origin["aged"] == "two cells then more"


def test_no_ageing_changes_nothing() -> None:
    for showers in (PIONS, digitise(PIONS, Readout(8.0, 0.2, 0.5), seed=1)):
        for none in (uniform(1.0), Ageing(np.zeros(0, dtype=int), [])):
            np.testing.assert_array_equal(age_showers(showers, none, seed=2).energy_mev, showers.energy_mev)
            np.testing.assert_array_equal(age_showers(showers, none, seed=2).cell, showers.cell)


def test_a_simhit_that_falls_to_nothing_stays() -> None:
    tiny = Showers.from_hits(STACK, [0], [7], [1e-45], pdg_id=11, energy_gev=[1.0])
    aged = age_showers(tiny, uniform(0.1))
    assert (aged.n_hits, aged.energy_mev.tolist()) == (1, [0.0])


def test_only_cells_with_a_number_are_corrected() -> None:
    status = ["measured", "prior-dominated", "dead", "hot", "masked"]
    corrected = correct_showers(PIONS, Ageing([0, 1, 2, 3, 4], np.full(5, 0.5), status=status))
    factor = np.where(np.isin(PIONS.cell, [0, 1]), 2.0, 1.0)
    np.testing.assert_array_equal(corrected.energy_mev, (PIONS.energy_mev * factor).astype(np.float32))


@pytest.mark.parametrize("change", [age_showers, correct_showers])
def test_ageing_of_another_detector_is_refused(change: object) -> None:
    other = replace(STACK, name="other")
    assert callable(change)
    with pytest.raises(ValueError, match="take both from one detector"):
        change(PIONS, Ageing([1], [0.9], detector_digest=other.digest))
    with pytest.raises(ValueError, match="the ageing lists cell 144, detector 'small' has cells 0 to 143"):
        change(PIONS, Ageing([144], [0.9]))
    change(PIONS, Ageing([1], [0.9], detector_digest=STACK.digest))


# --- rechits: in distribution

READOUTS = {
    "light": Readout(light_yield_pe_per_mev=8.0),
    "little light": Readout(light_yield_pe_per_mev=1.5),
    "light and a threshold": Readout(light_yield_pe_per_mev=20.0, threshold_mev=0.3),
    "noise": Readout(noise_mev=0.15),
    "noise and a threshold": Readout(noise_mev=0.15, threshold_mev=0.45),
    "noise and a low threshold": Readout(noise_mev=0.15, threshold_mev=0.25),
    "threshold": Readout(threshold_mev=0.4),
    "all": Readout(light_yield_pe_per_mev=15.0, noise_mev=0.1, threshold_mev=0.3),
}


def moments(showers: Showers) -> dict[str, tuple[float, float]]:
    """Mean and width of the visible energy, and rechits in a shower, each with its standard error."""
    visible, n_hits = showers.visible_mev, np.diff(showers.offsets)
    n, off = visible.size, visible - visible.mean()
    width_error = np.sqrt((off**4).mean() - (off**2).mean() ** 2) / (2 * visible.std() * np.sqrt(n))
    return {
        "mean": (visible.mean(), visible.std() / np.sqrt(n)),
        "width": (visible.std(), width_error),
        "rechits": (n_hits.mean(), n_hits.std() / np.sqrt(n)),
    }


@pytest.mark.parametrize("fraction", [0.9, 0.6])
@pytest.mark.parametrize("name", READOUTS)
def test_aged_rechits_look_like_aged_simhits_that_are_read_out(name: str, fraction: float) -> None:
    readout, ageing = READOUTS[name], uniform(fraction)
    wanted = digitise(age_showers(toy(1500, seed=11), ageing), readout, seed=1)
    found = age_showers(digitise(toy(1500, seed=12), readout, seed=1), ageing, seed=1)
    for quantity, (value, error) in moments(found).items():
        other, other_error = moments(wanted)[quantity]
        assert value == pytest.approx(other, abs=4 * np.hypot(error, other_error)), quantity
    # the spectrum of one rechit, about 30,000 of them; they share showers, and rechits near the threshold are a few too few
    assert stats.ks_2samp(found.energy_mev, wanted.energy_mev).statistic < 0.02
    assert (found.kind, found.readout) == ("rechit", readout)


def test_aged_photo_electrons_are_poisson() -> None:
    n, light_yield, fraction = 20_000, 10.0, 0.7
    same = Showers.from_hits(STACK, np.arange(n), np.full(n, 40), np.full(n, 1.2), pdg_id=22, energy_gev=np.ones(n))
    rechits = digitise(same, Readout(light_yield_pe_per_mev=light_yield), seed=2)
    count = age_showers(rechits, uniform(fraction), seed=2).visible_mev * light_yield
    mean = 1.2 * light_yield * fraction
    np.testing.assert_allclose(count, np.round(count), atol=1e-5)  # whole ones, in float32
    assert count.mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / n))
    # standard error of a variance, with the excess kurtosis 1/mean of a Poisson
    assert count.var() == pytest.approx(mean, rel=4 * np.sqrt((2 + 1 / mean) / n))


def test_bright_cells_keep_their_photo_statistics() -> None:
    n, fraction = 4000, 0.5
    same = Showers.from_hits(STACK, np.arange(n), np.full(n, 40), np.full(n, 4e4), pdg_id=22, energy_gev=np.ones(n))
    count = age_showers(digitise(same, Readout(light_yield_pe_per_mev=10.0), seed=3), uniform(fraction), seed=3).visible_mev * 10.0
    assert count.mean() == pytest.approx(2e5, abs=4 * np.sqrt(2e5 / n))
    assert count.var() == pytest.approx(2e5, rel=4 * np.sqrt(2 / n))


def test_noise_keeps_its_width_in_aged_and_empty_cells() -> None:
    n, noise = 300, 0.2
    nothing = Showers.from_hits(STACK, [], [], [], pdg_id=22, energy_gev=np.ones(n))
    aged = age_showers(digitise(nothing, Readout(noise_mev=noise), seed=4), uniform(0.5), seed=4)
    assert aged.n_hits == n * N_CELLS
    assert aged.energy_mev.std() == pytest.approx(noise, rel=4 / np.sqrt(2 * n * N_CELLS))
    assert stats.kstest(aged.energy_mev / noise, "norm").pvalue > 1e-4


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5])
def test_empty_cells_fire_as_often_as_before(threshold: float) -> None:
    n, noise = 3000, 0.2
    nothing = Showers.from_hits(STACK, [], [], [], pdg_id=22, energy_gev=np.ones(n))
    aged = age_showers(digitise(nothing, Readout(noise_mev=noise, threshold_mev=threshold), seed=5), uniform(0.7), seed=5)
    expected = n * N_CELLS * stats.norm.sf(threshold / noise)
    assert aged.n_hits == pytest.approx(expected, abs=4 * np.sqrt(expected))
    tail = stats.truncnorm(threshold / noise, np.inf, scale=noise)
    assert stats.kstest(aged.energy_mev, tail.cdf).pvalue > 1e-4


def test_dead_cells_of_rechits_stay_dead() -> None:
    n, dead = 2000, np.array([3, 77])
    rechits = digitise(toy(n, seed=6), Readout(noise_mev=0.2, threshold_mev=0.4), seed=6, dead=dead)
    counts = np.bincount(rechits.cell, minlength=N_CELLS)
    assert rechits.readout is not None
    assert silent_cells(rechits.readout, counts, n).tolist() == dead.tolist()
    aged = age_showers(rechits, uniform(0.8), seed=6, dead=dead)
    assert not np.isin(aged.cell, dead).any()
    assert np.isin(age_showers(rechits, uniform(0.8), seed=6).cell, dead).any()


def test_quiet_cells_are_not_taken_as_dead() -> None:
    counts = np.zeros(N_CELLS, dtype=int)
    assert silent_cells(Readout(threshold_mev=0.4), counts, 10_000).size == 0
    assert silent_cells(Readout(noise_mev=0.1, threshold_mev=0.5), counts, 10_000).size == 0  # 5 sigma


def test_a_saturated_rechit_is_scaled_from_its_ceiling() -> None:
    bright = Showers.from_hits(STACK, [0], [40], [50.0], pdg_id=22, energy_gev=[1.0])
    readout = Readout(saturation_mev=6.0)
    # its light was 0.9 x 50 MeV, still above the ceiling: that is lost, as the documentation says
    assert age_showers(digitise(bright, readout, seed=1), uniform(0.9), seed=1).energy_mev.tolist() == [np.float32(5.4)]
    assert age_showers(digitise(bright, readout, seed=1), uniform(1.5), seed=1).energy_mev.tolist() == [6.0]


# --- the same numbers, however it is asked


@pytest.mark.parametrize("name", ["all", "noise", "light"])
@pytest.mark.parametrize("kind", ["simhit", "rechit"])
def test_a_sample_aged_in_parts_is_the_sample_aged_in_one_go(kind: str, name: str) -> None:
    ageing = damage_ageing(STACK, dose_mev(PIONS), max_loss=0.4, scatter=0.05, seed=2)
    showers = PIONS if kind == "simhit" else digitise(PIONS, READOUTS[name], seed=9)
    whole = age_showers(showers, ageing, seed=9)
    cuts = [0, 1, 120, 121, 400]
    parts = [age_showers(showers.between(a, b), ageing, seed=9, first=a) for a, b in pairwise(cuts)]
    joined = Showers.concatenate(parts)
    for column in ("offsets", "cell", "energy_mev"):
        assert getattr(joined, column).tobytes() == getattr(whole, column).tobytes()
    assert joined.origin == whole.origin


def test_the_seed_of_the_readout_may_be_that_of_the_ageing() -> None:
    """Were the two streams one, what is lost would follow the old noise."""
    n, noise, fraction = 20_000, 0.5, 0.6
    same = Showers.from_hits(STACK, np.arange(n), np.full(n, 40), np.full(n, 50.0), pdg_id=22, energy_gev=np.ones(n))
    rechits = digitise(same, Readout(noise_mev=noise, threshold_mev=10.0), seed=7)
    old = rechits.visible_mev - 50.0
    added = age_showers(rechits, uniform(fraction), seed=7).visible_mev - fraction * rechits.visible_mev
    assert added.std() == pytest.approx(noise * np.sqrt(1 - fraction**2), rel=4 / np.sqrt(2 * n))
    assert abs(np.corrcoef(old, added)[0, 1]) < 4 / np.sqrt(n)


def test_rechits_say_how_they_were_aged() -> None:
    aged = age_showers(digitise(PIONS, READOUTS["all"], seed=1), uniform(0.9), seed=4)
    assert aged.origin["aged"] == "0.9 everywhere"
    assert aged.origin["aged_how"] == "rechits scaled, smeared and thresholded again"
    assert aged.origin["aged_seed"] == 4


def test_a_seed_or_number_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="seed = -1 must be a whole number"):
        age_showers(PIONS, uniform(0.9), seed=-1)
    with pytest.raises(ValueError, match="first = -1 must be a whole number"):
        age_showers(PIONS, uniform(0.9), first=-1)


def test_an_empty_sample_ages_to_an_empty_one() -> None:
    none = PIONS.between(0, 0)
    for showers in (none, digitise(none, READOUTS["all"], seed=1)):
        assert age_showers(showers, uniform(0.9)).n_hits == 0
        assert correct_showers(showers, uniform(0.9)).n_showers == 0
