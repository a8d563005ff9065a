"""The registered operators: forward, normalize and backward; what they save; their derivatives.

An operator is one node to autograd, ``torch.compile`` and ``torch.export``; which backend computes it is asked inside.
Saved for the backward pass: ``x``, the parameters, two (C,) statistics, and ``residual`` where an activation needs it;
everything else is computed anew. Registration goes through ``torch.library.Library`` and one autograd function per
operator, which costs less per call than ``torch.library.register_autograd`` (docs/decisions/0003).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import composite, registry
from batchnorm.kernels.interface import Gradients, Statistics, statistics_dtype

# What torch.library enters to reach the kernel below autograd; it has no public name.
_below_autograd = torch._C._AutoDispatchBelowAutograd  # noqa: SLF001
# Who might want to see an operator pass; none of these has a public name either.
_dispatch_modes = torch._C._len_torch_dispatch_stack  # noqa: SLF001
_transforms = torch._C._are_functorch_transforms_active  # noqa: SLF001
_profiling = torch.autograd._profiler_enabled  # type: ignore[attr-defined]  # noqa: SLF001

_library = torch.library.Library("batchnorm", "DEF")
_library.define(
    "forward(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, str? activation)"
    " -> (Tensor y, Tensor mean, Tensor var)"
)
_library.define(
    "normalize(Tensor x, Tensor? residual, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps,"
    " str? activation) -> Tensor"
)
_library.define(
    "backward(Tensor dy, Tensor x, Tensor? residual, Tensor mean, Tensor var, Tensor? weight, Tensor? bias,"
    " float eps, str? activation, bool batch_statistics)"
    " -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)"
)

_forward_operator = torch.ops.batchnorm.forward.default
_normalize_operator = torch.ops.batchnorm.normalize.default
_backward_operator = torch.ops.batchnorm.backward.default


# What each operator computes. Arguments arrive in the order of the definitions above.


def _forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return registry.select(x).forward(x, *args)


def _normalize(x: Tensor, *args: Any) -> Tensor:
    return registry.select(x).normalize(x, *args)


def _backward(dy: Tensor, x: Tensor, *args: Any) -> Gradients:
    return registry.select(x).backward(dy, x, *args)


def _backward_in_full(dy: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Be `_backward` for the dispatcher: an operator cannot return None."""
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in _backward(dy, x, *args))


# What each operator returns, for tracing.


def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = (x.new_empty(x.shape[1], dtype=statistics_dtype(x.device)) for _ in range(2))
    return torch.empty_like(x), mean, var


