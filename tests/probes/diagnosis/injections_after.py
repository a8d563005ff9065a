"""The other half of the injected causes: written after the rules, from the list of causes alone, and not run before."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import batchnorm
from probes.diagnosis.networks import Case, case, fit, norms, padded, problem, trained, training_step


def _with_input(batch: Any, change: Any) -> Any:
    if isinstance(batch, dict):
        return {**batch, "audio": change(batch["audio"])}
    return (change(batch[0]), batch[1])


def _brighter(batch: Any) -> Any:
    return _with_input(batch, lambda x: 1.6 * x + 0.8)


def _layer(name: str, seed: int) -> str:
    names = list(norms(problem(name).make()))
    return names[(5 * seed + 1) % len(names)]


def buffers_lost(name: str, seed: int) -> Case:
    """A layer was renamed and the checkpoint loaded with strict=False; or the checkpoint holds parameters only."""
    model, fresh = trained(name, seed), problem(name).make()
    if seed == 2:
        checkpoint: dict[str, Any] = dict(model.named_parameters())
        fresh.load_state_dict(checkpoint, strict=False)
        return case("buffers-lost", name, fresh.eval(), state_dict=checkpoint)
    layer = _layer(name, seed)
    checkpoint = model.state_dict()
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        del checkpoint[f"{layer}.{buffer}"]
    fresh.load_state_dict(checkpoint, strict=False)
    return case("buffers-lost", name, fresh.eval(), layer=layer)


def momentum_zero(name: str, seed: int) -> Case:
    return case("momentum-zero", name, fit(name, seed, momentum=0.0))


def single_value_batch(name: str, seed: int) -> Case:
    """As a layer without torch's check does it: the unbiased variance of one value is 0 / 0."""
    model = trained(name, seed)
    layer = _layer(name, seed)
    norms(model)[layer].running_var.mul_(0.9).add_(0.1 * torch.zeros(()) / torch.zeros(()))
    return case("single-value-batch", name, model, layer=layer)


def freeze_undone(name: str, seed: int) -> Case:
    model, what, one = trained(name, seed), problem(name), training_step(name)
    for batch in what.batches(what.train, 64, seed)[:12]:
        one(model, _brighter(batch))
    model.train()
    for layer in norms(model).values():
        layer.eval()
    return case("freeze-undone", name, model, training_step=lambda m, b: one(m, _brighter(b)))


def frozen_on_other_domain(name: str, seed: int) -> Case:
    what = problem(name)
    model = batchnorm.freeze(trained(name, seed))
    return case("frozen-on-other-domain", name, model, [_brighter(b) for b in what.batches(what.validation, 32, 5)])


class Twice(nn.Module):
    """One network for two views of its input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor | None = None, lengths: Tensor | None = None, audio: Tensor | None = None) -> Tensor:
        view = audio if x is None else x
        rest = () if lengths is None else (lengths,)
        return self.net(view, *rest) + self.net(3 - 2 * view, *rest)


def several_distributions(name: str, seed: int) -> Case:
    torch.manual_seed(seed)
    return case("several-distributions", name, fit(name, seed, model=Twice(problem(name).make())))


def validation_in_train_mode(name: str, seed: int) -> Case:
    what = problem(name)

    def evaluation(model: nn.Module) -> None:
        model.train()
        with torch.no_grad():
            for batch in what.batches(what.validation, 32)[:4]:
                what.loss(model, batch)

    return case("validation-in-train-mode", name, trained(name, seed), evaluation=evaluation)


class ModelEMA(nn.Module):
    """An exponential average of parameters. (torch's AveragedModel, tried first, copies the buffers by now.)"""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)

    def update(self, model: nn.Module) -> None:
        with torch.no_grad():
            for mine, theirs in zip(self.module.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs)


def averaged_without_buffers(name: str, seed: int) -> Case:
    torch.manual_seed(seed)
    model = problem(name).make()
    average = ModelEMA(model)

    def change(batch: Any, _: int) -> Any:
        average.update(model)
        return batch

    fit(name, seed, model=model, change=change)
    return case("averaged-without-buffers", name, average.eval())


def buffers_averaged_wrongly(name: str, seed: int) -> Case:
    """Extrapolated like weights: twice one model's buffers minus those of another."""
    model, other = trained(name, seed), fit(name, seed + 5)
    with torch.no_grad():
        for layer, theirs in zip(norms(model).values(), norms(other).values(), strict=True):
            layer.running_mean.copy_(2 * layer.running_mean - theirs.running_mean)
            layer.running_var.copy_(2 * layer.running_var - theirs.running_var)
            layer.num_batches_tracked = 0.5 * (layer.num_batches_tracked + theirs.num_batches_tracked + 1)
    return case("buffers-averaged-wrongly", name, model)


def activation_dropped(name: str, seed: int) -> Case:
    """A layer with an activation of its own, converted to SyncBatchNorm."""
    torch.manual_seed(seed)
    original, layer = problem(name).make(), _layer(name, seed)
    old = norms(original)[layer]
    cls = batchnorm.BatchNorm2d if isinstance(old, nn.BatchNorm2d) else batchnorm.BatchNorm1d
    original.set_submodule(layer, cls(old.num_features, activation="tanh"))
    fit(name, seed, model=original)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(original))
    return case("activation-dropped", name, converted.eval(), layer=layer, reference=original)


