"""Normalised models over processes: DDP, FSDP2, tensor parallelism. They run `distributed_checks.py` once."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from distributed_checks import KERNELS, STEPS, narrow, run
from processes import train
from torch import Tensor, multiprocessing, nn

import spectralnorm as sn
from messages import check_says
from nets import LAYERS, assert_same, conv_net, original, sgd
from reference import size_free_norm
from spectralnorm.normalize.fsdp import hand_over

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="needs gloo"
)
ROUNDING = 2e-6  # of losses, relative


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """What the processes have found; of the workers of pytest-xdist, one has them run."""
    folder = tmp_path_factory.getbasetemp() / "processes"
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent.parent / folder.name
    try:
        folder.mkdir()
    except FileExistsError:
        for _ in range(1200):
            time.sleep(0.0 if (folder / "done").exists() else 0.1)
    else:
        try:
            multiprocessing.start_processes(run, (str(folder),), nprocs=2, start_method="spawn")
        finally:
            (folder / "done").touch()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture
def found(request: pytest.FixtureRequest, reports: list[dict[tuple[str, str], Any]]) -> Any:
    """Gives both processes' results of a check, for the size of models that the test runs with."""
    size = request.node.callspec.params["model_size"]

    def of(name: str) -> list[Any]:
        results = [report[size, name] for report in reports]
        for result in results:
            assert not isinstance(result, str) or "Traceback" not in result, result
        return results

    return of


def alone(**options: Any) -> list[float]:
    """Losses of one process on the whole batches."""
    net = sn.spectral_normalize(conv_net())
    return train(net, range(STEPS), torch.optim.Adam(net.parameters(), **options) if options else None)


def norms(weights: list[Tensor]) -> list[float]:
    """True norms of the layers of `conv_net` with these weights."""
    net = conv_net()
    for i, weight in zip(LAYERS, weights, strict=True):
        net[i].weight.data = weight.float()
    return [size_free_norm(net[i]) for i in LAYERS]


# ---------------------------------------------------------------------- DDP


@pytest.mark.parametrize("check", ["ddp", "ddp_from_other_weights"])
def test_ddp_trains_as_one_process(found: Any, check: str) -> None:
    """pytorch#8160, #22095: buffers broadcast in each pass or never; processes that start from other weights."""
    one, two = found(check)
    for mine, others in zip(one, two, strict=True):
        assert mine[0] == pytest.approx(alone(), rel=ROUNDING)
        assert_same(mine[1], others[1])


# ---------------------------------------------------------------------- FSDP2: training


@pytest.mark.parametrize("check", ["fsdp", "fsdp_registered_after"])
def test_fsdp_trains_as_one_process(found: Any, check: str) -> None:
    """pytorch#175024: by layers and at the root, normalised before and after `fully_shard`.

    After it, PyTorch's own fails: "in-place operations that require placement changes are not supported".
    """
    one, two = found(check)
    for mine, others in zip(one, two, strict=True):
        assert mine[0] == pytest.approx(alone(), rel=ROUNDING)
        assert_same(mine[1], others[1])
        assert [turn for name, turn in mine[1].items() if name.endswith("turn")] == [STEPS - 1] * 3
        assert all(map(all, mine[2:]))


def test_steps_of_foreach_and_fused_optimizers_are_seen(found: Any) -> None:
    one, two = found("fsdp_untraced")
    for mine, others in zip(one, two, strict=True):
        assert mine[0] == pytest.approx(alone(lr=0.01), rel=ROUNDING)
        assert_same(mine[1], others[1])


def test_fsdp_over_compiled_layers(found: Any) -> None:
    one, two = found("fsdp_compiled")
    assert one[0] == pytest.approx(alone()[:3], rel=1e-5)
    assert_same(one[1], two[1])


def test_replicas_of_shards(found: Any) -> None:
    one, two = found("fsdp_replicated")
    assert one[0] == pytest.approx(alone()[:3], rel=ROUNDING)
    assert_same(one[1], two[1])
    assert norms(one[2]) == pytest.approx([1.0] * 3, rel=0.01)


def test_half_precision_policy(found: Any) -> None:
    """Of PyTorch's own: "addmv input tensors must have the same dtype"."""
    one, two = found("fsdp_half")
    assert one[0] == pytest.approx(alone(), rel=5e-3)
    assert_same(one[1], two[1])
    assert norms(one[2]) == pytest.approx([1.0] * 3, rel=2**-8)


def test_attention_is_normalised_from_shards(found: Any) -> None:
    torch.manual_seed(0)
    net = sn.spectral_normalize(nn.Sequential(nn.MultiheadAttention(8, 2)))
    sigmas = [float(part.sigma) for part in net.modules() if hasattr(part, "sigma")]
    for sharded in found("attention_registered_after"):
        assert sharded == pytest.approx(sigmas, rel=1e-5)


def test_folded_batchnorms_in_one_group(found: Any) -> None:
    for wrapped, sharded in found("fsdp_folded"):
        assert sharded == pytest.approx(wrapped, rel=ROUNDING)


# ---------------------------------------------------------------------- FSDP2: outside the forward pass


def test_states_move_from_shards(found: Any) -> None:
    """No weight is gathered for it, and the forward pass has nothing left to do."""
    one, two = found("steps_by_hand")
    assert one[0] == pytest.approx(alone(), rel=ROUNDING)
    assert_same(one[1], two[1])
    assert [turn for name, turn in one[1].items() if name.endswith("turn")] == [STEPS] * 3
    assert norms(one[2]) == pytest.approx([1.0] * 3, rel=0.01)


