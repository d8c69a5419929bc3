"""What tells models, and attacks, apart where they print the same."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectralnorm.robustness.attacks.named import named
from spectralnorm.robustness.fingerprint import of_model


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        ),
        (nn.AvgPool2d(2, count_include_pad=True), nn.AvgPool2d(2, count_include_pad=False)),
        (nn.AvgPool2d(2), nn.AvgPool2d(2, divisor_override=3)),
    ],
)
def test_options_that_are_not_printed_tell_models_apart(one: nn.Module, two: nn.Module) -> None:
    assert str(nn.AvgPool2d(2)) == str(nn.AvgPool2d(2, divisor_override=3))
    assert of_model(nn.Sequential(one)) != of_model(nn.Sequential(two))
    assert of_model(nn.Sequential(one)) == of_model(copy.deepcopy(nn.Sequential(one)).eval())


def test_buffers_that_are_not_saved_tell_models_apart() -> None:
    nets = [nn.Identity(), nn.Identity()]
    for factor, net in enumerate(nets):
        net.register_buffer("factor", torch.tensor(float(factor)), persistent=False)
    assert of_model(nets[0]) != of_model(nets[1])


def test_tensors_given_to_an_attack_tell_attacks_apart() -> None:
    def shifted(
        model: nn.Module, x: Tensor, y: Tensor, eps: float, *, delta: Tensor, norm: str, bounds: Any, seed: int
    ) -> Tensor:
        return x + delta

    one, two = torch.zeros(2000), torch.zeros(2000)
    two[1000] = 1
    names = [named([partial(shifted, delta=delta)])[0].name for delta in (one, two, one.clone())]
    assert repr(one) == repr(two)
    assert names[0] != names[1]
    assert names[0] == names[2]
    assert len(names[0]) < 80
    by_function = named([partial(shifted, delta=torch.relu), partial(shifted, delta=lambda z: z)])
    assert not any("0x" in attack.name for attack in by_function)
