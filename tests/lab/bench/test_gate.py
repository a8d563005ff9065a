"""The gate lets right answers through and stops wrong ones, each kind of them."""

import pytest
import torch

from batchnorm.lab.bench import arms, gate
from batchnorm.lab.bench.config import BenchConfig, Case, cases

CASE = Case("bn_add_relu", (8, 16, 7, 5), "channels_last", "float32")


class Wrong(torch.autograd.Function):
    """Change y on the way forward by one factor, and its gradient on the way back by another."""

    @staticmethod
    def forward(ctx, y, forward, backward):
        ctx.factor = backward
        return y * forward

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.factor, None, None


def spoiled(forward=1.0, backward=1.0, momentum=0.1):
    """Make contenders whose arm batchnorm answers wrongly."""

    def contenders(case, *, compiled=False):
        found = arms.contenders(case, compiled=compiled)
        layer = found["batchnorm"].layer
        layer.momentum = momentum
        found["batchnorm"] = arms.Contender(layer, lambda x, r: Wrong.apply(layer(x, r), forward, backward))
        return found

    return contenders


def test_right_answers_pass_in_every_operation_layout_and_dtype():
    config = BenchConfig(shapes=("8x16x7x5", "60x10", "2x3x8", "2x3x4x5x6")).resolved()
    assert gate.check(cases(config)) > 500


@pytest.mark.parametrize(
    ("wrong", "what"),
    [({"forward": 1.001}, ": y:"), ({"backward": 1.001}, ": dx:"), ({"momentum": 0.11}, ": running_mean:"),
     ({"forward": float("nan")}, ": y:")],
)  # fmt: skip
def test_a_wrong_answer_turns_it_red_and_is_named(wrong, what):
    with pytest.raises(gate.GateError) as red:
        gate.check([CASE], contenders=spoiled(**wrong))
    assert str(red.value).startswith("batchnorm, bn_add_relu 4x7x5x3 channels_last float32")
    assert what in str(red.value)


def test_at_the_measured_size_it_compares_with_torch():
    inputs = arms.draw(CASE)
    gate.agree(CASE, arms.contenders(CASE), inputs)
    with pytest.raises(gate.GateError, match=r"y is 0\.001 of its norm away"):
        gate.agree(CASE, spoiled(forward=1.001)(CASE), inputs)
    with pytest.raises(gate.GateError, match=r"dx is 0\.001 of its norm away"):
        gate.agree(CASE, spoiled(backward=1.001)(CASE), inputs)
