"""Whether anything observes, traces or transforms the operations that run now.

The only file that reads torch's private state about this; every name below has a test of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack  # noqa: SLF001  # none of these has a public name
_transforms = torch._C._are_functorch_transforms_active  # noqa: SLF001
_profiling = torch.autograd._profiler_enabled  # type: ignore[attr-defined]  # noqa: SLF001
_graph_task = torch._C._current_graph_task_id  # noqa: SLF001
_jit_tracing = torch._C._is_tracing  # noqa: SLF001
_unwrapped = torch._C._functorch.get_unwrapped  # noqa: SLF001
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # noqa: SLF001
_is_batched = torch._C._functorch.is_batchedtensor  # noqa: SLF001
_is_in_batched_backward = torch._C._functorch.is_legacy_batchedtensor  # noqa: SLF001


def unobserved() -> bool:
    """Whether nothing traces, transforms or profiles: then a kernel may run without torch's dispatcher."""
    return not (
        _compiling()
        or _dispatch_modes()
        or _transforms()
        or _profiling()
        or forward_ad._current_level >= 0  # noqa: SLF001  # `forward_mode`, without a call: this runs for every layer
        or _jit_tracing()
    )


def exporting() -> bool:
    """Whether ``torch.export``, ``torch.jit.trace`` or an ONNX exporter records a program that runs elsewhere."""
    return torch.compiler.is_exporting() or (not _compiling() and (_jit_tracing() or torch.onnx.is_in_onnx_export()))


def transformed(*tensors: Tensor) -> bool:
    """Whether derivatives are taken by ``torch.func``, in forward mode, or of many outputs at once.

    All of these look into every operation. The last, ``is_grads_batched`` of ``torch.autograd.grad``, shows in the
    gradients that come in.
    """
    if _compiling():  # a compiler traces through transforms by itself
        return False
    return bool(_transforms()) or forward_mode() or any(map(_is_in_batched_backward, tensors))


def forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open."""
    return bool(forward_ad._current_level >= 0)  # noqa: SLF001  # as above


def in_backward() -> bool:
    """Whether this runs inside a backward pass: a hook, or the recomputation of a checkpoint."""
    return not _compiling() and bool(_graph_task() >= 0)


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are tensors or parameters with memory of their own, and of no subclass that must see operations."""
    for t in tensors:
        if t is not None and ((type(t) is not Tensor and type(t) is not Parameter) or _is_in_batched_backward(t)):
            return False
    return True


def batched(tensor: Tensor) -> bool:
    """Whether ``torch.func.vmap`` maps over the tensor, at any level."""
    while not _compiling() and _is_wrapped(tensor):
        if _is_batched(tensor):
            return True
        tensor = _unwrapped(tensor)
    return False
