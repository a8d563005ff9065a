"""Batches as a loader yields them: count, slice, join and move them, and find their targets and padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Names under which a dict of a loader holds what is learnt.
TARGETS = ("target", "targets", "label", "labels", "y")


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors in tuples, lists and dicts."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [t for value in batch.values() for t in tensors_of(value)]
    if isinstance(batch, tuple | list):
        return [t for value in batch for t in tensors_of(value)]
    return []


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the batch with each tensor changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: mapped(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(mapped(value, change) for value in batch)
    return batch


def size_of(batch: Any) -> int:
    """Return the number of samples: the length of the first tensor."""
    first = next((t for t in tensors_of(batch) if t.dim() > 0), None)
    return 0 if first is None else len(first)


def part(batch: Any, index: slice | Tensor) -> Any:
    """Return some samples of a batch."""
    size = size_of(batch)
    return mapped(batch, lambda t: t[index] if t.dim() and len(t) == size else t)


def joined(batches: Sequence[Any]) -> Any:
    """Return one batch of all samples; shorter ones are padded with zeros. Raise ValueError if they do not fit."""
    lists = [tensors_of(batch) for batch in batches]
    if not lists or any(len(found) != len(lists[0]) for found in lists):
        raise ValueError("batches of different contents")
    columns = []
    for column in zip(*lists, strict=True):
        if any(t.dim() != column[0].dim() or t.dim() == 0 for t in column):
            raise ValueError("tensors of different ranks")
        shape = [max(t.shape[d] for t in column) for d in range(1, column[0].dim())]
        columns.append(torch.cat([_padded(t, shape) for t in column]))
    rest = iter(columns)
    return mapped(batches[0], lambda _: next(rest))


def _padded(t: Tensor, shape: Sequence[int]) -> Tensor:
    missing = [n for have, want in zip(reversed(t.shape[1:]), reversed(shape), strict=True) for n in (0, want - have)]
    return nn.functional.pad(t, missing) if any(missing) else t


def target_of(batch: Any) -> Any:
    """Return the second element of a tuple or list, or the value of a dict under a usual name; else None."""
    if isinstance(batch, Mapping):
        return next((batch[name] for name in TARGETS if name in batch), None)
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def valid_share(batch: Any) -> float:
    """Return the share of positions before trailing zeros in inputs (N, C, length); 1 without padding."""
    shares = [1.0]
    for t in tensors_of(batch):
        if t.dim() == 3 and t.is_floating_point() and t.numel():
            silent = (t == 0).flatten(1, -2).all(1)  # (N, last)
            lengths = t.shape[-1] - silent.flip(1).cumprod(1).sum(1)
            shares.append(float(lengths.float().mean()) / t.shape[-1])
    return min(shares)
