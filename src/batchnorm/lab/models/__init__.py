"""The networks of the lab, each with any normalization or none, from the same initial weights.

Architectures by name (``catalogue``), or a factory of one's own (``factory``). ``recipe`` holds the options and makes
the parts; ``normalization``, ``activations`` and ``initializers`` are the choices that go into it; ``building`` puts it
all together. What is built is a `torch.nn.Module` of plain layers, so that `batchnorm.convert` finds what to fuse.
"""

from batchnorm.lab.models.activations import ACTIVATIONS
from batchnorm.lab.models.building import build, describe_network, parameter_count
from batchnorm.lab.models.catalogue import describe, names
from batchnorm.lab.models.factory import takes_normalization
from batchnorm.lab.models.initializers import INITIALIZERS
from batchnorm.lab.models.network import Network
from batchnorm.lab.models.normalization import NORMS, Normalization

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "NORMS",
    "Network",
    "Normalization",
    "build",
    "describe",
    "describe_network",
    "names",
    "parameter_count",
    "takes_normalization",
]
