"""What `training_step.py` compares: the networks, and every way to hold their norms down."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import parametrize

import spectralnorm as sn
from spectralnorm.training.baselines import PowerNormalization
from spectralnorm.training.resnet import resnet18, resnet20
from spectralnorm.training.vgg import vgg16

INPUT, CLASSES, PENALTY = (3, 32, 32), 10, 0.01
NETWORKS: dict[str, tuple[Callable[..., nn.Module], bool]] = {  # with BatchNorm?
    "resnet18-bn": (resnet18, True),
    "resnet18": (resnet18, False),
    "vgg16-bn": (vgg16, True),
    "vgg16": (vgg16, False),
    "resnet20-bn": (resnet20, True),  # small enough for a first look
    "resnet20": (resnet20, False),
}
METHODS = ("none", "pytorch", "penalty", "power", "power-lean", "ours", "ours-folded")
Sizes = Mapping[str, torch.Size]  # by the layer's name: the shape of the input it meets, of batch 1


def network(name: str, seed: int) -> nn.Module:
    """The same freshly initialised network each time, in train mode."""
    factory, batch_norm = NETWORKS[name]
    torch.manual_seed(seed)
    return factory(INPUT, CLASSES, batch_norm=batch_norm).train()


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    """The layers to normalise."""
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


@torch.no_grad()
def input_sizes(model: nn.Module) -> Sizes:
    """The shape of the input of every layer that is to be normalised."""
    model, sizes = copy.deepcopy(model).eval(), {}
    for name, layer in weighted(model).items():
        layer.register_forward_hook(lambda _, args, __, name=name: sizes.update({name: args[0].shape}))
    model(torch.zeros(1, *INPUT, device=next(model.parameters()).device))
    return sizes


@dataclass
class Subject:
    """A network under one method.

    Attributes:
        method: name of the method.
        model: the network, in train mode.
        layers: those whose weights are scaled; none where nothing is.
        gradients: what arrives at their weights in the backward pass, when the method is timed on its own.
        originals: every trained tensor, in the same order for every method.
        optimiser: of the whole step.
    """

    method: str
    model: nn.Module
    layers: list[nn.Module]
    gradients: list[Tensor]
    originals: list[Tensor] = field(init=False)
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        named = self.model.named_parameters()
        plain = {name.replace("parametrizations.weight.original", "weight"): p for name, p in named}
        self.originals = [plain[name] for name in sorted(plain)]
        self.optimiser = torch.optim.SGD(self.originals, lr=1e-2, momentum=0.9, weight_decay=5e-4)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step of training."""
        self.optimiser.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        if self.method == "penalty":
            loss = loss + PENALTY / 2 * sn.spectral_penalty(self.model)
        loss.backward()
        self.optimiser.step()

    def part(self) -> None:
        """What the method adds to it: scaled weights and the way back, or the penalty and its gradient."""
        if self.method == "penalty":
            penalty = PENALTY / 2 * sn.spectral_penalty(self.model)
            torch.autograd.grad(penalty, self.originals, allow_unused=True)
        elif self.layers:
            scaled = [layer.weight for layer in self.layers]
            torch.autograd.grad(scaled, self.originals, self.gradients, allow_unused=True)

    @torch.no_grad()
    def nudge(self, seed: int) -> None:
        """Move every weight and every running variance a little, by the same numbers for every method."""
        generator = torch.Generator(self.originals[0].device).manual_seed(seed)
        for p in self.originals:
            noise = torch.empty_like(p).normal_(generator=generator)
            p.add_(noise, alpha=1e-3 * float(p.square().mean().sqrt()))
        for name, buffer in self.model.named_buffers():
            if name.endswith("running_var"):
                noise = torch.empty_like(buffer).normal_(generator=generator)
                buffer.mul_(1 + 1e-3 * noise)


def prepare(method: str, model: nn.Module, sizes: Sizes) -> None:
    """Put a network under a method, in place."""
    if method == "pytorch":
        for layer in weighted(model).values():
            torch_parametrizations.spectral_norm(layer)
    elif method in ("power", "power-lean"):
        for name, layer in weighted(model).items():
            normalisation = PowerNormalization(layer, sizes[name], lean=method == "power-lean")
            parametrize.register_parametrization(layer, "weight", normalisation)
    elif method == "penalty":
        sn.spectral_penalty(model)  # finds every norm from cold
    elif method == "ours":
        sn.spectral_normalize(model)
    elif method == "ours-folded":
        sn.spectral_normalize(model, fold_batchnorm=True)


def subject(method: str, name: str, seed: int, device: torch.device) -> Subject:
    """A network under one method, on its device."""
    model = network(name, seed)
    sizes = input_sizes(model)
    model.to(device)
    with warnings.catch_warnings():  # BatchNorm's weights stay as they are, which is known
        warnings.simplefilter("ignore", UserWarning)
        prepare(method, model, sizes)
    layers = [m for m in model.modules() if parametrize.is_parametrized(m, "weight")]  # BatchNorms where folded
    generator = torch.Generator(device).manual_seed(seed)
    shapes = [layer.parametrizations.weight.original.shape for layer in layers]
    gradients = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
    return Subject(method, model, layers, gradients)


@dataclass(frozen=True)
class Exactly:
    """Sedghi et al. 2019 on one distinct layer: FFT, SVD of every frequency, weight / sigma, and the way back.

    Attributes:
        name: channels, kernel and stride.
        layer: with circular padding, as the method has it, in float32, its faster precision.
        size: of the image it meets; None for a Linear.
        work: frequencies times c_out c_in min(c_out, c_in), where the time goes.
        count: how many layers of the network are like it.
    """

    name: str
    layer: nn.Module
    size: tuple[int, ...] | None
    work: int
    count: int

    def part(self) -> None:
        """As `Subject.part`, for this layer."""
        weight = self.layer.weight
        bound = sn.spectral_norm(self.layer, input_shape=self.size, method=sn.Exact(dtype=torch.float32))
        torch.autograd.grad(weight / bound.value, weight, torch.ones_like(weight))


def exact_layers(model: nn.Module) -> Iterator[Exactly]:
    """The distinct layers of a network, those that cost least first."""
    sizes, alike = input_sizes(model), {}
    for name, layer in weighted(model).items():
        size = tuple(sizes[name][2:]) if isinstance(layer, nn.Conv2d) else None
        key = (tuple(layer.weight.shape), getattr(layer, "stride", None), size)
        alike.setdefault(key, []).append(copy.deepcopy(layer))
    found = []
    for (shape, stride, size), layers in alike.items():
        layer, points, name = layers[0], 1, f"{shape[1]} -> {shape[0]}"
        if size is not None:
            layer.padding_mode = "circular"
            name += f", {shape[2]}x{shape[3]} / {stride[0]}"
            points = size[0] * size[1] // (stride[0] * stride[1])
            shape = (shape[0], shape[1] * stride[0] * stride[1])  # polyphase components side by side
        work = points * shape[0] * shape[1] * min(shape[:2])
        found.append(Exactly(name, layer, size, work, len(layers)))
    return iter(sorted(found, key=lambda one: one.work))
