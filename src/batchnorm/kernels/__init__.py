"""What computes: one interface, the backends that implement it, and the registry that picks one.

Kernels are pure: they read tensors, return new ones, and know nothing of modes, buffers or autograd.
"""

from batchnorm.kernels.registry import explain as explain
from batchnorm.kernels.registry import use_backend as use_backend
