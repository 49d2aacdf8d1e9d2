"""Energy of electrons and photons in crystals by a dynamic reduction network.

Loads torch: import it inside the function that needs it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calolife.energy.ball import ball_half_width
from calolife.energy.crystal_ball import CrystalBall, crystal_ball_nll
from calolife.energy.drn import Drn, OutputLayers, infer, read_objects
from calolife.energy.drn_graph import rows_of
from calolife.energy.features import EnergySample, FloatArray, Prediction, check_sample, check_training, split_validation
from calolife.energy.objects import CRYSTAL_FEATURES, EVENT_INPUTS, HIT_INPUTS, Objects, network_inputs
from calolife.energy.peak_scale import AS_IS, PeakScale, fit_peak_scale
from calolife.training import Epoch, Training, find_devices, initialise, limit_threads, train

__all__ = ["PUBLISHED", "DrnModel", "Probe", "event_inputs", "fit_drn", "in_units", "inputs_of", "objects_to_read"]

PUBLISHED: dict[str, Any] = {"width": 64, "hidden": 128, "k": 16, "blocks": 2, "is_symmetric": True, "reads_features": False}
"""Arguments of `fit_drn` for the published network. Source: as `calolife.energy.drn.Drn`."""

_LR, _BATCH, _EPOCHS = 2e-3, 256, 30  # chosen: with 20,000 electrons; 200,000 gain with each epoch up to 30 (benchmarks/drn.py)
# chosen: by the likelihood of validation electrons (200,000 to train on), whose effective sigma it makes 1.5 % smaller; times the epochs
_OUTPUT_LR, _OUTPUT_BATCH, _OUTPUT_EPOCHS = 3e-3, 512, 2
_SHARES = 2  # chosen: parts of a batch, each by a thread of its own; another number rounds otherwise
_WEIGHT_DECAY, _CLIP_NORM = 1e-4, 1.0  # chosen
_AT_ONCE = 16_384  # chosen: objects whose inputs are held at once, 20 MB
# chosen: about the resolution of electrons in crystals. As units of what the network answers they leave it numbers of order 1 at
# 1 GeV and at 300: below 20 GeV, with few electrons to learn from, 15 +- 9 % better than without, above not worse
_STOCHASTIC_GEV_HALF, _NOISE_GEV, _CONSTANT, _UNIT = 0.03, 0.15, 0.004, 0.006
_N_PROBES = 64  # chosen: 60 kB


@dataclass(frozen=True, eq=False)
class Probe:
    """Inputs of a few validation objects: what an export of the model is checked on.

    Parameters
    ----------
    hit : float32 array, (hit, F)
    count : int array, (object,)
    event : float32 array, (object, G)
        As `calolife.energy.objects.network_inputs` gives them.
    raw_energy_gev : float array, (object,) [GeV]
    """

    hit: NDArray[np.float32]
    count: NDArray[np.int64]
    event: NDArray[np.float32]
    raw_energy_gev: FloatArray


@dataclass(frozen=True, eq=False)
class DrnModel:
    """The fitted network; `fit_drn` makes it.

    Parameters
    ----------
    width, hidden, k, blocks : int
    is_symmetric : bool
        Of the network, as `calolife.energy.drn.Drn`.
    reads_features : bool
        Whether it reads the features of the trees beside the hits.
    seed : int
    weights : mapping of str to float32 array
    scale : PeakScale
        Of energy and uncertainty, fitted on the validation objects.
    loss, validation_loss : float array, (epoch,)
        Mean -ln of the density at ln(E_raw / E_true) in each epoch, of all layers and then of the output layers alone; that of the
        training is of weights on the move.
    best_epoch : int
        Epoch, from 1, whose weights were kept.
    probe : Probe
    left_out_gev : float array, (shower,) [GeV]
        Energy of each validation object among the training objects, NaN for those trained on; not stored.
    digest : str
        Detector it was fitted on.
    """

    name: ClassVar[str] = "drn"
    n_layers: ClassVar[int] = 1
    width: int
    hidden: int
    k: int
    blocks: int
    is_symmetric: bool
    reads_features: bool
    seed: int
    weights: dict[str, NDArray[np.float32]]
    scale: PeakScale
    loss: FloatArray
    validation_loss: FloatArray
    best_epoch: int
    probe: Probe
    left_out_gev: FloatArray
    digest: str

    @cached_property
    def net(self) -> Drn:
        """The network with its weights."""
        net = _network(**{name: getattr(self, name) for name in _SIZES})
        net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in self.weights.items()})
        return net.eval()

    @property
    def event_inputs(self) -> tuple[str, ...]:
        """Names of the columns of `Probe.event`."""
        return event_inputs(reads_features=self.reads_features)

    def predict(self, sample: EnergySample, *, n_threads: int = 1) -> Prediction:
        """Energy and its uncertainty for each object, from its hits alone.

        Parameters
        ----------
        sample : EnergySample
        n_threads : int
            Threads to use; the answer does not depend on it.

        Raises
        ------
        ValueError
            A sample without hits of crystals, or another detector than that of the training.

        Notes
        -----
        E = E_raw exp(-mu) and sigma(E) = E times half of what lies between the 15.87 and 84.13 % quantiles of the Crystal Ball, both
        brought to scale on the validation objects (`fit_peak_scale`). In another company an object may have another energy, by 1e-6 of it:
        a matrix product rounds by its size.
        """
        objects = objects_to_read(sample, digest=self.digest)
        energy, sigma = np.empty((2, objects.n_objects))
        for start in range(0, objects.n_objects, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            some = sample if objects.n_objects <= _AT_ONCE else sample.select(np.arange(objects.n_objects)[part])
            inputs = inputs_of(some, reads_features=self.reads_features)
            found = self.of_inputs(*inputs, raw_energy_gev=some.visible_mev / 1000.0, n_threads=n_threads)
            energy[part], sigma[part] = found.energy_gev, found.sigma_gev
        return Prediction(energy, sigma)

    def of_inputs(
        self,
        hit: NDArray[np.float32],
        count: NDArray[np.int64],
        event: NDArray[np.float32],
        *,
        raw_energy_gev: FloatArray,
        n_threads: int = 1,
    ) -> Prediction:
        """Energy and its uncertainty from what `network_inputs` gives."""
        hits, counts, events = (torch.from_numpy(np.ascontiguousarray(a)) for a in (hit, count, event))
        raw = torch.from_numpy(raw_energy_gev.astype(np.float32))
        mu, half = _peak_and_half_width(in_units(infer(self.net, hits, count=counts, event=events, n_threads=n_threads), raw))
        energy = raw_energy_gev * np.exp(-mu)
        return self.scale.apply_to(Prediction(energy, energy * half))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON-able rest, for storage."""
        arrays: dict[str, NDArray[Any]] = {f"net.{name}": value for name, value in self.weights.items()}
        arrays |= {"loss": self.loss, "validation_loss": self.validation_loss}
        arrays |= {f"probe.{name}": value for name, value in vars(self.probe).items()}
        arrays |= self.scale.state()
        meta = {name: getattr(self, name) for name in _META}
        return arrays, meta | {"hit_inputs": list(HIT_INPUTS), "event_inputs": list(self.event_inputs)}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> DrnModel:
        """The model that `state` described.

        Raises
        ------
        ValueError
            One that reads other inputs than this calolife makes, or weights of another network than it says.
        """
        now_event = event_inputs(reads_features=bool(meta["reads_features"]))
        for name, now in (("hit_inputs", HIT_INPUTS), ("event_inputs", now_event)):
            if tuple(meta[name]) != now:
                raise ValueError(f"the model reads {name} {', '.join(meta[name])}, this calolife makes {', '.join(now)}; train it again")
        of = {part: {k.removeprefix(part): v for k, v in arrays.items() if k.startswith(part)} for part in ("net.", "probe.")}
        own = {name: kind(meta[name]) for name, kind in _META.items()}
        sizes = {name: own[name] for name in _SIZES}
        wanted = {name: tuple(weight.shape) for name, weight in _bare_network(**sizes).state_dict().items()}
        if {name: weight.shape for name, weight in of["net."].items()} != wanted:
            told = ", ".join(f"{name} {sizes[name]}" for name in ("width", "hidden", "blocks"))
            raise ValueError(f"the model is damaged: its weights are not those of a network of {told}; train it again")
        return cls(
            **own, weights=of["net."], probe=Probe(**of["probe."]), loss=arrays["loss"], validation_loss=arrays["validation_loss"],
            scale=PeakScale.from_state(arrays), left_out_gev=np.empty(0),
        )  # fmt: skip


