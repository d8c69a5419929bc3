"""What two processes do with normalised models, for `test_distributed.py`: all checks, in one spawn."""

from __future__ import annotations

import datetime
import io
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from processes import WORLD, batch, ddp_of, gathered, nothing_gathered, said, shard, share, state, train
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import spectralnorm as sn
from nets import LAYERS, batchnorm_net, conv_net, original, sgd
from spectralnorm.normalize.tracker import Tracker
from spectralnorm.operators.fourier import tap_layout
from spectralnorm.operators.sharded import ShardedSymbol
from spectralnorm.operators.symbols import symbol_of

STEPS = 8
CHECKS: dict[str, Callable[[], Any]] = {}


def check(function: Callable[[], Any]) -> Callable[[], Any]:
    """Have both processes run this; what it returns is kept under its name."""
    CHECKS[function.__name__] = function
    return function


def run(rank: int, folder: str) -> None:
    """One process: every check, with models as they are, and with all of them taken for large."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", WORLD)
    patience = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=patience)
    found = {}
    for size, most in (("small", 2**20), ("large", 0)):
        with mock.patch("spectralnorm.normalize.api._SMALL_MODEL", most):
            for name, function in CHECKS.items():
                try:
                    found[size, name] = function()
                except Exception:
                    found[size, name] = traceback.format_exc()
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


# ---------------------------------------------------------------------- DDP


@check
def ddp() -> Any:
    found = []
    for buffers in (True, False):
        net = sn.spectral_normalize(conv_net())
        found.append((train(ddp_of(net, buffers=buffers), range(STEPS)), state(net)))
    return found


@check
def ddp_from_other_weights() -> Any:
    """Only the first process has the weights that all of them go on with."""
    found = []
    for buffers in (True, False):
        net = sn.spectral_normalize(conv_net(distributed.get_rank()))
        found.append((train(ddp_of(net, buffers=buffers), range(STEPS)), state(net)))
    return found


# ---------------------------------------------------------------------- FSDP2: training


@check
def fsdp() -> Any:
    found = []
    for layers in (True, False):
        net = shard(sn.spectral_normalize(conv_net()), layers=layers)
        found.append((train(net, range(STEPS)), state(net)))
    return found


@check
def fsdp_untraced() -> Any:
    """With optimisers that leave no trace in the versions of shards."""
    found = []
    for option in ("foreach", "fused"):
        net = shard(sn.spectral_normalize(conv_net()))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01, **{option: True})
        found.append((train(net, range(STEPS), optimizer), state(net)))
    return found


@check
def fsdp_compiled() -> Any:
    net = sn.spectral_normalize(conv_net())
    for i in LAYERS:
        net[i].compile(fullgraph=True, backend="aot_eager")
    shard(net)
    return train(net, range(3)), state(net)


@check
def fsdp_replicated() -> Any:
    """Replicas of shards: here of all, on a mesh of two axes."""
    mesh = init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("replicas", "shards"))
    net = shard(sn.spectral_normalize(conv_net()), mesh=mesh)
    losses = train(net, range(3))
    sn.step(net)
    return losses, state(net), gathered(net)


@check
def fsdp_half() -> Any:
    net = shard(sn.spectral_normalize(conv_net()), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    losses = train(net, range(STEPS))
    with torch.no_grad():
        net(share(batch(0)[0]))
    return losses, state(net), gathered(net)


@check
def fsdp_registered_after() -> Any:
    found = []
    for layers in (True, False):
        net = shard(conv_net(), layers=layers)
        with torch.no_grad():
            net(share(batch(0)[0]))  # leaves the root's weights gathered
        net.reshard()
        with nothing_gathered():
            sn.spectral_normalize(net)
        kinds = [type(original(net[i])) is DTensor for i in LAYERS]
        found.append((train(net, range(STEPS)), state(net), kinds))
    return found


@check
def attention_registered_after() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.MultiheadAttention(8, 2))
    fully_shard(net)
    sn.spectral_normalize(net)
    return [float(part.sigma) for part in net.modules() if isinstance(part, Tracker)]


@check
def fsdp_folded() -> Any:
    """Beside DDP, where statistics are each process's own too."""
    nets = [sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True, target=2.0) for _ in range(2)]
    sharded = shard(nets[1], layers=False)
    return train(ddp_of(nets[0], buffers=False), range(STEPS)), train(sharded, range(STEPS))


