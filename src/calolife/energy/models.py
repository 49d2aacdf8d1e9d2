"""The energy regressors by name: fit one, load one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calolife.energy.features import EnergySample, Prediction, n_validation
from calolife.energy.linear import Linear, ScaledSum, Uncalibrated, fit_linear, fit_sum, fit_uncalibrated
from calolife.energy.response import LEAST_SHOWERS, ResponseCorrection, check_response, fit_response
from calolife.errors import FileFormatError
from calolife.storage import load_model_state

if TYPE_CHECKING:
    from calolife.training import Epoch

__all__ = ["MODELS", "Linearised", "check_linearisable", "check_model", "fit_energy", "linearise", "load_energy_model"]


@dataclass(frozen=True, eq=False)
class Linearised:
    """A regressor whose mean response is brought to 1 at every true energy.

    Parameters
    ----------
    model
        Any of `MODELS` but ``uncalibrated``.
    correction : ResponseCorrection
        Fitted to training showers that the model had not seen.
    """

    model: Any
    correction: ResponseCorrection

    @property
    def name(self) -> str:
        """As stored, the word and the model's own name: ``linearised best``."""
        return f"{_LINEARISED}{self.model.name}"

    @property
    def n_layers(self) -> int:
        return int(self.model.n_layers)

    @property
    def digest(self) -> str:
        return str(self.model.digest)

    def predict(self, sample: EnergySample) -> Prediction:
        """Corrected energies of the model; raises what the model raises."""
        return self.correction.apply_to(self.model.predict(sample))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays, meta = self.model.state()
        own, own_meta = self.correction.state()
        return {f"model.{k}": v for k, v in arrays.items()} | own, {"model": meta, "correction": own_meta}


_LINEARISED = "linearised "


def _fit_dnn(sample: EnergySample, **settings: Any) -> Any:
    from calolife.energy.dnn import fit_dnn  # loads torch

    return fit_dnn(sample, **settings)


def _fit_best(sample: EnergySample, **settings: Any) -> Any:
    from calolife.energy.best import fit_best  # loads torch and LightGBM

    return fit_best(sample, **settings)


def _fit_trees(sample: EnergySample, *, seed: int = 0) -> Any:
    from calolife.energy.trees import fit_trees  # loads LightGBM

    return fit_trees(sample, seed=seed)


def _fit_bdt(sample: EnergySample, *, seed: int = 0, progress: Callable[[Epoch], None] | None = None) -> Any:
    from calolife.energy.bdt import fit_bdt  # loads LightGBM

    return fit_bdt(sample, seed=seed, progress=progress)


def _fit_drn(sample: EnergySample, **settings: Any) -> Any:
    from calolife.energy.drn_model import fit_drn  # loads torch

    return fit_drn(sample, **settings)


def _fit_blend(sample: EnergySample, **settings: Any) -> Any:
    from calolife.energy.blend import fit_blend  # loads torch and LightGBM

    return fit_blend(sample, **settings)


MODELS: dict[str, Callable[..., Any]] = {
    "uncalibrated": fit_uncalibrated,
    "sum": fit_sum,
    "linear": fit_linear,
    "dnn": _fit_dnn,
    "trees": _fit_trees,
    "best": _fit_best,
    "bdt": _fit_bdt,
    "drn": _fit_drn,
    "blend": _fit_blend,
}
"""The regressors, from the plainest; `best` won the cross-validation on Geant4 showers (benchmarks/energy.py); three for crystals."""

_NETWORKS = ("dnn", "best", "drn", "blend")  # with a device, a progress and a checkpoint
_LAYERS_ONLY, _CRYSTALS_ONLY = ("dnn", "best"), ("bdt", "drn", "blend")


