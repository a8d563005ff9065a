"""Two networks that can be read in one sitting. ``DERIVATION_3_NETWORKS.md``, section 20; `training` has the loop.

`fully_connected` is ``{linear - [bn] - activation - [dropout]} x L - linear``; `conv_net` is
``{conv - [bn] - activation - [pool]} x L - linear``. Both are a list of layers and a dictionary of parameters, and
`Network` walks through the list, forward and backward. The normalization stands before the activation, and a layer
that is followed by one has no bias: both as in section 3.2 of the paper.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.reference import batch_norm, dropout
from batchnorm.reference._checks import Array, RandomSource, as_float, one_of, probability
from batchnorm.reference.convolution import conv2d_backward, conv2d_forward, max_pool2d_backward, max_pool2d_forward
from batchnorm.reference.initializers import kaiming_normal
from batchnorm.reference.layers import (
    LayerGradients,
    activation_backward,
    activation_forward,
    linear_backward,
    linear_forward,
)
from batchnorm.reference.losses import softmax_cross_entropy
from batchnorm.reference.statistics import update_running

#: From scores and targets to the loss and its gradient.
Criterion = Callable[[ArrayLike, ArrayLike], tuple[float, Array]]
#: From the list of all weights to the cost and its gradients: `penalties` with everything else set by ``partial``.
Penalty = Callable[[Sequence[ArrayLike]], tuple[float, list[Array]]]
#: From a shape and a source of random numbers to a weight.
Initializer = Callable[[tuple[int, ...], RandomSource], Array]


@dataclass
class Network:
    """A list of layers with their parameters.

    Attributes
    ----------
    layers : list of (kind, name)
        Kinds are linear, conv, norm, activation, dropout and pool.
    parameters : dict of str to ndarray
        ``name.weight`` and ``name.bias`` of each layer that has them.
    running : dict of str to (running_mean, running_var)
        Of each normalization.
    activation : str
        Name of the activation.
    criterion : callable
        The loss.
    penalty : callable, optional
        What is added for the weights of linear and conv layers; biases and normalizations are left alone.
    keep_prob : float
        Of the dropout layers.
    momentum : float
        Weight of the new batch in the running statistics.
    eps : float
        Of the normalizations.
    generator : Generator or RandomState, optional
        Where dropout draws its masks from.
    """

    layers: list[tuple[str, str]]
    parameters: dict[str, Array]
    running: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    activation: str = "relu"
    criterion: Criterion = softmax_cross_entropy
    penalty: Penalty | None = None
    keep_prob: float = 1.0
    momentum: float = 0.1
    eps: float = 1e-5
    generator: RandomSource | None = None

    def loss(self, x: ArrayLike, y: ArrayLike) -> tuple[float, dict[str, Array]]:
        """Loss of a batch in training mode, and its gradient with respect to each parameter.

        Parameters
        ----------
        x : array_like of shape (N, *D)
            The batch. Each call updates the running statistics with it, and draws new masks.
        y : array_like
            Targets, as the criterion takes them.

        Returns
        -------
        loss : float
            The criterion plus the penalty.
        gradients : dict of str to ndarray
            Under the names of the parameters.

        Raises
        ------
        ValueError
            What the layers and the criterion raise.
        """
        scores, caches = self._forward(as_float(x), training=True)
        loss, dx = self.criterion(scores, y)
        gradients: dict[str, Array] = {}
        for (kind, name), cache in zip(reversed(self.layers), reversed(caches), strict=True):
            dx = self._backward_one(kind, name, dx, cache, gradients)
        if self.penalty is not None:
            names = self.penalized
            cost, dweights = self.penalty([self.parameters[name] for name in names])
            loss = loss + cost  # (125)
            for name, dweight in zip(names, dweights, strict=True):
                gradients[name] = gradients[name] + dweight  # (125)
        return loss, gradients

    def scores(self, x: ArrayLike) -> Array:
        """Output of the last layer at test time: running statistics, no dropout, for ``x`` of shape (N, *D)."""
        return self._forward(as_float(x), training=False)[0]

    def predict(self, x: ArrayLike) -> NDArray[np.intp]:
        """Class of each sample of ``x`` at test time; with one score per sample, whether it is above 0."""
        scores = self.scores(x)
        return np.asarray(scores.argmax(axis=1) if scores.shape[1] > 1 else scores[:, 0] > 0, dtype=np.intp)

    @property
    def penalized(self) -> list[str]:
        """Names of the parameters that the penalty is about."""
        return [f"{name}.weight" for kind, name in self.layers if kind in ("linear", "conv")]

    def _forward(self, x: Array, *, training: bool) -> tuple[Array, list[Any]]:
        caches = []
        for kind, name in self.layers:
            x, cache = self._forward_one(kind, name, x, training=training)
            caches.append(cache)
        return x, caches

    def _forward_one(self, kind: str, name: str, x: Array, *, training: bool) -> tuple[Array, Any]:
        affine = self.parameters.get(f"{name}.weight"), self.parameters.get(f"{name}.bias")
        match kind:
            case "linear":
                return linear_forward(x, self.parameters[f"{name}.weight"], affine[1])
            case "conv":
                return conv2d_forward(x, self.parameters[f"{name}.weight"], affine[1], padding=1)
            case "activation":
                return activation_forward(x, self.activation)
            case "dropout":
                return dropout.forward(x, keep_prob=self.keep_prob, generator=self.generator, training=training)
            case "pool":
                return max_pool2d_forward(x)
        if not training:
            return batch_norm.forward_test(x, *self.running[name], *affine, eps=self.eps)
        y, cache = batch_norm.forward_train(x, *affine, eps=self.eps)
        self.running[name] = update_running(*self.running[name], cache.mean, cache.var, cache.count, self.momentum)
        return y, cache

    def _backward_one(self, kind: str, name: str, dy: Array, cache: Any, gradients: dict[str, Array]) -> Array:
        match kind:
            case "activation":
                return activation_backward(dy, cache)
            case "dropout":
                return dropout.backward(dy, cache)
            case "pool":
                return max_pool2d_backward(dy, cache)
            case "linear":
                found = linear_backward(dy, cache)
            case "conv":
                found = conv2d_backward(dy, cache)
            case _:
                norm = batch_norm.backward(dy, cache)
                found = LayerGradients(norm.dx, norm.dweight, norm.dbias)
        own = {f"{name}.weight": found.dweight, f"{name}.bias": found.dbias}
        gradients |= {key: value for key, value in own.items() if key in self.parameters}
        return found.dx


def fully_connected(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    *,
    generator: RandomSource,
    norm: str = "none",
    activation: str = "relu",
    keep_prob: float = 1.0,
    penalty: Penalty | None = None,
    initializer: Initializer | None = None,
    criterion: Criterion = softmax_cross_entropy,
) -> Network:
    """Build a fully connected network of any depth.

    Parameters
    ----------
    inputs : int
        Values of a sample.
    hidden : sequence of int
        Units of each hidden layer; empty for a linear classifier.
    outputs : int
        Scores.
    generator : numpy.random.Generator or numpy.random.RandomState
        Where the weights are drawn from, layer by layer, and later the masks of dropout.
    norm : {'none', 'batch'}, default='none'
        Whether a normalization stands between each hidden linear layer and its activation.
    activation : str, default='relu'
        Name of the activation.
    keep_prob : float, default=1
        Probability that dropout keeps a value. Below 1 each activation is followed by dropout.
    penalty : callable, optional
        For instance ``partial(l2_penalty, strength=1e-3, convention="sum")``.
    initializer : callable, optional
        From (shape, generator) to a weight. Default: `initializers.kaiming_normal` for the activation if its gain is
        known, and with a gain of 1 for the last layer. Biases are 0.
    criterion : callable, default=softmax_cross_entropy
        From (scores, y) to (loss, dscores).

    Returns
    -------
    Network
        Not trained.

    Raises
    ------
    ValueError
        An unknown norm, a keep_prob outside [0, 1], or an activation without a known gain and no initializer.

    Examples
    --------
    >>> network = fully_connected(2, [3], 2, norm="batch", generator=np.random.default_rng(0))
    >>> [name for _, name in network.layers]
    ['linear1', 'norm1', 'activation1', 'linear2']
    >>> sorted(network.parameters)
    ['linear1.weight', 'linear2.bias', 'linear2.weight', 'norm1.bias', 'norm1.weight']
    """
    network = Network([], {}, activation=activation, criterion=criterion, penalty=penalty, generator=generator)
    network.keep_prob = probability("keep_prob", keep_prob)
    sizes = [inputs, *hidden]
    for depth, shape in enumerate(zip(hidden, sizes[:-1], strict=True), start=1):
        _add_hidden(network, "linear", depth, shape, norm, initializer, generator)
        if keep_prob < 1:
            network.layers.append(("dropout", f"dropout{depth}"))
    _add_last(network, len(sizes), (outputs, sizes[-1]), initializer, generator)
    return network


def conv_net(
    shape: tuple[int, int, int],
    filters: Sequence[int],
    outputs: int,
    *,
    generator: RandomSource,
    max_pools: Iterable[int] = (),
    norm: str = "none",
    activation: str = "relu",
    penalty: Penalty | None = None,
    initializer: Initializer | None = None,
    criterion: Criterion = softmax_cross_entropy,
) -> Network:
    """Build a deep convolutional network: kernels of 3 x 3 that keep the size, and max pools that halve it.

    Parameters
    ----------
    shape : (C, H, W)
        Of an image.
    filters : sequence of int
        Output channels of each convolution.
    outputs : int
        Scores.
    generator : numpy.random.Generator or numpy.random.RandomState
        Where the weights are drawn from, layer by layer.
    max_pools : iterable of int, default=()
        Which convolutions, counted from 0, are followed by a max pool.
    norm : {'none', 'batch'}, default='none'
        Whether a normalization stands between each convolution and its activation.
    activation, penalty, initializer, criterion : optional
        As in `fully_connected`.

    Returns
    -------
    Network
        Not trained.

    Raises
    ------
    ValueError
        An unknown norm, a max pool after a convolution that does not exist, or more of them than the image allows.
    """
    pools = set(max_pools)
    channels, height, width = shape
    height, width = height // 2 ** len(pools), width // 2 ** len(pools)
    if not pools <= set(range(len(filters))) or height < 1 or width < 1:
        raise ValueError(
            f"max_pools must be from 0 to {len(filters) - 1} and leave at least one pixel, but are {sorted(pools)} for "
            f"images of {shape[1]} x {shape[2]}. Try fewer."
        )
    network = Network([], {}, activation=activation, criterion=criterion, penalty=penalty, generator=generator)
    for index, (outs, ins) in enumerate(zip(filters, [channels, *filters][:-1], strict=True)):
        _add_hidden(network, "conv", index + 1, (outs, ins, 3, 3), norm, initializer, generator)
        if index in pools:
            network.layers.append(("pool", f"pool{index + 1}"))
    last = filters[-1] if len(filters) else channels
    _add_last(network, len(filters) + 1, (outputs, last * height * width), initializer, generator)
    return network


def _add_hidden(
    network: Network,
    kind: str,
    depth: int,
    shape: tuple[int, ...],
    norm: str,
    initializer: Initializer | None,
    generator: RandomSource,
) -> None:
    """Append a layer with parameters, its normalization if any, and its activation."""
    one_of("norm", norm, ("none", "batch"))
    draw = initializer or partial(kaiming_normal, activation=network.activation)
    network.layers.append((kind, f"{kind}{depth}"))
    network.parameters[f"{kind}{depth}.weight"] = draw(shape, generator)
    outs = shape[0]
    if norm == "batch":
        network.layers.append(("norm", f"norm{depth}"))
        network.parameters |= {f"norm{depth}.weight": np.ones(outs), f"norm{depth}.bias": np.zeros(outs)}
        network.running[f"norm{depth}"] = np.zeros(outs), np.ones(outs)
    else:
        network.parameters[f"{kind}{depth}.bias"] = np.zeros(outs)
    network.layers.append(("activation", f"activation{depth}"))


def _add_last(
    network: Network, depth: int, shape: tuple[int, ...], initializer: Initializer | None, generator: RandomSource
) -> None:
    draw = initializer or partial(kaiming_normal, activation=None)
    network.layers.append(("linear", f"linear{depth}"))
    network.parameters[f"linear{depth}.weight"] = draw(shape, generator)
    network.parameters[f"linear{depth}.bias"] = np.zeros(shape[0])
