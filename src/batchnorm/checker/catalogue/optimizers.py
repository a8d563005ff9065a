"""Update rules in steps, and the conventions that are all right. Settings and state have the names of the courses."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from batchnorm.checker import inputs
from batchnorm.checker.catalogue import updates
from batchnorm.checker.model import Changes, Convention, Outputs, Step, Subject, run

STARTED = tuple(f"w_{step}" for step in range(1, 5))
RESUMED = ("w_resumed_1", "w_resumed_2")
GROUPS = {"update": STARTED + RESUMED, "inputs": ("dw_after",)}

SGD: dict[str, Step] = {"w": lambda v: v.w - v.learning_rate * v.dw}  # (131)
MOMENTUM: dict[str, Step] = {
    "velocity": lambda v: v.momentum * v.velocity - v.learning_rate * v.dw,  # (132)
    "w": lambda v: v.w + v.velocity,  # (133)
}
NESTEROV: dict[str, Step] = {
    "velocity": lambda v: v.momentum * v.velocity - v.learning_rate * v.dw,  # (132)
    "w": lambda v: v.w + v.momentum * v.velocity - v.learning_rate * v.dw,  # (134)
}
ADAGRAD: dict[str, Step] = {
    "cache": lambda v: v.cache + v.dw**2,  # (135)
    "w": lambda v: v.w - v.learning_rate * v.dw / (np.sqrt(v.cache) + v.epsilon),  # (137)
}
RMSPROP: dict[str, Step] = {
    "cache": lambda v: v.decay_rate * v.cache + (1 - v.decay_rate) * v.dw**2,  # (136)
    "w": lambda v: v.w - v.learning_rate * v.dw / (np.sqrt(v.cache) + v.epsilon),  # (137)
}
ADAM: dict[str, Step] = {
    "t": lambda v: v.t + 1,
    "t_used": lambda v: v.t,
    "m": lambda v: v.beta1 * v.m + (1 - v.beta1) * v.dw,  # (138)
    "v": lambda v: v.beta2 * v.v + (1 - v.beta2) * v.dw**2,  # (139)
    "m_hat": lambda v: v.m / (1 - v.beta1**v.t_used),  # (140)
    "v_hat": lambda v: v.v / (1 - v.beta2**v.t_used),  # (140)
    "w": lambda v: v.w - v.learning_rate * v.m_hat / (np.sqrt(v.v_hat) + v.epsilon),  # (141)
}


def _compute(steps: Mapping[str, Step]) -> Callable[[Changes, Mapping[str, Any]], Outputs]:
    def compute(changes: Changes, facts: Mapping[str, Any]) -> Outputs:
        given = inputs.optimizer()
        zero = np.zeros_like(given["w"])
        start = {"velocity": zero, "cache": zero, "m": zero, "v": zero, "t": 0}
        outputs: Outputs = {"dw_after": given["gradients"][0]}
        with np.errstate(all="ignore"):  # some mistakes divide by 0 or take the root of a negative number
            for names, state, fresh in ((STARTED, start, True), (RESUMED, given["state"], False)):
                v = SimpleNamespace(w=given["w"], fresh=fresh, **(given["config"] | state | facts))
                # What a rule has in hand that does not keep its state, or keeps something else.
                for name, value in state.items():
                    setattr(v, f"{name}_before_run", value)
                v.m_hat, v.v_hat = v.m, v.v
                for name, gradient in zip(names, given["gradients"], strict=False):
                    v.dw = gradient
                    run(steps, changes, v)
                    outputs[name] = v.w
        return outputs

    return compute


_AVERAGED = Convention(
    "velocity",
    "averaged",
    {
        "velocity": lambda v: v.momentum * v.velocity + (1 - v.momentum) * v.dw,
        "w": lambda v: v.w - v.learning_rate * v.velocity,
    },
    "the velocity is an average, mu v + (1 - mu) dw, as in the Coursera course; elsewhere it is the sum mu v + dw, and "
    "its learning rate is (1 - mu) times as large",
)
_SUMMED = Convention(
    "velocity",
    "of gradients",
    {"velocity": lambda v: v.momentum * v.velocity + v.dw, "w": lambda v: v.w - v.learning_rate * v.velocity},
    "the velocity holds gradients and the learning rate is applied to it, as in torch; in the courses the velocity "
    "holds steps. They differ only when the learning rate changes",
)
_SUMMED_NESTEROV = Convention(
    "velocity",
    "of gradients",
    {
        "velocity": lambda v: v.momentum * v.velocity + v.dw,
        "w": lambda v: v.w - v.learning_rate * (v.dw + v.momentum * v.velocity),
    },
    _SUMMED.note,
)
_STEPS = Convention("velocity", "of steps", {}, "")
_COUNTS_FROM_1 = Convention(
    "t",
    "next",
    {"t_used": lambda v: v.t if v.fresh else v.t - 1},
    "t is the number of the NEXT step (starts at 1, incremented after use); in the courses it is that of the last",
)
_COUNTS_FROM_0 = Convention("t", "last", {}, "")

SUBJECTS = tuple(
    Subject(
        name=name,
        compute=_compute(steps),
        groups=GROUPS,
        mistakes=(*mistakes, updates.GRADIENT_MODIFIED),
        conventions=conventions,
    )
    for name, steps, mistakes, conventions in (
        ("sgd", SGD, updates.SGD, ()),
        ("sgd_momentum", MOMENTUM, updates.MOMENTUM, (_STEPS, _SUMMED, _AVERAGED)),
        ("nesterov", NESTEROV, updates.NESTEROV, (_STEPS, _SUMMED_NESTEROV)),
        ("adagrad", ADAGRAD, updates.ADAGRAD, ()),
        ("rmsprop", RMSPROP, updates.RMSPROP, ()),
        ("adam", ADAM, updates.ADAM, (_COUNTS_FROM_0, _COUNTS_FROM_1)),
    )
)
