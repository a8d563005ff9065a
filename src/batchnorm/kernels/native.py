"""Batch normalization in C++ for CPUs (``csrc/``): statistics, scaling, residual and activation in one pass each way.

The compiled module takes tensors as they are, and returns None for what it cannot walk: a tensor made neither of
contiguous planes nor of contiguous rows (channels last), another one laid out unlike ``x``, a subclass. That is copied
once, here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import eager
from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import Epilogue, Gradients, Reduction, Statistics, Sums, values_per_channel

try:
    from batchnorm.kernels import _native
except ImportError as error:  # built without a compiler (BATCHNORM_NATIVE=0), or for another Python
    _native = None  # type: ignore[assignment]  # asked about in `refusal`
    _missing = f"this installation has no compiled kernels ({error})"

_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
# The order of the enumeration in csrc/kernels.h.
_NAMES = (None, "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh")
_ACTIVATIONS = {name: i for i, name in enumerate(_NAMES)}
assert set(ACTIVATIONS) == set(_ACTIVATIONS) - {None}


_threads = torch.get_num_threads


def refusal(x: Tensor, reduction: Reduction | None = None, epilogue: Epilogue | None = None) -> str | None:
    """Return why these kernels cannot compute the call, or None when they can."""
    if not (reduction is None or reduction.whole) or not (epilogue is None or epilogue.mask is None):
        return "it computes neither groups nor masks"
    if _native is not None and _native.computes(x):
        return None
    if x.device.type != "cpu":
        return f"it computes on CPUs; the tensor is on {x.device}"
    if _native is None:
        return _missing
    if x.dtype not in _DTYPES:
        return f"it has no kernel for {x.dtype}"
    if type(x) is not Tensor and not isinstance(x, torch.nn.Parameter):
        return f"it needs the memory of a plain tensor; this is a {type(x).__name__}"
    return "it reads at most 16 dimensions" if x.dim() > 16 else None


def targets() -> list[str]:
    """Return the instruction-set targets that this processor runs, best first; empty without compiled kernels."""
    return [] if _native is None else list(_native.targets())


def target() -> str:
    """Return the target that runs: the best, or the one that ``BATCHNORM_TARGET`` or `set_target` names."""
    return str(_native.target())


def set_target(name: str) -> None:
    """Make one target run from now on.

    Parameters
    ----------
    name : str
        One of `targets`.

    Raises
    ------
    ValueError
        This processor does not run it, or it does not exist.
    """
    if name not in targets():
        raise ValueError(
            f"a target must be one that this processor runs, {targets()}; got '{name}'. "
            "Set BATCHNORM_TARGET (read when the kernels are first used) to one of them, or leave it unset."
        )
    _native.set_target(name)


if _native is not None and os.environ.get("BATCHNORM_TARGET"):
    set_target(os.environ["BATCHNORM_TARGET"])


def _on_copies(kernel: Callable[..., Any], x: Tensor, arguments: tuple[Any, ...]) -> Any:
    """Call a kernel with copies of what it cannot walk, and lay out what it returns like ``x``."""
    plain = _plain(x)
    walked = plain if _native.walkable(plain) else plain.contiguous()

    def stand_in(argument: Any) -> Any:
        if argument is x:
            return walked
        if not isinstance(argument, Tensor):
            return argument
        if argument.shape != x.shape:
            return _plain(argument).contiguous()
        return argument if _native.walkable_like(argument, walked) else torch.empty_like(walked).copy_(argument)

    def laid_out(result: Any) -> Any:
        return torch.empty_like(x).copy_(result) if isinstance(result, Tensor) and result.shape == x.shape else result

    done = kernel(*map(stand_in, arguments))
    assert done is not None
    if walked is x:
        return done
    return tuple(map(laid_out, done)) if isinstance(done, tuple) else laid_out(done)


def _plain(tensor: Tensor) -> Tensor:
    """Return the values as the memory of a plain tensor holds them."""
    return tensor.detach().as_subclass(Tensor).resolve_neg()


def _empty(x: Tensor, groups: int, value: float) -> tuple[Tensor, Tensor]:
    """Return two (G, C) tensors for an input without values."""
    first = torch.full((groups, x.shape[1]), value, dtype=torch.float64)
    return first, first.clone()


def _counted(x: Tensor, mean: Tensor, var: Tensor) -> Statistics:
    count = torch.full((1, 1), values_per_channel(x), dtype=torch.float64)
    return Statistics(mean.view(1, -1), var.view(1, -1), count)


def _of_channels(statistics: Statistics) -> tuple[Tensor, Tensor]:
    return statistics.mean.view(-1), statistics.var.view(-1)


def _after(epilogue: Epilogue, eps: float) -> tuple[Any, ...]:
    return epilogue.weight, epilogue.bias, eps, _ACTIVATIONS[epilogue.activation]


def collect(x: Tensor, reduction: Reduction) -> Statistics:  # noqa: ARG001  # the whole batch, by `refusal`
    """Return the statistics of ``x``."""
    if x.numel() == 0:
        return _counted(x, *_empty(x, 1, torch.nan))
    arguments = (x, _threads())
    return _counted(x, *(_native.collect(*arguments) or _on_copies(_native.collect, x, arguments)))


def normalize(
    x: Tensor,
    statistics: Statistics,
    reduction: Reduction | None,  # noqa: ARG001  # one group, by `refusal`
    epilogue: Epilogue,
    eps: float,
    out: Tensor | None = None,
) -> Tensor:
    """Return ``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, in ``out`` if given."""
    arguments = (x, epilogue.residual, *_of_channels(statistics), *_after(epilogue, eps), _threads())
    if out is not None and _native.normalize_into(out, *arguments):
        torch.autograd.graph.increment_version(out)  # a graph that has saved `out` must know
        return out
    y: Tensor | None = _native.normalize(*arguments)
    if y is None:
        y = torch.empty_like(x) if x.numel() == 0 else _on_copies(_native.normalize, x, arguments)
    return y if out is None else out.copy_(y)


def forward(
    x: Tensor,
    reduction: Reduction,  # noqa: ARG001  # the whole batch, by `refusal`
    epilogue: Epilogue,
    eps: float,
) -> tuple[Tensor, Statistics]:
    """Return the result of `normalize` with the statistics of ``x``, and these."""
    arguments = (x, epilogue.residual, *_after(epilogue, eps), _threads())
    done: tuple[Tensor, Tensor, Tensor] | None = _native.forward(*arguments)
    if done is None:
        if x.numel() == 0:
            return torch.empty_like(x), _counted(x, *_empty(x, 1, torch.nan))
        done = _on_copies(_native.forward, x, arguments)
    y, mean, var = done
    return y, _counted(x, mean, var)


def reduce(
    dy: Tensor,
    x: Tensor,
    statistics: Statistics,
    reduction: Reduction | None,  # noqa: ARG001  # one group, by `refusal`
    epilogue: Epilogue,
    eps: float,
) -> Sums:
    """Return the two sums of the backward pass."""
    if x.numel() == 0:
        return Sums(*_empty(x, 1, 0.0))
    arguments = (dy, x, epilogue.residual, *_of_channels(statistics), *_after(epilogue, eps), _threads())
    sums = _native.reduce(*arguments) or _on_copies(_native.reduce, x, arguments)
    return Sums(*(t.view(1, -1) for t in sums))


def apply(
    dy: Tensor,
    x: Tensor,
    statistics: Statistics,
    sums: Sums,
    reduction: Reduction | None,  # noqa: ARG001  # one group, by `refusal`
    epilogue: Epilogue,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """Return dx and dresidual (None without a residual), given the sums over all values that share statistics."""
    if x.numel() == 0:
        return torch.empty_like(x), None if epilogue.residual is None else torch.empty_like(x)
    assert statistics.count is not None
    arguments = (
        *(dy, x, epilogue.residual, *_of_channels(statistics), *_after(epilogue, eps)),
        *(sums.sum_dy.view(-1), sums.sum_dy_xhat.view(-1), float(statistics.count), _threads()),
    )
    done: tuple[Tensor, Tensor | None] = _native.apply(*arguments) or _on_copies(_native.apply, x, arguments)
    return done


def backward(
    dy: Tensor, x: Tensor, statistics: Statistics, reduction: Reduction | None, epilogue: Epilogue, eps: float
) -> Gradients:
    """Return the gradients of all inputs."""
    arguments = (
        *(dy, x, epilogue.residual, *_of_channels(statistics), *_after(epilogue, eps)),
        *(reduction is not None, _threads()),
    )
    done: tuple[Any, ...] | None = _native.backward(*arguments)
    if done is None:
        if x.numel() == 0:
            others = (
                None if t is None else torch.zeros_like(t) for t in (epilogue.residual, epilogue.weight, epilogue.bias)
            )
            return Gradients(torch.zeros_like(x), *others)
        done = _on_copies(_native.backward, x, arguments)
    return Gradients(*done)


def update(running_mean: Tensor, running_var: Tensor, statistics: Statistics, factor: float | Tensor) -> None:
    """Move running statistics towards those of each group in turn, in place, rounding once per group."""
    assert statistics.count is not None
    for mean, var, of_group in zip(*statistics, strict=True):
        count = float(of_group)
        if count < 2:
            continue
        for running, value, scale in ((running_mean, mean, 1.0), (running_var, var, count / (count - 1))):
            if not _native.average(running, value, float(factor), scale):
                running.copy_(torch.lerp(running.to(value.dtype), value * scale, factor))


def fit(x: Tensor, residual: Tensor | None, *vectors: Tensor | None) -> bool:
    """Whether these are plain tensors that go together in shape, dtype and device; False says nothing.

    Parameters
    ----------
    x : Tensor of shape (N, C, *)
        The input.
    residual : Tensor or None
        To have its shape and dtype.
    *vectors : Tensor or None
        To be of shape (C,), in x's dtype, or float32 for half and bfloat16.

    Returns
    -------
    bool
    """
    return _native is not None and _native.fit(x, residual, vectors)


def blocks() -> list[tuple[int, bool]]:
    """Return the bytes of each block of memory for outputs, and whether a tensor uses it."""
    return [] if _native is None else _native.blocks()


def release_kept_blocks() -> int:
    """Give every kept block back to the system; return their bytes."""
    return 0 if _native is None else _native.release_kept_blocks()


def kept_limit() -> int:
    """Return the most bytes that are kept; 0 without compiled kernels."""
    return 0 if _native is None else _native.kept_limit()


def limit_kept_blocks(limit: int) -> None:
    """Keep at most so many bytes; with 0 torch allocates the outputs."""
    if _native is not None:
        _native.limit_kept_blocks(limit)
