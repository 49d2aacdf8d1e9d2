"""The published forecaster: a sequence-to-sequence LSTM that encodes the last readings and decodes the next ones.

Loads torch: import it inside the function that needs it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calolife.training import Epoch, initialise, limit_threads, train
from calolife.transparency.history import Block, FloatArray, Forecast, IntArray, TransparencyHistory
from calolife.transparency.intervals import IntervalTable, interval_table, time_at_fraction
from calolife.transparency.kinetics import sample_history

__all__ = ["STRATEGIES", "LeakyLstm", "Lstm", "Seq2Seq", "fit_lstm"]

STRATEGIES = ("recursive", "teacher", "mixed")
_FEATURES = ("time_step",)
_N_LAYERS = 2  # published: N_E = N_D = 2
_LEARNING_RATE = 1e-3  # published
_BATCH, _BATCH_LONG, _LONG = 128, 32, 48  # published: batches of 128, of 32 for 48 readings and more
_TAIL = 0.15  # chosen: 35 windows of a year, enough to stop on, little enough to lose
_SMALL = 256  # chosen: below it a second thread saves 10 % of an epoch at best, and on a busy machine makes it several times slower
_MOST_SEQUENCES = 4096  # chosen: decoding 4096 sequences at once at H = 512 takes 0.1 GB


class Seq2Seq(nn.Module):
    """Two-layer LSTM encoder and decoder, and a linear readout of the transparency.

    Parameters
    ----------
    n_inputs : int
        Inputs per reading: transparency, luminosity that follows it, and any further feature.
    hidden : int
    """

    def __init__(self, n_inputs: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.LSTM(n_inputs, hidden, _N_LAYERS, batch_first=True)
        self.decoder = nn.LSTM(n_inputs, hidden, _N_LAYERS, batch_first=True)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, past: Tensor, known: Tensor, truth: Tensor | None = None, is_forced: tuple[bool, ...] = ()) -> Tensor:
        """Scaled transparency of the readings after the past ones.

        Parameters
        ----------
        past : float tensor, (B, L_E, input)
            Scaled inputs of the last readings, transparency first.
        known : float tensor, (B, L_D, input - 1)
            Entry k is what is known of the interval that leads to reading k of the forecast.
        truth : float tensor, (B, L_D), optional
            True readings; entry k is fed to step k + 1 where `is_forced` says so.
        is_forced : tuple of bool, (L_D - 1,)
            Teacher forcing of the steps after the first; none when left out.

        Returns
        -------
        float tensor, (B, L_D)
        """
        _, state = self.encoder(past)
        if truth is not None and is_forced and all(is_forced):
            # nothing depends on a prediction: all steps in one call
            previous = torch.cat((past[:, -1, :1], truth[:, :-1]), dim=1)  # (B, L_D)
            out, _ = self.decoder(torch.cat((previous.unsqueeze(2), known), dim=2), state)
            return self.readout(out).squeeze(2)  # type: ignore[no-any-return]  # (B, L_D, 1) -> (B, L_D)
        step = past[:, -1:, :1]  # (B, 1, 1)
        made: list[Tensor] = []
        for k in range(known.shape[1]):
            if k > 0 and truth is not None and is_forced and is_forced[k - 1]:
                step = truth[:, k - 1].reshape(-1, 1, 1)
            out, state = self.decoder(torch.cat((step, known[:, k : k + 1]), dim=2), state)
            step = self.readout(out)  # (B, 1, hidden) -> (B, 1, 1)
            made.append(step)
        return torch.cat(made, dim=1).squeeze(2)


@dataclass(frozen=True, eq=False)
class Lstm:
    """A fitted sequence-to-sequence LSTM; `fit_lstm` makes one.

    Parameters
    ----------
    train_years : tuple of int
    interval : IntervalTable
    weights : dict of float32 array
        Of `Seq2Seq`, by the names PyTorch gives them.
    xtal_id : int array, (crystal,)
        Crystals with a scale of their own; any other gets their average.
    mean, std : float array, (crystal, input)
        Scales of transparency, luminosity [1/fb] and the further features, from the readings trained on.
    encoder_length, decoder_length : int
        Readings encoded, and readings decoded before encoding again.
    features : tuple of str
        Further inputs: ``time_step``, the logarithm of the time to the next reading.
    strategy : str
    best_epoch : int
        Epoch whose weights were kept.
    device : str
        PyTorch device the forecasts are computed on.
    """

    name: ClassVar[str] = "lstm"

    train_years: tuple[int, ...]
    interval: IntervalTable
    weights: dict[str, NDArray[np.float32]]
    xtal_id: IntArray
    mean: FloatArray
    std: FloatArray
    encoder_length: int
    decoder_length: int
    features: tuple[str, ...]
    strategy: str
    best_epoch: int
    device: str = "cpu"

    @property
    def hidden(self) -> int:
        return int(self.weights["readout.weight"].shape[1])

    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast:
        """Forecast readings ``o .. o + horizon - 1`` of every crystal, for each origin row o.

        Parameters
        ----------
        block : Block
            Readings before each origin, and times and luminosity to the end of the horizon.
        origins : int array, (window,)
            Each at least `encoder_length`.
        horizon : int
            Past `decoder_length` readings the network encodes its own predictions.

        Returns
        -------
        Forecast

        Raises
        ------
        ValueError
            An origin or horizon outside the block, or a missing reading just before an origin.
        """
        mean, std = self._scale_of(block)
        return _forecast(self, block, origins, horizon, mean, std, self.name)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON-able settings to store; `from_state` takes them back."""
        arrays: dict[str, NDArray[Any]] = {f"weights.{name}": value for name, value in self.weights.items()}
        arrays |= {"xtal_id": self.xtal_id, "mean": self.mean, "std": self.std} | self.interval.state()
        meta = {
            "train_years": list(self.train_years),
            "encoder_length": self.encoder_length,
            "decoder_length": self.decoder_length,
            "features": list(self.features),
            "strategy": self.strategy,
            "hidden": self.hidden,
            "best_epoch": self.best_epoch,
        }
        return arrays, meta

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Lstm:
        return cls(
            train_years=tuple(meta["train_years"]),
            interval=IntervalTable.from_state(arrays),
            weights={key.removeprefix("weights."): value for key, value in arrays.items() if key.startswith("weights.")},
            xtal_id=arrays["xtal_id"],
            mean=arrays["mean"],
            std=arrays["std"],
            encoder_length=meta["encoder_length"],
            decoder_length=meta["decoder_length"],
            features=tuple(meta["features"]),
            strategy=meta["strategy"],
            best_epoch=meta["best_epoch"],
        )

    def _scale_of(self, block: Block) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation for the block's crystals, each (crystal, input)."""
        at = np.minimum(np.searchsorted(self.xtal_id, block.xtal_id), self.xtal_id.size - 1)
        is_known = (self.xtal_id[at] == block.xtal_id)[:, None]
        return (
            np.where(is_known, self.mean[at], self.mean.mean(axis=0)),
            np.where(is_known, self.std[at], self.std.mean(axis=0)),
        )


