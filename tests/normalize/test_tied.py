"""Weights that several modules share, and the projections of attention."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from nets import (
    original,
)
from reference import size_free_norm
from spectralnorm.training.normalizing import normalize
from spectralnorm.training.settings import Settings

# ---------------------------------------------------------------------- tied weights


class Language(nn.Module):
    """An Embedding, and a decoder with its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.hidden, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(self.words(words))))


def spoken() -> Tensor:
    return torch.arange(7)


def language() -> Language:
    with pytest.warns(UserWarning, match=r"words \(Embedding\)"):
        return sn.spectral_normalize(Language())


def test_a_decoder_tied_to_an_embedding_trains() -> None:
    """pytorch#28594: the shared tensor is trained by both, and scaled for the decoder only."""
    net = language()
    assert original(net.out) is net.words.weight
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(spoken()), spoken())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert original(net.out) is net.words.weight
    assert size_free_norm(net.out) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("certified", [True, False])
def test_removal_unties_a_decoder_from_its_embedding(certified: bool) -> None:
    """pytorch#28594: the Embedding's vectors must not be scaled along."""
    net = language().eval()
    words, expected = net.words.weight.detach().clone(), net(spoken())
    with pytest.warns(UserWarning, match=r"weights of out are shared"):
        sn.remove_spectral_norm(net, certified=certified)
    torch.testing.assert_close(net(spoken()), expected, rtol=0.0, atol=1e-2 if certified else 0.0)
    assert torch.equal(net.words.weight, words)
    assert net.out.weight is not net.words.weight
    assert isinstance(net.out.weight, nn.Parameter)
    assert net.out.weight.requires_grad
    assert len(list(net.parameters())) == 4


@pytest.mark.parametrize("certified", [True, False])
def test_removal_unties_layers_of_different_targets(certified: bool) -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    net[2].weight = net[0].weight
    sn.spectral_normalize(net, target={"0": 0.5, "2": 3.0}).eval()
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    expected = net(x)
    with pytest.warns(UserWarning, match=r"weights of 0, 2 are shared"):
        sn.remove_spectral_norm(net, certified=certified)
    torch.testing.assert_close(
        net(x), expected, rtol=5e-3 if certified else 1e-6, atol=1e-2 if certified else 1e-6
    )
    assert [size_free_norm(net[i]) for i in (0, 2)] == pytest.approx([0.5, 3.0], rel=5e-3)


def test_certified_removal_keeps_layers_of_one_target_tied() -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    net[2].weight = net[0].weight
    sn.remove_spectral_norm(sn.spectral_normalize(net), certified=True)
    assert net[2].weight is net[0].weight
    assert sn.spectral_norm(net[0], method=sn.Certified()).upper <= 1.0


# ---------------------------------------------------------------------- attention


SIZES = {"one matrix": {}, "other widths": {"kdim": 6, "vdim": 10}, "keys alone": {"kdim": 8, "vdim": 10}}


def attention(kind: str) -> tuple[nn.MultiheadAttention, tuple[Tensor, Tensor, Tensor]]:
    """Normalised, with inputs."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True, **SIZES[kind])
    widths = (8, module.kdim, module.vdim)
    return sn.spectral_normalize(module), tuple(torch.randn(2, 5, width) for width in widths)


def projections(module: nn.MultiheadAttention) -> list[float]:
    """Norms of queries, keys, values and outputs."""
    parts = (
        module.in_proj_weight.split(module.embed_dim)
        if module._qkv_same_embed_dim
        else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    return [float(torch.linalg.matrix_norm(part.detach(), 2)) for part in (*parts, module.out_proj.weight)]


@pytest.mark.parametrize("kind", SIZES)
def test_projections_of_attention(kind: str) -> None:
    """LipsFormer#3, sngan_projection#14. In one tensor, the largest of the three norms counts."""
    module, x = attention(kind)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        module(*x)[0].square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
        optimizer.step()
    module(*x)
    *three, out = projections(module)
    assert max(three) == pytest.approx(1.0, rel=1e-2)
    assert min(three) > 0.3
    assert kind == "one matrix" or three == pytest.approx([1.0] * 3, rel=1e-2)
    assert out == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("certified", [True, False])
def test_removal_from_attention(kind: str, certified: bool) -> None:
    module, x = attention(kind)
    expected, plain = module.eval()(*x)[0], nn.MultiheadAttention(8, 2, batch_first=True, **SIZES[kind])
    other = copy.deepcopy(module)
    sn.remove_spectral_norm(module, certified=certified)
    torch.testing.assert_close(module(*x)[0], expected, rtol=1e-2 if certified else 1e-6, atol=5e-3 * certified)
    assert type(module) is nn.MultiheadAttention
    assert sorted(module.state_dict()) == sorted(plain.state_dict())
    assert not certified or max(projections(module)) <= 1.0
    torch.testing.assert_close(other(*x)[0], expected)


def test_the_fast_path_of_a_transformer_layer() -> None:
    """sngan_projection#14: in eval without gradients PyTorch reads the weights and skips the forward passes."""
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"norm1 \(LayerNorm\)"):
        layer = sn.spectral_normalize(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    x = torch.randn(2, 5, 8)
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        torch.testing.assert_close(encoder(x), layer(layer(x)))


def unlike() -> nn.Sequential:
    """One kernel read with two strides."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2))
    net[2].weight = net[0].weight
    return net


def test_layers_that_cannot_go_on_sharing_are_named() -> None:
    """A state_dict with the numbers of both would give the shared kernel those of one."""
    with pytest.warns(UserWarning, match=r"weights of 0, 2 are shared.*each gets its own"):
        sn.remove_spectral_norm(sn.spectral_normalize(unlike()), certified=True)


def test_training_refuses_such_a_network() -> None:
    with pytest.raises(ValueError, match=r"arch: 0, 2 share their weights"):
        normalize(unlike(), Settings(), (4, 9, 9))
