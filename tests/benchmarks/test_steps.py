"""Training steps: the networks, the gate, the share that is gone, and the whole script, small."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import batchnorm
import steps
from batchnorm.lab.bench import rows
from batchnorm.lab.bench.gate import GateError
from batchnorm.lab.bench.measure import Samples
from step_rows import StepRow

STEP = steps.StepCase("resnet18", 2, 64, "channels_last", "float32")


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions"), [("resnet18", 11_689_512, 20), ("resnet50", 25_557_032, 53)]
)
def test_standard_sizes(name, parameters, convolutions):
    network = steps.resnet(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == convolutions
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == convolutions
    assert all(m.inplace for m in network.modules() if isinstance(m, nn.ReLU))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_limit_has_every_convolution_with_its_gradient_and_no_bn_or_relu(name):
    full = [m.weight.shape for m in steps.resnet(name).modules() if isinstance(m, nn.Conv2d)]
    network = steps.limit(steps.resnet(name))
    left = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(m.weight.shape for m in left) == sorted(full)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.ReLU) for m in network.modules())
    logits = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 1000)
    assert logits.std() < 1e3
    logits.backward(torch.randn_like(logits))
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_converted_network_fuses_every_addition():
    _, report = batchnorm.convert(steps.resnet("resnet18"), report=True)
    fused = [row for row in report.rows if "add" in row.done.lower() or "residual" in row.done.lower()]
    assert len(fused) == 8


def test_the_addition_is_in_place_and_computes_what_the_lab_network_computes():
    x = torch.randn(2, 3, 64, 64)
    ours = steps.resnet("resnet18")
    plain = steps.residual.BasicBlock.__mro__[1]  # Block, whose addition makes a new tensor
    expected = steps.resnet("resnet18")
    for module in expected.modules():
        if isinstance(module, steps.BasicBlock):
            module.around = lambda x, branch, block=module: plain.around(block, x, branch)
    assert torch.equal(ours(x), expected(x))


def test_a_wrong_network_turns_it_red():
    steps.check(STEP)

    def wrong(case, arm, **settings):
        network = steps.build(case, arm, **settings)
        for module in network.modules():
            if arm == "batchnorm" and isinstance(module, nn.BatchNorm2d):
                module.eps = 0.1
        return network

    with pytest.raises(GateError, match="batchnorm, resnet18 4x3x64x64 channels_last float32: logits is"):
        steps.check(STEP, made=wrong)


def samples(*seconds):
    return Samples(seconds, 1, 0.0)


def test_removed_is_the_share_of_what_lies_above_the_limit():
    torch, limit = samples(1.5, 1.5, 1.5), samples(1.0, 1.0, 1.0)
    assert steps.removed(torch, samples(1.25, 1.25, 1.25), limit).median == 0.5
    assert steps.removed(torch, torch, limit).median == 0.0
    assert steps.removed(torch, limit, limit).median == 1.0
    assert steps.removed(torch, samples(2.0, 2.0, 2.0), limit).median == -1.0
    assert math.isnan(steps.removed(limit, limit, torch).median)


def test_training_steps_of_a_small_network(tmp_path):
    options = ("--quick", "--resolution", "64", "--pairs", "2", "--threads", "1")
    options = (*options, "--layouts", "channels_last", "--allocations", "default", "--out", "steps.csv")
    source = Path(batchnorm.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, steps.__file__, *options],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(source)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "One training step, backend " in done.stdout
    measured = rows.read(tmp_path / "steps.csv", StepRow)
    assert [row.arm for row in measured] == ["torch", "batchnorm", "limit"]
    assert all(row.peak_mb > 100 for row in measured)
    assert measured[1].how
    assert not math.isnan(measured[1].p20_s)


def test_bad_input_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        steps.main(["--batch", "1"])
    assert "batch must be at least 2; got 1" in capsys.readouterr().err
