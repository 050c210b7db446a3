"""Two processes with sharded tensors, or with DDP and FSDP2, must do what one does alone."""

import itertools

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import slaf_ext
from slaf_ext import SLAF
from slaf_ext.distributed import SLAFParallel

pytestmark = [
    pytest.mark.cpu("gloo's processes share no GPU"),
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo"),
]
RANKS = 2


def rank(number, folder, work):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=RANKS)
    torch.manual_seed(0)
    work(init_device_mesh("cpu", (RANKS,)), number)
    distributed.destroy_process_group()


def sharded_operator(mesh, number):
    """Every placement of x, coeffs for the layer and for groups along either dimension, all modes."""
    for groups, dim, placement, outside in itertools.product(
        (None, 2, 4, 3), (1, 2), (Replicate(), Shard(0), Shard(1), Shard(2)), slaf_ext.arguments.OUTSIDE
    ):
        x = (3 * torch.randn(6, 12, 12, dtype=torch.float64)).requires_grad_()
        coeffs = torch.randn(*((groups,) if groups else ()), 5, dtype=torch.float64, requires_grad=True)
        seed = torch.randn_like(x)

        def loss(x, coeffs, seed, options=None):
            y = slaf_ext.slaf(x, coeffs, "legendre", **options)
            return y, (y * seed).sum()

        options = {"dim": dim, "domain": (-2.0, 2.0), "outside": outside}
        y, total = loss(x, coeffs, seed, options)
        expected = torch.autograd.grad(total, (x, coeffs))
        dx, dcoeffs, dseed = (
            distribute_tensor(t.detach(), mesh, [p])
            for t, p in ((x, placement), (coeffs, Replicate()), (seed, placement))
        )
        dx.requires_grad_()
        dcoeffs.requires_grad_()
        got, total = loss(dx, dcoeffs, dseed, options)
        what = f"{groups} groups, dim {dim}, {placement}, {outside}"
        divides_groups = groups is not None and placement == Shard(dim) and groups % RANKS
        assert got.placements == (Replicate() if divides_groups else placement,), f"{what}: {got.placements}"
        torch.testing.assert_close(got.full_tensor(), y, msg=lambda m, w=what: f"{w}: {m}")
        for mine, true in zip(torch.autograd.grad(total, (dx, dcoeffs)), expected, strict=True):
            torch.testing.assert_close(mine.full_tensor(), true, msg=lambda m, w=what: f"{w}: {m}")
    dx = distribute_tensor(torch.randn(6, 12), mesh, [Shard(0)]).requires_grad_()
    dcoeffs = distribute_tensor(torch.randn(2, 5), mesh, [Replicate()]).requires_grad_()
    x, coeffs = (t.full_tensor().detach().requires_grad_() for t in (dx, dcoeffs))
    pairs = (dx, dcoeffs), (x, coeffs)
    losses = [sum(y.square().sum() for y in slaf_ext.derivatives(*pair, 2)) for pair in pairs]
    slopes = (torch.autograd.grad(slaf_ext.slaf(*p).square().sum(), p[0], create_graph=True) for p in pairs)
    for ours, alone in (losses, [slope.square().sum() for (slope,) in slopes]):
        gradients = torch.autograd.grad(ours, (dx, dcoeffs)), torch.autograd.grad(alone, (x, coeffs))
        for mine, true in zip(*gradients, strict=True):
            torch.testing.assert_close(mine.full_tensor(), true)
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        slaf_ext.slaf(dx, coeffs.detach())


def sharded_normalised(mesh, number):
    for groups, dim, placement, training in itertools.product(
        (1, 4), (1, 2), (Shard(0), Shard(1), Shard(2)), (True, False)
    ):
        alone = SLAF(3, groups, dim=dim, normalize=True, init="noisy_identity", dtype=torch.float64).train(training)
        x = torch.randn(6, 4, 4, dtype=torch.float64, requires_grad=True)
        seed = torch.randn_like(x)
        ours = SLAF(3, groups, dim=dim, normalize=True, init="noisy_identity", dtype=torch.float64).train(training)
        ours.load_state_dict(alone.state_dict())
        SLAFParallel(input_layout=placement, use_local_output=False)._apply(ours, mesh)
        y = alone(x)
        expected = torch.autograd.grad((y * seed).sum(), (x, alone.coeffs))
        dx = distribute_tensor(x.detach(), mesh, [placement]).requires_grad_()
        got = ours(dx)
        torch.testing.assert_close(got.full_tensor(), y)
        found = torch.autograd.grad((got * distribute_tensor(seed, mesh, [placement])).sum(), (dx, ours.coeffs))
        for mine, true in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.full_tensor(), true)
        torch.testing.assert_close(ours.running_var.full_tensor(), alone.running_var)


def network(groups=1, **options):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), SLAF(5, groups, **options), nn.Linear(8, 2))


def train(model, make_optimizer, part=lambda x: x):
    """Three steps on the same batches for every model, or on its part of them."""
    torch.manual_seed(2)
    optimizer = make_optimizer(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(part(torch.randn(10, 6))).square().mean().backward()
        optimizer.step()


def tensor_parallel(mesh, number):
    parallelize_module(SLAF(2).requires_grad_(False), mesh, SLAFParallel())
    for options in ({}, {"groups": 4}, {"groups": 4, "normalize": True}):
        alone, ours = network(**options), network(**options)
        plan = {"0": ColwiseParallel(), "1": SLAFParallel(), "2": RowwiseParallel()}
        parallelize_module(ours, mesh, plan)
        train(alone, torch.optim.Adam)
        train(ours, torch.optim.Adam)
        assert ours[1].coeffs.grad.placements == (Replicate(),)  # summed once, and not in each step of the optimizer
        for (name, mine), true in zip(ours.named_parameters(), alone.parameters(), strict=True):
            assert isinstance(mine, DTensor)
            torch.testing.assert_close(mine.full_tensor(), true, msg=lambda m, n=name: f"{n}: {m}")


def data_parallel(mesh, number):
    for wrap in (lambda m: DistributedDataParallel(m), lambda m: fully_shard(m, mesh=mesh)):
        alone, ours = network(4), wrap(network(4))
        train(alone, torch.optim.SGD)
        train(ours, torch.optim.SGD, lambda x: x.chunk(RANKS)[number])
        for mine, true in zip(ours.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.full_tensor() if isinstance(mine, DTensor) else mine, true)


def test_a_wrong_layout_gets_a_sentence():
    with pytest.raises(ValueError, match=r"input_layout is 'shard'; it must be a Shard\(dim\) or Replicate\(\)"):
        SLAFParallel(input_layout="shard")


@pytest.mark.parametrize("work", [sharded_operator, sharded_normalised, tensor_parallel, data_parallel])
def test_two_ranks_do_what_one_does(tmp_path, work):
    multiprocessing.spawn(rank, (tmp_path, work), RANKS)
