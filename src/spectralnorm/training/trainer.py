"""A training run as its state and its steps: what a checkpoint holds, and what moves it on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectralnorm.normalize.penalty import load_penalty_state, penalty_state, spectral_penalty

from .adversarial import training_loss
from .augment import augmented
from .dataset import Dataset
from .models import build
from .normalizing import normalize
from .objective import held_constants, label_loss
from .schedule import rate, seed_of
from .settings import Settings
from .team import Team

__all__ = ["Classifier", "Trainer"]

_BATCH = 256  # images a forward pass in evaluation
_DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Classifier(nn.Module):
    """A network whose logits are divided by a temperature.

    Example:
        >>> Classifier(nn.Identity(), 0.5, learn=False)(torch.ones(1, 2))
        tensor([[2., 2.]])
    """

    def __init__(self, net: nn.Module, temperature: float, *, learn: bool) -> None:
        super().__init__()
        self.net = net
        log = torch.tensor([math.log(temperature)])
        self.log_temperature: Tensor
        if learn:
            self.log_temperature = nn.Parameter(log)
        else:
            self.register_buffer("log_temperature", log)

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        log = self.log_temperature.detach()
        return float((log.full_tensor() if hasattr(log, "full_tensor") else log).exp())

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to (N, classes)."""
        logits: Tensor = self.net(x) / self.log_temperature.exp()
        return logits