@dataclass(frozen=True, eq=False)
class LeakyLstm:
    """An LSTM scaled as in the publication: with mean and standard deviation of the very readings it forecasts.

    For comparison with the published figures only: the forecasts know the test year's average.

    Parameters
    ----------
    model : Lstm
        Its intervals are kept as they are.
    """

    name: ClassVar[str] = "lstm-leak"

    model: Lstm

    @property
    def train_years(self) -> tuple[int, ...]:
        return self.model.train_years

    @property
    def interval(self) -> IntervalTable:
        return self.model.interval

    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast:
        """As `Lstm.forecast`, scaled by all readings of the block, those to be forecast included."""
        mean, std = _scales(_inputs(block, self.model.features))
        return _forecast(self.model, block, origins, horizon, mean, std, self.name)


def fit_lstm(
    history: TransparencyHistory,
    *,
    seed: int = 0,
    hidden: int = 64,
    strategy: str = "recursive",
    teacher_forcing: float = 0.5,
    epochs: int = 200,
    encoder_length: int = 24,
    decoder_length: int = 24,
    stride: int = 24,
    features: tuple[str, ...] = (),
    patience: int | None = 30,
    checkpoint_dir: Path | None = None,
    progress: Callable[[Epoch], None] | None = None,
    device: str = "cpu",
) -> Lstm:
    """Train the published sequence-to-sequence LSTM.

    Parameters
    ----------
    history : TransparencyHistory
        Training span. One crystal makes the published Model-S, a ring Model-R: windows are pooled.
    seed : int
    hidden : int
        Size of the LSTM states; published 1024.
    strategy : {"recursive", "teacher", "mixed"}
        What the decoder is fed in training: its own predictions; in each batch either the true readings
        throughout or its own predictions throughout; in each step of each batch either of them.
    teacher_forcing : float
        Probability of the true readings in the last two strategies, 0 to 1.
    epochs : int
        Published 200.
    encoder_length, decoder_length, stride : int
        Readings encoded, decoded, and between the starts of windows; published 24 each.
    features : tuple of str
        Further inputs, any of ``time_step``; published none.
    patience : int, optional
        Epochs without improvement on the last 15 % of the span before training stops; None trains on the
        whole span for all epochs, as published, and leaves nothing to calibrate intervals on: they are NaN.
    checkpoint_dir : path, optional
        Where to keep the checkpoint that an interrupted training resumes from.
    progress : function (Epoch) -> None, optional
    device : str

    Returns
    -------
    Lstm

    Raises
    ------
    ValueError
        A setting out of range, or too few readings.

    Notes
    -----
    As published, but for three corrections: every window is visited exactly once an epoch, scales are
    those of the readings trained on, and weights are the best on the tail. Inputs are standardised
    crystal by crystal (published: per crystal and file).

    The last 15 % of the span stop the training, choose the best epoch and calibrate the intervals, on a sample of the
    crystals; the network is fitted to the first 85 % and never refitted to the whole. So the intervals are a little too
    narrow, chosen to fit where they were measured, and the network has not seen the end of the span.
    Source: FAIR-UMN-ECAL, github.com/FAIR-UMN/FAIR-UMN-ECAL.
    """
    _check_settings(
        hidden=hidden, strategy=strategy, teacher_forcing=teacher_forcing, epochs=epochs, patience=patience,
        encoder_length=encoder_length, decoder_length=decoder_length, stride=stride, features=features,
    )  # fmt: skip
    tail_s = np.inf if patience is None else time_at_fraction(history, 1 - _TAIL)
    ids, mean, std = _fitted_scales(history, tail_s, features)
    unfitted = Lstm(
        train_years=history.years, interval=IntervalTable.unknown(), weights={}, xtal_id=ids, mean=mean, std=std,
        encoder_length=encoder_length, decoder_length=decoder_length, features=tuple(features), strategy=strategy,
        best_epoch=0, device=device,
    )  # fmt: skip
    fitted, tail = _windows(unfitted, history, stride, tail_s)
    if fitted is None or (patience is not None and tail is None):
        part = "in the last 15 % of the span, kept for early stopping" if fitted is not None else "to train on"
        raise ValueError(
            f"too few readings: no crystal has a window of {encoder_length} + {decoder_length} {part}; "
            "train on a longer span or use shorter lengths"
        )
    past, known, truth = fitted

    net = _empty_net(2 + len(features), hidden)
    initialise(net, seed=seed)

    def loss(net: Seq2Seq, sample: Tensor, generator: torch.Generator) -> Tensor:
        coin = torch.rand(decoder_length, generator=generator)
        if strategy == "teacher":
            coin = coin[:1].expand(decoder_length)
        is_forced = () if strategy == "recursive" else tuple((coin < teacher_forcing)[1:].tolist())
        made = net(past[sample], known[sample], truth[sample], is_forced)
        return nn.functional.mse_loss(made, truth[sample])

    def validate() -> float:
        assert tail is not None
        return nn.functional.mse_loss(net(tail[0], tail[1]), tail[2]).item()

    with limit_threads(_threads(hidden)):
        done = train(
            net, loss, n_samples=past.shape[0], epochs=epochs, lr=_LEARNING_RATE, seed=seed, device=device, patience=patience,
            batch_size=_BATCH if decoder_length < _LONG else _BATCH_LONG, validate=None if tail is None else validate,
            progress=progress, checkpoint_dir=checkpoint_dir,
            identity=_identity([*fitted, *(tail or ())], [hidden, strategy, teacher_forcing]),
        )  # fmt: skip
    weights = {name: value.cpu().numpy().copy() for name, value in net.state_dict().items()}
    model = replace(unfitted, weights=weights, best_epoch=done.best_epoch)
    if patience is None:
        return model
    return replace(model, interval=interval_table(model, sample_history(history), start_s=tail_s, window=max(24, encoder_length)))


