"""Changes without an adversary: what they do to inputs, and how they are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from trained import trained_on_digits

from messages import check_says, complaint
from spectralnorm.robustness.controls import SEVERITIES, control
from spectralnorm.robustness.evaluate import evaluate


@pytest.mark.parametrize("severity", range(1, 6))
def test_blur_is_scipys(severity: int) -> None:
    x = torch.rand(2, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    deviation = SEVERITIES["blur"][severity - 1]
    radius = int(np.ceil(4 * deviation))
    expected = gaussian_filter(
        x.numpy(), (0, 0, deviation, deviation), mode="nearest", radius=(0, 0, radius, radius)
    )
    torch.testing.assert_close(control("blur", x, severity), torch.from_numpy(expected))


def test_noise_has_its_deviation_its_seed_and_the_bounds() -> None:
    x = torch.zeros(20, 1, 30, 30)
    noisy = control("noise", x, 5, bounds=(-1, 1), seed=3)
    assert noisy.std() == pytest.approx(0.2, rel=0.02)  # 0.1 of a range of 2
    assert torch.equal(noisy, control("noise", x, 5, bounds=(-1, 1), seed=3))
    assert not torch.equal(noisy, control("noise", x, 5, bounds=(-1, 1), seed=4))
    assert control("noise", x, 5).min() == 0


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 5), (4, 3, 5, 5)])
def test_contrast_keeps_means(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    changed = control("contrast", x, 4)
    axes = tuple(range(2, x.ndim)) or (1,)
    torch.testing.assert_close(changed.mean(axes), x.mean(axes))
    torch.testing.assert_close(changed.std(axes), 0.3 * x.std(axes))


@pytest.mark.parametrize("name", SEVERITIES)
def test_severities_grow_and_empty_batches_stay(name: str) -> None:
    x = trained_on_digits()[1][:20]
    moved = [float((control(name, x, severity) - x).norm()) for severity in range(1, 6)]
    assert moved == sorted(moved)
    assert moved[0] > 0
    assert control(name, x[:0], 3).shape == (0, 1, 8, 8)


def test_accuracies_under_controls_count_every_example() -> None:
    model, x, y = trained_on_digits()
    found = evaluate(model, (x[:60], y[:60]), eps={"l2": [0.1]}, controls={"noise": [1, 5], "blur": [5]}, probes=0)
    assert [(entry.name, entry.severity) for entry in found.controls] == [("noise", 1), ("noise", 5), ("blur", 5)]
    with torch.no_grad():
        right = int((model(control("blur", x[:60], 5)).argmax(1) == y[:60]).sum())
    assert found.controls[2].right == right
    wrong = (y[:60] + 1) % 10
    again = evaluate(model, (x[:60], wrong), eps={"l2": [0.1]}, controls={"noise": [1]}, probes=0)
    assert again.controls[0].share < 0.1


BAD: list[tuple[Any, type[Exception], tuple[str, ...]]] = [
    ({"fog": [1]}, ValueError, ("'fog'", "noise, blur, contrast")),
    ({"noise": [6]}, ValueError, ("got 6", "1 to 5")),
    ({"noise": [0]}, ValueError, ("got 0",)),
    ({"noise": [1.5]}, TypeError, ("got 1.5",)),
    ({"noise": 1}, TypeError, ("{'noise': 1}",)),
    (["noise"], TypeError, ("['noise']",)),
    ({"blur": [1]}, ValueError, ("blur", "(2, 2)", "leave it out")),
]


@pytest.mark.parametrize(("controls", "error", "parts"), BAD)
def test_wrong_controls(controls: Any, error: type[Exception], parts: tuple[str, ...]) -> None:
    data = torch.rand(2, 2), torch.tensor([0, 1])
    check_says(complaint(error, lambda: evaluate(nn.Identity(), data, controls=controls)), *parts)
