"""The parts of a run: augmentation, adversarial examples, others' normalisations, the log, checkpoints."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import settings
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import spectralnorm as sn
from messages import check_says
from spectralnorm import files
from spectralnorm.training import adversarial
from spectralnorm.training.augment import augmented
from spectralnorm.training.baselines import ExactNormalization, PowerNormalization
from spectralnorm.training.checkpoint import load_checkpoint, save_checkpoint
from spectralnorm.training.journal import Journal, records
from spectralnorm.training.models import small_cnn

# ---------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 8, 8), (4, 1, 9, 17)])
@pytest.mark.parametrize("kind", ["none", "flip", "crop", "crop-flip"])
def test_augmented_images(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    found = augmented(x, kind, torch.Generator().manual_seed(1))
    assert found.shape == x.shape
    assert torch.equal(found, augmented(x, kind, torch.Generator().manual_seed(1)))
    assert float(found.min()) >= 0
    assert float(found.max()) <= float(x.max())


def test_a_crop_is_a_shift_with_zeros_at_the_border() -> None:
    x = torch.rand(64, 2, 16, 16)
    for before, after in zip(x, augmented(x, "crop", torch.Generator().manual_seed(0)), strict=True):
        padded = nn.functional.pad(before, (2, 2, 2, 2))
        windows = [padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
        assert any(torch.equal(after, window) for window in windows)


def test_half_of_the_images_are_mirrored() -> None:
    x = torch.rand(400, 1, 4, 4)
    flipped = (augmented(x, "flip", torch.Generator().manual_seed(0)) != x).flatten(1).any(1)
    assert 150 < int(flipped.sum()) < 250


# ---------------------------------------------------------------------- adversarial examples


@pytest.mark.parametrize("kind", ["fgsm", "pgd", "trades"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.7)])
def test_adversarial_images_lie_within_eps_and_raise_the_loss(kind: str, norm: str, eps: float) -> None:
    torch.manual_seed(0)
    net = sn.spectral_normalize(small_cnn((1, 8, 8), 10, batch_norm=True), fold_batchnorm=True).train()
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    before = {name: buffer.clone() for name, buffer in net.named_buffers() if "running" in name}
    cross = lambda z: nn.functional.cross_entropy(z, y)  # noqa: E731
    point = adversarial._adversarial(net, x, settings(adversarial=kind, norm=norm, eps=eps), 0, cross)
    away = (point - x).flatten(1)
    lengths = away.abs().amax(1) if norm == "linf" else away.norm(dim=1)
    assert float(lengths.max()) <= eps * (1 + 1e-5)
    assert 0 <= float(point.min()) <= float(point.max()) <= 1
    assert net.training
    assert all(torch.equal(buffer, dict(net.named_buffers())[name]) for name, buffer in before.items())
    assert all(parameter.grad is None for parameter in net.parameters())
    with torch.no_grad():
        assert float(cross(net.eval()(point))) > float(cross(net(x)))


def test_trades_adds_the_divergence() -> None:
    torch.manual_seed(0)
    net, x, y = small_cnn((1, 8, 8), 10), torch.rand(8, 1, 8, 8), torch.arange(8)
    found = []
    for beta in (1e-9, 1e3, 2e3):
        with_beta = settings(adversarial="trades", trades_beta=beta)
        found.append(adversarial.training_loss(net, net, x, y, with_beta, 0, F.cross_entropy)[0].detach())
    losses = [float(loss) for loss in found]
    clean = float(nn.functional.cross_entropy(net(x), y).detach())
    assert losses[0] == pytest.approx(clean, rel=1e-5)
    assert losses[1] > losses[0]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-2)


# ---------------------------------------------------------------------- others' normalisations


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("lean", [False, True])
def test_power_iteration_on_the_layer_finds_its_norm(stride: int, lean: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3, stride, padding=1)
    truth = float(sn.spectral_norm(layer, input_shape=(9, 8)))
    part = PowerNormalization(layer, (1, 3, 9, 8), 2.0, lean=lean)
    with torch.no_grad():
        for _ in range(400):
            scaled = part(layer.weight)
    assert float((layer.weight / scaled).mean().detach()) == pytest.approx(truth / 2, rel=1e-3)
    parametrize.register_parametrization(layer, "weight", part)
    before = layer.eval().weight
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(3, 4, 3, 2, padding=1)])
def test_exact_normalisation(layer: nn.Module) -> None:
    size = None if isinstance(layer, nn.Linear) else (8, 8)
    parametrize.register_parametrization(layer, "weight", ExactNormalization(layer, size, 0.5))
    if size is None:
        assert float(sn.spectral_norm(layer)) == pytest.approx(0.5, rel=1e-5)
        return
    layer.padding_mode = "circular"
    layer._reversed_padding_repeated_twice = [1] * 4
    assert float(sn.spectral_norm(layer, input_shape=size)) == pytest.approx(0.5, rel=1e-5)


def test_power_iteration_refuses_what_it_cannot_take() -> None:
    for layer in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same"), nn.Conv1d(2, 2, 3)):
        with pytest.raises(TypeError) as error:
            PowerNormalization(layer, (1, 4, 8, 8))
        check_says(str(error.value), "Linear or a Conv2d", "tracked")


# ---------------------------------------------------------------------- the log


def test_a_log_opened_at_a_step_drops_what_came_later(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    journal = Journal(tmp_path, 2)
    journal.write({"step": 3, "loss": 0.5})
    journal.close()
    assert records(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]


def test_a_log_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        Journal(tmp_path, 2)


def test_tensorboard_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError) as error:
        Journal(tmp_path, 0, tensorboard=True)
    check_says(str(error.value), "TensorBoard", 'pip install "spectralnorm[train]"')


def test_tensorboard_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    journal = Journal(tmp_path, 0, tensorboard=True)
    journal.write({"step": 1, "loss": 0.5, "note": "text"})
    journal.close()
    assert list((tmp_path / "tensorboard").iterdir())


# ---------------------------------------------------------------------- checkpoints


CONTENT: dict[str, Any] = {"model": {"w": torch.arange(3.0)}, "done": 7}


def test_checkpoints_there_and_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", CONTENT)
    found = load_checkpoint(tmp_path / "c.pt")
    assert found["done"] == 7
    assert torch.equal(found["model"]["w"], CONTENT["model"]["w"])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, CONTENT)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked
        load_checkpoint(path)
    check_says(str(error.value), str(path), "delete it to start again")


@pytest.mark.parametrize("content", [{"weight": torch.ones(1)}, [1, 2], {"version": 99}])
def test_another_file_is_no_checkpoint(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="it is something else, or of another release"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, CONTENT)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        save_checkpoint(path, {**CONTENT, "done": 8})
    check_says(str(error.value), str(path), "give another path")
    assert load_checkpoint(path)["done"] == 7
    assert [each.name for each in tmp_path.iterdir()] == ["c.pt"]


def test_records_are_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    with pytest.raises(ValueError, match="JSON"):
        journal.write({"step": 1, "loss": float("nan")})
    journal.close()
    assert json.loads((tmp_path / "log.jsonl").read_text() or "null") is None
