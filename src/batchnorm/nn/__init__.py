"""Batch-normalization layers: subclasses of torch's, interchangeable with them in code and in checkpoints."""

from batchnorm.nn.batch_norm import BatchNorm1d as BatchNorm1d
from batchnorm.nn.batch_norm import BatchNorm2d as BatchNorm2d
from batchnorm.nn.batch_norm import BatchNorm3d as BatchNorm3d