def _check_settings(
    *, hidden: int, strategy: str, teacher_forcing: float, epochs: int, patience: int | None,
    encoder_length: int, decoder_length: int, stride: int, features: tuple[str, ...],
) -> None:  # fmt: skip
    counts = {"hidden": hidden, "epochs": epochs, "encoder_length": encoder_length, "decoder_length": decoder_length, "stride": stride}
    for name, got in (counts | ({} if patience is None else {"patience": patience})).items():
        if got < 1:
            raise ValueError(f"{name} = {got} must be >= 1")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}")
    if not 0 <= teacher_forcing <= 1:
        raise ValueError(f"teacher_forcing = {teacher_forcing} is a probability: give 0 to 1")
    if unknown := [name for name in features if name not in _FEATURES]:
        raise ValueError(f"feature {unknown[0]!r} is unknown; choose from {', '.join(_FEATURES)}")


def _threads(hidden: int) -> int | None:
    return 1 if hidden < _SMALL else None


def _empty_net(n_inputs: int, hidden: int) -> Seq2Seq:
    """Network without weights: PyTorch's constructors would draw them from the global generator."""
    with torch.device("meta"):
        net = Seq2Seq(n_inputs, hidden)
    return net.to_empty(device="cpu")


def _identity(tensors: list[Tensor], settings: list[object]) -> str:
    digest = hashlib.sha256(json.dumps([settings, [list(t.shape) for t in tensors]]).encode())
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _inputs(block: Block, features: tuple[str, ...]) -> FloatArray:
    """Unscaled inputs, (crystal, reading, input): transparency, luminosity to the next reading, features."""
    shared = [block.lumi_ifb]
    if "time_step" in features:
        # logarithm: steps run from minutes to winter stops; there is none after the last reading
        shared.append(np.log(np.diff(block.time_s, append=np.nan)))
    columns = [np.broadcast_to(column, block.transparency.shape) for column in shared]
    return np.stack([block.transparency, *columns], axis=2)


