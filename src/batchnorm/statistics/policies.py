"""Policies: which values share statistics, what is made of these, and what is remembered of them.

A policy is a frozen dataclass. It answers through the methods of `Policy`, of which it overrides the few where it
differs from the batch normalization of the paper; no layer, kernel or derivative knows it by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from batchnorm.kernels.interface import WHOLE_BATCH, Epilogue, Reduction, Running, Statistics, Sums, values_per_channel
from batchnorm.statistics import keys as keys_now
from batchnorm.statistics.running import cumulative_factor, debiased_factor, momentum_of_half_life


class Ledger(Protocol):
    """Takes down what a training forward would remember, instead of the buffers."""

    def take(
        self, policy: Policy, running: Running, statistics: Statistics, momentum: float | Tensor | None, eps: float
    ) -> None:
        """Take down one forward."""


class Part(NamedTuple):
    """Samples of a batch that one set of running statistics serves.

    Attributes
    ----------
    samples : sequence of int, or None
        Which samples; None: all.
    names : mapping of str to str
        The names of the tensors that serve them, by the names of the layer's own; those left out are the layer's own.
    policy : Policy
        The policy among these samples.
    """

    samples: Sequence[int] | None
    names: Mapping[str, str]
    policy: Policy


@dataclass(frozen=True, repr=False)
class Policy:
    """Answer the three questions as the paper does: the base of every policy.

    Parameters
    ----------
    on_single_value : {'error', 'running'}, default='error'
        What a training batch with one value per channel does: raise as torch, or use the running statistics, which it
        leaves as they are (DERIVATION 163).
    on_nonfinite : {'skip', 'keep'}, default='skip'
        What a batch does whose statistics are not finite: leave the buffers alone and be counted in the layer's
        ``num_batches_skipped``, or enter them as in torch. It is decided on the device.
    ledger : Ledger, default=None
        What takes down the statistics of a training forward instead of the buffers, as `batchnorm.hold_statistics` and
        `batchnorm.deferred` have it.
    """

    _: KW_ONLY
    on_single_value: Literal["error", "running"] = "error"
    on_nonfinite: Literal["skip", "keep"] = "skip"
    ledger: Ledger | None = field(default=None, compare=False)

    #: Whether something happens between `collect` and `normalize`, or between `reduce` and `apply`.
    splits: ClassVar[bool] = False
    #: Whether the statistics that normalize are not those of the reduction alone.
    merges: ClassVar[bool] = False
    #: Whether the weight of a batch is not simply the layer's momentum.
    counts: ClassVar[bool] = False
    #: Whether a layer has several sets of running statistics, which serve parts of a batch.
    in_parts: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Find out which of the seams the policy uses."""
        super().__init_subclass__()
        cls.merges = cls.merge is not Policy.merge or cls.total is not Policy.total
        cls.splits = cls.merges or cls.correct is not Policy.correct
        cls.counts = cls.factor is not Policy.factor
        cls.in_parts = cls.parts is not Policy.parts

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.on_single_value not in ("error", "running"):
            raise ValueError(f"on_single_value must be 'error' or 'running'; got {self.on_single_value!r}.")
        if self.on_nonfinite not in ("skip", "keep"):
            raise ValueError(f"on_nonfinite must be 'skip' or 'keep'; got {self.on_nonfinite!r}.")

    def __repr__(self) -> str:
        """Return the constructor's call, with the arguments that are not at their defaults."""
        given = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(given)})"

    def further(self) -> tuple[tuple[str, str], ...]:
        """Return (name of the layer's own, name) of each tensor that a layer holds beyond its own."""
        return ()

    def parts(self, samples: int) -> tuple[Part, ...]:  # noqa: ARG002  # for those who divide them
        """Return the parts of a batch of so many samples, each of which the layer normalizes by itself."""
        return (Part(None, {}, self),)

    def reordered(self, x: Tensor) -> tuple[Tensor, Policy] | None:  # noqa: ARG002  # for those who do
        """Return the order (N,) in which samples are to be normalized in training, and by which policy; None: as is."""
        return None

    def reduction(self, x: Tensor, mask: Tensor | None) -> Reduction | None:
        """Return which values of ``x`` share statistics in training, or None to normalize with the running ones.

        Parameters
        ----------
        x : Tensor of shape (N, C, *)
            The input.
        mask : Tensor of shape (N, 1, *), bool, or None
            The valid values, where a mask was given.
        """
        if self.on_single_value == "running" and values_per_channel(x) == 1:
            return None
        return WHOLE_BATCH if mask is None else Reduction(mask=mask)

    def merge(self, statistics: Statistics) -> Statistics:
        """Return the statistics to normalize with, given those of the reduction; in differentiable operations."""
        return statistics

    def total(self, sums: Sums) -> Sums:
        """Return the sums of the backward pass over all values that share statistics, given those of this batch."""
        return sums

    def correct(self, statistics: Statistics, running: Running, epilogue: Epilogue, eps: float) -> Epilogue:  # noqa: ARG002  # for those who look
        """Return what follows the normalization, given its statistics and the buffers before this batch."""
        return epilogue

    def factor(self, momentum: float | Tensor | None, batches: Tensor | None) -> float | Tensor:
        """Return how much a batch weighs in the running statistics.

        Parameters
        ----------
        momentum : float, Tensor of shape (), or None
            The layer's.
        batches : Tensor of shape (G,) or None
            How many batches the average will hold, for each of the new ones; None without a counter.

        Raises
        ------
        ValueError
            There is no counter, and the weight depends on it.
        """
        return _counted(cumulative_factor, batches) if momentum is None else momentum

    def remember(
        self,
        running: Running,  # noqa: ARG002  # for those who look; so below
        statistics: Statistics,  # noqa: ARG002
        factor: float | Tensor,  # noqa: ARG002
        eps: float,  # noqa: ARG002
    ) -> Tensor | None:
        """Update the running mean and variance in place and return how many groups entered them.

        None: they are to be averaged as in the paper.
        """
        return None


