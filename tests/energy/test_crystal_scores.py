"""Cruijff scores of objects in crystals: closed forms, replicas that agree with plain fits, pairs that are told apart."""

import itertools
import json

import numpy as np
import pytest

from calolife.detector.presets import load_detector
from calolife.energy.crystal_scores import ETA_REGIONS, CruijffScore, bootstrap_cruijff, score_crystals
from calolife.energy.features import EnergySample, Prediction
from calolife.energy.lineshapes import fit_cruijff, fit_double_crystal_ball
from calolife.energy.objects import Objects

N = 3000


def skewed(n: int, *, seed: int) -> np.ndarray:
    """E'/E with a tail to low values, as bremsstrahlung leaves it."""
    rng = np.random.default_rng(seed)
    return 1.0 + 0.01 * rng.normal(size=n) - 0.02 * rng.exponential(size=n) * (rng.random(n) < 0.3)


def objects_like(eta: np.ndarray, rho: np.ndarray) -> Objects:
    barrel = load_detector("cms-barrel")
    n = eta.size
    cell = np.full(n, barrel.cell_id(10, 20))
    return Objects(barrel, np.arange(n + 1), cell, np.ones(n), np.zeros(n), cell, eta, rho, np.full(n, np.nan))


def sample_like(n: int, *, seed: int, pdg_id: int | np.ndarray = 11, rho: float | None = None) -> EnergySample:
    rng = np.random.default_rng(seed)
    energy, eta = rng.uniform(5.0, 200.0, n), rng.uniform(-1.47, 1.47, n)
    rhos = rng.uniform(0.0, 20.0, n) if rho is None else np.full(n, rho)
    return EnergySample(1000 * energy[:, None], energy, np.broadcast_to(pdg_id, n), objects=objects_like(eta, rhos))


@pytest.fixture(scope="module")
def sample() -> EnergySample:
    return sample_like(N, seed=1)