# ---------------------------------------------------------------------- FSDP2: outside the forward pass


@check
def steps_by_hand() -> Any:
    """States that an optimiser's hook moves, from shards."""
    net = shard(sn.spectral_normalize(conv_net()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, foreach=True)
    optimizer.register_step_post_hook(lambda *_: sn.step(net))
    with nothing_gathered():
        losses = train(net, range(STEPS), optimizer)
    return losses, state(net), gathered(net)


def narrow(*, sharded: bool) -> tuple[list[float], dict[str, Tensor]]:
    """A layer of one row, of which the second process gets nothing; and an optimiser of one's own."""
    torch.manual_seed(0)
    net = sn.spectral_normalize(nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 5)))
    net = shard(net) if sharded else net
    x, losses = torch.linspace(-1, 1, 24).view(4, 6), []
    for _ in range(3):
        loss = (net(x) - 1).square().mean()
        loss.backward()
        parameters = list(net.parameters())
        with torch.no_grad():
            torch._foreach_add_(parameters, [parameter.grad for parameter in parameters], alpha=-0.1)
        torch.autograd.graph.increment_version(parameters)
        sn.step(net)
        net.zero_grad()
        losses.append(float(loss.detach()))
    return losses, state(net)


@check
def one_row() -> Any:
    return narrow(sharded=True)


@check
def reads() -> Any:
    net = shard(sn.spectral_normalize(conv_net()))
    train(net, range(3))
    with nothing_gathered():
        read = net[2].weight  # moves all states
        text = repr(net)
    moved, norms = state(net), gathered(net)
    with nothing_gathered():
        sn.refresh(net)
    fresh = state(net)
    net.eval()
    with torch.no_grad():
        original(net[0]).mul_(3.0)
    return type(read).__name__, text, moved, norms, fresh, gathered(net), state(net)


@check
def gradient_of_a_read() -> Any:
    net = shard(sn.spectral_normalize(conv_net()))
    weight = net[2].weight
    slope = distribute_tensor(torch.arange(162.0).view(3, 6, 3, 3), weight.device_mesh, weight.placements)
    (weight * slope).sum().backward()
    return original(net[2]).grad.full_tensor()


@check
def penalised() -> Any:
    """Norms in the loss, of weights that are read outside the forward pass."""
    net = shard(conv_net())
    optimizer, values = sgd(net), []
    for _ in range(3):
        optimizer.zero_grad()
        penalty = sn.spectral_penalty(net)
        penalty.backward()
        optimizer.step()
        values.append(float(penalty.detach()))
    return values, gathered(net)


@check
def measured() -> Any:
    net = shard(sn.spectral_normalize(conv_net()))
    return [float(sn.spectral_norm(net[i])) for i in LAYERS], [float(row.norm) for row in sn.audit(net).rows]


@check
def removed() -> Any:
    found = []
    for layers in (True, False):
        for certified in (False, True):
            net = shard(sn.spectral_normalize(conv_net()), layers=layers)
            train(net, range(3))
            outputs = []
            with torch.no_grad():
                outputs.append(net.eval()(batch(0)[0]))
                net.reshard()
                optimizer = sgd(net)  # holds the parameters, which stay the same
                keys = sorted(sn.plain_state_dict(net))
                sn.remove_spectral_norm(net, certified=certified)
                outputs.append(net(batch(0)[0]))
            net.reshard()
            assert sorted(net.state_dict()) == keys
            bases = [type(net[i]).__mro__[2] for i in LAYERS] if layers else [type(net[i]) for i in LAYERS]
            weights = gathered(net)
            found.append((outputs, weights, list(net.state_dict()), bases, train(net, range(3, 6), optimizer)))
    return found


