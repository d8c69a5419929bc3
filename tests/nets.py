"""A small model to normalise and train, and what tests look at in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import spectralnorm as sn
from reference import size_free_norm
from spectralnorm.normalize.parametrization import SpectralNormalization

LAYERS = (0, 2, 5)  # of `conv_net`, those with a weight to normalise


def conv_net(seed: int = 0) -> nn.Sequential:
    """Images (batch, 3, 8, 8) -> (batch, 5); smooth, so that gradients can be compared.

    The global random state stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(6, 3, 3, padding=1, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(48, 5),
        )


def images(seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch (4, 3, 8, 8) for `conv_net`."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sgd(net: nn.Module, lr: float = 0.05, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 1) -> float:
    """One step towards outputs of (2, -1, 2, -1, 2): forward, backward, step. The loss before it."""
    x = images(seed, next(net.parameters()).dtype)
    goal = torch.tensor([2.0, -1.0, 2.0, -1.0, 2.0], dtype=x.dtype)
    optimizer.zero_grad()
    loss = (net(x) - goal).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def trained(steps: int = 3, **options: Any) -> nn.Sequential:
    """A normalised model a few steps into training; its last step is not followed by a forward pass."""
    net = sn.spectral_normalize(conv_net(), **options)
    optimizer = sgd(net)
    for _ in range(steps):
        train_step(net, optimizer)
    optimizer.zero_grad()
    return net


def original(layer: nn.Module) -> Tensor:
    """The trained tensor of a normalised layer."""
    return layer.parametrizations.weight.original


def normalisation(layer: nn.Module) -> SpectralNormalization:
    return layer.parametrizations.weight[0]


def snapshot(net: nn.Module) -> dict[str, Any]:
    """Every buffer, copied, and how often each state has moved."""
    turns = {
        name: module.turn for name, module in net.named_modules() if isinstance(module, SpectralNormalization)
    }
    return {**{name: buffer.clone() for name, buffer in net.named_buffers()}, **turns}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two snapshots, or state dicts, agree bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            assert value.dtype == other[name].dtype
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def settle(layer: nn.Module, sweeps: int = 20) -> nn.Module:
    """Move a layer's state this often, its weight as it is: to full convergence."""
    layer.train()
    with torch.no_grad():
        for _ in range(sweeps):
            original(layer).mul_(1.0)
            _ = layer.weight
    return layer


def batchnorm_net(seed: int = 0) -> nn.Sequential:
    """Images (batch, 3, 8, 8) -> (batch, 5): two convolutions with BatchNorms behind them, and a Linear."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(96, 5)),
        )


def decoder() -> nn.Sequential:
    """Images (batch, 3, 8, 8) -> (batch, 3, 16, 16)."""
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(4, 3, 4, padding=1, stride=2)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), up)


def folded_net(**options: Any) -> nn.Sequential:
    """`batchnorm_net`, normalised with its BatchNorms folded."""
    return sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True, **options)


def train_folded(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[float]:
    """Steps on different batches; the losses before each."""
    return [train_step(net, optimizer, seed) for seed in range(steps)]


def trained_folded(steps: int = 3) -> nn.Sequential:
    """`folded_net` a few steps into training, without gradients."""
    net = folded_net()
    train_folded(net, sgd(net), steps)
    net.zero_grad()
    return net


def folded_norms(net: nn.Module) -> list[float]:
    """Of the three maps of `batchnorm_net`, by the reference, in eval mode as they are read."""
    return [size_free_norm(net[0:2]), size_free_norm(net[3:5]), size_free_norm(net[7])]


def nudge(net: nn.Module, size: float) -> None:
    """Add noise of this relative size to every weight."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for i in LAYERS:
            weight = original(net[i])
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise * float(size * weight.double().norm() / noise.norm()))
