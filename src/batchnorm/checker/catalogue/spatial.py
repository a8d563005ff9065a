"""Known mistakes of the layer on images, besides those of the dense layer. Equation numbers: the derivation."""

from typing import Any

import numpy as np

from batchnorm.checker.catalogue import backward, batch_norm, forward
from batchnorm.checker.model import Changes, Mistake, Step, Subject, anything

_ROWS = "(11) a channel is normalized over N, H and W together: one row per sample and position, m = N H W"
_FIX = ("rows = x.transpose(0, 2, 3, 1).reshape(-1, C)", "out = rows_out.reshape(N, H, W, C).transpose(0, 3, 1, 2)")


def _per_group(axes: tuple[int, ...]) -> dict[str, Step]:
    """Return steps whose statistics run over these axes of (N, C, H, W), spread over all rows."""

    def spread(reduce: Any) -> Step:
        return lambda v: batch_norm.spatial_to_rows(
            np.broadcast_to(reduce(np.asarray(v.x), axis=axes, keepdims=True), v.x.shape)
        )

    return {"mean": spread(np.mean), "var": spread(np.var), "running_mean": anything, "running_var": anything}


def _reshaped_rows(v: Any) -> Any:
    return v.x.reshape(-1, v.x.shape[1])


def _reshape(name: str) -> Step:
    return lambda v: getattr(v, name).reshape(v.x.shape)


def _spatial(
    name: str, group: str, title: str, changes: Changes, why: str, fix: tuple[str, str] = _FIX, equation: str = _ROWS
) -> Mistake:
    return Mistake(f"spatial-{name}", group, title, changes, equation, why, fix)


MISTAKES = (
    _spatial(
        "per-pixel",
        "forward",
        "each pixel is normalized on its own, over the batch alone",
        _per_group((0,)),
        "A convolution treats all positions alike; statistics per position are noisy and cost it that.",
        ("mean = x.mean(axis=(0, 2, 3), keepdims=True)", "var = x.var(axis=(0, 2, 3), keepdims=True)"),
    ),
    _spatial(
        "per-image",
        "forward",
        "each image is normalized on its own, over its pixels",
        _per_group((2, 3)),
        "That is instance normalization: the contrast of an image is lost, and the batch plays no part.",
        ("mean = x.mean(axis=(0, 2, 3), keepdims=True)", "var = x.var(axis=(0, 2, 3), keepdims=True)"),
    ),
    _spatial(
        "channels-together",
        "forward",
        "each image is normalized over its channels and pixels",
        _per_group((1, 2, 3)),
        "That is layer normalization.",
        ("mean = x.mean(axis=(0, 2, 3), keepdims=True)", "var = x.var(axis=(0, 2, 3), keepdims=True)"),
    ),
    _spatial(
        "reshape-instead-of-transpose",
        "forward",
        "the array is reshaped to (-1, C) without moving the channel axis last",
        {
            "rows": _reshaped_rows,
            "test_rows": _reshaped_rows,
            "out": _reshape("y"),
            "test_out": _reshape("test_y"),
        },
        "reshape keeps the order of the elements: a row then holds neighbouring pixels of one channel, not the "
        "channels of one pixel.",
    ),
    _spatial(
        "not-transposed-back",
        "forward",
        "the output is reshaped to (N, C, H, W) without moving the channel axis back",
        {"out": _reshape("y"), "test_out": _reshape("test_y")},
        "The statistics are right, but the values land at other channels and positions; the shape hides it.",
    ),
    _spatial(
        "dout-not-transposed",
        "backward",
        "dout is reshaped to (-1, C) without moving the channel axis last",
        {"drows": lambda v: v.dout.reshape(-1, v.dout.shape[1])},
        "dout must be laid out as x was: reshape alone pairs gradients with other values.",
        ("dout = dout.transpose(0, 2, 3, 1).reshape(-1, C)", "dx = dx.reshape(N, H, W, C).transpose(0, 3, 1, 2)"),
    ),
    _spatial(
        "dx-not-transposed-back",
        "backward",
        "dx is reshaped to (N, C, H, W) without moving the channel axis back",
        {"dx": lambda v: v.dx_rows.reshape(v.dout.shape)},
        "The values are right and stand at the wrong places; the shape hides it.",
        ("dout = dout.transpose(0, 2, 3, 1).reshape(-1, C)", "dx = dx.reshape(N, H, W, C).transpose(0, 3, 1, 2)"),
    ),
    _spatial(
        "m-counts-images",
        "backward",
        "m is N, the number of images, instead of N H W",
        {"count": lambda v: v.dout.shape[0]},
        "The statistics of a channel are means over all its values, N H W of them.",
        ("N, C, H, W = dout.shape; m = N * H * W", "dx = gamma / std / m * (m * dout - dbeta - x_hat * dgamma)"),
        "(11) m = N H W;  (30) dx = gamma r / m (m dout - dbeta - x_hat dgamma)",
    ),
)

SUBJECT = Subject(
    name="spatial_batchnorm",
    compute=batch_norm.compute_spatial,
    groups=batch_norm.GROUPS,
    mistakes=(*MISTAKES, *forward.MISTAKES, *backward.MISTAKES),
    conventions=batch_norm.CONVENTIONS,
)
