"""What comes between a layer and its nonlinearity: the arms of a comparison, in one registry.

Another normalization is one entry more: ``NORMS["mine"] = Kind("my normalization", spatial=..., dense=...)``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from batchnorm.lab.errors import LabError, meant
from batchnorm.nn import BatchNorm1d, BatchNorm2d


@dataclass(frozen=True)
class Normalization:
    """How an arm normalizes.

    Parameters
    ----------
    norm : {'none', 'batch', 'torch', 'group', 'layer', 'instance'}
        Which of `NORMS`. batch: this package's batch normalization; torch: torch's own.
    eps : float, default=1e-5
        Added to the variance.
    momentum : float, default=0.1
        Weight of the new batch in the running statistics of batch and torch.
    groups : int, default=32
        Groups of group normalization. Where they do not divide the channels of a layer, it has the largest number
        below that does: 25 for 100 channels.

    Raises
    ------
    LabError
        An unknown norm, or a number out of range.
    """

    norm: str
    eps: float = 1e-5
    momentum: float = 0.1
    groups: int = 32

    def __post_init__(self) -> None:
        """Check every field."""
        if self.norm not in NORMS:
            raise LabError(f"norm must be one of {', '.join(NORMS)}; got {self.norm!r}{meant(self.norm, NORMS)}")
        if not 0 < self.eps < math.inf:
            raise LabError(f"eps must be a finite number above 0; got {self.eps}")
        if not 0 < self.momentum <= 1:
            raise LabError(
                f"momentum must be above 0 and at most 1, as it is the weight of the new batch; got {self.momentum}"
            )
        if self.groups < 1:
            raise LabError(f"groups must be at least 1; got {self.groups}")

    @property
    def bias(self) -> bool:
        """Whether a convolution keeps its bias.

        Batch and instance normalization subtract it again. In the others the bias of the normalization takes its place,
        as in the networks published with them, so that all normalized arms have the same parameters.
        """
        return NORMS[self.norm].spatial is None

    @property
    def dense_bias(self) -> bool:
        """Whether a dense layer keeps its bias: where nothing normalizes it."""
        return NORMS[self.norm].dense is None

    @property
    def description(self) -> str:
        """The arm in a few words, for the report."""
        words = NORMS[self.norm].words
        if self.norm == "group":
            return f"{words}, {self.groups} groups or the most below that divide the channels"
        return words

    def dense(self, units: int) -> list[nn.Module]:
        """Make what comes between a dense layer and its nonlinearity.

        Parameters
        ----------
        units : int
            Outputs of the dense layer, which are of shape (N, units).

        Returns
        -------
        list of Module
            Empty without normalization, and for instance normalization: one value has no variance.
        """
        make = NORMS[self.norm].dense
        return [] if make is None else [make(self, units)]

    def spatial(self, channels: int) -> list[nn.Module]:
        """Make what comes between a convolution and its nonlinearity.

        Parameters
        ----------
        channels : int
            Outputs of the convolution, which are of shape (N, channels, H, W).

        Returns
        -------
        list of Module
            Empty without normalization.
        """
        make = NORMS[self.norm].spatial
        return [] if make is None else [make(self, channels)]

    def groups_for(self, channels: int) -> int:
        """Count the groups of a layer: at most ``groups``, and a divisor of ``channels``."""
        return next(g for g in range(min(self.groups, channels), 0, -1) if channels % g == 0)


@dataclass(frozen=True)
class Kind:
    """One way to normalize.

    Attributes
    ----------
    words : str
        What it is called in a sentence.
    spatial, dense : callable or None
        From the Normalization and the number of channels or units to a layer with a weight and a bias for each of
        them; None where it does not normalize.
    """

    words: str
    spatial: Callable[[Normalization, int], nn.Module] | None
    dense: Callable[[Normalization, int], nn.Module] | None


def _group(n: Normalization, channels: int) -> nn.Module:
    return nn.GroupNorm(n.groups_for(channels), channels, eps=n.eps)


#: Layer normalization of a convolution (Ba, Kiros and Hinton 2016, :arxiv:`1607.06450`) takes its statistics over
#: (C, H, W) of each example. Its weight and bias are here one for each channel: group normalization with one group (Wu
#: and He 2018, :arxiv:`1803.08494`, section 3.1). One for each value would tie the network to one size of image.
NORMS: dict[str, Kind] = {
    "none": Kind("no normalization", None, None),
    "batch": Kind(
        "batch normalization",
        lambda n, channels: BatchNorm2d(channels, eps=n.eps, momentum=n.momentum),
        lambda n, units: BatchNorm1d(units, eps=n.eps, momentum=n.momentum),
    ),
    "torch": Kind(
        "torch's batch normalization",
        lambda n, channels: nn.BatchNorm2d(channels, eps=n.eps, momentum=n.momentum),
        lambda n, units: nn.BatchNorm1d(units, eps=n.eps, momentum=n.momentum),
    ),
    "group": Kind("group normalization", _group, _group),
    "layer": Kind(
        "layer normalization",
        lambda n, channels: nn.GroupNorm(1, channels, eps=n.eps),
        lambda n, units: nn.LayerNorm(units, eps=n.eps),
    ),
    "instance": Kind(
        "instance normalization",
        lambda n, channels: nn.InstanceNorm2d(channels, eps=n.eps, affine=True),
        None,
    ),
}
