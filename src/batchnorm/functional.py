"""Batch normalization as a function: check, run, remember.

It holds every check of what a user passes, and is the only writer of running statistics and of their counter.
"""

from __future__ import annotations

import numbers
import warnings

import torch
from torch import Tensor

from batchnorm import autograd
from batchnorm.kernels import composite, registry, watched
from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import Epilogue, Running, Statistics, values_per_channel
from batchnorm.statistics.policies import BATCH, Policy


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
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    statistics: Policy | None = None,
    num_batches_tracked: Tensor | None = None,
    num_batches_skipped: Tensor | None = None,
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
    momentum : float, Tensor with one element, or None, default=0.1
        Weight of the new batch in the running statistics. None: 1 over the number of batches, which gives the average
        of all of them; needs ``num_batches_tracked``. Outside [0, 1] a warning says that the average diverges.
    eps : float, default=1e-5
        Added to the variance.
    activation : {'relu', 'relu6', 'leaky_relu', 'silu', 'hardswish', 'gelu', 'sigmoid', 'tanh'}, default=None
        Applied to the result, as in ``torch.nn.functional`` with default arguments. None: nothing.
    residual : Tensor of shape (N, C, *), default=None
        Added before the activation; shape, dtype and device of ``x``.
    mask : Tensor of bool, broadcastable to (N, 1, *), or of int, shape (N,), default=None
        The valid values; integers are lengths, which count them along the last dimension of an (N, C, L) input. Only
        these enter the statistics; the result and all gradients elsewhere are exactly 0. None: all are valid.
    statistics : Policy, default=None
        Which values share statistics, and what is remembered of them. None: those of the whole batch.
    num_batches_tracked : Tensor of int, shape (), default=None
        The counter of training batches; counted up in place when ``training``.
    num_batches_skipped : Tensor of int, shape (), default=None
        The counter of batches whose statistics were not finite, which therefore did not enter the running ones.
    out : Tensor of shape (N, C, *), default=None
        Write the result here instead of allocating: a tensor of the dtype and device of ``x``, which may be ``x`` or
        ``residual``. Not differentiable. In evaluation the native backend then takes no further memory.

    Returns
    -------
    Tensor
        Shape, dtype and memory format of ``x``; ``out`` if that is given.

    Raises
    ------
    ValueError
        A shape, device, mask or activation that does not fit; ``eps`` out of range; fewer than two values per channel
        in training, whose variance is undefined; neither batch nor running statistics to normalize with; a momentum
        of None without a counter; under ``torch.func.vmap`` statistics of several batches for one set of running ones.
    TypeError
        ``x`` is not a floating tensor, another tensor's dtype does not go with it, or ``momentum`` is no number.

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
    unobserved = watched.unobserved()
    if not unobserved and watched.exporting() and not training and mask is None and out is None:
        # The recorded operators check shapes by themselves; a trace must not read them here.
        return composite.standard(x, running_mean, running_var, Epilogue(weight, bias, residual, activation), eps)
    count = registry.fit(x, residual, running_mean, running_var, weight, bias) if unobserved else None
    direct = count is not None
    if count is None:
        _check_tensors(x, running_mean, running_var, weight, bias, residual)
        count = values_per_channel(x)
        direct = unobserved and watched.plain(x, residual, running_mean, running_var, weight, bias)
    policy = BATCH if statistics is None else statistics
    if mask is not None:
        mask = whole_mask(mask, x)
    if out is not None:
        _check_out(out, x, residual, weight, bias)
    reordered = policy.reordered(x) if training else None
    if reordered is not None:
        order, policy = reordered
        residual, mask = (None if t is None else t[order] for t in (residual, mask))
        y = batch_norm(
            *(x[order], running_mean, running_var, weight, bias, training, momentum, eps),
            activation=activation,
            residual=residual,
            mask=mask,
            statistics=policy,
            num_batches_tracked=num_batches_tracked,
            num_batches_skipped=num_batches_skipped,
        )[order.argsort()]
        return y if out is None else out.copy_(y)
    reduction = policy.reduction(x, mask) if training else None
    _check_settings(x, running_mean, running_var, reduction is not None, eps, activation, count)
    epilogue = Epilogue(weight, bias, residual, activation, mask)
    if reduction is None:
        assert running_mean is not None
        assert running_var is not None
        stored = Statistics(running_mean, running_var)
        if out is not None and direct and _is_apart(out, x, residual):
            return autograd.normalize(x, stored, None, epilogue, eps, None, direct, out)
        y = autograd.normalize(x, stored, None, epilogue, eps, None, direct)
        return y if out is None else out.copy_(y)

    momentum = _checked_momentum(momentum)
    running = Running(running_mean, running_var, num_batches_tracked, num_batches_skipped)
    if policy.splits:
        found = policy.merge(autograd.collect(x, reduction, direct))
        epilogue = policy.correct(found, autograd.snapshot(running), epilogue, eps)
        y = autograd.normalize(x, found, reduction, epilogue, eps, policy, direct)
    else:
        y, found = autograd.forward(x, reduction, epilogue, eps, direct)
    if not watched.in_backward():  # else a checkpoint recomputes a forward that has been remembered
        if count > 0:
            remember(policy, running, found, momentum, eps, direct)
        elif momentum is not None and num_batches_tracked is not None:
            # As in torch an empty batch counts, except where the count weighs an average: it has nothing to add.
            num_batches_tracked.add_(1)
    return y if out is None else out.copy_(y)


