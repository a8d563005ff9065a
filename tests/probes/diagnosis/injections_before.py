"""Half of the injected causes, written and committed before any rule of the diagnosis was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from probes.diagnosis.networks import Case, case, fit, norms, problem, trained, training_step


def never_written(name: str, seed: int) -> Case:
    model = trained(name, seed)
    for layer in norms(model).values():
        layer.reset_running_stats()
    return case("never-written", name, model)


def too_few_steps(name: str, seed: int) -> Case:
    return case("too-few-steps", name, fit(name, seed, momentum=0.003))


def momentum_reversed(name: str, seed: int) -> Case:
    return case("momentum-reversed", name, fit(name, seed, momentum=0.99, size=8, epochs=4))


def few_values(name: str, seed: int) -> Case:
    size = {"mlp": 3, "resnet20": 2, "speech": 1}[name]
    what = problem(name)
    model = fit(name, seed, size=size, epochs=4, lr=0.01)
    return case("few-values", name, model, what.batches(what.validation[:300], size, 5))


def nonfinite_batch(name: str, seed: int) -> Case:
    """One batch overflows inside the network, in training mode; the optimizer's step was skipped."""
    model, what = trained(name, seed), problem(name)
    layer = sorted(norms(model))[seed % len(norms(model))]
    hook = norms(model)[layer].register_forward_pre_hook(lambda _, args: (args[0] * torch.inf,))
    with torch.no_grad():
        what.loss(model.train(), what.batches(what.train[:64], 64)[0])
    hook.remove()
    return case("nonfinite-batch", name, model.eval(), layer=layer)


def _brighter(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {**batch, "audio": batch["audio"] * 1.7 + 1.0 * (batch["audio"] != 0)}
    return (batch[0] * 1.7 + 1.0, batch[1])


def frozen_by_requires_grad(name: str, seed: int) -> Case:
    """A pretrained network, batch normalization "frozen", is trained further on other data."""
    model = trained(name, seed)
    for layer in norms(model).values():
        layer.weight.requires_grad_(False)
        layer.bias.requires_grad_(False)
    one = training_step(name)
    what = problem(name)
    for batch in what.batches(what.train, 64, seed)[:12]:
        one(model, _brighter(batch))
    return case("frozen-by-requires-grad", name, model.eval(), training_step=lambda m, b: one(m, _brighter(b)))


def last_domain(name: str, seed: int) -> Case:
    """Two domains in turns, each batch of one; the last half of the last epoch was of the second alone."""
    what = problem(name)

    def batches(epoch: int) -> list[Any]:
        drawn = what.batches(what.train, 32, 1000 * seed + epoch)
        turns = [_brighter(b) if i % 2 else b for i, b in enumerate(drawn)]
        return [*turns, *map(_brighter, drawn)] if epoch == 5 else turns

    model = fit(name, seed, batches=batches, epochs=6)
    drawn = what.batches(what.validation, 32, 5)
    return case("last-domain", name, model, [_brighter(b) if i % 2 else b for i, b in enumerate(drawn)])


def several_updates(name: str, seed: int) -> Case:
    """Sharpness-aware minimization: two forwards of one batch, one step."""

    def one(model: nn.Module, batch: Any) -> None:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        problem(name).loss(model, batch).backward()
        with torch.no_grad():
            former = [p.clone() for p in model.parameters()]
            for p in model.parameters():
                p += 0.05 * p.grad / (p.grad.norm() + 1e-12)
        optimizer.zero_grad()
        problem(name).loss(model, batch).backward()
        with torch.no_grad():
            for p, value in zip(model.parameters(), former, strict=True):
                p.copy_(value)
        optimizer.step()

    return case("several-updates", name, trained(name, seed), training_step=one)


class Stubborn(nn.BatchNorm1d):
    """A layer that does not hear train() and eval()."""

    def train(self, mode: bool = True) -> Stubborn:
        return self


def submodule_not_in_eval(name: str, seed: int) -> Case:
    model, what = trained(name, seed), problem(name)
    layer = sorted(norms(model))[seed % len(norms(model))]
    norm = norms(model)[layer]
    cls = type("Stubborn", (type(norm),), {"train": Stubborn.train})
    norm.training = True
    norm.__class__ = cls
    return case("submodule-not-in-eval", name, model.eval(), what.batches(what.validation[:300], 4, 5), layer=layer)


def weights_averaged(name: str, seed: int) -> Case:
    """The mean of the weights of four networks that were trained on from one; the buffers of the first."""
    others = [fit(name, 10 * seed + k, model=trained(name, seed), lr=0.1, epochs=5) for k in range(4)]
    model = copy.deepcopy(others[0])
    with torch.no_grad():
        for p, *all_of_them in zip(model.parameters(), *(m.parameters() for m in others), strict=True):
            p.copy_(torch.stack(all_of_them).mean(0))
    return case("weights-averaged", name, model)


def class_sorted(name: str, seed: int) -> Case:
    """The network has no running statistics, and the evaluation reads one class after the other."""
    what = problem(name)
    model = fit(name, seed, track_running_stats=False)
    ordered = sorted(what.validation, key=lambda example: example[1])
    return case("class-sorted", name, model, what.batches(ordered, 32))


def dropout_before(name: str, seed: int) -> Case:
    return case("dropout-before", name, fit(name, seed, dropout=0.5))


def other_preprocessing(name: str, seed: int) -> Case:
    """Evaluation forgets the normalization of the inputs."""
    what = problem(name)
    model = trained(name, seed)
    if name == "speech":
        loader = [{**b, "audio": b["audio"] * 8} for b in what.batches(what.validation, 32, 5)]
    else:
        loader = [((x + 0.3) * 16, y) for x, y in what.batches(what.validation, 32, 5)]
    return case("other-preprocessing", name, model, loader, layer=what.first)


def no_running_statistics(name: str, seed: int) -> Case:
    what = problem(name)
    model = fit(name, seed, track_running_stats=False)
    return case("no-running-statistics", name, model, what.batches(what.validation, 4, 5))


def accumulation(name: str, seed: int) -> Case:
    """Sixteen micro-batches of two or four are one step."""
    what = problem(name)

    def one(model: nn.Module, batch: Any) -> None:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        optimizer.zero_grad()
        if isinstance(batch, dict):
            parts = [{k: v[i : i + 4] for k, v in batch.items()} for i in range(0, 32, 4)]
        else:
            parts = [(batch[0][i : i + 4], batch[1][i : i + 4]) for i in range(0, 32, 4)]
        for part in parts:
            (what.loss(model, part) / len(parts)).backward()
        optimizer.step()

    return case("accumulation", name, fit(name, seed, size=4, epochs=3, lr=0.01), training_step=one)


INJECTIONS = (
    never_written, too_few_steps, momentum_reversed, few_values, nonfinite_batch, frozen_by_requires_grad, last_domain,
    several_updates, submodule_not_in_eval, weights_averaged, class_sorted, dropout_before, other_preprocessing,
    no_running_statistics, accumulation,
)  # fmt: skip
