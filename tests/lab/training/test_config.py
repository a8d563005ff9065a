"""What a training is asked for: refusals that say what to do, files and flags that agree, defaults by recipe."""

from __future__ import annotations

import math
import shlex
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from batchnorm.lab import cli
from batchnorm.lab.errors import LabError
from batchnorm.lab.training import TrainConfig
from batchnorm.lab.training.checks import AT_LEAST, NOT_NEGATIVE, POSITIVE, SHARES
from batchnorm.lab.training.config import MAY_CHANGE, ProbeName
from batchnorm.lab.training.recipes import resolve, resolve_cadence
from batchnorm.lab.training.schedules import make_schedule
from batchnorm.lab.training.settings import command_line, from_mapping, read_toml
from batchnorm.probes import DEFAULT, PROBES
from batchnorm.reference import schedules as reference


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": math.nan}, "lr must be a finite number above 0; got nan"),
        ({"lr": 0.0}, "lr must be a finite number above 0; got 0.0"),
        ({"lr": "fast"}, "lr must be a number; got 'fast'"),
        ({"epochs": 2.5}, "epochs must be an integer; got 2.5"),
        ({"convert": 1}, "convert must be true or false; got 1"),
        ({"batch_size": True}, "batch_size must be an integer; got True"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, momentum, nesterov, adagrad"),
        ({"probes": ("shifts",)}, "probes must be a list, each one of activations"),
        ({"probes": ("shift", "shift")}, "probes must name each probe once"),
        ({"milestones": (0.5, 0.25)}, "milestones must be increasing shares"),
        ({"milestones": ()}, "milestones must be increasing shares"),
        ({"epochs": 2, "steps": 3}, "give epochs or steps, not both"),
        ({"batch_size": 4, "accumulate": 3}, "each of the 3 pieces of a batch needs two examples"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1; got 1.0"),
        ({"norm_momentum": 1.5}, "norm_momentum must be at most 1"),
        ({"seed": 2**32}, "seed must be below 2**32; got 4294967296"),
        ({"split_seed": 2**32}, "split_seed must be below 2**32"),
        ({"target_accuracy": 95.0}, "target_accuracy must be above 0 and at most 1; got 95.0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings, message) -> None:
    with pytest.raises(LabError) as error:
        TrainConfig(**settings)
    assert message in str(error.value)


def test_lists_of_settings_name_settings() -> None:
    known = {field.name for field in fields(TrainConfig)}
    assert {*POSITIVE, *NOT_NEGATIVE, *SHARES, *MAY_CHANGE, *sum(AT_LEAST.values(), ())} <= known
    assert set(ProbeName.__args__) == set(PROBES)
    assert TrainConfig().probes == DEFAULT


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate = 1", "sets 'learning_rate', which is no setting of a training; did you mean 'lr'?"),
        ("batchsize = 1", "did you mean 'batch_size'?"),
        ("qqqq = 1", "batchnorm train --help lists them"),
        ("lr = -1", "run.toml: lr must be a finite number above 0; got -1"),
        ("lr = ", "run.toml is not TOML in UTF-8"),
        ("# caf\udce9", "run.toml is not TOML in UTF-8: 'utf-8' codec can't decode byte 0xe9"),
        ("[optimizer]\nlr = 1", "optimizer must be one of"),
    ],
)
def test_a_file_that_cannot_work_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "run.toml").write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(LabError) as error:
        read_toml(tmp_path / "run.toml")
    assert message in str(error.value)


