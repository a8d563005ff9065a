"""Examples per second that the data pipeline prepares, and that a training step consumes, as a Markdown table.

    python benchmarks/data_pipeline.py [THREADS ...]

Values do not matter to the time, so images are drawn and not read: the script needs no files. Training is in plain
torch, float32, SGD: ResNet-20 on batches of 128 images of 32x32, ResNet-18 on batches of 16 of 224x224. The folder
holds JPEGs of 500x375 pixels, as large as those of ImageNet are on average. Each number is the median of five repeats,
with the smallest and the largest, beside the load average of the last minute.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from batchnorm.lab.data import Augmentation, InMemory, Loader, load
from batchnorm.lab.environment import load as load_average
from batchnorm.lab.models import Normalization, build

REPEATS = 5
CHANGES = {
    "no augmentation": None,
    "crop, flip": Augmentation(crop=4, flip=True),
    "crop, flip, Cutout, Mixup": Augmentation(crop=4, flip=True, cutout=16, mixup=1.0),
}
FOLDER = Augmentation(resized_crop=0.08, flip=True, cutout=112, mixup=0.2)


def network(name: str, image: int, classes: int) -> nn.Module:
    """Build one of the lab's networks with torch's normalization."""
    return build(name, Normalization("torch"), input_shape=(3, image, image), classes=classes)


def rates(repeat: Callable[[], int]) -> list[float]:
    """Return examples per second of each repeat, sorted, after one that is not counted."""
    repeat()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        found.append(repeat() / (time.perf_counter() - start))
    return sorted(found)


def drawing(loader: Loader, batches: int) -> list[float]:
    """Draw so many batches, again and again."""
    epoch = itertools.count()

    def repeat() -> int:
        return sum(len(batch.x) for batch in itertools.islice(loader.epoch(next(epoch)), batches))

    return rates(repeat)


def training(model: nn.Module, x: torch.Tensor, classes: int) -> list[float]:
    """Take a step on the same batch, again and again."""
    y = torch.arange(len(x)) % classes
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def repeat() -> int:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        return len(x)

    return rates(repeat)


def images(root: Path, n: int) -> None:
    """Write a folder of photographs that compress as photographs do: smooth, with some grain."""
    random = np.random.default_rng(0)
    for part, k in [("train", k) for k in range(n)] + [("val", 0), ("val", 1)]:
        (root / part / f"class {k % 2}").mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float64)
        grain = np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(grain).save(root / part / f"class {k % 2}" / f"{k:04}.jpg", quality=90)


def row(what: str, cores: int, found: list[float]) -> None:
    """Print median, smallest and largest, and the load of the machine meanwhile."""
    numbers = " | ".join(f"{value:,.0f}" for value in (statistics.median(found), found[0], found[-1]))
    print(f"| {what} | {cores} | {numbers} | {load_average()} |", flush=True)


def main() -> None:
    """Print the table."""
    cores = sorted(os.sched_getaffinity(0))
    print(f"torch {torch.__version__}, {len(cores)} cores\n")
    print("| what | cores | examples per second | smallest | largest | load |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        images(Path(folder), 192)
        for threads in [int(argument) for argument in sys.argv[1:]] or [1, 2]:
            os.sched_setaffinity(0, cores[:threads])
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            memory = InMemory(
                torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8),
                torch.arange(20_000) % 10,
                torch.full((3, 1, 1), 120.0),
                torch.full((3, 1, 1), 60.0),
            )
            train = load(folder, image_size=224).train
            small = [(name, Loader(memory, 128, seed=0, classes=10, augmentation=own)) for name, own in CHANGES.items()]
            large = Loader(train, 32, seed=0, classes=2, augmentation=FOLDER)
            for name, loader in small:
                row(f"32x32 in memory, {name}", threads, drawing(loader, 100))
            row(
                "a step of ResNet-20, 32x32",
                threads,
                training(network("resnet20", 32, 10), torch.randn(128, 3, 32, 32), 10),
            )
            row("224x224 of a folder, random resized crop, flip, Cutout, Mixup", threads, drawing(large, 6))
            row(
                "a step of ResNet-18, 224x224",
                threads,
                training(network("resnet18", 224, 1000), torch.randn(16, 3, 224, 224), 1000),
            )
    os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main()
