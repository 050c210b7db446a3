"""Small networks and inputs that the tests of the conversion share."""

import torch
from torch import nn
from torch.nn import functional as F


def mlp(activation, seed=0, widths=(3, 16, 16, 2), dtype=torch.float64):
    torch.manual_seed(seed)
    layers = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1], dtype=dtype), activation()]
    return nn.Sequential(*layers[:-1])


def inputs(seed=0, shape=(512, 3), dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Own(nn.Module):
    """A module of a user-defined class, which calls a function of itself and its input."""

    def __init__(self, function, **state):
        super().__init__()
        self.function = function
        for name, value in state.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


class Calls(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)
        self.own_forward = forward

    def forward(self, x):
        return self.own_forward(self, x)


class GELUActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = F.gelu

    def forward(self, input):
        return self.act(input)


class QuickGELUActivation(nn.Module):
    def forward(self, input):
        return input * torch.sigmoid(1.702 * input)
