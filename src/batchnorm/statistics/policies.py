"""Policies: which values share statistics, what is made of these, and what is remembered of them.

A policy is a frozen dataclass. It answers through the methods of `Policy`, of which it overrides the few where it
differs from the batch normalization of the paper; no layer, kernel or derivative knows it by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from batchnorm.kernels.interface import WHOLE_BATCH, Epilogue, Reduction, Statistics, Sums


@dataclass(frozen=True)
class Policy:
    """Normalize with the statistics of the whole batch; the base of every other policy."""

    #: Whether something happens between `collect` and `normalize`, or between `reduce` and `apply`.
    splits: ClassVar[bool] = False
    #: Whether the statistics that normalize are not those of the reduction alone.
    merges: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Find out which of the seams the policy uses."""
        super().__init_subclass__()
        cls.merges = cls.merge is not Policy.merge or cls.total is not Policy.total
        cls.splits = cls.merges or cls.correct is not Policy.correct

    def reduction(self, x: Tensor, mask: Tensor | None) -> Reduction | None:  # noqa: ARG002  # for those who look
        """Return which values of ``x`` share statistics in training, or None to normalize with the running ones.

        Parameters
        ----------
        x : Tensor of shape (N, C, *)
            The input.
        mask : Tensor of shape (N, 1, *), bool, or None
            The valid values, where a mask was given.
        """
        return WHOLE_BATCH if mask is None else Reduction(mask=mask)

    def merge(self, statistics: Statistics) -> Statistics:
        """Return the statistics to normalize with, given those of the reduction; in differentiable operations."""
        return statistics

    def total(self, sums: Sums) -> Sums:
        """Return the sums of the backward pass over all values that share statistics, given those of this batch."""
        return sums

    def correct(
        self,
        statistics: Statistics,  # noqa: ARG002  # for those who look
        running: Statistics | None,  # noqa: ARG002
        epilogue: Epilogue,
    ) -> Epilogue:
        """Return what follows the normalization, given its statistics and the running ones before this batch."""
        return epilogue


#: The batch normalization of the paper.
BATCH = Policy()
