"""The complete batch-normalization system for PyTorch.

Layers (``BatchNorm1d``, ``BatchNorm2d``, ``BatchNorm3d``), the function behind them (``functional.batch_norm``),
and ``explain``, which says what computes them; ``convert`` and ``revert`` exchange the layers of a whole model for
these and back, and ``recalibrate`` gives its layers the statistics of a whole data set. ``diagnose`` says why a model
is worse in eval mode than in training mode, ``watch`` warns while it trains. ``batchnorm.reference`` is
the same in NumPy, to read and to test against; ``batchnorm.lab`` trains with and without batch normalization and shows
the difference.
"""

from batchnorm import functional as functional
from batchnorm import nn as nn
from batchnorm.allocator import limit_kept_memory as limit_kept_memory
from batchnorm.allocator import memory as memory
from batchnorm.allocator import release_memory as release_memory
from batchnorm.allocator import tune_allocator as tune_allocator
from batchnorm.kernels.registry import explain as explain
from batchnorm.nn import BatchNorm1d as BatchNorm1d
from batchnorm.nn import BatchNorm2d as BatchNorm2d
from batchnorm.nn import BatchNorm3d as BatchNorm3d
from batchnorm.probes.diagnosis import diagnose as diagnose
from batchnorm.probes.diagnosis import watch as watch
from batchnorm.statistics.keys import key as key
from batchnorm.statistics.policies import Batch as Batch
from batchnorm.statistics.policies import Cumulative as Cumulative
from batchnorm.statistics.policies import Debiased as Debiased
from batchnorm.statistics.policies import Exponential as Exponential
from batchnorm.statistics.policies import Frozen as Frozen
from batchnorm.statistics.policies import Ghost as Ghost
from batchnorm.statistics.policies import Keyed as Keyed
from batchnorm.statistics.policies import Renorm as Renorm
from batchnorm.tools import convert as convert
from batchnorm.tools import fold as fold
from batchnorm.tools import freeze as freeze
from batchnorm.tools import masked as masked
from batchnorm.tools import merge_statistics as merge_statistics
from batchnorm.tools import recalibrate as recalibrate
from batchnorm.tools import revert as revert
from batchnorm.tools import unfreeze as unfreeze
from batchnorm.tools.transactions import deferred as deferred
from batchnorm.tools.transactions import hold_statistics as hold_statistics

__version__ = "0.1.0.dev0"