def _counted(factor: Callable[[Tensor], Tensor], batches: Tensor | None) -> Tensor:
    if batches is None:
        raise ValueError(
            "an average that depends on the number of batches needs their counter; num_batches_tracked is None. "
            "Pass that counter, or a momentum such as 0.1."
        )
    return factor(batches)


@dataclass(frozen=True, repr=False)
class Batch(Policy):
    """Normalize with the statistics of the whole batch, as in the paper; the default.

    Parameters
    ----------
    on_single_value : {'error', 'running'}, default='error'
        What a training batch with one value per channel does: raise as torch, or use the running statistics.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`.
    """


#: The policy of a layer that is given none.
BATCH = Batch()


@dataclass(frozen=True, repr=False)
class Ghost(Policy):
    """Normalize each group of ``size`` consecutive samples with its own statistics.

    Outputs, gradients, running statistics and counter are those of a layer that is called once per group, in order.

    Parameters
    ----------
    size : int
        Samples in a group. The last group of a batch may be shorter.
    permuted : bool, default=False
        Whether groups are drawn at random for each batch (from torch's generator) instead of consecutively, so that
        what lies together in a batch, such as views of one image, does not share statistics.

    Raises
    ------
    ValueError
        ``size`` is below 1; when called, a batch whose last group has one value per channel.

    Warns
    -----
    UserWarning
        A batch of fewer samples than ``size`` is one short group.

    References
    ----------
    Hoffer, Hubara and Soudry 2017, :arxiv:`1705.08741`, Algorithm 1. DERIVATION (165) to (167).

    Examples
    --------
    >>> import torch, batchnorm
    >>> layer = batchnorm.BatchNorm1d(3, statistics=batchnorm.Ghost(32))
    >>> layer(torch.randn(128, 3)).shape, layer.num_batches_tracked
    (torch.Size([128, 3]), tensor(4))
    """

    size: int
    permuted: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(
                f"the size of a ghost batch must be an integer of at least 1 sample; got {self.size!r}. Try 32."
            )

    def reordered(self, x: Tensor) -> tuple[Tensor, Policy] | None:
        """Return a random order, where that was asked for."""
        return (torch.randperm(x.shape[0], device=x.device), replace(self, permuted=False)) if self.permuted else None

    def reduction(self, x: Tensor, mask: Tensor | None) -> Reduction | None:
        """Return groups of the batch."""
        whole = super().reduction(x, mask)
        if whole is None or x.shape[0] <= self.size:
            if x.shape[0] < self.size:
                warnings.warn(
                    f"a ghost batch of {self.size} samples is larger than the batch of {x.shape[0]}, which "
                    "is one short group. Try a smaller size, or drop_last=True in the loader.",
                    stacklevel=2,
                )
            return whole
        rest = x.shape[0] % self.size
        if rest == 1 and x.numel() == x.shape[0] * x.shape[1]:
            raise ValueError(
                f"a ghost batch must have more than one value per channel; with size {self.size} the last one of "
                f"{x.shape[0]} samples has 1. Try another size, or drop_last=True in the loader."
            )
        return Reduction(self.size, mask)


