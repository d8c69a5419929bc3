"""The networks that come with the library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import cross_entropy

import spectralnorm as sn
from spectralnorm.commands.target import load_target
from spectralnorm.network.graph import batchnorm_pairs
from spectralnorm.network.tracing import Tracer
from spectralnorm.training.imports import accepts
from spectralnorm.training.lenet import lenet
from spectralnorm.training.lipschitz_cnn import lipschitz_cnn
from spectralnorm.training.models import MODELS, build, small_cnn
from spectralnorm.training.resnet import resnet18, resnet20
from spectralnorm.training.vgg import vgg16
from spectralnorm.training.wide_resnet import wide_resnet, wrn_16_4

COUNTS = {  # convolutions; BatchNorms, if any; pairs of the two that fold
    "small-cnn": (3, 3, 3),
    "lenet": (2, 2, 2),
    "lipschitz-cnn": (3, 3, 3),
    "vgg16": (13, 13, 13),
    "resnet20": (21, 21, 21),
    "resnet18": (20, 20, 20),
    "wrn-16-4": (16, 13, 7),
}
every = pytest.mark.parametrize("name", MODELS)
both = pytest.mark.parametrize("batch_norm", [False, True])


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}


def test_small_cnn_has_strides_and_readable_names() -> None:
    layers = dict(small_cnn((1, 8, 8), 10, batch_norm=True).named_children())
    assert list(layers)[:6] == ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2"]
    strides = [layer.stride for layer in layers.values() if isinstance(layer, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2), (2, 2)]


def test_build_by_name() -> None:
    assert build("small-cnn", (1, 28, 28), 10)(torch.rand(1, 1, 28, 28)).shape == (1, 10)
    with pytest.raises(ValueError, match=r"name: got 'resnet', expected small-cnn, .* or package.module:"):
        build("resnet", (1, 28, 28), 10)


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (((8, 8), 10), ValueError, r"input_shape: got \(8, 8\), expected \(C, H, W\)"),
        (((1, 0, 8), 10), ValueError, "input_shape: got 0, expected at least 1"),
        (((1, 8.0, 8), 10), TypeError, "input_shape: got 8.0, expected an int"),
        (((1, 8, 8), 1), ValueError, "classes: got 1, expected at least 2"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        small_cnn(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width: got 0"):
        small_cnn((1, 8, 8), 10, width=0)


@every
@both
def test_networks_take_images_and_can_be_traced(name: str, batch_norm: bool) -> None:
    model = build(name, (3, 32, 32), 10, batch_norm=batch_norm).eval()
    convs, norms, _ = COUNTS[name]
    assert len(convolutions(model)) == convs
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == (norms if batch_norm else 0)
    assert all((conv.bias is None) == batch_norm for conv in convolutions(model).values())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fx.GraphModule(model, Tracer().trace(model))(x), model(x))
    assert model(x).shape == (2, 10)


@every
@both
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 33, 47), (2, 5, 7), (5, 9, 1), (1, 1, 1)])
def test_networks_take_any_image(name: str, batch_norm: bool, shape: tuple[int, int, int]) -> None:
    model = build(name, shape, 3, batch_norm=batch_norm).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 3)


def batch(shape: tuple[int, int, int], classes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(12, *shape), torch.arange(12) % classes


@every
@both
def test_a_step_down_the_gradient_lowers_the_loss(name: str, batch_norm: bool) -> None:
    x, labels = batch((3, 9, 13), 5)
    model = build(name, (3, 9, 13), 5, batch_norm=batch_norm)
    loss = cross_entropy(model(x), labels)
    torch.autograd.backward(loss)
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert all(g.any() for g in gradients if g.ndim > 1)
    size = torch.stack([g.norm() for g in gradients]).norm()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad / size
        assert cross_entropy(model(x), labels) < loss


def unfolded(name: str, batch_norm: bool) -> AbstractContextManager[object]:
    """Expect the warning about BatchNorms that fold into no convolution, where there are such."""
    _, norms, pairs = COUNTS[name]
    return pytest.warns(UserWarning, match="bn1") if batch_norm and norms > pairs else nullcontext()


@every
@both
def test_networks_can_be_normalised(name: str, batch_norm: bool) -> None:
    x, labels = batch((2, 7, 9), 3)
    model = build(name, (2, 7, 9), 3, batch_norm=batch_norm)
    assert len(batchnorm_pairs(model)) == (COUNTS[name][2] if batch_norm else 0)
    with unfolded(name, batch_norm):
        sn.spectral_normalize(model, fold_batchnorm=True)
    torch.autograd.backward(cross_entropy(model(x), labels))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every
@both
def test_state_dicts_go_round(name: str, batch_norm: bool) -> None:
    x, _ = batch((3, 8, 8), 4)
    model, other = (build(name, (3, 8, 8), 4, batch_norm=batch_norm) for _ in range(2))
    model(x)  # moves the statistics
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet20", 272_474), ("resnet18", 11_173_962), ("vgg16", 14_724_042), ("wrn-16-4", 2_748_890)],
)
def test_numbers_of_parameters(name: str, count: int) -> None:
    """As published: 0.27, 11.17, 14.7 and 2.7 million."""
    assert sum(p.numel() for p in build(name, (3, 32, 32), 10).parameters()) == count


def test_resnets_halve_the_image_between_stages() -> None:
    model = resnet20((3, 32, 32), 10)
    names = [name for name, _ in model.named_children()]
    assert names == ["conv", "bn", "relu", "stage1", "stage2", "stage3", "pool", "flatten", "fc"]
    strided = [name for name, conv in convolutions(model).items() if conv.stride == (2, 2)]
    assert strided == [f"stage{i}.0.{part}" for i in (2, 3) for part in ("branch.conv1", "shortcut.conv")]
    assert model[:6](torch.rand(1, 3, 32, 32)).shape == (1, 64, 8, 8)
    assert resnet18((3, 32, 32), 10)[:7](torch.rand(1, 3, 32, 32)).shape == (1, 512, 4, 4)


def test_vgg_pools_five_times_and_is_named_as_in_the_paper() -> None:
    names = [name for name, _ in vgg16((3, 32, 32), 10, batch_norm=False).named_children()]
    assert names[:5] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"]
    assert names[-6:] == ["conv5_3", "relu5_3", "pool5", "pool", "flatten", "fc"]
    assert sum(name.startswith("pool") for name in names) == 6


def test_lenet_pools_as_asked_and_has_the_layers_of_the_paper() -> None:
    names = [name for name, _ in lenet((1, 28, 28), 10, batch_norm=True).named_children()]
    assert names[:8] == ["conv1", "bn1", "relu1", "pool1", "conv2", "bn2", "relu2", "pool2"]
    assert names[8:] == ["flatten", "fc1", "relu3", "fc2", "relu4", "fc3"]
    widths = [p.shape[0] for p in lenet((1, 28, 28), 10).parameters() if p.ndim > 1]
    assert widths == [6, 16, 120, 84, 10]
    assert isinstance(lenet((1, 8, 8), 10).pool1, nn.AvgPool2d)
    assert isinstance(build("lenet", (1, 8, 8), 10, pool="max").pool2, nn.MaxPool2d)
    with pytest.raises(ValueError, match="pool: got 'mean', expected one of average, max"):
        lenet((1, 8, 8), 10, pool="mean")


@pytest.mark.parametrize("name", ["small-cnn", "lenet", "lipschitz-cnn"])
def test_activations_as_asked(name: str) -> None:
    kinds = {"relu": nn.ReLU, "maxmin": sn.MaxMin, "groupsort": sn.GroupSort}
    for activation, kind in kinds.items():
        model = build(name, (1, 8, 8), 3, activation=activation)
        found = [layer for layer in model if isinstance(layer, (nn.ReLU, sn.GroupSort))]
        assert len(found) == 4
        assert {type(layer) for layer in found} == {kind}
        assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match="activation: got 'tanh', expected one of relu, maxmin, groupsort"):
        build(name, (1, 8, 8), 3, activation="tanh")


def test_groups_that_are_sorted_divide_the_channels() -> None:
    sizes = [
        layer.group_size for layer in lenet((1, 8, 8), 3, activation="groupsort") if hasattr(layer, "group_size")
    ]
    assert sizes == [3, 4, 4, 4]
    with pytest.raises(ValueError, match="activation: got maxmin for 3 channels, expected a multiple of 2"):
        small_cnn((1, 8, 8), 3, width=3, activation="maxmin")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 9)])
def test_sorting_transports_more_of_a_signal_than_relu(shape: tuple[int, int, int]) -> None:
    lengths = {}
    for activation in ("maxmin", "relu"):
        torch.manual_seed(0)
        model = lipschitz_cnn(shape, 10, width=8, activation=activation)
        sn.spectral_normalize(model, init="orthogonal").eval()
        x = torch.rand(4, *shape)
        with torch.no_grad():
            lengths[activation] = float((model[:-3](x) - model[:-3](0 * x)).norm() / x.norm())
    assert lengths["relu"] < lengths["maxmin"] / 2 < 0.5
    assert sn.lipschitz(model, shape).upper <= 1.01


def test_wide_resnet_folds_inside_blocks_and_behind_the_first_convolution() -> None:
    inside = {f"stage{i}.{j}.branch.conv1": f"stage{i}.{j}.branch.bn2" for i in (1, 2, 3) for j in (0, 1)}
    assert batchnorm_pairs(wrn_16_4((3, 8, 8), 10)) == {"conv": "stage1.0.before.bn1", **inside}
    narrow = batchnorm_pairs(wide_resnet((3, 8, 8), 10, 16, 1))  # its first shortcut reads the first convolution
    assert narrow == inside


def test_wide_resnet_halves_the_image_and_projects_where_the_shape_changes() -> None:
    model = wrn_16_4((3, 32, 32), 10)
    strided = [name for name, conv in convolutions(model).items() if conv.stride == (2, 2)]
    assert strided == [f"stage{i}.0.{part}" for i in (2, 3) for part in ("branch.conv1", "shortcut.conv")]
    assert model[:4](torch.rand(1, 3, 32, 32)).shape == (1, 256, 8, 8)
    block = model.stage1[0].eval()
    x = torch.randn(1, 16, 4, 4)
    active = block.before.relu1(block.before.bn1(x))
    assert torch.equal(block(x), block.branch(active) + block.shortcut.conv(active))
    block, x = model.stage1[1].eval(), torch.randn(1, 64, 4, 4)
    assert torch.equal(block(x), block.branch(block.before(x)) + x)


@pytest.mark.parametrize(("depth", "convs"), [(10, 10), (22, 22), (28, 28)])
def test_depths_of_wide_resnets(depth: int, convs: int) -> None:
    """6 n + 4 counts the three 1x1 convolutions among the shortcuts, and not the linear layer."""
    assert len(convolutions(wide_resnet((1, 8, 8), 2, depth, 2))) == convs


@pytest.mark.parametrize(
    ("depth", "widen", "complaint"),
    [
        (18, 4, r"depth: got 18, expected 6 n \+ 4; give one of 10, 16"),
        (4, 4, "depth: got 4, expected at least 10"),
        (16, 0, "widen: got 0, expected at least 1"),
    ],
)
def test_bad_sizes_of_wide_resnets(depth: int, widen: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        wide_resnet((1, 8, 8), 10, depth, widen)


@every
def test_networks_check_their_arguments(name: str) -> None:
    with pytest.raises(ValueError, match=r"input_shape: got \(8, 8\), expected \(C, H, W\)"):
        build(name, (8, 8), 10)
    with pytest.raises(ValueError, match="classes: got 1, expected at least 2"):
        build(name, (1, 8, 8), 1)
    with pytest.raises(TypeError, match=f"{name}: got widht=3, expected only keyword arguments that it takes"):
        build(name, (1, 8, 8), 10, widht=3)


@pytest.mark.parametrize(
    ("name", "default"), [(name, name not in {"small-cnn", "lenet", "lipschitz-cnn"}) for name in MODELS]
)
def test_batch_norm_by_default(name: str, default: bool) -> None:
    model = build(name, (1, 8, 8), 10)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) is default


# -- import strings -----------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the current folder."""
    source = """
from torch import nn
model = nn.Linear(3, 2)
number = 3
def fixed(): return nn.Linear(3, 2)
def normed(*, batch_norm=False): return nn.BatchNorm2d(1) if batch_norm else nn.ReLU()
def sized(shape, classes, *, batch_norm=True, width=3):
    norm = [nn.BatchNorm2d(width)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(shape[0], width, shape[1:]), *norm, nn.Flatten(), nn.Linear(width, classes))
def defaults(shape=(1, 28, 28), classes=10): return sized(shape, classes)
def one(shape): return None
def three(shape, classes, width): return None
def nothing(shape, classes): return None
def failing(shape, classes): raise KeyError("deep inside")
class Net(nn.Sequential):
    def __init__(self, shape, classes): super().__init__(nn.Flatten(), nn.Linear(shape[0], classes))
"""
    (tmp_path / "models_test_zoo.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "models_test_zoo"
    sys.modules.pop("models_test_zoo", None)


@pytest.mark.parametrize(
    ("name", "options", "outputs"),
    [
        ("model", {}, 2),
        ("fixed", {}, 2),
        ("sized", {}, 5),
        ("sized", {"batch_norm": False, "width": 4}, 5),
        ("defaults", {}, 5),
        ("Net", {}, 5),
    ],
)
def test_factories_of_your_own(module: str, name: str, options: dict[str, Any], outputs: int) -> None:
    built = build(f"{module}:{name}", (3, 1, 1), 5, **options)
    last = [layer for layer in built.modules() if isinstance(layer, nn.Linear)][-1]
    assert last.out_features == outputs
    if name == "sized":
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in built) is not bool(options)