@pytest.fixture(scope="module")
def models(sample: EnergySample) -> dict[str, Prediction]:
    """One model, one that is 30 % wider about the same fluctuations, and one that differs by its own noise only."""
    off = skewed(N, seed=2) - 1
    other = off + 0.002 * np.random.default_rng(3).normal(size=N)
    energy = sample.energy_gev
    return {
        "one": Prediction(energy * (1 + off), 0.0125 * energy), "wide": Prediction(energy * (1 + 1.3 * off)),
        "other": Prediction(1.02 * energy * (1 + other)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def scores(sample: EnergySample, models: dict[str, Prediction]) -> tuple[CruijffScore, ...]:
    return score_crystals(models, sample, reference="one", n_bootstrap=100, seed=5)


def of(scores: tuple[CruijffScore, ...], model: str, region: str = "all", variable: str = "all") -> list[CruijffScore]:
    return [s for s in scores if (s.model, s.eta_region, s.variable) == (model, region, variable)]


def test_a_score_is_the_fit_of_the_ratio(scores: tuple[CruijffScore, ...], sample: EnergySample, models: dict[str, Prediction]) -> None:
    (row,) = of(scores, "one")
    fit = fit_cruijff(models["one"].energy_gev / sample.energy_gev)
    assert (row.cruijff_mean, row.cruijff_sigma_percent) == (fit.mu, 100 * fit.sigma_over_mu)
    assert row.n == N


def test_a_scale_changes_the_mean_and_not_the_resolution(sample: EnergySample, models: dict[str, Prediction]) -> None:
    one = models["one"].energy_gev
    low, high = score_crystals({"one": Prediction(one), "high": Prediction(1.05 * one)}, sample, reference="one", n_bootstrap=20)[:2]
    assert high.cruijff_mean == pytest.approx(1.05 * low.cruijff_mean, rel=1e-5)  # where MIGRAD stops
    assert high.ratio == pytest.approx(1.0, abs=1e-3)
    # the fits of both stop at other places by less than a hundredth of their error
    assert high.ratio_high - high.ratio_low < 2e-3
    assert high.mean_ratio == pytest.approx(1.05, rel=1e-5)


def test_a_model_that_is_wider_by_a_factor_is_worse_by_it(scores: tuple[CruijffScore, ...]) -> None:
    (row,) = of(scores, "wide")
    # 1.3 of the sigma, and a peak moved by less than sigma
    assert row.ratio == pytest.approx(1.3, rel=0.01)
    assert row.verdict == "worse"
    assert 1.27 < row.ratio_low < row.ratio < row.ratio_high < 1.33


def test_pairs_are_told_apart_better_than_by_their_own_errors(scores: tuple[CruijffScore, ...]) -> None:
    (row,), (one,) = of(scores, "other"), of(scores, "one")
    alone = np.hypot(row.cruijff_sigma_percent_error, one.cruijff_sigma_percent_error) / one.cruijff_sigma_percent
    # 95 % of a Gaussian is 3.9 of its sigma wide; the noise they do not share is a fifth of the whole
    assert row.ratio_high - row.ratio_low < 0.6 * 3.9 * alone


def test_regions_share_out_the_objects_by_eta(scores: tuple[CruijffScore, ...], sample: EnergySample) -> None:
    eta = np.abs(sample.objects.eta)  # type: ignore[union-attr]
    for name, (low, high) in ETA_REGIONS.items():
        (row,) = of(scores, "one", name)
        assert row.n == int(((eta >= low) & (eta < high)).sum())
    assert sum(of(scores, "one", name)[0].n for name in ETA_REGIONS) == N


@pytest.mark.parametrize(("variable", "most"), [("energy_gev", 200.0), ("abs_eta", 1.48), ("rho_gev", 20.0)])
def test_bins_hold_every_object_once(variable: str, most: float, scores: tuple[CruijffScore, ...]) -> None:
    rows = of(scores, "one", variable=variable)
    assert sum(r.n for r in rows) == N
    assert all(a.high == b.low for a, b in itertools.pairwise(rows))
    assert all(r.low <= r.at <= r.high <= most for r in rows)


def test_a_pull_of_width_one_is_seen(scores: tuple[CruijffScore, ...], sample: EnergySample, models: dict[str, Prediction]) -> None:
    rng = np.random.default_rng(4)
    gaussian = Prediction(sample.energy_gev * (1 + 0.02 * rng.normal(size=N)), 0.02 * sample.energy_gev)
    row = score_crystals({"it": gaussian}, sample, n_bootstrap=50)[0]
    assert row.pull_width == pytest.approx(1.0, abs=4 * row.pull_width_error)
    assert 0.01 < row.pull_width_error < 0.04  # 1.2 / sqrt(n) is 0.02
    assert np.isnan(of(scores, "wide")[0].pull_width)


def test_replicas_agree_with_plain_fits_of_the_same_replicas() -> None:
    ratio = skewed(N, seed=6)
    fit = fit_cruijff(ratio)
    index = np.random.default_rng(7).integers(0, N, (40, N))
    counts = np.stack([np.bincount(i, minlength=N) for i in index])
    mu, relative = bootstrap_cruijff(ratio, fit, counts)
    plain = [fit_cruijff(ratio[i]) for i in index]
    # bins of a tenth of sigma, and MIGRAD stops within a few hundredths of an error
    for ours, theirs in ((mu, np.array([p.mu for p in plain])), (relative, np.array([p.sigma_over_mu for p in plain]))):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99
        assert np.abs(ours - theirs).mean() < 0.15 * theirs.std()
        assert ours.std() == pytest.approx(theirs.std(), rel=0.05)


def test_errors_are_the_scatter_of_other_samples() -> None:
    found = []
    for seed in range(50):
        ratio = skewed(1000, seed=100 + seed)
        fit = fit_cruijff(ratio)
        counts = np.random.default_rng(seed).multinomial(1000, np.full(1000, 1e-3), 40)
        mu, relative = bootstrap_cruijff(ratio, fit, counts)
        found.append([fit.mu, fit.sigma_over_mu, mu.std(ddof=1), relative.std(ddof=1)])
    value = np.array(found)
    # the scatter of 50 samples is known to 10 %: three of it
    np.testing.assert_allclose(np.sqrt((value[:, 2:] ** 2).mean(axis=0)), value[:, :2].std(axis=0, ddof=1), rtol=0.3)


def test_a_parameter_held_stays_held_in_all_replicas() -> None:
    ratio = np.random.default_rng(8).normal(1.0, 0.02, 1000)
    counts = np.random.default_rng(9).multinomial(1000, np.full(1000, 1e-3), 100)
    free, held = (
        bootstrap_cruijff(ratio, fit_cruijff(ratio, fixed=fixed), counts)[1].std()
        for fixed in ({}, {"alpha_left": 0.01, "alpha_right": 0.01})
    )
    # of a Gaussian with known tails: sigma / sqrt(2 n), to 7 % three times
    assert held == pytest.approx(0.02 / np.sqrt(2000), rel=0.25)
    assert free > 1.2 * held


def test_the_same_seed_gives_the_same_scores() -> None:
    sample = sample_like(400, seed=1)
    models = {name: Prediction(sample.energy_gev * skewed(400, seed=seed)) for name, seed in (("one", 2), ("two", 3))}
    first, again = (score_crystals(models, sample, reference="one", n_bootstrap=10, seed=3) for _ in (1, 2))
    assert json.dumps([s.to_json_dict() for s in first]) == json.dumps([s.to_json_dict() for s in again])


def test_a_row_is_plain_json_with_the_agreed_keys(scores: tuple[CruijffScore, ...]) -> None:
    row = json.loads(json.dumps(scores[0].to_json_dict(), allow_nan=False))
    assert {"model", "particle", "eta_region", "n", "cruijff_mean", "cruijff_sigma_percent", "pull_width", "ratio", "verdict"} <= set(row)
    assert (row["particle"], row["low"], row["ratio"]) == ("e-", None, None)


def test_particles_are_scored_together_and_each() -> None:
    pdg = np.where(np.arange(800) % 2, 11, 22)
    sample = sample_like(800, seed=2, pdg_id=pdg, rho=np.nan)
    rows = score_crystals({"m": Prediction(sample.energy_gev * skewed(800, seed=3))}, sample, n_bootstrap=5)
    assert {(r.particle, r.n) for r in rows if (r.eta_region, r.variable) == ("all", "all")} == {("all", 800), ("gamma", 400), ("e-", 400)}
    assert "rho_gev" not in {r.variable for r in rows}  # not known


@pytest.mark.parametrize("rho", [5.0, np.nan])
def test_a_rho_that_is_the_same_everywhere_makes_no_bins(rho: float) -> None:
    sample = sample_like(200, seed=2, rho=rho)
    rows = score_crystals({"m": Prediction(sample.energy_gev * skewed(200, seed=3))}, sample, n_bootstrap=5)
    assert "rho_gev" not in {r.variable for r in rows}


def test_cells_of_few_objects_are_left_out_and_those_without_a_fit_say_why() -> None:
    sample = sample_like(150, seed=2)
    (row,) = [
        r for r in score_crystals({"stuck": Prediction(sample.energy_gev)}, sample, n_bootstrap=5)
        if r.eta_region == "all" and r.variable == "all"
    ]  # fmt: skip
    assert row.fit is None
    assert "a line needs a width" in row.why
    assert np.isnan(row.cruijff_mean)
    few = sample_like(90, seed=2)
    assert score_crystals({"m": Prediction(few.energy_gev)}, few) == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": {}}, "no models to score"),
        ({"reference": "best"}, "reference 'best' is not among the models m"),
        ({"edges_gev": [5.0, 5.0]}, "each above the one before"),
        ({"n_bootstrap": 1}, "n_bootstrap = 1 must be >= 2"),
        ({"models": {"m": Prediction(np.ones(3))}}, "predictions of m have shape"),
        ({"models": {"m": Prediction(np.full(150, np.nan))}}, "prediction of m for object 0 is nan"),
        ({"sample": EnergySample(np.ones((150, 2)), np.ones(150), np.full(150, 11))}, "the sample has layers, no crystals"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], says: str) -> None:
    sample = sample_like(150, seed=2)
    given: dict[str, object] = {"models": {"m": Prediction(sample.energy_gev)}, "sample": sample} | change
    with pytest.raises(ValueError, match=says):
        score_crystals(given.pop("models"), given.pop("sample"), **given)


def test_replicas_need_a_cruijff_fit_and_counts_that_fit() -> None:
    ratio = skewed(300, seed=1)
    with pytest.raises(ValueError, match="the fit is of a double_crystal_ball"):
        bootstrap_cruijff(ratio, fit_double_crystal_ball(ratio, fixed={"n_left": 3.0, "n_right": 3.0}), np.ones((2, 300)))
    with pytest.raises(ValueError, match="they must be"):
        bootstrap_cruijff(ratio, fit_cruijff(ratio), np.ones((2, 299)))
