"""The registered operators: their shapes for tracing, what they save, their derivatives of every order.

An operator is one node to autograd and ``torch.compile``; the registry picks the backend inside. Two autograd functions
save for the backward pass: the fused path, in which a kernel finds statistics and normalizes with them, and the split
path, in which the statistics are given. Both save ``x``, the parameters, and the residual only below an activation, and
keep the statistics, which are neither input nor output; everything else is computed anew. Derivatives beyond the first,
forward mode, ``torch.func`` and what is exported are made of `batchnorm.kernels.composite`.

Registration goes through ``torch.library.Library`` and an autograd function, which costs less per call than
``torch.library.register_autograd`` (docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import composite, eager, registry, watched
from batchnorm.kernels.interface import Epilogue, Gradients, Reduction, Running, Statistics, Sums, statistics_dtype
from batchnorm.statistics.policies import Policy

_compiling = torch.compiler.is_compiling

# What torch.library enters to reach the kernel below autograd; it has no public name.
_below_autograd = torch._C._AutoDispatchBelowAutograd  # noqa: SLF001

_REDUCTION = "SymInt? group_size, Tensor? members"
_STATISTICS = "Tensor mean, Tensor var, Tensor? count"
_EPILOGUE = "Tensor? weight, Tensor? bias, Tensor? residual, str? activation, Tensor? mask, float eps"

_library = torch.library.Library("batchnorm", "DEF")
_library.define(f"collect(Tensor x, {_REDUCTION}) -> (Tensor mean, Tensor var, Tensor count)")
_library.define(f"normalize(Tensor x, {_STATISTICS}, {_REDUCTION}, {_EPILOGUE}) -> Tensor")
_library.define(f"forward(Tensor x, {_REDUCTION}, {_EPILOGUE}) -> (Tensor y, Tensor mean, Tensor var, Tensor count)")
_library.define(
    f"reduce(Tensor dy, Tensor x, {_STATISTICS}, {_REDUCTION}, {_EPILOGUE}) -> (Tensor sum_dy, Tensor sum_dy_xhat)"
)
_library.define(
    f"apply(Tensor dy, Tensor x, {_STATISTICS}, Tensor sum_dy, Tensor sum_dy_xhat, {_REDUCTION}, {_EPILOGUE})"
    " -> (Tensor dx, Tensor dresidual)"
)
_library.define(
    f"backward(Tensor dy, Tensor x, {_STATISTICS}, {_REDUCTION}, {_EPILOGUE})"
    " -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)"
)
_library.define(
    "remember(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? num_batches_tracked,"
    " Tensor(d!)? num_batches_skipped, Tensor mean, Tensor var, Tensor count, float factor, bool finite_only) -> ()"
)
_library.define("snapshot(Tensor buffer) -> Tensor")
_ops = torch.ops.batchnorm


#: The values that `normalize`, `reduce`, `apply` and `backward` take.
_Values = tuple[Statistics, Reduction | None, Epilogue, float]


# The order of the definitions above is known here only.


def _spread(statistics: Statistics, reduction: Reduction | None, epilogue: Epilogue, eps: float) -> tuple[Any, ...]:
    return (*statistics, *(reduction or (None, None)), *epilogue, eps)


def _gathered(flat: tuple[Any, ...]) -> _Values:
    statistics = Statistics(*flat[:3])
    reduction = None if statistics.count is None else Reduction(*flat[3:5])
    return statistics, reduction, Epilogue(*flat[5:10]), flat[10]


# What each operator computes: arguments arrive in the order of the definitions above.


def _collect(x: Tensor, *reduction: Any) -> Statistics:
    among = Reduction(*reduction)
    return registry.select(x, among).collect(x, among)


def _normalize(x: Tensor, *flat: Any) -> Tensor:
    call = _gathered(flat)
    return registry.select(x, *call[1:3]).normalize(x, *call)


def _forward(x: Tensor, *flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    reduction, epilogue = Reduction(*flat[:2]), Epilogue(*flat[2:7])
    y, statistics = registry.select(x, reduction, epilogue).forward(x, reduction, epilogue, flat[7])
    return y, *statistics


def _reduce(dy: Tensor, x: Tensor, *flat: Any) -> Sums:
    call = _gathered(flat)
    return registry.select(x, *call[1:3]).reduce(dy, x, *call)


def _apply(dy: Tensor, x: Tensor, *flat: Any) -> tuple[Tensor, Tensor]:
    call, sums = _gathered(flat[:3] + flat[5:]), Sums(*flat[3:5])
    dx, dresidual = registry.select(x, *call[1:3]).apply(dy, x, call[0], sums, *call[1:])
    return dx, x.new_empty(0) if dresidual is None else dresidual


def _backward(dy: Tensor, x: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    call = _gathered(flat)
    gradients = registry.select(x, *call[1:3]).backward(dy, x, *call)
    # An operator cannot return None.
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _remember(
    running_mean: Tensor, running_var: Tensor, tracked: Tensor | None, skipped: Tensor | None, *flat: Any
) -> None:
    running = Running(running_mean, running_var, tracked, skipped)
    remember(running, Statistics(*flat[:3]), flat[3], flat[4], direct=True)


# What each operator returns, for tracing.


def _collect_fake(x: Tensor, *reduction: Any) -> tuple[Tensor, Tensor, Tensor]:
    groups, dtype = Reduction(*reduction).groups(x.shape[0]), statistics_dtype(x.device)
    mean, var = (x.new_empty(groups, x.shape[1], dtype=dtype) for _ in range(2))
    return mean, var, x.new_empty(groups, 1, dtype=dtype)


def _normalize_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _forward_fake(x: Tensor, *flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *_collect_fake(x, *flat[:2])


def _reduce_fake(_dy: Tensor, x: Tensor, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    groups = 1 if mean.dim() == 1 else mean.shape[0]
    first, second = (x.new_empty(groups, x.shape[1], dtype=statistics_dtype(x.device)) for _ in range(2))
    return first, second


def _apply_fake(_dy: Tensor, x: Tensor, *flat: Any) -> tuple[Tensor, Tensor]:
    residual = flat[9]
    return torch.empty_like(x), x.new_empty(0) if residual is None else torch.empty_like(x)


def _backward_fake(_dy: Tensor, x: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    weight, bias, residual = flat[5:8]
    return tuple(x.new_empty(0) if t is None else torch.empty_like(t) for t in (x, residual, weight, bias))


# Derivatives. Tensors that may need a gradient go in flat, where autograd sees them, beside the values that hold them.


class _Fused(torch.autograd.Function):
    """First derivative where a kernel finds the statistics and normalizes with them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _weight: Tensor | None,
        _bias: Tensor | None,
        _residual: Tensor | None,
        reduction: Reduction,
        epilogue: Epilogue,
        eps: float,
        direct: bool,
        out: list[Statistics],
    ) -> Tensor:
        if direct:
            y, statistics = registry.select(x, reduction, epilogue).forward(x, reduction, epilogue, eps)
        else:
            y, statistics = forward(x, reduction, epilogue, eps, direct)
        out.append(statistics)
        _save(ctx, x, statistics, reduction, epilogue, eps, direct)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:  # y is not used
            return (None,) * 9
        x, call = _saved(ctx)
        return *_in_order(ctx, dy, call, backward(dy, x, *call, ctx.direct)), None, None, None, None, None