def test_a_process_without_rows(found: Any) -> None:
    """And writes that leave a trace only by `torch.autograd.graph.increment_version`: `docs/training.md`."""
    losses, states = narrow(sharded=False)
    for sharded, others in found("one_row"):
        assert sharded == pytest.approx(losses, rel=ROUNDING)
        assert {n: int(t) for n, t in others.items() if "turn" in n} == {
            n: int(t) for n, t in states.items() if "turn" in n
        }


def test_reading_outside_the_forward_pass(found: Any) -> None:
    """Of PyTorch's own: "aten.mv.default got mixed torch.Tensor and DTensor"."""
    one, two = found("reads")
    kind, text, moved, weights, fresh, still, after = one
    assert kind == "DTensor"
    assert "sigma=" in text
    assert_same(moved, two[2])
    assert_same(fresh, two[4])
    assert norms(weights) == pytest.approx([1.0] * 3, rel=0.01)
    assert norms(still) == pytest.approx([1.0] * 3, rel=1e-4)  # in eval, after a factor
    assert_same(fresh, after)


def test_a_weight_read_outside_the_forward_pass_is_differentiable(found: Any) -> None:
    net = sn.spectral_normalize(conv_net())
    (net[2].weight * torch.arange(162.0).view(3, 6, 3, 3)).sum().backward()
    for grad in found("gradient_of_a_read"):
        torch.testing.assert_close(grad, original(net[2]).grad, rtol=1e-5, atol=1e-4)


def test_norms_of_shards_in_the_loss(found: Any) -> None:
    net, values = conv_net(), []
    optimizer = sgd(net)
    for _ in range(3):
        optimizer.zero_grad()
        penalty = sn.spectral_penalty(net)
        penalty.backward()
        optimizer.step()
        values.append(float(penalty.detach()))
    for penalties, weights in found("penalised"):
        assert penalties == pytest.approx(values, rel=1e-4)
        for i, weight in zip(LAYERS, weights, strict=True):
            torch.testing.assert_close(weight, net[i].weight.detach(), rtol=1e-3, atol=1e-4)


def test_sharded_layers_are_measured(found: Any) -> None:
    for measured, audited in found("measured"):
        assert measured == pytest.approx([1.0] * 3, rel=1e-3)
        assert audited == pytest.approx(measured, rel=1e-3)


def test_removal_from_shards(found: Any) -> None:
    """Baked in by shards, proven or not; FSDP2 and the optimiser go on with the same parameters."""
    for results in found("removed"):
        for certified, result in zip([False, True] * 2, results, strict=True):
            (before, after), weights, keys, bases, losses = result
            torch.testing.assert_close(after, before, rtol=0, atol=0.03 if certified else 1e-6)
            assert max(norms(weights)) <= (1.0 if certified else 1.01)
            assert sorted(keys) == sorted(conv_net().state_dict())
            assert bases == [nn.Conv2d, nn.Conv2d, nn.Linear]
            assert losses == pytest.approx(results[int(certified)][4], rel=ROUNDING)


def test_a_state_dict_of_each_process_goes_on_bit_for_bit(found: Any) -> None:
    for losses, states, weights in found("continued"):
        assert losses[0] == losses[1]
        assert_same(*states)
        assert all(map(torch.equal, *weights))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("folded apart", ["RuntimeError", "groups of their own", "fully_shard on a module that holds both"]),
        ("folded after", ["ValueError", "sharded", "before fully_shard"]),
        ("folded refresh", ["RuntimeError", "model.unshard()"]),
        ("folded removal", ["ValueError", "sharded", "full_state_dict=True"]),
        ("tied removal", ["ValueError", "shared by several modules", "full_state_dict=True"]),
        ("orthogonal after", ["ValueError", "orthogonal", "before fully_shard"]),
        ("two derivatives", ["RuntimeError", "create_graph"]),
        ("not finite", ["ValueError", "NaN", "0.weight"]),
    ],
)
def test_what_shards_cannot_do(found: Any, case: str, words: list[str]) -> None:
    for messages in found("refused"):
        for word in words:
            assert word in messages[case], messages[case]


# ---------------------------------------------------------------------- the parts


def test_tensor_parallel_layers(found: Any) -> None:
    torch.manual_seed(0)
    net = sn.spectral_normalize(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)))
    out = net(torch.linspace(-1, 1, 40).view(5, 8))
    out.square().sum().backward()
    for parallel, grads in found("tensor_parallel"):
        torch.testing.assert_close(parallel, out.detach())
        for i, grad in zip((0, 2), grads, strict=True):
            torch.testing.assert_close(grad, original(net[i]).grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("place", range(len(KERNELS)), ids=[str(kernel) for kernel in KERNELS])
def test_products_with_sharded_kernels(found: Any, place: int) -> None:
    for whole, sharded in found("products"):
        torch.testing.assert_close(sharded[place], whole[place])


def test_what_would_gather_a_kernel_says_so(found: Any) -> None:
    for said in found("refused_products"):
        assert len(said) == 2
        for message in said:
            check_says(message, "would gather a weight", "full_tensor()")


@pytest.mark.small_models
def test_another_release_of_fsdp_is_told_apart() -> None:
    """Registering after `fully_shard` needs FSDP2's private `_module_info`."""
    group = SimpleNamespace(fsdp_params=[SimpleNamespace()])
    modules = {
        "torch.distributed.fsdp": SimpleNamespace(),
        "torch.distributed._composable_state": SimpleNamespace(
            _module_state_mapping={1: SimpleNamespace(_fsdp_param_groups=[group])}
        ),
    }
    with mock.patch.dict("sys.modules", modules), pytest.raises(RuntimeError) as error:
        hand_over((nn.Linear(1, 1), "weight"), (nn.Linear(1, 1), "weight"))
    check_says(str(error.value), "_module_info", "spectral_normalize before fully_shard")
