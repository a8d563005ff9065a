"""One training step of a whole ResNet: torch, this package, and the limit.

    python benchmarks/steps.py --quick
    python benchmarks/steps.py --networks resnet50 --out benchmarks/results/steps.csv

What counts in the end: kernels that are quick alone may leave y out of the cache of the next convolution, or allocate
more, and then a step gains little. The limit is the same network with BN, ReLU and add taken out.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own way

import batchnorm
import command
from batchnorm.lab.bench import arms, measure
from batchnorm.lab.bench.config import PAIRS, QUICK_PAIRS, Dtype, Layout, Sampling
from batchnorm.lab.bench.gate import GateError
from batchnorm.lab.bench.measure import Arm, Samples, Spread
from batchnorm.lab.bench.rows import Machine, Row
from batchnorm.lab.bench.worker import serve
from batchnorm.lab.models import Normalization, residual
from batchnorm.lab.models.initializers import initialize
from batchnorm.lab.models.recipe import Recipe
from batchnorm.lab.models.resnet import ResNet
from step_rows import ARMS, StepRow, steps_table

Network = Literal["resnet18", "resnet50"]

CLASSES = 1000
LEARNING_RATE = 1e-3
STEPS_FOR_PEAK = 3
# For the gate: no further from the float64 network than twice as far as torch is, or, where torch is lucky, than a few
# values within rounding of a ReLU's kink explain: each that falls on the other side moves its gradient wholly.
TIMES_TORCH = 2
LUCK = {"float32": 2e-3, "bfloat16": 5e-2}
# The weight of the last BN of each block there. With 1, a fresh network amplifies a rounding until the gradients of
# bfloat16 have no right digit in either arm, and nothing could be told from them.
GATE_WEIGHT = 0.1
GATE_BATCH, GATE_RESOLUTION = 4, 64


@dataclass(frozen=True)
class StepsConfig(Sampling):
    """Measure whole training steps: torch, this package, and the limit: no BN, ReLU and add."""

    quick: bool = False
    """A small ResNet-18, float32, 5 pairs. Explicit flags override this."""

    networks: tuple[Network, ...] | None = None
    """Networks. None: both."""

    batch: int | None = None
    """Images in the batch. None: 16."""

    resolution: int | None = None
    """Height and width of the images. None: 224."""

    least: ClassVar[dict[str, int]] = {**Sampling.least, "batch": 2, "resolution": 32}

    def resolved(self) -> StepsConfig:
        """Fill in what is None, except ``threads`` and ``out``."""
        quick = self.quick
        return replace(
            self,
            dtypes=self.dtypes or (("float32",) if quick else ("float32", "bfloat16")),
            pairs=self.pairs or (QUICK_PAIRS if quick else PAIRS),
            networks=self.networks or (("resnet18",) if quick else ("resnet18", "resnet50")),
            batch=self.batch or (4 if quick else 16),
            resolution=self.resolution or (96 if quick else 224),
        )


@dataclass(frozen=True)
class StepCase:
    """One training step of one network. bfloat16 is autocast."""

    network: Network
    batch: int
    resolution: int
    layout: Layout
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.network} {self.batch}x3x{self.resolution}x{self.resolution} {self.layout} {self.dtype}"


class InPlace:
    """The addition as torchvision writes it: nobody should win against a slow opponent."""

    downsample: nn.Module | None

    def around(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add the shortcut to the branch, in place."""
        branch += x if self.downsample is None else self.downsample(x)
        return branch


class BasicBlock(InPlace, residual.BasicBlock):
    """Two 3x3 convolutions."""


class Bottleneck(InPlace, residual.Bottleneck):
    """A 1x1, a 3x3 and a 1x1 convolution."""


