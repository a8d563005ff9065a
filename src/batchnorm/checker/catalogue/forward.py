"""Known mistakes of the forward of the layer. Equation numbers: the derivation."""

import numpy as np

from batchnorm.checker.model import Changes, Mistake, always, anything

_STORE = "(44) running <- (1 - a) running + a batch"
_ROOT = "(5)  std = sqrt(var + eps), one definition for both modes"
_VAR = "(4)  var = mean over the batch of (x - mean)^2, one per feature"
_MEAN = "(1)  mean = mean over the batch of x, one per feature"
_TEST = "(31) at test time x_hat = (x - running_mean) / sqrt(running_var + eps)"


def _forward(name: str, title: str, changes: Changes, equation: str, why: str, fix: tuple[str, str]) -> Mistake:
    return Mistake(f"batchnorm-{name}", "forward", title, changes, equation, why, fix)


MISTAKES = (
    _forward(
        "var-unbiased",
        "the batch is normalized by the unbiased variance (divides by m - 1)",
        {"var": lambda v: v.rows.var(axis=0, ddof=1)},
        _VAR,
        "Then x_hat has variance (m - 1)/m and not 1, and the backward formulas no longer hold; only the STORED "
        "variance may be unbiased.",
        (
            "var = x.var(axis=0)  # NumPy's default; torch: x.var(dim=0, unbiased=False)",
            "x_hat = (x - mean) / np.sqrt(var + eps)",
        ),
    ),
    _forward(
        "var-unbiased-stored-biased",
        "biased and unbiased variance are exchanged: the batch is normalized by the unbiased one, the biased is stored",
        {"var": lambda v: v.rows.var(axis=0, ddof=1), "stored_var": lambda v: v.rows.var(axis=0)},
        "(4) and (42): the batch takes var (divides by m); what is stored may take m/(m-1) var",
        "The batch needs the variance it has; the estimate for other data is the one that needs the correction.",
        ("var = x.var(axis=0)", "stored = var * m / (m - 1)  # or var: two conventions"),
    ),
    _forward(
        "var-over-everything",
        "the variance is taken over the whole array, features included",
        {"var": lambda v: np.full(v.rows.shape[1], v.rows.var())},
        _VAR,
        "A feature with a small deviation is squashed by the others; torch.var(x, unbiased=False) without dim=0 does "
        "this in silence.",
        ("mean = x.mean(axis=0)", "var = x.var(axis=0)  # torch: torch.var(x, dim=0, unbiased=False)"),
    ),
    _forward(
        "mean-over-everything",
        "the mean is taken over the whole array, features included",
        {"mean": lambda v: np.full(v.rows.shape[1], v.rows.mean()), "var": lambda v: v.rows.var(axis=0)},
        _MEAN,
        "Features keep an offset, so x_hat does not have mean 0.",
        ("mean = x.mean(axis=0)", "var = x.var(axis=0)"),
    ),
    _forward(
        "statistics-over-everything",
        "mean and variance are taken over the whole array, features included",
        {
            "mean": lambda v: np.full(v.rows.shape[1], v.rows.mean()),
            "var": lambda v: np.full(v.rows.shape[1], v.rows.var()),
        },
        _MEAN + "; (4) likewise",
        "That is one normalization of the whole batch; batch normalization treats each feature on its own.",
        ("mean = x.mean(axis=0)", "var = x.var(axis=0)"),
    ),
    _forward(
        "statistics-per-sample",
        "mean and variance are taken over the features of each sample",
        {
            "mean": lambda v: v.rows.mean(axis=1, keepdims=True),
            "var": lambda v: v.rows.var(axis=1, keepdims=True),
            "running_mean": anything,
            "running_var": anything,
        },
        _MEAN + "; (4) likewise",
        "That is layer normalization: axis=1 runs over the features, axis=0 over the batch.",
        ("mean = x.mean(axis=0)", "var = x.var(axis=0)"),
    ),
    _forward(
        "mean-not-subtracted",
        "the mean is not subtracted",
        {"x_hat": lambda v: v.rows / v.std},
        "(2)  d = x - mean;  (7)  x_hat = d / std",
        "x_hat then has the mean of x, and the shift that beta was meant to learn is already there.",
        ("x_hat = (x - mean) / np.sqrt(var + eps)", "out = gamma * x_hat + beta"),
    ),
    _forward(
        "var-not-centred",
        "the variance is the mean of x^2: the mean is not subtracted before squaring",
        {"var": lambda v: (v.rows**2).mean(axis=0)},
        _VAR,
        "That is the second moment; it grows with the mean, and x_hat shrinks.",
        ("var = ((x - mean) ** 2).mean(axis=0)", "x_hat = (x - mean) / np.sqrt(var + eps)"),
    ),
    _forward(
        "eps-outside-the-root",
        "eps is added outside the root, in training and at test time",
        {"std": lambda v: np.sqrt(v.var) + v.eps, "test_std": lambda v: np.sqrt(v.test_var) + v.eps},
        _ROOT,
        "The layer is a slightly different one and its backward, which has (var + eps), is not its gradient; for var "
        "near 0 the two differ by a factor of 1/sqrt(eps).",
        ("std = np.sqrt(var + eps)", "x_hat = (x - mean) / std  # the same at test time, with running_var"),
    ),
    _forward(
        "eps-outside-in-training",
        "eps is added outside the root in training, inside at test time",
        {"std": lambda v: np.sqrt(v.var) + v.eps},
        _ROOT,
        "Training and test normalize by different functions, so outputs jump when the mode changes.",
        ("std = np.sqrt(var + eps)", "x_hat = (x - mean) / std"),
    ),
    _forward(
        "eps-outside-at-test-time",
        "eps is added outside the root at test time, inside in training",
        {"test_std": lambda v: np.sqrt(v.test_var) + v.eps},
        _ROOT,
        "Training and test normalize by different functions, so outputs jump when the mode changes.",
        ("std = np.sqrt(running_var + eps)", "x_hat = (x - running_mean) / std"),
    ),
    _forward(
        "eps-missing",
        "eps is not used",
        {"std": lambda v: np.sqrt(v.var), "test_std": lambda v: np.sqrt(v.test_var)},
        _ROOT,
        "A feature that is constant over a batch has var = 0, and the output is NaN.",
        ("eps = bn_param.get('eps', 1e-5)", "std = np.sqrt(var + eps)"),
    ),
    _forward(
        "eps-missing-at-test-time",
        "eps is not used at test time",
        {"test_std": lambda v: np.sqrt(v.test_var)},
        _ROOT,
        "Training and test normalize by different functions, and a constant feature gives NaN at test time only.",
        ("std = np.sqrt(running_var + eps)", "x_hat = (x - running_mean) / std"),
    ),
    *(
        _forward(
            name,
            f"eps is a constant, {constant:g}; the one that was passed is ignored",
            {"eps": always(constant)},
            _ROOT,
            "The layer cannot be given another eps, and a gradient check with a large one fails.",
            ("eps = bn_param.get('eps', 1e-5)", "std = np.sqrt(var + eps)"),
        )
        for name, constant in (("eps-hard-coded", 1e-5), ("eps-hard-coded-tiny", 1e-8))
    ),
    _forward(
        "root-missing",
        "x - mean is divided by var + eps, without the root",
        {"std": lambda v: v.var + v.eps, "test_std": lambda v: v.test_var + v.eps},
        _ROOT,
        "x_hat then has variance 1/var: the layer turns small signals large and large ones small.",
        ("std = np.sqrt(var + eps)", "x_hat = (x - mean) / std  # the same at test time, with running_var"),
    ),
    _forward(
        "root-missing-at-test-time",
        "at test time x - running_mean is divided by running_var + eps, without the root",
        {"test_std": lambda v: v.test_var + v.eps},
        _ROOT,
        "Training is right and test is not: accuracy drops when the mode changes.",
        ("std = np.sqrt(running_var + eps)", "x_hat = (x - running_mean) / std"),
    ),
    _forward(
        "affine-missing",
        "gamma and beta are not applied in training",
        {"y": lambda v: v.x_hat},
        "(8)  u = gamma x_hat;  (9)  y = u + beta",
        "The layer returns x_hat, cannot learn a scale, and training and test differ.",
        ("x_hat = (x - mean) / np.sqrt(var + eps)", "out = gamma * x_hat + beta"),
    ),
    _forward(
        "affine-missing-at-test-time",
        "gamma and beta are not applied at test time",
        {"test_y": lambda v: v.test_x_hat},
        "(32) y = gamma x_hat + beta, in both modes",
        "What was learned is thrown away at test time.",
        ("x_hat = (x - running_mean) / np.sqrt(running_var + eps)", "out = gamma * x_hat + beta"),
    ),
    _forward(
        "affine-exchanged",
        "gamma and beta are exchanged",
        {"y": lambda v: v.beta * v.x_hat + v.gamma, "test_y": lambda v: v.beta * v.test_x_hat + v.gamma},
        "(8)  u = gamma x_hat;  (9)  y = u + beta",
        "beta starts at 0, so the layer starts as a constant and nothing below it gets a gradient.",
        ("out = gamma * x_hat + beta", "# gamma multiplies, beta is added"),
    ),
    _forward(
        "running-not-updated",
        "the running statistics are not updated in training, or not stored back",
        {"running_mean": lambda v: v.running_mean, "running_var": lambda v: v.running_var},
        _STORE,
        "At test time the layer uses the values it started with.",
        (
            "bn_param['running_mean'] = momentum * running_mean + (1 - momentum) * mean",
            "bn_param['running_var'] = momentum * running_var + (1 - momentum) * var",
        ),
    ),
    _forward(
        "running-var-not-updated",
        "running_mean is updated, running_var is not",
        {"running_var": lambda v: v.running_var},
        "(45) running_var <- (1 - a) running_var + a var",
        "At test time the layer uses the variance it started with.",
        ("running_var = momentum * running_var + (1 - momentum) * var", "bn_param['running_var'] = running_var"),
    ),
    _forward(
        "running-replaced",
        "the running statistics are replaced by those of the batch instead of averaged",
        {
            "running_mean": lambda v: v.stored_mean,
            "running_var": lambda v: v.stored_var,
            "default_keeps_old": anything,
        },
        _STORE,
        "Test outputs then depend on the last batch of training alone.",
        (
            "running_mean = momentum * running_mean + (1 - momentum) * mean",
            "running_var = momentum * running_var + (1 - momentum) * var",
        ),
    ),
    _forward(
        "running-var-stores-std",
        "running_var averages the standard deviation instead of the variance",
        {"stored_var": lambda v: v.std},
        "(45) running_var <- (1 - a) running_var + a var",
        "At test time the root is taken a second time.",
        (
            "running_mean = momentum * running_mean + (1 - momentum) * mean",
            "running_var = momentum * running_var + (1 - momentum) * var  # not std",
        ),
    ),
    _forward(
        "running-updated-at-test-time",
        "the running statistics are updated at test time",
        {
            "after_test_mean": lambda v: v.momentum * v.running_mean + (1 - v.momentum) * v.test_rows.mean(axis=0),
            "after_test_var": lambda v: v.momentum * v.running_var + (1 - v.momentum) * v.test_rows.var(axis=0),
        },
        "(31) at test time the statistics are constants",
        "Test data leak into the model, and the same input gives another output the second time.",
        (
            "if mode == 'train':",
            "    running_mean = momentum * running_mean + (1 - momentum) * mean  # and var, here only",
        ),
    ),
    _forward(
        "batch-statistics-at-test-time",
        "at test time the batch is normalized by its own statistics",
        {"test_mean": lambda v: v.test_rows.mean(axis=0), "test_var": lambda v: v.test_rows.var(axis=0)},
        _TEST,
        "The output for a sample depends on the samples beside it, and a batch of one gives beta whatever the input.",
        ("x_hat = (x - running_mean) / np.sqrt(running_var + eps)", "out = gamma * x_hat + beta"),
    ),
    _forward(
        "running-var-corrected-at-test-time",
        "running_var is multiplied by m/(m-1) with the size of the TEST batch",
        {"test_var": lambda v: v.running_var * len(v.test_rows) / max(len(v.test_rows) - 1, 1)},
        _TEST,
        "The correction belongs to the batches that were averaged (42), before they are stored.",
        (
            "running_var = momentum * running_var + (1 - momentum) * var * m / (m - 1)  # in training",
            "x_hat = (x - running_mean) / np.sqrt(running_var + eps)  # at test time",
        ),
    ),
    _forward(
        "momentum-reversed",
        "momentum multiplies the new batch, but its default (or the course) means the weight of the old value",
        {"factor": lambda v: v.momentum, "default_keeps_old": anything},
        "(44) running <- momentum running + (1 - momentum) batch, if momentum is 0.9 and the like",
        "With 0.9 the running statistics remember little more than the last batch.",
        (
            "running_mean = momentum * running_mean + (1 - momentum) * mean",
            "running_var = momentum * running_var + (1 - momentum) * var",
        ),
    ),
    _forward(
        "momentum-default-reversed",
        "the default momentum is that of the other convention",
        {"default_keeps_old": lambda _: 0.0},
        "(43) a = 1 - momentum if momentum weighs the old value (0.9), a = momentum if the new (0.1)",
        "By default the running statistics remember little more than the last batch.",
        (
            "momentum = bn_param.get('momentum', 0.9)  # weight of the old value",
            "running_mean = momentum * running_mean + (1 - momentum) * mean",
        ),
    ),
    _forward(
        "momentum-hard-coded",
        "momentum is a constant (0.9); the one that was passed is ignored",
        {"factor": lambda _: 0.1},
        "(43) a = 1 - momentum",
        "The average cannot be made longer or shorter.",
        ("momentum = bn_param.get('momentum', 0.9)", "running_mean = momentum * running_mean + (1 - momentum) * mean"),
    ),
    Mistake(
        "batchnorm-naive-variance",
        "digits",
        "the variance is computed as E[x^2] - E[x]^2 (or in float32)",
        {},
        "(4)  var = mean of (x - mean)^2;  (60) says what the other form loses",
        "It subtracts two numbers of the size of mean^2: at a mean of 1e6 deviations 4 of 16 digits are left in "
        "float64 and none in float32, and the variance may be negative.",
        ("centred = x - x.mean(axis=0)", "var = (centred ** 2).mean(axis=0)"),
    ),
    Mistake(
        "batchnorm-input-modified",
        "inputs",
        "an argument is modified in place",
        {},
        "(2)  d = x - mean is a new array",
        "The caller's array changes under its feet: a residual branch or a second call sees other numbers.",
        (
            "x_hat = (x - mean) / np.sqrt(var + eps)  # not x -= mean, x /= std",
            "out = gamma * x_hat + beta  # not x *= gamma",
        ),
    ),
)
