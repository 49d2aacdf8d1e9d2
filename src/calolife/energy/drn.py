"""Dynamic reduction network: energy and its uncertainty from the hits of one object, whatever their number and order.

Loads torch: import it inside the function that needs it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, embedding_bag, linear, softplus

from calolife.energy.crystal_ball import CrystalBall
from calolife.energy.drn_graph import Edges, Slots, cut_weights, edges_of, groups, keys, knn, match, padded, rows_of, slots_of
from calolife.training import limit_threads

__all__ = ["Drn", "EdgeConv", "OutputLayers", "infer", "read_objects"]

_GPU_HITS = 200_000  # chosen: hits of a group there; launches cost the same for many as for few
_TILE_VALUES = 131_072  # chosen: three buffers of 0.5 MB
_LIMIT = 1.0  # chosen: largest abs(mu); published ln 2, but 1 % of barrel electrons lose more than 42 % in cracks
_FARTHEST = 6.0  # chosen: in standard deviations; a feature far out must not run away with the energy
_SIGMA_FROM, _ALPHA_FROM, _N_FROM = -3.5, 1.0, 2.0  # chosen: a new network starts with sigma 0.03, alpha 1.4, n 3.2
_LEAST_SIGMA, _LEAST_ALPHA, _LEAST_N = 1e-4, 0.1, 1.05  # chosen: n at 1 has no integral, alpha at 0 no core


# --- operations with gradients of their own: PyTorch's take 2 to 10 times as long on a CPU


class _Elu(torch.autograd.Function):
    """ELU: PyTorch's spends its time in expm1, of which single precision shows nothing here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp(max=0.0).exp_().sub_(1.0)
        torch.maximum(x, y, out=y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        slope: Tensor = y.clamp(max=0.0).add_(1.0)
        return slope.mul_(grads[0])


def _elu_(x: Tensor) -> Tensor:
    """ELU; overwrites its argument where no gradient is asked for."""
    if torch.is_grad_enabled():
        made: Tensor = _Elu.apply(x)  # type: ignore[no-untyped-call]
        return made
    return _elu_into(x, torch.empty_like(x))


def _elu_into(x: Tensor, spare: Tensor) -> Tensor:
    torch.clamp(x, max=0.0, out=spare)
    return torch.maximum(x, spare.exp_().sub_(1.0), out=x)


class _PairSum(torch.autograd.Function):
    """own[receiver] + other[sender], (node, F) twice -> (edge, F)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, other: Tensor, edges: Edges) -> Tensor:
        ctx.edges = edges
        return own.index_select(0, edges.receiver).add_(other.index_select(0, edges.sender))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        e, grad = ctx.edges, grads[0].contiguous()
        return _segment_sum(grad, None, e.start), _segment_sum(grad, e.by_sender, e.sender_start), None


class _Gather(torch.autograd.Function):
    """Sum over the edges of each receiver, (edge, F) -> (node, F)."""

    @staticmethod
    def forward(ctx: Any, message: Tensor, edges: Edges) -> Tensor:
        ctx.receiver = edges.receiver
        return _segment_sum(message, None, edges.start)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.receiver), None


def _segment_sum(rows: Tensor, order: Tensor | None, start: Tensor) -> Tensor:
    index = torch.arange(rows.shape[0], device=rows.device) if order is None else order
    return embedding_bag(index, rows, start, mode="sum")  # an embedding bag is the fastest segment sum PyTorch has


class EdgeConv(nn.Module):
    """Sum over neighbours j of MLP([x_i, x_j - x_i]).

    Parameters
    ----------
    width : int
        Of x and of the result.
    hidden : int
        Of the two layers between.

    Notes
    -----
    W [x_i, x_j - x_i] = (W_1 - W_2) x_i + W_2 x_j: two products per node instead of one per edge.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(2 * width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, edges: Edges, *, is_reference: bool = False) -> Tensor:
        """(node, width) -> (node, width), by `reference` where asked to."""
        if is_reference:
            return self.reference(x, edges)
        own, other = self.split(x)
        if not torch.is_grad_enabled() and x.device.type == "cpu":
            return self._tiled(own, other, edges)
        h = _elu_(_PairSum.apply(own, other, edges))  # type: ignore[no-untyped-call]  # (edge, hidden)
        h = _elu_(self.second(h))
        summed: Tensor = _Gather.apply(_elu_(self.third(h)), edges)  # type: ignore[no-untyped-call]
        return summed

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a receiver and what a sender add to the first hidden layer, (..., width) -> (..., hidden) each."""
        width = x.shape[-1]
        of_other = self.first.weight[:, width:]
        return linear(x, self.first.weight[:, :width] - of_other, self.first.bias), linear(x, of_other)

    def _tiled(self, own: Tensor, other: Tensor, edges: Edges) -> Tensor:
        """The layers after the first, some edges at a time, in memory that stays in the cache: twice as fast as all at once."""
        (n_nodes, hidden), n_edges = own.shape, edges.receiver.numel()
        step = max(1, _TILE_VALUES // hidden)
        # a tile ends where a receiver does
        wanted = torch.arange(0, n_edges, step, device=own.device)
        ends = torch.searchsorted(edges.start, wanted).tolist()[1:]
        cuts = sorted({0, *ends, n_nodes})
        at = [*edges.start[cuts[:-1]].tolist(), n_edges]
        most = max(b - a for a, b in itertools.pairwise(at))
        wide = max(hidden, self.third.out_features)
        one, two, spare = (own.new_empty(most * wide) for _ in range(3))
        summed = own.new_empty(n_nodes, self.third.out_features)
        second, third = self.second.weight.t(), self.third.weight.t()
        index = torch.arange(most, device=own.device)
        for (a, b), (low, high) in zip(itertools.pairwise(at), itertools.pairwise(cuts), strict=True):
            n = b - a
            h, g, free = (buffer[: n * hidden].view(n, hidden) for buffer in (one, two, spare))
            torch.index_select(own, 0, edges.receiver[a:b], out=h)
            torch.index_select(other, 0, edges.sender[a:b], out=g)
            _elu_into(h.add_(g), free)
            _elu_into(torch.addmm(self.second.bias, h, second, out=g), free)
            last, free = (buffer[: n * summed.shape[1]].view(n, -1) for buffer in (one, spare))
            torch.addmm(self.third.bias, g, third, out=last)
            _elu_into(last, free)
            summed[low:high] = embedding_bag(index[:n], last, edges.start[low:high] - a, mode="sum")
        return summed

    def reference(self, x: Tensor, edges: Edges) -> Tensor:
        """The same as it is written in graph libraries: gather, a full MLP on every edge, scatter."""
        own, other = x[edges.receiver], x[edges.sender]
        h = elu(self.first(torch.cat([own, other - own], 1)))
        h = elu(self.third(elu(self.second(h))))
        return torch.zeros_like(x).index_add(0, edges.receiver, h)


class OutputLayers(nn.ModuleList):
    """From what is known of an object to what `Drn.parameters_of` makes parameters of."""

    def forward(self, read: Tensor) -> Tensor:
        """(object, width + G) -> (object, 6)"""
        *layers, last = self
        for layer in layers:
            read = _elu_(layer(read))
        answer: Tensor = last(read)
        return answer


class Drn(nn.Module):
    """Six Crystal Ball parameters of ln(E_raw / E_true) from the hits of each object.

    Parameters
    ----------
    n_hit_features, n_event_features : int
    width : int
        Of the latent space. Published: 64.
    hidden : int
        Of the layers between in the edge MLP. Published: twice the width.
    k : int
        Neighbours, the node itself among them. Published: 16.
    blocks : int
        Each halves the number of nodes. Published: 2 at first, up to 6.
    is_symmetric : bool
        As `calolife.energy.drn_graph.knn`; published: yes.
    seed : int
        Of the keys that decide between pairs of equal weight; `calolife.training.initialise` draws the weights.

    Attributes
    ----------
    event_centre, event_spread : float tensor, (G,)
        Taken off each event feature, and what it is divided by then; 0 and 1 at first.

    Notes
    -----
    Source: S. Rothman, "Calibrating electrons and photons in the CMS ECAL using graph neural networks", J. Phys. Conf. Ser. 2438
    (2023) 012090; there in torch-geometric, here in plain PyTorch. Nodes hold what they had before the block when the graph is built
    and after the convolution when pairs are weighed, as published.
    """

    def __init__(
        self, n_hit_features: int, n_event_features: int, *, width: int, hidden: int, k: int, blocks: int, is_symmetric: bool, seed: int = 0
    ) -> None:
        super().__init__()
        self.k, self.is_symmetric, self.seed = k, is_symmetric, seed
        self.input = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise([n_hit_features, *[width] * 4]))
        self.conv = nn.ModuleList(EdgeConv(width, hidden) for _ in range(blocks))
        self.output = OutputLayers(nn.Linear(a, b) for a, b in itertools.pairwise([*[width + n_event_features] * 3, 6]))
        self.event_centre: Tensor
        self.event_spread: Tensor
        self.register_buffer("event_centre", torch.zeros(n_event_features))
        self.register_buffer("event_spread", torch.ones(n_event_features))

    def forward(self, hit: Tensor, count: Tensor, event: Tensor, *, is_reference: bool = False) -> CrystalBall:
        """Parameters of each object, (object,) each.

        Parameters
        ----------
        hit : float tensor, (hit, F)
            Scaled to order 1; object after object.
        count : int tensor, (object,)
            Hits of each, >= 1.
        event : float tensor, (object, G)
        is_reference : bool
            Use `EdgeConv.reference`.
        """
        some = _groups_of(count)
        if len(some) == 1:
            return self.parameters_of(self.outputs(hit, count, event, is_reference=is_reference))
        first = torch.cumsum(count, 0) - count
        made = [self.outputs(*_taken(hit, count, event, first, index), is_reference=is_reference) for index in some]
        return self.parameters_of(torch.cat(made).index_select(0, _inverse(torch.cat(some))))

    def outputs(self, hit: Tensor, count: Tensor, event: Tensor, *, is_reference: bool = False) -> Tensor:
        """What `parameters_of` makes parameters of, (object, 6); all objects at once."""
        answer: Tensor = self.output(self.read(hit, count, event, is_reference=is_reference))
        return answer

    def read(self, hit: Tensor, count: Tensor, event: Tensor, *, is_reference: bool = False) -> Tensor:
        """What the output layers read, (object, width + G): what is pooled from the hits, and the event features."""
        x = hit
        for layer in self.input:
            x = _elu_(layer(x))
        key, at = keys(hit, seed=self.seed), slots_of(count)
        for i, conv in enumerate(self.conv):
            near = knn(padded(x.detach(), at), at.is_node, k=self.k, is_symmetric=self.is_symmetric)
            edges = edges_of(near, at)
            x = conv(x, edges, is_reference=is_reference)
            # the global maximum of maxima is the same: the last block pools at once
            if i + 1 < len(self.conv) and at.n_slots > 1:
                x, key, at = _pool(x, key, near, at)
        # (node, width) -> (object, width)
        pooled = padded(x, at).masked_fill(~at.is_node.unsqueeze(2), -math.inf).amax(1)
        return torch.cat([pooled, self.scaled(event)], 1)

    def scaled(self, event: Tensor) -> Tensor:
        """Event features of order 1, (object, G); what lies far out is moved in."""
        return ((event - self.event_centre) / self.event_spread).clamp(-_FARTHEST, _FARTHEST)

    @staticmethod
    def parameters_of(raw: Tensor) -> CrystalBall:
        """(object, 6) -> six times (object,)"""
        mu, sigma, alpha_left, n_left, alpha_right, n_right = raw.unbind(1)
        return CrystalBall(
            2.0 * _LIMIT * (torch.sigmoid(mu) - 0.5),
            _LEAST_SIGMA + softplus(sigma + _SIGMA_FROM),
            _LEAST_ALPHA + softplus(alpha_left + _ALPHA_FROM),
            _LEAST_N + softplus(n_left + _N_FROM),
            _LEAST_ALPHA + softplus(alpha_right + _ALPHA_FROM),
            _LEAST_N + softplus(n_right + _N_FROM),
        )


def _pool(x: Tensor, key: Tensor, near: Tensor, at: Slots) -> tuple[Tensor, Tensor, Slots]:
    """Larger of each matched pair, feature by feature."""
    with torch.no_grad():
        partner = match(cut_weights(padded(x.detach(), at), near), padded(key.unsqueeze(1), at).squeeze(2))  # (object, slot)
        own = torch.arange(at.n_slots, device=x.device)
        is_kept = (partner >= own) & at.is_node
        base = at.node[:, :1]  # the nodes of an object stand side by side
        kept, other = (base + own)[is_kept], (base + partner)[is_kept]
        left = slots_of(is_kept.sum(1))
    return torch.maximum(x.index_select(0, kept), x.index_select(0, other)), torch.maximum(key[kept], key[other]), left


def infer(net: Drn, hit: Tensor, *, count: Tensor, event: Tensor, n_threads: int = 1, is_reference: bool = False) -> CrystalBall:
    """What the network answers, without gradients, on several cores where asked to.

    Parameters
    ----------
    net : Drn
    hit, count, event : tensors
        As in `Drn.forward`.
    n_threads : int
        Groups of objects are dealt to so many threads on a CPU; the answer does not depend on it.
    is_reference : bool

    Notes
    -----
    The threads are Python's: PyTorch lets others run in every operation, and threads of its own would wait for one another
    at each of them.
    """
    made = _in_groups(partial(net.outputs, is_reference=is_reference), hit, count, event, n_threads=n_threads)
    with torch.inference_mode():
        return net.parameters_of(made)


def read_objects(net: Drn, hit: Tensor, *, count: Tensor, event: Tensor, n_threads: int = 1) -> Tensor:
    """What the output layers read of each object, as `Drn.read`; arguments as in `infer`."""
    return _in_groups(net.read, hit, count, event, n_threads=n_threads).clone()  # may be trained on


def _in_groups(function: Callable[..., Tensor], hit: Tensor, count: Tensor, event: Tensor, *, n_threads: int) -> Tensor:
    """What a function of hits, counts and event features gives, (object, ...), without gradients, group by group."""
    some, first = _groups_of(count), torch.cumsum(count, 0) - count

    def one(index: Tensor) -> Tensor:
        with torch.inference_mode():  # it holds for one thread only
            return function(*_taken(hit, count, event, first, index))

    if len(some) == 1:
        with torch.inference_mode(), limit_threads(1):
            return function(hit, count, event)
    n_threads = n_threads if count.device.type == "cpu" else 1
    with limit_threads(1), ThreadPoolExecutor(min(n_threads, len(some))) as pool:
        made = list(pool.map(one, some))
        with torch.inference_mode():
            return torch.cat(made).index_select(0, _inverse(torch.cat(some)))


def _groups_of(count: Tensor) -> list[Tensor]:
    return groups(count) if count.device.type == "cpu" else groups(count, n_hits=_GPU_HITS)


def _taken(hit: Tensor, count: Tensor, event: Tensor, first: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hits, their number, and event features of some objects."""
    n = count[index]
    return hit.index_select(0, rows_of(first[index], n)), n, event[index]


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
