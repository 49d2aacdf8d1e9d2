"""The dynamic reduction network as an ONNX file, which runs without calolife and PyTorch, and running it in onnxruntime.

Needs the extra ``onnx``. Loads torch: import it inside the function that needs it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import elu

from calolife.energy.ball import ONE_SIGMA
from calolife.energy.crystal_ball import CrystalBall
from calolife.energy.drn import Drn
from calolife.energy.drn_graph import cut_weights, keys, knn, match
from calolife.energy.drn_model import DrnModel, event_inputs, in_units, inputs_of, objects_to_read
from calolife.energy.features import EnergySample, FloatArray, Prediction
from calolife.energy.objects import HIT_INPUTS
from calolife.errors import FileFormatError, MissingExtraError

__all__ = ["ExportCheck", "check_onnx", "export_onnx", "model_digest", "run_onnx"]

_FORMAT = "calolife drn onnx 1"
_OPSET = 18  # the first with all operations used here
_PAIRS = 100_000  # chosen: pairs of hits held at once, 13 MB for each hidden layer of the default width
_CLOSE = 1e-5  # chosen: single precision adds up to 1e-6
_INSTALL = 'pip install "calolife[onnx]"'


@dataclass(frozen=True)
class ExportCheck:
    """How an exported file compares with the model it was made of.

    Parameters
    ----------
    n_objects : int
        Objects compared: those that the model keeps for it.
    n_apart : int
        Objects whose energy or its uncertainty differs by more than 1e-5 of it.
    worst : float
        Largest relative difference.
    """

    n_objects: int
    n_apart: int
    worst: float


class _Padded(nn.Module):
    """The network on padded objects and all pairs of their hits, in operations that ONNX has."""

    def __init__(self, model: DrnModel) -> None:
        super().__init__()
        self.net, self.scale = model.net, model.scale

    def forward(self, hit: Tensor, count: Tensor, event: Tensor, raw_energy_gev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(object, slot, F), (object,), (object, G), (object,) -> three times (object,)"""
        net: Drn = self.net
        x, key = hit, keys(hit, seed=net.seed)
        for layer in net.input:
            x = elu(layer(x))
        own = torch.arange(hit.shape[1], device=hit.device)
        is_node = own < count.unsqueeze(1)
        for i, conv in enumerate(net.conv):
            near = knn(x, is_node, k=net.k, is_symmetric=net.is_symmetric)
            x = _convolved(conv, x, near)
            if i + 1 < len(net.conv):
                partner = match(cut_weights(x, near), key, is_unrolled=True)  # (object, slot)
                is_node = (partner >= own) & is_node
                x = torch.maximum(x, x.gather(1, partner.unsqueeze(2).expand(-1, -1, x.shape[2])))
                key = torch.maximum(key, key.gather(1, partner))
        pooled = x.masked_fill(~is_node.unsqueeze(2), -math.inf).amax(1)  # (object, slot, width) -> (object, width)
        y = torch.cat([pooled, net.scaled(event)], 1)
        for layer in net.output[:-1]:
            y = elu(layer(y))
        shape = in_units(net.parameters_of(net.output[-1](y)), raw_energy_gev)
        energy = raw_energy_gev * torch.exp(-shape.mu)
        at = torch.log(energy)
        scaled = energy * torch.exp(_between(at, *self.scale.energy))
        sigma_scale = torch.exp(_between(at, *self.scale.sigma))
        return scaled, sigma_scale * scaled * _half_width(shape), shape.mu


def _between(x: Tensor, knots: FloatArray, values: FloatArray) -> Tensor:
    """As `numpy.interp`: a sum of ramps, since ONNX has no search."""
    found = torch.full_like(x, float(values[0]))
    for low, high, rise in zip(knots[:-1], knots[1:], np.diff(values), strict=True):
        found = found + float(rise / (high - low)) * (x.clamp(float(low), float(high)) - float(low))
    return found


def _convolved(conv: nn.Module, x: Tensor, near: Tensor) -> Tensor:
    own, other = conv.split(x)  # type: ignore[operator]  # (object, slot, hidden) each
    h = elu(own.unsqueeze(2) + other.unsqueeze(1))  # (object, receiver, sender, hidden)
    h = elu(conv.third(elu(conv.second(h))))  # type: ignore[operator]
    return torch.where(near.unsqueeze(3), h, 0.0).sum(2)


def _half_width(shape: CrystalBall) -> Tensor:
    """As `calolife.energy.ball.ball_half_width`, in operations that ONNX has."""
    left, right = (_area(a, n) for a, n in ((shape.alpha_left, shape.n_left), (shape.alpha_right, shape.n_right)))
    below = torch.stack([share * (left + right) for share in ONE_SIGMA])  # (quantile, object)
    above = (left + right) - below
    beyond = torch.stack([below, above], 1)  # (quantile, side, object)
    alpha, n = torch.stack([shape.alpha_left, shape.alpha_right]), torch.stack([shape.n_left, shape.n_right])  # (side, object)
    to_left, to_right = _reach(beyond, alpha, n).unbind(1)
    t = torch.where(below < left, -to_left, to_right)
    return 0.5 * shape.sigma * (t[1] - t[0])


