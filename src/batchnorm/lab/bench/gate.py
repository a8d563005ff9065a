"""No number without right answers: every arm is checked against the float64 reference before anything is timed.

A bound is ``ULPS * eps(arithmetic) * size + STORAGE_ROUNDINGS * eps(storage) / 2 * terms``. ``size`` is the sum of the
absolute values of the terms that a result is made of. In ``ULPS``, 64, are the roundings on the way (a dozen), a log2
of the number of values for blocked sums (up to 13 here), a factor of two; the data has no hard regime. The second part
is for storage: the result's own rounding, and one for each of the two intermediate results that torch's unfused form
rounds to bfloat16.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own way

from batchnorm.lab.bench.arms import Contender, Inputs, contenders, draw
from batchnorm.lab.bench.config import Case
from batchnorm.reference import batch_norm as reference
from batchnorm.reference import statistics as reference_statistics

ULPS = 64
STORAGE_ROUNDINGS = 3
MOMENTUM = 0.1
# Small enough for the reference, odd enough for every remainder; the second splits among threads.
SHAPES = {
    2: ((12, 7), (515, 67)),
    3: ((6, 7, 5), (7, 37, 301)),
    4: ((4, 7, 5, 3), (6, 37, 29, 31)),
    5: ((2, 7, 3, 4, 5), (3, 19, 11, 13, 17)),
}
# At the measured size: by which share of their norm y and dx may differ from torch's; ten times what rounding does. A
# block of one in a hundred million elements that nobody wrote is seen in float32, one in ten thousand in bfloat16.
AGREEMENT = {"float32": 1e-4, "bfloat16": 1e-2}
# Where y is between zero and this, one arm may be on the other side of the activation's kink, and dx is left out.
KINK = {"float32": 1e-3, "bfloat16": 5e-2}

Array = NDArray[np.float64]


class GateError(Exception):
    """An arm computes something wrong: nothing may be printed."""


def check(
    cases: Iterable[Case], *, compiled: bool = False, contenders: Callable[..., dict[str, Contender]] = contenders
) -> int:
    """Check values, gradients and running statistics of every arm of ``cases``, on small tensors.

    Each operation, rank, layout and dtype is checked in two shapes; ``compiled`` adds torch.compile in the smaller one;
    ``contenders`` makes the layers of a case. Returns the number of comparisons. Raises GateError for an answer out of
    its bound, with the arm, the case, the result and the error.
    """
    done = 0
    for op, rank, layout, dtype in dict.fromkeys((c.op, len(c.shape), c.layout, c.dtype) for c in cases):
        for number, shape in enumerate(SHAPES[rank]):
            small = Case(op, shape, layout, dtype)
            fresh = contenders(small)["torch"]
            inputs = _away_from_the_kink(draw(small), fresh.layer)
            answers = _ask(small, inputs, fresh)
            for arm, contender in contenders(small, compiled=compiled and number == 0).items():
                got = _run(contender, inputs, training=small.training)
                for name, (want, bound) in answers.items():
                    _compare(f"{arm}, {small}: {name}", got[name], want, bound)
                    done += 1
    return done


def agree(case: Case, contenders: Mapping[str, Contender], inputs: Inputs) -> None:
    """Check that all arms agree with torch at the measured size.

    Updates running statistics, and moves the residual a little near the activation's kink. Raises GateError where y or
    dx differs from torch's by more than rounding explains.
    """
    _away_from_the_kink(inputs, contenders["torch"].layer)
    expected = _run(contenders["torch"], inputs, training=case.training)
    for arm, contender in contenders.items():
        got = _run(contender, inputs, training=case.training)
        for name in [name for name in ("y", "dx") if name in got]:
            apart = expected[name] - got[name]
            if name == "dx" and case.activation is not None:
                top = torch.maximum(expected["y"], got["y"])
                apart.masked_fill_((top > 0) & (top < KINK[case.dtype]), 0)
            distance, norm = (torch.linalg.vector_norm(t, dtype=torch.float32).item() for t in (apart, expected[name]))
            if not distance <= AGREEMENT[case.dtype] * norm:
                raise GateError(f"{arm}, {case}: {name} is {distance / norm:.3g} of its norm away from torch's")


def _run(contender: Contender, inputs: Inputs, *, training: bool) -> dict[str, Tensor]:
    """Return what one call computes; gradients are left as they were found: none."""
    layer: Any = contender.layer
    leaves = {"dx": inputs.x, "dresidual": inputs.residual, "dweight": layer.weight, "dbias": layer.bias}
    with torch.set_grad_enabled(training):
        y = contender.forward(inputs.x, inputs.residual)
    got = {"y": y.detach()}
    if training:
        y.backward(inputs.dy)
        for name, leaf in leaves.items():
            if leaf is not None:
                got[name], leaf.grad = leaf.grad, None
        got["running_mean"], got["running_var"] = layer.running_mean.clone(), layer.running_var.clone()
    return got


def _ask(case: Case, inputs: Inputs, fresh: Contender) -> dict[str, tuple[Array, Array]]:
    """Return the reference's answers, each with its bound."""
    layer: Any = fresh.layer
    x, dy = _array(inputs.x), _array(inputs.dy)
    weight, bias = _array(layer.weight), _array(layer.bias)
    running = _array(layer.running_mean), _array(layer.running_var)
    residual = None if inputs.residual is None else _array(inputs.residual)
    options: dict[str, Any] = {"eps": layer.eps, "activation": case.activation, "residual": residual}
    if case.training:
        y, cache = reference.forward_train(x, weight, bias, **options)
    else:
        y, cache = reference.forward_test(x, *running, weight, bias, **options)
    axes = (0, *range(2, x.ndim))
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    # Centring loses digits of the size of the mean; |mean| / std is about a half here.
    x_hat = np.abs(cache.x_hat) + np.abs(cache.mean * cache.invstd).reshape(per_channel)
    terms = np.abs(weight).reshape(per_channel) * x_hat + np.abs(bias).reshape(per_channel)
    terms = terms + (0 if residual is None else np.abs(residual))
    unit = float(torch.finfo(torch.float32).eps)
    stored = STORAGE_ROUNDINGS * float(torch.finfo(inputs.x.dtype).eps) / 2
    answers = {"y": (y, ULPS * unit * terms + stored * terms)}
    if not case.training:
        return answers
    grads = reference.backward(dy, cache)
    dz = np.abs(dy)
    scale = np.abs(cache.weight * cache.invstd).reshape(per_channel)
    dx = scale * (dz + dz.mean(axes, keepdims=True) + x_hat * (dz * x_hat).mean(axes, keepdims=True))
    answers["dx"] = (grads.dx, ULPS * unit * dx + stored * np.abs(grads.dx))
    answers["dweight"] = (grads.dweight, ULPS * unit * (dz * x_hat).sum(axes))
    answers["dbias"] = (grads.dbias, ULPS * unit * dz.sum(axes))
    if residual is not None:
        answers["dresidual"] = (grads.dresidual, np.zeros(1))  # dy or zero: nothing is rounded
    after = reference_statistics.update_running(*running, cache.mean, cache.var, cache.count, MOMENTUM)
    sizes = (np.abs(running[0]) + np.abs(cache.mean) + np.sqrt(cache.var), running[1] + cache.var + cache.mean**2)
    for name, value, size in zip(("running_mean", "running_var"), after, sizes, strict=True):
        answers[name] = (value, ULPS * unit * size)
    return answers


def _away_from_the_kink(inputs: Inputs, layer: Any) -> Inputs:
    """Move the residual where z is so near to zero that rounding decides on which side it falls: dz jumps there."""
    if inputs.residual is None:
        return inputs
    with torch.no_grad():
        residual = inputs.residual
        z = F.batch_norm(inputs.x.float(), None, None, layer.weight, layer.bias, True, 0.0, layer.eps) + residual
        residual.copy_(torch.where(z.abs() < 1 / 8, residual + 1, residual))
    return inputs


def _compare(what: str, got: Tensor, want: Array, bound: Array) -> None:
    error = np.abs(_array(got) - want)
    wrong = ~(error <= bound)  # written so that NaN is wrong
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise GateError(
            f"{what}: {wrong.sum()} of {wrong.size} values are off, first at {index}: got {_array(got)[index]:.9g}, "
            f"the reference has {want[index]:.9g}, allowed {np.broadcast_to(bound, want.shape)[index]:.3g}"
        )


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().numpy()
    return array
