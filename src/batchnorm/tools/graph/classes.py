"""The class of a module, below the ones that this package derives from it."""

from __future__ import annotations

from torch import nn

#: The attribute of a derived class that holds the original.
ORIGINAL = "_batchnorm_original"


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of the module, or for a block with fused paths the class that it had before."""
    cls = type(module)
    original: type[nn.Module] = cls.__dict__.get(ORIGINAL, cls)
    return original