def _scales(inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation over the readings, (crystal, reading, input) -> two of (crystal, input)."""
    mean, std = np.nanmean(inputs, axis=1), np.nanstd(inputs, axis=1)
    return mean, np.where(std > 0, std, 1.0)


def _fitted_scales(history: TransparencyHistory, stop_s: float, features: tuple[str, ...]) -> tuple[IntArray, FloatArray, FloatArray]:
    """Crystals read before a time, and their scales from those readings alone."""
    parts: dict[int, list[FloatArray]] = {}
    for block in history.blocks:
        early = _inputs(block, features)[:, block.time_s < stop_s]
        for c, xtal_id in enumerate(block.xtal_id.tolist()):
            if np.isfinite(early[c, :, 0]).any():
                parts.setdefault(xtal_id, []).append(early[c])
    if not parts:
        raise ValueError("no readings to train on; train on a longer span")
    ids = np.array(sorted(parts), dtype=np.int64)
    scales = [_scales(np.concatenate(parts[i])[None]) for i in ids.tolist()]
    return ids, np.concatenate([m for m, _ in scales]), np.concatenate([s for _, s in scales])


_Windows = tuple[Tensor, Tensor, Tensor]  # past (B, L_E, input), known (B, L_D, input - 1), truth (B, L_D)


def _windows(model: Lstm, history: TransparencyHistory, stride: int, tail_s: float) -> tuple[_Windows | None, _Windows | None]:
    """Scaled windows whose targets all lie before a time, and those whose targets all lie after it."""
    past_step, step = np.arange(-model.encoder_length, 0), np.arange(model.decoder_length)
    found: tuple[list[_Windows], list[_Windows]] = ([], [])
    for block in history.blocks:
        mean, std = model._scale_of(block)
        x = (_inputs(block, model.features) - mean[:, None]) / std[:, None]
        origin = np.arange(model.encoder_length, block.n_readings - model.decoder_length + 1, stride)
        time_s = block.time_s
        for part, chosen in zip(found, (time_s[origin + step[-1]] < tail_s, time_s[origin] >= tail_s), strict=True):
            o = origin[chosen][:, None]
            past, known, truth = x[:, o + past_step], x[:, o + step - 1, 1:], x[:, o + step, 0]
            # (crystal, window, ...) -> (B, ...)
            tensors = [torch.from_numpy(a.astype(np.float32)).flatten(0, 1) for a in (past, known, truth)]
            is_whole = torch.isfinite(tensors[0]).all(dim=(1, 2)) & torch.isfinite(tensors[2]).all(dim=1)
            if is_whole.any():
                part.append((tensors[0][is_whole], tensors[1][is_whole], tensors[2][is_whole]))
    return _pooled(found[0], model.device), _pooled(found[1], model.device)


def _pooled(parts: list[_Windows], device: str) -> _Windows | None:
    if not parts:
        return None
    past, known, truth = (torch.cat(pieces).to(device) for pieces in zip(*parts, strict=True))
    return past, known, truth


def _forecast(model: Lstm, block: Block, origins: IntArray, horizon: int, mean: FloatArray, std: FloatArray, name: str) -> Forecast:
    origins = np.atleast_1d(np.asarray(origins, dtype=np.int64))
    length = model.encoder_length
    if horizon < 1 or origins.size == 0:
        raise ValueError(f"horizon = {horizon} from {origins.size} origins: ask for at least one reading from one origin")
    if (low := int(origins.min())) < length:
        raise ValueError(f"origin {low} leaves fewer than the {length} readings the network encodes; start at reading {length} or later")
    if (end := int(origins.max()) + horizon) > block.n_readings:
        raise ValueError(
            f"a horizon of {horizon} from reading {end - horizon} needs times and luminosity of {end} readings; "
            f"the block has {block.n_readings}: add the planned luminosity, or shorten the horizon"
        )
    past_row = origins[:, None] + np.arange(-length, 0)  # (window, L_E)
    recent = block.transparency[:, past_row]
    if np.isnan(recent).any():
        c, w, k = np.argwhere(np.isnan(recent))[0]
        raise ValueError(f"crystal {block.xtal_id[c]} has no reading at row {past_row[w, k]}; the {length} before an origin must be there")
    x = ((_inputs(block, model.features) - mean[:, None]) / std[:, None]).astype(np.float32)
    net = _empty_net(x.shape[2], model.hidden)
    net.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in model.weights.items()})
    net.to(model.device).eval()

    scaled = np.empty((block.n_crystals, origins.size, length + horizon), np.float32)  # past readings, then forecasts
    scaled[:, :, :length] = x[:, past_row, 0]
    for done in range(0, horizon, model.decoder_length):
        n_steps = min(model.decoder_length, horizon - done)
        past = x[:, past_row + done]  # (crystal, window, L_E, input)
        past[..., 0] = scaled[:, :, done : done + length]
        known = x[:, origins[:, None] + done - 1 + np.arange(n_steps), 1:]
        made = _decoded(net, past.reshape(-1, length, x.shape[2]), known.reshape(-1, n_steps, x.shape[2] - 1), model.device)
        scaled[:, :, length + done : length + done + n_steps] = made.reshape(block.n_crystals, origins.size, n_steps)

    row = origins[:, None] + np.arange(horizon)
    horizon_s = block.time_s[row] - block.time_s[origins - 1][:, None]
    half68, half95 = model.interval.at(horizon_s)
    transparency = mean[:, 0, None, None] + std[:, 0, None, None] * scaled[:, :, length:].astype(np.float64)
    return Forecast(
        model=name, train_years=model.train_years, year=block.year, xtal_id=block.xtal_id, row=row, horizon_s=horizon_s,
        transparency=transparency,
        half68=np.broadcast_to(half68, transparency.shape), half95=np.broadcast_to(half95, transparency.shape),
    )  # fmt: skip


def _decoded(net: Seq2Seq, past: NDArray[np.float32], known: NDArray[np.float32], device: str) -> NDArray[np.float32]:
    made = np.empty(known.shape[:2], np.float32)
    with torch.inference_mode(), limit_threads(_threads(net.readout.in_features)):
        for b in range(0, past.shape[0], _MOST_SEQUENCES):
            s = slice(b, b + _MOST_SEQUENCES)
            made[s] = net(torch.from_numpy(past[s]).to(device), torch.from_numpy(known[s]).to(device)).cpu().numpy()
    return made