def _parsed(*arguments: str) -> TrainConfig:
    command = cli._parse(["train", *arguments])
    return command.settings()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--weight-decay=1", "--weight-decay is no flag of batchnorm train; did you mean '--l2'?"),
        ("--modle", "did you mean '--model'?"),
        ("--no-epochs", "--no-epochs is no flag"),
        ("--qqqq", "batchnorm train --help lists them"),
        ("--lr", "Missing value for argument '--lr'"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_one_that_was_meant(flag: str, message: str) -> None:
    with pytest.raises(LabError) as error:
        _parsed(flag)
    assert message in str(error.value)
    assert _parsed("--batch_size=32", "--no-convert", "--probes").batch_size == 32


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('lr = 0.5\nbatch-size = 32\nprobes = ["shift"]\nout = "there"\nepochs = 3\nconvert = true\n')
    config = _parsed("--config", str(file), "--lr", "0.25", "--steps", "7", "--no-convert")
    assert (config.lr, config.batch_size, config.probes, config.out) == (0.25, 32, ("shift",), Path("there"))
    assert (config.steps, config.epochs, config.convert, config.seed) == (7, None, False, 0)
    assert _parsed("--config", str(file)) == read_toml(file)
    assert _parsed("--config", str(file), "--probes") == TrainConfig(
        lr=0.5, batch_size=32, probes=(), out=Path("there"), epochs=3, convert=True
    )


def test_the_command_of_a_run_repeats_it() -> None:
    asked = TrainConfig(data="cifar10", model="resnet20", probes=(), hidden=None, channels_last=True, clip_norm=1.5)
    resolved = resolve_cadence(resolve(asked), steps=1000, steps_per_epoch=100)
    program, command, *arguments = shlex.split(command_line(resolved))
    assert (program, command) == ("batchnorm", "train")
    assert _parsed(*arguments) == resolved


def test_config_json_gives_the_config_back() -> None:
    from batchnorm.lab.files import jsonable

    config = resolve(TrainConfig(out=Path("here"), hidden=(3, 4)))
    assert from_mapping(jsonable({f.name: getattr(config, f.name) for f in fields(config)}), "config.json") == config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("momentum", 0.1, 64, 20, "cosine", 1)),
        ({"norm": "none"}, ("momentum", 0.01, 64, 20, "cosine", 1)),
        ({"norm": "none", "optimizer": "adam"}, ("adam", 0.001, 64, 20, "cosine", 1)),
        ({"norm": "none", "lr": 0.3}, ("momentum", 0.3, 64, 20, "cosine", 1)),
        ({"data": "cifar10", "model": "resnet56"}, ("momentum", 0.1, 128, 164, "step", None)),
        ({"data": "cifar10", "model": "densenet40", "epochs": 1}, ("nesterov", 0.1, 64, 1, "step", None)),
        ({"data": "cifar100", "model": "resnet20"}, ("momentum", 0.1, 128, 164, "step", None)),
        ({"data": "cifar10", "model": "mine:net", "steps": 9}, ("momentum", 0.1, 64, None, "cosine", None)),
    ],
)
def test_what_nobody_said_comes_from_the_recipe(settings, expected) -> None:
    config = resolve(TrainConfig(**settings))
    found = config.optimizer, config.lr, config.batch_size, config.epochs, config.schedule, config.threads
    assert found == expected
    assert (config.flip, config.crop) == ((True, 4) if config.data.startswith("cifar10") else (False, 0))


def test_cadences_follow_the_length() -> None:
    config = resolve_cadence(TrainConfig(), steps=10_000, steps_per_epoch=390)
    assert (config.evaluate_every, config.checkpoint_every, config.probe_every) == (390, 390, 100)
    with pytest.raises(LabError, match="warmup_steps must be below the steps of the run, 5; got 5"):
        resolve_cadence(TrainConfig(warmup_steps=5), steps=5, steps_per_epoch=2)


LENGTH, EPOCH = 40, 8
SCHEDULES = {
    "constant": lambda _: 0.4,
    "cosine": partial(reference.cosine_decay, lr=0.4, steps=LENGTH, end=0.01),
    "linear": partial(reference.polynomial_decay, lr=0.4, steps=LENGTH, end=0.01),
    "exponential": partial(reference.exponential_decay, lr=0.4, factor=0.5 ** (1 / EPOCH)),
    "inverse-time": lambda step: 0.4 / (1 + 0.5 * step / EPOCH),
    "step": partial(reference.step_decay, lr=0.4, factor=0.5, period=LENGTH // 4),
}


@pytest.mark.parametrize("warmup", [0, 6])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_the_reference(name: str, warmup: int) -> None:
    config = TrainConfig(lr=0.4, schedule=name, final_lr=0.01, decay=0.5, milestones=(0.25, 0.5, 0.75))
    config = TrainConfig(**{**{f.name: getattr(config, f.name) for f in fields(config)}, "warmup_steps": warmup})
    rate = make_schedule(config, steps=LENGTH + warmup, steps_per_epoch=EPOCH)
    found = [rate(step) for step in range(LENGTH + warmup)]
    expected = [reference.warm_up(step, SCHEDULES[name], steps=warmup) for step in range(LENGTH + warmup)]
    assert found == pytest.approx(expected, rel=1e-12)