def fit_energy(
    name: str,
    sample: EnergySample,
    *,
    seed: int = 0,
    device: str = "cpu",
    is_linearised: bool = False,
    progress: Callable[[Epoch], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> Any:
    """Fit the energy regressor of this name.

    Parameters
    ----------
    name : {"uncalibrated", "sum", "linear", "dnn", "trees", "best", "bdt", "drn", "blend"}
        ``dnn`` and ``best`` read layers, ``bdt``, ``drn`` and their mean ``blend`` objects in crystals, the others both.
    sample : EnergySample
        Training showers, nothing else.
    seed : int
    device : str
        Of the networks.
    is_linearised : bool
        Bring the mean response to 1 at every true energy, by a rising curve fitted to training showers that the model had
        not seen; it costs a little resolution. See `fit_response`.
    progress : function (Epoch) -> None, optional
    checkpoint_dir : path, optional
        Where networks keep what a killed fit goes on from.

    Returns
    -------
    model
        Has ``predict(sample) -> Prediction`` and ``state()``.

    Raises
    ------
    ValueError
        An unknown name, a sample that the model cannot read or be fitted to, or ``uncalibrated`` linearised.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> layers = rng.gamma(2.0, 100.0, (200, 3))
    >>> toy = EnergySample(layers, layers @ [0.02, 0.01, 0.04], np.full(200, -211))
    >>> fit_energy("linear", toy).weight.round(2).tolist()
    [20.0, 10.0, 40.0]
    """
    check_model(name, sample)
    if is_linearised:
        check_linearisable(name, sample)
    if name in _NETWORKS:
        model = MODELS[name](sample, seed=seed, device=device, progress=progress, checkpoint_dir=checkpoint_dir)
    elif name == "bdt":
        model = MODELS[name](sample, seed=seed, progress=progress)
    else:
        model = MODELS[name](sample, seed=seed)
    return linearise(model, sample, seed=seed) if is_linearised else model


def check_model(name: str, sample: EnergySample) -> None:
    """Check that there is a model of this name, and that it reads what a sample has.

    Parameters
    ----------
    name : str
    sample : EnergySample

    Raises
    ------
    ValueError
        An unknown name, a model of crystals for showers in layers, or the other way round.

    Examples
    --------
    >>> check_model("drn", EnergySample([[1.0, 2.0]], [1.0], [22]))
    Traceback (most recent call last):
    ValueError: model drn reads crystals, and these showers have layers; take uncalibrated, sum, linear, dnn, trees or best
    """
    if name not in MODELS:
        near = get_close_matches(name, MODELS, n=1)
        raise ValueError(f"model {name!r} is not one of {', '.join(MODELS)}" + (f"; did you mean {near[0]}?" if near else ""))
    is_crystals = sample.objects is not None
    wrong = _LAYERS_ONLY if is_crystals else _CRYSTALS_ONLY
    if name not in wrong:
        return
    *others, last = (m for m in MODELS if m not in wrong)
    what = "layers, and these are objects in crystals" if is_crystals else "crystals, and these showers have layers"
    raise ValueError(f"model {name} reads {what}; take {', '.join(others)} or {last}")


def check_linearisable(name: str, sample: EnergySample) -> None:
    """Check before a fit, which may take long, that its model can be linearised after it.

    Parameters
    ----------
    name : str
        Of the model.
    sample : EnergySample
        The showers it will be fitted to.

    Raises
    ------
    ValueError
        ``uncalibrated``, too few showers to know the response, or all at one energy.
    """
    if name == "uncalibrated":
        raise ValueError("model 'uncalibrated' is the visible energy as it is and cannot be linearised; take sum, or leave it as it is")
    n = n_validation(sample.n_showers)
    if name in ("dnn", "bdt", "drn", "blend") and n < LEAST_SHOWERS:
        raise ValueError(
            f"{sample.n_showers} showers are too few to linearise {name}: it is judged by the {n} that stop its training, and "
            f"{LEAST_SHOWERS} are needed; give {LEAST_SHOWERS * 10} or more"
        )
    check_response(sample.energy_gev)


def linearise(model: Any, sample: EnergySample, *, seed: int = 0) -> Linearised:
    """A model that was just fitted, with its mean response brought to 1.

    Parameters
    ----------
    model
        As a fit returned it: a loaded one no longer knows what it made of showers left out.
    sample : EnergySample
        The showers it was fitted to, in the same order.
    seed : int

    Raises
    ------
    ValueError
        ``uncalibrated``, a loaded model, or too few showers to know the response.
    """
    check_linearisable(model.name, sample)
    # one scale fitted to all showers tells nothing about any of them
    left_out = model.predict(sample).energy_gev if model.name == "sum" else model.left_out_gev
    if left_out.size != sample.n_showers:
        raise ValueError(f"the model knows {left_out.size} showers left out, not {sample.n_showers}; linearise it right after its fit")
    is_judged = np.isfinite(left_out)  # the network judges its validation showers only
    return Linearised(model, fit_response(left_out[is_judged], sample.energy_gev[is_judged], seed=seed))


def load_energy_model(directory: str | Path) -> Any:
    """The energy regressor stored in a run directory.

    Raises
    ------
    FileFormatError
        No energy regressor there, or a damaged one.
    """
    name, arrays, meta = load_model_state(directory)
    own = name.removeprefix(_LINEARISED)
    if own not in MODELS:
        raise FileFormatError(f"{directory} holds a model {name!r}, no energy regressor; those are {', '.join(MODELS)}")
    try:
        if own == name:
            return _kind(own).from_state(arrays, meta)
        inner = {k.removeprefix("model."): v for k, v in arrays.items() if k.startswith("model.")}
        return Linearised(_kind(own).from_state(inner, meta["model"]), ResponseCorrection.from_state(arrays, meta["correction"]))
    except KeyError as error:
        raise FileFormatError(f"{directory} holds a model {name!r} that lacks {error}; train it again") from error
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{directory} holds a model {name!r} that cannot be read: {error}") from error


def _kind(name: str) -> Any:
    """The class of a model; those that load torch or LightGBM only when asked for."""
    if name == "best":
        from calolife.energy.best import Best

        return Best
    if name == "dnn":
        from calolife.energy.dnn import Dnn

        return Dnn
    if name == "drn":
        from calolife.energy.drn_model import DrnModel

        return DrnModel
    if name == "blend":
        from calolife.energy.blend import Blend

        return Blend
    if name == "bdt":
        from calolife.energy.bdt import Bdt

        return Bdt
    if name == "trees":
        from calolife.energy.trees import Trees

        return Trees
    return {"uncalibrated": Uncalibrated, "sum": ScaledSum, "linear": Linear}[name]