def correlated_batches(name: str, seed: int) -> Case:
    """The samples of a batch share a gain and an offset, as frames of one recording do."""
    what = problem(name)

    def shared(batch: Any, number: int) -> Any:
        generator = torch.Generator().manual_seed(number)
        gain = 0.3 + 2 * torch.rand((), generator=generator)
        offset = 2 * torch.randn((), generator=generator)
        return _with_input(batch, lambda x: gain * x + offset)

    model = fit(name, seed, change=shared)
    drawn = what.batches(what.validation, 32, 5)
    return case("correlated-batches", name, model, [shared(b, 10_000 + i) for i, b in enumerate(drawn)])


def half_buffers(name: str, seed: int) -> Case:
    """A layer with large variances, and the whole model in float16."""
    model, what = trained(name, seed), problem(name)
    layer = _layer(name, seed)
    norm, before = norms(model)[layer], layer.replace("bn", "conv")
    before = before if before in dict(model.named_modules()) else layer.replace("bn", "fc")
    with torch.no_grad():
        factor = (4e5 / norm.running_var.max()).sqrt()
        for parameter in model.get_submodule(before).parameters():
            parameter.mul_(factor)
        norm.running_mean.mul_(factor)
        norm.running_var.mul_(factor**2)
    loader = [_with_input(b, Tensor.half) for b in what.batches(what.validation, 32, 5)]
    return case("half-buffers", name, model.half(), loader, layer=layer)


def other_eps(name: str, seed: int) -> Case:
    """Weights of a framework with eps 1e-3, in layers with torch's; the inputs are small."""
    what = problem(name)

    def small(batch: Any, _: int = 0) -> Any:
        return _with_input(batch, lambda x: 0.01 * x)

    model = fit(name, seed, change=small, eps=1e-3)
    for layer in norms(model).values():
        layer.eps = 1e-5
    return case("other-eps", name, model, [small(b) for b in what.batches(what.validation, 32, 5)])


def padding_counted(name: str, seed: int) -> Case | None:
    """The statistics come from batches that are padded to 300 frames, evaluation pads to the longest of the batch.

    (Training on 90 frames throughout, or in the last epoch, was tried first: evaluation is not worse for it.)
    """
    if name != "speech":
        return None
    model, what = trained(name, seed).train(), problem(name)
    with torch.no_grad():
        for k in range(0, len(what.train) - 31, 32):
            what.loss(model, padded(what.train[k : k + 32], 300))
    return case("padding-counted", name, model.eval())


class MinusBatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def not_batch_normalization(name: str, seed: int) -> Case:
    what = problem(name)
    torch.manual_seed(seed)
    model = what.make()
    last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    model.set_submodule(last, nn.Sequential(MinusBatchMean(), model.get_submodule(last)))
    fit(name, seed, model=model)
    return case("not-batch-normalization", name, model, what.batches(what.validation, 4, 5), layer=f"{last}.0")


INJECTIONS = (
    buffers_lost, momentum_zero, single_value_batch, freeze_undone, frozen_on_other_domain, several_distributions,
    validation_in_train_mode, averaged_without_buffers, buffers_averaged_wrongly, activation_dropped,
    correlated_batches, half_buffers, other_eps, padding_counted, not_batch_normalization,
)  # fmt: skip
