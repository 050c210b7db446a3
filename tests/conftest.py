"""`pytest --device cuda` runs the tests of the operators on a GPU: every tensor that they make is made there."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the tests make their tensors: cpu (the default) or cuda")


def pytest_configure(config):
    device = config.getoption("--device")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError(f"--device is {device} and this torch can use no GPU; leave the option out")
    torch.set_default_device(device)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
