"""Batch normalization as a function: every check of what a user passes, and the only writer of running statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm import autograd, statistics
from batchnorm.kernels import native, registry
from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import values_per_channel


class InputError(ValueError, RuntimeError):
    """A tensor of the wrong shape or device, or one missing; RuntimeError too because torch's layer raises that."""


class DtypeError(TypeError, NotImplementedError):
    """A tensor of the wrong dtype; NotImplementedError too because torch's layer raises that."""


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Normalize each channel of ``x`` over batch and space, scale, shift, add ``residual``, apply ``activation``.

    .. math:: y = \phi\left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta + r\right)

    with :math:`\mu, \sigma^2` the mean and the biased variance of the batch in training, and the running statistics
    otherwise.

    Parameters
    ----------
    x : Tensor of shape (N, C, *)
        Floating; any strides.
    running_mean, running_var : Tensor of shape (C,) or None
        Updated in place when ``training``; the variance enters unbiased. None: nothing is stored, and ``training``
        must be True. In x's dtype, or float32 for half and bfloat16.
    weight, bias : Tensor of shape (C,), default=None
        The gamma and beta of the paper. None: 1 and 0. Same dtypes as the running statistics.
    training : bool, default=False
        Whether to normalize with the statistics of this batch, and to update the running ones.
    momentum : float or Tensor of shape (), default=0.1
        Weight of the new batch in the running statistics.
    eps : float, default=1e-5
        Added to the variance.
    activation : {'relu', 'relu6', 'leaky_relu', 'silu', 'hardswish', 'gelu', 'sigmoid', 'tanh'}, default=None
        Applied to the result, as in ``torch.nn.functional`` with default arguments. None: nothing.
    residual : Tensor of shape (N, C, *), default=None
        Added before the activation; shape, dtype and device of ``x``.
    out : Tensor of shape (N, C, *), default=None
        Where the result goes: a tensor of the dtype and device of ``x``, which may be ``x`` or ``residual`` itself,
        where no gradient is needed. In evaluation the native backend then takes no further memory.

    Returns
    -------
    Tensor
        Shape, dtype and memory format of ``x``; ``out`` where that is given.

    Raises
    ------
    ValueError
        A shape, device or activation that does not fit; ``eps`` out of range; fewer than two values per channel in
        training, whose variance says nothing; neither batch nor running statistics to normalize with.
    TypeError
        ``x`` is not a floating tensor, or another tensor's dtype does not go with it.

    Notes
    -----
    Statistics are accumulated in float32 or wider from centred values and kept in float64. An empty batch returns an
    empty result and leaves the running statistics alone.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`, Algorithms 1 and 2. Wu and Johnson 2021, :arxiv:`2105.07576`,
    section 3.

    Examples
    --------
    >>> import torch, batchnorm
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> batchnorm.functional.batch_norm(x, None, None, training=True, activation="relu")
    tensor([[0.0000],
            [1.0000]])
    """
    if not (autograd.nobody_looks(x) and native.fit(x, residual, running_mean, running_var, weight, bias)):
        _check_tensors(x, running_mean, running_var, weight, bias, residual)
    count = values_per_channel(x)
    _check_settings(x, running_mean, running_var, training, eps, activation, count)
    if out is not None:
        _check_out(out, x, residual, weight, bias)
    if not training:
        assert running_mean is not None
        assert running_var is not None
        arguments = (x, residual, running_mean, running_var, weight, bias, eps, activation)
        if out is not None and autograd.nobody_looks(x) and _is_apart(out, x, residual):
            return registry.select(x).normalize(*arguments, out)
        y = autograd.normalize(*arguments)
        return y if out is None else out.copy_(y)
    y, mean, var = autograd.forward(x, residual, weight, bias, eps, activation)
    if running_mean is not None and running_var is not None and count > 0:
        statistics.update(running_mean, running_var, mean, var, count, momentum)
    return y if out is None else out.copy_(y)


def _check_out(out: Tensor, x: Tensor, *others: Tensor | None) -> None:
    """Raise unless the result fits into ``out``, and nobody needs what it overwrites."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a torch.Tensor; got {type(out).__name__}. Try torch.empty_like(x).")
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise InputError(
            f"out must be a tensor of shape {tuple(x.shape)}, {x.dtype} on {x.device}, as x; "
            f"got {tuple(out.shape)}, {out.dtype} on {out.device}. Try torch.empty_like(x)."
        )
    needed = any(t is not None and t.requires_grad for t in (out, x, *others))
    if needed and torch.is_grad_enabled():
        raise InputError("out= cannot be used where a gradient is needed. Call it under torch.no_grad().")


def _is_apart(out: Tensor, *inputs: Tensor | None) -> bool:
    """Whether each value of ``out`` has a place of its own, from which no other value of an input is read."""
    reach = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(out.stride(), out.shape, strict=True) if size > 1
    ):
        if stride < reach:
            return False
        reach += stride * (size - 1)
    memory = out.untyped_storage().data_ptr()
    shared = [t for t in inputs if t is not None and t.untyped_storage().data_ptr() == memory]
    return all(t.data_ptr() == out.data_ptr() and t.stride() == out.stride() for t in shared)


def _check_tensors(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Raise, with what must hold, what came and what to try, unless the tensors go together."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor; got {type(x).__name__}. Try torch.as_tensor(x).")
    if not x.is_floating_point():
        raise DtypeError(f'"batch_norm" not implemented for {x.dtype}: x must be floating. Try x.float().')
    if x.dim() < 2:
        raise InputError(
            f"expected (N, C) or (N, C, *) input (got {x.dim()}D input): its shape is {tuple(x.shape)}. "
            "Try x.unsqueeze(0) if the batch dimension is missing."
        )
    for name, tensor in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if tensor is not None:
            _check_per_channel(name, tensor, x, x.shape[1])
    if residual is not None:
        _check_residual(residual, x)


def _check_settings(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    activation: str | None,
    count: int,
) -> None:
    """Raise unless there is something to normalize with, and the numbers make sense."""
    if eps < 0 or (training and eps == 0):
        raise ValueError(
            f"batch_norm eps must be {'positive during training' if training else 'non-negative'}, but got {eps}. "
            "Try the default, 1e-5."
        )
    if (running_mean is None) != (running_var is None):
        raise InputError("running_mean and running_var must either both be None or neither be None.")
    if not training and running_mean is None:
        raise InputError(
            "running_mean must be defined in evaluation mode: there is nothing to normalize with. "
            "Pass running statistics, or training=True to use those of the batch."
        )
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be None or one of {sorted(ACTIVATIONS)}; got {activation!r}. "
            "Leave it None and apply another activation to the result."
        )
    if training and count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}: the variance of "
            "one value is undefined. Use a larger batch (drop_last=True drops a last batch of one), or eval()."
        )


def _check_per_channel(name: str, tensor: Tensor, x: Tensor, channels: int) -> None:
    if tensor.dim() != 1 or tensor.shape[0] != channels:
        raise InputError(
            f"{name} should contain {channels} elements not {tensor.numel()}: one per channel of x, whose shape is "
            f"{tuple(x.shape)} with the channels in dimension 1; {name} has shape {tuple(tensor.shape)}. "
            "Build the layer with the number of channels that reach it, or move them to dimension 1."
        )
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    if tensor.dtype != x.dtype and not (narrow and tensor.dtype == torch.float32):
        raise DtypeError(
            f"mixed dtype: {name} must have x's dtype{' or float32' if narrow else ''}; "
            f"x is {x.dtype}, {name} is {tensor.dtype}. Convert the layer, layer.to({x.dtype}), or x."
        )
    if tensor.device != x.device:
        raise InputError(
            f"x and {name} must be on the same device; x is on {x.device}, {name} on {tensor.device}. "
            f"Try layer.to('{x.device}')."
        )


def _check_residual(residual: Tensor, x: Tensor) -> None:
    if residual.shape != x.shape:
        raise InputError(
            f"residual must have the shape of x, {tuple(x.shape)}; got {tuple(residual.shape)}. "
            "Project it first (a 1x1 convolution in ResNets), or expand it: residual.expand_as(x)."
        )
    if residual.dtype != x.dtype:
        raise DtypeError(
            f"mixed dtype: residual must have x's dtype, {x.dtype}; got {residual.dtype}. Try residual.to({x.dtype})."
        )
    if residual.device != x.device:
        raise InputError(
            f"x and residual must be on the same device; x is on {x.device}, residual on {residual.device}."
        )