def test_batch_norm_of_a_factory_without_other_arguments(module: str) -> None:
    assert isinstance(build(f"{module}:normed", (1, 8, 8), 5), nn.ReLU)
    assert isinstance(build(f"{module}:normed", (1, 8, 8), 5, batch_norm=True), nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "options", "error", "complaint"),
    [
        ("missing", {}, ValueError, "got no missing in models_test_zoo, expected a model or a factory"),
        ("number", {}, ValueError, r"got a int, expected a torch.nn.Module, or .* takes \(input_shape, classes\)"),
        ("one", {}, ValueError, "got a function, expected a torch.nn.Module, or a callable"),
        ("three", {}, ValueError, "or needs no argument, and returns one; write such a function"),
        ("nothing", {}, ValueError, "it returned NoneType, expected a torch.nn.Module; return one"),
        ("failing", {}, RuntimeError, "it raised KeyError"),
        ("fixed", {"batch_norm": True}, TypeError, "fixed: got batch_norm=True, expected only keyword arguments"),
        ("model", {"batch_norm": False}, TypeError, "model: got batch_norm=False, .* leave the others out"),
        ("sized", {"depth": 3}, TypeError, "sized: got depth=3, .* or write a factory that takes them"),
    ],
)
def test_bad_import_strings(
    module: str, name: str, options: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        build(f"{module}:{name}", (3, 1, 1), 5, **options)


def test_a_module_that_cannot_be_imported() -> None:
    with pytest.raises(
        ValueError, match=r"cannot import no_such_module .* expected package.module:factory; check"
    ):
        build("no_such_module:factory", (1, 8, 8), 10)


def test_accepts_is_false_without_a_signature() -> None:
    assert not accepts(3)
    assert not accepts(dict, 1, 2, 3)


# -- checkpoints --------------------------------------------------------------------------------------


@every
@both
def test_a_checkpoint_says_whether_it_has_batch_norm(name: str, batch_norm: bool, tmp_path: Path) -> None:
    path, saved = tmp_path / "model.pt", build(name, (1, 8, 8), 7, batch_norm=batch_norm)
    torch.save(saved.state_dict(), path)
    loaded = load_target(str(path), name, (1, 8, 8)).state_dict()
    assert loaded.keys() == saved.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in saved.state_dict().items())


@both
def test_a_checkpoint_that_fits_neither_variant(batch_norm: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(build("lenet", (1, 8, 8), 7, batch_norm=batch_norm).state_dict(), path)
    with pytest.raises(ValueError, match=r"does not fit --arch resnet20: got no conv.weight; .* more differences"):
        load_target(str(path), "resnet20", (1, 8, 8))


@pytest.mark.parametrize("name", ["sized", "defaults", "Net"])
def test_a_checkpoint_of_a_factory_that_takes_the_shape(module: str, name: str) -> None:
    torch.save(build(f"{module}:{name}", (3, 1, 1), 5).state_dict(), "model.pt")
    assert load_target("model.pt", f"{module}:{name}", (3, 1, 1))[-1].out_features == 5
    torch.save(build(f"{module}:{name}", (1, 28, 28), 10).state_dict(), "model.pt")
    if name == "defaults":
        assert load_target("model.pt", f"{module}:{name}", None)[-1].out_features == 10
    else:
        with pytest.raises(ValueError, match="--input-shape: got none, expected one with --arch models_test_zoo:"):
            load_target("model.pt", f"{module}:{name}", None)
