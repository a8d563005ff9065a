"""The data sets of the lab, and the order in which their examples are drawn.

A source (`digits`, `idx`, `cifar`, `points`, `arrays`, `folder`) says what its files hold; `load` finds it by name,
holds out what validation asks for, and makes a :class:`Dataset`; a :class:`Loader` draws batches from a part of it.
"""

from batchnorm.lab.data.augmentation import Augmentation as Augmentation
from batchnorm.lab.data.dataset import Dataset as Dataset
from batchnorm.lab.data.dataset import Examples as Examples
from batchnorm.lab.data.dataset import InMemory as InMemory
from batchnorm.lab.data.loader import Batch as Batch
from batchnorm.lab.data.loader import Loader as Loader
from batchnorm.lab.data.loader import batches as batches
from batchnorm.lab.data.registry import SOURCES as SOURCES
from batchnorm.lab.data.registry import load as load
from batchnorm.lab.data.verified import data_root as data_root
