"""Example inputs: the arguments of one call of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Examples:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> Examples | None:
        """Return those that a user has given: a tuple or list of arguments, keywords, or one argument."""
        if inputs is None:
            return None
        if isinstance(inputs, dict):
            return cls((), inputs)
        return cls(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})

    def double(self) -> Examples:
        """Return them with floating tensors in float64."""
        args, kwargs = torch.utils._pytree.tree_map(_double, (self.args, self.kwargs))  # noqa: SLF001  # as torch's own
        return Examples(args, kwargs)

    def run(self, model: nn.Module) -> list[Tensor]:
        """Return the tensors that the model gives for copies of them."""
        args, kwargs = torch.utils._pytree.tree_map(_clone, (self.args, self.kwargs))  # noqa: SLF001  # as above
        leaves = torch.utils._pytree.tree_leaves(model(*args, **kwargs))  # noqa: SLF001  # as above
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
