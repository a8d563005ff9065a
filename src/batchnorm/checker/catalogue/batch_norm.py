"""The layer in steps, and the conventions that are all right. Equation numbers: the derivation."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from batchnorm.checker import inputs
from batchnorm.checker.model import Array, Changes, Convention, Outputs, Step, always, run

#: One training step: the table (count, C), its statistics, the output, and the running statistics after it.
TRAIN: dict[str, Step] = {
    "eps": lambda v: v.eps,
    "rows": lambda v: v.to_rows(v.x),  # (11)
    "mean": lambda v: v.rows.mean(axis=0),  # (1)
    "var": lambda v: ((v.rows - v.mean) ** 2).mean(axis=0),  # (2), (3), (4)
    "std": lambda v: np.sqrt(v.var + v.eps),  # (5)
    "x_hat": lambda v: (v.rows - v.mean) / v.std,  # (6), (7)
    "y": lambda v: v.gamma * v.x_hat + v.beta,  # (8), (9)
    "out": lambda v: v.from_rows(v.y, v.x.shape),  # (11)
    "stored_mean": lambda v: v.mean,
    "stored_var": lambda v: v.var,
    "factor": lambda v: 1 - v.momentum,  # (43)
    "running_mean": lambda v: (1 - v.factor) * v.running_mean + v.factor * v.stored_mean,  # (44)
    "running_var": lambda v: (1 - v.factor) * v.running_var + v.factor * v.stored_var,  # (45)
}
#: The same at test time.
TEST: dict[str, Step] = {
    "eps": lambda v: v.eps,
    "test_rows": lambda v: v.to_rows(v.x),
    "test_mean": lambda v: v.running_mean,
    "test_var": lambda v: v.running_var,
    "test_std": lambda v: np.sqrt(v.test_var + v.eps),  # (5)
    "test_x_hat": lambda v: (v.test_rows - v.test_mean) / v.test_std,  # (31), (7)
    "test_y": lambda v: v.gamma * v.test_x_hat + v.beta,  # (32)
    "test_out": lambda v: v.from_rows(v.test_y, v.x.shape),
    "after_test_mean": lambda v: v.running_mean,
    "after_test_var": lambda v: v.running_var,
}
#: The backward, from the values of the training step.
BACKWARD: dict[str, Step] = {
    "drows": lambda v: v.to_rows(v.dout),
    "count": lambda v: len(v.drows),
    "invstd": lambda v: 1 / v.std,  # (6)
    "dx_hat": lambda v: v.drows * v.gamma,  # (16)
    "dvar": lambda v: -0.5 * v.invstd**3 * (v.dx_hat * (v.rows - v.mean)).sum(axis=0),  # (24)
    "dmean": lambda v: -v.invstd * v.dx_hat.sum(axis=0),  # (25)
    "term_x_hat": lambda v: v.invstd * v.dx_hat,  # (26), first term
    "term_var": lambda v: 2 / v.count * v.dvar * (v.rows - v.mean),  # (26), second term
    "term_mean": lambda v: v.dmean / v.count,  # (26), third term
    "dx_rows": lambda v: v.term_x_hat + v.term_var + v.term_mean,  # (26)
    "dx": lambda v: v.from_rows(v.dx_rows, v.dout.shape),
    "dgamma": lambda v: (v.drows * v.x_hat).sum(axis=0),  # (15)
    "dbeta": lambda v: v.drows.sum(axis=0),  # (14)
}

#: The running statistics that a function's own default momentum leads to: how much of the old value they keep.
DEFAULT: dict[str, Step] = {"default_keeps_old": lambda _: 1.0}

FORWARD_OUTPUTS = (
    *("out", "running_mean", "running_var", "running_mean_second", "running_var_second"),
    *("test_out", "running_mean_after_test", "running_var_after_test", "default_keeps_old"),
)
BACKWARD_OUTPUTS = ("dx", "dgamma", "dbeta")
GROUPS = {
    "forward": FORWARD_OUTPUTS,
    "digits": ("out_far",),
    "backward": BACKWARD_OUTPUTS,
    "inputs": ("x_after", "gamma_after", "beta_after", "dout_after"),
}


def compute(changes: Changes, _: Mapping[str, Any], *, spatial: bool = False) -> Outputs:
    """Run two training steps, a test step and a backward, as a candidate is made to."""
    given = inputs.batch_norm(spatial)
    shaping = {
        "to_rows": spatial_to_rows if spatial else np.asarray,
        "from_rows": spatial_from_rows if spatial else keep,
    }
    first, second, test, far = (
        SimpleNamespace(**(given | shaping | {"x": x}))
        for x in (given["x"], given["x_second"], given["x_test"], given["x"] + inputs.FAR)
    )
    run(TRAIN, changes, first)
    after_first = first.running_mean, first.running_var
    second.running_mean, second.running_var = after_first
    if after_first[0] is None or after_first[1] is None:
        second.running_mean = second.running_var = None
    else:
        run(TRAIN, changes, second)
    run(TEST, changes, test)
    run(TRAIN, changes, far)
    run(BACKWARD, changes, first)
    run(DEFAULT, changes, first)
    return {
        "out": first.out,
        "running_mean": after_first[0],
        "running_var": after_first[1],
        "running_mean_second": second.running_mean,
        "running_var_second": second.running_var,
        "test_out": test.test_out,
        "running_mean_after_test": test.after_test_mean,
        "running_var_after_test": test.after_test_var,
        "default_keeps_old": first.default_keeps_old,
        "out_far": far.out,
        "dx": first.dx,
        "dgamma": first.dgamma,
        "dbeta": first.dbeta,
        **{f"{name}_after": given[name] for name in ("x", "gamma", "beta", "dout")},
    }


def compute_spatial(changes: Changes, facts: Mapping[str, Any]) -> Outputs:
    """Run `compute` on images."""
    return compute(changes, facts, spatial=True)


def keep(rows: Array, _: tuple[int, ...]) -> Array:
    """Leave a dense table as it is."""
    return rows


def spatial_to_rows(x: Array) -> Array:
    """Reshape (N, C, H, W) to one row per sample and position."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])  # (11)


def spatial_from_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """Undo `spatial_to_rows`."""
    samples, channels, height, width = shape
    return rows.reshape(samples, height, width, channels).transpose(0, 3, 1, 2)  # (11)


def _unbiased(v: Any) -> Any:
    return v.var * v.rows.shape[0] / (v.rows.shape[0] - 1)  # (42)


CONVENTIONS = (
    Convention(
        "stored variance",
        "biased",
        {},
        "running_var stores the biased variance, as the courses, Keras and Flax do; torch stores the unbiased one",
    ),
    Convention(
        "stored variance",
        "unbiased",
        {"stored_var": _unbiased},
        "running_var stores the unbiased variance, as torch does; the courses, Keras and Flax store the biased one",
    ),
    Convention(
        "momentum",
        "old",
        {},
        "momentum is the weight of the old value, as in the courses, Keras and Flax; torch's is 1 minus that",
    ),
    Convention(
        "momentum",
        "new",
        {"factor": lambda v: v.momentum},
        "momentum is the weight of the new batch, as in torch; that of the courses, Keras and Flax is 1 minus it",
    ),
    Convention("eps", "given", {}, ""),
    *(
        Convention(
            "eps",
            f"{constant:g}",
            {"eps": always(constant)},
            f"eps is {constant:g}, and a user of the layer cannot change it",
        )
        for constant in (1e-3, 1e-5, 1e-6, 1e-7, 1e-8)
    ),
)
