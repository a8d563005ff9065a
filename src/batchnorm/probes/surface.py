"""Evaluate the loss on lines, triangles, patches and planes through the space of weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.probes.calls import replaying
from batchnorm.tools import preserve
from batchnorm.tools.recalibrate import recalibrate

Statistics = Literal["batch", "recalibrated"]
Kind = Literal["linear", "barycentric", "bilinear", "plane"]
#: Weights by the names of ``model.named_parameters()``: a model that has them, or its ``state_dict()``.
Weights = nn.Module | Mapping[str, Tensor]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """The loss at some points of the space of weights.

    Attributes
    ----------
    kind : {'linear', 'barycentric', 'bilinear', 'plane'}
        Where the points are.
    statistics : {'batch', 'recalibrated'}
        What batch normalization normalized with. Name it in every picture: it changes the surface.
    coefficients : ndarray of shape (points, K) or (points, points, K)
        The weights at a point are the sum of K given weights (ends; or center and directions) with these factors. NaN
        outside of a triangle.
    loss : ndarray of shape (points,) or (points, points)
        Mean loss of an example. Infinite where it is not finite, NaN outside of a triangle.
    """

    kind: Kind
    statistics: Statistics
    coefficients: Array
    loss: Array

    @property
    def lowest(self) -> tuple[float, Array]:
        """The lowest loss, and the coefficients of the point that has it."""
        place = np.unravel_index(int(np.nanargmin(self.loss)), self.loss.shape)
        return float(self.loss[place]), self.coefficients[place]

    @property
    def barrier(self) -> float:
        """How far the loss of a line rises above the chord between its ends, at most: 0 without a barrier.

        Raises
        ------
        ValueError
            The surface is not a line.
        """
        if self.kind != "linear":
            raise ValueError(f"a barrier is that of a linear surface; got a {self.kind} one; take LossSurface.linear")
        return float(np.max(self.loss - self.coefficients @ self.loss[[0, -1]]))

    def flat_share(self, tolerance: float = 0.01) -> float:
        """Compute the share of points on a plateau.

        Parameters
        ----------
        tolerance : float, default=0.01
            A point is flat if the loss differs from that of each neighbour on the grid by at most this share of the
            range of all finite losses.

        Returns
        -------
        float
            Of the points inside. Points with an infinite loss, or beside one, are not flat.
        """
        inside = ~np.isnan(self.loss)
        finite = self.loss[np.isfinite(self.loss)]
        if not len(finite):
            return 0.0
        steepest = np.zeros(self.loss.shape)
        for axis in range(self.loss.ndim):
            with np.errstate(invalid="ignore"):  # between two infinite losses
                step = np.abs(np.diff(self.loss, axis=axis))
            step[np.isnan(step)] = 0.0  # a neighbour outside is none; two infinite ones are excluded below
            ends = [(0, 0)] * self.loss.ndim
            for side in ((0, 1), (1, 0)):
                ends[axis] = side
                steepest = np.maximum(steepest, np.pad(step, ends))
        flat = (steepest <= tolerance * np.ptp(finite)) & np.isfinite(self.loss)
        return float(flat.sum() / inside.sum())


class LossSurface:
    r"""Evaluate the loss of a model at combinations of weights.

    The points are :math:`\theta = \sum_k c_k \theta_k` with the coefficients :math:`c` of each kind of surface:
    `linear` and `bilinear` interpolation, `barycentric` coordinates of a triangle (Im, Tao and Branson 2016), and a
    `plane` through a center, along directions such as `filter_normalized` ones (Li et al. 2018). Parameters are
    combined in float64; buffers are not, as running statistics of a combination are not those of its inputs.

    Instead, batch normalization uses the statistics of each batch (``statistics="batch"``), or is recalibrated at each
    point with `batchnorm.recalibrate` (``"recalibrated"``): the loss in training, or that after training. Everything
    else is in eval mode. Frozen layers (in eval mode inside a model in training mode) keep their statistics.

    After each surface weights, buffers, modes and random state are what they were, also after an exception.

    Parameters
    ----------
    model : Module
        The network, not a wrapper for distributed training.
    batches : iterable
        Gone through once for each point: a list of batches, or a ``DataLoader``. A shuffled one draws the same order
        at each point.
    loss : callable
        ``loss(model, batch)`` returns the loss of each example of a batch, a tensor of shape (n,).
    statistics : {'batch', 'recalibrated'}, default='batch'
        What batch normalization normalizes with.
    calibration : iterable, optional
        Batches to recalibrate with. None: ``batches``.

    Raises
    ------
    TypeError
        ``batches`` or ``calibration`` can be gone through only once, or a loss is not one number per example.
    ValueError
        ``statistics`` is unknown, weights do not fit the model, or there are too few points.

    References
    ----------
    Im, Tao and Branson 2016, :arxiv:`1612.04010`. Li, Xu, Taylor, Studer and Goldstein 2018, :arxiv:`1712.09913`,
    section 4.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Linear(1, 1, bias=False)
    >>> batches = [(torch.ones(4, 1), torch.full((4,), 3.0))]
    >>> surfaces = LossSurface(model, batches, lambda model, batch: (model(batch[0])[:, 0] - batch[1]) ** 2)
    >>> line = surfaces.linear({"weight": torch.zeros(1, 1)}, {"weight": torch.full((1, 1), 4.0)}, points=5)
    >>> line.loss.tolist()
    [9.0, 4.0, 1.0, 0.0, 1.0]
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss: Callable[[nn.Module, Any], Tensor],
        *,
        statistics: Statistics = "batch",
        calibration: Iterable[Any] | None = None,
    ) -> None:
        if statistics not in get_args(Statistics):
            raise ValueError(f"statistics must be one of {', '.join(get_args(Statistics))}; got {statistics!r}")
        self.model, self.loss, self.statistics = model, loss, statistics
        self.batches = _repeatable(batches, "batches")
        self.calibration = self.batches if calibration is None else _repeatable(calibration, "calibration")

    def linear(self, start: Weights, end: Weights, points: int = 50, span: tuple[float, float] = (0.0, 1.0)) -> Surface:
        r"""Evaluate the line :math:`(1 - a) \theta_1 + a \theta_2`.

        Parameters
        ----------
        start, end : Module or dict of str to Tensor
            Weights at its ends.
        points : int, default=50
            How many, both ends included.
        span : tuple of float, default=(0.0, 1.0)
            First and last a.

        Returns
        -------
        Surface
        """
        a = _grid(*span, points)
        return self._evaluate("linear", (start, end), np.stack([1 - a, a], -1))

    def barycentric(self, first: Weights, second: Weights, third: Weights, points: int = 50) -> Surface:
        r"""Evaluate the triangle :math:`(1 - a - b) \theta_1 + a \theta_2 + b \theta_3`.

        Parameters
        ----------
        first, second, third : Module or dict of str to Tensor
            Weights at its corners.
        points : int, default=50
            Along each edge, corners included.

        Returns
        -------
        Surface
            Rows are values of a, columns of b; NaN where a + b is above 1.
        """
        side = np.arange(len(_grid(0.0, 1.0, points)))
        a, b = np.meshgrid(side, side, indexing="ij")
        rest = points - 1 - a - b
        coefficients = np.stack([rest, a, b], -1) / (points - 1)
        coefficients[rest < 0] = np.nan
        return self._evaluate("barycentric", (first, second, third), coefficients)

    def bilinear(self, first: Weights, second: Weights, third: Weights, fourth: Weights, points: int = 50) -> Surface:
        r"""Evaluate the patch :math:`(1 - b)((1 - a)\theta_1 + a\theta_2) + b((1 - a)\theta_3 + a\theta_4)`.

        Parameters
        ----------
        first, second, third, fourth : Module or dict of str to Tensor
            Weights at its corners; the second and the third are next to the first.
        points : int, default=50
            Along each edge, corners included.

        Returns
        -------
        Surface
            Rows are values of a, columns of b.
        """
        side = _grid(0.0, 1.0, points)
        a, b = np.meshgrid(side, side, indexing="ij")
        coefficients = np.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b], -1)
        return self._evaluate("bilinear", (first, second, third, fourth), coefficients)

    def plane(
        self,
        center: Weights,
        first: Weights,
        second: Weights,
        points: int = 25,
        span: tuple[float, float] = (-1.0, 1.0),
    ) -> Surface:
        r"""Evaluate the plane :math:`\theta + a d_1 + b d_2`.

        Parameters
        ----------
        center : Module or dict of str to Tensor
            Weights in the middle.
        first, second : Module or dict of str to Tensor
            Directions; see `filter_normalized`.
        points : int, default=25
            Along each axis; an odd number has the center among them.
        span : tuple of float, default=(-1.0, 1.0)
            First and last a and b.

        Returns
        -------
        Surface
            Rows are values of a, columns of b. The first coefficient is 1.
        """
        side = _grid(*span, points)
        a, b = np.meshgrid(side, side, indexing="ij")
        return self._evaluate("plane", (center, first, second), np.stack([np.ones_like(a), a, b], -1))

    def _evaluate(self, kind: Kind, weights: Sequence[Weights], coefficients: Array) -> Surface:
        parameters = dict(self.model.named_parameters())
        given = [_matching(parameters, each) for each in weights]
        loss = np.full(coefficients.shape[:-1], np.nan)
        with self._restored() as put_back:
            for place in np.ndindex(loss.shape):
                factors = coefficients[place]
                if np.isnan(factors).any():
                    continue
                for parameter, *tensors in zip(parameters.values(), *given, strict=True):
                    parameter.data = _combined(tensors, factors, parameter)
                put_back()
                value = self._value(put_back)
                loss[place] = value if np.isfinite(value) else np.inf
        return Surface(kind, self.statistics, coefficients, loss)

    @contextmanager
    def _restored(self) -> Iterator[Callable[[], None]]:
        """Restore everything at the end; yield what restores buffers and random state for the next point."""
        model = self.model
        with ExitStack() as stack:
            random = stack.enter_context(preserve.random_state(model))
            buffers = stack.enter_context(preserve.buffers(model))
            stack.enter_context(preserve.modes(model))
            for parameter in model.parameters():
                stack.callback(setattr, parameter, "data", parameter.data)
            token = replaying.set(True)
            stack.callback(replaying.reset, token)
            stack.enter_context(torch.no_grad())

            def put_back() -> None:
                random.put_back()
                buffers.put_back()

            yield put_back

    def _value(self, put_back: Callable[[], None]) -> float:
        model = self.model
        normalizations: set[nn.Module] = {
            layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training >= model.training
        }
        if self.statistics == "batch" or not normalizations:
            return self._mean(normalizations)
        try:
            recalibrate(model, self.calibration, inplace=True, forward=self.loss)
        except ValueError:
            put_back()
            if np.isfinite(value := self._mean(normalizations)):
                raise
            return value  # no statistics of values that are not finite
        return self._mean(set())

    def _mean(self, training: set[nn.Module]) -> float:
        """Return the mean loss of an example, with some layers in training mode and everything else in eval mode."""
        total, count = 0.0, 0
        with preserve.modes(self.model):
            for module in self.model.modules():
                module.training = module in training
            for batch in self.batches:
                losses = self.loss(self.model, batch)
                if not isinstance(losses, Tensor) or losses.dim() != 1:
                    came = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
                    raise TypeError(
                        f"loss must return one number for each example, a tensor of shape (n,); got {came}. "
                        'Try reduction="none"'
                    )
                total += losses.double().sum().item()
                count += len(losses)
        if not count:
            raise ValueError("batches must hold at least one example; got none")
        return total / count


