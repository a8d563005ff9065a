"""Inference of folded networks: beside the unfolded one, torch's own folding, and ``torch.compile``.

    python benchmarks/folding.py --quick
    python benchmarks/folding.py --out benchmarks/results/folding.csv

Every arm must give the outputs of the unfolded network in float64 before anything is timed.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import batchnorm
import command
import steps
from batchnorm.lab.bench import measure, table
from batchnorm.lab.bench.config import PAIRS, QUICK_PAIRS, Dtype, Layout, Sampling
from batchnorm.lab.bench.gate import GateError
from batchnorm.lab.bench.measure import Arm, Spread
from batchnorm.lab.bench.rows import Machine, Row
from batchnorm.lab.bench.worker import serve
from batchnorm.lab.wording import Table

Network = Literal["resnet50", "mobilenetv2", "detector"]
ARMS = ("unfolded", "fold", "torch's folding", "compile", "fold and compile")
#: Largest difference from the float64 network, relative to its largest output.
ALLOWED = {"float32": 1e-3, "bfloat16": 0.2}


@dataclass(frozen=True)
class FoldingConfig(Sampling):
    """Measure inference: unfolded, folded by this package and by torch, and compiled."""

    quick: bool = False
    """One small image of each network, 5 pairs, nothing compiled. Explicit flags override this."""

    networks: tuple[Network, ...] = ("resnet50", "mobilenetv2", "detector")
    """Networks."""

    batch: int | None = None
    """Images in the batch. None: 1."""

    resolution: int | None = None
    """Height and width of the images. None: 224."""

    least: ClassVar[dict[str, int]] = {**Sampling.least, "batch": 1, "resolution": 64}

    def resolved(self) -> FoldingConfig:
        """Fill in what is None, except ``threads`` and ``out``."""
        return replace(
            self,
            dtypes=self.dtypes or ("float32",),
            pairs=self.pairs or (QUICK_PAIRS if self.quick else PAIRS),
            batch=self.batch or 1,
            resolution=self.resolution or (64 if self.quick else 224),
        )

    @property
    def arms(self) -> tuple[str, ...]:
        """What is timed."""
        return ARMS[:3] if self.quick else ARMS


@dataclass(frozen=True)
class FoldingCase:
    """One network."""

    network: Network
    batch: int
    resolution: int
    layout: Layout
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.network} {self.batch}x3x{self.resolution}x{self.resolution} {self.layout} {self.dtype}"


@dataclass(frozen=True)
class FoldingRow(Row):
    """One arm of one network.

    Attributes
    ----------
    network, batch, resolution, layout, dtype
        The case.
    arm : str
        One of `ARMS`.
    backend, target : str
        Empty: after a fold nothing of this package runs.
    pairs : int
        Samples.
    normalizations : int
        Those that are left in the network.
    p20_s, median_s, p80_s : float
        Time of one call.
    ratio_p20, ratio, ratio_p80 : float
        That of the unfolded network, divided by it.
    """

    network: str
    batch: int
    resolution: int
    layout: str
    dtype: str
    arm: str
    backend: str
    target: str
    pairs: int
    normalizations: int
    p20_s: float
    median_s: float
    p80_s: float
    ratio_p20: float
    ratio: float
    ratio_p80: float

    @property
    def case(self) -> tuple[str, ...]:
        """The case, without the arm."""
        shape = f"{self.batch}x3x{self.resolution}x{self.resolution}"
        return (self.allocation, self.network, shape, self.layout, self.dtype)


def _unit(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class Inverted(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018, arXiv:1801.04381, table 1)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [*_unit(inputs, hidden, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        self.branch = nn.Sequential(
            *widen, *_unit(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True), *_unit(hidden, outputs, 1)
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, and where shapes agree x with it."""
        return x + self.branch(x) if self.adds else self.branch(x)


def mobilenetv2() -> nn.Module:
    """Build MobileNetV2 of width 1 (its table 2)."""
    modules: list[nn.Module] = [*_unit(3, 32, 3, 2), nn.ReLU6(inplace=True)]
    inputs = 32
    for expansion, outputs, number, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for i in range(number):
            modules.append(Inverted(inputs, outputs, stride if i == 0 else 1, expansion))
            inputs = outputs
    modules += [*_unit(320, 1280, 1), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*modules, nn.Linear(1280, 1000))