def remember(
    policy: Policy,
    running: Running,
    found: Statistics,
    momentum: float | Tensor | None,
    eps: float,
    direct: bool = False,
) -> None:
    """Update running statistics and count batches, in place: the only function that does.

    Parameters
    ----------
    policy : Policy
        It weighs the batches; where it has a ledger, that takes them down instead.
    running : Running
        The buffers.
    found : Statistics
        Of the batches, each a group, in order.
    momentum : float, Tensor of shape (), or None
        The layer's.
    eps : float
        The layer's.
    direct : bool, default=False
        Whether torch's dispatcher need not see it.

    Raises
    ------
    ValueError
        The weight of a batch depends on a counter that is None, or ``torch.func.vmap`` maps over the statistics and not
        over the buffers.
    """
    if running.mean is None and running.tracked is None:
        return
    if policy.ledger is not None:
        policy.ledger.take(policy, running, found, momentum, eps)
        return
    finite_only = policy.on_nonfinite == "skip"
    if running.mean is None:
        running.count_groups(found.usable(finite_only).sum(), found)
        return
    if not direct:
        _check_not_mapped(found, running.mean)
    factor = momentum
    if momentum is None or policy.counts:
        usable = found.usable(finite_only)
        factor = policy.factor(momentum, None if running.tracked is None else running.tracked + usable.cumsum(0))
    assert factor is not None
    entered = policy.remember(running, found, factor, eps)
    if entered is None:
        autograd.remember(running, found, factor, finite_only, direct)
    else:
        running.count_groups(entered, found)


def _checked_momentum(momentum: float | Tensor | None) -> float | Tensor | None:
    """Return the momentum as a float, a tensor of shape () or None, or raise."""
    if type(momentum) is not float:
        if momentum is None:
            return None
        if isinstance(momentum, Tensor) and momentum.numel() == 1:
            return momentum.reshape(())
        if isinstance(momentum, bool) or not isinstance(momentum, numbers.Real):
            raise TypeError(
                f"momentum must be a number, a tensor with one element, or None; got {momentum!r}. Try 0.1."
            )
        momentum = float(momentum)
    if not 0 <= momentum <= 1:
        warnings.warn(
            f"momentum={momentum} is outside [0, 1]: the running statistics will diverge. Try 0.1.", stacklevel=3
        )
    return momentum


def whole_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Return a mask as a contiguous bool tensor (N, 1, *), or raise."""
    shape = (x.shape[0], 1, *x.shape[2:])
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor; got {type(mask).__name__}. Try torch.as_tensor(mask).")
    if mask.device != x.device:
        raise InputError(f"x and mask must be on the same device; x is on {x.device}, mask on {mask.device}.")
    if mask.dtype == torch.bool:
        try:
            return mask.expand(shape).contiguous()
        except RuntimeError:
            pass
    elif not mask.is_floating_point() and mask.shape == shape[:1] and x.dim() == 3:
        return (torch.arange(shape[2], device=x.device) < mask.view(-1, 1)).unsqueeze(1)
    raise InputError(
        f"mask must be bool and broadcast to (N, 1, *), here {shape}, or, for an (N, C, L) input, hold N integer "
        f"lengths; got {mask.dtype} of shape {tuple(mask.shape)}. Try mask.unsqueeze(1) for a mask of shape (N, L)."
    )


def _check_not_mapped(found: Statistics, running_mean: Tensor) -> None:
    if watched.batched(found.mean) and not watched.batched(running_mean):
        raise InputError(
            "vmap maps over the batch statistics, but there is one set of running statistics for all of them. "
            "Map over the running statistics too, use track_running_stats=False, or eval()."
        )


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
    """Return whether each value of ``out`` has an address of its own, at which no input has another value.

    Addresses are compared, not storages: two tensors made from views of one NumPy array share memory, not a storage.
    """
    reach = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(out.stride(), out.shape, strict=True) if size > 1
    ):
        if stride < reach:
            return False
        reach += stride * (size - 1)
    begin, end = _addresses(out)
    for t in inputs:
        if t is None or (t.data_ptr() == begin and t.stride() == out.stride()):
            continue
        first, last = _addresses(t)
        if first < end and begin < last:
            return False
    return True


def _addresses(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of the first byte and of the one after the last."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


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
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}. Try torch.as_tensor({name}).")
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
