"""Statistics over all ranks: two processes must do together what one does with the whole batch."""

import copy

import pytest
import torch
from torch import distributed, multiprocessing

from slaf_ext import SLAF, ranks

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
OPTIONS = {"normalize": True, "init": "noisy_identity", "basis": "legendre", "momentum": 0.3, "dtype": torch.float64}


def rank(number, folder, sizes, groups):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=len(sizes))
    torch.manual_seed(0)
    batch = torch.randn(sum(sizes), 4, 3, dtype=torch.float64) * 2 + 1
    seed = torch.randn_like(batch)
    ours = SLAF(3, groups, sync=True, **OPTIONS)
    alone = SLAF(3, groups, **OPTIONS)
    alone.load_state_dict(ours.state_dict())
    part = slice(sum(sizes[:number]), sum(sizes[: number + 1]))

    whole, x = batch.clone().requires_grad_(), batch[part].clone().requires_grad_()
    expected, y = alone(whole), ours(x)
    torch.testing.assert_close(y, expected[part])
    for name, buffer in alone.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)

    (slope,) = torch.autograd.grad((y * seed[part]).sum(), x, create_graph=True)
    (expected_slope,) = torch.autograd.grad((expected * seed).sum(), whole, create_graph=True)
    torch.testing.assert_close(slope, expected_slope[part])
    # A rank's gradient in the coefficients is that of its own loss; of those DistributedDataParallel makes one.
    (own,) = torch.autograd.grad((y * seed[part]).sum(), ours.coeffs, retain_graph=True)
    (of_all,) = torch.autograd.grad((expected * seed).sum(), alone.coeffs, retain_graph=True)
    distributed.all_reduce(own)
    torch.testing.assert_close(own, of_all)

    slope.square().sum().backward()
    expected_slope.square().sum().backward()
    torch.testing.assert_close(x.grad, whole.grad[part])
    distributed.all_reduce(ours.coeffs.grad)
    torch.testing.assert_close(ours.coeffs.grad, alone.coeffs.grad)

    if sizes[-1]:
        moments = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64) + number
        merge = torch.compile(lambda m, v: ranks.merged(m, v, 4), fullgraph=True)  # all of it would take a minute
        torch.testing.assert_close(merge(*moments), ranks.merged(*moments, 4))

    before = copy.deepcopy(ours.state_dict())
    assert ours(batch[:0]).shape == (0, 4, 3)  # on no rank anything
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "groups"), [((3, 5), 1), ((6, 0), 4)])
def test_two_ranks_are_one_batch(tmp_path, sizes, groups):
    multiprocessing.spawn(rank, (tmp_path, sizes, groups), len(sizes))


def test_without_a_process_group_it_is_the_ordinary_module():
    torch.manual_seed(0)
    f = SLAF(2, 3, sync=True, **OPTIONS)
    g = SLAF(2, 3, **OPTIONS)
    g.load_state_dict(f.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(f(x), g(x))
    assert "sync=True" in repr(f)
    assert f(x[:0]).shape == (0, 3)
    torch.testing.assert_close(f.running_var, g.running_var)