@dataclass(frozen=True, repr=False)
class Frozen(Policy):
    """Normalize with the running statistics in training too, and leave them as they are.

    References
    ----------
    DERIVATION (33), (161) with no value counted.

    Examples
    --------
    >>> import torch, batchnorm
    >>> layer = batchnorm.BatchNorm1d(3, statistics=batchnorm.Frozen())
    >>> x = torch.randn(8, 3)
    >>> torch.equal(layer.train()(x), layer.eval()(x)), layer.num_batches_tracked
    (True, tensor(0))
    """

    def reduction(self, x: Tensor, mask: Tensor | None) -> None:
        """Return None: the statistics are constants."""


@dataclass(frozen=True, repr=False)
class Cumulative(Policy):
    """Remember the average of all batches seen, whatever the layer's momentum; ``momentum=None`` in torch's words.

    References
    ----------
    DERIVATION (43).
    """

    def factor(self, momentum: float | Tensor | None, batches: Tensor | None) -> float | Tensor:  # noqa: ARG002  # not asked
        """Return 1 over the number of batches."""
        return _counted(cumulative_factor, batches)


@dataclass(frozen=True, repr=False)
class Debiased(Policy):
    """Remember an exponential average in which the initial values 0 and 1 have no weight.

    Parameters
    ----------
    momentum : float, default=None
        Weight of a new batch in the long run, in (0, 1]. None: the layer's.
    half_life : float, default=None
        Instead of ``momentum``: the number of batches after which the weight of a batch has halved.

    Raises
    ------
    ValueError
        Both are given, or one is out of range.

    References
    ----------
    DERIVATION (179) to (182). Kingma and Ba 2015, :arxiv:`1412.6980`, section 3.

    Examples
    --------
    >>> import torch, batchnorm
    >>> layer = batchnorm.BatchNorm1d(1, statistics=batchnorm.Debiased(0.01))
    >>> y = layer(torch.tensor([[4.0], [6.0]]))
    >>> layer.running_mean, layer.running_var
    (tensor([5.]), tensor([2.]))
    """

    momentum: float | None = None
    half_life: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        _check_average(self.momentum, self.half_life)

    def factor(self, momentum: float | Tensor | None, batches: Tensor | None) -> float | Tensor:
        """Return the weight of a new batch in the debiased average."""
        momentum = _own(self.momentum, self.half_life, momentum)
        if momentum is None:
            return _counted(cumulative_factor, batches)
        return _counted(lambda n: debiased_factor(momentum, n), batches)


@dataclass(frozen=True, repr=False)
class Exponential(Policy):
    """Remember an exponential average given by its half-life, or by a momentum that overrides the layer's.

    Parameters
    ----------
    momentum : float, default=None
        Weight of a new batch, in (0, 1]. None: the layer's.
    half_life : float, default=None
        Instead of ``momentum``: the number of batches after which the weight of a batch has halved.

    Raises
    ------
    ValueError
        Both are given, or one is out of range.

    References
    ----------
    DERIVATION (46), (179), (180).
    """

    momentum: float | None = None
    half_life: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        _check_average(self.momentum, self.half_life)

    def factor(self, momentum: float | Tensor | None, batches: Tensor | None) -> float | Tensor:
        """Return the weight of a new batch."""
        return super().factor(_own(self.momentum, self.half_life, momentum), batches)


def _check_average(momentum: float | None, half_life: float | None) -> None:
    if momentum is not None and half_life is not None:
        raise ValueError(
            f"momentum and half_life say the same thing; got {momentum} and {half_life}. Pass one of them."
        )
    if momentum is not None and not 0 < momentum <= 1:
        raise ValueError(f"momentum must be in (0, 1]; got {momentum}. Try 0.1.")
    if half_life is not None and not half_life > 0:
        raise ValueError(f"half_life must be a positive number of batches; got {half_life}. Try 10.")


def _own(momentum: float | None, half_life: float | None, of_layer: float | Tensor | None) -> float | Tensor | None:
    if half_life is not None:
        return momentum_of_half_life(half_life)
    return of_layer if momentum is None else momentum


