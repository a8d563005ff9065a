"""The settings of a comparison: defaults, the evaluation schedule, and every refusal."""

import math

import pytest
import tyro

from batchnorm.lab.compare.config import CompareConfig, evaluation_steps
from batchnorm.lab.errors import LabError


def test_defaults_are_resolved_by_data_and_model():
    config = CompareConfig().resolved()
    assert (config.data, config.model, config.norm) == ("digits", "mlp", ("none", "batch"))
    assert (config.lr, config.steps, config.weight_std) == ((0.3, 1.0, 3.0, 10.0), 3000, 0.1)
    convnet = CompareConfig(data="mnist_binary", model="convnet").resolved()
    assert (convnet.lr, convnet.steps, convnet.weight_std) == ((0.03, 0.1, 0.3, 1.0), 1000, None)
    assert CompareConfig(data="mnist_binary").resolved().steps == 5000
    assert (config.threads, convnet.threads) == (1, 1)


def test_what_is_given_is_kept():
    config = CompareConfig(lr=(0.5,), steps=7, weight_std=0.01, threads=2)
    assert config.resolved() == config
    assert CompareConfig(model="convnet", weight_std=0.02).resolved().weight_std == 0.02


def test_schedule_is_dense_early_then_even():
    assert evaluation_steps(400, 4) == (0, 1, 2, 5, 10, 20, 50, 100, 200, 300, 400)
    assert evaluation_steps(3000, 60)[:9] == (0, 1, 2, 5, 10, 20, 50, 100, 150)


@pytest.mark.parametrize("steps", [1, 2, 3, 49, 50, 51, 977, 50_000])
@pytest.mark.parametrize("evaluations", [1, 2, 60])
def test_schedule_begins_before_training_and_ends_with_it(steps, evaluations):
    points = evaluation_steps(steps, evaluations)
    assert points[0] == 0
    assert points[-1] == steps
    assert list(points) == sorted(set(points))
    assert len(points) <= evaluations + 7


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"data": "cifar"}, r"data must be one of digits, mnist_binary; got 'cifar'"),
        ({"model": "resnet"}, r"model must be one of mlp, convnet; got 'resnet'"),
        ({"norm": ("none", "layer")}, r"norm must be one of none, batch; got 'layer'"),
        ({"norm": ()}, r"norm must hold at least one value"),
        ({"norm": ("batch", "batch")}, r"norm must hold each value once, .*; got batch batch"),
        ({"lr": ()}, r"lr must hold at least one value"),
        ({"lr": (0.1, 0.10)}, r"lr must hold each value once, .*; got 0.1 0.1"),
        ({"lr": (0.1, 0.0)}, r"lr must be a finite number above 0; got 0.0"),
        ({"lr": (-1.0,)}, r"lr must be a finite number above 0; got -1.0"),
        ({"lr": (math.nan,)}, r"lr must be a finite number above 0; got nan"),
        ({"lr": (math.inf,)}, r"lr must be a finite number above 0; got inf"),
        ({"seeds": 0}, r"seeds must be at least 1; got 0"),
        ({"steps": 0}, r"steps must be at least 1; got 0"),
        ({"batch_size": 1}, r"batch_size must be at least 2: a batch of one has no variance; got 1"),
        ({"evaluations": 0}, r"evaluations must be at least 1; got 0"),
        ({"threads": 0}, r"threads must be at least 1; got 0"),
        ({"weight_std": 0.0}, r"weight_std must be a finite number above 0; got 0.0"),
        ({"eps": -1e-5}, r"eps must be a finite number above 0; got -1e-05"),
        ({"momentum": 0.0}, r"momentum must be a finite number above 0; got 0.0"),
        ({"momentum": 1.5}, r"momentum must be at most 1, .*; got 1.5"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_refuses(setting, message):
    with pytest.raises(LabError, match=message):
        CompareConfig(**setting)


def test_is_a_command_line():
    config = tyro.cli(CompareConfig, args=["--lr", "0.1", "1", "--norm", "batch", "--steps", "5"])
    assert config == CompareConfig(lr=(0.1, 1.0), norm=("batch",), steps=5)


def test_command_line_says_what_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(CompareConfig, args=["--lr", "-1"])
    assert stop.value.code != 0
    assert "lr must be a finite number above 0" in capsys.readouterr().err


def test_every_setting_has_a_help_text(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(CompareConfig, args=["--help"])
    shown = capsys.readouterr().out
    for words in ("scikit-learn", "0.3 1 3 10", "50000", "BATCHNORM_DATA", "He's"):
        assert words in shown
