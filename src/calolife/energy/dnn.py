"""The published network: a multilayer perceptron that reads the layers and answers with an energy above zero.

Loads torch: import it inside the function that needs it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import Tensor, nn

from calolife.energy.features import EnergySample, FloatArray, Prediction, check_sample, check_training, split_validation
from calolife.energy.linear import Spread, fit_spread
from calolife.training import Epoch, dropout, find_devices, initialise, limit_threads, train

__all__ = ["LAYERS_FIRST", "LAYERS_LATER", "Dnn", "fit_dnn"]

LAYERS_FIRST, LAYERS_LATER = (256, 128), (256, 128, 64)  # published: the first form, without dropout; the later one, with 0.2
_LR, _BATCH, _EPOCHS, _PATIENCE = 1e-3, 256, 500, 25  # published
_WEIGHT_DECAY = 0.01  # of AdamW in PyTorch; the publication names none
_CLIP_NORM = 10.0  # chosen: the publication gives no length; cross-validated, 10 is 2 % better than 1 on two stacks, within error
_TILE = 8  # chosen: showers per matrix product; more are 10 % faster in bulk, but one shower costs a whole tile
_AT_ONCE = 512  # chosen: showers whose hidden values are held at once, 1 MB a layer


class _Perceptron(nn.Module):
    """Linear layers with GELU and dropout between them, Softplus at the end.

    Parameters
    ----------
    sizes : sequence of int
        From the inputs to the one output.
    rate : float
        Of the dropout.
    """

    def __init__(self, sizes: Sequence[int], rate: float) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.rate = rate

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Energies in units of the scale, (B, layer) -> (B,); with dropout where there is a generator."""
        *hidden, last = self.linear
        for layer in hidden:
            x = dropout(nn.functional.gelu(layer(x)), self.rate, generator)
        return nn.functional.softplus(last(x)).squeeze(1)  # (B, 1) -> (B,)


