"""The published adversarial method: one trainable weight per cell turns young showers into aged ones, a critic tells them apart.

Loads torch: import it inside the function that needs it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from calolife.ageing.hits import CellHits
from calolife.errors import FileFormatError, NotConvergedError
from calolife.training import find_devices, initialise, limit_threads

__all__ = ["PENALTIES", "STARTS", "STOPS", "TRANSFORMS", "WganEpoch", "WganFit", "WganSettings", "fit_wgan"]

FloatArray = NDArray[np.float64]

PENALTIES = ("gradient", "clip", "spectral")
STARTS = ("median", "one")
TRANSFORMS = ("peak", "tanh", "energy")
STOPS = ("cramer", "last")

_LEAK = 0.2  # chosen: with 0 the critic loses units for good
_BETAS = (0.0, 0.9)  # source: Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1
_EPSILON = 1e-12  # chosen: a clipped critic has slopes of 1e-6, for which Adam's own 1e-8 is not small
_PEAK_WIDTH = 0.2  # chosen: in ln E, of .12, .2 and .3 the one with the smallest error at the last epoch
_TANH_WIDTH = 0.35  # chosen: in most frequent energies, steepest at the MIP peak
_SOFTEST = 1e-3  # chosen: below any hit a readout keeps; where the logarithm is cut off, in most frequent energies
_PEAK_BIN, _PEAK_SMOOTHING = 0.05, 3  # chosen: the MIP peak is .3 wide in ln E
_CHECKPOINT = "wgan.safetensors"
_FORMAT = "calolife wgan checkpoint 1"


@dataclass(frozen=True)
class WganSettings:
    """How the adversarial fit is trained.

    Parameters
    ----------
    epochs : int
        In one epoch the critic sees every shower once.
    batch : int
        Largest batch of showers of each sample.
    critic : tuple of int
        Sizes of the hidden layers.
    n_critic : int
        Steps of the critic for each step of the weights.
    penalty : {"gradient", "clip", "spectral"}
        What keeps the critic smooth: a penalty on its slope, weights clipped to a small range, or layers divided by their
        largest singular value.
    penalty_weight, clip : float
        Factor of the gradient penalty, and largest weight of a clipped critic.
    lr_critic, lr_weight : float
        Step sizes of the critic and of the weights; the latter falls to 0 along half a cosine.
    ema : float
        Memory of the running mean over steps of the weights, 0 <= ema < 1; it is the mean that is reported.
    start : {"median", "one"}
        All weights start at the ratio of the median hits of both samples, or at 1.
    transform : {"peak", "tanh", "energy"}
        What the critic sees of a hit: u = ln E over its width around the most frequent energy as 2 u / (1 + u^2), which
        fades on both sides; a tanh around that energy; or the energy, in units of the most frequent one. Of the first two
        the mean of the cell's hits is taken off, so that a cell that was not hit looks like one with an average hit.
    held_out : float
        Part of the showers of both samples that is not trained on, 0 <= held_out < 1.
    stop : {"cramer", "last"}
        Weights that are kept: those of the epoch in which the held-out hits of the cells agree best, or the last.

    Raises
    ------
    ValueError
        A setting out of range.

    Notes
    -----
    The defaults are those with the smallest error at the last epoch on 5000 + 5000 unpaired pions of 10 GeV, found by comparing
    some 30 with the truth, which flatters them. They are not the published ones.

    Examples
    --------
    >>> WganSettings.published().epochs, WganSettings().is_published
    (100, False)
    """

    epochs: int = 100
    batch: int = 100
    critic: tuple[int, ...] = (256, 128)
    n_critic: int = 5
    penalty: str = "gradient"
    penalty_weight: float = 10.0
    clip: float = 0.01
    lr_critic: float = 1e-3
    lr_weight: float = 3e-4
    ema: float = 0.99
    start: str = "median"
    transform: str = "peak"
    held_out: float = 0.2
    stop: str = "cramer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "critic", tuple(self.critic))
        for name in ("epochs", "batch", "n_critic"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be >= 1")
        if not self.critic or min(self.critic) < 1:
            raise ValueError(f"critic = {self.critic} must name at least one hidden layer, each of size >= 1")
        for name in ("penalty_weight", "clip", "lr_critic", "lr_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} = {getattr(self, name)} must be > 0")
        for name in ("ema", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 0 and below 1")
        for name, allowed in (("penalty", PENALTIES), ("start", STARTS), ("transform", TRANSFORMS), ("stop", STOPS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}")
        if self.stop == "cramer" and self.held_out == 0:
            raise ValueError("stop 'cramer' needs showers that are not trained on; set held_out to 0.2, or stop to 'last'")

    @classmethod
    def published(cls) -> WganSettings:
        """The published recipe: 100 epochs from weights of 1, energies as they are, all showers, the last epoch kept.

        Notes
        -----
        What is not published has the values of WGAN-GP: Gulrajani et al. 2017, arXiv:1704.00028, and our step sizes.
        """
        return cls(
            epochs=100, batch=100, critic=(256, 128), n_critic=5, penalty="gradient", penalty_weight=10.0, lr_critic=1e-3,
            lr_weight=3e-4, ema=0.0, start="one", transform="energy", held_out=0.0, stop="last",
        )  # fmt: skip

    @property
    def is_published(self) -> bool:
        return self == WganSettings.published()


@dataclass(frozen=True, eq=False)
class WganEpoch:
    """One finished epoch.

    Parameters
    ----------
    number : int
        From 1.
    critic_loss : float
        Mean over the steps, with the penalty.
    wasserstein : float
        Mean over the steps of the critic's estimate of the distance between aged and weighted young showers, in units of its
        own slope.
    cramer : float
        Distance of the held-out hits, mean over cells; NaN when none are held out.
    signal_fraction : float array, (cell,)
        NaN in cells without hits.
    """

    number: int
    critic_loss: float
    wasserstein: float
    cramer: float
    signal_fraction: FloatArray


@dataclass(frozen=True, eq=False)
class WganFit:
    """What the adversarial fit found.

    Parameters
    ----------
    signal_fraction : float array, (cell,)
        Of the epoch kept; NaN in cells without hits in one of the samples.
    epochs : tuple of WganEpoch
    best_epoch : int
        The epoch kept, from 1.
    """

    signal_fraction: FloatArray
    epochs: tuple[WganEpoch, ...]
    best_epoch: int


def fit_wgan(
    reference: CellHits,
    today: CellHits,
    *,
    settings: WganSettings | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[WganEpoch], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> WganFit:
    """Signal fractions by adversarial training.

    Parameters
    ----------
    reference, today : CellHits
        Hits of the same cells before and after ageing. Showers are drawn by their weights.
    settings : WganSettings, optional
    seed : int
    device : str
        One PyTorch device, such as ``cpu`` or ``cuda``.
    progress : function (WganEpoch) -> None, optional
    checkpoint_dir : path, optional
        Holds one checkpoint, replaced after every epoch; one found there is resumed.

    Returns
    -------
    WganFit

    Raises
    ------
    ValueError
        Samples of different numbers of cells, or without hits, or with too few showers to hold some out; a device that is
        not there; a checkpoint of another fit.
    FileFormatError
        A checkpoint that cannot be read.
    NotConvergedError
        A critic that is not finite.

    Notes
    -----
    The generator multiplies undamaged hits, so that its weights are the signal fraction, not the coefficient A = 1 / r.
    They are kept as logarithms and cannot become negative. A run that was killed and resumed ends with the same bytes as
    one left alone, on the same machine.

    The critic sees all cells of a shower at once, and all cells start at a common value: unlike in the other estimators,
    what one cell is told depends on the others. A hit that the weights push below the threshold of the readout stays.

    Where training stops decides the result: the error dips and rises again, as the weights also follow how often cells
    happened to be hit. The critic's distance cannot tell when (the critic changes too), the spectra of held-out hits can,
    roughly. Mean error in 300 cells of 5000 + 5000 unpaired pions aged by up to 10 %, where the best common value for all
    cells has .017: published recipe .050; defaults .018 to .021 at the last epoch, .015 and .017 at the one kept; .048 after 300
    epochs instead of 100.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> def hits(factor):
    ...     energy = factor * rng.lognormal(0.0, 0.2, 1200)
    ...     return CellHits(3, np.tile(np.arange(400), 3), np.repeat(np.arange(3), 400), energy, np.zeros(1200, np.int8), np.ones(400))
    >>> fit = fit_wgan(hits(1.0), hits(0.8), settings=WganSettings(epochs=5, critic=(16,)))
    >>> bool(abs(fit.signal_fraction - 0.8).max() < 0.05)
    True
    """
    settings = settings or WganSettings()
    _check(reference, today)
    where = find_devices(device)[0]
    (young, young_held), (aged, aged_held) = (
        _split(hits, settings.held_out, _stream(seed, 1, k)) for k, hits in enumerate((reference, today))
    )  # fmt: skip
    has_hits = (young.n_hits > 0) & (aged.n_hits > 0)
    if settings.stop == "cramer" and not (has_hits & (young_held.n_hits > 0) & (aged_held.n_hits > 0)).any():
        raise ValueError("no cell has held-out hits in both samples to stop by; give more showers, or set stop to 'last'")
    see = _Eye(_peak(young), settings.transform, aged, where)
    young_sample, aged_sample = _Sample(young, where), _Sample(aged, where)
    critic = _Critic(reference.n_cells, settings.critic, is_spectral=settings.penalty == "spectral", seed=seed).to(where)
    start = math.log(_median(aged) / _median(young)) if settings.start == "median" else 0.0
    log_weight = torch.full((reference.n_cells,), start, device=where, requires_grad=True)
    run = _Run(see, critic, log_weight, settings, _digest(reference, today, settings, seed))
    if checkpoint_dir is not None:
        run.resume(checkpoint_dir)
    n_drawn = max(young_sample.rows.numel(), aged_sample.rows.numel())
    n_batches = -(-n_drawn // settings.batch)
    with limit_threads(1):  # its matrices are too small to share
        while len(run.epochs) < settings.epochs:
            epoch = len(run.epochs) + 1
            generator = torch.Generator().manual_seed(_stream(seed, 2, epoch))
            batches = [sample.drawn(n_drawn, generator).to(where).tensor_split(n_batches) for sample in (young_sample, aged_sample)]
            # drawn on the CPU: the result must not depend on the device
            mixing = torch.rand((n_drawn, 1), generator=generator).to(where).tensor_split(n_batches)
            for group in run.adam_weight.param_groups:
                group["lr"] = settings.lr_weight * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2
            totals = torch.zeros(2, device=where)
            for k, (young_row, aged_row, share) in enumerate(zip(*batches, mixing, strict=True)):
                energy = young_sample.matrix(young_row)
                totals += run.train_critic(energy, see(aged_sample.matrix(aged_row)), share)
                if ((epoch - 1) * n_batches + k + 1) % settings.n_critic == 0:
                    run.train_weights(energy)
            loss, distance = (totals / n_batches).tolist()
            found = np.exp(run.mean_log.cpu().numpy().astype(np.float64))
            if not (math.isfinite(loss) and np.isfinite(found).all()):
                raise NotConvergedError(f"the critic's loss is not finite in epoch {epoch}; lower lr_critic = {settings.lr_critic:g}")
            found[~has_hits] = np.nan
            cramer = _cramer(young_held, aged_held, found) if settings.held_out > 0 else math.nan
            run.epochs.append(WganEpoch(epoch, loss, distance, cramer, found))
            if checkpoint_dir is not None:
                run.save(checkpoint_dir)
            if progress is not None:
                progress(run.epochs[-1])
    best = settings.epochs
    if settings.stop == "cramer":
        best = 1 + int(np.argmin([epoch.cramer for epoch in run.epochs]))
    return WganFit(run.epochs[best - 1].signal_fraction, tuple(run.epochs), best)


class _Critic(nn.Module):
    """A perceptron from the cells of a shower to one number."""

    def __init__(self, n_cells: int, hidden: tuple[int, ...], *, is_spectral: bool, seed: int) -> None:
        super().__init__()
        sizes = (n_cells, *hidden, 1)
        # without values, as PyTorch draws them from its global generator
        with torch.device("meta"):
            self.layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for k, layer in enumerate(self.layers):
            self.add_module(f"layer{k}", layer.to_empty(device="cpu"))
        initialise(self, seed=seed)
        self.is_spectral = is_spectral
        generator = torch.Generator().manual_seed(_stream(seed, 3))
        for k, size in enumerate(sizes[1:] if is_spectral else ()):
            self.register_buffer(f"left{k}", nn.functional.normalize(torch.randn(size, generator=generator), dim=0))

    def matrices(self) -> list[Tensor]:
        """Weights of the layers, divided by their largest singular values if they are to be."""
        plain = [layer.weight for layer in self.layers]
        if not self.is_spectral:
            return plain
        made = []
        for k, weight in enumerate(plain):
            left: Tensor = getattr(self, f"left{k}")
            with torch.no_grad():
                right = nn.functional.normalize(weight.T @ left, dim=0)
            made.append(weight / (left @ (weight @ right)))
        return made

    @torch.no_grad()
    def iterate(self) -> None:
        """One step of the power iteration towards the largest singular values; source: Miyato et al. 2018, arXiv:1802.05957."""
        for k, layer in enumerate(self.layers if self.is_spectral else ()):
            weight = layer.weight
            left: Tensor = getattr(self, f"left{k}")
            left.copy_(nn.functional.normalize(weight @ nn.functional.normalize(weight.T @ left, dim=0), dim=0))

    def forward(self, seen: Tensor) -> Tensor:
        """Value of each shower, (B, cell) -> (B,)."""
        value = seen
        for k, (layer, weight) in enumerate(zip(self.layers, self.matrices(), strict=True)):
            value = nn.functional.linear(value if k == 0 else nn.functional.leaky_relu(value, _LEAK), weight, layer.bias)
        return value.squeeze(1)

    def slope(self, seen: Tensor) -> Tensor:
        """Gradient of the value by the inputs, (B, cell) -> (B, cell), differentiable in the weights.

        The network is linear on either side of each kink: so the gradient is a product of matrices, and no second
        differentiation is needed.
        """
        matrices = self.matrices()
        kinks = []
        with torch.no_grad():
            value = seen
            for layer, weight in zip(self.layers[:-1], matrices[:-1], strict=True):
                value = nn.functional.linear(value, weight, layer.bias)
                kinks.append(torch.where(value > 0, 1.0, _LEAK))
                value = value * kinks[-1]
        gradient = matrices[-1].expand(seen.shape[0], -1)  # (1, hidden) -> (B, hidden)
        for kink, weight in zip(reversed(kinks), reversed(matrices[:-1]), strict=True):
            gradient = (gradient * kink) @ weight
        return gradient


class _Run:
    """State of a fit: what is trained, its optimisers and the epochs so far."""

    def __init__(self, see: _Eye, critic: _Critic, log_weight: Tensor, settings: WganSettings, digest: str) -> None:
        self.see, self.critic, self.log_weight, self.settings, self.digest = see, critic, log_weight, settings, digest
        self.mean_log = log_weight.detach().clone()
        self.adam_critic = torch.optim.Adam(critic.parameters(), lr=settings.lr_critic, betas=_BETAS, fused=True)
        self.adam_weight = torch.optim.Adam([log_weight], lr=settings.lr_weight, betas=_BETAS, eps=_EPSILON)
        self.epochs: list[WganEpoch] = []

    def train_critic(self, energy: Tensor, real: Tensor, share: Tensor) -> Tensor:
        """One step; its loss and its estimate of the distance, (2,)."""
        settings, critic = self.settings, self.critic
        with torch.no_grad():
            fake = self.see(energy * self.log_weight.exp())
        critic.iterate()
        value = critic(torch.cat((real, fake)))  # (2 B, cell) -> (2 B,)
        distance = value[: real.shape[0]].mean() - value[real.shape[0] :].mean()
        loss = -distance
        if settings.penalty == "gradient":
            length = critic.slope(fake + share * (real - fake)).norm(dim=1)
            loss = loss + settings.penalty_weight * (length - 1).square().mean()
        self.adam_critic.zero_grad(set_to_none=True)
        loss.backward()
        self.adam_critic.step()
        if settings.penalty == "clip":
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.clamp_(-settings.clip, settings.clip)
        return torch.stack((loss.detach(), distance.detach()))

    def train_weights(self, energy: Tensor) -> None:
        value = -self.critic(self.see(energy * self.log_weight.exp())).mean()
        (self.log_weight.grad,) = torch.autograd.grad(value, [self.log_weight])
        self.adam_weight.step()
        self.mean_log.lerp_(self.log_weight.detach(), 1 - self.settings.ema)

    def save(self, folder: Path) -> None:
        tensors = {f"critic.{name}": value for name, value in self.critic.state_dict().items()}
        tensors |= {"log_weight": self.log_weight.detach(), "mean_log": self.mean_log}
        for which, optimiser in (("critic", self.adam_critic), ("weight", self.adam_weight)):
            for k, moments in optimiser.state_dict()["state"].items():
                tensors |= {f"adam_{which}.{k}.{name}": value for name, value in moments.items()}
        tensors["curves"] = torch.tensor([(e.critic_loss, e.wasserstein, e.cramer) for e in self.epochs], dtype=torch.float64)
        tensors["signal_fraction"] = torch.from_numpy(np.array([epoch.signal_fraction for epoch in self.epochs]))
        # one file: weights, moments and curves can never be of different epochs
        document = json.dumps({"format": _FORMAT, "digest": self.digest})
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{_CHECKPOINT}.partial"
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, partial, metadata={"wgan": document})
        os.replace(partial, folder / _CHECKPOINT)

    def resume(self, folder: Path) -> None:
        """Take over what a checkpoint holds, if there is one."""
        path = folder / _CHECKPOINT
        if not path.exists():
            return
        try:
            with safe_open(path, framework="pt") as stored:
                document = json.loads((stored.metadata() or {})["wgan"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            is_ours = document["format"] == _FORMAT
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise FileFormatError(f"{path} is not a checkpoint of this fit ({error}); delete it to start again") from error
        if not is_ours:
            raise FileFormatError(f"{path} has format {document['format']!r}, not {_FORMAT!r}; delete it to start again")
        if document["digest"] != self.digest:
            raise ValueError(f"{path} belongs to another fit (other showers, settings or seed); delete it or use another directory")
        curves, found = tensors.pop("curves").tolist(), tensors.pop("signal_fraction").numpy()
        self.epochs = [WganEpoch(k + 1, a, b, c, row) for k, ((a, b, c), row) in enumerate(zip(curves, found, strict=True))]
        with torch.no_grad():
            self.log_weight.copy_(tensors.pop("log_weight"))
            self.mean_log.copy_(tensors.pop("mean_log"))
        self.critic.load_state_dict({name.removeprefix("critic."): t for name, t in tensors.items() if name.startswith("critic.")})
        for which, optimiser in (("critic", self.adam_critic), ("weight", self.adam_weight)):
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"adam_{which}."):
                    _, index, name = key.split(".")
                    moments.setdefault(int(index), {})[name] = value
            optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def _split(hits: CellHits, held_out: float, seed: int) -> tuple[CellHits, CellHits]:
    """The sample with the weights of the held-out showers, and then with those of all others, set to 0."""
    is_held = np.zeros(hits.n_showers, dtype=np.bool_)
    is_held[np.random.default_rng(seed).permutation(hits.n_showers)[: round(held_out * hits.n_showers)]] = True
    trained, held = (hits.weighted(np.where(is_out, 0.0, hits.shower_weight)) for is_out in (is_held, ~is_held))
    if not trained.weight.any() or (held_out > 0 and not held.weight.any()):
        raise ValueError(
            f"{hits.n_showers} showers, {np.count_nonzero(hits.shower_weight)} of them with a weight, leave no hits to train on or to "
            f"hold out with held_out = {held_out:g}; give more showers"
        )
    return trained, held


class _Sample:
    """Showers of one sample as the training wants them: hits sorted by shower, on the device."""

    def __init__(self, hits: CellHits, device: torch.device) -> None:
        order = np.argsort(hits.shower, kind="stable")
        offsets = np.searchsorted(hits.shower[order], np.arange(hits.n_showers + 1))
        rows = np.flatnonzero(hits.shower_weight > 0)
        self.n_cells, self.weight, self.rows = hits.n_cells, hits.shower_weight[rows], torch.from_numpy(rows)
        self.offsets = torch.from_numpy(offsets).to(device)
        self.cell = torch.from_numpy(hits.cell_index[order]).to(device)
        self.energy = torch.from_numpy(hits.energy_mev[order].astype(np.float32)).to(device)

    def drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """Showers of one epoch in a random order, (n,): each as often as its weight says, up to the nearest whole numbers.

        Showers of equal weight come once each when `n` is their number.
        """
        offset = min(float(torch.rand((), generator=generator, dtype=torch.float64)), 1 - 1e-6)
        edges = np.floor(np.concatenate([[0.0], np.cumsum(self.weight)]) * (n / self.weight.sum()) + offset)
        edges[-1] = n  # whatever the sum was rounded to
        rows = self.rows.repeat_interleave(torch.from_numpy(np.diff(edges).astype(np.int64)))
        return rows[torch.randperm(n, generator=generator)]

    def matrix(self, row: Tensor) -> Tensor:
        """Energies of some showers, (B,) -> (B, cell) [MeV]."""
        first = self.offsets[row]
        count = self.offsets[row + 1] - first
        place = torch.arange(row.numel(), device=row.device).repeat_interleave(count)  # (hit,)
        before = count.cumsum(0) - count
        hit = torch.arange(place.numel(), device=row.device) + (first - before)[place]
        energy = torch.zeros((row.numel(), self.n_cells), device=row.device)
        energy.view(-1)[place * self.n_cells + self.cell[hit]] = self.energy[hit]
        return energy


class _Eye:
    """What the critic sees of energies, (B, cell) [MeV] -> (B, cell); no hit is 0."""

    def __init__(self, unit_mev: float, transform: str, today: CellHits, device: torch.device) -> None:
        self.unit_mev, self.transform = unit_mev, transform
        self.centre = torch.zeros(today.n_cells, device=device)
        if transform != "energy":
            # a critic would take a cell that was hit more often, by chance, for one with another spectrum
            value = self._raw(torch.tensor(today.energy_mev)).numpy()
            summed = np.bincount(today.cell_index, weights=value * today.weight, minlength=today.n_cells)
            self.centre += torch.from_numpy(summed / np.maximum(today.n_hits, 1e-300)).to(device)

    def __call__(self, energy: Tensor) -> Tensor:
        return (self._raw(energy) - self.centre) * (energy > 0)

    def _raw(self, energy: Tensor) -> Tensor:
        scaled = energy / self.unit_mev
        if self.transform == "energy":
            return scaled
        if self.transform == "tanh":
            return torch.tanh((scaled - 1) / _TANH_WIDTH)
        u = scaled.clamp(min=_SOFTEST).log() / _PEAK_WIDTH
        return 2 * u / (1 + u * u)


def _peak(hits: CellHits) -> float:
    """Most frequent energy of a hit, in ln E; that of minimum-ionising particles in all but the densest cells."""
    log = np.log(hits.energy_mev)
    edges = np.arange(log.min() - 5 * _PEAK_BIN, log.max() + 6 * _PEAK_BIN, _PEAK_BIN)
    counts = np.histogram(log, edges, weights=hits.weight)[0]
    smooth = np.convolve(counts, np.ones(_PEAK_SMOOTHING), mode="same")
    return float(np.exp(edges[np.argmax(smooth)] + _PEAK_BIN / 2))


def _median(hits: CellHits) -> float:
    order = np.argsort(hits.energy_mev, kind="stable")
    summed = np.cumsum(hits.weight[order])
    return float(hits.energy_mev[order[np.searchsorted(summed, summed[-1] / 2)]])


def _cramer(reference: CellHits, today: CellHits, signal_fraction: FloatArray) -> float:
    """Distance of the hit spectra of the cells, n m / (n + m) times the integral of (F - G)^2 over ln E, mean over cells.

    About the same in every cell whose samples agree, however many hits it has.
    """
    n, m = reference.n_hits, today.n_hits
    is_used = (n > 0) & (m > 0) & np.isfinite(signal_fraction)
    if not is_used.any():
        return math.nan
    log = np.concatenate([np.log(reference.energy_mev * signal_fraction[reference.cell_index]), np.log(today.energy_mev)])
    cell = np.concatenate([reference.cell_index, today.cell_index])
    weight = np.concatenate([reference.weight, -today.weight])
    kept = is_used[cell] & (weight != 0)
    log, cell, weight = log[kept], cell[kept], weight[kept]
    order = np.lexsort((log, cell))
    log, cell, weight = log[order], cell[order], weight[order]
    # both spectra of a cell sum to 1: the difference starts at 0 in each cell
    difference = np.cumsum(weight / np.where(weight > 0, n[cell], m[cell]))[:-1]
    gap = np.where(np.diff(cell) == 0, np.diff(log), 0.0)
    distance = np.bincount(cell[:-1], weights=difference**2 * gap, minlength=n.size)[is_used]
    n, m = n[is_used], m[is_used]
    return float((distance * n * m / (n + m)).mean())


def _check(reference: CellHits, today: CellHits) -> None:
    if reference.n_cells != today.n_cells:
        raise ValueError(f"reference has {reference.n_cells} cells and today {today.n_cells}; choose the same cells in both")
    for name, hits in (("reference", reference), ("today", today)):
        if not hits.weight.sum() > 0:
            raise ValueError(f"{name} has no hits in these cells; give showers that hit them")


def _digest(reference: CellHits, today: CellHits, settings: WganSettings, seed: int) -> str:
    made = hashlib.sha256(json.dumps({"settings": asdict(settings), "seed": seed}).encode())
    for hits in (reference, today):
        for array in (hits.shower, hits.cell_index, hits.energy_mev, hits.shower_weight):
            made.update(np.ascontiguousarray(array).tobytes())
    return made.hexdigest()


def _stream(seed: int, *key: int) -> int:
    return int(np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0] >> np.uint64(1))
