"""Copies of models that torch's ``deepcopy`` refuses: lazy, pruned, or with outputs kept as attributes."""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def copied(model: M) -> M:
    """Return a deep copy. Tensors that were computed, as pruning computes weights, are copied by their values."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in module.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        for buffer in module.buffers(recurse=False):
            if isinstance(buffer, nn.UninitializedBuffer):
                memo[id(buffer)] = nn.UninitializedBuffer(device=buffer.device, dtype=buffer.dtype)  # type: ignore[call-arg]  # its stub lacks them
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # exported modules hold them
        return copy.deepcopy(model, memo)