class LimitBlock(nn.Module):
    """The convolutions of a block and nothing else.

    A shortcut's convolution still runs forward and backward; an identity shortcut is dropped.
    """

    def __init__(self, block: residual.Block) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(m for m in block.children() if isinstance(m, nn.Conv2d)))
        self.downsample = cast("nn.Sequential", block.downsample)[0] if block.downsample is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as in the block."""
        out: Tensor = self.convolutions(x)
        return out if self.downsample is None else Both.apply(out, self.downsample(x))


class Both(torch.autograd.Function):
    """Return the first of two tensors as it is, and send the gradient to both: an addition that adds nothing."""

    @staticmethod
    def forward(ctx: object, first: Tensor, _second: Tensor) -> Tensor:  # noqa: ARG004
        """Return the first."""
        return first.view_as(first)

    @staticmethod
    def backward(ctx: object, grad_output: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG004
        """Send the gradient to both."""
        return grad_output, grad_output


def resnet(name: Network, last_weight: float = 1.0) -> ResNet:
    """Build a network of torch's layers; the last BN of each block starts with ``last_weight``."""
    recipe = Recipe(Normalization("torch"), (3, 224, 224), CLASSES)
    kind, depths = (BasicBlock, (2, 2, 2, 2)) if name == "resnet18" else (Bottleneck, (3, 4, 6, 3))
    network = ResNet(recipe, kind, depths, name)
    initialize(network, "kaiming_normal", scale=recipe.nonlinearity.gain, seed=0)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
        elif isinstance(module, residual.Block):
            nn.init.constant_(getattr(module, module.last[1]).weight, last_weight)
    return network


def limit(network: ResNet) -> ResNet:
    """Take BN, ReLU and add out of a network, in place; its convolutions keep values of unit size."""
    network.bn1, network.act = nn.Identity(), nn.Identity()
    for name in ("layer1", "layer2", "layer3", "layer4"):
        setattr(network, name, nn.Sequential(*map(LimitBlock, getattr(network, name))))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return network


def build(case: StepCase, arm: str, *, last_weight: float = 1.0) -> nn.Module:
    """Build the network of one arm, in training mode and the case's layout; torch and batchnorm from equal weights."""
    torch.manual_seed(0)
    network: nn.Module = resnet(case.network, last_weight)
    if arm == "limit":
        network = limit(cast("ResNet", network))
    elif arm == "batchnorm":
        network = batchnorm.convert(network)
    if case.layout == "channels_last":
        network = network.to(memory_format=torch.channels_last)
    return network.train()


