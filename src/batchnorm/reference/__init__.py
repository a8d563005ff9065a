"""The textbook: batch normalization in NumPy float64, one line of code per numbered equation of ``DERIVATION.md``.

It is written to be read beside the derivation and is the oracle of the test suite, so it prefers digits to speed.
It imports NumPy and the standard library only. Each module is a section of one of the five chapters:

The layer (``DERIVATION.md``)

- `activations`: what may follow the normalization, and its derivative.
- `batch_norm`: the layer, forward and backward, in training and at test time.
- `statistics`: batch, running and population statistics, and how they are merged.

Whitening and folding (``DERIVATION_2_WHITENING.md``)

- `whitening`: full decorrelation, PCA and ZCA, and what it costs.
- `folding`: batch normalization disappears into the layer before it.

Networks (``DERIVATION_3_NETWORKS.md``)

- `layers`, `convolution`: linear, activations, flatten; convolution and max pooling.
- `sandwiches`: layers that come together.
- `losses`: softmax and sigmoid cross-entropy.
- `dropout`, `penalties`, `augmentation`: the other regularizers.
- `initializers`: how large the first weights are.
- `networks`, `training`: fully connected and convolutional, and the loop that trains them.

Descent (``DERIVATION_4_DESCENT.md``)

- `schedules`: the learning rate over time.
- `optimizers`: update rules, from plain descent to Adam.
- `descent`: trajectories on functions that can be drawn, and convexity.

Policies (``DERIVATION_5_POLICIES.md``)

- `policies`: masks, ghost batches, keys and frozen statistics.
- `renorm`: Batch Renormalization.
- `averages`: half-life and debiased averages.
- `ranks`: one batch on several ranks.
"""

from batchnorm.reference import (
    activations,
    augmentation,
    averages,
    batch_norm,
    convolution,
    descent,
    dropout,
    folding,
    initializers,
    layers,
    losses,
    networks,
    optimizers,
    penalties,
    policies,
    ranks,
    renorm,
    sandwiches,
    schedules,
    statistics,
    training,
    whitening,
)

__all__ = [
    "activations",
    "augmentation",
    "averages",
    "batch_norm",
    "convolution",
    "descent",
    "dropout",
    "folding",
    "initializers",
    "layers",
    "losses",
    "networks",
    "optimizers",
    "penalties",
    "policies",
    "ranks",
    "renorm",
    "sandwiches",
    "schedules",
    "statistics",
    "training",
    "whitening",
]
