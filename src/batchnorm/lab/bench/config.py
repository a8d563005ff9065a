"""What ``batchnorm bench`` measures: frozen dataclasses, which are also its command line. No torch here."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import tyro

from batchnorm.lab.errors import LabError

Op = Literal["bn", "bn_relu", "bn_add_relu", "eval_bn_relu"]
Layout = Literal["contiguous", "channels_last"]
Dtype = Literal["float32", "bfloat16"]
Allocation = Literal["default", "tuned"]
Network = Literal["resnet18", "resnet50"]

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
BATCH, RESOLUTION = 16, 224
QUICK_BATCH, QUICK_RESOLUTION = 4, 96


@dataclass(frozen=True)
class BenchConfig:
    """Measure batch normalization: torch eager and this package in the same process, interleaved, in pairs.

    Before anything is timed, the values and gradients of both are checked against the float64 reference; where they are
    wrong no number is printed. Rows are appended to a CSV file as they are measured, and Ctrl-C keeps them.
    """

    quick: bool = False
    """Few shapes, float32, 5 pairs; with --resnet, a small ResNet-18. What is given explicitly counts."""

    shapes: tuple[str, ...] | None = None
    """Shapes of x, such as 64x64x56x56 or 256x1000: N, C, then space. None: the twelve of the suite."""

    ops: tuple[Op, ...] = ("bn", "bn_relu", "bn_add_relu", "eval_bn_relu")
    """Operations: forward and backward in training, except eval_bn_relu, a forward under no_grad."""

    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    """Memory formats; channels_last only where the rank has it."""

    dtypes: tuple[Dtype, ...] | None = None
    """Storage of x; parameters are float32. bfloat16 with --resnet is autocast. None: both."""

    allocations: tuple[Allocation, ...] = ("default", "tuned")
    """default: malloc as it comes, which gives large tensors back to the system and faults them in again. tuned: memory
    once touched is kept, for both sides. Each is a process of its own; tuned needs glibc."""

    pairs: int | None = None
    """Paired samples of each arm, after warm-up. None: 15."""

    threads: int | None = None
    """Threads that torch computes with. None: as many as torch takes by itself."""

    compile: bool = False
    """Measure torch.compile too: minutes, and it needs a C++ compiler."""

    resnet: bool = False
    """Measure whole training steps of ResNets instead of single operations: torch, this package, and the limit: the
    same network with BN, ReLU and add taken out."""

    networks: tuple[Network, ...] | None = None
    """Networks of --resnet. None: both."""

    batch: int | None = None
    """Images in the batch of --resnet. None: 16."""

    resolution: int | None = None
    """Height and width of these images. None: 224."""

    out: Path | None = None
    """CSV file to append to. None: a new one under runs/."""

    def __post_init__(self) -> None:
        """Check every field; nothing behind this border checks again."""
        for shape in self.shapes or ():
            parse_shape(shape)
        choices = {"ops": Op, "layouts": Layout, "dtypes": Dtype, "allocations": Allocation, "networks": Network}
        several = {"shapes": self.shapes, **{name: getattr(self, name) for name in choices}}
        for name, values in several.items():
            if values is not None and (not values or len(set(values)) < len(values)):
                raise LabError(f"{name} must hold at least one value, and each once; got {' '.join(values) or 'none'}")
            for value in values or ():
                if name in choices and value not in get_args(choices[name]):
                    raise LabError(f"{name} must be among {', '.join(get_args(choices[name]))}; got {value!r}")
        for name, least in {"pairs": 2, "threads": 1, "batch": 2, "resolution": 32}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise LabError(f"{name} must be at least {least}; got {value}")
        if self.out is not None and self.out.suffix != ".csv":
            raise LabError(f"out must name a .csv file; got {self.out}")
        if self.compile and self.resnet:
            raise LabError(
                "compile must be left out with resnet: torch.compile is an arm of the single operations only"
            )

    def resolved(self) -> "BenchConfig":
        """Fill in what is None (but ``threads`` and ``out``), by the rules of ``quick`` where it is set.

        Returns
        -------
        BenchConfig
            The same, complete.
        """
        quick = self.quick
        return replace(
            self,
            shapes=self.shapes or (QUICK_SHAPES if quick else SHAPES),
            dtypes=self.dtypes or (("float32",) if quick else ("float32", "bfloat16")),
            pairs=self.pairs or (QUICK_PAIRS if quick else PAIRS),
            networks=self.networks or (("resnet18",) if quick else ("resnet18", "resnet50")),
            batch=self.batch or (QUICK_BATCH if quick else BATCH),
            resolution=self.resolution or (QUICK_RESOLUTION if quick else RESOLUTION),
        )


@dataclass(frozen=True)
class PageConfig:
    """Write the page of results: Markdown from the CSV files of ``batchnorm bench``, goals beside what was measured."""

    results: tyro.conf.Positional[tuple[Path, ...]]
    """CSV files. Of what was measured more than once, the last measurement counts."""

    out: Path | None = None
    """File to write. None: standard output."""

    def __post_init__(self) -> None:
        """Check that there is something to read."""
        if not self.results:
            raise LabError("bench-page needs at least one CSV file; batchnorm bench --out FILE.csv writes one")


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape from its name.

    Parameters
    ----------
    text : str
        Sizes joined by "x".

    Returns
    -------
    tuple of int
        N, C, and up to three sizes of space.

    Raises
    ------
    LabError
        Not a shape, or one whose channels have fewer than two values.

    Examples
    --------
    >>> parse_shape("64x128x28x28")
    (64, 128, 28, 28)
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,4}", text):
        raise LabError(f"shapes must look like 64x64x56x56 or 256x1000, two to five sizes above 0; got {text!r}")
    shape = tuple(map(int, text.split("x")))
    count = shape[0]
    for size in shape[2:]:
        count *= size
    if count < 2:
        raise LabError(f"shapes must leave at least two values per channel, or there is no variance; got {text!r}")
    return shape
