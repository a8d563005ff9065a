"""The inputs on which batch normalization goes wrong when it goes wrong: values, shapes and layouts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, ...]


def _draw(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _with_mean(ratio: float) -> Callable[[Shape, torch.Generator], Tensor]:
    return lambda shape, generator: _draw(shape, generator) + ratio


def _constant_channels(shape: Shape, generator: torch.Generator) -> Tensor:
    """Every other channel holds one value, not a power of two, so that its sum rounds."""
    x = _draw(shape, generator)
    x[:, ::2] = 1234.567
    return x


def _per_channel_scales(shape: Shape, generator: torch.Generator) -> Tensor:
    powers = torch.linspace(-12, 12, shape[1], dtype=torch.float64).view(1, -1, *[1] * (len(shape) - 2))
    return _draw(shape, generator) * 10**powers


#: name -> values in float64, from (shape, generator); the test rounds them to its dtype and asks the reference about
#: the rounded ones.
VALUES: dict[str, Callable[[Shape, torch.Generator], Tensor]] = {
    "normal": _draw,
    "mean_1e4": _with_mean(1e4),
    "mean_1e5": _with_mean(1e5),
    "mean_1e6": _with_mean(1e6),
    "constant_channels": _constant_channels,
    "scales_1e-12_to_1e12": _per_channel_scales,
    "subnormal": lambda shape, generator: _draw(shape, generator) * 1e-40,
    "1e30": lambda shape, generator: _draw(shape, generator) * 1e30,
}

#: Ranges that float16 cannot hold.
NEEDS_WIDE_RANGE = {"mean_1e5", "mean_1e6", "scales_1e-12_to_1e12", "subnormal", "1e30"}

SHAPES: dict[str, Shape] = {
    "two_values": (2, 3),
    "dense_odd": (13, 5),
    "dense_one_channel": (33, 1),
    "sequence": (3, 5, 7),
    "one_sample": (1, 3, 5, 7),
    "image_odd": (3, 6, 5, 7),
    "image_wide": (4, 17, 3, 3),
    "volume": (2, 3, 3, 2, 5),
    "many_values": (64, 3, 16, 16),
}


def _sliced(x: Tensor) -> Tensor:
    """A slice of a larger tensor in every dimension, the rest of which is NaN."""
    larger = torch.full([size + 3 for size in x.shape], torch.nan, dtype=x.dtype)
    inner = larger[tuple(slice(1, 1 + size) for size in x.shape)]
    return inner.copy_(x)


def _channels_last(x: Tensor) -> Tensor:
    """Channels innermost in memory, whatever the rank."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "batch_innermost": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every_second": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2],
}

ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh")
