"""``BatchNorm1d``, ``BatchNorm2d`` and ``BatchNorm3d``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from batchnorm import functional
from batchnorm.kernels import watched
from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.statistics.policies import BATCH, Policy

#: The attributes that our layers have beyond torch's, with their defaults.
EXTRAS: dict[str, Any] = {"activation": None, "statistics": BATCH}

#: The tensors of a layer, in the order in which `_run` takes them.
_OWN = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")

#: Attributes that a layer has while, or since, something is attached to it; they are no state.
ATTACHED = ("_observers", "_masks")

#: What `_BatchNorm.observe` calls: ``observer(layer, x, residual, activation)``.
Observer = Callable[[nn.Module, Tensor, Tensor | None, str | None], None]

#: What `_BatchNorm.supply_mask` calls for the mask of a call: ``source(layer, x)``.
MaskSource = Callable[[nn.Module, Tensor], Tensor | None]


def add_buffers(layer: nn.Module) -> None:
    """Give a layer that keeps running statistics the buffer that torch's layer lacks; it is in no state_dict."""
    tracked: Any = layer.num_batches_tracked
    device = None if tracked is None else tracked.device
    layer.register_buffer("num_batches_skipped", torch.zeros((), dtype=torch.long, device=device), persistent=False)


class _Attached(tuple[Any, ...]):
    """What is attached to one layer for the time of a block. Copies and pickles of the layer have nothing."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Attached:
        return _NOTHING

    def __reduce__(self) -> tuple[Any, ...]:
        return _Attached, ()


_NOTHING = _Attached()


def _ended(layer: nn.Module, x: Tensor) -> None:  # noqa: ARG001  # a MaskSource
    """Give no mask, but refuse a recomputation: that of its forward is gone."""
    if watched.in_backward():
        raise RuntimeError(
            f"this {type(layer).__name__} is called in a backward pass after the block that supplied its masks: a "
            "checkpoint would recompute without the mask. Call backward() inside the block, or pass the checkpoint "
            "context_fn=lambda: (contextlib.nullcontext(), batchnorm.masked(model, mask))."
        )


class _BatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  # so that torch's own isinstance checks hold
    """Everything that the three layers share: all but the ranks they accept."""

    activation: str | None = EXTRAS["activation"]
    statistics: Policy = EXTRAS["statistics"]
    num_batches_skipped: Tensor | None
    _observers: _Attached = _NOTHING
    _masks: _Attached = _NOTHING
    _accepted: dict[int, str]  # rank -> shape, in words

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        statistics: Policy | None = None,
    ) -> None:
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be None or one of {sorted(ACTIVATIONS)}; got {activation!r}. "
                "Leave it None and apply another activation after the layer."
            )
        # torch before 2.13 has no argument `bias`: it is passed only where it says something.
        no_bias: dict[str, Any] = {} if bias else {"bias": False}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **no_bias)
        self.activation = activation
        self.statistics = BATCH if statistics is None else statistics
        if track_running_stats:
            add_buffers(self)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; with a policy, add and remove the tensors that it holds beyond the layer's own."""
        if name != "statistics":
            super().__setattr__(name, value)
            return
        if not isinstance(value, Policy):
            raise TypeError(
                f"statistics must be a policy; got {value!r}. Try batchnorm.Batch(), the statistics of the whole batch."
            )
        former, wanted = self.statistics.further(), value.further()
        for _, further in set(former) - set(wanted):
            delattr(self, further)
        for own, further in wanted:
            if (own, further) not in former:
                tensor = getattr(self, own)
                new = None if tensor is None else tensor.detach().clone()
                if own in ("weight", "bias"):
                    learns = new is not None and tensor.requires_grad
                    self.register_parameter(further, None if new is None else nn.Parameter(new, requires_grad=learns))
                else:
                    self.register_buffer(further, new)
        self.__dict__[name] = value

    def reset_running_stats(self) -> None:
        """Reset the running statistics, those of every key included, to 0 and 1, and their counters to 0."""
        super().reset_running_stats()
        self._reset_further("running_mean", "running_var", "num_batches_tracked")

    def reset_parameters(self) -> None:
        """Reset running statistics and parameters, those of every key included."""
        super().reset_parameters()
        self._reset_further("weight", "bias")

    def _reset_further(self, *names: str) -> None:
        with torch.no_grad():
            for own, further in self.statistics.further():
                if own in names and getattr(self, own) is not None:
                    getattr(self, further).copy_(getattr(self, own))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        further = self.statistics.further()
        if not any(prefix + name in state_dict for _, name in further):
            # A checkpoint of torch's layer: every key begins with its values.
            for own, name in further:
                if prefix + own in state_dict:
                    state_dict[prefix + name] = state_dict[prefix + own].clone()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self,
        input: Tensor,  # noqa: A002  # torch's name for it
        residual: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Normalize ``input`` (x everywhere else), add ``residual``, apply the activation.

        Parameters
        ----------
        input : Tensor of shape (N, C, *)
            Floating.
        residual : Tensor of shape (N, C, *), default=None
            Added before the activation.
        mask : Tensor, default=None
            The valid values, as a boolean tensor or as lengths; see `batchnorm.functional.batch_norm`. None: all of
            them, or the mask of `batchnorm.masked`.

        Returns
        -------
        Tensor
            Shape, dtype and memory format of ``input``.

        Raises
        ------
        ValueError
            An input of another rank than the layer takes, or that does not fit in another way.
        TypeError
            A dtype that does not fit.
        """
        x = input
        if not isinstance(x, Tensor) and isinstance(x, fx.Proxy):
            # A leaf, as torch.nn's modules are to torch.fx; it would trace through those of other packages.
            tracer = x.tracer
            given = (x,) if residual is None and mask is None else (x, residual, mask)
            proxy: Any = tracer.create_proxy("call_module", tracer.path_of_module(self), given, {})
            return proxy  # a stand-in for the tensor
        return self.call(x, residual, self.activation, mask)

    def call(
        self, x: Tensor, residual: Tensor | None = None, activation: str | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize with the activation of this call instead of the layer's own.

        Every call of the layer ends here: those of `forward`, and those into which `batchnorm.convert` has fused an
        addition or an activation. No hooks run here; `observe` sees all of them.

        Parameters
        ----------
        x : Tensor of shape (N, C, *)
            Floating.
        residual : Tensor of shape (N, C, *), default=None
            Added before the activation.
        activation : str, default=None
            A name as in the constructor. None: nothing, whatever the layer's own activation.
        mask : Tensor, default=None
            As in `forward`.

        Returns
        -------
        Tensor
            Shape, dtype and memory format of ``x``.

        Raises
        ------
        ValueError, TypeError
            As in `forward`.
        """
        for observer in self._observers:
            observer(self, x, residual, activation)
        self._check_input_dim(x)
        if mask is None and self._masks:
            mask = self._masks[-1](self, x)
        policy = self.statistics
        if policy.in_parts:
            return self._call_in_parts(policy, x, residual, activation, mask)
        # As attributes these cost a tenth of a small layer's call. They are not in the dictionaries where a
        # parametrization or pruning has put something else in their place.
        buffers, parameters = self._buffers, self._parameters
        running_mean = buffers["running_mean"] if "running_mean" in buffers else self.running_mean  # noqa: SIM401  # `get` would look the attribute up
        running_var = buffers["running_var"] if "running_var" in buffers else self.running_var  # noqa: SIM401
        weight = parameters["weight"] if "weight" in parameters else self.weight  # noqa: SIM401
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401
        counter = buffers["num_batches_tracked"] if "num_batches_tracked" in buffers else self.num_batches_tracked  # noqa: SIM401
        return self._run(x, residual, activation, mask, policy, running_mean, running_var, counter, weight, bias)

    def _call_in_parts(
        self, policy: Policy, x: Tensor, residual: Tensor | None, activation: str | None, mask: Tensor | None
    ) -> Tensor:
        """Normalize each part of the batch with the tensors that serve it."""
        results: list[Tensor] = []
        order: list[int] = []
        if mask is not None:
            mask = functional.whole_mask(mask, x)
        for samples, names, inner in policy.parts(x.shape[0]):
            tensors = (getattr(self, names.get(own, own)) for own in _OWN)
            if samples is None:
                return self._run(x, residual, activation, mask, inner, *tensors)
            index = torch.tensor(samples, device=x.device)
            added, kept = (None if t is None else t[index] for t in (residual, mask))
            results.append(self._run(x[index], added, activation, kept, inner, *tensors))
            order += samples
        if not results:
            return torch.empty_like(x)  # no sample, and so no key
        back = torch.tensor(order, device=x.device).argsort()
        return torch.cat(results)[back]

    def _run(
        self,
        x: Tensor,
        residual: Tensor | None,
        activation: str | None,
        mask: Tensor | None,
        policy: Policy,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        counter: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        training, tracks = self.training, self.track_running_stats
        stored = not training or tracks
        return functional.batch_norm(
            x,
            running_mean if stored else None,
            running_var if stored else None,
            weight,
            bias,
            training or (running_mean is None and running_var is None),
            self.momentum,
            self.eps,
            activation=activation,
            residual=residual,
            mask=mask,
            statistics=policy,
            num_batches_tracked=counter if training and tracks else None,
            num_batches_skipped=self._buffers.get("num_batches_skipped") if training and tracks else None,
        )

    def observe(self, observer: Observer) -> AbstractContextManager[None]:
        """Call ``observer(layer, x, residual, activation)`` before each call of the layer inside the block.

        Unlike a forward hook it does not keep `batchnorm.convert` from fusing.

        Parameters
        ----------
        observer : callable
            It must leave the tensors alone; an exception that it raises ends the call.

        Returns
        -------
        context manager
        """
        return self._attach("_observers", observer)

    @contextmanager
    def supply_mask(self, source: MaskSource) -> Iterator[None]:
        """Take the mask of each call that is given none from ``source(layer, x)``, inside the block.

        The innermost block counts. After the block a recomputation of its calls (a checkpoint in a backward pass)
        raises RuntimeError.

        Parameters
        ----------
        source : callable
            It returns a mask as in `forward`, or None.

        Yields
        ------
        None
        """
        if not self._masks:
            self.__dict__["_masks"] = _Attached((_ended,))
        with self._attach("_masks", source):
            yield

    @contextmanager
    def _attach(self, name: str, item: Any) -> Iterator[None]:
        self.__dict__[name] = _Attached((*getattr(self, name), item))
        try:
            yield
        finally:
            left = list(getattr(self, name))
            left.remove(item)
            del self.__dict__[name]
            if left:
                self.__dict__[name] = _Attached(left)

    def extra_repr(self) -> str:
        """Return torch's description of the layer, and the extras that are not at their defaults."""
        extras = [f"{name}={getattr(self, name)}" for name, default in EXTRAS.items() if getattr(self, name) != default]
        return ", ".join([super().extra_repr(), *extras])  # type: ignore[no-untyped-call]  # torch has no annotation here

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  # torch's name for it
        if not isinstance(input, Tensor):
            raise TypeError(f"{type(self).__name__} takes a torch.Tensor; got {type(input).__name__}.")
        if input.dim() not in self._accepted:
            expected = " or ".join(f"{rank}D" for rank in self._accepted)
            raise ValueError(
                f"expected {expected} input (got {input.dim()}D input): {type(self).__name__} takes "
                f"{' or '.join(self._accepted.values())}; the shape is {tuple(input.shape)}. "
                f"{_OTHER_LAYER.get(input.dim(), 'Add or merge dimensions to reach one of these.')}"
            )


_OTHER_LAYER = {
    2: "BatchNorm1d takes this rank.",
    3: "BatchNorm1d takes this rank; add a batch dimension with x.unsqueeze(0) if it is missing.",
    4: "BatchNorm2d takes this rank; add a batch dimension with x.unsqueeze(0) if it is missing.",
    5: "BatchNorm3d takes this rank.",
}


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    r"""Batch normalization of feature vectors and sequences: ``torch.nn.BatchNorm1d`` with residual and activation.

    .. math:: y = \phi\left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta + r\right)

    In training :math:`\mu` and :math:`\sigma^2` are the mean and biased variance of each channel over N (and L); in
    evaluation they are the running statistics. Checkpoints and ``isinstance`` are torch's.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float, default=1e-5
        Added to the variance.
    momentum : float, default=0.1
        Weight of the new batch in the running statistics; None for the cumulative average of all batches seen.
    affine : bool, default=True
        Whether there are ``weight`` and ``bias``.
    track_running_stats : bool, default=True
        Whether to keep running statistics for evaluation; otherwise the batch's are used in both modes.
    device : torch.device, default=None
        Where parameters and buffers live.
    dtype : torch.dtype, default=None
        Of parameters and running statistics.
    bias : bool, default=True
        Whether an affine layer has a ``bias``. False needs a torch whose own layer has this argument.
    activation : {'relu', 'relu6', 'leaky_relu', 'silu', 'hardswish', 'gelu', 'sigmoid', 'tanh'}, default=None
        Applied to the result in the same pass.
    statistics : Policy, default=None
        Which values share statistics, and what is remembered of them. None: those of the whole batch.

    Raises
    ------
    ValueError
        Unknown activation; when called, an input that does not fit (see `batchnorm.functional.batch_norm`).
    TypeError
        ``statistics`` is no policy; when called, a dtype that does not fit.

    Notes
    -----
    Shapes: ``x``, ``residual`` and the result are (N, C) or (N, C, L). Unlike in torch, an empty batch is not counted
    in ``num_batches_tracked`` with ``momentum=None``: the cumulative average would be wrong. An output on the CPU
    cannot be resized; `batchnorm.limit_kept_memory` (0) changes that.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`.

    Examples
    --------
    >>> import torch, batchnorm
    >>> layer = batchnorm.BatchNorm1d(100, activation="relu")
    >>> layer(torch.randn(60, 100)).shape
    torch.Size([60, 100])
    """

    _accepted = {2: "(N, C)", 3: "(N, C, L)"}  # noqa: RUF012  # read only


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    r"""Batch normalization of images: ``torch.nn.BatchNorm2d`` with residual and activation.

    .. math:: y = \phi\left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta + r\right)

    In training :math:`\mu` and :math:`\sigma^2` are the mean and biased variance of each channel over N, H and W; in
    evaluation they are the running statistics. Checkpoints and ``isinstance`` are torch's.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float, default=1e-5
        Added to the variance.
    momentum : float, default=0.1
        Weight of the new batch in the running statistics; None for the cumulative average of all batches seen.
    affine : bool, default=True
        Whether there are ``weight`` and ``bias``.
    track_running_stats : bool, default=True
        Whether to keep running statistics for evaluation; otherwise the batch's are used in both modes.
    device : torch.device, default=None
        Where parameters and buffers live.
    dtype : torch.dtype, default=None
        Of parameters and running statistics.
    bias : bool, default=True
        Whether an affine layer has a ``bias``. False needs a torch whose own layer has this argument.
    activation : {'relu', 'relu6', 'leaky_relu', 'silu', 'hardswish', 'gelu', 'sigmoid', 'tanh'}, default=None
        Applied to the result in the same pass.
    statistics : Policy, default=None
        Which values share statistics, and what is remembered of them. None: those of the whole batch.

    Raises
    ------
    ValueError
        Unknown activation; when called, an input that does not fit (see `batchnorm.functional.batch_norm`).
    TypeError
        ``statistics`` is no policy; when called, a dtype that does not fit.

    Notes
    -----
    Shapes: ``x``, ``residual`` and the result are (N, C, H, W). Unlike in torch, an empty batch is not counted
    in ``num_batches_tracked`` with ``momentum=None``: the cumulative average would be wrong. An output on the CPU
    cannot be resized; `batchnorm.limit_kept_memory` (0) changes that.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`.

    Examples
    --------
    >>> import torch, batchnorm
    >>> layer = batchnorm.BatchNorm2d(64, activation="relu")
    >>> layer(torch.randn(8, 64, 7, 7)).shape
    torch.Size([8, 64, 7, 7])
    """

    _accepted = {4: "(N, C, H, W)"}  # noqa: RUF012  # read only


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    r"""Batch normalization of volumes and videos: ``torch.nn.BatchNorm3d`` with residual and activation.

    .. math:: y = \phi\left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta + r\right)

    In training :math:`\mu` and :math:`\sigma^2` are the mean and biased variance of each channel over N, D, H and W; in
    evaluation they are the running statistics. Checkpoints and ``isinstance`` are torch's.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float, default=1e-5
        Added to the variance.
    momentum : float, default=0.1
        Weight of the new batch in the running statistics; None for the cumulative average of all batches seen.
    affine : bool, default=True
        Whether there are ``weight`` and ``bias``.
    track_running_stats : bool, default=True
        Whether to keep running statistics for evaluation; otherwise the batch's are used in both modes.
    device : torch.device, default=None
        Where parameters and buffers live.
    dtype : torch.dtype, default=None
        Of parameters and running statistics.
    bias : bool, default=True
        Whether an affine layer has a ``bias``. False needs a torch whose own layer has this argument.
    activation : {'relu', 'relu6', 'leaky_relu', 'silu', 'hardswish', 'gelu', 'sigmoid', 'tanh'}, default=None
        Applied to the result in the same pass.
    statistics : Policy, default=None
        Which values share statistics, and what is remembered of them. None: those of the whole batch.

    Raises
    ------
    ValueError
        Unknown activation; when called, an input that does not fit (see `batchnorm.functional.batch_norm`).
    TypeError
        ``statistics`` is no policy; when called, a dtype that does not fit.

    Notes
    -----
    Shapes: ``x``, ``residual`` and the result are (N, C, D, H, W). Unlike in torch, an empty batch is not counted
    in ``num_batches_tracked`` with ``momentum=None``: the cumulative average would be wrong. An output on the CPU
    cannot be resized; `batchnorm.limit_kept_memory` (0) changes that.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`.

    Examples
    --------
    >>> import torch, batchnorm
    >>> layer = batchnorm.BatchNorm3d(8, activation="relu")
    >>> layer(torch.randn(2, 8, 4, 7, 7)).shape
    torch.Size([2, 8, 4, 7, 7])
    """

    _accepted = {5: "(N, C, D, H, W)"}  # noqa: RUF012  # read only
