"""The complete batch-normalization system for PyTorch.

Layers (``BatchNorm1d``, ``BatchNorm2d``, ``BatchNorm3d``), the function behind them (``functional.batch_norm``),
and ``explain``, which says what computes them; ``convert`` and ``revert`` exchange the layers of a whole model for
these and back, and ``recalibrate`` gives its layers the statistics of a whole data set. ``diagnose`` says why a model
is worse in eval mode than in training mode, ``watch`` warns while it trains. ``batchnorm.reference`` is
the same in NumPy, to read and to test against; ``batchnorm.lab`` trains with and without batch normalization and shows
the difference.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchnorm.api import *  # noqa: F403  # every public name

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    """Import the public names at the first use of one: torch takes seconds, and much here does without."""
    if not name.startswith("_"):
        if importlib.util.find_spec(f"batchnorm.{name}") is not None:  # the modules import each other by this way
            return importlib.import_module(f"batchnorm.{name}")
        public = vars(importlib.import_module("batchnorm.api"))
        if name in public:
            globals()[name] = public[name]
            return public[name]
    raise AttributeError(f"module 'batchnorm' has no attribute {name!r}")


def __dir__() -> list[str]:
    public = vars(importlib.import_module("batchnorm.api"))
    return sorted({*globals(), *(name for name in public if not name.startswith("_"))})
