"""What an audit shows: as a table, with rich, and as JSON."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction

import pytest
import torch
from known import batch_norm, blur
from rich.console import Console
from torch import nn

from spectralnorm.bound import Bound
from spectralnorm.network.audit import Audit, AuditRow, audit
from spectralnorm.training.models import small_cnn


def test_zero_kernel_has_no_ratio() -> None:
    conv = blur()
    nn.init.zeros_(conv.weight)
    found = audit(conv)
    assert math.isnan(found.rows[0].ratio)
    assert found.to_dict()["layers"][0]["ratio"] is None
    assert found.product == 0
    assert "(model)" in str(found)


def test_dictionary_is_strict_json() -> None:
    found = audit(nn.Sequential(blur(padding=1), nn.LayerNorm(6)), (1, 6, 6)).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["schema"] == "spectralnorm/audit/1"
    assert found["layers"][0]["norm"].keys() == {"value", "lower", "upper", "method"}
    assert found["layers"][0]["alone"] == found["layers"][0]["norm"]
    assert found["layers"][0]["padding_copies"] is False
    assert found["layers"][0]["size"] == [6, 6]
    assert found["product_of_layer_norms"] == pytest.approx(1, rel=1e-3)
    assert found["product_of_upper_ends"] is None  # nothing is proven
    assert found["batchnorms_in_train_mode"] == []
    assert found["skipped"] == [{"name": "1", "type": "LayerNorm"}]


def test_rich_table_fits_80_columns_and_says_the_same() -> None:
    found = audit(small_cnn((1, 8, 8), 10, width=2, batch_norm=True), (1, 8, 8), certified=True)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(found)
    shown = capture.get()
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("conv3", "Conv2d", "4x2x3x3", "product of the layers' norms", "Conv2d + BN"):
        assert word in shown
        assert word in str(found)


def test_a_layer_with_a_batchnorm_is_shown_alone_too() -> None:
    """What `remove_spectral_norm(certified=True)` has proven stays in sight."""
    model = nn.Sequential(blur(padding=1), batch_norm(1), nn.ReLU(), blur())
    found = audit(model, certified=True)
    folded, plain = found.rows
    assert folded.alone.lower <= 1 + 1e-6 <= folded.alone.upper <= 1.002
    assert folded.ratio == pytest.approx(3, rel=1e-3)
    scale = float((model[1].running_var + model[1].eps).rsqrt())
    assert float(folded.norm) == pytest.approx(scale, rel=1e-3)
    assert plain.alone is plain.norm
    assert found.product == pytest.approx(scale, rel=2e-3)
    first, second = (re.split(r" {2,}", line) for line in str(found).splitlines()[2:4])
    assert first[:5] == ["0", "Conv2d", "1x1x3x3", "0.333", f"{float(folded.alone):.3f}"]
    assert second[:3] == ["+ 1", "Conv2d + BN", f"{float(folded.norm):.3f}"]
    assert (first[-1], len(second)) == ("3.000", 4)
    assert "+: the layer above and the BatchNorm that alone reads it" in str(found)
    assert "+" not in str(audit(nn.Sequential(blur(), nn.ReLU())))


class Padded(nn.Sequential):
    """Convolutions of one kernel, whose padding copies cells, or not."""

    COPIES = ("reflect", "replicate", "circular with a stride")

    def __init__(self) -> None:
        super().__init__()
        options = {"padding": 1, "padding_mode": "circular"}
        self.add_module("reflect", blur(padding=1, padding_mode="reflect"))
        self.add_module("replicate", blur(padding=1, padding_mode="replicate"))
        self.add_module("circular with a stride", blur(stride=2, **options))
        self.add_module("zeros", blur(padding=1))
        self.add_module("circular", blur(**options))
        self.add_module("nothing to reflect", blur(padding_mode="reflect"))


@pytest.mark.parametrize("certified", [False, True])
def test_rows_whose_padding_leaves_the_norm_open_are_marked(certified: bool) -> None:
    found = audit(Padded(), certified=certified)
    for row in found.rows:
        assert row.padding_copies is (row.name in Padded.COPIES)
        assert row.to_dict()["padding_copies"] is row.padding_copies
    shown = str(found)
    assert shown.count("Conv2d*") == 3
    assert "*: the padding copies cells" in shown
    assert ('up to what "at most" says' in shown) is certified
    assert "*:" not in str(audit(blur(padding=1)))


def test_the_mark_stands_beside_the_layer_not_the_batchnorm() -> None:
    assert "Conv2d* + BN" in str(audit(nn.Sequential(blur(padding=1, padding_mode="reflect"), batch_norm(1))))


def test_batchnorms_in_train_mode_are_named() -> None:
    trained = nn.Sequential(blur(), nn.BatchNorm2d(1), nn.ReLU(), nn.BatchNorm2d(1), nn.BatchNorm2d(1).eval())
    found = audit(trained)
    assert found.train_mode == ("1", "3")
    assert found.to_dict()["batchnorms_in_train_mode"] == ["1", "3"]
    assert "In train mode: 1, 3. There a BatchNorm divides by the statistics of each batch" in str(found)
    assert "train mode" not in str(audit(trained.eval()))
    assert "0, 1, 2, 3, 4 and 2 more." in str(audit(nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(7)))))


def test_a_missing_ratio_is_explained() -> None:
    said = 'Ratio "-": there is no kernel to flatten'
    assert said in str(audit(nn.Sequential(nn.ReLU(), batch_norm(2))))
    assert said not in str(audit(nn.Sequential(blur(), batch_norm(1))))


def row_of(value: float, upper: float = math.inf) -> AuditRow:
    bound = Bound(torch.tensor(value, dtype=torch.float64), min(value, upper), upper, "tracked")
    return AuditRow("a", "Linear", (1, 1), value, bound, bound)


@pytest.mark.parametrize("values", [(1e200, 1e200), (0.0, math.inf), (math.nan, 1.0)], ids=str)
def test_what_is_not_finite_is_null_in_json(values: tuple[float, ...]) -> None:
    found = Audit(tuple(map(row_of, values)))
    assert not math.isfinite(found.product)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["product_of_layer_norms"] is None
    assert str(found)


def test_the_product_of_the_upper_ends() -> None:
    found = audit(nn.Sequential(blur(), nn.Linear(3, 2)), certified=True)
    exact = math.prod(Fraction(row.norm.upper) for row in found.rows)
    assert exact <= found.product_upper <= float(exact) * (1 + 1e-12)
    assert found.to_dict()["product_of_upper_ends"] == found.product_upper
    assert re.search(r"product of the layers' norms: [\d.]+, at most [\d.]+ \(not a Lip", str(found))
    assert audit(blur()).product_upper == math.inf
    assert Audit((row_of(0, 0.0), row_of(2.0, 2.0))).product_upper == 0
