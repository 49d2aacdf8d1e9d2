"""The one supervised training loop: early stopping, best weights, a checkpoint each epoch, resumption to the same bytes."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from calolife.errors import FileFormatError, NotConvergedError

__all__ = ["SCHEDULES", "Epoch", "Training", "dropout", "find_devices", "initialise", "limit_threads", "train"]

SCHEDULES = ("constant", "cosine", "plateau")
_PLATEAU_FACTOR = 0.5  # chosen: two in a row, before an early stop with a patience of 25, still leave a quarter of the step
_PLATEAU_PATIENCE = 10  # epochs; PyTorch's default
_CHECKPOINT = "checkpoint.safetensors"
_FORMAT = "calolife training checkpoint 1"

Net = TypeVar("Net", bound=nn.Module)


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


def dropout(values: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Set a random part of the values to zero and scale up the others, so that their sum is the same on average.

    Parameters
    ----------
    values : float tensor, (...)
    rate : float
        Probability of a zero, below 1.
    generator : torch.Generator, optional
        The one that `train` gives to the loss; without it (in validation and use) the values are returned as they are.

    Returns
    -------
    float tensor, (...)

    Notes
    -----
    For networks that `train` trains, instead of ``nn.Dropout``, which draws from PyTorch's global generator.
    """
    if generator is None or rate == 0:
        return values
    if values.device.type != generator.device.type:  # masks are drawn where they are used
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(values.device).manual_seed(seed)
    keep = torch.rand(values.shape, generator=generator, device=values.device) >= rate
    return values * keep / (1 - rate)


