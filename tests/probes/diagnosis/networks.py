"""Three networks with their data, trained in seconds: a case of diagnosis starts from a copy of one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from batchnorm.lab.models import build
from batchnorm.lab.models.normalization import Normalization

Batch = Any
CLASSES = 10
WORDS = 6


class MLP(nn.Module):
    """Three hidden layers with batch normalization on 64 pixels; dropout, if any, is in front of the first of them."""

    def __init__(self, *, width: int = 32, dropout: float = 0.0, momentum: float | None = 0.1, **options: Any) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(64, width), nn.BatchNorm1d(width, momentum=momentum, **options)
        self.drop = nn.Dropout(dropout)
        self.fc2, self.bn2 = nn.Linear(width, width), nn.BatchNorm1d(width, momentum=momentum, **options)
        self.fc3, self.bn3 = nn.Linear(width, width), nn.BatchNorm1d(width, momentum=momentum, **options)
        self.out = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.fc1(x.flatten(1))))
        x = torch.relu(self.bn2(self.fc2(self.drop(x))))
        return self.out(torch.relu(self.bn3(self.fc3(self.drop(x)))))


class Speech(nn.Module):
    """Convolutions over padded frames, a mean over the valid ones: two inputs, a batch is a dict."""

    def __init__(self, *, width: int = 16, dropout: float = 0.0, momentum: float | None = 0.1, **options: Any) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(8, width, 5, padding=2), nn.BatchNorm1d(width, momentum=momentum, **options)
        self.drop = nn.Dropout(dropout)
        self.conv2, self.bn2 = (
            nn.Conv1d(width, width, 3, padding=1),
            nn.BatchNorm1d(width, momentum=momentum, **options),
        )
        self.conv3, self.bn3 = (
            nn.Conv1d(width, width, 3, padding=1),
            nn.BatchNorm1d(width, momentum=momentum, **options),
        )
        self.out = nn.Linear(width, WORDS)

    def forward(self, audio: Tensor, lengths: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(audio)))
        x = torch.relu(self.bn2(self.conv2(self.drop(x))))
        x = torch.relu(self.bn3(self.conv3(self.drop(x))))
        valid = torch.arange(x.shape[2]) < lengths[:, None]
        return self.out((x * valid[:, None]).sum(2) / lengths[:, None])


@dataclass
class Problem:
    """A way to make a network, its training and validation examples, and how a batch is given to it."""

    name: str
    make: Callable[..., nn.Module]
    train: Sequence[Any]
    validation: Sequence[Any]
    collate: Callable[[Sequence[Any]], Batch]
    options: dict[str, Any]
    target: Callable[[Batch], Tensor]
    epochs: int
    first: str
    """Name of the first batch normalization."""

    def batches(self, examples: Sequence[Any], size: int, seed: int | None = None) -> list[Batch]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        order = range(len(examples)) if seed is None else torch.randperm(len(examples), generator=generator).tolist()
        chosen = [examples[i] for i in order]
        return [self.collate(chosen[i : i + size]) for i in range(0, len(chosen) - size + 1, size)]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        output = (
            model(**{k: v for k, v in batch.items() if k != "target"}) if isinstance(batch, dict) else model(batch[0])
        )
        return nn.functional.cross_entropy(output, self.target(batch))


def _digits(shape: tuple[int, ...]) -> tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]:
    data = load_digits()
    x = (torch.tensor(data.data, dtype=torch.float32) / 16 - 0.3).view(-1, *shape)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [(x[i], int(data.target[i])) for i in order]
    return examples[:1200], examples[1200:]


def _pairs(examples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples])


def _words() -> tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]:
    """Words of 12 to 30 frames: for each class a pattern over channels that moves, in noise."""
    generator = torch.Generator().manual_seed(7)
    patterns = torch.randn(WORDS, 8, 6, generator=generator)
    examples = []
    for i in range(1200):
        word, length = i % WORDS, int(torch.randint(12, 31, (), generator=generator))
        x = 1.2 * torch.randn(8, length, generator=generator) + 0.5
        start = int(torch.randint(0, length - 6, (), generator=generator))
        x[:, start : start + 6] += patterns[word]
        examples.append((x, word))
    order = torch.randperm(len(examples), generator=generator).tolist()
    examples = [examples[i] for i in order]
    return examples[:800], examples[800:]


def padded(examples: Sequence[tuple[Tensor, int]], frames: int | None = None) -> dict[str, Tensor]:
    lengths = [x.shape[1] for x, _ in examples]
    width = max(lengths) if frames is None else frames
    audio = torch.stack([nn.functional.pad(x, (0, width - x.shape[1])) for x, _ in examples])
    return {"audio": audio, "lengths": torch.tensor(lengths), "target": torch.tensor([y for _, y in examples])}


def call_with_dict(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["audio"], batch["lengths"])


def cross_entropy_of_dict(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(output, batch["target"])


@cache
def problem(name: str) -> Problem:
    if name == "mlp":
        return Problem(name, MLP, *_digits((64,)), _pairs, {}, lambda batch: batch[1], 8, "bn1")
    if name == "resnet20":
        make = lambda **options: _resnet(**options)  # noqa: E731
        return Problem(name, make, *_digits((1, 8, 8)), _pairs, {}, lambda batch: batch[1], 8, "bn1")
    options = {"forward": call_with_dict, "loss": cross_entropy_of_dict}
    return Problem("speech", Speech, *_words(), padded, options, lambda batch: batch["target"], 8, "bn1")


PROBLEMS = ("mlp", "resnet20", "speech")


def _resnet(*, dropout: float = 0.0, momentum: float | None = 0.1, **options: Any) -> nn.Module:
    model = build("resnet20", Normalization("batch"), input_shape=(1, 8, 8), classes=CLASSES, width=0.25)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            model.set_submodule(name, nn.BatchNorm2d(layer.num_features, momentum=momentum, **options))
    if dropout:
        # In front of the batch normalization of the second block: on its convolution's input.
        for stage in (model.layer1, model.layer2, model.layer3):
            for block in stage:
                block.conv2 = nn.Sequential(nn.Dropout(dropout), block.conv2)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def fit(
    name: str, seed: int, *, epochs: int | None = None, size: int = 64, lr: float = 0.05,
    change: Callable[[Batch, int], Batch] | None = None, model: nn.Module | None = None, examples: Any = None,
    batches: Callable[[int], list[Batch]] | None = None, **options: Any,
) -> nn.Module:  # fmt: skip
    """Train with a rate that falls to 0; `change(batch, number)` has the last word on what is trained on."""
    what = problem(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = what.make(**options) if model is None else model
        optimizer = torch.optim.SGD(made.parameters(), lr=lr, momentum=0.9)
        number, epochs = 0, what.epochs if epochs is None else epochs
        for epoch in range(epochs):
            drawn = batches(epoch) if batches else what.batches(examples or what.train, size, 1000 * seed + epoch)
            for i, batch in enumerate(drawn):
                optimizer.param_groups[0]["lr"] = lr * (1 - (epoch + i / len(drawn)) / epochs)
                made.train()
                step(made, optimizer, what.loss(made, change(batch, number) if change else batch))
                number += 1
    return made.eval()


@cache
def _trained(name: str, seed: int) -> nn.Module:
    return fit(name, seed)


def trained(name: str, seed: int) -> nn.Module:
    """Return a copy of the healthy network."""
    return copy.deepcopy(_trained(name, seed))


def norms(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def training_step(name: str, lr: float = 0.01) -> Callable[[nn.Module, Batch], None]:
    """Return an ordinary training step: `training_step(model, batch)`."""

    def one(model: nn.Module, batch: Batch) -> None:
        model.train()
        learning = [p for p in model.parameters() if p.requires_grad]
        step(model, torch.optim.SGD(learning, lr=lr), problem(name).loss(model, batch))

    return one


@dataclass
class Case:
    """What `diagnose` is given, and what it must say."""

    cause: str
    model: nn.Module
    loader: Any
    options: dict[str, Any] = field(default_factory=dict)
    layer: str | None = None
    """The layer at fault, where it is one."""


def case(cause: str, name: str, model: nn.Module, loader: Any = None, layer: str | None = None, **options: Any) -> Case:
    what = problem(name)
    loader = what.batches(what.validation, 32, 5) if loader is None else loader
    return Case(cause, model, loader, {**what.options, **options}, layer)
