"""Parameter groups, built once, and torch's optimizers on them."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from batchnorm.lab.training.config import TrainConfig

#: Normalization layers of torch and those derived from them, this package's among them.
NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # noqa: SLF001  # their one base


def penalized_names(model: nn.Module, penalized: str) -> set[str]:
    """Say which parameters the penalties act on.

    A scale of the weights before a normalization changes nothing but the effective learning rate, and biases are few:
    by default neither biases nor anything in a normalization layer is penalized, nor anything with fewer than two axes.

    Parameters
    ----------
    model : Module
        The network.
    penalized : {'weights', 'all'}
        Weights of dense layers and convolutions alone, or all parameters.

    Returns
    -------
    set of str
        Names as in ``model.named_parameters()``.
    """
    if penalized == "all":
        return {name for name, _ in model.named_parameters()}
    inside = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMALIZATIONS)
        for parameter in module.parameters(recurse=False)
    }
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in inside and not name.endswith("bias")
    }


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Split the trained parameters into those with penalties and those without.

    Parameters
    ----------
    model : Module
        The network.
    config : TrainConfig
        Resolved.

    Returns
    -------
    list of dict
        Groups for an optimizer, each with ``names``, ``l1`` and ``weight_decay``; none is empty.
    """
    names = penalized_names(model, config.penalized)
    groups = []
    for penalized in (True, False):
        chosen = {n: p for n, p in model.named_parameters() if p.requires_grad and (n in names) is penalized}
        if chosen:
            groups.append(
                {
                    "params": list(chosen.values()),
                    "names": list(chosen),
                    "weight_decay": config.l2 if penalized else 0.0,
                    "l1": config.l1 if penalized else 0.0,
                }
            )
    return groups


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer of a run.

    Parameters
    ----------
    model : Module
        The network.
    config : TrainConfig
        Resolved: ``optimizer``, ``lr`` and ``l2`` are given.

    Returns
    -------
    Optimizer
    """
    assert config.lr is not None
    groups, lr, eps = parameter_groups(model, config), config.lr, config.optimizer_eps
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(groups, lr),
        "momentum": lambda: torch.optim.SGD(groups, lr, momentum=config.momentum),
        "nesterov": lambda: torch.optim.SGD(groups, lr, momentum=config.momentum, nesterov=config.momentum > 0),
        "adagrad": lambda: torch.optim.Adagrad(groups, lr, eps=eps),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr, alpha=config.square_decay, eps=eps),
        "adam": lambda: torch.optim.Adam(groups, lr, betas=(config.beta1, config.beta2), eps=eps),
        "adamw": lambda: torch.optim.AdamW(groups, lr, betas=(config.beta1, config.beta2), eps=eps),
    }
    assert config.optimizer is not None
    return makers[config.optimizer]()


@torch.no_grad()
def add_l1(optimizer: torch.optim.Optimizer) -> None:
    """Add the subgradient of the L1 penalty, ``l1 * sign(w)``, to the gradients; torch has it in no optimizer."""
    for group in optimizer.param_groups:
        if group["l1"]:
            for parameter in _with_gradient(group["params"]):
                assert parameter.grad is not None
                parameter.grad.add_(parameter.sign(), alpha=group["l1"])


def clip(model: nn.Module, *, norm: float | None, value: float | None) -> None:
    """Cut the gradients: first each value, then the norm of them all. None: not cut."""
    if value is not None:
        nn.utils.clip_grad_value_(model.parameters(), value)
    if norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), norm)


def _with_gradient(parameters: Iterable[nn.Parameter]) -> Iterator[nn.Parameter]:
    return (parameter for parameter in parameters if parameter.grad is not None)
