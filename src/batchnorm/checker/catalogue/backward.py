"""Known mistakes of the backward of the layer. Equation numbers: the derivation."""

import numpy as np

from batchnorm.checker.model import Changes, Mistake

_DX = "(26) dx = r dx_hat + 2/m dvar (x - mean) + dmean/m,  r = 1/sqrt(var + eps)"
_DVAR = "(24) dvar = -1/2 (var + eps)^(-3/2) sum dx_hat (x - mean)"
_DGAMMA = "(15) dgamma = sum over the batch of dout x_hat"
_DBETA = "(14) dbeta = sum over the batch of dout"


def _backward(name: str, title: str, changes: Changes, equation: str, why: str, fix: tuple[str, str]) -> Mistake:
    return Mistake(f"batchnorm-{name}", "backward", title, changes, equation, why, fix)


MISTAKES = (
    _backward(
        "dx-mean-term-dropped",
        "dx has lost its third term, the way through the mean",
        {"term_mean": lambda _: 0.0},
        _DX,
        "Every x moves the mean and so every output; without the term the sum of dx over the batch is not 0 (54).",
        ("dmean = -np.sum(dx_hat, axis=0) / std", "dx = dx_hat / std + 2 / m * dvar * (x - mean) + dmean / m"),
    ),
    _backward(
        "dx-var-term-dropped",
        "dx has lost its second term, the way through the variance",
        {"term_var": lambda _: 0.0},
        _DX,
        "Every x moves the variance and so every output; without the term dx is not orthogonal to x_hat (55).",
        (
            "dvar = np.sum(dx_hat * (x - mean), axis=0) * -0.5 * (var + eps) ** -1.5",
            "dx = dx_hat / std + 2 / m * dvar * (x - mean) + dmean / m",
        ),
    ),
    _backward(
        "dx-statistics-as-constants",
        "dx treats mean and variance as constants",
        {"term_mean": lambda _: 0.0, "term_var": lambda _: 0.0},
        _DX,
        "That is the gradient of test mode (33); in training both statistics depend on x (a stray detach() does it).",
        (
            "dx = gamma / std / m * (m * dout - dbeta - x_hat * dgamma)  # (30)",
            "# dbeta = dout.sum(axis=0), dgamma = (dout * x_hat).sum(axis=0)",
        ),
    ),
    _backward(
        "dx-first-term-dropped",
        "dx has lost its first term, the direct way",
        {"term_x_hat": lambda _: 0.0},
        _DX,
        "Only the ways through the statistics are left, and they are the correction, not the gradient.",
        ("dx_hat = dout * gamma", "dx = dx_hat / std + 2 / m * dvar * (x - mean) + dmean / m"),
    ),
    _backward(
        "dx-gamma-missing",
        "dx does not contain gamma",
        {"dx_hat": lambda v: v.drows},
        "(16) dx_hat = gamma dout",
        "It is right as long as gamma is 1, so it passes a check at the start of training and fails later.",
        ("dx_hat = dout * gamma", "dx = (dx_hat - dx_hat.mean(axis=0) - x_hat * (dx_hat * x_hat).mean(axis=0)) / std"),
    ),
    _backward(
        "dx-m-missing-in-var-term",
        "the variance term of dx is not divided by m",
        {"term_var": lambda v: 2 * v.dvar * (v.rows - v.mean)},
        _DX,
        "The variance is a MEAN of squares: one x is a 1/m part of it (20).",
        ("dx_var = dvar * 2 * (x - mean) / m", "dx = dx_hat / std + dx_var + dmean / m"),
    ),
    _backward(
        "dx-m-missing-in-mean-term",
        "the mean term of dx is not divided by m",
        {"term_mean": lambda v: v.dmean},
        _DX,
        "One x is a 1/m part of the mean (23).",
        ("dx_mean = dmean / m", "dx = dx_hat / std + 2 / m * dvar * (x - mean) + dx_mean"),
    ),
    _backward(
        "dx-m-missing",
        "neither the mean term nor the variance term of dx is divided by m",
        {"term_mean": lambda v: v.dmean, "term_var": lambda v: 2 * v.dvar * (v.rows - v.mean)},
        _DX,
        "Both statistics are means: one x is a 1/m part of each.",
        (
            "dx = gamma / std / m * (m * dout - dbeta - x_hat * dgamma)  # (30)",
            "m = x.shape[0]  # values per feature",
        ),
    ),
    _backward(
        "dx-m-counts-everything",
        "m is the number of all elements instead of the values per feature",
        {"count": lambda v: v.drows.size},
        _DX,
        "x.size counts the features too; the statistics of a feature are means over its own values.",
        ("m = x.shape[0]  # spatial: N * H * W", "dx = gamma / std / m * (m * dout - dbeta - x_hat * dgamma)"),
    ),
    _backward(
        "dx-divided-by-m-minus-1",
        "dx divides by m - 1",
        {"count": lambda v: len(v.drows) - 1},
        _DX,
        "The batch was normalized by the biased variance, which divides by m.",
        ("m = x.shape[0]", "dx = gamma / std / m * (m * dout - dbeta - x_hat * dgamma)"),
    ),
    _backward(
        "dx-factor-2-missing",
        "the derivative of the square has lost its 2 in dx",
        {"term_var": lambda v: v.dvar * (v.rows - v.mean) / v.count},
        "(21) the derivative of (x - mean)^2 is 2 (x - mean)",
        "Half of the way through the variance is missing.",
        ("dx_var = dvar * 2 * (x - mean) / m", "dx = dx_hat / std + dx_var + dmean / m"),
    ),
    _backward(
        "dvar-half-missing",
        "the derivative of the root has lost its 1/2 in dvar",
        {"dvar": lambda v: -(v.invstd**3) * (v.dx_hat * (v.rows - v.mean)).sum(axis=0)},
        _DVAR,
        "The way through the variance counts twice.",
        (
            "dvar = np.sum(dx_hat * (x - mean), axis=0) * -0.5 * (var + eps) ** -1.5",
            "# d/dv (v + eps)^(-1/2) = -1/2 (v + eps)^(-3/2)",
        ),
    ),
    _backward(
        "dvar-sign",
        "the variance term of dx has the wrong sign",
        {"dvar": lambda v: 0.5 * v.invstd**3 * (v.dx_hat * (v.rows - v.mean)).sum(axis=0)},
        _DVAR,
        "1/sqrt(var) falls when var grows, so the derivative is negative.",
        (
            "dvar = np.sum(dx_hat * (x - mean), axis=0) * -0.5 * (var + eps) ** -1.5",
            "dx = dx_hat / std + 2 / m * dvar * (x - mean) + dmean / m",
        ),
    ),
    _backward(
        "dmean-sign",
        "the mean term of dx has the wrong sign",
        {"dmean": lambda v: v.invstd * v.dx_hat.sum(axis=0)},
        "(25) dmean = -r sum dx_hat",
        "x_hat falls when the mean grows, so the derivative is negative.",
        ("dmean = -np.sum(dx_hat, axis=0) / std", "dx = dx_hat / std + 2 / m * dvar * (x - mean) + dmean / m"),
    ),
    _backward(
        "dvar-power-half",
        "dvar has the power -1/2 where -3/2 belongs",
        {"dvar": lambda v: -0.5 * v.invstd * (v.dx_hat * (v.rows - v.mean)).sum(axis=0)},
        _DVAR,
        "The derivative of v^(-1/2) lowers the power by one.",
        (
            "dvar = np.sum(dx_hat * (x - mean), axis=0) * -0.5 * (var + eps) ** -1.5",
            "# in code: -1.5, not -0.5, in the power",
        ),
    ),
    _backward(
        "dx-eps-missing",
        "the backward divides by sqrt(var), the forward by sqrt(var + eps)",
        {"invstd": lambda v: 1 / np.sqrt(v.var)},
        "(6)  r = 1/sqrt(var + eps), the same in the backward",
        "With eps=1e-5 no check sees it until a feature is nearly constant, and then dx explodes.",
        (
            "std = np.sqrt(var + eps)  # or take it from the cache",
            "dx = gamma / std / m * (m * dout - dbeta - x_hat * dgamma)",
        ),
    ),
    _backward(
        "dx-multiplied-by-std",
        "dx is multiplied by sqrt(var + eps) where it must be divided",
        {"dx_rows": lambda v: (v.term_x_hat + v.term_var + v.term_mean) / v.invstd**2},
        "(29) dx = r (dx_hat - mean dx_hat - x_hat mean(dx_hat x_hat)),  r = 1/sqrt(var + eps)",
        "What was divided in the forward is divided in the backward: large inputs have small gradients.",
        ("std = np.sqrt(var + eps)", "dx = gamma / std / m * (m * dout - dbeta - x_hat * dgamma)"),
    ),
    _backward(
        "dx-divided-by-var",
        "dx is divided by var + eps, without the root",
        {"dx_rows": lambda v: (v.term_x_hat + v.term_var + v.term_mean) * v.invstd},
        "(29) dx = r (dx_hat - mean dx_hat - x_hat mean(dx_hat x_hat)),  r = 1/sqrt(var + eps)",
        "It looks right as long as the deviations are near 1.",
        ("std = np.sqrt(var + eps)", "dx = gamma / std / m * (m * dout - dbeta - x_hat * dgamma)"),
    ),
    _backward(
        "dgamma-no-sum",
        "dgamma is not summed over the batch",
        {"dgamma": lambda v: v.drows * v.x_hat},
        _DGAMMA,
        "gamma was broadcast over the batch, so its gradient is the sum of what comes back; the shape must be gamma's.",
        ("dgamma = np.sum(dout * x_hat, axis=0)", "dbeta = np.sum(dout, axis=0)"),
    ),
    _backward(
        "dgamma-uses-x",
        "dgamma uses x instead of x_hat",
        {"dgamma": lambda v: (v.drows * v.rows).sum(axis=0)},
        _DGAMMA,
        "gamma multiplies x_hat, not x (8).",
        ("dgamma = np.sum(dout * x_hat, axis=0)", "# keep x_hat in the cache of the forward"),
    ),
    _backward(
        "dgamma-uses-centred",
        "dgamma uses x - mean instead of x_hat",
        {"dgamma": lambda v: (v.drows * (v.rows - v.mean)).sum(axis=0)},
        _DGAMMA,
        "gamma multiplies x_hat = (x - mean)/std (8).",
        ("x_hat = (x - mean) / std", "dgamma = np.sum(dout * x_hat, axis=0)"),
    ),
    _backward(
        "dgamma-uses-out",
        "dgamma uses the output instead of x_hat",
        {"dgamma": lambda v: (v.drows * v.y).sum(axis=0)},
        _DGAMMA,
        "gamma multiplies x_hat, and the output is what comes after (8), (9).",
        ("dgamma = np.sum(dout * x_hat, axis=0)", "# keep x_hat in the cache of the forward, not out"),
    ),
    _backward(
        "dgamma-mean",
        "dgamma is the mean over the batch instead of the sum",
        {"dgamma": lambda v: (v.drows * v.x_hat).mean(axis=0)},
        _DGAMMA,
        "The 1/m of the loss is already in dout; a second one makes gamma learn m times too slowly.",
        ("dgamma = np.sum(dout * x_hat, axis=0)", "dbeta = np.sum(dout, axis=0)"),
    ),
    _backward(
        "dgamma-over-features",
        "dgamma is summed over the features instead of the batch",
        {"dgamma": lambda v: (v.drows * v.x_hat).sum(axis=1)},
        _DGAMMA,
        "axis=1 gives one number per sample; gamma has one per feature.",
        ("dgamma = np.sum(dout * x_hat, axis=0)", "dbeta = np.sum(dout, axis=0)"),
    ),
    _backward(
        "dbeta-no-sum",
        "dbeta is not summed over the batch",
        {"dbeta": lambda v: v.drows},
        _DBETA,
        "beta was broadcast over the batch, so its gradient is the sum of what comes back; the shape must be beta's.",
        ("dbeta = np.sum(dout, axis=0)", "dgamma = np.sum(dout * x_hat, axis=0)"),
    ),
    _backward(
        "dbeta-mean",
        "dbeta is the mean over the batch instead of the sum",
        {"dbeta": lambda v: v.drows.mean(axis=0)},
        _DBETA,
        "The 1/m of the loss is already in dout; a second one makes beta learn m times too slowly.",
        ("dbeta = np.sum(dout, axis=0)", "dgamma = np.sum(dout * x_hat, axis=0)"),
    ),
    _backward(
        "dbeta-over-features",
        "dbeta is summed over the features instead of the batch",
        {"dbeta": lambda v: v.drows.sum(axis=1)},
        _DBETA,
        "axis=1 gives one number per sample; beta has one per feature.",
        ("dbeta = np.sum(dout, axis=0)", "dgamma = np.sum(dout * x_hat, axis=0)"),
    ),
    _backward(
        "dbeta-contains-gamma",
        "dbeta is multiplied by gamma",
        {"dbeta": lambda v: (v.drows * v.gamma).sum(axis=0)},
        _DBETA,
        "beta is added after gamma has multiplied (9); it is right only as long as gamma is 1.",
        ("dbeta = np.sum(dout, axis=0)", "dx_hat = dout * gamma  # gamma belongs here"),
    ),
    _backward(
        "dgamma-dbeta-exchanged",
        "dgamma and dbeta are returned in the wrong order",
        {"dgamma": lambda v: v.drows.sum(axis=0), "dbeta": lambda v: (v.drows * v.x_hat).sum(axis=0)},
        "(15) dgamma = sum dout x_hat;  (14) dbeta = sum dout",
        "Both have the same shape, so nothing complains; the layer learns its scale from the shift.",
        ("dgamma, dbeta = np.sum(dout * x_hat, axis=0), np.sum(dout, axis=0)", "return dx, dgamma, dbeta"),
    ),
)
