"""``masked``: padding is no data, for models that call their layers without a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.tools import swap
from batchnorm.tools.walk import normalizations, require_module, require_normalization

#: From lengths of shape (N,), the padded length that they are counted against and that of a layer's input, to the
#: lengths at the layer.
Rule = Callable[[Tensor, int, int], Tensor]


@contextmanager
def masked(
    model: nn.Module, mask: Tensor, *, length: int | None = None, dim: int = -1, rule: Rule | None = None
) -> Iterator[None]:
    r"""Give each batch normalization of a model, inside the block, the mask that its forward does not pass on.

    Parameters
    ----------
    model : torch.nn.Module
        A model whose batch normalizations are this package's; see `batchnorm.convert`.
    mask : Tensor of bool, shape (N, L) or (N, 1, *), or of int, shape (N,)
        The valid values of the model's input, or their number in each sample, counted from the first.
    length : int, default=None
        For integers: the padded length L of the model's input, such as ``x.shape[-1]``. None: that of the longest
        sample; a layer that sees another number of positions is then an error.
    dim : int, default=-1
        The dimension of the layers' inputs that L counts, for integers and a mask of shape (N, L); negative.
    rule : callable, default=None
        ``rule(lengths, length, seen)`` returns the lengths at a layer that sees ``seen`` positions; for integers only.
        None: the rule below.

    Yields
    ------
    None
        Layers that are called with a mask of their own use that one. Blocks may be nested; the innermost counts.

    Raises
    ------
    TypeError
        ``model`` is not a module, or ``mask`` not a tensor of bool or integers.
    ValueError
        A mask, lengths or an option that does not fit; a model without batch normalization, or with one that is not
        this package's. In the block: a layer's input to which the rule does not apply, with the name of the layer.
    RuntimeError
        After the block, in a backward pass: a checkpoint recomputes a call of the block.

    Notes
    -----
    A layer that sees as many positions as the mask has gets the mask. A layer behind a stride of k sees
    :math:`L' = \lceil L / k \rceil` positions, of which :math:`\lceil \ell / k \rceil` are valid in a sample of length
    :math:`\ell`: position j is valid where position jk is. This is exact for convolutions and pooling with stride k and
    "same" padding. k is L / L' where that is whole, else the only k that leads from L to L'; where several do, pad to a
    multiple of the total stride. Behind an upsampling, L' a multiple of L, each position is repeated. Any other L' is
    an error. For convolutions without padding, for example, pass lengths with
    ``rule=lambda lengths, length, seen: (lengths - (length - seen)).clamp(min=0)``. Inputs of shape (N, C) count the
    samples with a valid value.

    Only batch normalization is masked. Convolutions still read what is in the padding: mask their inputs as well, where
    these are not the output of a masked layer.

    With ``torch.utils.checkpoint`` call ``backward`` inside the block, or pass
    ``context_fn=lambda: (contextlib.nullcontext(), batchnorm.masked(model, mask))`` to the checkpoint.

    Examples
    --------
    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, stride=2, padding=1), batchnorm.BatchNorm1d(4))
    >>> x, lengths = torch.randn(2, 4, 8), torch.tensor([8, 3])
    >>> with batchnorm.masked(model, lengths, length=8):
    ...     y = model(x)
    >>> y[1].count_nonzero(dim=1)  # of 4 positions
    tensor([2, 2, 2, 2])
    """
    require_module(model, "masked")
    require_normalization(model, "masked")
    layers = _layers(model)
    masks = _Masks(mask, length, dim, rule, {layer: name for name, layer in layers.items()})
    with ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(layer.supply_mask(masks))  # type: ignore[operator]  # ours has it
        yield


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {
        name: layer for name, layer, _ in normalizations(model) if isinstance(layer, _BatchNorm)
    }
    others = [
        f"{name or 'the model'} ({type(layer).__name__})" for name, layer in found.items() if not swap.is_ours(layer)
    ]
    if others:
        raise ValueError(
            f"masked serves this package's layers; {', '.join(others[:3])}{', ...' if len(others) > 3 else ''} of "
            f"{len(found)} would count padding as data. Exchange them first: model = batchnorm.convert(model)."
        )
    return found


class _Masks:
    """The mask of one block, at the size of each layer's input."""

    def __init__(
        self, mask: Tensor, length: int | None, dim: int, rule: Rule | None, names: dict[nn.Module, str]
    ) -> None:
        self.names, self.dim, self.rule = names, dim, rule
        self.lengths: Tensor | None = None
        self.length_given = length is not None
        self.known: dict[tuple[torch.Size, torch.device], Tensor] = {}
        if dim >= 0:
            raise ValueError(f"dim must be negative: layers may see inputs of several ranks; got {dim}. Try -1.")
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
            came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a tensor of bool or integers; got {came}. Try mask.bool(), or lengths.")
        if mask.dtype == torch.bool:
            if length is not None or rule is not None:
                raise ValueError("length and rule belong to integer lengths; got a boolean mask. Pass mask.sum(-1).")
            if mask.dim() < 2 or (mask.dim() > 2 and mask.shape[1] != 1):
                raise ValueError(
                    f"a boolean mask must have shape (N, L) or (N, 1, *); got {tuple(mask.shape)}. "
                    "Try mask.unsqueeze(1), or mask.view(-1, 1) for a mask of samples."
                )
            self.mask = mask
            return
        if mask.dim() != 1:
            raise ValueError(f"lengths must have shape (N,); got {tuple(mask.shape)}. Pass a mask as mask.bool().")
        shortest, longest = (int(m) for m in mask.aminmax()) if len(mask) else (0, 0)
        self.length = longest if length is None else length
        if shortest < 0 or longest > self.length:
            raise ValueError(
                f"lengths must be from 0 to {self.length}, the padded length; got {mask.tolist()}. "
                "Pass the lengths at the model's input, and length=x.shape[-1]."
            )
        self.lengths = mask
        self.mask = _of_lengths(mask, self.length)

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        key = x.shape[:1] + x.shape[2:], x.device
        if key not in self.known:
            try:
                self.known[key] = self._at(x).to(x.device)
            except ValueError as error:
                name = self.names[layer] or "the model"
                raise ValueError(f"layer {name!r}, whose input has shape {tuple(x.shape)}: {error}") from None
        return self.known[key]

    def _at(self, x: Tensor) -> Tensor:
        """Return the mask at the size of ``x``, broadcastable to (N, 1, *)."""
        samples, spatial = x.shape[0], x.shape[2:]
        if samples != self.mask.shape[0]:
            raise ValueError(
                f"the mask is of {self.mask.shape[0]} samples and the layer sees {samples}. "
                "Where the model merges dimensions, call that layer with a mask of its own, layer(x, mask=...)."
            )
        if not spatial:
            return self.mask.flatten(1).any(1, keepdim=True)
        if self.mask.dim() == 2:
            if -self.dim > len(spatial):
                raise ValueError(f"it has no dimension {self.dim} after the channels. Pass another dim.")
            shape = [samples, 1] + [1] * len(spatial)
            shape[self.dim] = spatial[self.dim]
            return self._line(spatial[self.dim]).reshape(shape)
        if self.mask.dim() != x.dim():
            raise ValueError(
                f"the mask has shape {tuple(self.mask.shape)}, of another rank. Pass one of shape (N, L), with dim= "
                "the dimension that L counts."
            )
        mask = self.mask
        for axis, seen in enumerate(spatial, 2):
            mask = mask if mask.shape[axis] == 1 else _resized(mask, axis, seen)
        return mask

    def _line(self, seen: int) -> Tensor:
        if self.lengths is None:
            return _resized(self.mask, 1, seen)
        if seen == self.length:
            return self.mask
        if self.rule is not None:
            return _of_lengths(self.rule(self.lengths, self.length, seen), seen)
        if not self.length_given:
            raise ValueError(
                f"the longest sample has {self.length} positions and the layer sees {seen}. Pass length=, the padded "
                "length of the model's input."
            )
        return _resized(self.mask, 1, seen)


def _of_lengths(lengths: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=lengths.device) < lengths.view(-1, 1)


def _resized(mask: Tensor, axis: int, seen: int) -> Tensor:
    """Return the mask behind a stride or an upsampling along an axis, or raise ValueError."""
    length = mask.shape[axis]
    if seen == length:
        return mask
    positions = torch.arange(seen, device=mask.device)
    if seen > length and length and seen % length == 0:
        return mask.index_select(axis, positions // (seen // length))
    stride = -(-length // seen) if seen else 0
    if seen > length or not seen or -(-length // stride) != seen:
        raise ValueError(
            f"no stride and no upsampling leads from {length} positions to {seen}. Pass lengths with a rule=, or call "
            "the layer with a mask of its own, layer(x, mask=...)."
        )
    if length % seen and seen > 1 and -(-length // (stride + 1)) == seen:
        raise ValueError(
            f"several strides lead from {length} positions to {seen}. Pad the input to a multiple of the stride, or "
            "pass lengths with a rule=."
        )
    return mask.index_select(axis, positions * stride)
