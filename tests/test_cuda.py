"""On a GPU: every figure is the CPU's, and training keeps its norms; skipped where there is none."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import spectralnorm as sn
from cases import CASES, Case
from spectralnorm.training.conduct import Options, conduct, load_data
from spectralnorm.training.models import build, small_cnn
from spectralnorm.training.settings import Settings
from spectralnorm.training.team import Team

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch sees")
CUDA = torch.device("cuda", 0)
METHODS = ("tracked", "certified", "exact", "gram", "flattened_bound")


@pytest.fixture(autouse=True)
def _plain_float32() -> None:
    """Products in float32 proper: what the CPU's are compared with."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def trained(net: nn.Module, *, steps: int = 60, lr: float = 0.05, amp: bool = False) -> nn.Module:
    """Some steps of SGD on random images."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(128, 1, 16, 16, generator=generator).to(CUDA), torch.arange(128, device=CUDA) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            loss = cross_entropy(10 * net(x), y)
        loss.backward()
        optimizer.step()
    return net


def largest(net: nn.Module) -> tuple[float, float]:
    """Proven ends of the farthest norm from 1 among the layers, as they act now."""
    bounds = [
        sn.spectral_norm(layer, certified=True, rtol=2e-4)
        for layer in sn.remove_spectral_norm(copy.deepcopy(net)).cpu().modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    return min(bound.lower for bound in bounds), max(bound.upper for bound in bounds)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_norm_is_the_same_on_a_gpu(case: Case, method: str) -> None:
    layer = case.layer()
    there = copy.deepcopy(layer).to(CUDA)
    try:
        here = sn.spectral_norm(layer, method=method, rtol=1e-3)
    except ValueError as error:  # refused alike
        with pytest.raises(ValueError, match=str(error)[:20].split("(")[0]):
            sn.spectral_norm(there, method=method, rtol=1e-3)
        return
    found = sn.spectral_norm(there, method=method, rtol=1e-3)
    assert found.value.device.type == "cuda"
    assert found.value.item() == pytest.approx(here.value.item(), rel=2e-3, abs=1e-30)
    assert found.lower <= here.upper * (1 + 1e-12)
    assert here.lower <= found.upper * (1 + 1e-12)


def test_gradients_are_the_same_on_a_gpu() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 3, padding=1)
    there = copy.deepcopy(conv).to(CUDA)
    for layer in (conv, there):
        sn.spectral_norm(layer).value.backward()
    assert conv.weight.grad is not None
    assert there.weight.grad is not None
    torch.testing.assert_close(there.weight.grad.cpu(), conv.weight.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_training_keeps_norms(mode: str, amp: bool) -> None:
    torch.manual_seed(0)
    net = build("resnet20", (1, 16, 16), 10).to(CUDA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of weights that are left as they are
        sn.spectral_normalize(net, mode=mode)
    low, high = largest(trained(net, amp=amp).eval())
    assert high < 1 + 5e-3
    assert mode == "soft" or low > 1 - 5e-3


def test_folded_batchnorm_and_certified_removal() -> None:
    torch.manual_seed(0)
    net = small_cnn((1, 16, 16), 10, width=8, batch_norm=True).to(CUDA)
    sn.spectral_normalize(net, fold_batchnorm=True)
    trained(net).eval()
    plain = sn.remove_spectral_norm(net, certified=True)
    bound = sn.lipschitz(plain, (1, 16, 16))
    assert bound.upper <= 1.001


def test_no_step_of_a_large_layer_waits_for_the_gpu() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(256, 512, 3, padding=1), nn.ReLU(), nn.Conv2d(512, 64, 3, padding=1)).to(CUDA)
    sn.spectral_normalize(net)
    x, optimizer = torch.rand(2, 256, 8, 8, device=CUDA), torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(4):
        if step == 2:  # the first steps lay out buffers
            torch.cuda.set_sync_debug_mode("error")  # a wait raises
        try:
            net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(bool(parameter.isfinite().all()) for parameter in net.parameters())


def test_penalty_on_a_gpu() -> None:
    torch.manual_seed(0)
    net = small_cnn((1, 16, 16), 10, width=8)
    there = copy.deepcopy(net).to(CUDA)
    values = [sn.spectral_penalty(one) for one in (net, there)]
    for value in values:
        value.backward()
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-3)
    for one, other in zip(net.parameters(), there.parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=5e-3, atol=1e-3)


def test_a_checkpoint_crosses_devices() -> None:
    torch.manual_seed(0)
    net = sn.spectral_normalize(small_cnn((1, 16, 16), 10, width=8)).to(CUDA)
    trained(net, steps=5).eval()
    here = sn.spectral_normalize(small_cnn((1, 16, 16), 10, width=8)).eval()
    here.load_state_dict(net.state_dict())
    x = torch.rand(4, 1, 16, 16)
    torch.testing.assert_close(here(x), net(x.to(CUDA)).cpu(), rtol=1e-3, atol=1e-4)


def test_certificates_and_attacks_on_a_gpu() -> None:
    torch.manual_seed(0)
    net = sn.remove_spectral_norm(sn.spectral_normalize(small_cnn((1, 16, 16), 10, width=8)), certified=True)
    x, y = torch.rand(64, 1, 16, 16), torch.randint(10, (64,))
    there = copy.deepcopy(net).to(CUDA)
    y[:32] = net(x[:32]).argmax(1)
    radii = sn.certified_radius(net, x, y)
    torch.testing.assert_close(
        sn.certified_radius(there, x.to(CUDA), y.to(CUDA)).cpu(), radii, rtol=1e-2, atol=1e-5
    )
    found = sn.evaluate(there, (x, y), ["fgsm", "pgd"], {"l2": [0.05, 1.0], "linf": [0.01]}, seed=0)
    alike = sn.evaluate(net, (x, y), ["fgsm", "pgd"], {"l2": [0.05, 1.0], "linf": [0.01]}, seed=0)
    assert found.clean_accuracy == alike.clean_accuracy
    for one, other in zip(found.worst_case, alike.worst_case, strict=True):
        assert abs(one.robust_accuracy - other.robust_accuracy) <= 2 / 64


def test_autoattack_on_a_gpu() -> None:
    pytest.importorskip("pyautoattack")
    torch.manual_seed(0)
    net = small_cnn((1, 16, 16), 10, width=8).to(CUDA)
    x = torch.rand(16, 1, 16, 16)
    y = net(x.to(CUDA)).argmax(1).cpu()
    found = sn.evaluate(net, (x, y), ["autoattack"], {"l2": [1e-6, 5.0]}, probes=0)
    assert [entry.robust_accuracy for entry in found.worst_case] == [1.0, 0.0]


@pytest.mark.parametrize("normalize", ["tracked", "pytorch", "penalty"])
def test_train_on_a_gpu(tmp_path: Path, normalize: str) -> None:
    settings = Settings(
        images=1024, epochs=6, optimizer="adam", lr=0.003, normalize=normalize, amp="bf16", channels_last=True
    )
    options = Options(tmp_path, prove=normalize != "pytorch")
    result = conduct(settings, options, load_data(settings), Team(0, 1, CUDA), lambda *_: None)
    assert result["device"] == "cuda"
    assert result["test_accuracy"] > 0.3
    if normalize == "tracked":
        assert all(layer["upper"] <= 1 for layer in result["layers"])