class _Split(torch.autograd.Function):
    """First derivative where the statistics are given: constants, or what a policy made of those of the batch."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _weight: Tensor | None,
        _bias: Tensor | None,
        _residual: Tensor | None,
        statistics: Statistics,
        reduction: Reduction | None,
        epilogue: Epilogue,
        eps: float,
        policy: Policy | None,
        direct: bool,
    ) -> Tensor:
        y = normalize(x, statistics, reduction, epilogue, eps, policy, direct)
        if reduction is None:
            # Copies: a later update of the running statistics must not reach into a backward pass still to come.
            wide = statistics_dtype(x.device)
            statistics = Statistics(statistics.mean.to(wide, copy=True), statistics.var.to(wide, copy=True))
        ctx.policy = policy
        _save(ctx, x, statistics, reduction, epilogue, eps, direct)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 10
        x, call = _saved(ctx)
        policy = ctx.policy
        if policy is None or not policy.merges:
            gradients = backward(dy, x, *call, ctx.direct)
        elif torch.is_grad_enabled() or watched.transformed(dy):
            gradients = _composite_backward(dy, x, call, policy)
        else:
            gradients = _split_backward(dy, x, call, policy)
        return *_in_order(ctx, dy, call, gradients), None, None, None, None, None, None


def _save(
    ctx: Any,
    x: Tensor,
    statistics: Statistics,
    reduction: Reduction | None,
    epilogue: Epilogue,
    eps: float,
    direct: bool,
) -> None:
    weight, bias, residual, activation, mask = epilogue
    # The statistics are no input and no output: as attributes they cost less than as saved tensors.
    ctx.constants = statistics, reduction, activation, eps
    ctx.direct = direct
    ctx.passes_on = residual is not None and activation is None  # then the gradient of the residual is dy
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, None if activation is None else residual, mask)


def _saved(ctx: Any) -> tuple[Tensor, _Values]:
    x, weight, bias, residual, mask = ctx.saved_tensors
    statistics, reduction, activation, eps = ctx.constants
    return x, (statistics, reduction, Epilogue(weight, bias, residual, activation, mask), eps)


def _in_order(ctx: Any, dy: Tensor, call: _Values, gradients: Gradients) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight, bias and residual."""
    dx, dresidual, dweight, dbias = gradients
    if ctx.passes_on:
        mask = call[2].mask
        dresidual = dy if mask is None else torch.where(mask, dy, 0)
    return dx, dweight, dbias, dresidual


