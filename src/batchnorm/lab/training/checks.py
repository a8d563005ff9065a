"""The border of a training: what each setting must be, said in one line when it is not."""

import math
from dataclasses import Field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from batchnorm.lab.errors import LabError

POSITIVE = ("lr", "norm_eps", "norm_momentum", "optimizer_eps", "clip_norm", "clip_value", "weight_std", "width")
NOT_NEGATIVE = ("l1", "l2", "final_lr", "decay", "resized_crop", "mixup")
#: Shares that may be 0, and must stay below 1.
SHARES = (
    *("validation", "dropout", "stochastic_depth", "label_smoothing"),
    *("momentum", "beta1", "beta2", "square_decay"),
)
AT_LEAST = {
    0: ("seed", "split_seed", "warmup_steps", "train_subset", "crop", "cutout"),
    1: (
        *("image_size", "norm_groups", "convolutions", "accumulate", "epochs", "steps", "threads"),
        *("population_batches", "evaluate_every", "log_every", "probe_every", "checkpoint_every"),
    ),
    2: ("batch_size",),
}


def check(config: Any) -> None:
    """Check a TrainConfig: types first, as a TOML file may hold anything, then ranges, then what goes together.

    Parameters
    ----------
    config : TrainConfig
        What was asked.

    Raises
    ------
    LabError
        The first setting that cannot work.
    """
    for field in fields(config):
        _check_type(field, getattr(config, field.name))
    for name in POSITIVE:
        _require(name, getattr(config, name), lambda value: 0 < value < math.inf, "a finite number above 0")
    for name in NOT_NEGATIVE:
        _require(name, getattr(config, name), lambda value: 0 <= value < math.inf, "a finite number, at least 0")
    for name in SHARES:
        _require(name, getattr(config, name), lambda value: 0 <= value < 1, "at least 0 and below 1")
    for least, names in AT_LEAST.items():
        for name in names:
            _require(name, getattr(config, name), lambda value, least=least: value >= least, f"at least {least}")
    for name in ("seed", "split_seed"):
        _require(name, getattr(config, name), lambda value: value < 2**32, "below 2**32")
    _require("norm_momentum", config.norm_momentum, lambda value: value <= 1, "at most 1, the weight of the new batch")
    _require("target_accuracy", config.target_accuracy, lambda value: 0 < value <= 1, "above 0 and at most 1")
    _require(
        "milestones",
        config.milestones,
        lambda at: bool(at) and all(0 < m < 1 for m in at) and list(at) == sorted(set(at)),
        "increasing shares of the steps, between 0 and 1",
    )
    if len(set(config.probes)) < len(config.probes):
        raise LabError(f"probes must name each probe once; got {' '.join(config.probes)}")
    if config.epochs is not None and config.steps is not None:
        raise LabError(f"give epochs or steps, not both; got epochs {config.epochs} and steps {config.steps}")
    if config.batch_size is not None and config.batch_size < 2 * config.accumulate:
        raise LabError(
            f"each of the {config.accumulate} pieces of a batch needs two examples, as one has no variance; "
            f"got a batch_size of {config.batch_size}; take a larger batch_size or a smaller accumulate"
        )


def _require(name: str, value: Any, holds: Any, what: str) -> None:
    # Written so that nan, which compares false with everything, is refused too.
    if value is not None and not holds(value):
        raise LabError(f"{name} must be {what}; got {value}")


def _check_type(field: Field[Any], value: Any) -> None:
    """Compare a value with the annotation of its field; an integer will do for a float."""
    if not _fits(value, field.type):
        raise LabError(f"{field.name} must be {_say(field.type)}; got {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in {Union, UnionType}:
        return any(_fits(value, one) for one in get_args(kind))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind is None or kind is type(None):
        return value is None
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)


def _say(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in {Union, UnionType}:
        return " or ".join(_say(one) for one in get_args(kind) if one is not type(None))
    if origin is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if origin is tuple:
        return f"a list, each {_say(get_args(kind)[0])}"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    return names.get(kind, "a path")