def _normalize_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _backward_fake(_dy: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    residual, _mean, _var, weight, bias, *_ = args
    return tuple(x.new_empty(0) if t is None else torch.empty_like(t) for t in (x, residual, weight, bias))


# Derivatives.


class _Forward(torch.autograd.Function):
    """First derivative where the statistics are those of the batch."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, residual, weight, bias, ctx.eps, ctx.activation = args
        y, mean, var = forward(*args)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, None if ctx.activation is None else residual, mean, var, weight, bias)
        ctx.passes_on = residual is not None and ctx.activation is None
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:  # nobody used y
            return (None,) * 6
        dx, dresidual, dweight, dbias = backward(dy, *ctx.saved_tensors, ctx.eps, ctx.activation, True)
        return dx, dy if ctx.passes_on else dresidual, dweight, dbias, None, None


class _Normalize(torch.autograd.Function):
    """First derivative where the statistics are constants."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, residual, mean, var, weight, bias, ctx.eps, ctx.activation = args
        y = normalize(*args)
        # Copies: a later update of the running statistics must not reach into a backward pass still to come.
        wide = statistics_dtype(x.device)
        mean, var = mean.to(wide, copy=True), var.to(wide, copy=True)
        ctx.save_for_backward(x, None if ctx.activation is None else residual, mean, var, weight, bias)
        ctx.passes_on = residual is not None and ctx.activation is None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dresidual, dweight, dbias = backward(dy, *ctx.saved_tensors, ctx.eps, ctx.activation, False)
        return dx, dy if ctx.passes_on else dresidual, None, None, dweight, dbias, None, None


class _Backward(torch.autograd.Function):
    """Second and higher derivatives: those of `composite.forward`."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *tensors, ctx.eps, ctx.activation, ctx.batch_statistics = args
        ctx.save_for_backward(*tensors)
        with _below_autograd():
            return _backward_operator(*args)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, residual, mean, var, weight, bias = ctx.saved_tensors
        stored = None if ctx.batch_statistics else Statistics(mean, var)
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            dy, x = _tracked_alias(dy), _tracked_alias(x)
            residual, weight, bias = (None if t is None else _tracked_alias(t) for t in (residual, weight, bias))
            y = composite.forward(x, residual, weight, bias, stored, ctx.eps, ctx.activation)
            # What is absent has no gradient: its cotangent belongs to a placeholder.
            pairs = zip((x, residual, weight, bias), cotangents, strict=True)
            inputs, cotangents = zip(*((t, c) for t, c in pairs if t is not None), strict=True)
            firsts = torch.autograd.grad(y, inputs, dy.to(y.dtype), create_graph=True)
            d_dy, *seconds = torch.autograd.grad(
                firsts, (dy, *inputs), cotangents, create_graph=create_graph, allow_unused=True
            )
        given = iter(seconds)
        d_x, d_residual, d_weight, d_bias = (None if t is None else next(given) for t in (x, residual, weight, bias))
        return d_dy, d_x, d_residual, None, None, d_weight, d_bias, None, None, None


def _tracked_alias(tensor: Tensor) -> Tensor:
    """Return a view that autograd tells apart from other uses of the same tensor, with its history where it has one."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


# The way in. An operator can be called in two ways with the same result: through torch's dispatcher, where tracing,
# modes, transforms and profilers see it, or, where nobody looks, directly. That costs less: on 60 x 100 values, without
# a gradient, 12 us instead of 17.


# What `apply` ends in, without its looking for transforms.
_apply_forward: Any = super(torch.autograd.Function, _Forward).apply
_apply_normalize: Any = super(torch.autograd.Function, _Normalize).apply


def nobody_looks(x: Tensor) -> bool:
    """Whether ``x`` is a plain tensor, and nothing traces, transforms or profiles what is done to it."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not _dispatch_modes()
        and not _transforms()
        and not _profiling()
    )


def _needs_grad(*args: Any) -> bool:
    if torch.is_grad_enabled():
        for arg in args:  # a loop: `any` over a generator takes three times as long
            if isinstance(arg, Tensor) and arg.requires_grad:
                return True
    return False


def forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, mean and var of a batch; the arguments of the operator ``batchnorm::forward``, in its order."""
    if not nobody_looks(x):
        return _forward_operator(x, *args)  # type: ignore[no-any-return]  # operators are not annotated; so below
    if _needs_grad(x, *args):
        return _apply_forward(x, *args)  # type: ignore[no-any-return]
    return _forward(x, *args)


def normalize(x: Tensor, *args: Any) -> Tensor:
    """Return y with stored statistics; the arguments of the operator ``batchnorm::normalize``, in its order."""
    if not nobody_looks(x):
        return _normalize_operator(x, *args)  # type: ignore[no-any-return]
    if _needs_grad(x, *args):
        return _apply_normalize(x, *args)  # type: ignore[no-any-return]
    return _normalize(x, *args)


def backward(dy: Tensor, x: Tensor, *args: Any) -> Gradients:
    """Return dx, dresidual, dweight and dbias; the arguments of the operator ``batchnorm::backward``, in its order."""
    if nobody_looks(x) and not _needs_grad(dy, x, *args):
        return _backward(dy, x, *args)
    dx, *others = _backward_operator(dy, x, *args)
    residual, _mean, _var, weight, bias, *_ = args
    of_others = zip(others, (residual, weight, bias), strict=True)
    dresidual, dweight, dbias = (None if tensor is None else gradient for gradient, tensor in of_others)
    return dx, dresidual, dweight, dbias


def _register(operator: Any, compute: Any, fake: Any, function: type[torch.autograd.Function]) -> None:
    def differentiable(*args: Any) -> Any:
        if _needs_grad(*args):
            return function.apply(*args)
        with _below_autograd():
            return operator(*args)

    name = operator.name().removeprefix("batchnorm::").removesuffix(".default")
    _library.impl(name, compute, "CompositeExplicitAutograd")
    _library.impl(name, differentiable, "Autograd")
    torch.library.register_fake(f"batchnorm::{name}", fake, lib=_library)


_register(_forward_operator, _forward, _forward_fake, _Forward)
_register(_normalize_operator, _normalize, _normalize_fake, _Normalize)
_register(_backward_operator, _backward_in_full, _backward_fake, _Backward)
