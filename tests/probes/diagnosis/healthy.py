"""Twenty healthy networks: no cause may be named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import batchnorm
from probes.diagnosis.networks import Case, case, fit, problem, trained, training_step


def plain(name: str, seed: int, evaluated: int = 32, **settings: object) -> Case:
    what = problem(name)
    model = fit(name, seed, **settings)  # type: ignore[arg-type]
    return case("", name, model, what.batches(what.validation, evaluated, 5))


def stepped(name: str, seed: int) -> Case:
    """With an ordinary training step and validation, in training mode as training leaves it."""
    what = problem(name)

    def evaluation(model: nn.Module) -> None:
        model.eval()
        what.loss(model, what.batches(what.validation, 32)[0])

    return case("", name, trained(name, seed).train(), training_step=training_step(name), evaluation=evaluation)


def converted(name: str, seed: int) -> Case:
    return case("", name, batchnorm.convert(trained(name, seed)))


def frozen(name: str, seed: int) -> Case:
    """Frozen on the data that it is evaluated on, weights of the layers too."""
    return case("", name, batchnorm.freeze(trained(name, seed), affine=True), training_step=training_step(name))


def recalibrated(name: str, seed: int) -> Case:
    what = problem(name)
    model = batchnorm.recalibrate(
        trained(name, seed), what.batches(what.train, 64), forward=lambda m, b: what.loss(m, b)
    )
    return case("", name, model)


def synchronized(name: str, seed: int) -> Case:
    model = trained(name, seed)
    return case("", name, nn.SyncBatchNorm.convert_sync_batchnorm(model), reference=trained(name, seed))


def on_training_data(name: str, seed: int) -> Case:
    what = problem(name)
    return case("", name, trained(name, seed), what.batches(what.train, 64, 3))


def class_sorted_but_tracking(name: str, seed: int) -> Case:
    what = problem(name)
    ordered = sorted(what.validation, key=lambda example: example[1])
    return case("", name, trained(name, seed), what.batches(ordered, 32))


def dropout_behind(name: str, seed: int) -> Case:
    torch.manual_seed(seed)
    model = problem(name).make()
    last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    model.set_submodule(last, nn.Sequential(nn.Dropout(0.3), model.get_submodule(last)))
    return case("", name, fit(name, seed, model=model))


HEALTHY: dict[str, Callable[[], Case]] = {
    "mlp, batches of 128": partial(plain, "mlp", 11, size=128, epochs=16),
    "mlp, batches of 16, evaluated in 8": partial(plain, "mlp", 12, evaluated=8, size=16),
    "mlp, momentum 0.03": partial(plain, "mlp", 13, momentum=0.03, epochs=12),
    "mlp, momentum 0.3": partial(plain, "mlp", 14, momentum=0.3),
    "mlp, wide": partial(plain, "mlp", 15, width=128),
    "mlp, evaluated in 128": partial(plain, "mlp", 16, evaluated=128),
    "resnet20, batches of 32": partial(plain, "resnet20", 17, size=32),
    "resnet20, evaluated in 4": partial(plain, "resnet20", 18, evaluated=4),
    "resnet20, momentum 0.2": partial(plain, "resnet20", 19, momentum=0.2),
    "speech, batches of 32": partial(plain, "speech", 20, size=32),
    "speech, wide, evaluated in 64": partial(plain, "speech", 21, width=32, evaluated=64),
    "speech, momentum 0.2": partial(plain, "speech", 22, momentum=0.2),
    "mlp, with a training step": partial(stepped, "mlp", 23),
    "resnet20, with a training step": partial(stepped, "resnet20", 24),
    "resnet20, converted": partial(converted, "resnet20", 25),
    "speech, frozen": partial(frozen, "speech", 26),
    "mlp, recalibrated": partial(recalibrated, "mlp", 27),
    "resnet20, SyncBatchNorm": partial(synchronized, "resnet20", 28),
    "speech, on training data": partial(on_training_data, "speech", 29),
    "mlp, validation sorted by class": partial(class_sorted_but_tracking, "mlp", 30),
    "mlp, dropout behind the last": partial(dropout_behind, "mlp", 31),
}
