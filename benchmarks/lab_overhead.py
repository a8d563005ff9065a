"""What the lab costs: `batchnorm train`'s loop beside a bare torch loop on ResNet-20 and CIFAR-10.

    python benchmarks/lab_overhead.py                      # under 6 minutes on two cores
    python benchmarks/lab_overhead.py --steps 60 --threads 2

Three comparisons, each of a bare loop with the lab's loop and its default probes in every 25th step, the most often
that they come by default: both train the network as it is built, with torch's batch normalization; both train it after
`batchnorm.convert`; the bare loop has torch's, the lab's is converted. Both arms take the same batches from the same
weights. They run in one process in turns: 25 steps
of one, then of the other, in random order, so that what the machine does meanwhile meets both; a ratio is taken
inside each such pair, and the first pair warms up. Records and probes are part of the lab's steps; evaluations and
checkpoints are not, as a bare loop has to do something of the kind too.

Unless arms with the same network end with bit-equal weights and buffers nothing is printed and the exit code is 1.
Rows go to benchmarks/results/lab_overhead.csv.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import batchnorm
from batchnorm.lab.bench.measure import Spread
from batchnorm.lab.data import Loader
from batchnorm.lab.environment import environment, load
from batchnorm.lab.training import TrainConfig
from batchnorm.lab.training.building import make_subject
from batchnorm.lab.training.run import Training

RESULTS = Path(__file__).parent / "results/lab_overhead.csv"
#: Steps of a turn, and between measurements of the probes, so that each turn of the lab has one.
BLOCK = 25


@dataclass(frozen=True)
class Row:
    """One comparison, as it stands in the CSV file."""

    date: str
    commit: str
    processor: str
    torch: str
    threads: int
    network: str
    data: str
    batch_size: int
    steps: int
    pairs: int
    bare_ms: float
    lab_ms: float
    ratio_20: float
    ratio: float
    ratio_80: float
    load: float | None


def bare(config: TrainConfig) -> tuple[nn.Module, Iterator[None]]:
    """Make the network and a loop as one writes it without a lab; each ``next`` is a step."""
    subject = make_subject(config, dataset=None, model=None, rank=0, world=1)
    model, resolved = subject.model, subject.config
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": resolved.l2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=resolved.lr, momentum=resolved.momentum)

    def loop() -> Iterator[None]:
        for batch in batches(subject.loader):
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(batch.x), batch.y)
            loss.backward()
            optimizer.step()
            if not loss.item() < float("inf"):
                raise SystemExit("diverged")
            yield

    return model, loop()


def batches(loader: Loader) -> Iterator[Any]:
    """Draw batches for ever."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def compare(config: TrainConfig, *, bare_convert: bool) -> tuple[list[tuple[float, float]], bool]:
    """Run both loops in turns: seconds per step of each pair, and whether they ended bit-equal."""
    model, loop = bare(replace(config, convert=bare_convert))
    # One step more than is taken: the last step evaluates and saves, which a turn leaves out.
    training = Training(replace(config, steps=(config.steps or 0) + 1))
    loops = (loop, iter(training))
    order = random.Random(0)  # noqa: S311  # nothing secret
    pairs = []
    for _ in range((config.steps or 0) // BLOCK):
        took = [0.0, 0.0]
        for one in order.sample((0, 1), 2):
            start = time.perf_counter()
            for _ in range(BLOCK):
                next(loops[one])
            took[one] = (time.perf_counter() - start) / BLOCK
        pairs.append((took[0], took[1]))
    trained, expected = training.loop.run.model.state_dict(), model.state_dict()
    same = trained.keys() == expected.keys() and all(torch.equal(trained[name], expected[name]) for name in expected)
    return pairs[1:], same  # the first pair warms up


def main() -> int:
    """Measure, write the rows, print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    batchnorm.tune_allocator()  # for both arms
    rows = []
    for name, bare_convert, convert in (
        (asked.model, False, False),
        (f"{asked.model}, converted", True, True),
        (f"{asked.model}, converted in the lab alone", False, True),
    ):
        with tempfile.TemporaryDirectory() as directory:
            config = TrainConfig(
                data=asked.data, data_dir=asked.data_dir, model=asked.model, norm="torch", convert=convert,
                steps=asked.steps, batch_size=asked.batch_size, threads=asked.threads, optimizer="momentum", lr=0.1,
                schedule="constant", probe_every=BLOCK, train_subset=0,
                evaluate_every=asked.steps + 1, checkpoint_every=asked.steps + 1, out=Path(directory) / "run",
            )  # fmt: skip
            pairs, same = compare(config, bare_convert=bare_convert)
        if not same and bare_convert == convert:
            sys.stderr.write(f"{name}: the arms ended with different weights, so no numbers\n")
            return 1
        ratio = Spread.of([lab / alone for alone, lab in pairs])
        machine = environment(asked.threads)
        rows.append(
            Row(
                str(machine["date"]), str(machine["commit"]), str(machine["processor"]), torch.__version__,
                asked.threads, name, asked.data, asked.batch_size,
                asked.steps, len(pairs), 1e3 * Spread.of([alone for alone, _ in pairs]).median,
                1e3 * Spread.of([lab for _, lab in pairs]).median, ratio.p20, ratio.median, ratio.p80,
                load(),
            )
        )  # fmt: skip
        print(
            f"{rows[-1].network}: bare {rows[-1].bare_ms:.1f} ms a step, lab {rows[-1].lab_ms:.1f} ms, ratio "
            f"{ratio.median:.3f} ({ratio.p20:.3f} to {ratio.p80:.3f}, 20th to 80th percentile of {len(pairs)} pairs)"
        )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    new = not asked.out.exists()
    with asked.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(map(asdict, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