class Detector(nn.Module):
    """A backbone, transposed convolutions up again as in CenterNet and pose networks, and a head for each cell."""

    def __init__(self) -> None:
        super().__init__()
        down, inputs = [], 3
        for outputs in (32, 64, 128, 256, 256):
            down += [*_unit(inputs, outputs, 3, 2), nn.SiLU(), *_unit(outputs, outputs, 3), nn.SiLU()]
            inputs = outputs
        up: list[nn.Module] = []
        for outputs in (256, 128, 64):
            up += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()]
            inputs = outputs
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)
        self.head = nn.Sequential(*_unit(64, 64, 3), nn.SiLU(), nn.Conv2d(64, 84, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return 84 numbers for each cell of 4 by 4 pixels."""
        y: Tensor = self.head(self.up(self.down(x)))
        return y


def network(case: FoldingCase) -> nn.Module:
    """Build a network in eval mode, with running statistics as after some training."""
    torch.manual_seed(0)
    builders: dict[str, Callable[[], nn.Module]] = {
        "resnet50": lambda: steps.resnet("resnet50", 0.3),
        "mobilenetv2": mobilenetv2,
        "detector": Detector,
    }
    model = builders[case.network]()
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(4, 3, 64, 64))
    model = model.eval().to(getattr(torch, case.dtype))
    return model.to(memory_format=torch.channels_last) if case.layout == "channels_last" else model


def build(model: nn.Module, arm: str) -> nn.Module:
    """Make one arm from the unfolded network."""
    model = copy.deepcopy(model)
    if arm.startswith("fold"):
        model = batchnorm.fold(model)
    elif arm == "torch's folding":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import says that TorchScript is deprecated
            from torch.fx.experimental.optimization import fuse
        model = fuse(model)
    if arm.endswith("compile"):
        model.compile()
    return model


def images(case: FoldingCase) -> Tensor:
    """Draw the input, always the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.batch, 3, case.resolution, case.resolution, generator=generator)
    x = x.to(getattr(torch, case.dtype))
    return x.contiguous(memory_format=torch.channels_last) if case.layout == "channels_last" else x


def cases(config: FoldingConfig) -> list[FoldingCase]:
    """List the cases of a resolved ``config``."""
    return [
        FoldingCase(name, config.batch, config.resolution, layout, dtype)
        for name in config.networks
        for layout in config.layouts
        for dtype in config.dtypes
    ]


def check(case: FoldingCase, arms: Sequence[str]) -> None:
    """Raise GateError where an arm is further from the float64 network than its dtype explains."""
    model, x = network(case), images(case)
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double())
        for arm in arms:
            error = ((build(model, arm)(x).double() - truth).abs().amax() / truth.abs().amax()).item()
            if not error <= ALLOWED[case.dtype]:
                raise GateError(f"{arm}, {case}: {error:.3g} of the largest output away from the float64 network")


def measure_case(config: FoldingConfig, case: FoldingCase, here: Machine) -> list[Row]:
    """Time the arms of a case."""
    model, x = network(case), images(case)
    models = {arm: build(model, arm) for arm in config.arms}

    def call(arm: str) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                models[arm](x)

        return run

    samples = measure.interleave({arm: Arm(call(arm)) for arm in models}, config.pairs)
    rows: list[Row] = []
    for arm, found in samples.items():
        time, ratio = Spread.of(found.seconds), measure.ratios(samples["unfolded"], found)
        left = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in models[arm].modules())  # noqa: SLF001
        rows.append(
            FoldingRow(
                **asdict(here), **asdict(case), arm=arm, backend="", target="", pairs=len(found.seconds),
                normalizations=left, p20_s=time.p20, median_s=time.median, p80_s=time.p80,
                ratio_p20=ratio.p20, ratio=ratio.median, ratio_p80=ratio.p80,
            )
        )  # fmt: skip
    return rows


def folding_table(rows: Sequence[FoldingRow]) -> Table:
    """Make the table of all arms."""
    lines = []
    for row in rows:
        ratio = f"{row.ratio:.2f} ({row.ratio_p20:.2f} to {row.ratio_p80:.2f})"
        shape = f"{row.batch}x3x{row.resolution}x{row.resolution}"
        cells = [row.network, shape, row.layout, row.dtype, row.allocation, row.arm, str(row.normalizations)]
        lines.append([*cells, table.number(row.median_s), ratio, table.number(row.load)])
    columns = ["network", "images", "layout", "dtype", "allocation", "arm", "BN left", "s", "times faster", "load"]
    return Table("Inference, folded and not", columns, lines, note="")


def _check_all(config: FoldingConfig, todo: Sequence[FoldingCase]) -> None:
    for case in todo:
        check(case, config.arms)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; exit codes as of batchnorm bench."""
    if arguments[:1] == ["--worker"]:
        return serve(FoldingConfig, cases, _check_all, measure_case)
    return command.run(__file__, FoldingConfig, FoldingRow, cases, folding_table, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
