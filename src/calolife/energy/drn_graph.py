"""Graphs of the hits of objects: nearest neighbours, their edges, and the greedy matching that merges nodes by twos.

Loads torch: import it inside the function that needs it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Edges", "Slots", "cut_weights", "edges_of", "groups", "keys", "knn", "match", "padded", "rows_of", "slots_of"]

GROUP_HITS = 1500  # chosen: the widest tensor of a group, (edge, hidden), stays in the caches of a core; a group costs 1 ms of calls
ROUNDS = 8  # chosen: completes the matching of 99.3 % of electrons; 6 do 90 %, 4 only 40 %
# chosen: above what the distances of two pairs differ by when a matrix product is rounded otherwise, below what tells pairs apart
_TIE = 1e-5
_PRIME = 2_147_483_629  # chosen: a prime below 2^31, so that a square fits into 64 bits
_STEPS = 65536.0  # chosen: per unit of a feature; a power of two, so that the product is exact
_MULTIPLIER = 48271  # source: S. K. Park and K. W. Miller, Comm. ACM 36 (1993) 108


class Slots(NamedTuple):
    """Where the nodes of a flat batch stand in a padded one."""

    n_objects: int
    n_slots: int
    slot: Tensor  # (node,) object x n_slots + place in the object
    node: Tensor  # (object, slot) the node that stands there, 0 where none does
    is_node: Tensor  # (object, slot)


class Edges(NamedTuple):
    """Pairs of nodes, by rising receiver; each node has one at least: itself."""

    receiver: Tensor  # (edge,) int64, never falling
    sender: Tensor  # (edge,) int64
    start: Tensor  # (node,) first edge of each receiver
    by_sender: Tensor  # (edge,) edges in the order of their senders
    sender_start: Tensor  # (node,) first of those of each sender


def slots_of(count: Tensor) -> Slots:
    """Places for objects of these many nodes.

    Parameters
    ----------
    count : int tensor, (object,)
        Nodes of each object, >= 1; they stand one object after the other.
    """
    n_objects, n_slots = count.numel(), int(count.max())
    place = torch.arange(n_slots, device=count.device)
    is_node = place < count.unsqueeze(1)  # (object, slot)
    node = (torch.cumsum(count, 0) - count).unsqueeze(1) + place
    return Slots(n_objects, n_slots, is_node.flatten().nonzero().squeeze(1), node * is_node, is_node)


def padded(x: Tensor, at: Slots) -> Tensor:
    """(node, F) -> (object, slot, F); padding repeats node 0."""
    return x.index_select(0, at.node.flatten()).view(at.n_objects, at.n_slots, x.shape[1])


def _distances(x: Tensor) -> Tensor:
    """Squared distances within each object, (object, slot, F) -> (object, slot, slot)."""
    y = x - x[:, :1]  # near zero the differences of squares lose less
    square = (y * y).sum(2)
    return torch.baddbmm(square.unsqueeze(1) + square.unsqueeze(2), y, y.transpose(1, 2), alpha=-2.0).clamp_(min=0.0)


def _is_itself(x: Tensor) -> Tensor:
    """(object, slot, F) -> (slot, slot)"""
    place = torch.arange(x.shape[1], device=x.device)
    return place.unsqueeze(1) == place


@torch.no_grad()
def knn(x: Tensor, is_node: Tensor, *, k: int, is_symmetric: bool) -> Tensor:
    """Which node hears which: its k nearest of the same object, itself first.

    Parameters
    ----------
    x : float tensor, (object, slot, F)
        As `padded` makes it.
    is_node : bool tensor, (object, slot)
    k : int
        Neighbours of a node, itself among them; all there are if they are fewer.
    is_symmetric : bool
        Let a node also hear those that hear it.

    Returns
    -------
    bool tensor, (object, slot, slot)
        Receiver, sender.

    Examples
    --------
    >>> x = torch.tensor([[[0.0], [1.0], [3.0]]])
    >>> knn(x, torch.ones(1, 3, dtype=torch.bool), k=2, is_symmetric=False)[0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 1, 1]]
    """
    is_pair = is_node.unsqueeze(2) & is_node.unsqueeze(1)
    if x.shape[1] <= k:
        return is_pair
    away = _distances(x).masked_fill_(~is_node.unsqueeze(1), math.inf)
    away = away.masked_fill_(_is_itself(x), -1.0)  # whatever else lies in the same place
    nearest = away.topk(k, dim=2, largest=False, sorted=False).indices
    near = torch.zeros_like(is_pair).scatter_(2, nearest, True).logical_and_(is_pair)
    return near | near.transpose(1, 2) if is_symmetric else near


@torch.no_grad()
def edges_of(near: Tensor, at: Slots) -> Edges:
    """List of the pairs that `knn` found, in node numbers of the flat batch."""
    n = at.n_slots
    flat = near.flatten().nonzero().squeeze(1)  # object, receiver, sender: rising
    place = flat // n
    node = at.node.flatten()
    receiver = node[place]
    sender = node[place // n * n + flat % n]

    def starts(degree: Tensor) -> Tensor:
        of = degree.flatten()[at.slot]
        return torch.cumsum(of, 0) - of

    number = torch.empty(near.numel(), dtype=torch.int64, device=near.device)
    number[flat] = torch.arange(flat.numel(), device=near.device)
    turned = near.transpose(1, 2)
    by_sender = number.view(near.shape).transpose(1, 2)[turned]
    return Edges(receiver, sender, starts(near.sum(2)), by_sender, starts(turned.sum(2)))


@torch.no_grad()
def cut_weights(x: Tensor, near: Tensor) -> Tensor:
    """Normalised-cut weights of pairs, |x_i - x_j| (1/deg i + 1/deg j), (object, slot, slot); -1 for what is no pair.

    Parameters
    ----------
    x : float tensor, (object, slot, F)
        As `padded` makes it.
    near : bool tensor, (object, slot, slot)
        As `knn` gives it.

    Notes
    -----
    The published weight grows with the distance: greedy matching joins the farthest of the neighbours. Joining the
    nearest instead makes no difference to the resolution of 4,000 electrons, within 2 %.
    """
    inverse = 1.0 / near.sum(2).clamp_(min=1)  # (object, slot)
    weight = _distances(x).sqrt_() * (inverse.unsqueeze(1) + inverse.unsqueeze(2))
    return weight.masked_fill_(_is_itself(x) | ~(near | near.transpose(1, 2)), -1.0)


@torch.no_grad()
def match(weight: Tensor, key: Tensor | None = None, *, rounds: int = ROUNDS, is_unrolled: bool = False) -> Tensor:
    """Partner of each node by greedy matching, (object, slot): the heaviest pair first; itself where none is left.

    Parameters
    ----------
    weight : float tensor, (object, slot, slot)
        Symmetric; below 0 where there is no pair.
    key : float tensor, (object, slot), optional
        Between 0 and 1: decides between pairs of equal weight, whatever the order of the nodes.
    rounds : int
        In each, pairs that are the heaviest of both their nodes are joined. Each step of the sequential greedy search
        joins such a pair, so enough rounds give the same matching.
    is_unrolled : bool
        Take all rounds, also those that change nothing: an export has no branch on a value.

    Notes
    -----
    Graclus, which is published, visits nodes in random order and gives each its heaviest free neighbour; here no order enters.

    Examples
    --------
    >>> weight = torch.tensor([[[-1.0, 2.0, 3.0], [2.0, -1.0, -1.0], [3.0, -1.0, -1.0]]])
    >>> match(weight).tolist()
    [[2, 1, 0]]
    """
    n_objects, n, _ = weight.shape
    if key is not None:
        weight = weight * (1.0 + _TIE * (key.unsqueeze(1) + key.unsqueeze(2)))
    own = torch.arange(n, device=weight.device).expand(n_objects, n)
    partner = own.clone()
    free = weight
    for i in range(rounds):
        heaviest, choice = free.max(2)
        is_joined = (choice.gather(1, choice) == own) & (heaviest >= 0)
        partner = torch.where(is_joined, choice, partner)
        if i + 1 == rounds or (i and not is_unrolled and not is_joined.any()):
            break
        free = free.masked_fill(is_joined.unsqueeze(1) | is_joined.unsqueeze(2), -1.0)
    return partner


@torch.no_grad()
def keys(hit: Tensor, *, seed: int) -> Tensor:
    """A number between 0 and 1 for each hit, (..., F) -> (...), from the seed and what it is, and not from where it stands.

    Notes
    -----
    A hash of the features in steps of 2^-16, in whole numbers: the same on every machine and in every order. It decides
    between pairs of equal weight, where others draw random numbers.
    """
    multiplier = torch.tensor([pow(_MULTIPLIER, i + 1, _PRIME) for i in range(hit.shape[-1])], device=hit.device)
    mixed = ((hit * _STEPS).round().to(torch.int64) % _PRIME * multiplier % _PRIME).sum(-1)
    mixed = (mixed + seed % _PRIME) % _PRIME
    mixed = mixed * mixed % _PRIME
    return (mixed * mixed % _PRIME).to(hit.dtype) / _PRIME


def groups(count: Tensor, *, n_hits: int = GROUP_HITS) -> list[Tensor]:
    """Objects of about as many hits, some at a time: padding stays small, memory bounded.

    Parameters
    ----------
    count : int tensor, (object,)
    n_hits : int
        About so many hits make a group.

    Returns
    -------
    list of int tensors, (some,)
        Each object is in one of them.
    """
    total = int(count.sum())
    if total <= n_hits // 4 or count.numel() == 1:  # too few to be worth the sorting
        return [torch.arange(count.numel(), device=count.device)]
    order = torch.argsort(count, stable=True)
    passed = torch.cumsum(count[order], 0) - 1
    ends = torch.bincount(passed // -(-total // -(-total // n_hits))).cumsum(0)
    return [group for group in torch.tensor_split(order, ends[:-1].tolist()) if group.numel()]


def rows_of(first: Tensor, count: Tensor) -> Tensor:
    """Row numbers of objects that begin at these rows and have so many, (row,)."""
    before = torch.cumsum(count, 0) - count
    return torch.repeat_interleave(first - before, count) + torch.arange(int(count.sum()), device=count.device)
