"""
Batch-normalization kernels for CPUs. Used by batchnorm.kernels.native, which checks every argument.
"""

import torch

import batchnorm.kernels.interface


def dtypes() -> list[str]:
    """Return the dtypes of x, by name."""

def activations() -> list[str]:
    """Return the activations, by name."""

def targets() -> list[str]:
    """Return the targets that this processor runs, best first."""

def target() -> str:
    """Return the target that runs."""

def set_target(name: str) -> None:
    """Make one target run."""

def stream_from(size: int) -> int:
    """
    Write outputs of so many bytes past the caches, and return the former limit.
    """

def poison_new_tensors(on: bool) -> bool:
    """Fill new tensors with NaN, and return what held before."""

def blocks() -> list[tuple[int, bool]]:
    """
    Return the bytes of every block of memory for outputs, and whether a tensor uses it.
    """

def release_kept_blocks() -> int:
    """Give back all kept memory, and return its bytes."""

def kept_limit() -> int:
    """Return how many bytes are kept at most."""

def limit_kept_blocks(limit: int) -> None:
    """Keep at most so many bytes; with 0 torch allocates."""

def computes(x: object) -> bool:
    """Return whether this is a plain tensor that the kernels can read."""

def walkable(x: torch.Tensor) -> bool:
    """Return whether the kernels walk this tensor in place."""

def walkable_like(tensor: torch.Tensor, x: torch.Tensor) -> bool:
    """
    Return whether the kernels walk a tensor of x's shape in place, as they walk x.
    """

def empty_like(x: torch.Tensor) -> torch.Tensor | None:
    """Return a new tensor as a kernel makes it for its results."""

def fit(x: torch.Tensor, residual: torch.Tensor | None, vectors: tuple[torch.Tensor | None, ...]) -> int | None:
    """
    Return the values per channel of plain tensors that go together as functional.py demands.
    """

def collect(x: torch.Tensor, reduction: batchnorm.kernels.interface.Reduction, threads: int) -> batchnorm.kernels.interface.Statistics | None: ...

def normalize(x: torch.Tensor, statistics: batchnorm.kernels.interface.Statistics, reduction: batchnorm.kernels.interface.Reduction | None, epilogue: batchnorm.kernels.interface.Epilogue, eps: float, threads: int) -> torch.Tensor | None: ...

def normalize_into(out: torch.Tensor, x: torch.Tensor, statistics: batchnorm.kernels.interface.Statistics, reduction: batchnorm.kernels.interface.Reduction | None, epilogue: batchnorm.kernels.interface.Epilogue, eps: float, threads: int) -> bool: ...

def forward(x: torch.Tensor, reduction: batchnorm.kernels.interface.Reduction, epilogue: batchnorm.kernels.interface.Epilogue, eps: float, threads: int) -> tuple[torch.Tensor, batchnorm.kernels.interface.Statistics] | None: ...

def reduce(dy: torch.Tensor, x: torch.Tensor, statistics: batchnorm.kernels.interface.Statistics, reduction: batchnorm.kernels.interface.Reduction | None, epilogue: batchnorm.kernels.interface.Epilogue, eps: float, threads: int) -> batchnorm.kernels.interface.Sums | None: ...

def apply(dy: torch.Tensor, x: torch.Tensor, statistics: batchnorm.kernels.interface.Statistics, sums: batchnorm.kernels.interface.Sums, reduction: batchnorm.kernels.interface.Reduction | None, epilogue: batchnorm.kernels.interface.Epilogue, eps: float, threads: int) -> tuple[torch.Tensor, torch.Tensor | None] | None: ...

def backward(dy: torch.Tensor, x: torch.Tensor, statistics: batchnorm.kernels.interface.Statistics, reduction: batchnorm.kernels.interface.Reduction | None, epilogue: batchnorm.kernels.interface.Epilogue, eps: float, threads: int) -> batchnorm.kernels.interface.Gradients | None: ...

def update(running: batchnorm.kernels.interface.Running, statistics: batchnorm.kernels.interface.Statistics, factors: list[float], finite_only: bool) -> bool: ...