def _area(alpha: Tensor, n: Tensor) -> Tensor:
    """Integral of one side, in sigma."""
    return _tail(alpha, n) + math.sqrt(0.5 * math.pi) * torch.erf(alpha * math.sqrt(0.5))


def _tail(alpha: Tensor, n: Tensor) -> Tensor:
    return n * torch.exp(-0.5 * alpha * alpha) / (alpha * (n - 1.0))


def _reach(beyond: Tensor, alpha: Tensor, n: Tensor) -> Tensor:
    """t >= 0 beyond which this area of a side lies."""
    tail = _tail(alpha, n)
    far = alpha + n / alpha * (torch.exp(-torch.log((beyond / tail).clamp(max=1.0)) / (n - 1.0)) - 1.0)
    # 1 - 2 x the area from t on, were the core to go on beyond alpha
    within = torch.erf(alpha * math.sqrt(0.5)) - (beyond - tail).clamp(min=0.0) * math.sqrt(2.0 / math.pi)
    return torch.where(beyond < tail, far, math.sqrt(2.0) * _inverse_erf(within.clamp(min=0.0)))


# source: M. Giles, "Approximating the erfinv function", GPU Computing Gems (2011), single precision
_NEAR = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164, 0.246640727,
    1.50140941,
)  # fmt: skip
_FAR = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047, 1.00167406,
    2.83297682,
)  # fmt: skip


def _inverse_erf(x: Tensor) -> Tensor:
    w = -torch.log((1.0 - x) * (1.0 + x))
    root = torch.sqrt(w.clamp(min=5.0))
    return x * torch.where(w < 5.0, _polynomial(_NEAR, w.clamp(max=5.0) - 2.5), _polynomial(_FAR, root - 3.0))


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = value * x + c
    return value


def model_digest(model: DrnModel) -> str:
    """A number that tells one fitted model from another: of all that is stored of it."""
    arrays, meta = model.state()
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name, value in sorted(arrays.items()):
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def export_onnx(model: DrnModel, path: str | Path) -> None:
    """Write the network to an ONNX file.

    Parameters
    ----------
    model : DrnModel
    path : path
        An earlier file there is replaced, in one step.

    Raises
    ------
    ValueError
        A model of another kind.
    MissingExtraError
        Without onnx and onnxscript.

    Notes
    -----
    Inputs: ``hit`` (object, slot, F) float32, the hits of each object one after the other as `network_inputs` gives them, padded
    with zeros to the same number of slots, which must exceed k; ``count`` (object,) int64, how many are hits; ``event``
    (object, G) float32; ``raw_energy_gev`` (object,) float32. Outputs, (object,) float32 each: ``energy_gev``, ``sigma_gev`` and ``mu``.
    The metadata name the columns, the detector and the model.

    It goes over all pairs of hits of an object, not only those of neighbours: PyTorch is several times as fast.
    """
    if not isinstance(model, DrnModel):
        raise ValueError(f"model {getattr(model, 'name', type(model).__name__)} has no ONNX form; only drn is exported")
    try:
        import onnx
        import onnxscript  # noqa: F401  # PyTorch's exporter works with it
    except ModuleNotFoundError:
        raise MissingExtraError(f"an export needs onnx and onnxscript: {_INSTALL}") from None
    probe, n = model.probe, 2
    example = (
        torch.zeros(n, model.k + 2, probe.hit.shape[1]), torch.full((n,), model.k), torch.zeros(n, probe.event.shape[1]), torch.ones(n)
    )  # fmt: skip
    objects, slots = torch.export.Dim("object", min=1), torch.export.Dim("slot", min=model.k + 1)
    dynamic = {"hit": {0: objects, 1: slots}, "count": {0: objects}, "event": {0: objects}, "raw_energy_gev": {0: objects}}
    with torch.no_grad(), warnings.catch_warnings(), _muted("torch.onnx"):
        warnings.simplefilter("ignore")  # of PyTorch to its own developers, as what it logs
        made = torch.onnx.export(
            _Padded(model).eval(), example, dynamo=True, opset_version=_OPSET, dynamic_shapes=dynamic, verbose=False,
            input_names=list(dynamic), output_names=["energy_gev", "sigma_gev", "mu"],
        )  # fmt: skip
    assert made is not None
    proto = made.model_proto
    for node in proto.graph.node:  # lines of PyTorch's sources, with the paths of this machine
        del node.metadata_props[:]
    about = {
        "format": _FORMAT, "model": model_digest(model), "detector": model.digest, "k": str(model.k),
        "hit_inputs": ",".join(HIT_INPUTS), "event_inputs": ",".join(model.event_inputs),
    }  # fmt: skip
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {f"calolife.{name}": value for name, value in about.items()})
    partial = Path(path).with_name(Path(path).name + ".partial")
    partial.write_bytes(proto.SerializeToString(deterministic=True))
    os.replace(partial, path)


