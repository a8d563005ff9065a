"""Two causes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from probes.diagnosis import injections_after, injections_before
from probes.diagnosis.networks import Case, norms, training_step


def _lost_too(given: Case) -> Case:
    """Put the buffers of the second layer back to the start."""
    list(norms(given.model).values())[1].reset_running_stats()
    return given


def _preprocessed_and_lost(name: str, seed: int) -> Case:
    return _lost_too(injections_before.other_preprocessing(name, seed))


def _reversed_and_updated(name: str, seed: int) -> Case:
    given = injections_before.momentum_reversed(name, seed)
    return replace(given, options={**given.options, **_step_of(injections_before.several_updates(name, seed))})


def _few_steps_and_validation(name: str, seed: int) -> Case:
    given = injections_before.too_few_steps(name, seed)
    options = injections_after.validation_in_train_mode(name, seed).options
    return replace(given, options={**given.options, "evaluation": options["evaluation"]})


def _dropout_and_lost(name: str, seed: int) -> Case:
    given = injections_before.dropout_before(name, seed)
    return _lost_too(given)


def _frozen_and_overflow(name: str, seed: int) -> Case:
    model = injections_before.nonfinite_batch(name, seed).model
    for layer in norms(model).values():
        layer.weight.requires_grad_(False)
        layer.bias.requires_grad_(False)
    return replace(injections_before.nonfinite_batch(name, seed), model=model, options={
        **injections_before.nonfinite_batch(name, seed).options, "training_step": training_step(name)})  # fmt: skip


def _zero_and_accumulated(name: str, seed: int) -> Case:
    given = injections_after.momentum_zero(name, seed)
    return replace(given, options={**given.options, **_step_of(injections_before.accumulation(name, seed))})


def _step_of(given: Case) -> dict[str, Any]:
    return {"training_step": given.options["training_step"]}


PAIRS: dict[tuple[str, str], Callable[[str, int], Case]] = {
    ("other-preprocessing", "buffers-lost"): _preprocessed_and_lost,
    ("momentum-reversed", "several-updates"): _reversed_and_updated,
    ("too-few-steps", "validation-in-train-mode"): _few_steps_and_validation,
    ("dropout-before", "buffers-lost"): _dropout_and_lost,
    ("nonfinite-batch", "frozen-by-requires-grad"): _frozen_and_overflow,
    ("momentum-zero", "accumulation"): _zero_and_accumulated,
}
