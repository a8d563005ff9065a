"""Warnings while training: one for each cause, none in a healthy training, nothing left behind."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.lab.models import build
from batchnorm.lab.models.normalization import Normalization
from batchnorm.probes.diagnosis import StatisticsWarning
from probes.diagnosis.networks import norms, problem, step, trained


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


def warned(model: nn.Module, change: Callable[[int, Any], Any] = lambda i, b: b, forwards: int = 1) -> list[str]:
    """Train 40 steps, looking at every fourth forward; return the names of the causes."""
    what = problem("mlp")
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.01)
    drawn = what.batches(what.train, 32, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with batchnorm.watch(model.train(), every=4):
            for i in range(40):
                batch = change(i, drawn[i % len(drawn)])
                for _ in range(forwards - 1):
                    model(batch[0])
                step(model, optimizer, what.loss(model, batch))
    assert all(issubclass(w.category, StatisticsWarning) for w in caught)
    return [str(w.message).split(": ")[1] for w in caught]


@pytest.mark.parametrize("convert", [False, True])
def test_a_healthy_training_is_quiet(convert: bool) -> None:
    model = problem("mlp").make()
    assert warned(batchnorm.convert(model) if convert else model) == []


def _overflowing(model: nn.Module) -> dict[str, Any]:
    return {"change": lambda i, b: (b[0] * (torch.inf if i == 9 else 1), b[1])}


def _zero(model: nn.Module) -> dict[str, Any]:
    for layer in norms(model).values():
        layer.momentum = 0.0
    return {}


def _half_frozen(model: nn.Module) -> dict[str, Any]:
    for layer in norms(model).values():
        layer.weight.requires_grad_(False)
        layer.bias.requires_grad_(False)
    return {}


def _twice(model: nn.Module) -> dict[str, Any]:
    return {"forwards": 2}


def _drifting(model: nn.Module) -> dict[str, Any]:
    for layer in norms(model).values():
        layer.momentum = 0.01
    return {"change": lambda i, b: (b[0] + 0.5 * i, b[1])}


@pytest.mark.parametrize(
    ("prepare", "cause"),
    [
        (_overflowing, "nonfinite-batch"),
        (_zero, "momentum-zero"),
        (_half_frozen, "frozen-by-requires-grad"),
        (_twice, "several-updates"),
        (_drifting, "drift"),
    ],
)
def test_each_cause_is_said_once(prepare: Callable[[nn.Module], dict[str, Any]], cause: str) -> None:
    model = trained("mlp", 0)
    assert warned(model, **prepare(model)) == [cause]


def test_training_is_the_same_and_nothing_stays() -> None:
    watched, plain = trained("mlp", 0), trained("mlp", 0)
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in plain.modules()]
    warned(watched)
    what = problem("mlp")
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01)
    drawn = what.batches(what.train, 32, 0)
    for i in range(40):
        step(plain.train(), optimizer, what.loss(plain, drawn[i % len(drawn)]))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in watched.modules()] == hooks
    with pytest.raises(RuntimeError), batchnorm.watch(plain):
        raise RuntimeError
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in plain.modules()] == hooks


def test_the_mean_of_a_batch_follows_from_the_buffers() -> None:
    """What `watch` computes without a hook on the layer, against the batch itself."""
    layer = nn.BatchNorm1d(3)
    x: Tensor = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    before = copy.deepcopy(layer.running_mean)
    layer(x)
    torch.testing.assert_close((layer.running_mean - 0.9 * before) / 0.1, x.mean(0))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: batchnorm.watch(nn.Linear(2, 2)), ValueError, "needs a model with batch normalization"),
        (lambda: batchnorm.watch("model"), TypeError, "watch takes a torch.nn.Module"),
        (lambda: batchnorm.watch(nn.BatchNorm1d(2), every=0), ValueError, "every must be a positive number"),
    ],
)
def test_bad_input(make: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_it_takes_less_than_a_fiftieth_of_a_step() -> None:
    """Processor time of the hooks of 100 forwards, one of them with a look, against 100 steps of a ResNet-20."""
    model = build("resnet20", Normalization("batch"), input_shape=(3, 32, 32), classes=10)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step(model, optimizer, nn.functional.cross_entropy(model(x), y))
    began = time.process_time()
    step(model, optimizer, nn.functional.cross_entropy(model(x), y))
    of_step = time.process_time() - began
    with batchnorm.watch(model) as watching:
        began = time.process_time()
        for _ in range(100):
            watching._begin(model)
            watching._end()
            watching._stepped(optimizer)
        of_watch = time.process_time() - began
    assert watching._forwards == 100
    assert of_watch < 0.02 * 100 * of_step
