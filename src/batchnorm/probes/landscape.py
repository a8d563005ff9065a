"""Measure the loss along the gradient: Santurkar et al. 2018, section 3.1 and figure 4."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from torch import nn

from batchnorm.probes.gradients import norm
from batchnorm.probes.probe import Reading, Step
from batchnorm.probes.replay import replay

#: Step sizes in learning rates. The paper spans [1/2, 4] for VGG; it does not say with how many.
STEPS = tuple(np.geomspace(0.5, 4, 7).tolist())
#: Share by which rounding may make a point farther or nearer than it was meant to be.
ROUNDED = 1e-3


class Landscape:
    r"""Measure loss and gradient on the line along the gradient, 1/2 to 4 learning rates away (probe "landscape").

    From the weights :math:`\theta` with gradient :math:`g` on this batch it visits :math:`\theta - s \eta g` for
    seven s from 1/2 to 4 in equal ratios, :math:`\eta` being the learning rate (of each parameter's group; momentum and
    other scaling of the optimizer do not enter). ``loss_low`` and ``loss_high`` are the smallest and largest loss,
    ``gradient_change_low`` and ``gradient_change_high`` those of :math:`\lVert g - g' \rVert_2`; ``smoothness`` is the
    largest :math:`\lVert g - g' \rVert_2 / \lVert \theta - \theta' \rVert_2`, the paper's effective beta;
    ``distance_low`` and ``distance_high`` are the nearest and farthest point. ``loss`` is that at the weights.

    It costs a forward and backward pass for each s and one more, and three copies of the weights. A loss that is not
    finite counts as infinite. A point whose distance is lost in the rounding of the weights does not count for
    ``smoothness``; without any point (a gradient or a learning rate of zero) it is NaN.

    Parameters
    ----------
    model : Module
        The network.
    steps : sequence of float, default=STEPS
        Other s than the seven: the paper takes 1/100 to 30 for deep linear networks.

    Raises
    ------
    ValueError
        ``steps`` are not positive numbers.

    References
    ----------
    Santurkar, Tsipras, Ilyas and Madry 2018, :arxiv:`1805.11604`, section 3.1.
    """

    name = "landscape"
    description = (
        "Loss and gradient on this batch at seven points along the gradient, from 1/2 to 4 learning rates away "
        "(arXiv 1805.11604, figure 4)."
    )

    def __init__(self, model: nn.Module, steps: Sequence[float] = STEPS) -> None:
        if not len(steps) or not all(0 < size < np.inf for size in steps):
            raise ValueError(f"steps must be positive numbers of learning rates; got {tuple(steps)}; try (0.5, 1, 2)")
        self._model, self._steps = model, tuple(steps)

    def watch(self) -> AbstractContextManager[None]:
        """Watch nothing: `measure` repeats the step."""
        return nullcontext()

    def measure(self, step: Step) -> Reading:
        """Return the losses and changes of gradient, and restore the weights."""
        rates = {
            parameter: float(group["lr"])
            for group in step.optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        }
        parameters = list(rates)
        start = [parameter.data for parameter in parameters]
        losses, changes, distances, ratios = [], [], [], [float("nan")]
        with replay(step) as replayed:
            loss, gradients = replayed.gradients(parameters)
            unit = norm([rates[p] * gradient for p, gradient in zip(parameters, gradients, strict=True)])
            for size in self._steps:
                for parameter, origin, gradient in zip(parameters, start, gradients, strict=True):
                    parameter.data = (origin - size * rates[parameter] * gradient).to(origin.dtype)
                met, others = replayed.gradients(parameters)
                losses.append(met if np.isfinite(met) else float("inf"))
                changes.append(norm([h - g for g, h in zip(gradients, others, strict=True)]))
                distances.append(norm([p.data - origin for p, origin in zip(parameters, start, strict=True)]))
                if abs(distances[-1] - size * unit) < ROUNDED * size * unit:
                    ratios.append(changes[-1] / distances[-1])
        return Reading(
            {
                "loss": loss,
                "loss_low": min(losses),
                "loss_high": max(losses),
                "gradient_change_low": float(np.min(changes)),
                "gradient_change_high": float(np.max(changes)),
                "smoothness": float(np.fmax.reduce(ratios)),
                "distance_low": min(distances),
                "distance_high": max(distances),
            }
        )
