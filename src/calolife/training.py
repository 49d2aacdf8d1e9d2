"""The one supervised training loop: early stopping, best weights, a checkpoint each epoch, resumption to the same bytes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from calolife.errors import FileFormatError, NotConvergedError

__all__ = ["Epoch", "Training", "initialise", "limit_threads", "train"]

_CHECKPOINT = "checkpoint.safetensors"
_FORMAT = "calolife training checkpoint 1"


@dataclass(frozen=True)
class Epoch:
    """One finished epoch, as the progress callback sees it.

    Parameters
    ----------
    number, n_epochs : int
        Counted from 1, and the most there can be.
    loss : float
        Mean training loss over the epoch's samples.
    validation_loss : float
        NaN without a validation set.
    is_best : bool
        These are the weights that will be kept so far.
    """

    number: int
    n_epochs: int
    loss: float
    validation_loss: float
    is_best: bool


@dataclass(frozen=True)
class Training:
    """How a training went.

    Parameters
    ----------
    loss, validation_loss : tuple of float, (epoch,)
        Validation losses are NaN without a validation set.
    best_epoch : int
        Epoch, from 1, whose weights were kept.
    is_stopped_early : bool
        The validation loss had stopped improving.
    """

    loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_epoch: int
    is_stopped_early: bool


def initialise(net: nn.Module, *, seed: int) -> None:
    """Draw the weights of a network from a seed, in place.

    Parameters
    ----------
    net : torch.nn.Module
        Made of linear, recurrent and normalisation layers.
    seed : int

    Raises
    ------
    TypeError
        A layer with weights of another kind.

    Notes
    -----
    PyTorch's own defaults, U(-b, b) with b = 1/sqrt(inputs) for a linear layer and 1/sqrt(hidden) for a
    recurrent one, but from a generator of ours: PyTorch's constructors draw from the global one.
    """
    generator = torch.Generator().manual_seed(_stream(seed, 0))
    for name, layer in net.named_modules():
        own = list(layer.parameters(recurse=False))
        if not own:
            continue
        if isinstance(layer, nn.RNNBase):
            bound = 1 / math.sqrt(layer.hidden_size)
        elif isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
            continue
        else:
            raise TypeError(f"layer {name or 'net'} is a {type(layer).__name__}; linear, recurrent and LayerNorm layers can be initialised")
        with torch.no_grad():
            for weight in own:
                # drawn on the CPU: the weights must not depend on the device
                weight.copy_(torch.rand(weight.shape, generator=generator).mul_(2 * bound).sub_(bound))


@contextmanager
def limit_threads(n_threads: int | None) -> Iterator[None]:
    """Run PyTorch on so many threads inside the ``with`` block; None leaves their number alone.

    Notes
    -----
    Small networks gain nothing from a second thread, and lose much on a busy machine, where threads wait
    for one another between operations of microseconds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if n_threads is None else n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    net: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    *,
    n_samples: int,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    validate: Callable[[], float] | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[Epoch], None] | None = None,
    checkpoint_dir: Path | None = None,
    identity: str = "",
) -> Training:
    """Train a network with Adam and leave the best weights in it.

    Parameters
    ----------
    net : torch.nn.Module
        Changed in place and moved to `device`.
    loss : function (sample, generator) -> scalar tensor
        Mean loss of the samples with these indices, (sample,) int64. Randomness inside a step (teacher
        forcing, dropout masks) must come from the generator: a resumed run repeats it.
    n_samples : int
        Each is visited exactly once an epoch, in a new order each time.
    epochs : int
        Most epochs to run.
    batch_size : int
        Largest batch; the samples are dealt into batches as equal as can be.
    lr : float
        Step size of Adam.
    validate : function () -> float, optional
        Loss on samples that are not trained on; called without gradients after each epoch.
    patience : int, optional
        Stop after this many epochs without a better validation loss; never when left out.
    seed : int
        Order of the samples and the generator given to `loss`.
    device : str
        A PyTorch device such as ``cpu`` or ``cuda``.
    progress : function (Epoch) -> None, optional
    checkpoint_dir : path, optional
        Holds one checkpoint, replaced after every epoch. A checkpoint found there is resumed.
    identity : str
        What is trained on what (a hash will do): a checkpoint with another identity is refused.

    Returns
    -------
    Training

    Raises
    ------
    ValueError
        Settings out of range, or a checkpoint of another training.
    FileFormatError
        A checkpoint that cannot be read.
    NotConvergedError
        A loss that is not finite.
    KeyboardInterrupt
        Passed on, with the best weights so far in `net` and the last finished epoch on disk.

    Notes
    -----
    A run killed at any moment and resumed ends with the same bytes as one left alone, on the same machine
    and number of threads (they set the order of floating-point sums). Each epoch's randomness is a function
    of the seed and the epoch alone, so there is no generator state to save.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 64).reshape(-1, 1)
    >>> line = nn.Linear(1, 1)
    >>> initialise(line, seed=1)
    >>> done = train(line, lambda i, _: nn.functional.mse_loss(line(x[i]), 3 * x[i]), n_samples=64, epochs=200, batch_size=8, lr=0.02)
    >>> round(line.weight.item(), 2)
    3.0
    """
    _check(n_samples=n_samples, epochs=epochs, batch_size=batch_size, lr=lr, patience=patience, can_validate=validate is not None)
    net.to(device)
    parameters = dict(net.named_parameters())
    optimiser = torch.optim.Adam(parameters.values(), lr=lr)
    best = {name: p.detach().clone() for name, p in net.state_dict().items()}
    losses: list[float] = []
    validation: list[float] = []
    best_epoch = 0
    settings: dict[str, Any] = {"identity": identity, "n_samples": n_samples, "batch_size": batch_size, "lr": lr, "seed": seed}
    settings["is_validated"] = validate is not None
    if checkpoint_dir is not None and (found := _read(checkpoint_dir, settings)) is not None:
        tensors, record = found
        losses, validation, best_epoch = record["loss"], record["validation_loss"], record["best_epoch"]
        best = _restore(net, optimiser, tensors, device)
    try:
        while len(losses) < epochs and not _is_over(len(losses), best_epoch, patience):
            epoch = len(losses) + 1
            generator = torch.Generator().manual_seed(_stream(seed, epoch))
            net.train()
            total = 0.0
            order = torch.randperm(n_samples, generator=generator).to(device)
            for sample in order.tensor_split(-(-n_samples // batch_size)):
                optimiser.zero_grad(set_to_none=True)
                value = loss(sample, generator)
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += value.item() * sample.numel()
            net.eval()
            with torch.no_grad():
                checked = math.nan if validate is None else float(validate())
            if not math.isfinite(total) or (validate is not None and not math.isfinite(checked)):
                raise NotConvergedError(f"the loss is not finite in epoch {epoch}; lower lr = {lr:g} or look for wild inputs")
            is_best = validate is None or best_epoch == 0 or checked < validation[best_epoch - 1]
            losses.append(total / n_samples)
            validation.append(checked)
            if is_best:
                best_epoch = epoch
                best = {name: p.detach().clone() for name, p in net.state_dict().items()}
            if checkpoint_dir is not None:
                record = {"loss": losses, "validation_loss": validation, "best_epoch": best_epoch}
                _write(checkpoint_dir, settings, record, net, optimiser, best)
            if progress is not None:
                progress(Epoch(epoch, epochs, losses[-1], checked, is_best))
    finally:
        net.load_state_dict(best)
        net.eval()
    return Training(tuple(losses), tuple(validation), best_epoch, len(losses) < epochs)


def _stream(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _is_over(n_done: int, best_epoch: int, patience: int | None) -> bool:
    return patience is not None and n_done - best_epoch >= patience


def _check(*, n_samples: int, epochs: int, batch_size: int, lr: float, patience: int | None, can_validate: bool) -> None:
    for name, got in (("n_samples", n_samples), ("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if got is not None and got < 1:
            raise ValueError(f"{name} = {got} must be >= 1")
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr = {lr} must be > 0")
    if patience is not None and not can_validate:
        raise ValueError(f"patience = {patience} needs a validation loss to watch; give validate, or leave patience out")


def _write(
    folder: Path,
    settings: dict[str, Any],
    record: dict[str, Any],
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
) -> None:
    tensors = {f"net.{name}": p for name, p in net.state_dict().items()} | {f"best.{name}": p for name, p in best.items()}
    for k, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{k}.{name}": value for name, value in moments.items()}
    # one file: weights, moments and record can never be of different epochs
    document = json.dumps({"format": _FORMAT, "settings": settings, "record": record})
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_CHECKPOINT}.partial"
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial, metadata={"training": document})
    os.replace(partial, folder / _CHECKPOINT)


def _read(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    path = folder / _CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            document = json.loads((stored.metadata() or {})["training"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        is_ours = document["format"] == _FORMAT
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise FileFormatError(f"{path} is not a training checkpoint ({error}); delete it to start again") from error
    if not is_ours:
        raise FileFormatError(f"{path} has format {document['format']!r}, not {_FORMAT!r}; delete it to start again")
    for name, wanted in settings.items():
        if (got := document["settings"].get(name)) != wanted:
            raise ValueError(f"{path} belongs to another training ({name} {got!r}, now {wanted!r}); delete it or use another directory")
    return tensors, document["record"]


def _restore(net: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """Put a checkpoint's weights and moments in place; returns its best weights."""
    parts: dict[str, dict[str, Tensor]] = {"net": {}, "best": {}}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        if part == "adam":
            index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = value
        else:
            parts[part][name] = value.to(device)
    net.load_state_dict(parts["net"])
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return parts["best"]
