"""Our own regressor: never worse than what it is made of, blind to truth, neighbours and the future."""

import numpy as np
import pytest

from calolife.energy.best import Best, fit_best
from calolife.energy.features import EnergySample
from calolife.energy.models import Linearised, fit_energy, linearise, load_energy_model
from calolife.errors import FileFormatError
from calolife.storage import save_model


def toy(n: int, *, seed: int, n_layers: int = 12) -> EnergySample:
    """Showers of fluctuating electromagnetic part: the larger it is, the more is seen and the shorter the shower."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(1.0, 100.0, n)
    start, em = rng.uniform(0.0, 3.0, n)[:, None], rng.random(n)[:, None]
    depth, length = np.maximum(np.arange(n_layers) + 0.5 - start, 0.0), 1.6 - em
    mean = 20.0 * true[:, None] * (0.6 + 0.4 * em) * depth * np.exp(-depth / length) / length**2
    layers = np.maximum(mean + np.sqrt(mean) * rng.standard_normal(mean.shape), 0.0) + 0.1
    return EnergySample(layers, true, np.where(rng.random(n) < 0.5, 22, -211))


@pytest.fixture(scope="module")
def fitted() -> Best:
    return fit_best(toy(600, seed=1), seed=3)


def loss(sample: EnergySample, energy_gev: np.ndarray) -> float:
    return float(((energy_gev - sample.energy_gev) ** 2 / sample.energy_gev).mean())


def test_the_shape_tells_what_the_linear_energy_misses(fitted: Best) -> None:
    other = toy(2000, seed=2)
    linear, best = (loss(other, m.predict(other).energy_gev) for m in (fitted.trees.linear, fitted))
    assert best < 0.9 * linear  # the visible fraction spreads by 14 %, all of it in the shape: far more than a tenth is to be had


def test_the_blend_is_no_worse_than_the_trees_alone_on_showers_left_out(fitted: Best) -> None:
    sample = toy(600, seed=1)
    # the shares were fitted to targets held within limits, hence not exactly a minimum of this loss
    assert loss(sample, fitted.left_out_gev) < 1.02 * loss(sample, fitted.trees.left_out_gev)
    assert fitted.share_trees >= 0
    assert fitted.share_nets >= 0
    assert fitted.share_trees + fitted.share_nets <= 1 + 1e-12


def test_two_thirds_of_other_showers_lie_within_sigma(fitted: Best) -> None:
    other = toy(2000, seed=2)
    found = fitted.predict(other)
    within = (np.abs(found.energy_gev - other.energy_gev) < found.sigma_gev).mean()
    # 600 training showers tell a 68 % quantile to 2 %, 2,000 test showers to 1 %; three of both
    assert abs(within - 0.683) < 0.07


def test_the_spread_is_sized_by_showers_that_it_has_not_seen_either(fitted: Best) -> None:
    sample = toy(600, seed=1)
    for off, sigma in (
        (fitted.trees.left_out_gev - sample.energy_gev, fitted.trees.left_out_sigma_gev),
        (fitted.left_out_gev - sample.energy_gev, fitted.spread_scale * fitted.trees.left_out_sigma_gev),
    ):
        assert abs((np.abs(off) < sigma).mean() - 0.683) < 2 / 600  # by construction, to one shower and a tie


def test_devices_may_be_named_otherwise_than_tensors_name_them() -> None:
    # "cpu:0" is to "cpu" what "cuda" is to "cuda:0": unequal as a key, the same device
    named, plain = (fit_best(toy(40, seed=1), device=device).state()[0] for device in ("cpu:0", "cpu"))
    assert all(np.array_equal(named[name], array) for name, array in plain.items())


def test_same_seed_same_weights_and_another_seed_others(fitted: Best) -> None:
    arrays, meta = fitted.state()
    again, meta_again = fit_best(toy(600, seed=1), seed=3).state()
    assert meta == meta_again
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    other, _ = fit_best(toy(600, seed=1), seed=4).state()
    assert not np.array_equal(arrays["net0.weight"], other["net0.weight"])


def test_a_shower_has_the_same_energy_in_any_company_and_whatever_the_truth_is(fitted: Best) -> None:
    other = toy(700, seed=2)
    found = fitted.predict(other)
    order = np.random.default_rng(0).permutation(700)
    assert np.array_equal(fitted.predict(other.select(order)).energy_gev, found.energy_gev[order])
    assert np.array_equal(fitted.predict(other.select([5])).energy_gev, found.energy_gev[5:6])
    blind = EnergySample(other.layer_energy_mev, np.full(700, 7.0), np.full(700, 11))
    assert np.array_equal(fitted.predict(blind).energy_gev, found.energy_gev)


def test_a_killed_fit_goes_on_to_the_same_bytes(tmp_path, fitted: Best) -> None:
    def stop(epoch) -> None:
        if epoch.number == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_best(toy(600, seed=1), seed=3, progress=stop, checkpoint_dir=tmp_path)
    arrays, _ = fit_best(toy(600, seed=1), seed=3, checkpoint_dir=tmp_path).state()
    assert all(np.array_equal(arrays[name], array) for name, array in fitted.state()[0].items())


@pytest.mark.parametrize("is_linearised", [False, True])
def test_saving_and_loading_changes_nothing(tmp_path, fitted: Best, is_linearised: bool) -> None:
    model = linearise(fitted, toy(600, seed=1)) if is_linearised else fitted
    save_model(model, tmp_path)
    loaded, other = load_energy_model(tmp_path), toy(300, seed=2)
    assert isinstance(loaded, Linearised if is_linearised else Best)
    for name in ("energy_gev", "sigma_gev"):
        assert np.array_equal(getattr(loaded.predict(other), name), getattr(model.predict(other), name))
    if is_linearised:
        with pytest.raises(ValueError, match="right after its fit"):
            linearise(loaded.model, other)


def test_a_linearised_model_responds_with_one_at_every_energy() -> None:
    sample, other = toy(3000, seed=5), toy(20_000, seed=6)
    plain, linear = (fit_energy("linear", sample, is_linearised=is_linear) for is_linear in (False, True))
    worst = {}
    for name, model in (("plain", plain), ("linear", linear)):
        ratio = model.predict(other).energy_gev / other.energy_gev
        bins = np.digitize(other.energy_gev, [5, 10, 20, 40, 60, 85])
        worst[name] = max(abs(ratio[bins == b].mean() - 1) for b in range(1, 6))
    # the smallest bin has 1,000 showers, some 15 % wide: three errors of its mean are 1.4 %, and the 3,000 of the fit have theirs
    assert worst["linear"] < 0.02
    assert worst["linear"] <= worst["plain"] + 0.002


def test_showers_that_leave_nothing_get_a_finite_energy(fitted: Best) -> None:
    empty = EnergySample(np.zeros((2, 12)), [5.0, 50.0], [-211, -211])
    found = fitted.predict(empty)
    assert np.isfinite(found.energy_gev).all()
    assert (found.energy_gev > 0).all()


def test_what_cannot_be_fitted_or_loaded_is_said(tmp_path, fitted: Best) -> None:
    with pytest.raises(ValueError, match=r"'bset' is not one of .* did you mean best"):
        fit_energy("bset", toy(100, seed=1))
    with pytest.raises(ValueError, match=r"uncalibrated.*cannot be linearised"):
        fit_energy("uncalibrated", toy(200, seed=1), is_linearised=True)
    with pytest.raises(ValueError, match="layers"):
        fitted.predict(toy(30, seed=1, n_layers=11))

    class Other:
        name = "ridge"

        def state(self):
            return {"a": np.zeros(1)}, {}

    save_model(Other(), tmp_path)
    with pytest.raises(FileFormatError, match="no energy regressor"):
        load_energy_model(tmp_path)