@check
def continued() -> Any:
    """From a state dict of each process, in a file."""
    net, twin = (shard(sn.spectral_normalize(conv_net())) for _ in range(2))
    optimizer, other = sgd(net), sgd(twin)
    train(net, range(3), optimizer)
    train(twin, range(50, 52), other)
    file = io.BytesIO()
    torch.save((net.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, momenta = torch.load(file, weights_only=False)
    twin.load_state_dict(weights)
    other.load_state_dict(momenta)
    losses = [train(net, range(3, 6), optimizer), train(twin, range(3, 6), other)]
    return losses, [state(net), state(twin)], [gathered(net), gathered(twin)]


@check
def refused() -> Any:
    """What cannot be done with shards says so, and what to do instead."""
    apart = shard(sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True))
    folded = shard(sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True), layers=False)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    fully_shard(sn.spectral_normalize(tied))
    read = shard(sn.spectral_normalize(conv_net()))[2]
    broken = conv_net()
    with torch.no_grad():
        broken[0].weight[0, 0, 0, 0] = torch.nan
    return {
        "folded apart": said(lambda: apart(share(batch(0)[0]))),
        "folded after": said(lambda: sn.spectral_normalize(shard(batchnorm_net()), fold_batchnorm=True)),
        "folded refresh": said(lambda: sn.refresh(folded)),
        "folded removal": said(lambda: sn.remove_spectral_norm(folded)),
        "tied removal": said(lambda: sn.remove_spectral_norm(tied)),
        "orthogonal after": said(lambda: sn.spectral_normalize(shard(conv_net()), init="orthogonal")),
        "two derivatives": said(lambda: torch.autograd.grad(read.weight.sum(), original(read), create_graph=True)),
        "not finite": said(lambda: sn.spectral_normalize(shard(broken))),
    }


# ---------------------------------------------------------------------- without FSDP2


@check
def tensor_parallel() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    parallelize_module(net, init_device_mesh("cpu", (WORLD,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    sn.spectral_normalize(net)
    out = net(torch.linspace(-1, 1, 40).view(5, 8))
    out.square().sum().backward()
    return out.detach(), [original(net[i]).grad.full_tensor() for i in (0, 2)]


KERNELS = [  # shape, groups, sharded axis
    ((5, 4, 3, 3), 1, 0),
    ((6, 2, 3), 3, 0),
    ((7, 1, 3, 3), 7, 0),
    ((1, 6), 1, 0),
    ((9, 4), 3, 0),
    ((4, 6, 3), 2, 1),
]


@check
def products() -> Any:
    """Reads of sharded kernels, beside those of the same kernels in one piece."""
    found = []
    for shape, groups, axis in KERNELS:
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        blocks = (groups, shape[0] // groups, shape[1], weight[0, 0].numel())
        ones = (1,) * (len(shape) - 2)
        pieces = weight, distribute_tensor(weight, init_device_mesh("cpu", (WORLD,)), [Shard(axis)])
        symbols = [symbol_of(piece, blocks, tap_layout(shape[2:], ones, ones)) for piece in pieces]
        assert isinstance(symbols[1], ShardedSymbol)
        generator = torch.Generator().manual_seed(1)
        u = torch.randn(groups, 3, blocks[1], dtype=torch.complex64, generator=generator)
        v = torch.randn(groups, 3, *blocks[2:], dtype=torch.complex64, generator=generator)
        for symbol in symbols:
            halved = symbol.over(torch.tensor(2.0))
            found.append([symbol.read_adjoint(u), symbol.read(v), symbol.largest(), halved.read(v)])
    return found[::2], found[1::2]


@check
def refused_products() -> list[str]:
    """What a symbol says whose kernel it would have to gather."""
    weight = distribute_tensor(torch.ones(4, 2, 3), init_device_mesh("cpu", (WORLD,)), [Shard(0)])
    symbol = symbol_of(weight, (1, 4, 2, 3), tap_layout((3,), (1,), (1,)))
    w, vector = torch.zeros(1, 1), torch.zeros(1)
    said = []
    for refused in (lambda: symbol.at(w), lambda: symbol.bilinear(0, vector, vector, w)):
        try:
            refused()
        except RuntimeError as error:
            said.append(str(error))
    return said
