"""The key under which layers with keyed statistics are called now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

#: A name for all samples, a name or an index for each, or None outside of every block.
Keys = str | tuple[str | int, ...] | None

_current: Keys = None


def current() -> Keys:
    """Return the key, or the keys of the samples, of the innermost block."""
    return _current


@contextmanager
def key(name: str | Sequence[str] | Tensor) -> Iterator[None]:
    """Choose the statistics that layers with `batchnorm.Keyed` use inside the block.

    Parameters
    ----------
    name : str, sequence of str, or Tensor of int, shape (N,)
        The key of all samples, or of each. Integers count the keys of a layer from 0. A tensor is read on the host,
        once.

    Yields
    ------
    None
        The former choice returns at the end of the block. The choice holds for all threads of the process.

    Raises
    ------
    TypeError
        Anything else. Whether the key exists is found by each layer, which raises ValueError.

    Notes
    -----
    With ``torch.utils.checkpoint`` call ``backward`` inside the block, or pass
    ``context_fn=lambda: (contextlib.nullcontext(), batchnorm.key(name))`` to the checkpoint.

    Examples
    --------
    >>> import torch, batchnorm
    >>> layer = batchnorm.BatchNorm1d(3, statistics=batchnorm.Keyed(("source", "target")))
    >>> with batchnorm.key("target"):
    ...     y = layer(torch.randn(8, 3))
    >>> with batchnorm.key(["source"] * 4 + ["target"] * 4):
    ...     y = layer(torch.randn(8, 3))
    >>> layer.num_batches_tracked, layer.num_batches_tracked_target
    (tensor(1), tensor(2))
    """
    global _current  # process-wide, as autograd recomputes checkpoints in threads of its own
    former, _current = _current, _checked(name)
    try:
        yield
    finally:
        _current = former


def _checked(name: object) -> Keys:
    if isinstance(name, str):
        return name
    if isinstance(name, Tensor):
        if name.dim() == 1 and name.dtype != torch.bool and not (name.is_floating_point() or name.is_complex()):
            return tuple(name.tolist())
    elif isinstance(name, Sequence) and all(isinstance(one, str) for one in name):
        return tuple(name)
    came = f"a tensor of {name.dtype} and shape {tuple(name.shape)}" if isinstance(name, Tensor) else repr(name)
    raise TypeError(
        f"a key must be a name, a name for each sample, or a tensor of integers of shape (N,); got {came}. "
        "Try batchnorm.key('source')."
    )