def step(case: StepCase, network: nn.Module) -> Callable[[], None]:
    """Make one training step: forward, cross-entropy, backward, SGD with momentum, gradients set to None."""
    images, labels = batch(case)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def batch(case: StepCase) -> tuple[Tensor, Tensor]:
    """Draw images and labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, 3, case.resolution, case.resolution, generator=generator)
    if case.layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.randint(CLASSES, (case.batch,), generator=generator)


def check(case: StepCase, made: Callable[..., nn.Module] = build) -> None:
    """Check on a small batch that the converted network computes what torch's does.

    Raises GateError where logits or gradients are much further from the float64 network than torch's own are. ``made``
    builds the networks.
    """
    small = replace(case, batch=GATE_BATCH, resolution=GATE_RESOLUTION)
    truth = _truth(case.network)
    errors = {
        arm: _errors(_answers(small, made(small, arm, last_weight=GATE_WEIGHT)), truth)
        for arm in ("torch", "batchnorm")
    }
    for name, error in errors["batchnorm"].items():
        allowed = max(TIMES_TORCH * errors["torch"][name], LUCK[case.dtype])
        if not error <= allowed:
            raise GateError(
                f"batchnorm, {small}: {name} is {error:.3g} of its norm away from the float64 network's; "
                f"torch's is {errors['torch'][name]:.3g} away, allowed {allowed:.3g}"
            )


def removed(torch: Samples, ours: Samples, limit: Samples) -> Spread:
    """Compute the share of what ``torch`` spends above the limit that is gone in ``ours``.

    Differences between torch and ours, pair by pair, are divided by the median difference between torch and the limit
    (a pair's own difference may be near zero). NaN where torch is not above the limit.
    """
    above = Spread.of([a - b for a, b in zip(torch.seconds, limit.seconds, strict=True)]).median
    if above <= 0:
        return Spread(math.nan, math.nan, math.nan)
    return Spread.of([(a - b) / above for a, b in zip(torch.seconds, ours.seconds, strict=True)])


def cases(config: StepsConfig) -> list[StepCase]:
    """List the cases of a resolved ``config``."""
    return [
        StepCase(network, config.batch, config.resolution, layout, dtype)
        for network in config.networks
        for layout in config.layouts
        for dtype in config.dtypes
    ]


def measure_step(config: StepsConfig, case: StepCase, here: Machine) -> list[Row]:
    """Time the three arms of a case, after the peak memory of each in a process of its own."""
    peaks = {arm: peak_memory(case, arm, here.threads) for arm in ARMS}
    samples = measure.interleave({arm: Arm(step(case, build(case, arm))) for arm in ARMS}, config.pairs)
    backend, target = arms.explanation(torch.empty(2, 64, 4, 4, dtype=getattr(torch, case.dtype)))
    rows: list[Row] = []
    for arm, found in samples.items():
        time, share = Spread.of(found.seconds), removed(samples["torch"], found, samples["limit"])
        ours = arm == "batchnorm"
        rows.append(
            StepRow(
                **asdict(here), **asdict(case), arm=arm, how="batchnorm.convert" if ours else "",
                backend=backend if ours else "", target=target if ours else "", pairs=len(found.seconds),
                p20_s=time.p20, median_s=time.median, p80_s=time.p80,
                removed_p20=share.p20, removed=share.median, removed_p80=share.p80, peak_mb=peaks[arm],
            )
        )  # fmt: skip
    return rows


def peak_memory(case: StepCase, arm: str, threads: int) -> float:
    """Measure the largest resident memory, in 10^6 bytes, of a process of its own that does a few steps of one arm.

    NaN where the process failed or the system does not say.
    """
    done = subprocess.run(  # noqa: S603  # this Python, this file
        [sys.executable, __file__, "--peak"],
        input=json.dumps({"case": asdict(case), "arm": arm, "threads": threads}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    return float(done.stdout) if done.returncode == 0 else math.nan


def _steps_for_peak() -> int:
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    case = StepCase(**task["case"])
    call = step(case, build(case, task["arm"]))
    for _ in range(STEPS_FOR_PEAK):
        call()
    print(_peak())
    return 0


def _peak() -> float:
    # Not ru_maxrss where there is something better: on Linux a child inherits its parent's.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6


@cache
def _truth(name: Network) -> dict[str, Tensor]:
    """Return the answers of the float64 network, the same for every layout and dtype."""
    case = StepCase(name, GATE_BATCH, GATE_RESOLUTION, "contiguous", "float32")
    return _answers(case, build(case, "torch", last_weight=GATE_WEIGHT).double())


def _answers(case: StepCase, network: nn.Module) -> dict[str, Tensor]:
    """Return the logits and one vector of all gradients, in float64."""
    images, labels = batch(case)
    with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
        logits: Tensor = network(images.to(next(network.parameters()).dtype))
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    gradients = [p.grad.flatten() for _, p in sorted(network.named_parameters()) if p.grad is not None]
    return {"logits": logits.detach().double(), "gradients": torch.cat(gradients).double()}


def _errors(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: ((got[name] - want[name]).norm() / want[name].norm()).item() for name in want}


def _check_all(_config: StepsConfig, todo: Sequence[StepCase]) -> None:
    for case in todo:
        check(case)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; exit codes as of batchnorm bench."""
    if arguments[:1] == ["--worker"]:
        return serve(StepsConfig, cases, _check_all, measure_step)
    if arguments[:1] == ["--peak"]:
        return _steps_for_peak()
    return command.run(__file__, StepsConfig, StepRow, cases, steps_table, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