def filter_normalized(center: Weights, seed: int) -> dict[str, Tensor]:
    r"""Draw a random direction whose filters are as long as those of the weights.

    .. math:: d_i \leftarrow \frac{d_i}{\lVert d_i \rVert} \lVert \theta_i \rVert

    for each filter i: a row of a weight, that is all weights of one output unit. Biases and the parameters of
    normalization do not move. So a distance in the plane means the same in networks with weights of other sizes, which
    batch normalization makes equivalent.

    Parameters
    ----------
    center : Module or dict of str to Tensor
        Weights from which the direction leads.
    seed : int
        Of the draw.

    Returns
    -------
    dict of str to Tensor
        By the names of ``center``.

    References
    ----------
    Li, Xu, Taylor, Studer and Goldstein 2018, :arxiv:`1712.09913`, section 4.

    Examples
    --------
    >>> import torch
    >>> direction = filter_normalized({"weight": torch.tensor([[3.0, 4.0]]), "bias": torch.ones(1)}, seed=0)
    >>> round(direction["weight"].norm().item(), 5), direction["bias"].item()
    (5.0, 0.0)
    """
    generator = torch.Generator().manual_seed(seed)
    directions = {}
    for name, weight in _tensors(center).items():
        if weight.dim() < 2:
            directions[name] = torch.zeros_like(weight, requires_grad=False)
            continue
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).flatten(1)
        scale = weight.detach().double().cpu().flatten(1).norm(dim=1) / drawn.norm(dim=1)
        directions[name] = (drawn * scale[:, None]).reshape(weight.shape).to(weight)
    return directions


