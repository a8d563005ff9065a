"""The statistics of all values that one layer has seen, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from batchnorm.kernels import registry
from batchnorm.kernels.interface import WHOLE_BATCH, Statistics, values_per_channel


def merge(a: Statistics, b: Statistics) -> Statistics:
    r"""Return the statistics of the union of two sets of values, from those of each.

    .. math::
        \mu = \mu_a + \frac{m_b}{m} (\mu_b - \mu_a), \qquad
        v = \frac{m_a}{m} v_a + \frac{m_b}{m} v_b + \frac{m_a m_b}{m^2} (\mu_b - \mu_a)^2

    Parameters
    ----------
    a, b : Statistics
        Of the two sets, with their counts, in the same dtype. A set of no values changes nothing.

    Returns
    -------
    Statistics
        In the same dtype.

    References
    ----------
    DERIVATION (51) to (53). Chan, Golub and LeVeque 1983, The American Statistician 37(3), equations 1.5a, b.
    """
    assert a.count is not None
    assert b.count is not None
    count = a.count + b.count
    share_a, share_b = a.count / count, b.count / count
    apart = b.mean - a.mean
    mean = a.mean + share_b * apart
    var = share_a * a.var + share_b * b.var + (share_a * share_b) * apart**2

    empty_a, empty_b = a.count < 1, b.count < 1

    def unless_empty(of_a: Tensor, of_b: Tensor, of_both: Tensor) -> Tensor:
        return torch.where(empty_b, of_a, torch.where(empty_a, of_b, of_both))

    return Statistics(unless_empty(a.mean, b.mean, mean), unless_empty(a.var, b.var, var), count)


@dataclass
class Population:
    """What one layer has seen so far: the statistics of all values, and the sum of the variances within batches."""

    name: str
    whole: Statistics | None = None
    within: Tensor = field(default_factory=lambda: torch.zeros(()))  # sum over batches of count times var
    calls: int = 0

    @property
    def count(self) -> int:
        """Values per channel."""
        return 0 if self.whole is None else int(self.whole.count)  # type: ignore[arg-type]  # of values: it has one

    def add(self, x: Tensor) -> None:
        """Take in one batch, of shape (N, C, *)."""
        if values_per_channel(x) > 0:
            new = registry.select(x).collect(x.detach(), WHOLE_BATCH)
            within = new.var * new.count  # type: ignore[operator]  # of a batch: it has one
            self.merge(Population(self.name, new, within, 1))

    def merge(self, other: Population) -> None:
        """Take in what has been seen elsewhere."""
        if other.whole is None:
            return
        self.within = other.within if self.whole is None else self.within + other.within
        self.whole = other.whole if self.whole is None else merge(self.whole, other.whole)
        self.calls += other.calls

    def result(self, layer: nn.Module, variance: str) -> dict[str, Tensor]:
        """Return the layer's buffers; raise ValueError where they would not be finite."""
        assert self.whole is not None
        exact = variance == "exact"
        freedom = self.count - (1 if exact else self.calls)  # (42) on the whole; (49) is this for equal counts
        if freedom < 1:
            raise ValueError(
                f"a variance needs more than one value per channel; {self.name or 'the layer'} saw {self.count} in "
                f"{self.calls} batches. Try larger batches."
            )
        mean = self.whole.mean.to(layer.running_mean).view(-1)  # type: ignore[arg-type]  # a tensor, by _refusal
        var = ((self.whole.var * self.count if exact else self.within) / freedom).to(layer.running_var).view(-1)  # type: ignore[arg-type]
        if not bool((mean.isfinite() & var.isfinite()).all()):
            raise ValueError(
                f"population statistics must be finite; those of {self.name or 'the layer'} are not in {mean.dtype}. "
                "The model is as it was. Look for NaN or infinity in the data, in the weights, and in half precision."
            )
        return {"running_mean": mean, "running_var": var, "num_batches_tracked": torch.tensor(self.calls)}