def find_devices(device: str) -> tuple[torch.device, ...]:
    """The PyTorch devices of a name such as ``cpu``, ``cuda``, or ``cuda:0,cuda:1``.

    Raises
    ------
    ValueError
        A name PyTorch does not know, or a GPU that is not there.

    Examples
    --------
    >>> find_devices("cpu")
    (device(type='cpu'),)
    """
    try:
        found = tuple(torch.device(name.strip()) for name in device.split(","))
    except RuntimeError:
        raise ValueError(f"device {device!r} is unknown to PyTorch; write cpu, cuda, or several such as cuda:0,cuda:1") from None
    n_gpus = torch.cuda.device_count()
    for one in found:
        if one.type == "cuda" and (one.index or 0) >= n_gpus:
            raise ValueError(f"device {str(one)!r} is not there: PyTorch sees {n_gpus} GPUs; use one of them, or device='cpu'")
    return found


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
    net: Net,
    loss: Callable[[Net, Tensor, torch.Generator], Tensor],
    *,
    n_samples: int,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    schedule: str = "constant",
    validate: Callable[[], float] | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    is_mixed: bool = False,
    progress: Callable[[Epoch], None] | None = None,
    checkpoint_dir: Path | None = None,
    identity: str = "",
) -> Training:
    """Train a network with Adam and leave the best weights in it.

    Parameters
    ----------
    net : torch.nn.Module
        Changed in place and moved to `device`.
    loss : function (net, sample, generator) -> scalar tensor
        Mean loss of the samples with these indices, (sample,) int64, by this network: on several devices it is
        a copy, and copy and indices are on the same one. Randomness inside a step (teacher forcing, `dropout`)
        must come from the generator: a resumed run repeats it.
    n_samples : int
        Each is visited exactly once an epoch, in a new order each time.
    epochs : int
        Most epochs to run.
    batch_size : int
        Largest batch; the samples are dealt into batches as equal as can be.
    lr : float
        Step size of Adam.
    weight_decay : float
        Above 0 the optimiser is AdamW with this decay.
    clip_norm : float, optional
        Gradients longer than this, all weights taken together, are shortened to it.
    schedule : {"constant", "cosine", "plateau"}
        Step size of an epoch: `lr`; `lr` falling to 0 over `epochs` along half a cosine; `lr` halved each time
        the validation loss has not improved for 10 epochs.
    validate : function () -> float, optional
        Loss on samples that are not trained on; called without gradients after each epoch.
    patience : int, optional
        Stop after this many epochs without a better validation loss; never when left out.
    seed : int
        Order of the samples and the generator given to `loss`.
    device : str
        A PyTorch device such as ``cpu`` or ``cuda``. Several, as in ``cuda:0,cuda:1``, share each batch.
    is_mixed : bool
        On GPUs, compute the loss in bfloat16 where PyTorch deems it safe; without effect on a CPU. Weights, gradients and
        validation stay in single precision.
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
        Settings out of range, a device that is not there, a layer that draws from PyTorch's global generator, or a
        checkpoint of another training.
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
    of the seed and the epoch alone, and its step size of the settings and the losses before it, so there is no
    state of a generator or a schedule to save.

    Several devices take equal parts of each batch, one process drives them, and their gradients are summed on the
    first: the result is that of one device up to rounding, and up to the random numbers of the loss. It pays when
    a batch keeps a device busy for milliseconds.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 64).reshape(-1, 1)
    >>> line = nn.Linear(1, 1)
    >>> initialise(line, seed=1)
    >>> done = train(line, lambda net, i, _: nn.functional.mse_loss(net(x[i]), 3 * x[i]), n_samples=64, epochs=200, batch_size=8, lr=0.02)
    >>> round(line.weight.item(), 2)
    3.0
    """
    _check(
        n_samples=n_samples, epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm,
        schedule=schedule, patience=patience, can_validate=validate is not None,
    )  # fmt: skip
    _check_dropout(net)
    devices = find_devices(device)
    net.to(devices[0])
    is_mixed = is_mixed and devices[0].type == "cuda"
    parameters = list(net.parameters())
    optimiser: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=lr)
    if weight_decay > 0:
        optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    best = {name: p.detach().clone() for name, p in net.state_dict().items()}
    losses: list[float] = []
    validation: list[float] = []
    best_epoch = 0
    settings: dict[str, Any] = {
        "identity": identity, "n_samples": n_samples, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "clip_norm": clip_norm, "schedule": schedule, "seed": seed, "is_mixed": is_mixed, "is_validated": validate is not None,
    }  # fmt: skip
    if schedule == "cosine":  # otherwise a finished training may be prolonged
        settings["epochs"] = epochs
    if checkpoint_dir is not None and (found := _read(checkpoint_dir, settings)) is not None:
        tensors, record = found
        losses, validation, best_epoch = record["loss"], record["validation_loss"], record["best_epoch"]
        best = _restore(net, optimiser, tensors, devices[0])
    replicas = [net] + [copy.deepcopy(net).to(other) for other in devices[1:]]
    try:
        while len(losses) < epochs and not _is_over(len(losses), best_epoch, patience):
            epoch = len(losses) + 1
            generator = torch.Generator().manual_seed(_stream(seed, epoch))
            for group in optimiser.param_groups:
                group["lr"] = _lr_after(validation, lr=lr, schedule=schedule, epochs=epochs)
            for replica in replicas:
                replica.train()
            parts: list[tuple[Tensor, int]] = []
            order = torch.randperm(n_samples, generator=generator).to(devices[0])
            for sample in order.tensor_split(-(-n_samples // batch_size)):
                parts += _backward(replicas, devices, loss, sample, generator, is_mixed=is_mixed)
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, clip_norm)
                optimiser.step()
            total = 0.0
            for value, n in parts:  # only now: reading a value waits for the GPU
                total += value.item() * n
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


def _backward(
    replicas: Sequence[Net],
    devices: Sequence[torch.device],
    loss: Callable[[Net, Tensor, torch.Generator], Tensor],
    sample: Tensor,
    generator: torch.Generator,
    *,
    is_mixed: bool,
) -> list[tuple[Tensor, int]]:
    """Leave the gradients of a batch in the first replica; mean losses and sizes of the replicas' shares."""
    shares = [share for share in sample.tensor_split(len(replicas)) if share.numel()]  # the last batch may be small
    made: list[tuple[Tensor, int]] = []
    first = replicas[0]
    for net, device, share in zip(replicas, devices, shares, strict=False):
        net.zero_grad(set_to_none=True)
        if net is not first:
            with torch.no_grad():
                for own, weight in zip(net.parameters(), first.parameters(), strict=True):
                    own.copy_(weight)
        # no scaling of gradients: bfloat16 has the range of single precision
        with torch.autocast(device.type, torch.bfloat16, enabled=True) if is_mixed else nullcontext():
            value = loss(net, share.to(device), generator)
        # a GPU works on its share while the next is launched
        (value * (share.numel() / sample.numel()) if len(shares) > 1 else value).backward()  # type: ignore[no-untyped-call]
        made.append((value.detach(), share.numel()))
    for net in replicas[1 : len(shares)]:
        for own, weight in zip(net.parameters(), first.parameters(), strict=True):
            if own.grad is not None:
                gradient = own.grad.to(weight.device)
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
    return made


def _lr_after(validation: Sequence[float], *, lr: float, schedule: str, epochs: int) -> float:
    """Step size of the epoch that comes after those with these validation losses."""
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * len(validation) / epochs)) / 2
    best, n_waited = math.inf, 0
    for checked in validation if schedule == "plateau" else ():
        n_waited = 0 if checked < best else n_waited + 1
        best = min(best, checked)
        if n_waited == _PLATEAU_PATIENCE:
            lr, n_waited = lr * _PLATEAU_FACTOR, 0
    return lr


def _stream(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _is_over(n_done: int, best_epoch: int, patience: int | None) -> bool:
    return patience is not None and n_done - best_epoch >= patience


def _check(
    *, n_samples: int, epochs: int, batch_size: int, lr: float, weight_decay: float, clip_norm: float | None, schedule: str,
    patience: int | None, can_validate: bool,
) -> None:  # fmt: skip
    for name, got in (("n_samples", n_samples), ("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if got is not None and got < 1:
            raise ValueError(f"{name} = {got} must be >= 1")
    for name, size in (("lr", lr), ("clip_norm", clip_norm)):
        if size is not None and not (math.isfinite(size) and size > 0):
            raise ValueError(f"{name} = {size} must be > 0")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay = {weight_decay} must be >= 0")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    if patience is not None and not can_validate:
        raise ValueError(f"patience = {patience} needs a validation loss to watch; give validate, or leave patience out")
    if schedule == "plateau" and not can_validate:
        raise ValueError("schedule 'plateau' needs a validation loss to watch; give validate, or choose constant or cosine")


def _check_dropout(net: nn.Module) -> None:
    for name, layer in net.named_modules():
        is_dropout = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
        if is_dropout or (isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)) and layer.dropout > 0):
            raise ValueError(
                f"layer {name or 'net'} ({type(layer).__name__}) drops values by PyTorch's global generator, so that a resumed training "
                "differs; set its dropout to 0 and call calolife.training.dropout with the generator that the loss gets"
            )


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


def _restore(net: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
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
