"""The dynamic reduction network: blind to order and padding, its graph that of a brute-force search, its layers the written ones."""

import itertools

import numpy as np
import pytest
import torch

from calolife.energy.crystal_ball import crystal_ball_nll
from calolife.energy.drn import Drn, EdgeConv, infer
from calolife.energy.drn_graph import cut_weights, edges_of, groups, keys, knn, match, padded, slots_of
from calolife.training import initialise

DEFAULT = {"width": 32, "hidden": 32, "k": 8, "blocks": 2, "is_symmetric": False}
PUBLISHED = {"width": 64, "hidden": 128, "k": 16, "blocks": 2, "is_symmetric": True}
VARIANTS = [DEFAULT, PUBLISHED, {**DEFAULT, "width": 16, "hidden": 8, "blocks": 3}]
CLOSE = 1e-5  # wanted of every parameter; single precision gives 1e-6


def toy(n: int = 200, *, seed: int = 1, features: int = 5, most: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    count = torch.from_numpy(rng.integers(1, most, n))
    hit = torch.from_numpy(rng.normal(size=(int(count.sum()), features)).astype(np.float32))
    event = torch.from_numpy(rng.normal(size=(n, 2)).astype(np.float32))
    return hit, count, event


def network(options: dict = DEFAULT, *, seed: int = 3) -> Drn:
    net = Drn(5, 2, **options)
    initialise(net, seed=seed)
    return net.eval()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", VARIANTS)
@torch.no_grad()
def test_order_of_hits_does_not_matter(options) -> None:
    hit, count, event = toy()
    net, rng = network(options), np.random.default_rng(2)
    first = (count.cumsum(0) - count).tolist()
    order = np.concatenate([rng.permutation(n) + f for n, f in zip(count.tolist(), first, strict=True)])
    for a, b in zip(net(hit, count, event), net(hit[order], count, event), strict=True):
        assert (a - b).abs().max() < CLOSE


@pytest.mark.parametrize("options", VARIANTS)
@torch.no_grad()
def test_a_batch_equals_its_members(options) -> None:
    hit, count, event = toy()
    net, first = network(options), (count.cumsum(0) - count).tolist()
    one = [net(hit[f : f + n], count[i : i + 1], event[i : i + 1]) for i, (f, n) in enumerate(zip(first, count.tolist(), strict=True))]
    for k, a in enumerate(net(hit, count, event)):
        assert (a - torch.cat([o[k] for o in one])).abs().max() < CLOSE


@pytest.mark.parametrize("is_symmetric", [False, True])
@pytest.mark.parametrize("k", [1, 4, 16, 100])
def test_edges_are_those_of_a_brute_force_search(k: int, is_symmetric: bool) -> None:
    hit, count, _ = toy(n=30)
    at = slots_of(count)
    edges = edges_of(knn(padded(hit, at), at.is_node, k=k, is_symmetric=is_symmetric), at)
    wanted, start = set(), 0
    for n in count.tolist():
        x = hit[start : start + n].double().numpy()
        away = ((x[:, None] - x[None]) ** 2).sum(2)
        for i in range(n):
            for j in np.argsort(away[i])[:k]:
                wanted.add((start + i, start + int(j)))
                if is_symmetric:
                    wanted.add((start + int(j), start + i))
        start += n
    found = list(zip(edges.receiver.tolist(), edges.sender.tolist(), strict=True))
    assert found == sorted(wanted)
    assert edges.sender[edges.by_sender].tolist() == sorted(edges.sender.tolist())
    for order, begin in ((edges.receiver, edges.start), (edges.sender[edges.by_sender], edges.sender_start)):
        assert order[begin].tolist() == list(range(hit.shape[0]))


def test_twins_are_their_own_neighbours() -> None:
    near = knn(torch.zeros(1, 5, 3), torch.ones(1, 5, dtype=torch.bool), k=1, is_symmetric=False)
    assert torch.equal(near[0], torch.eye(5, dtype=torch.bool))


def test_the_split_layer_is_the_written_one() -> None:
    hit, count, _ = toy(n=20)
    at = slots_of(count)
    edges = edges_of(knn(padded(hit, at), at.is_node, k=6, is_symmetric=False), at)
    conv = EdgeConv(5, 16)
    initialise(conv, seed=1)
    conv = conv.double()
    x = hit.double().requires_grad_()
    ours, theirs = conv(x, edges), conv.reference(x, edges)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    loss = torch.sin(torch.arange(ours.numel()).double()).view_as(ours)
    wanted = torch.autograd.grad((theirs * loss).sum(), [x, *conv.parameters()])
    for a, b in zip(torch.autograd.grad((ours * loss).sum(), [x, *conv.parameters()]), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", VARIANTS)
def test_training_inference_reference_and_threads_give_the_same(options) -> None:
    hit, count, event = toy()
    net = network(options)
    trained = net(hit, count, event)  # with gradients: not in tiles
    for how in ({}, {"n_threads": 2}, {"is_reference": True}):
        for a, b in zip(trained, infer(net, hit, count=count, event=event, **how), strict=True):
            assert (a - b).abs().max() < CLOSE


def test_threads_change_no_bit() -> None:
    hit, count, event = toy()
    one, two = (infer(network(), hit, count=count, event=event, n_threads=n) for n in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_gradients_reach_every_weight() -> None:
    hit, count, event = toy()
    net = network().train()
    crystal_ball_nll(net(hit, count, event), torch.zeros(200)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_matching_is_the_sequential_greedy_one() -> None:
    hit, count, _ = toy(n=40)
    at = slots_of(count)
    x = padded(hit, at)
    weight = cut_weights(x, knn(x, at.is_node, k=8, is_symmetric=True))
    partner = match(weight, rounds=40)
    for b, n in enumerate(count.tolist()):
        w, wanted = weight[b].numpy(), list(range(weight.shape[1]))
        free = set(range(n))
        pairs = [(w[i, j], i, j) for i, j in itertools.product(range(n), repeat=2) if j < i and w[i, j] >= 0]
        for _, i, j in sorted(pairs, reverse=True):
            if i in free and j in free:
                wanted[i], wanted[j] = j, i
                free -= {i, j}
        assert partner[b].tolist() == wanted


def test_eight_rounds_match_nearly_all() -> None:
    hit, count, _ = toy(n=200)
    at = slots_of(count)
    x = padded(hit, at)
    weight = cut_weights(x, knn(x, at.is_node, k=8, is_symmetric=True))
    assert (match(weight) != match(weight, rounds=60)).double().mean() < 0.01


def test_cut_weight_of_three_in_a_row() -> None:
    x = torch.tensor([[[0.0], [1.0], [3.0]]])
    weight = cut_weights(x, knn(x, torch.ones(1, 3, dtype=torch.bool), k=2, is_symmetric=True))
    # neighbours 0-1 and 1-2; degrees, with itself, 2, 3, 2
    assert weight[0, 0, 1] == pytest.approx(1.0 * (1 / 2 + 1 / 3))
    assert weight[0, 2, 1] == pytest.approx(2.0 * (1 / 2 + 1 / 3))
    assert weight[0, 0, 2] == -1
    assert weight[0, 0, 0] == -1


def test_equal_weights_are_decided_by_the_key_not_the_order() -> None:
    weight = torch.ones(1, 4, 4)
    weight[0].fill_diagonal_(-1.0)
    key = torch.tensor([[0.1, 0.9, 0.3, 0.7]])
    assert match(weight, key).tolist() == [[2, 3, 0, 1]]
    assert match(weight, key[:, [3, 0, 2, 1]]).tolist() == [[3, 2, 1, 0]]


def test_keys_follow_the_hit_and_the_seed() -> None:
    hit, _, _ = toy()
    key = keys(hit, seed=0)
    assert torch.equal(keys(hit.flip(0), seed=0).flip(0), key)
    assert not torch.equal(keys(hit, seed=1), key)
    # uniform: the mean of n has a spread of 1 / sqrt(12 n)
    assert abs(key.mean().item() - 0.5) < 4 / np.sqrt(12 * key.numel())
    assert key.unique().numel() == pytest.approx(key.numel(), rel=0.01)


def test_groups_visit_every_object_once_and_stay_small() -> None:
    _, count, _ = toy(n=2000)
    some = groups(count)
    assert sorted(torch.cat(some).tolist()) == list(range(2000))
    assert max(count[index].sum().item() for index in some) <= 1500 + 60  # one object beyond at most


@torch.no_grad()
def test_objects_of_one_hit_have_an_answer() -> None:
    hit, _, event = toy()
    for count in (torch.ones(200, dtype=torch.int64), torch.ones(1, dtype=torch.int64)):
        n = count.numel()
        assert all(p.isfinite().all() and p.numel() == n for p in network()(hit[:n], count, event[:n]))
