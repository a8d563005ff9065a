"""The textbook: batch normalization in NumPy float64, one line of code per numbered equation of ``DERIVATION.md``.

It is written to be read beside the derivation and is the oracle of the test suite, so it prefers digits to speed.
It imports NumPy and the standard library only. Each module is one chapter:

- `activations`: what may follow the normalization, and its derivative.
- `batch_norm`: the layer, forward and backward, in training and at test time.
- `statistics`: batch, running and population statistics, and how they are merged.
"""

from batchnorm.reference import activations, batch_norm, statistics

__all__ = ["activations", "batch_norm", "statistics"]