def _tensors(weights: Weights) -> Mapping[str, Tensor]:
    return dict(weights.named_parameters()) if isinstance(weights, nn.Module) else weights


def _matching(parameters: Mapping[str, Tensor], weights: Weights) -> list[Tensor]:
    """Return copies of the weights of these parameters, in their order."""
    given = _tensors(weights)
    if missing := [name for name in parameters if name not in given]:
        raise ValueError(
            f"weights must have every parameter of the model; missing {', '.join(missing[:5])}; pass a model of the "
            f"same architecture, or its state_dict()"
        )
    for name, parameter in parameters.items():
        if given[name].shape != parameter.shape:
            raise ValueError(
                f"weights must have the shapes of the model; {name} is {tuple(given[name].shape)} and must be "
                f"{tuple(parameter.shape)}"
            )
    return [given[name].detach().clone() for name in parameters]


def _combined(tensors: Sequence[Tensor], factors: Array, like: Tensor) -> Tensor:
    wide = torch.promote_types(like.dtype, torch.float64 if like.device.type != "mps" else torch.float32)
    total = torch.zeros(like.shape, dtype=wide, device=like.device)
    for tensor, factor in zip(tensors, factors.tolist(), strict=True):
        if factor:  # at a corner the weights are exactly those given
            total.add_(tensor.to(total), alpha=factor)
    return total.to(like.dtype)


def _repeatable(batches: Iterable[Any], name: str) -> Iterable[Any]:
    if isinstance(batches, Iterator):
        raise TypeError(f"{name} is gone through once for each point; got an iterator; pass a list or a DataLoader")
    return batches


def _grid(first: float, last: float, points: int) -> Array:
    if points < 2:
        raise ValueError(f"a surface needs at least 2 points along each axis; got {points}")
    return np.linspace(first, last, points)