@contextmanager
def _muted(name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def run_onnx(path: str | Path, sample: EnergySample, *, model: DrnModel | None = None, n_threads: int = 1) -> Prediction:
    """Energies that an exported file gives to a sample, by onnxruntime.

    Parameters
    ----------
    path : path
        As `export_onnx` wrote it.
    sample : EnergySample
    model : DrnModel, optional
        The model it should be of; not compared when left out.
    n_threads : int

    Raises
    ------
    FileFormatError
        Not a file that `export_onnx` wrote, or one of other inputs.
    ValueError
        The file of another model, a sample without hits of crystals, or another detector than that of the training.
    MissingExtraError
        Without onnxruntime.
    """
    session, about = _session(path, model=model, n_threads=n_threads)
    objects = objects_to_read(sample, digest=about["detector"])
    reads_features = about["event_inputs"] != ",".join(event_inputs(reads_features=False))
    inputs = inputs_of(sample, reads_features=reads_features)
    energy, sigma = _answers(session, *inputs, raw_energy_gev=objects.raw_energy_gev, k=int(about["k"]))
    return Prediction(energy, sigma)


def check_onnx(model: DrnModel, path: str | Path) -> ExportCheck:
    """Compare an exported file with its model on the objects that the model keeps for it.

    Raises
    ------
    FileFormatError, ValueError, MissingExtraError
        As `run_onnx`.

    Notes
    -----
    Two pairs of hits that are equally far from each other but for the last digit may be joined otherwise, and then the energy
    of their object differs by more; it happens to about one in 1,000.
    """
    session, about = _session(path, model=model, n_threads=1)
    p = model.probe
    found = model.of_inputs(p.hit, p.count, p.event, raw_energy_gev=p.raw_energy_gev)
    theirs = _answers(session, p.hit, p.count, p.event, raw_energy_gev=p.raw_energy_gev, k=int(about["k"]))
    assert found.sigma_gev is not None
    ours = found.energy_gev, found.sigma_gev
    apart = np.max([np.abs(b / a - 1.0) for a, b in zip(ours, theirs, strict=True)], axis=0)
    return ExportCheck(apart.size, int(np.count_nonzero(~(apart <= _CLOSE))), float(apart.max()))


def _session(path: str | Path, *, model: DrnModel | None, n_threads: int) -> tuple[Any, dict[str, str]]:
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        raise MissingExtraError(f"running an ONNX file needs onnxruntime: {_INSTALL}") from None
    content = Path(path).read_bytes()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = n_threads, 1, 3
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds without a common one
        raise FileFormatError(f"{path} is no ONNX file that onnxruntime reads ({str(error).splitlines()[0]}); export it again") from None
    props = session.get_modelmeta().custom_metadata_map
    about = {name.removeprefix("calolife."): value for name, value in props.items() if name.startswith("calolife.")}
    if about.get("format") != _FORMAT:
        raise FileFormatError(f"{path} was not written by this calolife's export; give the model.onnx of 'calolife energy export'")
    known = {"hit_inputs": (HIT_INPUTS,), "event_inputs": tuple(event_inputs(reads_features=on) for on in (True, False))}
    for name, columns in known.items():
        if about[name] not in [",".join(c) for c in columns]:
            raise FileFormatError(f"{path} reads {name} {about[name]}, this calolife makes {','.join(columns[0])}; export it again")
    if model is not None and about["model"] != (wanted := model_digest(model)):
        raise ValueError(f"{path} is of model {about['model'][:8]}, not of {wanted[:8]}; export that model, or give the file's own")
    return session, about


def _answers(
    session: Any,
    hit: NDArray[np.float32],
    count: NDArray[np.int64],
    event: NDArray[np.float32],
    *,
    raw_energy_gev: FloatArray,
    k: int,
) -> tuple[FloatArray, FloatArray]:
    """Energies and uncertainties, (object,) [GeV] each."""
    energy, sigma = np.empty((2, count.size))
    first = np.cumsum(count) - count
    for some in _batches(count, least=k + 1):
        n_slots = max(k + 1, int(count[some].max()))
        place = np.arange(n_slots)
        is_node = place < count[some, None]
        padded = np.where(is_node[:, :, None], hit[np.where(is_node, first[some, None] + place, 0)], np.float32(0.0))
        inputs = {"hit": padded, "count": count[some].astype(np.int64), "event": event[some]}
        inputs["raw_energy_gev"] = raw_energy_gev[some].astype(np.float32)
        energy[some], sigma[some] = session.run(["energy_gev", "sigma_gev"], inputs)
    return energy, sigma


def _batches(count: NDArray[np.int64], *, least: int) -> Iterator[NDArray[np.int64]]:
    """Objects of about as many hits, so many at a time that their pairs fit into memory."""
    order = np.argsort(count, kind="stable")
    pairs = np.cumsum(np.maximum(count[order], least) ** 2)
    yield from (some for some in np.split(order, np.flatnonzero(np.diff(pairs // _PAIRS)) + 1) if some.size)
