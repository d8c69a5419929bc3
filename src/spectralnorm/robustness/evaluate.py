"""Accuracy of a classifier under attack: what it keeps, for each attack and against all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from .attacks.base import Attack, NamedAttack
from .attacks.libraries import library
from .attacks.named import named
from .batches import Batches, batches_of, pair_of, sizes_of
from .checks import check_bounds, check_choice, check_count
from .controls import SEVERITIES
from .evaluation import Evaluation, in_order
from .fingerprint import of_model, of_tensors, versions
from .ledger import Ledger
from .model import device_of, eval_mode
from .record import Condition, Record, Setup
from .running import OnAttack, Run
from .sharding import Shard, shard_of

__all__ = ["DEFAULT_EPS", "Evaluation", "device_of", "evaluate"]

OnBatch = Callable[[int, int | None], None]
DEFAULT_EPS: Mapping[str, Sequence[float]] = MappingProxyType(
    {"linf": (2 / 255, 4 / 255, 8 / 255), "l2": (0.25, 0.5, 1.0)}
)
NO_CONTROLS: Mapping[str, Sequence[int]] = MappingProxyType({})


def evaluate(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Batches,
    attacks: Sequence[str | Attack | NamedAttack] = ("pgd",),
    eps: Mapping[str, Sequence[float]] = DEFAULT_EPS,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 256,
    controls: Mapping[str, Sequence[int]] = NO_CONTROLS,
    probes: int = 64,
    resume: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    on_batch: OnBatch | None = None,
    on_attack: OnAttack | None = None,
) -> Evaluation:
    """Measure a classifier's accuracy on clean inputs and under attacks.

    The attacks' word is not taken: what they return is cut to eps and to the bounds, and classified again.
    Only examples that are classified right without attack are attacked. The model is evaluated in eval mode,
    and its modes are restored. Where torch.distributed is initialised, each process takes every so-manieth batch,
    and all return the whole.

    Args:
        model: Classifier from (N, ...) to logits, (N, classes).
        data: Inputs and labels, (N, ...) and (N,), or an iterable of such batches, as a `DataLoader` is, which
            must give the same batches each time where `resume` or several processes are used.
        attacks: Names ("fgsm"; "pgd", on the margin; "pgd-ce"; "cw", "deepfool", "ddn", "fmn" through foolbox;
            "square", "apgd-ce", "apgd-t", "fab-t", "autoattack" through pyautoattack) or functions with the
            signature of `Attack`. An attack is run in those of the norms that it is made for.
        eps: Sizes of the perturbations to try for each norm ("linf", "l2"), in the units of the inputs. One above
            the largest distance of two inputs allows no more than that.
        bounds: Lowest and highest value of an input.
        seed: Seed of the attacks, at least 0; batch number i gets seed + i.
        batch_size: Examples per batch, for a pair of tensors.
        controls: Severities, 1 to 5, of changes without an adversary ("noise", "blur", "contrast"), to compare
            with.
        probes: Right examples of the first batch on which masked gradients are looked for; 0 for none.
        resume: File that gets each batch as it is done, JSON. What it holds already is not done again. Shards may
            share one.
        shard: Index and count: evaluate every count-th batch only. `Evaluation.merge` puts shards together.
        on_batch: Called after each batch with the number of batches done, and their total (None if unknown).
        on_attack: Called before each attack with its name, norm and eps.

    Returns:
        Clean and robust accuracies, and alarms where gradients seem to be masked.

    Raises:
        TypeError: If an argument's type is wrong.
        ValueError: If an argument's value is wrong, there are no examples, or the file is of another evaluation.
        OSError: If the file cannot be read or written.
        ImportError: If an attack's library is not installed.
        FloatingPointError: If logits or gradients are not finite.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.5, 0.4], [0.9, 0.1]]), torch.tensor([0, 0])
        >>> evaluate(nn.Identity(), (x, y), eps={"linf": [0.1]}).worst_case[0].robust_accuracy
        0.5
    """
    chosen = named(attacks)
    check_bounds(bounds)
    check_count("probes", probes, 0)
    check_count("seed", seed, 0)
    part = shard_of(shard)
    batches, total = batches_of(data, batch_size)
    pair = pair_of(data)
    with eval_mode(model):
        setup = Setup(
            model=of_model(model),
            conditions=_conditions(chosen, eps),
            kinds={each.name: each.kind + (", cross-entropy" if each.cross_entropy else "") for each in chosen},
            controls=_controls(controls),
            bounds=(float(bounds[0]), float(bounds[1])),
            seed=seed,
            probes=probes,
            versions=versions(["spectralnorm", "torch", *_libraries(chosen)]),
        )
        run = Run(model, {each.name: each for each in chosen}, setup, on_attack)
        whole = of_tensors(*pair, torch.tensor(batch_size)) if pair else ""
        ledger = Ledger(resume, setup, part.index if part.together else None, whole)
        found = _over(part, run, ledger, batches, partial(_report, on_batch, total))
    if found.complete and found.examples == 0:
        raise ValueError("data: got no examples, expected at least one; pass (x, y) or an iterable of batches")
    return found


def _over(part: Shard, run: Run, ledger: Ledger, batches: Batches, report: Callable[[int], None]) -> Evaluation:
    """Do the batches of this part that are not done, exchange them with other processes, and write the whole."""
    before = part.first(ledger.before)
    ledger.keep(before)
    done = dict(before)

    def own() -> tuple[dict[int, Record], int]:
        found, count = {}, 0
        for index, (x, y) in enumerate(batches):
            count = index + 1
            if index in before:
                _check_same(before[index], x, y, ledger.path)
                ledger.seen[index] = before[index].data
            elif part.has(index):
                found[index] = run.record(index, x, y)
                ledger.seen[index] = found[index].data
                ledger.add(found[index])
            elif ledger.path is not None and not part.together:
                ledger.seen[index] = of_tensors(x, y)
            report(count)
        if before and max(before) >= count:
            raise ValueError(
                f"data: got {count} batches, expected at least the {max(before) + 1} of {ledger.path}; evaluate "
                "the same data, or give another file"
            )
        return found, count

    outcomes = part.all(own)
    for found, _ in outcomes:
        done |= found
    whole = in_order(run.setup, done.values(), max(count for _, count in outcomes), ledger.data)
    part.first(partial(ledger.close, whole))
    return whole


def _check_same(record: Record, x: Tensor, y: Tensor, path: Path | None) -> None:
    """Check that a batch is the one that was done before."""
    if of_tensors(x, y) != record.data:
        raise ValueError(
            f"data: got another batch {record.index} than {path} holds, expected the same; evaluate the same data "
            "in the same order and batch_size, or give another file"
        )


def _report(on_batch: OnBatch | None, total: int | None, done: int) -> None:
    if on_batch is not None:
        on_batch(done, total)


def _libraries(attacks: Sequence[NamedAttack]) -> list[str]:
    """The packages that the attacks need, which are imported before the work, not in the middle of it."""
    needed = sorted({attack.library for attack in attacks if attack.library})
    for package in needed:
        library(package)
    return needed


def _conditions(attacks: Sequence[NamedAttack], eps: Mapping[str, Sequence[float]]) -> tuple[Condition, ...]:
    """Every attack in every size of the norms that it is made for."""
    pairs = sizes_of(eps)
    if not pairs:
        raise ValueError(f"eps: got {eps!r}, expected at least one size; pass for example {{'linf': [0.03]}}")
    for norm, size in pairs:
        if pairs.count((norm, size)) > 1:
            raise ValueError(f"eps: got {size} more than once for {norm}, expected different sizes; drop one")
    for attack in attacks:
        if not any(norm in attack.norms for norm, _ in pairs):
            raise ValueError(
                f"eps: got none in {' or '.join(attack.norms)}, expected one for {attack.name}; add it, or drop "
                "the attack"
            )
    return tuple(
        Condition(attack.name, norm, size) for norm, size in pairs for attack in attacks if norm in attack.norms
    )


def _controls(controls: Mapping[str, Sequence[int]]) -> tuple[tuple[str, int], ...]:
    """Every change without an adversary, with its severity."""
    if not isinstance(controls, Mapping) or any(not isinstance(each, Sequence) for each in controls.values()):
        raise TypeError(
            f"controls: got {controls!r}, expected severities by name; pass for example {{'blur': [3]}}"
        )
    for name, severities in controls.items():
        check_choice("controls", name, SEVERITIES)
        for severity in severities:
            check_count("severity", severity)
            if severity > 5:
                raise ValueError(f"severity: got {severity}, expected 1 to 5; choose one of these")
    return tuple((name, severity) for name, severities in controls.items() for severity in severities)