_META: dict[str, Callable[[Any], Any]] = {
    "width": int, "hidden": int, "k": int, "blocks": int, "is_symmetric": bool, "seed": int,
    "best_epoch": int, "digest": str, "reads_features": bool,
}  # fmt: skip
_SIZES = ("width", "hidden", "k", "blocks", "is_symmetric", "reads_features", "seed")


def fit_drn(
    sample: EnergySample,
    *,
    seed: int = 0,
    device: str = "cpu",
    width: int = 32,
    hidden: int = 32,
    k: int = 8,
    blocks: int = 2,
    is_symmetric: bool = False,
    reads_features: bool = True,
    epochs: int = _EPOCHS,
    batch_size: int = _BATCH,
    lr: float = _LR,
    n_threads: int = _SHARES,
    progress: Callable[[Epoch], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> DrnModel:
    """Train a dynamic reduction network on the hits of electrons or photons in crystals.

    Parameters
    ----------
    sample : EnergySample
        Training objects, nothing else. A tenth, drawn by the seed, tells which epoch was best and how wide the errors are;
        their order does not matter.
    seed : int
    device : str
        See `calolife.training.train`.
    width, hidden, k, blocks : int
    is_symmetric : bool
        As `calolife.energy.drn.Drn`. The default has half of the published width and neighbours, and resolves as well on 18,000
        electrons; the published network is ``**PUBLISHED``.
    reads_features : bool
        Give the features of the trees to the output layers, beside what is pooled from the hits and the published event features: ours,
        not published. Each is centred and scaled by its mean and standard deviation over the objects trained on.
    epochs, batch_size : int
    lr : float
        Steps of AdamW fall from this to 0 along half a cosine.
    n_threads : int
        Threads to train on, 1 or 2, on a CPU; the weights do not depend on it.
    progress : function (Epoch) -> None, optional
    checkpoint_dir : path, optional
        Holds what a killed training goes on from, to the same bytes.

    Returns
    -------
    DrnModel

    Raises
    ------
    ValueError
        A sample without hits of crystals, too few objects, or a setting out of range.
    NotConvergedError
        A loss that is not finite.

    Notes
    -----
    The likelihood of ln(E_raw / E_true) under a double-sided Crystal Ball, all six parameters of which the network gives for each
    object, sigma and mu in the units of `in_units` (ours, not published). Ours, too: in the end the output layers are trained again
    by themselves, for twice as many epochs, on what the other layers make of each object, which costs little then. The inputs are
    scaled by fixed numbers: nothing is fitted to the sample but the weights, centre and spread of the features and, on the tenth,
    the scale of energy and sigma (`fit_peak_scale`).
    """
    objects = objects_to_read(sample)
    check_training(sample)
    settings: dict[str, Any] = {"width": width, "hidden": hidden, "k": k, "blocks": blocks}
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} = {value} must be >= 1; published are {', '.join(f'{n} {PUBLISHED[n]}' for n in settings)}")
    if n_threads < 1:
        raise ValueError(f"n_threads = {n_threads} must be >= 1")
    devices = find_devices(device)
    at, checked, train_on = split_validation(sample, seed=seed)
    objects, true, fitted = objects.select(at), sample.energy_gev[at], torch.from_numpy(train_on)
    raw = objects.raw_energy_gev
    inputs = inputs_of(sample.select(at), reads_features=reads_features)
    columns = (*inputs, raw.astype(np.float32), np.log(raw / true).astype(np.float32))
    tensors = [*(torch.from_numpy(np.asarray(a)) for a in columns), fitted]
    batches = [_Batches(*(t.to(one) for t in tensors)) for one in devices]
    data = {b.hit.device: b for b in batches}
    settings |= {"is_symmetric": is_symmetric, "reads_features": reads_features}
    net = _network(**settings, seed=seed)
    initialise(net, seed=seed)
    centre, spread = _scales(inputs[2][train_on])
    net.event_centre.copy_(torch.from_numpy(centre))
    net.event_spread.copy_(torch.from_numpy(spread))
    judged = torch.from_numpy(checked).to(devices[0])

    twins = _twins(net) if devices[0].type == "cpu" else []

    def loss(net: Drn, which: Tensor, _: torch.Generator) -> Tensor:
        part = data[which.device]
        index = part.fitted[which]
        return _shared_loss(net, twins, part, index, pool=pool) if twins else part.loss(net, index)

    # chosen: one thread of PyTorch's, for operations of microseconds
    with limit_threads(1), ThreadPoolExecutor(n_threads) as pool:
        done = train(
            net, loss, n_samples=fitted.numel(), epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=_WEIGHT_DECAY,
            clip_norm=_CLIP_NORM, schedule="cosine", validate=lambda: batches[0].loss(net, judged).item(), seed=seed, device=device,
            progress=progress, checkpoint_dir=checkpoint_dir,
            identity=_identity(tensors, [*settings.values()]),
        )  # fmt: skip
        before = copy.deepcopy(net.output)
        again = _train_output(
            net, batches, judged, seed=seed, device=device, epochs=epochs, progress=progress, checkpoint_dir=checkpoint_dir
        )
    validation = [*done.validation_loss, *again.validation_loss]
    best_epoch = 1 + int(np.argmin(validation))
    if best_epoch <= done.best_epoch:
        net.output = before
    weights = {name: value.cpu().numpy().copy() for name, value in net.state_dict().items()}
    some = sample.select(at[checked[:_N_PROBES]])
    probe = Probe(*inputs_of(some, reads_features=reads_features), some.visible_mev / 1000.0)
    model = DrnModel(
        **settings, seed=seed, weights=weights, scale=AS_IS, loss=np.array([*done.loss, *again.loss]),
        validation_loss=np.array(validation), best_epoch=best_epoch, probe=probe,
        left_out_gev=np.full(sample.n_showers, np.nan), digest=objects.detector.digest,
    )  # fmt: skip
    found = model.predict(sample.select(at[checked]))
    scale = fit_peak_scale(found, true[checked])
    model.left_out_gev[at[checked]] = scale.apply_to(found).energy_gev
    return replace(model, scale=scale)


def in_units(shape: CrystalBall, raw_energy_gev: Tensor) -> CrystalBall:
    """What the network answers, with its width in units of the resolution expected at that energy, and its peak in roots of them.

    Parameters
    ----------
    shape : CrystalBall
        Of the network.
    raw_energy_gev : float tensor, (object,) [GeV]

    Examples
    --------
    >>> one = torch.ones(2)
    >>> in_units(CrystalBall(*[one] * 6), torch.tensor([1.0, 300.0])).sigma.round().tolist()
    [26.0, 1.0]
    """
    noise = _NOISE_GEV / raw_energy_gev
    unit = torch.sqrt(_STOCHASTIC_GEV_HALF**2 / raw_energy_gev + noise * noise + _CONSTANT**2) / _UNIT
    return shape._replace(mu=shape.mu * torch.sqrt(unit), sigma=shape.sigma * unit)


def event_inputs(*, reads_features: bool) -> tuple[str, ...]:
    """Names of the event features of a network."""
    return (*EVENT_INPUTS, *CRYSTAL_FEATURES) if reads_features else EVENT_INPUTS


def inputs_of(sample: EnergySample, *, reads_features: bool) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """What a network reads of a sample: as `network_inputs`, with the features of the trees behind the event features if it reads them.

    Raises
    ------
    ValueError
        A sample without hits of crystals, or without the features.
    """
    hit, count, event = network_inputs(objects_to_read(sample))
    if not reads_features:
        return hit, count, event
    check_sample(sample, n_layers=1, digest="", shape_names=CRYSTAL_FEATURES)
    features = (
        sample.shape if sample.shape_names == CRYSTAL_FEATURES else sample.shape[:, [sample.shape_names.index(n) for n in CRYSTAL_FEATURES]]
    )
    return hit, count, np.concatenate([event, features.astype(np.float32)], axis=1)


def _scales(event: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What is taken off each event feature and what it is divided by, (feature,) each: the published ones are of order 1 already."""
    centre, spread = np.zeros(event.shape[1], np.float32), np.ones(event.shape[1], np.float32)
    n = len(EVENT_INPUTS)
    centre[n:] = event[:, n:].mean(axis=0, dtype=np.float64)
    found = event[:, n:].std(axis=0, dtype=np.float64)
    spread[n:] = np.where(found > 0, found, 1.0)  # a feature that never varies tells nothing
    return centre, spread


def objects_to_read(sample: EnergySample, *, digest: str = "") -> Objects:
    """The objects of a sample, where it has them.

    Parameters
    ----------
    sample : EnergySample
    digest : str
        Detector that they must be of; any where empty.

    Raises
    ------
    ValueError
        A sample of layers, or of another detector.
    """
    if sample.objects is None:
        raise ValueError(
            "model drn reads the hits of objects in crystals, and this sample has sums of layers; give objects of "
            "'calolife showers cluster', or use model trees"
        )
    check_sample(sample, n_layers=1, digest=digest)
    if digest and (found := sample.objects.detector.digest) != digest:
        raise ValueError(
            f"the objects are of detector {found[:8]}, the model was fitted on {digest[:8]}; use objects of its detector, or fit again"
        )
    return sample.objects


def _train_output(
    net: Drn, batches: Sequence[_Batches], judged: Tensor, *, seed: int, device: str, epochs: int,
    progress: Callable[[Epoch], None] | None, checkpoint_dir: Path | None,
) -> Training:  # fmt: skip
    """Train the output layers alone; the best are left in the network."""
    first = batches[0]
    read = read_objects(net, first.hit, count=first.count, event=first.event, n_threads=_SHARES)
    data = {b.hit.device: (read.to(b.hit.device), b) for b in batches}

    def mean_loss(output: OutputLayers, read: Tensor, part: _Batches, index: Tensor) -> Tensor:
        shape = in_units(Drn.parameters_of(output(read[index])), part.raw_energy_gev[index])
        return crystal_ball_nll(shape, part.target[index]).mean()

    def loss(output: OutputLayers, which: Tensor, _: torch.Generator) -> Tensor:
        own, part = data[which.device]
        return mean_loss(output, own, part, part.fitted[which])

    return train(
        net.output, loss, n_samples=first.fitted.numel(), epochs=_OUTPUT_EPOCHS * epochs, batch_size=_OUTPUT_BATCH, lr=_OUTPUT_LR,
        weight_decay=_WEIGHT_DECAY, clip_norm=_CLIP_NORM, schedule="cosine",
        validate=lambda: mean_loss(net.output, read, first, judged).item(), seed=seed, device=device, progress=progress,
        checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / "output",
        identity=_identity([read.cpu(), first.target.cpu()], [epochs]),
    )  # fmt: skip


@dataclass(frozen=True)
class _Batches:
    """The training objects on one device."""

    hit: Tensor
    count: Tensor
    event: Tensor
    raw_energy_gev: Tensor
    target: Tensor
    fitted: Tensor

    @cached_property
    def first(self) -> Tensor:
        return torch.cumsum(self.count, 0) - self.count

    def loss(self, net: Drn, index: Tensor) -> Tensor:
        """Mean -ln of the density of these objects."""
        n = self.count[index]
        shape = net(self.hit.index_select(0, rows_of(self.first[index], n)), n, self.event[index])
        return crystal_ball_nll(in_units(shape, self.raw_energy_gev[index]), self.target[index]).mean()


class _Known(torch.autograd.Function):
    """A loss whose gradients are there already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *weights: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grads[0] * g for g in ctx.gradients)


def _twins(net: Drn) -> list[Drn]:
    """Copies of a network that share its weights, and have gradients of their own."""
    made = [copy.deepcopy(net) for _ in range(_SHARES)]
    for twin in made:
        for own, weight in zip(twin.parameters(), net.parameters(), strict=True):
            own.data = weight.data
    return made


def _shared_loss(net: Drn, twins: Sequence[Drn], part: _Batches, index: Tensor, *, pool: ThreadPoolExecutor) -> Tensor:
    """Mean -ln of the density of these objects; each twin takes a share of them, in a thread of its own."""

    def one(twin: Drn, share: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = part.loss(twin, share) * (share.numel() / index.numel())
        return value.detach(), torch.autograd.grad(value, list(twin.parameters()))

    shares = [share for share in torch.tensor_split(index, _SHARES) if share.numel()]  # the last batch may be small
    made = list(pool.map(one, twins[: len(shares)], shares))
    value = torch.stack([v for v, _ in made]).sum()
    gradients = [torch.stack(of).sum(0) for of in zip(*(g for _, g in made), strict=True)]
    known: Tensor = _Known.apply(value, gradients, *net.parameters())  # type: ignore[no-untyped-call]
    return known


def _network(*, width: int, hidden: int, k: int, blocks: int, is_symmetric: bool, reads_features: bool, seed: int) -> Drn:
    """Network whose weights are not drawn: PyTorch's constructors would draw them from the global generator."""
    net = _bare_network(width=width, hidden=hidden, k=k, blocks=blocks, is_symmetric=is_symmetric, reads_features=reads_features, seed=seed)
    return net.to_empty(device="cpu")


def _bare_network(*, width: int, hidden: int, k: int, blocks: int, is_symmetric: bool, reads_features: bool, seed: int) -> Drn:
    """Network whose weights have shapes and no memory."""
    with torch.device("meta"):
        n_event = len(event_inputs(reads_features=reads_features))
        return Drn(len(HIT_INPUTS), n_event, width=width, hidden=hidden, k=k, blocks=blocks, is_symmetric=is_symmetric, seed=seed)


def _peak_and_half_width(shape: CrystalBall) -> tuple[FloatArray, FloatArray]:
    mu, sigma, alpha_left, n_left, alpha_right, n_right = (p.numpy().astype(np.float64) for p in shape)
    return mu, ball_half_width(sigma, alpha_left, n_left=n_left, alpha_right=alpha_right, n_right=n_right)


def _identity(tensors: list[Tensor], settings: list[object]) -> str:
    digest = hashlib.sha256(json.dumps([settings, [list(t.shape) for t in tensors]]).encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
