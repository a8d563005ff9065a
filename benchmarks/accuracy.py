"""Largest output and gradient errors of torch's layer and ours in the hard regimes, as a Markdown table.

    python benchmarks/accuracy.py

Errors are against the float64 reference on the same float32 inputs, in units of float32's eps times the largest
absolute value of the result: 1 is as good as rounding the right answer. The upstream gradient is random.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import batchnorm
import regimes
from batchnorm.reference import batch_norm as reference

SHAPE = (64, 3, 16, 16)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute error, in eps of the largest expected value."""
    worst = (got.double() - expected).abs().max() / expected.abs().max()
    return worst.item() / torch.finfo(torch.float32).eps


def main() -> None:
    """Print the table."""
    layers = {"torch": torch.nn.functional.batch_norm, "batchnorm": batchnorm.functional.batch_norm}
    print(f"torch {torch.__version__}, float32, shape {SHAPE}, contiguous / channels_last\n")
    print("| values | " + " | ".join(f"{what}, {name}" for what in ("y", "dx") for name in layers) + " |")
    print("|---|" + "---:|" * 4)
    for values, draw in regimes.VALUES.items():
        generator = torch.Generator().manual_seed(0)
        x, dy = draw(SHAPE, generator).float(), torch.randn(SHAPE, generator=generator)
        y, cache = reference.forward_train(x.double().numpy())
        expected = [torch.from_numpy(a) for a in (y, reference.backward(dy.double().numpy(), cache).dx)]
        cells: list[list[str]] = [[], []]
        for layer in layers.values():
            errors: list[list[str]] = [[], []]
            for memory_format in (torch.contiguous_format, torch.channels_last):
                leaf = x.contiguous(memory_format=memory_format).requires_grad_()
                result = layer(leaf, None, None, training=True)
                (grad,) = torch.autograd.grad(result, leaf, dy)
                for column, got, want in zip(errors, (result.detach(), grad), expected, strict=True):
                    column.append(f"{error(got, want):.2g}")
            for cell, column in zip(cells, errors, strict=True):
                cell.append(" / ".join(column))
        print(f"| {values} | " + " | ".join(cells[0] + cells[1]) + " |")


if __name__ == "__main__":
    main()
