"""The statistics of all values that one layer has seen, batch by batch."""

from __future__ import annotations

import statistics
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


#: Most units of `Population.half_widths`. When there are so many, neighbours are joined, which leaves half as many.
MOST_UNITS = 64
#: Probability with which an interval of `Population.half_widths` holds the true value.
CONFIDENCE = 0.95


@dataclass
class Population:
    """Statistics of all values that one layer has seen, and what is needed to say how sure they are."""

    name: str
    whole: Statistics | None = None
    within: Tensor = field(default_factory=lambda: torch.zeros(()))  # sum over batches of count times var
    calls: int = 0
    units: list[Statistics] = field(default_factory=list)  # of equally many consecutive calls each, but for the last
    span: int = 1  # calls in a unit

    @property
    def count(self) -> int:
        """Values per channel."""
        return 0 if self.whole is None else int(self.whole.count)  # type: ignore[arg-type]  # of values: it has one

    def add(self, x: Tensor) -> None:
        """Take in one batch, of shape (N, C, *)."""
        if values_per_channel(x) > 0:
            new = registry.select(x).collect(x.detach(), WHOLE_BATCH)
            within = new.var * new.count  # type: ignore[operator]  # of a batch: it has one
            self._join(new)
            self.merge(Population(self.name, new, within, 1))

    def _join(self, new: Statistics) -> None:
        """Take one call into the units."""
        if self.calls % self.span:
            self.units[-1] = merge(self.units[-1], new)
            return
        if len(self.units) == MOST_UNITS:
            self.units = [*map(merge, self.units[::2], self.units[1::2])]
            self.span *= 2
        self.units.append(new)

    def merge(self, other: Population) -> None:
        """Take in what has been seen elsewhere."""
        if other.whole is None:
            return
        self.within = other.within if self.whole is None else self.within + other.within
        self.whole = other.whole if self.whole is None else merge(self.whole, other.whole)
        self.calls += other.calls

    def half_widths(self) -> tuple[Tensor, Tensor]:
        r"""Return half the width of the confidence interval of the mean and of the variance of each channel.

        .. math::
            h_\mu^2 = t^2 \frac{K}{K - 1} \sum_k p_k^2 (\mu_k - \mu)^2, \qquad
            h_v^2 = t^2 \frac{K}{K - 1} \sum_k p_k^2 \bigl(v_k + (\mu_k - \mu)^2 - v\bigr)^2

        The units k are the calls, or joined neighbours, and t is the quantile of Student's distribution for
        :math:`K - 1` degrees of freedom. Values within a unit may depend on each other, as the pixels of an image do.

        Returns
        -------
        tuple of Tensor of shape (1, C)
            Infinite for fewer than two units.

        References
        ----------
        DERIVATION (187), (188).
        """
        assert self.whole is not None
        mean, var, _ = self.whole
        number = len(self.units)
        if number < 2:
            return torch.full_like(mean, torch.inf), torch.full_like(var, torch.inf)
        means, variances, counts = (torch.stack([getattr(u, name) for u in self.units]) for name in Statistics._fields)
        shares = counts / counts.sum(0)
        apart = means - mean
        scale = _student(number - 1) * (number / (number - 1)) ** 0.5
        squared = apart**2
        return scale * (shares * apart).norm(dim=0), scale * (shares * (variances + squared - var)).norm(dim=0)

    def uncertainty(self, eps: float) -> float:
        """Return how far the confidence intervals reach, in the worst channel, as an error of the layer's output.

        The half-width of the mean in deviations of the channel, or that of the deviation relative to it, whichever is
        larger: ``max(h_mean / sqrt(var + eps), h_var / (2 * (var + eps)))``.
        """
        assert self.whole is not None
        of_mean, of_var = self.half_widths()
        padded = self.whole.var + eps
        return float(torch.maximum(of_mean / padded.sqrt(), of_var / (2 * padded)).max())

    def result(self, layer: nn.Module, variance: str, prior: float = 0.0) -> dict[str, Tensor]:
        """Return the layer's new buffers, in which the stored ones weigh ``prior``; raise ValueError if not finite."""
        assert self.whole is not None
        exact = variance == "exact"
        freedom = self.count - (1 if exact else self.calls)  # (42) on the whole; (49) is this for equal counts
        if freedom < 1:
            raise ValueError(
                f"a variance needs more than one value per channel; {self.name or 'the layer'} saw {self.count} in "
                f"{self.calls} batches. Try larger batches."
            )
        mean, var = self.whole.mean, (self.whole.var * self.count if exact else self.within) / freedom
        calls = torch.tensor(self.calls)
        if prior > 0:
            old = [getattr(layer, name).detach().to(mean) for name in ("running_mean", "running_var")]
            apart = mean - old[0]
            mean = mean - prior * apart
            var = (1 - prior) * var + prior * old[1] + prior * (1 - prior) * apart**2  # (50)
            if isinstance(layer.num_batches_tracked, Tensor):
                calls = calls + layer.num_batches_tracked.cpu()
        mean, var = mean.to(layer.running_mean).view(-1), var.to(layer.running_var).view(-1)  # type: ignore[arg-type]
        if not bool((mean.isfinite() & var.isfinite()).all()):
            raise ValueError(
                f"population statistics must be finite; those of {self.name or 'the layer'} are not in {mean.dtype}. "
                "The model is as it was. Look for NaN or infinity in the data, in the weights, in half precision"
                f"{', and in the stored statistics: prior=0 leaves them out' if prior else ''}."
            )
        return {"running_mean": mean, "running_var": var, "num_batches_tracked": calls}


def _student(freedom: int) -> float:
    """Return the two-sided quantile of Student's distribution; Abramowitz and Stegun 26.7.5, within 2 % from 4 on."""
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term * (1 / freedom) ** i for i, term in enumerate(terms))
