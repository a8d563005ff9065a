"""Every known mistake as a learner would write it: an edit of ``learners/course.py``, by id of the catalogue.

The edits are made on the text of the course's functions and share no code with the catalogue, whose steps are
organised otherwise.
"""

import ast
from pathlib import Path

COURSE = Path(__file__).parent / "learners" / "course.py"

BN = ("batchnorm_forward", "batchnorm_backward")
ALT = ("batchnorm_forward", "batchnorm_backward_alt")
SPATIAL = (*ALT, "spatial_batchnorm_forward", "spatial_batchnorm_backward")
DROPOUT = ("dropout_forward", "dropout_backward")

VAR, MEAN = "var = np.mean(xmu**2, axis=0)", "mean = np.mean(x, axis=0)"
STORE_MEAN = "running_mean = momentum * running_mean + (1 - momentum) * mean"
STORE_VAR = "running_var = momentum * running_var + (1 - momentum) * var"
TRAIN_STD, TEST_STD = "np.sqrt(var + eps)\n        ivar", "np.sqrt(running_var + eps)"
TRAIN_OUT = "out = gamma * x_norm + beta\n        cache"
TEST_OUT = "out = gamma * x_norm + beta\n    else"
DVAR = "dvar = np.sum(dx_norm * xmu, axis=0) * -0.5 * (var + eps) ** (-1.5)"
DMEAN = "np.sum(-dx_norm / np.sqrt(var + eps), axis=0)"
STORE_T = 'config["m"], config["v"], config["t"] = m, v, t'
STEP_ADAM = 'config["learning_rate"] * mt / (np.sqrt(vt) + eps)'
ROOT = '(np.sqrt(cache) + config["epsilon"])'
ROOT_ADAGRAD = '(np.sqrt(config["cache"]) + config["epsilon"])'
KAIMING_DENSE, KAIMING_CONV = "np.sqrt(gain / Din)", "np.sqrt(gain / (Din * K * K))"
KAIMING_DENSE_DRAW = f"np.random.randn(Din, Dout) * {KAIMING_DENSE}"
KAIMING_CONV_DRAW = f"np.random.randn(Dout, Din, K, K) * {KAIMING_CONV}"
XAVIER = "np.random.randn(fan_in, fan_out) / np.sqrt(fan_in)"

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
    # --- dropout ---
    ("dropout-not-rescaled", DROPOUT, ("(np.random.rand(*x.shape) >= p) / (1 - p)", "np.random.rand(*x.shape) >= p")),
    ("dropout-divided-by-drop-rate", DROPOUT, ("/ (1 - p)", "/ p")),
    ("dropout-multiplied-by-keep", DROPOUT, ("/ (1 - p)", "* (1 - p)")),
    ("dropout-multiplied-by-drop-rate", DROPOUT, ("/ (1 - p)", "* p")),
    (
        "dropout-keep-drop-swapped",
        DROPOUT,
        ('dropout_param["p"], dropout_param["mode"]', 'dropout_param["keep_prob"], dropout_param["mode"]'),
    ),
    (
        "dropout-mask-swapped",
        DROPOUT,
        (">= p) / (1 - p)", "< p) / (1 - p)"),
        ("import numpy as np", "import numpy as np\n\nCHECK = {'dropout': 'drop'}"),
    ),
    ("dropout-identity-in-training", DROPOUT, ("out = x * mask", "out = x")),
    (
        "dropout-whole-rows",
        DROPOUT,
        ("np.random.rand(*x.shape)", "np.random.rand(len(x), 1)"),
        ("dx = dout * mask", "dx = dout * mask"),
    ),
    ("dropout-active-at-test-time", DROPOUT[:1], ('if mode == "train":', "if mode:")),
    ("dropout-scaled-at-test-time", DROPOUT[:1], ("out = x\n", "out = x * (1 - p)\n")),
    (
        "dropout-not-inverted",
        DROPOUT[:1],
        ("(np.random.rand(*x.shape) >= p) / (1 - p)", "np.random.rand(*x.shape) >= p"),
        ("out = x\n", "out = x * (1 - p)\n"),
    ),
    (
        "dropout-backward-new-mask",
        DROPOUT,
        (
            "dx = dout * mask",
            "dx = dout * (np.random.rand(*dout.shape) >= dropout_param['p']) / (1 - dropout_param['p'])",
        ),
    ),
    ("dropout-backward-mask-not-used", DROPOUT, ("dx = dout * mask", "dx = dout")),
    ("dropout-backward-only-scaled", DROPOUT, ("dx = dout * mask", "dx = dout / (1 - dropout_param['p'])")),
    ("dropout-backward-not-rescaled", DROPOUT, ("dx = dout * mask", "dx = dout * (mask > 0)")),
    (
        "dropout-backward-divided-by-drop-rate",
        DROPOUT,
        ("dx = dout * mask", "dx = dout * (mask > 0) / dropout_param['p']"),
    ),
    (
        "dropout-backward-active-at-test-time",
        DROPOUT,
        ('if mode == "train":', "if True:"),
        ("out = x * mask", 'out = x * mask if mode == "train" else x'),
        ('if dropout_param["mode"] == "train":', "if True:"),
    ),
    ("dropout-input-modified", DROPOUT, ("out = x * mask", "x *= mask\n        out = x")),
    # --- update rules ---
    ("sgd-sign", ("sgd",), ("w -=", "w +=")),
    ("sgd-learning-rate-missing", ("sgd",), ('w -= config["learning_rate"] * dw', "w -= dw")),
    ("momentum-sign", ("sgd_momentum",), ('* v - config["learning_rate"]', '* v + config["learning_rate"]')),
    ("momentum-velocity-sign", ("sgd_momentum",), ('config["momentum"] * v -', '-config["momentum"] * v -')),
    ("momentum-velocity-subtracted", ("sgd_momentum",), ("w + v", "w - v")),
    ("momentum-velocity-not-kept", ("sgd_momentum",), ('    config["velocity"] = v\n', "")),
    (
        "momentum-old-velocity-used",
        ("sgd_momentum",),
        ('    v = config["momentum"]', '    next_w = w + v\n    v = config["momentum"]'),
        ("dw\n    next_w = w + v", "dw"),
    ),
    ("momentum-factor-missing", ("sgd_momentum",), ('config["momentum"] * v -', "v -")),
    ("momentum-is-nesterov", ("sgd_momentum",), ("w + v", 'w + config["momentum"] * v - config["learning_rate"] * dw')),
    (
        "nesterov-is-momentum",
        ("nesterov",),
        ('w - config["momentum"] * v_prev + (1 + config["momentum"]) * v', "w + v"),
    ),
    (
        "nesterov-sign",
        ("nesterov",),
        ('v_prev - config["learning_rate"]', 'v_prev + config["learning_rate"]'),
    ),
    (
        "nesterov-look-ahead-without-gradient",
        ("nesterov",),
        ('w - config["momentum"] * v_prev + (1 + config["momentum"]) * v', 'w + config["momentum"] * v'),
    ),
    (
        "nesterov-gradient-twice",
        ("nesterov",),
        ('w - config["momentum"] * v_prev + (1 + config["momentum"]) * v', 'w + v - config["learning_rate"] * dw'),
    ),
    ("adagrad-sums-gradients", ("adagrad",), ("dw * dw", "dw")),
    ("adagrad-sums-absolute-values", ("adagrad",), ("dw * dw", "np.abs(dw)")),
    ("adagrad-root-missing", ("adagrad",), ('np.sqrt(config["cache"])', 'config["cache"]')),
    ("adagrad-eps-inside-the-root", ("adagrad",), (ROOT_ADAGRAD, 'np.sqrt(config["cache"] + config["epsilon"])')),
    (
        "adagrad-is-rmsprop",
        ("adagrad",),
        ('config["cache"] + dw * dw', '0.9 * config["cache"] + 0.1 * dw * dw'),
    ),
    (
        "adagrad-cache-not-kept",
        ("adagrad",),
        ('config["cache"] = config["cache"] + dw * dw', 'cache = config["cache"] + dw * dw'),
        ('np.sqrt(config["cache"])', "np.sqrt(cache)"),
    ),
    ("adagrad-sign", ("adagrad",), ("w - config", "w + config")),
    ("adagrad-eps-hard-coded", ("adagrad",), ('config["epsilon"]', "1e-8")),
    ("rmsprop-eps-inside-the-root", ("rmsprop",), (ROOT, 'np.sqrt(cache + config["epsilon"])')),
    ("rmsprop-root-missing", ("rmsprop",), ("np.sqrt(cache)", "cache")),
    ("rmsprop-averages-gradients", ("rmsprop",), ("(dw**2)", "dw")),
    (
        "rmsprop-decay-reversed",
        ("rmsprop",),
        (
            'config["decay_rate"] * config["cache"] + (1 - config["decay_rate"]) * (dw**2)',
            '(1 - config["decay_rate"]) * config["cache"] + config["decay_rate"] * (dw**2)',
        ),
    ),
    ("rmsprop-new-square-unweighted", ("rmsprop",), ('(1 - config["decay_rate"]) * (dw**2)', "dw**2")),
    (
        "rmsprop-is-adagrad",
        ("rmsprop",),
        ('config["decay_rate"] * config["cache"] + (1 - config["decay_rate"]) * (dw**2)', 'config["cache"] + dw**2'),
    ),
    ("rmsprop-cache-not-kept", ("rmsprop",), ('    config["cache"] = cache\n', "")),
    ("rmsprop-sign", ("rmsprop",), ("w - config", "w + config")),
    ("rmsprop-eps-hard-coded", ("rmsprop",), ('+ config["epsilon"]', "+ 1e-8")),
    ("adam-no-bias-correction", ("adam",), ("m / (1 - beta1**t)", "m"), ("v / (1 - beta2**t)", "v")),
    ("adam-m-not-corrected", ("adam",), ("m / (1 - beta1**t)", "m")),
    ("adam-v-not-corrected", ("adam",), ("v / (1 - beta2**t)", "v")),
    (
        "adam-t-starts-at-0",
        ("adam",),
        ('t = config["t"] + 1', 't = config["t"]'),
        (STORE_T, STORE_T.replace("v, t", "v, t + 1")),
    ),
    ("adam-t-not-incremented", ("adam",), ('t = config["t"] + 1', 't = config["t"]')),
    ("adam-t-stuck-at-1", ("adam",), (STORE_T, 'config["m"], config["v"] = m, v')),
    ("adam-eps-inside-the-root", ("adam",), ("(np.sqrt(vt) + eps)", "np.sqrt(vt + eps)")),
    ("adam-root-missing", ("adam",), ("np.sqrt(vt)", "vt")),
    ("adam-v-averages-gradients", ("adam",), ("(dw**2)", "dw")),
    ("adam-corrected-moments-stored", ("adam",), (STORE_T, STORE_T.replace("= m, v,", "= mt, vt,"))),
    (
        "adam-betas-exchanged",
        ("adam",),
        ('config["beta1"], config["beta2"], config["epsilon"]', 'config["beta2"], config["beta1"], config["epsilon"]'),
    ),
    (
        "adam-beta-reversed",
        ("adam",),
        ('beta1 * config["m"] + (1 - beta1) * dw', '(1 - beta1) * config["m"] + beta1 * dw'),
        ('beta2 * config["v"] + (1 - beta2) *', '(1 - beta2) * config["v"] + beta2 *'),
    ),
    ("adam-gradient-instead-of-m", ("adam",), ("* mt /", "* dw /")),
    ("adam-sign", ("adam",), ("w - config", "w + config")),
    ("adam-eps-hard-coded", ("adam",), ("+ eps)", "+ 1e-8)")),
    (
        "update-gradient-modified",
        ("sgd",),
        ('w -= config["learning_rate"] * dw', 'dw *= config["learning_rate"]\n    w -= dw'),
    ),
    # --- initialisers ---
    (
        "kaiming-variance-for-deviation",
        ("kaiming_initializer",),
        (KAIMING_DENSE, "(gain / Din)"),
        (KAIMING_CONV, "(gain / (Din * K * K))"),
    ),
    (
        "kaiming-fans-swapped",
        ("kaiming_initializer",),
        (KAIMING_DENSE, "np.sqrt(gain / Dout)"),
        (KAIMING_CONV, "np.sqrt(gain / (Dout * K * K))"),
    ),
    ("kaiming-kernel-area-forgotten", ("kaiming_initializer",), ("Din * K * K", "Din")),
    ("kaiming-kernel-side-for-area", ("kaiming_initializer",), ("Din * K * K", "Din * K")),
    (
        "kaiming-uniform-bound-is-deviation",
        ("kaiming_initializer",),
        (KAIMING_DENSE_DRAW, "np.random.uniform(-1, 1, (Din, Dout)) * np.sqrt(gain / Din)"),
        (KAIMING_CONV_DRAW, f"np.random.uniform(-1, 1, (Dout, Din, K, K)) * {KAIMING_CONV}"),
    ),
    (
        "kaiming-constant",
        ("kaiming_initializer",),
        ("np.random.randn(Din, Dout)", "np.ones((Din, Dout))"),
        ("np.random.randn(Dout, Din, K, K)", "np.ones((Dout, Din, K, K))"),
    ),
    (
        "kaiming-not-centred",
        ("kaiming_initializer",),
        ("np.random.randn(Din, Dout)", "np.random.rand(Din, Dout)"),
        ("np.random.randn(Dout, Din, K, K)", "np.random.rand(Dout, Din, K, K)"),
    ),
    ("kaiming-unit-deviation", ("kaiming_initializer",), (f" * {KAIMING_DENSE}", ""), (f" * {KAIMING_CONV}", "")),
    ("kaiming-gain-missing", ("kaiming_initializer",), ("gain = 2.0 if relu else 1.0", "gain = 1.0")),
    (
        "kaiming-gain-not-rooted",
        ("kaiming_initializer",),
        (KAIMING_DENSE, "gain * np.sqrt(1 / Din)"),
        (KAIMING_CONV, "gain / np.sqrt(Din * K * K)"),
    ),
    ("xavier-variance-for-deviation", ("xavier_init",), ("np.sqrt(fan_in)", "fan_in")),
    ("xavier-fans-swapped", ("xavier_init",), ("np.sqrt(fan_in)", "np.sqrt(fan_out)")),
    (
        "xavier-uniform-bound-is-deviation",
        ("xavier_init",),
        (XAVIER, "np.random.uniform(-1, 1, (fan_in, fan_out)) / np.sqrt(fan_in)"),
    ),
    ("xavier-constant", ("xavier_init",), (XAVIER, "np.zeros((fan_in, fan_out))")),
    ("xavier-not-centred", ("xavier_init",), ("randn", "rand")),
    ("xavier-unit-deviation", ("xavier_init",), (" / np.sqrt(fan_in)", "")),
    ("xavier-gain-added", ("xavier_init",), ("/ np.sqrt(fan_in)", "* np.sqrt(2 / fan_in)")),
    ("xavier-fan-sum-without-2", ("xavier_init",), ("np.sqrt(fan_in)", "np.sqrt(fan_in + fan_out)")),
    (
        "xavier-kernel-area-forgotten",
        ("xavier_init",),
        ("fan_out):", "fan_out, K=1):"),
        ("np.random.randn(fan_in, fan_out)", "np.random.randn(fan_out, fan_in, K, K)"),
    ),
    (
        "xavier-kernel-side-for-area",
        ("xavier_init",),
        ("fan_out):", "fan_out, K=1):"),
        (XAVIER, "np.random.randn(fan_out, fan_in, K, K) / np.sqrt(fan_in * K)"),
    ),
    ("gaussian-std-taken-for-variance", ("gaussian_init",), ("std * np", "np.sqrt(std) * np")),
    ("gaussian-variance-for-deviation", ("gaussian_init",), ("std * np", "std**2 * np")),
    ("gaussian-constant", ("gaussian_init",), ("np.random.randn(fan_in, fan_out)", "np.ones((fan_in, fan_out))")),
    ("gaussian-not-centred", ("gaussian_init",), ("randn", "rand")),
    ("gaussian-unit-deviation", ("gaussian_init",), ("std * np", "np")),
    # --- penalties ---
    ("l2-factor-2", ("l2_penalty",), ("lambd / (2 * m)", "lambd / m")),
    ("l2-factor-2-twice", ("l2_penalty",), ("dW = lambd / m * W", "dW = 2 * lambd / m * W")),
    ("l2-gradient-m-missing", ("l2_penalty",), ("dW = lambd / m * W", "dW = lambd * W")),
    ("l2-cost-m-missing", ("l2_penalty",), ("lambd / (2 * m)", "lambd / 2")),
    ("l2-gradient-missing", ("l2_penalty",), ("dW = lambd / m * W", "dW = np.zeros_like(W)")),
    ("l2-gradient-sign", ("l2_penalty",), ("dW = lambd", "dW = -lambd")),
    ("l2-gradient-of-l1", ("l2_penalty",), ("/ m * W", "/ m * np.sign(W)")),
    ("l2-not-squared", ("l2_penalty",), ("np.square(W)", "np.abs(W)")),
    ("l2-norm-not-squared", ("l2_penalty",), ("np.sum(np.square(W))", "np.linalg.norm(W)")),
    ("l2-square-of-sum", ("l2_penalty",), ("np.sum(np.square(W))", "np.square(np.sum(W))")),
    ("l2-mean-instead-of-sum", ("l2_penalty",), ("np.sum(np", "np.mean(np")),
    ("l1-gradient-missing", ("l1_penalty",), ("np.sign(W)", "np.sign(W) * 0")),
    ("l1-gradient-of-l2", ("l1_penalty",), ("np.sign(W)", "W")),
    ("l1-gradient-sign", ("l1_penalty",), ("dW = lambd", "dW = -lambd")),
    ("l1-absolute-value-missing", ("l1_penalty",), ("np.abs(W)", "W")),
    ("l1-gradient-m-missing", ("l1_penalty",), ("dW = lambd / m", "dW = lambd")),
    ("penalty-input-modified", ("l2_penalty",), ("return cost, dW", "W += dW\n    return cost, dW")),
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