def _split_backward(dy: Tensor, x: Tensor, call: _Values, policy: Policy) -> Gradients:
    """Return all gradients, with what the policy adds to the sums between the two halves."""
    statistics, reduction, epilogue, eps = call
    sums = reduce(dy, x, statistics, reduction, epilogue, eps)
    dx, dresidual = apply(dy, x, statistics, policy.total(sums), reduction, epilogue, eps)
    weight, bias = epilogue.weight, epilogue.bias
    return Gradients(
        dx,
        dresidual,
        None if weight is None else sums.sum_dy_xhat.sum(0).to(weight.dtype),
        None if bias is None else sums.sum_dy.sum(0).to(bias.dtype),
    )


class _Backward(torch.autograd.Function):
    """Second and higher derivatives: those of `composite`."""

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dy, x, mean, var, count, ctx.group_size, members, weight, bias, residual, ctx.activation, mask, ctx.eps = flat
        ctx.save_for_backward(dy, x, mean, var, count, members, weight, bias, residual, mask)
        with _below_autograd():
            return _ops.backward(*flat)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, mean, var, count, members, weight, bias, residual, mask = ctx.saved_tensors
        reduction = None if count is None else Reduction(ctx.group_size, members)
        epilogue = Epilogue(weight, bias, residual, ctx.activation, mask)
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            dy = _tracked_alias(dy)
            inputs, firsts = _first_derivatives(
                dy, x, (Statistics(mean, var, count), reduction, epilogue, ctx.eps), None, create_graph=True
            )
            # What is absent has no gradient: its cotangent belongs to a placeholder.
            pairs = [(t, c) for t, c in zip(inputs, cotangents, strict=True) if t is not None]
            present, cotangents = zip(*pairs, strict=True)
            d_dy, *seconds = torch.autograd.grad(
                firsts, (dy, *present), cotangents, create_graph=create_graph, allow_unused=True
            )
        given = iter(seconds)
        d_x, d_residual, d_weight, d_bias = (None if t is None else next(given) for t in inputs)
        return d_dy, d_x, None, None, None, None, None, d_weight, d_bias, d_residual, None, None, None


def _tracked_alias(tensor: Tensor) -> Tensor:
    """Return a view that autograd tells apart from other uses of the same tensor, with its history where it has one."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _first_derivatives(
    dy: Tensor,
    x: Tensor,
    call: _Values,
    policy: Policy | None,
    create_graph: bool,
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor, ...]]:
    """Return aliases of (x, residual, weight, bias), and the gradients of those that are there, by autograd."""
    statistics, reduction, epilogue, eps = call
    with torch.enable_grad():
        x = _tracked_alias(x)
        weight, bias, residual = (None if t is None else _tracked_alias(t) for t in epilogue[:3])
        if reduction is not None:
            statistics = composite.collect(x, reduction)
            statistics = statistics if policy is None else policy.merge(statistics)
        y = composite.normalize(x, statistics, reduction, Epilogue(weight, bias, residual, *epilogue[3:]), eps)
        inputs = (x, residual, weight, bias)
        present = [t for t in inputs if t is not None]
        return inputs, torch.autograd.grad(y, present, dy.to(y.dtype), create_graph=create_graph)


def _composite_backward(dy: Tensor, x: Tensor, call: _Values, policy: Policy | None = None) -> Gradients:
    """Return all gradients by differentiating `composite`: for transforms, and derivatives through a policy."""
    inputs, firsts = _first_derivatives(dy, x, call, policy, create_graph=torch.is_grad_enabled())
    given = iter(firsts)
    dx, dresidual, dweight, dbias = (None if t is None else next(given) for t in inputs)
    assert dx is not None
    return Gradients(dx, dresidual, dweight, dbias)


# The way in. An operator can be called in two ways with the same result: through torch's dispatcher, where tracing,
# modes, transforms and profilers see it, or, where `direct`, without it. That costs less: on 60 x 100 values, without
# a gradient, 6 us instead of 19 (one thread, AVX-512).


# What `apply` ends in, without its looking for transforms.
_apply_fused: Any = super(torch.autograd.Function, _Fused).apply
_apply_split: Any = super(torch.autograd.Function, _Split).apply


def _needs_grad(x: Tensor, epilogue: Epilogue) -> bool:
    if torch.is_grad_enabled():
        if x.requires_grad:
            return True
        for t in epilogue[:3]:  # a loop: `any` over a generator takes three times as long
            if t is not None and t.requires_grad:
                return True
    return False


def _decomposed() -> bool:
    """Whether a call is made of torch's own operations, for who differentiates or records them."""
    return watched.transformed() or watched.exporting()