@dataclass(frozen=True, eq=False)
class Dnn:
    """The fitted network; `fit_dnn` makes it.

    Parameters
    ----------
    mean, width : float array, (layer,) [MeV]
        Of the layers of the showers trained on: what the inputs are standardised with.
    scale_gev : float [GeV]
        Energy of an output of one: the mean of the showers trained on.
    weights : tuple of (weight, bias) float32 arrays per layer
        weight (out, in), bias (out,).
    spread : Spread
        Of the validation showers.
    dropout : float
        Part of the hidden values that training left out.
    loss, validation_loss : float array, (epoch,) [GeV]
        Mean (E - E')^2 / E of each epoch; that of the training is with dropout, and of weights on the move.
    best_epoch : int
        Epoch, from 1, whose weights were kept.
    left_out_gev : float array, (shower,) [GeV]
        Energy of each validation shower among the training showers, NaN for those trained on; not stored.
    digest : str
        Detector it was fitted on; empty where not known.
    """

    name: ClassVar[str] = "dnn"
    mean: FloatArray
    width: FloatArray
    scale_gev: float
    weights: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    spread: Spread
    dropout: float
    loss: FloatArray
    validation_loss: FloatArray
    best_epoch: int
    left_out_gev: FloatArray
    digest: str = ""

    @property
    def n_layers(self) -> int:
        return int(self.mean.size)

    @property
    def layers(self) -> tuple[int, ...]:
        """Sizes of the hidden layers."""
        return tuple(bias.size for _, bias in self.weights[:-1])

    def predict(self, sample: EnergySample) -> Prediction:
        """Energy of each shower, from its layers alone; above zero always.

        Raises
        ------
        ValueError
            Another number of layers, or another detector, than that of the training.
        """
        check_sample(sample, n_layers=self.n_layers, digest=self.digest)
        energy = self._energies(sample.layer_energy_mev)
        return Prediction(energy, self.spread.at(energy))

    @cached_property
    def _matrices(self) -> list[tuple[FloatArray, FloatArray]]:
        return [(weight.astype(np.float64).T, bias.astype(np.float64)) for weight, bias in self.weights]

    def _energies(self, layer_energy_mev: FloatArray) -> FloatArray:
        """Energies, (shower, layer) -> (shower,) [GeV]: each the same whatever stands beside it.

        A matrix product rounds a row differently in products of different size. So all products have one size, and what
        might be left in the last digits of double precision is cut off.
        """
        n = layer_energy_mev.shape[0]
        energy = np.empty(n, np.float32)
        for start in range(0, n, _AT_ONCE):
            part = layer_energy_mev[start : start + _AT_ONCE]
            x = np.zeros((-(-part.shape[0] // _TILE) * _TILE, part.shape[1]))
            x[: part.shape[0]] = (part - self.mean) / self.width
            x = x.reshape(-1, _TILE, part.shape[1])  # NumPy multiplies a stack tile by tile
            for k, (weight, bias) in enumerate(self._matrices):
                x = x @ weight + bias
                if k < len(self._matrices) - 1:
                    x *= 0.5 * (1.0 + erf(x * np.sqrt(0.5)))  # GELU
            energy[start : start + _AT_ONCE] = self.scale_gev * np.logaddexp(0.0, x.ravel()[: part.shape[0]])  # Softplus
        return energy.astype(np.float64)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON-able rest, for storage."""
        arrays: dict[str, NDArray[Any]] = {"mean": self.mean, "width": self.width}
        arrays |= {"loss": self.loss, "validation_loss": self.validation_loss}
        arrays["spread"] = np.array(astuple(self.spread))
        for k, (weight, bias) in enumerate(self.weights):
            arrays |= {f"layer{k}.weight": weight, f"layer{k}.bias": bias}
        meta = {"scale_gev": self.scale_gev, "dropout": self.dropout, "best_epoch": self.best_epoch, "digest": self.digest}
        return arrays, meta | {"n_matrices": len(self.weights)}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Dnn:
        """The model that `state` described."""
        return cls(
            mean=arrays["mean"], width=arrays["width"], scale_gev=float(meta["scale_gev"]),
            weights=tuple((arrays[f"layer{k}.weight"], arrays[f"layer{k}.bias"]) for k in range(int(meta["n_matrices"]))),
            spread=Spread(*arrays["spread"].tolist()), dropout=float(meta["dropout"]), loss=arrays["loss"],
            validation_loss=arrays["validation_loss"], best_epoch=int(meta["best_epoch"]), left_out_gev=np.empty(0),
            digest=str(meta["digest"]),
        )  # fmt: skip


def fit_dnn(
    sample: EnergySample,
    *,
    seed: int = 0,
    layers: Sequence[int] = LAYERS_LATER,
    dropout: float = 0.2,
    epochs: int = _EPOCHS,
    device: str = "cpu",
    progress: Callable[[Epoch], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> Dnn:
    """Train the published network on the layers of showers.

    Parameters
    ----------
    sample : EnergySample
        Training showers, nothing else. A tenth, drawn by the seed, stops the training; their order does not matter.
    seed : int
    layers : sequence of int
        Sizes of the hidden layers. The first published form is ``layers=(256, 128), dropout=0.0``.
    dropout : float
        Part of the hidden values left out in each step, 0 <= dropout < 1.
    epochs : int
        Most epochs; 25 without a better validation loss end the training, and the best weights are kept.
    device : str
        See `calolife.training.train`.
    progress : function (Epoch) -> None, optional
    checkpoint_dir : path, optional
        Holds what a killed training goes on from, to the same bytes.

    Returns
    -------
    Dnn

    Raises
    ------
    ValueError
        Too few showers, or a setting out of range.
    NotConvergedError
        A loss that is not finite.

    Notes
    -----
    GELU between the layers, Softplus at the end, loss mean((E - E')^2 / E), AdamW with steps of 1e-3, batches of 256, clipped
    gradients, steps halved when the validation loss rests. Inputs are the sums of the layers, standardised with mean and
    width of the nine tenths trained on. Ours are the output in units of their mean energy, the length gradients are
    clipped to, and the halving: the publication leaves them open.
    """
    check_training(sample)
    sizes = tuple(layers)
    if not sizes or not all(isinstance(n, int) and n >= 1 for n in sizes):
        raise ValueError(f"layers = {layers} must be one whole number >= 1 or more, such as {LAYERS_FIRST} or {LAYERS_LATER}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout} must be >= 0 and < 1; published are 0 for {LAYERS_FIRST} and 0.2 for {LAYERS_LATER}")
    devices = find_devices(device)
    at, checks, fits = split_validation(sample, seed=seed)
    checked, fitted = sample.select(at[checks]), sample.select(at[fits])
    mean, width = fitted.layer_energy_mev.mean(axis=0), fitted.layer_energy_mev.std(axis=0)
    width = np.where(width > 0, width, 1.0)  # a layer that never changes tells nothing
    scale = float(fitted.energy_gev.mean())

    def tensors(part: EnergySample) -> tuple[Tensor, Tensor]:
        x = (part.layer_energy_mev - mean) / width
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(part.energy_gev.astype(np.float32))

    train_x, train_e = tensors(fitted)
    check_x, check_e = (t.to(devices[0]) for t in tensors(checked))
    copies = [(train_x.to(one), train_e.to(one)) for one in devices]
    data = {x.device: (x, e) for x, e in copies}
    net = _perceptron(sample.n_layers, sizes, dropout)
    initialise(net, seed=seed)

    def loss(net: _Perceptron, which: Tensor, generator: torch.Generator) -> Tensor:
        x, e = data[which.device]
        return _loss(scale * net(x[which], generator), e[which])

    def validate() -> float:
        return _loss(scale * net(check_x), check_e).item()

    # chosen: one thread, for batches of a millisecond; single precision on a GPU too: bfloat16 tells 0.4 % apart
    with limit_threads(1):
        done = train(
            net, loss, n_samples=fitted.n_showers, epochs=epochs, batch_size=_BATCH, lr=_LR, weight_decay=_WEIGHT_DECAY,
            clip_norm=_CLIP_NORM, schedule="plateau", validate=validate, patience=_PATIENCE, seed=seed, device=device,
            progress=progress, checkpoint_dir=checkpoint_dir, identity=_identity([train_x, train_e, check_x, check_e], [sizes, dropout]),
        )  # fmt: skip
    kept = {name: value.cpu().numpy().copy() for name, value in net.state_dict().items()}
    weights = tuple((kept[f"linear.{k}.weight"], kept[f"linear.{k}.bias"]) for k in range(len(sizes) + 1))
    model = Dnn(
        mean, width, scale, weights, Spread(0.0, 0.0, 0.0), float(dropout), np.array(done.loss), np.array(done.validation_loss),
        done.best_epoch, np.full(sample.n_showers, np.nan), sample.digest,
    )  # fmt: skip
    left_out, energy = model.left_out_gev, model.predict(checked).energy_gev
    left_out[at[checks]] = energy
    return replace(model, spread=fit_spread(energy, checked.energy_gev))


def _perceptron(n_inputs: int, sizes: Sequence[int], rate: float) -> _Perceptron:
    """Network without weights: PyTorch's constructors would draw them from the global generator."""
    with torch.device("meta"):
        net = _Perceptron((n_inputs, *sizes, 1), rate)
    return net.to_empty(device="cpu")


def _loss(predicted: Tensor, true: Tensor) -> Tensor:
    return ((predicted - true).square() / true).mean()


def _identity(tensors: Sequence[Tensor], settings: Sequence[object]) -> str:
    digest = hashlib.sha256(json.dumps([settings, [list(t.shape) for t in tensors]]).encode())
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