def classifier(settings: Settings, data: Dataset, device: torch.device) -> Classifier:
    """Build the network of a run as it starts, normalised.

    Args:
        settings: which network.
        data: for the shape of an image and the number of classes.
        device: where to put it.

    Returns:
        The network, divided by its temperature.

    Raises:
        ValueError: when the network does not take the data's images, or cannot be normalised.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_of(settings.seed, "weights"))
        net = build(settings.arch, data.input_shape, data.classes, **settings.architecture)
        net.to(device)
        if settings.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _check_logits(net, data, device)
        normalize(net, settings, data.input_shape)
    return Classifier(net, settings.temperature, learn=settings.learn_temperature).to(device)


class Trainer:
    """One run: its network, optimiser and position.

    Attributes:
        settings: what it computes.
        data: images and labels.
        team: the processes.
        classifier: the network, whole or dealt out over the processes.
        held: the Lipschitz constants that the network is held to; or why there are none.
        done: steps taken.
        seconds: spent on them, over all starts of the run.
    """

    def __init__(self, settings: Settings, data: Dataset, team: Team) -> None:
        self.settings, self.data, self.team = settings, data, team
        self.done, self.seconds, self._sums = 0, 0.0, [0.0, 0.0]
        if settings.batch_size % team.size:
            raise ValueError(
                f"batch_size: got {settings.batch_size} for {team.size} processes, expected a multiple; change it"
            )
        self.classifier = classifier(settings, data, team.device)
        self.held = held_constants(self.classifier.net, settings, data.input_shape, sharded=self._sharded)
        self._model = team.over_processes(self.classifier, settings.parallel)
        self.optimizer = self._optimizer()
        fp16 = settings.amp == "fp16"
        self._scaler = torch.amp.GradScaler(team.device.type, enabled=fp16)

    def _optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        tempered = [p for name, p in self.classifier.named_parameters() if name == "log_temperature"]
        others = [p for name, p in self.classifier.named_parameters() if name != "log_temperature"]
        groups = [{"params": others, "weight_decay": s.weight_decay}, {"params": tempered, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if s.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum, nesterov=s.momentum > 0)
        return (torch.optim.Adam if s.optimizer == "adam" else torch.optim.AdamW)(groups, lr=s.lr)

    @property
    def batch_size(self) -> int:
        """Images a step, over all processes."""
        whole = len(self.data.train_x) // self.team.size * self.team.size
        return min(self.settings.batch_size, whole)

    @property
    def steps_per_epoch(self) -> int:
        """Steps a pass over the images takes."""
        return len(self.data.train_x) // self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.epochs * self.steps_per_epoch

    def run(self) -> Iterator[float]:
        """Take the steps that are left.

        Yields:
            The loss of each, over all processes.

        Raises:
            FloatingPointError: when the loss is not finite.
        """
        order, epoch = torch.empty(0), -1
        while self.done < self.steps:
            if self.done // self.steps_per_epoch != epoch:
                epoch = self.done // self.steps_per_epoch
                generator = torch.Generator().manual_seed(seed_of(self.settings.seed, "order", epoch))
                order = torch.randperm(len(self.data.train_x), generator=generator)
            first = self.done % self.steps_per_epoch * self.batch_size
            if first == 0:
                self._sums = [0.0, 0.0]
            loss, hits = self.team.total(*self._step(order[first : first + self.batch_size]))
            loss /= self.team.size
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"loss: got {loss} at step {self.done + 1}, expected a finite number; lower lr, or raise the "
                    "temperature or the warm-up"
                )
            self._sums = [self._sums[0] + loss, self._sums[1] + hits]
            self.done += 1
            yield loss

    def epoch_means(self) -> tuple[float, float]:
        """Mean loss and training accuracy of the epoch so far."""
        taken = (self.done - 1) % self.steps_per_epoch + 1
        return self._sums[0] / taken, self._sums[1] / (taken * self.batch_size)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        warmup = round(self.settings.warmup * self.steps_per_epoch)
        return self.settings.lr * rate(self.done, self.steps, warmup, self.settings.schedule)

    def _step(self, rows: Tensor) -> tuple[float, float]:
        """Forward, backward, step; this process's loss, and how many of its images were classified right."""
        s, seed = self.settings, seed_of(self.settings.seed, "step", self.done)
        x, y = self._batch(rows, seed)
        torch.manual_seed(seed_of(seed, self.team.rank))  # of random layers
        self._model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.zero_grad()
        with self._autocast():
            loss, logits = training_loss(
                self._model, self.classifier, x, y, s, seed_of(seed, "a", self.team.rank), self._label_loss
            )
            if s.normalize == "penalty":
                loss = loss + s.penalty / 2 * spectral_penalty(self.classifier.net)
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return loss.item(), float((logits.argmax(1) == y).sum())

    def _label_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return label_loss(logits, y, self.settings, self.held, self.classifier.log_temperature.exp())

    def _batch(self, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """This process's share; the whole batch is augmented, so that processes change nothing in it."""
        x = augmented(self.data.train_x[rows], self.settings.augment, torch.Generator().manual_seed(seed))
        x, y = self.team.share(x), self.team.share(self.data.train_y[rows])
        layout = torch.channels_last if self.settings.channels_last else torch.preserve_format
        return x.to(self.team.device, memory_format=layout), y.to(self.team.device)

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES[self.settings.amp]
        return torch.autocast(self.team.device.type, dtype, enabled=self.settings.amp != "none")

    def accuracy(self) -> float:
        """Share of the test images that are classified right in eval mode; the processes share the work."""
        return self.tested()[0]

    @torch.no_grad()
    def tested(self, eps: Sequence[float] = ()) -> list[float]:
        """Accuracy on the test images, and at each L2 size the share that the constants held certify, unproven.

        Args:
            eps: sizes; only where there are such constants.

        Returns:
            1 + len(eps) numbers in [0, 1]. The processes share the work.
        """
        rows = self.team.share(torch.arange(len(self.data.test_x)))
        most = -(-len(self.data.test_x) // self.team.size)
        self._model.eval()
        certainly = self._certainly(eps)
        counts = [0] * (1 + len(eps))
        for start in range(0, most, _BATCH):
            some = rows[start : start + _BATCH]
            x = self.data.test_x[some if len(some) else rows[:1]].to(self.team.device)  # all take as many passes
            with self._autocast():
                logits = self.classifier(x)[: len(some)].float().cpu()
            held = certainly(logits, self.data.test_y[some])
            counts = [count + int(right.sum()) for count, right in zip(counts, held, strict=True)]
        self._model.train()
        return [count / len(self.data.test_x) for count in self.team.total(*counts)]

    def _certainly(self, eps: Sequence[float]) -> Callable[[Tensor, Tensor], list[Tensor]]:
        """What tells, of logits and labels, which are right, and which within each of the sizes."""
        held = self.held
        if not eps or isinstance(held, str):
            return lambda logits, y: [logits.argmax(1) == y] * (1 + len(eps))
        constants = held.constants().cpu() / self.classifier.temperature

        def judge(logits: Tensor, y: Tensor) -> list[Tensor]:
            radii = held.radii(logits, y, constants)
            return [logits.argmax(1) == y, *(radii > size for size in eps)]

        return judge

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on; with sharded weights, every process has to ask."""
        model, optimizer = self._states()
        penalised = self.settings.normalize == "penalty"
        return {
            "model": model,
            "optimizer": optimizer,
            "scaler": self._scaler.state_dict(),
            "penalty": penalty_state(self.classifier.net) if penalised else {},
            "done": self.done,
            "seconds": self.seconds,
            "sums": list(self._sums),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        if self._sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

            options = StateDictOptions(full_state_dict=True, strict=True)
            set_state_dict(
                self.classifier,
                self.optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=options,
            )
        else:
            self.classifier.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if state["penalty"]:
            load_penalty_state(self.classifier.net, state["penalty"])
        self.done, self.seconds, self._sums = state["done"], state["seconds"], list(state["sums"])

    @property
    def _sharded(self) -> bool:
        return self.team.size > 1 and self.settings.parallel == "fsdp"

    def _states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self._sharded:
            return self.classifier.state_dict(), self._by_name(self.optimizer.state_dict())
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_state_dict(self.classifier, self.optimizer, options=options)

    def _by_name(self, state: dict[str, Any]) -> dict[str, Any]:
        """The optimiser's state by the parameters' names, as that of sharded ones is, not by number."""
        names = {parameter: name for name, parameter in self.classifier.named_parameters()}
        known: dict[int, str] = {}
        for group, packed in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            known |= {i: names[p] for p, i in zip(group["params"], packed["params"], strict=True)}
        groups = [{**group, "params": [known[i] for i in group["params"]]} for group in state["param_groups"]]
        return {"state": {known[i]: value for i, value in state["state"].items()}, "param_groups": groups}


def _check_logits(net: nn.Module, data: Dataset, device: torch.device) -> None:
    """Check that the network takes the images, and has a logit for each class."""
    if any(parameter.is_inference() for parameter in net.parameters()):
        raise ValueError("arch: its parameters were made under torch.inference_mode; expected ordinary ones")
    x = data.train_x[:2].to(device)
    net.eval()
    try:
        with torch.no_grad():
            logits = net(x)
    except RuntimeError as error:
        raise ValueError(
            f"arch: the network does not take images of shape {data.input_shape} ({str(error).splitlines()[0]}); "
            "choose another network, or other data"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (len(x), data.classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"arch: got logits of shape {shape} for {len(x)} images, expected {(len(x), data.classes)}; change "
            "the network's last layer to the data's classes"
        )
    net.train()