@dataclass(frozen=True, repr=False)
class Renorm(Policy):
    r"""Correct the normalization by the batch towards that of the running statistics: Batch Renormalization.

    .. math:: \hat x' = \frac{x - \mu}{q} F + D, \qquad F = \mathrm{clip}(q / \sigma, 1/r_{max}, r_{max}), \quad
        D = \mathrm{clip}((\mu - \mu_{run}) / \sigma, -d_{max}, d_{max})

    with :math:`q` and :math:`\sigma` the deviations of the batch and of the running statistics. No gradient passes
    through F and D.

    Parameters
    ----------
    rmax, dmax : float, default=3.0 and 5.0
        Bounds of the correction; 1 and 0: none.
    start, rmax_end, dmax_end : int, default=5000, 40000 and 25000
        Batches after which the bounds begin to open, linearly from 1 and 0, and after which each is open. With
        ``rmax_end`` or ``dmax_end`` not above ``start`` a bound opens at once.
    average : {'deviation', 'variance'}, default='deviation'
        What is averaged over batches: the biased deviation :math:`q`, as in the paper, or the unbiased variance, as in
        batch normalization. Both keep ``running_var`` so that evaluation divides by :math:`\sigma`.

    Raises
    ------
    ValueError
        ``rmax`` below 1, ``dmax`` below 0, or an unknown ``average``.

    References
    ----------
    Ioffe 2017, :arxiv:`1702.03275`, Algorithm 1. DERIVATION (169) to (176).

    Examples
    --------
    >>> import batchnorm
    >>> layer = batchnorm.BatchNorm2d(64, momentum=0.01, statistics=batchnorm.Renorm())
    """

    rmax: float = 3.0
    dmax: float = 5.0
    start: int = 5000
    rmax_end: int = 40000
    dmax_end: int = 25000
    average: Literal["deviation", "variance"] = "deviation"

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if not self.rmax >= 1 or not self.dmax >= 0:
            raise ValueError(
                f"rmax must be at least 1 and dmax at least 0; got {self.rmax} and {self.dmax}. "
                "Try 3 and 5, or 1 and 0 for no correction."
            )
        if self.average not in ("deviation", "variance"):
            raise ValueError(f"average must be 'deviation' or 'variance'; got {self.average!r}.")

    def correct(self, statistics: Statistics, running: Running, epilogue: Epilogue, eps: float) -> Epilogue:
        """Return an epilogue with the correction in its weight and bias."""
        if running.mean is None or running.var is None:
            raise ValueError(
                "Batch Renormalization needs running statistics; the layer has none. Try track_running_stats=True."
            )
        mean, var = statistics.mean[0].detach(), statistics.var[0].detach()
        rmax, dmax = self.bounds(running.tracked, mean)
        sigma = (running.var.to(var.dtype) + eps).sqrt()
        factor = torch.clamp((var + eps).sqrt() / sigma, 1 / rmax, rmax)
        summand = torch.clamp((mean - running.mean.to(mean.dtype)) / sigma, -dmax, dmax)
        weight, bias = epilogue.weight, epilogue.bias
        corrected = factor if weight is None else weight * factor
        added = summand if weight is None else weight * summand
        return epilogue._replace(weight=corrected, bias=added if bias is None else bias + added)

    def bounds(self, batches: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return rmax and dmax after so many batches, with the dtype of ``like``; open where there is no counter."""

        def opened(end: int) -> Tensor:
            if batches is None:
                return like.new_ones(())
            seen, span = (batches - self.start).to(like.dtype), end - self.start
            return (seen / span).clamp(0, 1) if span > 0 else (seen >= 0).to(like.dtype)

        return 1 + (self.rmax - 1) * opened(self.rmax_end), self.dmax * opened(self.dmax_end)

    def remember(self, running: Running, statistics: Statistics, factor: float | Tensor, eps: float) -> Tensor | None:
        """Average the deviation where the paper does."""
        if self.average == "variance":
            return None
        assert running.mean is not None
        assert running.var is not None
        wide = statistics.var.dtype
        with torch.no_grad():
            usable = statistics.usable(self.on_nonfinite == "skip")
            sigma = (running.var.to(wide) + eps).sqrt()
            mean = torch.lerp(running.mean.to(wide), statistics.mean[0], factor)
            var = torch.lerp(sigma, (statistics.var[0] + eps).sqrt(), factor).square() - eps
            for buffer, moved in ((running.mean, mean), (running.var, var)):
                buffer.copy_(torch.where(usable, moved, buffer.to(wide)))
            return usable.sum()


@dataclass(frozen=True, repr=False)
class Keyed(Policy):
    """Keep running statistics and a counter for each key, and normalize the samples of each key by themselves.

    `batchnorm.key` says which key the samples have. Outputs, gradients and state are those of one layer per key, called
    with its samples; a key without a sample in the batch is left alone.

    Parameters
    ----------
    keys : sequence of str
        Names of the keys. The first one has the layer's own buffers; the others have ``running_mean_<key>``,
        ``running_var_<key>`` and ``num_batches_tracked_<key>``, which begin as copies of these.
    affine : {'shared', 'per key'}, default='shared'
        Whether each key also has ``weight`` and ``bias`` of its own: ``weight_<key>``, ``bias_<key>``.
    each : Policy, default=Batch()
        The policy among the samples of one key.

    Raises
    ------
    ValueError
        No key, two alike, or a name that cannot be part of a buffer's; an unknown ``affine``. When called: without a
        key, with an unknown one, or with another number of keys than samples.
    TypeError
        ``each`` is no policy, or one with keys.

    Notes
    -----
    A ``state_dict`` without the further tensors, such as that of torch's layer, loads: each key begins with its values.
    With ``affine='per key'`` DistributedDataParallel needs ``find_unused_parameters=True`` where batches lack a key.

    References
    ----------
    Chang et al. 2019, :arxiv:`1906.03950`. Xie et al. 2020, :arxiv:`1911.09665`. DERIVATION (168).

    Examples
    --------
    >>> import torch, batchnorm
    >>> layer = batchnorm.BatchNorm1d(3, statistics=batchnorm.Keyed(("source", "target")))
    >>> [name for name, _ in layer.named_buffers() if name.endswith("_target")]
    ['running_mean_target', 'running_var_target', 'num_batches_tracked_target']
    >>> with batchnorm.key("target"):
    ...     y = layer(torch.randn(8, 3))
    >>> layer.num_batches_tracked, layer.num_batches_tracked_target
    (tensor(0), tensor(1))
    """

    keys: tuple[str, ...]
    affine: Literal["shared", "per key"] = "shared"
    each: Policy = BATCH

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        names = () if isinstance(self.keys, str) else tuple(self.keys)
        if (
            not names
            or len(set(names)) < len(names)
            or not all(isinstance(k, str) and k and "." not in k for k in names)
        ):
            raise ValueError(
                f"keys must be distinct names without dots, at least one; got {self.keys!r}. Try ('source', 'target')."
            )
        if self.affine not in ("shared", "per key"):
            raise ValueError(f"affine must be 'shared' or 'per key'; got {self.affine!r}.")
        if not isinstance(self.each, Policy) or self.each.in_parts:
            raise TypeError(f"each must be a policy without keys; got {self.each!r}. Try batchnorm.Batch().")
        object.__setattr__(self, "keys", names)  # a list would not be hashable
        each = replace(self.each, ledger=self.ledger)
        if self.on_single_value == "running":
            each = replace(each, on_single_value="running")
        if self.on_nonfinite == "keep":
            each = replace(each, on_nonfinite="keep")
        object.__setattr__(self, "each", each)

    def _held(self) -> tuple[str, ...]:
        tracked = ("running_mean", "running_var", "num_batches_tracked")
        return tracked if self.affine == "shared" else (*tracked, "weight", "bias")

    def further(self) -> tuple[tuple[str, str], ...]:
        """Return the tensors of all keys but the first."""
        return tuple((own, f"{own}_{key}") for key in self.keys[1:] for own in self._held())

    def parts(self, samples: int) -> tuple[Part, ...]:
        """Return the samples of each key in the batch."""
        given = keys_now.current()
        if given is None:
            raise ValueError(
                f"a layer with statistics per key must be called with a key; it has {list(self.keys)}. "
                f"Try: with batchnorm.key({self.keys[0]!r}): ..."
            )
        if isinstance(given, str):
            return (Part(None, self._names(self._index(given)), self.each),)
        if len(given) != samples:
            raise ValueError(
                f"there must be a key for each of the {samples} samples; got {len(given)}. "
                "Where the model merges dimensions, repeat the keys."
            )
        found: dict[int, list[int]] = {}
        for sample, key in enumerate(given):
            found.setdefault(self._index(key), []).append(sample)
        if len(found) == 1:
            return (Part(None, self._names(next(iter(found))), self.each),)
        return tuple(Part(found[index], self._names(index), self.each) for index in sorted(found))

    def _index(self, key: str | int) -> int:
        if key in self.keys:
            return self.keys.index(key)
        if isinstance(key, int) and 0 <= key < len(self.keys):
            return key
        raise ValueError(f"unknown key {key!r}; the keys of this layer are {list(self.keys)}.")

    def _names(self, index: int) -> dict[str, str]:
        return {own: f"{own}_{self.keys[index]}" for own in self._held()} if index else {}

    def reduction(self, x: Tensor, mask: Tensor | None) -> Reduction | None:  # noqa: ARG002  # as above
        """Raise ValueError: only a layer can divide a batch."""
        raise ValueError(
            "statistics per key belong to a layer, which holds the buffers of all keys. "
            "Try batchnorm.BatchNorm1d(C, statistics=batchnorm.Keyed(...))."
        )
