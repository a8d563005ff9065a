"""What ``batchnorm bench`` measures: frozen dataclasses, which are also its command line. No torch here."""

import math
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Literal

from batchnorm.lab.errors import LabError

Op = Literal["bn", "bn_relu", "bn_add_relu", "eval_bn_relu"]
Layout = Literal["contiguous", "channels_last"]
Dtype = Literal["float32", "bfloat16"]
Allocation = Literal["default", "tuned"]

SHAPES = (
    "64x64x56x56",
    "64x256x56x56",
    "32x64x112x112",
    "64x128x28x28",
    "64x512x14x14",
    "64x2048x7x7",
    "8x64x28x28",
    "2x8x4x4",
    "256x1000",
    "16384x512",
    "60x100",
    "8x32x32x64x64",
)
PAIRS = 15
# One shape far over 8 MB, one under it, one dense: a minute, to see whether something moved.
QUICK_SHAPES = ("64x64x56x56", "8x64x28x28", "256x1000")
QUICK_PAIRS = 5
ITEM_SIZE = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Sampling:
    """Settings that every benchmark has; its own are added by a subclass."""

    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    """Memory formats; channels_last only for four and five dimensions."""

    dtypes: tuple[Dtype, ...] | None = None
    """Storage of x; parameters are float32. None: both."""

    allocations: tuple[Allocation, ...] = ("default", "tuned")
    """default: malloc unchanged, which gives large tensors back to the system and faults them in again. tuned: memory
    once touched is kept, for both sides. Each runs in a process of its own; tuned needs glibc."""

    pairs: int | None = None
    """Paired samples of each arm, after warm-up. None: 15."""

    threads: int | None = None
    """Threads of torch. None: torch's default."""

    out: Path | None = None
    """CSV file to append to. None: a new one under runs/."""

    least: ClassVar[dict[str, int]] = {"pairs": 2, "threads": 1}

    def __post_init__(self) -> None:
        """Check every field.

        Raises
        ------
        LabError
            A list that is empty or names a value twice, a number below its least, an ``out`` that is no CSV file.
        """
        for field in fields(self):
            values = getattr(self, field.name)
            if isinstance(values, tuple) and (not values or len(set(values)) < len(values)):
                given = " ".join(values) or "none"
                raise LabError(f"{field.name} must hold at least one value, and each once; got {given}")
        for name, least in self.least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise LabError(f"{name} must be at least {least}; got {value}")
        if self.out is not None and self.out.suffix != ".csv":
            raise LabError(f"out must name a .csv file; got {self.out}")


@dataclass(frozen=True)
class BenchConfig(Sampling):
    """Measure batch normalization: torch eager and this package in the same process, interleaved, in pairs.

    Values and gradients of both are checked against the float64 reference first; a wrong answer ends the run without
    numbers. Rows are appended to a CSV file as they are measured, and Ctrl-C keeps them.
    """

    quick: bool = False
    """Three shapes, float32, 5 pairs. Explicit flags override this."""

    shapes: tuple[str, ...] | None = None
    """Shapes of x, such as 64x64x56x56 or 256x1000: N, C, then space. None: the twelve of the suite."""

    ops: tuple[Op, ...] = ("bn", "bn_relu", "bn_add_relu", "eval_bn_relu")
    """Operations: forward and backward in training, except eval_bn_relu, a forward under no_grad."""

    compile: bool = False
    """Measure torch.compile too: minutes, and it needs a C++ compiler."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        for shape in self.shapes or ():
            parse_shape(shape)

    def resolved(self) -> "BenchConfig":
        """Fill in what is None, except ``threads`` and ``out``."""
        return replace(
            self,
            shapes=self.shapes or (QUICK_SHAPES if self.quick else SHAPES),
            dtypes=self.dtypes or (("float32",) if self.quick else ("float32", "bfloat16")),
            pairs=self.pairs or (QUICK_PAIRS if self.quick else PAIRS),
        )


@dataclass(frozen=True)
class Case:
    """One operation on one tensor.

    Attributes
    ----------
    op : {'bn', 'bn_relu', 'bn_add_relu', 'eval_bn_relu'}
        What is computed.
    shape : tuple of int
        N, C, then space.
    layout : {'contiguous', 'channels_last'}
        Memory format of every tensor of this shape; channels_last_3d for five dimensions.
    dtype : {'float32', 'bfloat16'}
        Of every tensor of this shape; parameters and statistics are float32.
    """

    op: Op
    shape: tuple[int, ...]
    layout: Layout
    dtype: Dtype

    @property
    def shape_name(self) -> str:
        """The shape as on the command line."""
        return "x".join(map(str, self.shape))

    @property
    def bytes(self) -> int:
        """Size of x."""
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]

    @property
    def training(self) -> bool:
        """A forward and a backward in training; otherwise a forward in evaluation."""
        return not self.op.startswith("eval_")

    @property
    def activation(self) -> str | None:
        """The activation after the normalization."""
        return "relu" if self.op.endswith("relu") else None

    @property
    def has_residual(self) -> bool:
        """True if a residual is added before the activation."""
        return "_add_" in self.op

    def __str__(self) -> str:
        return f"{self.op} {self.shape_name} {self.layout} {self.dtype}"


def cases(config: BenchConfig) -> list[Case]:
    """List the cases of a resolved ``config``; raise LabError if no shape has any of its layouts."""
    found = [
        Case(op, shape, layout, dtype)
        for op in config.ops
        for shape in map(parse_shape, config.shapes or ())
        for layout in config.layouts
        if layout == "contiguous" or len(shape) in (4, 5)
        for dtype in config.dtypes or ()
    ]
    if not found:
        raise LabError(
            f"layouts must fit a shape: {' '.join(config.layouts)} exists for four and five sizes only; "
            f"got shapes {' '.join(config.shapes or ())}"
        )
    return found


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape such as 64x128x28x28: N, C, and up to three sizes of space; raise LabError for anything else."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,4}", text):
        raise LabError(f"shapes must look like 64x64x56x56 or 256x1000, two to five sizes above 0; got {text!r}")
    shape = tuple(map(int, text.split("x")))
    if shape[0] * math.prod(shape[2:]) < 2:
        raise LabError(f"shapes must leave at least two values per channel, or there is no variance; got {text!r}")
    return shape
