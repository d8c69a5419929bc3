"""Evaluations that are interrupted, resumed, cut into shards, merged, saved and read back."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset
from trained import Scale, trained_on_digits

from messages import check_says, complaint
from spectralnorm.files import write_atomically
from spectralnorm.robustness.attacks import pgd
from spectralnorm.robustness.evaluate import evaluate
from spectralnorm.robustness.evaluation import Evaluation

SIZES = {"linf": [0.05, 0.1]}
BATCH = 10


def run(**options: Any) -> Evaluation:
    """An evaluation of 5 batches."""
    model, x, y = trained_on_digits()
    given = {
        "attacks": ["fgsm", "pgd"],
        "eps": SIZES,
        "batch_size": BATCH,
        "controls": {"noise": [5]},
        "probes": 8,
    }
    return evaluate(options.pop("model", model), options.pop("data", (x[:45], y[:45])), **{**given, **options})


class StopError(Exception):
    pass


def stop_after(batches: int, done: int, total: int | None) -> None:
    if done == batches:
        raise StopError


def no_attack(*_: Any) -> None:
    raise AssertionError("an attack ran again")


def test_resumed_after_an_interruption_it_gives_the_same_and_skips(tmp_path: Path) -> None:
    whole, path = run(), tmp_path / "found.json"
    with pytest.raises(StopError):
        run(resume=path, on_batch=partial(stop_after, 2))
    half = Evaluation.load(path)
    assert [record.index for record in half.records] == [0, 1]
    assert not half.complete
    assert "Not complete: 2 of an unknown number of batches." in str(half)
    attacked: list[str] = []
    resumed = run(resume=path, on_attack=lambda name, *_: attacked.append(name))
    assert resumed == whole == Evaluation.load(path)
    assert attacked == 3 * ["fgsm", "pgd", "fgsm", "pgd"]
    assert run(resume=path, on_attack=no_attack) == whole


def test_a_killed_write_leaves_the_batches_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, writes = tmp_path / "found.json", []

    def full(target: Path, content: str) -> None:
        writes.append(target)
        if len(writes) == 3:
            raise OSError("no space left")
        write_atomically(target, content)

    monkeypatch.setattr("spectralnorm.robustness.evaluation.write_atomically", full)
    with pytest.raises(OSError, match="no space"):
        run(resume=path)
    assert len(Evaluation.load(path).records) == 2


def test_other_models_data_and_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    model, x, y = trained_on_digits()
    run(resume=path)
    other = nn.Sequential(model, Scale(2.0))
    cases = [
        ({"model": other}, "model"),
        ({"seed": 1}, "seed"),
        ({"attacks": ["fgsm"]}, "conditions"),
        ({"attacks": ["fgsm", partial(pgd, steps=3)]}, "conditions"),
        ({"eps": {"linf": [0.05]}}, "conditions"),
        ({"bounds": (0, 2)}, "bounds"),
        ({"probes": 0}, "probes"),
        ({"data": (x[1:46], y[1:46])}, "another batch 0"),
        ({"data": (x[:45], y[:45].flip(0))}, "another batch 0"),
        ({"batch_size": 9}, "another batch 0"),
        ({"data": (x[:40], y[:40])}, "got 4 batches"),
    ]
    for options, part in cases:
        said = complaint(ValueError, partial(run, resume=path, **options))
        check_says(said, str(path), part, "give another file")
    assert run(resume=path, on_attack=no_attack).complete


def test_one_weight_tells_models_apart(tmp_path: Path) -> None:
    model, data = nn.Linear(3, 2), (torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))
    evaluate(model, data, resume=tmp_path / "a.json")
    with torch.no_grad():
        model.bias[0] += 1e-6
    said = complaint(ValueError, lambda: evaluate(model, data, resume=tmp_path / "a.json"))
    check_says(said, "(model not the same)")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_merge_to_the_whole(count: int) -> None:
    parts = [run(shard=(index, count)) for index in range(count)]
    assert [part.complete for part in parts] == [False] * count
    merged = Evaluation.merge(reversed(parts))
    assert merged == run()
    assert merged.complete
    assert merged.to_dict()["results"][0]["right"] == sum(part.results[0].right for part in parts)
    assert not Evaluation.merge(parts[1:]).complete


def test_what_does_not_merge() -> None:
    one, two = run(shard=(0, 2)), run(shard=(1, 2), seed=1)
    check_says(complaint(ValueError, lambda: Evaluation.merge([one, two])), "different setups")
    check_says(complaint(ValueError, lambda: Evaluation.merge([])), "got none")
    _, x, y = trained_on_digits()
    other = run(shard=(0, 2), data=(x[50:95], y[50:95]))
    check_says(complaint(ValueError, lambda: Evaluation.merge([one, other])), "two different batches 0")
    short = run(shard=(1, 2), data=(x[:20], y[:20]))
    check_says(complaint(ValueError, lambda: Evaluation.merge([one, short])), "[2, 5] batches")
    assert Evaluation.merge([one, one]) == one


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0,), 3, (0.0, 2), (0, 0)])
def test_shards_that_do_not_exist(shard: Any) -> None:
    check_says(complaint(ValueError, lambda: run(shard=shard)), "shard: got", "(index, count)")


def together(rank: int, world: int, folder: str, fail: bool) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet{fail}", rank=rank, world_size=world)
    outcome: Any
    try:
        model, data = nn.Linear(3, 2), (torch.rand(21, 3), torch.arange(21) % 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, -1, 0.5], [-1, 1, 0]]))
            model.bias.zero_()
            data[0].copy_(torch.linspace(0, 1, 63).view(21, 3))
        attacks: list[Any] = [broken_on_one] if fail else ["pgd"]
        found = evaluate(model, data, attacks, {"l2": [0.1]}, batch_size=4, resume=f"{folder}/found.json")
        outcome = found.to_dict()
        outcome.pop("setup")
    except ValueError as error:
        outcome = str(error)
    torch.distributed.destroy_process_group()
    Path(folder, f"outcome{rank}.json").write_text(json.dumps(outcome))


def broken_on_one(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> Tensor:
    return x[:0] if torch.distributed.get_rank() == 1 else x


def test_processes_share_the_work_and_the_errors(tmp_path: Path) -> None:
    multiprocessing.spawn(together, (2, str(tmp_path), False), nprocs=2)
    outcomes = [json.loads((tmp_path / f"outcome{rank}.json").read_text()) for rank in (0, 1)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["complete"]
    assert [batch["index"] for batch in outcomes[0]["batches"]["done"]] == list(range(6))
    assert Evaluation.load(tmp_path / "found.json").complete
    assert not list(tmp_path.glob("found.json.part*"))
    (tmp_path / "found.json").unlink()
    multiprocessing.spawn(together, (2, str(tmp_path), True), nprocs=2)
    outcomes = [json.loads((tmp_path / f"outcome{rank}.json").read_text()) for rank in (0, 1)]
    assert outcomes[0] == outcomes[1]
    assert "from broken_on_one, expected finite numbers" in outcomes[0]
    parts = list(tmp_path.glob("found.json.part*"))
    assert [path.name for path in parts] == ["found.json.part0"]  # what one process did is kept
    assert len(Evaluation.load(parts[0]).records) == 3


# ---------------------------------------------------------------------- the file


def saved(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "found.json"
    run(resume=path)
    return path, json.loads(path.read_text())


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path, content = saved(tmp_path)
    found = Evaluation.load(path)
    assert found == run()
    assert found.to_dict() == content == Evaluation.from_dict(content).to_dict()
    assert content["schema"] == "spectralnorm.evaluation/1"
    assert found.seconds > 0
    assert found.table().row_count == 2 + 2 * 3


def changed(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *keys, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    inner: Any = content
    for key in keys:
        inner = inner[key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return content


@pytest.mark.parametrize(
    ("where", "value", "part"),
    [
        ("schema", "spectralnorm.evaluation/2", "spectralnorm.evaluation/2"),
        ("schema", KeyError, "None"),
        ("setup", KeyError, "setup"),
        ("setup.model", "abc", "setup"),
        ("setup.conditions", 3, "setup"),
        ("setup.conditions.0.norm", "l7", "conditions"),
        ("setup.conditions.0.eps", -1, "conditions"),
        ("setup.bounds", [0], "setup"),
        ("setup.kinds", {}, "conditions"),
        ("batches", KeyError, "batches"),
        ("batches.total", -1, "batches"),
        ("batches.total", 2, "number of batches"),
        ("batches.done.1.index", 0, "order"),
        ("batches.done.1.right", "1", "marks"),
        ("batches.done.1.right", "0000000000", "held though wrong"),
        ("batches.done.1.held.0", "2222222222", "marks"),
        ("batches.done.1.held", [], "number of conditions"),
        ("batches.done.1.controls", [], "number of controls"),
        ("batches.done.1.seconds.0", None, "number None"),
        ("batches.done.0.probes.0.counts", [1, 2, 3], "probes"),
        ("results.0.right", 1, "results"),
        ("examples", 44, "examples"),
        ("clean_accuracy", 0.5, "clean_accuracy"),
        ("worst_case", [], "worst_case"),
    ],
)
def test_damaged_files(tmp_path: Path, where: str, value: Any, part: str) -> None:
    path, content = saved(tmp_path)
    path.write_text(json.dumps(changed(content, where, value)))
    check_says(complaint(ValueError, lambda: Evaluation.load(path)), str(path), part)
    check_says(complaint(ValueError, lambda: run(resume=path)), str(path), part)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema": 1}', '"text"', "\x00", "null"])
def test_other_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    check_says(complaint(ValueError, lambda: Evaluation.load(path)), str(path), "expected an evaluation")


def test_missing_files_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Evaluation.load(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    check_says(complaint(ValueError, lambda: Evaluation.load(tmp_path / "binary")), "no JSON")


def test_shards_of_other_data_do_not_merge() -> None:
    """Nor those of another batch_size that happens to give as many batches."""
    _, x, y = trained_on_digits()
    one = run(shard=(0, 2))
    for other in (run(shard=(1, 2), data=(x[50:95], y[50:95])), run(shard=(1, 2), batch_size=11)):
        assert other.batches == one.batches
        check_says(complaint(ValueError, lambda other=other: Evaluation.merge([one, other])), "different data or")


def test_shards_that_share_a_file_keep_what_the_others_wrote(tmp_path: Path) -> None:
    """The second reads the file before the first writes to it."""
    path = tmp_path / "found.json"
    model, x, y = trained_on_digits()
    data = DataLoader(TensorDataset(x[:30], y[:30]), 10)
    inner: list[Evaluation] = []

    def other(*_: object) -> None:
        if not inner:
            inner.append(evaluate(model, data, ["fgsm"], shard=(1, 2), resume=path))

    evaluate(model, data, ["fgsm"], shard=(0, 2), resume=path, on_attack=other)
    assert [record.index for record in Evaluation.load(path).records] == [0, 1, 2]
    assert evaluate(model, data, ["fgsm"], resume=path, on_attack=no_attack).complete
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_shard_of_other_data_at_the_same_time_is_kept_out_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    _, x, y = trained_on_digits()
    inner: list[Evaluation] = []

    def other(*_: object) -> None:
        if not inner:
            inner.append(run(shard=(1, 2), resume=path))

    def outer() -> None:
        run(shard=(0, 2), resume=path, data=(x[50:95], y[50:95]), on_attack=other)

    check_says(complaint(ValueError, outer), str(path), "other data")
    assert Evaluation.load(path) == inner[0]


def test_what_cannot_be_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null/found.json")):
        said = complaint(OSError, lambda path=path: run(resume=path, on_attack=no_attack))
        check_says(said, str(path.parent if path != tmp_path else path), "expected a f")


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_seeds(seed: Any) -> None:
    error = ValueError if seed == -1 else TypeError
    check_says(complaint(error, lambda: run(seed=seed)), "seed")


def test_data_without_an_axis() -> None:
    data = (torch.tensor(0.5), torch.tensor(1))
    check_says(complaint(ValueError, lambda: run(data=data)), "data", "batch axis")


def test_an_output_that_is_no_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    check_says(complaint(TypeError, lambda: run(model=Pair())), "model", "tuple", "wrap it")


@pytest.mark.parametrize("images", [60, 30])
def test_shards_of_other_batches_at_the_same_time_do_not_mix(images: int, tmp_path: Path) -> None:
    """Iterables have no fingerprint of the whole; batches that a shard passes over are compared at its end."""
    path = tmp_path / "found.json"
    model, x, y = trained_on_digits()
    one = DataLoader(TensorDataset(x[:30], y[:30]), 10)
    two = DataLoader(TensorDataset(x[100 : 100 + images], y[100 : 100 + images]), 10)
    inner: list[Evaluation] = []

    def other(*_: object) -> None:
        if not inner:
            inner.append(evaluate(model, two, ["fgsm"], shard=(1, 2), resume=path))

    def outer() -> None:
        evaluate(model, one, ["fgsm"], shard=(0, 2), resume=path, on_attack=other)

    check_says(complaint(ValueError, outer), str(path), "other data")


def test_parts_that_are_no_evaluations_or_beyond_the_data() -> None:
    one = run(shard=(0, 2))
    check_says(complaint(TypeError, lambda: Evaluation.merge([one, None])), "NoneType")  # type: ignore[list-item]
    late = replace(one, batches=None, records=(replace(one.records[0], index=7),))
    check_says(complaint(ValueError, lambda: Evaluation.merge([one, late])), "[5, 8] batches")
