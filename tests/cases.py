"""One call of ``functional.batch_norm``, described by names, and its comparison with the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import oracle
import regimes
from batchnorm.functional import batch_norm


@dataclass(frozen=True)
class Case:
    """One call, described by names so that a failure can be repeated."""

    values: str = "normal"
    shape: tuple[int, ...] = (3, 6, 5, 7)
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype | None = None  # None: float32, or float64 for float64
    activation: str | None = None
    affine: bool = True
    residual: bool = False
    training: bool = True
    momentum: float = 0.1
    seed: int = 0

    def inputs(self) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(self.seed)
        channels = self.shape[1]
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        parameter = self.parameter_dtype or wide

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        layout = regimes.LAYOUTS[self.layout]
        x = layout(regimes.VALUES[self.values](self.shape, generator).to(self.dtype))
        # Stored statistics that fit the data, as they would after training, and are not those of the batch.
        mean = x.double().mean([0, *range(2, x.dim())]) * 1.1 + 0.1
        running_var = (draw(channels).abs() + 0.5) * (1e58 if self.values == "1e30" else 1)
        return {
            "x": x,
            "dy": layout(draw(*self.shape).to(self.dtype)),
            "weight": draw(channels).to(parameter) if self.affine else None,
            "bias": draw(channels).to(parameter) if self.affine else None,
            "residual": layout(draw(*self.shape).to(self.dtype)) if self.residual else None,
            "running_mean": mean.to(parameter),
            "running_var": running_var.clamp(max=1e37).to(parameter),
        }


def check(case: Case) -> None:
    """Compare output, layout, running buffers and every gradient of one call with the reference."""
    given_ = case.inputs()
    answers = oracle.ask(
        given_["x"],
        given_["dy"],
        weight=given_["weight"],
        bias=given_["bias"],
        residual=given_["residual"],
        running=(given_["running_mean"], given_["running_var"]),
        training=case.training,
        momentum=case.momentum,
        activation=case.activation,
    )
    leaves = {name: given_[name] for name in ("x", "weight", "bias", "residual") if given_[name] is not None}
    for leaf in leaves.values():
        leaf.requires_grad_()
    running_mean, running_var = given_["running_mean"].clone(), given_["running_var"].clone()
    y = batch_norm(
        given_["x"],
        running_mean,
        running_var,
        given_["weight"],
        given_["bias"],
        case.training,
        case.momentum,
        activation=case.activation,
        residual=given_["residual"],
    )
    assert y.dtype == case.dtype
    assert y.stride() == torch.empty_like(given_["x"]).stride()
    grads = torch.autograd.grad(y, list(leaves.values()), given_["dy"])
    answers["y"].check("y", y)
    for name, grad in zip(leaves, grads, strict=True):
        assert grad.dtype == leaves[name].dtype
        answers[f"d{name}"].check(f"d{name}", grad)
    if case.training:
        answers["running_mean"].check("running_mean", running_mean)
        answers["running_var"].check("running_var", running_var)
    else:
        assert torch.equal(running_mean, given_["running_mean"])
        assert torch.equal(running_var, given_["running_var"])
