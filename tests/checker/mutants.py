"""Every known mistake of the layer as a learner would write it: an edit of ``learners/course.py``, by its id.

The edits are made on the text of the course's functions and share no code with the catalogue, whose steps are
organised otherwise.
"""

import ast
from pathlib import Path

COURSE = Path(__file__).parent / "learners" / "course.py"

BN = ("batchnorm_forward", "batchnorm_backward")
ALT = ("batchnorm_forward", "batchnorm_backward_alt")
SPATIAL = (*ALT, "spatial_batchnorm_forward", "spatial_batchnorm_backward")

VAR, MEAN = "var = np.mean(xmu**2, axis=0)", "mean = np.mean(x, axis=0)"
STORE_MEAN = "running_mean = momentum * running_mean + (1 - momentum) * mean"
STORE_VAR = "running_var = momentum * running_var + (1 - momentum) * var"
TRAIN_STD, TEST_STD = "np.sqrt(var + eps)\n        ivar", "np.sqrt(running_var + eps)"
TRAIN_OUT = "out = gamma * x_norm + beta\n        cache"
TEST_OUT = "out = gamma * x_norm + beta\n    else"
DVAR = "dvar = np.sum(dx_norm * xmu, axis=0) * -0.5 * (var + eps) ** (-1.5)"
DMEAN = "np.sum(-dx_norm / np.sqrt(var + eps), axis=0)"
# ruff: noqa: ISC004
#: (id, functions, (old, new), ...)
MUTANTS: list[tuple] = [
    # --- the forward ---
    ("batchnorm-var-unbiased", BN, (VAR, "var = xmu.var(axis=0, ddof=1)")),
    (
        "batchnorm-var-unbiased-stored-biased",
        BN,
        (TRAIN_STD, "np.sqrt(var * N / (N - 1) + eps)\n        ivar"),
    ),
    ("batchnorm-var-over-everything", BN, (VAR, "var = np.var(x)")),
    ("batchnorm-mean-over-everything", BN, (MEAN, "mean = np.mean(x)"), (VAR, "var = np.var(x, axis=0)")),
    ("batchnorm-statistics-over-everything", BN, (MEAN, "mean = np.mean(x)"), (VAR, "var = np.var(x)")),
    (
        "batchnorm-statistics-per-sample",
        BN,
        (MEAN, "mean = np.mean(x, axis=1, keepdims=True)"),
        (VAR, "var = np.var(x, axis=1, keepdims=True)"),
    ),
    ("batchnorm-mean-not-subtracted", BN, ("x_norm = xmu * ivar", "x_norm = x * ivar")),
    ("batchnorm-var-not-centred", BN, (VAR, "var = np.mean(x**2, axis=0)")),
    (
        "batchnorm-eps-outside-the-root",
        BN,
        (TRAIN_STD, "np.sqrt(var) + eps\n        ivar"),
        (TEST_STD, "(np.sqrt(running_var) + eps)"),
    ),
    ("batchnorm-eps-outside-in-training", BN, (TRAIN_STD, "np.sqrt(var) + eps\n        ivar")),
    ("batchnorm-eps-outside-at-test-time", BN, (TEST_STD, "(np.sqrt(running_var) + eps)")),
    ("batchnorm-eps-missing", BN, (TRAIN_STD, "np.sqrt(var)\n        ivar"), (TEST_STD, "np.sqrt(running_var)")),
    ("batchnorm-eps-missing-at-test-time", BN, (TEST_STD, "np.sqrt(running_var)")),
    ("batchnorm-eps-hard-coded", BN, ('eps = bn_param.get("eps", 1e-5)', "eps = 1e-5")),
    ("batchnorm-eps-hard-coded-tiny", BN, ('eps = bn_param.get("eps", 1e-5)', "eps = 1e-8")),
    (
        "batchnorm-root-missing",
        BN,
        (TRAIN_STD, "var + eps\n        ivar"),
        (TEST_STD, "(running_var + eps)"),
    ),
    ("batchnorm-root-missing-at-test-time", BN, (TEST_STD, "(running_var + eps)")),
    ("batchnorm-affine-missing", BN, (TRAIN_OUT, "out = x_norm\n        cache")),
    ("batchnorm-affine-missing-at-test-time", BN, (TEST_OUT, "out = x_norm\n    else")),
    (
        "batchnorm-affine-exchanged",
        BN,
        (TRAIN_OUT, "out = beta * x_norm + gamma\n        cache"),
        (TEST_OUT, "out = beta * x_norm + gamma\n    else"),
    ),
    (
        "batchnorm-running-not-updated",
        BN,
        ('    bn_param["running_mean"] = running_mean\n', ""),
        ('    bn_param["running_var"] = running_var\n', ""),
    ),
    ("batchnorm-running-var-not-updated", BN, ('    bn_param["running_var"] = running_var\n', "")),
    ("batchnorm-running-replaced", BN, (STORE_MEAN, "running_mean = mean"), (STORE_VAR, "running_var = var")),
    ("batchnorm-running-var-stores-std", BN, (STORE_VAR, STORE_VAR.replace("* var", "* sqrtvar"))),
    (
        "batchnorm-running-updated-at-test-time",
        BN,
        (
            TEST_OUT,
            "out = gamma * x_norm + beta\n"
            "        running_mean = momentum * running_mean + (1 - momentum) * x.mean(axis=0)\n"
            "        running_var = momentum * running_var + (1 - momentum) * x.var(axis=0)\n    else",
        ),
    ),
    (
        "batchnorm-batch-statistics-at-test-time",
        BN,
        ("(x - running_mean) / np.sqrt(running_var + eps)", "(x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + eps)"),
    ),
    ("batchnorm-running-var-corrected-at-test-time", BN, (TEST_STD, "np.sqrt(running_var * N / (N - 1) + eps)")),
    (
        "batchnorm-momentum-reversed",
        BN,
        (STORE_MEAN, "running_mean = (1 - momentum) * running_mean + momentum * mean"),
        (STORE_VAR, "running_var = (1 - momentum) * running_var + momentum * var"),
    ),
    ("batchnorm-momentum-default-reversed", BN, ('"momentum", 0.9', '"momentum", 0.1')),
    ("batchnorm-momentum-hard-coded", BN, ('momentum = bn_param.get("momentum", 0.9)', "momentum = 0.9")),
    ("batchnorm-naive-variance", BN, (VAR, "var = np.mean(x**2, axis=0) - mean**2")),
    ("batchnorm-input-modified", BN, ("xmu = x - mean", "x -= mean\n        xmu = x")),
    # --- the backward ---
    ("batchnorm-dx-mean-term-dropped", BN, ("dx = dx1 + dx2 + dx3", "dx = dx1 + dx2")),
    ("batchnorm-dx-var-term-dropped", BN, ("dx = dx1 + dx2 + dx3", "dx = dx1 + dx3")),
    ("batchnorm-dx-statistics-as-constants", BN, ("dx = dx1 + dx2 + dx3", "dx = dx1")),
    ("batchnorm-dx-first-term-dropped", BN, ("dx = dx1 + dx2 + dx3", "dx = dx2 + dx3")),
    ("batchnorm-dx-gamma-missing", BN, ("dx_norm = dout * gamma", "dx_norm = dout")),
    ("batchnorm-dx-m-missing-in-var-term", BN, ("dvar * 2.0 * xmu / N", "dvar * 2.0 * xmu")),
    ("batchnorm-dx-m-missing-in-mean-term", BN, ("dx3 = dmean / N", "dx3 = dmean")),
    ("batchnorm-dx-m-missing", ALT, ("gamma * ivar / N * (N * dout -", "gamma * ivar * (dout -")),
    ("batchnorm-dx-m-counts-everything", ALT, ("N = dout.shape[0]", "N = dout.size")),
    ("batchnorm-dx-divided-by-m-minus-1", ALT, ("N = dout.shape[0]", "N = dout.shape[0] - 1")),
    ("batchnorm-dx-factor-2-missing", BN, ("dvar * 2.0 * xmu / N", "dvar * xmu / N")),
    ("batchnorm-dvar-half-missing", BN, ("* -0.5 *", "* -1.0 *")),
    ("batchnorm-dvar-sign", BN, ("* -0.5 *", "* 0.5 *")),
    ("batchnorm-dmean-sign", BN, (DMEAN, DMEAN.replace("-dx_norm", "dx_norm"))),
    ("batchnorm-dvar-power-half", BN, ("** (-1.5)", "** (-0.5)")),
    ("batchnorm-dx-eps-missing", BN, ("N, D = dout.shape", "N, D = dout.shape\n    eps = 0.0")),
    ("batchnorm-dx-multiplied-by-std", ALT, ("gamma * ivar / N", "gamma * sqrtvar / N")),
    ("batchnorm-dx-divided-by-var", ALT, ("gamma * ivar / N", "gamma / (var + eps) / N")),
    ("batchnorm-dgamma-no-sum", BN, ("dgamma = np.sum(dout * x_norm, axis=0)", "dgamma = dout * x_norm")),
    ("batchnorm-dgamma-uses-x", BN, ("dout * x_norm, axis", "dout * x, axis")),
    ("batchnorm-dgamma-uses-centred", BN, ("dout * x_norm, axis", "dout * xmu, axis")),
    ("batchnorm-dgamma-uses-out", BN, ("dout * x_norm, axis", "dout * out, axis")),
    ("batchnorm-dgamma-mean", BN, ("np.sum(dout * x_norm", "np.mean(dout * x_norm")),
    ("batchnorm-dgamma-over-features", BN, ("np.sum(dout * x_norm, axis=0)", "np.sum(dout * x_norm, axis=1)")),
    ("batchnorm-dbeta-no-sum", BN, ("dbeta = np.sum(dout, axis=0)", "dbeta = dout")),
    ("batchnorm-dbeta-mean", BN, ("dbeta = np.sum(dout, axis=0)", "dbeta = np.mean(dout, axis=0)")),
    ("batchnorm-dbeta-over-features", BN, ("dbeta = np.sum(dout, axis=0)", "dbeta = np.sum(dout, axis=1)")),
    ("batchnorm-dbeta-contains-gamma", BN, ("dbeta = np.sum(dout, axis=0)", "dbeta = np.sum(dout * gamma, axis=0)")),
    ("batchnorm-dgamma-dbeta-exchanged", BN, ("return dx, dgamma, dbeta", "return dx, dbeta, dgamma")),
    # --- images ---
    (
        "spatial-per-pixel",
        SPATIAL[:3],
        ("x.transpose(0, 2, 3, 1).reshape(N * H * W, C)", "x.reshape(N, -1)"),
        (
            "batchnorm_forward(x2d, gamma, beta, bn_param)",
            "batchnorm_forward(x2d, gamma.repeat(H * W), beta.repeat(H * W), "
            "bn_param | {k: bn_param[k].repeat(H * W) for k in ('running_mean', 'running_var')})",
        ),
        ("out2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)", "out2d.reshape(N, C, H, W)"),
    ),
    (
        "spatial-per-image",
        SPATIAL[:3],
        (
            "out = out2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)",
            "out = out2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)\n"
            "    if bn_param['mode'] == 'train':\n"
            "        m, v = x.mean(axis=(2, 3), keepdims=True), x.var(axis=(2, 3), keepdims=True)\n"
            "        out = gamma[:, None, None] * (x - m) / np.sqrt(v + bn_param['eps']) + beta[:, None, None]",
        ),
    ),
    (
        "spatial-channels-together",
        SPATIAL[:3],
        (
            "out = out2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)",
            "out = out2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)\n"
            "    if bn_param['mode'] == 'train':\n"
            "        m, v = x.mean(axis=(1, 2, 3), keepdims=True), x.var(axis=(1, 2, 3), keepdims=True)\n"
            "        out = gamma[:, None, None] * (x - m) / np.sqrt(v + bn_param['eps']) + beta[:, None, None]",
        ),
    ),
    (
        "spatial-reshape-instead-of-transpose",
        SPATIAL[:3],
        ("x.transpose(0, 2, 3, 1).reshape(N * H * W, C)", "x.reshape(-1, C)"),
        ("out2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)", "out2d.reshape(x.shape)"),
    ),
    (
        "spatial-not-transposed-back",
        SPATIAL[:3],
        ("out2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)", "out2d.reshape(N, C, H, W)"),
    ),
    (
        "spatial-dout-not-transposed",
        SPATIAL,
        ("dout.transpose(0, 2, 3, 1).reshape(N * H * W, C)", "dout.reshape(-1, C)"),
    ),
    (
        "spatial-dx-not-transposed-back",
        SPATIAL,
        ("dx2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)", "dx2d.reshape(N, C, H, W)"),
    ),
    (
        "spatial-m-counts-images",
        SPATIAL,
        (
            "batchnorm_backward_alt(dout2d, cache)",
            "batchnorm_backward_alt(dout2d, cache)\n"
            "    (_, x_norm, _, ivar, *_), g = cache, cache[6]\n"
            "    dx2d = g * ivar / N * (N * dout2d - dbeta - x_norm * dgamma)",
        ),
    ),
]


def course(functions: tuple[str, ...], *edits: tuple[str, str]) -> str:
    """Return a file with some functions of the course, edited; an edit that does not fit is an error."""
    source = COURSE.read_text(encoding="utf-8")
    parts = ["import numpy as np"]
    parts += [
        ast.get_source_segment(source, node) + "\n"
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name in functions
    ]
    text = "\n\n".join(parts)
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return text