def collect(x: Tensor, reduction: Reduction, direct: bool) -> Statistics:
    """Return the statistics of ``x``, for a policy to look at; not differentiable, except under transforms."""
    if direct:
        return registry.select(x, reduction).collect(x.detach(), reduction)
    if _decomposed():
        return composite.collect(x, reduction)
    return Statistics(*_ops.collect(x, *reduction))


def forward(x: Tensor, reduction: Reduction, epilogue: Epilogue, eps: float, direct: bool) -> tuple[Tensor, Statistics]:
    """Return y and the statistics of the batch."""
    if direct:
        if _needs_grad(x, epilogue):
            out: list[Statistics] = []
            return _apply_fused(x, *epilogue[:3], reduction, epilogue, eps, True, out), out[0]
        return registry.select(x, reduction, epilogue).forward(x, reduction, epilogue, eps)
    if _decomposed():
        found = composite.collect(x, reduction)
        return composite.normalize(x, found, reduction, epilogue, eps).to(x.dtype), found
    y, *statistics = _ops.forward(x, *reduction, *epilogue, eps)
    return y, Statistics(*statistics)


def normalize(
    x: Tensor,
    statistics: Statistics,
    reduction: Reduction | None,
    epilogue: Epilogue,
    eps: float,
    policy: Policy | None,
    direct: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Return y with given statistics: constants without a ``reduction``, else what ``policy`` made of the batch's."""
    if direct:
        if _needs_grad(x, epilogue):
            y: Tensor = _apply_split(x, *epilogue[:3], statistics, reduction, epilogue, eps, policy, True)
            return y
        return registry.select(x, reduction, epilogue).normalize(x, statistics, reduction, epilogue, eps, out)
    if _decomposed():
        return composite.normalize(x, statistics, reduction, epilogue, eps).to(x.dtype)
    if policy is not None and policy.merges and _needs_grad(x, epilogue):
        split: Tensor = _Split.apply(x, *epilogue[:3], statistics, reduction, epilogue, eps, policy, False)  # type: ignore[no-untyped-call]  # torch has no annotation here
        return split
    return _ops.normalize(x, *_spread(statistics, reduction, epilogue, eps))  # type: ignore[no-any-return]


def reduce(
    dy: Tensor, x: Tensor, statistics: Statistics, reduction: Reduction | None, epilogue: Epilogue, eps: float
) -> Sums:
    """Return the two sums of the backward pass."""
    if watched.unobserved() and watched.plain(dy, x, *statistics, *epilogue[:3]):
        return registry.select(x, reduction, epilogue).reduce(dy, x, statistics, reduction, epilogue, eps)
    return Sums(*_ops.reduce(dy, x, *_spread(statistics, reduction, epilogue, eps)))


def apply(
    dy: Tensor,
    x: Tensor,
    statistics: Statistics,
    sums: Sums,
    reduction: Reduction | None,
    epilogue: Epilogue,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """Return dx and dresidual, given the sums over all values that share statistics."""
    if watched.unobserved() and watched.plain(dy, x, *statistics, *epilogue[:3]):
        return registry.select(x, reduction, epilogue).apply(dy, x, statistics, sums, reduction, epilogue, eps)
    flat = _spread(statistics, reduction, epilogue, eps)
    dx, dresidual = _ops.apply(dy, x, *flat[:3], *sums, *flat[3:])
    return dx, None if epilogue.residual is None else dresidual


def backward(
    dy: Tensor,
    x: Tensor,
    statistics: Statistics,
    reduction: Reduction | None,
    epilogue: Epilogue,
    eps: float,
    direct: bool,
) -> Gradients:
    """Return the gradients of all inputs; ``direct`` as in the forward pass, whose tensors are then known."""
    others = () if direct else (*statistics, *epilogue[:3])
    if watched.unobserved() and watched.plain(dy, x, *others):
        if not (torch.is_grad_enabled() and (dy.requires_grad or _needs_grad(x, epilogue))):
            return registry.select(x, reduction, epilogue).backward(dy, x, statistics, reduction, epilogue, eps)
    elif watched.transformed(dy):
        return _composite_backward(dy, x, (statistics, reduction, epilogue, eps))
    dx, *rest = _ops.backward(dy, x, *_spread(statistics, reduction, epilogue, eps))
    of_others = zip(rest, (epilogue.residual, epilogue.weight, epilogue.bias), strict=True)
    dresidual, dweight, dbias = (None if tensor is None else gradient for gradient, tensor in of_others)
    return Gradients(dx, dresidual, dweight, dbias)


def snapshot(running: Running) -> Running:
    """Return the buffers as a policy may read them before their update.

    A compiler computes cheap operations again in the backward pass, when the buffers have changed: it gets copies, by
    an operator that it does not compute again.
    """
    if not _compiling():
        return running
    return Running(*(None if buffer is None else _ops.snapshot(buffer) for buffer in running))


def remember(running: Running, statistics: Statistics, factor: float | Tensor, finite_only: bool, direct: bool) -> None:
    """Move running statistics towards those of each group, and count the groups that enter or are skipped, in place."""
    mean, plain_factor = running.mean, not isinstance(factor, Tensor)
    assert mean is not None
    if direct and plain_factor:
        registry.select(mean).update(running, statistics, factor, finite_only)
    elif direct or not plain_factor or watched.batched(mean) or _compiling() or watched.exporting():
        # What traces sees torch's own operations, and a factor that is a tensor is not read on the host.
        eager.update(running, statistics, factor, finite_only)
    else:
        # As one operator that declares what it changes: torch.func refuses in-place operations on what it captures.
        _ops.remember(*running, *statistics, factor, finite_only)


# Registration.


def _register(name: str, compute: Any, fake: Any, differentiable: Any = None) -> None:
    operator = getattr(_ops, name).default

    def below(*flat: Any) -> Any:
        with _below_autograd():
            return operator(*flat)

    _library.impl(name, compute, "CompositeExplicitAutograd")
    _library.impl(name, below if differentiable is None else differentiable(below), "Autograd")
    torch.library.register_fake(f"batchnorm::{name}", fake, lib=_library)


def _any_needs_grad(flat: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in flat)


def _differentiable_forward(below: Callable[..., Any]) -> Callable[..., Any]:
    def forward(x: Tensor, *flat: Any) -> Any:
        if not _any_needs_grad((x, *flat)):
            return below(x, *flat)
        reduction, epilogue = Reduction(*flat[:2]), Epilogue(*flat[2:7])
        out: list[Statistics] = []
        return _Fused.apply(x, *epilogue[:3], reduction, epilogue, flat[7], False, out), *out[0]  # type: ignore[no-untyped-call]

    return forward


def _differentiable_normalize(below: Callable[..., Any]) -> Callable[..., Any]:
    def normalize(x: Tensor, *flat: Any) -> Any:
        if not _any_needs_grad((x, *flat)):
            return below(x, *flat)
        statistics, reduction, epilogue, eps = _gathered(flat)
        return _Split.apply(x, *epilogue[:3], statistics, reduction, epilogue, eps, None, False)  # type: ignore[no-untyped-call]

    return normalize


def _differentiable_backward(below: Callable[..., Any]) -> Callable[..., Any]:
    def backward(*flat: Any) -> Any:
        return _Backward.apply(*flat) if _any_needs_grad(flat) else below(*flat)  # type: ignore[no-untyped-call]

    return backward


_register("snapshot", torch.clone, torch.empty_like)
_register("collect", _collect, _collect_fake)
_register("normalize", _normalize, _normalize_fake, _differentiable_normalize)
_register("forward", _forward, _forward_fake, _differentiable_forward)
_register("reduce", _reduce, _reduce_fake)
_register("apply", _apply, _apply_fake)
_register("backward", _backward, _backward_fake, _differentiable_backward)
_register("remember", _remember, lambda *_: None)
