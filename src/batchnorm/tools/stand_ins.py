"""What `fold` leaves where a layer was, and the way back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from batchnorm.kernels.activations import ACTIVATIONS


class AddActivation(nn.Module):
    """Add a residual, if one is given, and apply an activation: what remains of a folded layer of this package.

    Parameters
    ----------
    activation : str or None
        A name as in `batchnorm.BatchNorm2d`.
    """

    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: A002  # torch's name for it
        """Return ``activation(input + residual)``."""
        y = input if residual is None else input + residual
        return y if self.activation is None else ACTIVATIONS[self.activation].function(y)

    def extra_repr(self) -> str:
        """Return the activation."""
        return f"activation={self.activation!r}"


class OfRank(nn.Module):
    """Return the input, and refuse one of another rank: in that one the channels would lie on another axis.

    Parameters
    ----------
    rank : int
        Number of dimensions.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name for it
        """Return ``input``.

        Raises
        ------
        ValueError
            It has another rank.
        """
        if input.dim() != self.rank:
            raise ValueError(
                f"the normalization that was here was folded for inputs of rank {self.rank}; got rank {input.dim()}. "
                "Pass fold inputs like this one as example_inputs."
            )
        return input

    def extra_repr(self) -> str:
        """Return the rank."""
        return str(self.rank)


class Undo:
    """The way back from a fold: every module, parameter and flag that it has exchanged."""

    def __init__(self) -> None:
        self._former: list[tuple[dict[str, Any], str, Any]] = []

    def __len__(self) -> int:
        return len(self._former)

    def exchange(self, owner: dict[str, Any], name: str, value: Any) -> None:
        """Put ``value`` under a name, and remember the former one."""
        self._former.append((owner, name, owner[name]))
        owner[name] = value

    def restore(self) -> None:
        """Put back the modules and parameters that were there before: the same objects, with the same bits."""
        while self._former:
            owner, name, value = self._former.pop()
            owner[name] = value
