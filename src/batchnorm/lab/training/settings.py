"""A config from a mapping: a TOML file, or the config.json of a run. Nothing here imports torch."""

import difflib
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from batchnorm.lab.errors import LabError
from batchnorm.lab.files import jsonable, reason_of
from batchnorm.lab.training.config import MAY_CHANGE, TrainConfig

#: What other trainers call a setting.
SYNONYMS = {
    "lr": ("learning_rate",),
    "l2": ("weight_decay", "wd"),
    "data": ("dataset",),
    "model": ("arch", "network"),
    "optimizer": ("optim",),
    "schedule": ("scheduler", "lr_schedule", "lr_scheduler"),
    "decay": ("gamma",),
    "precision": ("amp",),
    "clip_norm": ("gradient_clip", "grad_clip", "max_norm"),
    "norm_momentum": ("bn_momentum",),
    "norm_eps": ("bn_eps",),
    "warmup_steps": ("warmup",),
    "log_every": ("log_interval",),
}


def read_toml(path: Path) -> TrainConfig:
    """Read a TOML file of settings; those that it does not name keep their defaults.

    Parameters
    ----------
    path : Path
        The file: one flat table, keys as the flags with ``_`` or ``-``. Relative paths in it are relative to the
        working directory, as on the command line.

    Returns
    -------
    TrainConfig

    Raises
    ------
    LabError
        The file cannot be read, or a key or a value is not one of a training.
    """
    try:
        with path.open("rb") as file:
            mapping = tomllib.load(file)
    except OSError as error:
        raise LabError(f"config must be a TOML file; {path} cannot be read: {reason_of(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LabError(f"{path} is not TOML in UTF-8: {error}") from error
    return from_mapping({key.replace("-", "_"): value for key, value in mapping.items()}, str(path))


def from_mapping(mapping: Mapping[str, Any], source: str) -> TrainConfig:
    """Make a config of a mapping, where lists stand for tuples and texts for paths.

    Parameters
    ----------
    mapping : dict
        Settings by name.
    source : str
        Where they come from, for the message.

    Returns
    -------
    TrainConfig

    Raises
    ------
    LabError
        A key or a value is not one of a training.
    """
    kinds = {field.name: field.type for field in fields(TrainConfig)}
    settings = {}
    for key, value in mapping.items():
        if key not in kinds:
            raise LabError(f"{source} sets {key!r}, which is no setting of a training; {nearest(key, kinds)}")
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(value, str) and Path in get_args(kinds[key]):
            value = Path(value)
        settings[key] = value
    try:
        return TrainConfig(**settings)
    except LabError as error:
        raise LabError(f"{source}: {error}") from None


def nearest(key: str, known: Iterable[str], prefix: str = "") -> str:
    """Say which setting was probably meant, by what other trainers call it, else by its letters."""
    meant = [name for name, others in SYNONYMS.items() if key.replace("-", "_") in others]
    near = next(iter(meant or difflib.get_close_matches(key, known, n=1)), None)
    return f"did you mean {prefix + near!r}?" if near else "batchnorm train --help lists them"


def command_line(config: TrainConfig) -> str:
    """Write the command that repeats a training, with every setting, so that it outlives a change of defaults.

    Parameters
    ----------
    config : TrainConfig
        Resolved. ``out`` is left out: a repetition goes into a new directory.

    Returns
    -------
    str
    """
    words = ["batchnorm", "train"]
    for field in fields(config):
        value, flag = getattr(config, field.name), field.name.replace("_", "-")
        if field.type is bool:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif field.name != "out" and value is not None:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def asked_command(command: str, config: Any) -> str:
    """Write a command as it was asked for: the flags of ``config``, a dataclass, that differ from their defaults.

    Parameters
    ----------
    command : str
        Its name, such as "train".
    config : dataclass instance
        The settings, not resolved. ``out`` and ``resume`` are left out: a repetition goes into a new directory.

    Returns
    -------
    str
    """
    words = ["batchnorm", command]
    for field in fields(config):
        value, flag = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default or field.name in {"out", "resume"}:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple) and value and isinstance(value[0], tuple):  # a flag that is given again and again
            words += [word for each in value for word in (f"--{flag}", *map(str, each))]
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def with_length(config: TrainConfig, *, epochs: bool, steps: bool) -> TrainConfig:
    """Make room for a length that will be given otherwise: epochs for steps, and steps for epochs."""
    if epochs:
        config = replace(config, steps=None)
    if steps:
        config = replace(config, epochs=None)
    return config


def check_resumption(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Compare the config of a run with the one it is to go on with.

    Parameters
    ----------
    before, now : TrainConfig
        Resolved.

    Returns
    -------
    list of str
        Names of the settings that differ, as they may.

    Raises
    ------
    LabError
        Others differ too.
    """
    differ = [
        field.name
        for field in fields(TrainConfig)
        if jsonable(getattr(before, field.name)) != jsonable(getattr(now, field.name))
    ]
    if refused := [name for name in differ if name not in MAY_CHANGE]:
        what = ", ".join(f"{name} (was {getattr(before, name)}, now {getattr(now, name)})" for name in refused)
        raise LabError(
            f"a run goes on with the settings it began with, and these differ: {what}; leave them out, or begin "
            f"another run; what may differ: {', '.join(MAY_CHANGE)}"
        )
    return differ
