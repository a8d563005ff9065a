"""Known mistakes of update rules. Equation numbers: the derivation."""

import numpy as np

from batchnorm.checker.model import Changes, Mistake


def _mistakes(
    prefix: str, equation: str, fix: tuple[str, str], *rows: tuple[str, str, str, Changes]
) -> tuple[Mistake, ...]:
    """Return the mistakes of one rule, whose equation and fix are the rule itself."""
    return tuple(
        Mistake(f"{prefix}-{name}", "update", title, changes, equation, why, fix) for name, title, why, changes in rows
    )


GRADIENT_MODIFIED = Mistake(
    "update-gradient-modified",
    "inputs",
    "the gradient is modified in place",
    {},
    "w <- w - step; dw is only read",
    "A second use of the gradient (a norm, a log, another rule) sees other numbers.",
    ("v = momentum * v - learning_rate * dw  # not dw *= learning_rate", "w = w + v"),
)
_UPHILL = "The loss grows: the gradient points uphill, and the step must go against it."
_EPS = "Where the gradient is small the step is too: sqrt(s + eps) is near sqrt(eps), not eps (1e-4 for 1e-8)."
_NO_EPS = "The setting has no effect."

_SGD_FIX = ("w = w - config['learning_rate'] * dw", "return w, config")
_MOMENTUM_FIX = ("v = config['momentum'] * v - config['learning_rate'] * dw", "w = w + v; config['velocity'] = v")
_NESTEROV_FIX = ("v = momentum * v - learning_rate * dw", "w = w + momentum * v - learning_rate * dw")
_ADAGRAD_FIX = ("cache = cache + dw ** 2", "w = w - learning_rate * dw / (np.sqrt(cache) + epsilon)")
_RMSPROP_FIX = (
    "cache = decay_rate * cache + (1 - decay_rate) * dw ** 2",
    "w = w - learning_rate * dw / (np.sqrt(cache) + epsilon)",
)
_ADAM_FIX = (
    "t = t + 1; m_hat, v_hat = m / (1 - beta1 ** t), v / (1 - beta2 ** t)  # store t, m, v",
    "w = w - learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)",
)

SGD = _mistakes(
    "sgd",
    "(131) w <- w - lr dw",
    _SGD_FIX,
    ("sign", "the step goes up the gradient", _UPHILL, {"w": lambda v: v.w + v.learning_rate * v.dw}),
    ("learning-rate-missing", "the learning rate is not used", _NO_EPS, {"w": lambda v: v.w - v.dw}),
)
MOMENTUM = _mistakes(
    "momentum",
    "(132) v <- mu v - lr dw;  (133) w <- w + v",
    _MOMENTUM_FIX,
    (
        "sign",
        "the step goes up the gradient",
        _UPHILL,
        {"velocity": lambda v: v.momentum * v.velocity + v.learning_rate * v.dw},
    ),
    (
        "velocity-sign",
        "the old velocity is subtracted instead of added",
        "Momentum then brakes where it should carry on, and pushes where directions alternate.",
        {"velocity": lambda v: -v.momentum * v.velocity - v.learning_rate * v.dw},
    ),
    (
        "velocity-subtracted",
        "the velocity contains -lr dw and is subtracted once more",
        _UPHILL,
        {"w": lambda v: v.w - v.velocity},
    ),
    (
        "velocity-not-kept",
        "the velocity is not stored, so every step starts from rest",
        "It is plain SGD.",
        {"velocity": lambda v: v.momentum * v.velocity_before_run - v.learning_rate * v.dw},
    ),
    (
        "old-velocity-used",
        "w moves by the velocity from before this step",
        "Each gradient is used one step late.",
        {"w": lambda v: v.w + (v.velocity + v.learning_rate * v.dw) / v.momentum},
    ),
    (
        "factor-missing",
        "the velocity is summed without the factor momentum",
        "Nothing is forgotten: w oscillates with growing swings.",
        {"velocity": lambda v: v.velocity - v.learning_rate * v.dw},
    ),
    (
        "is-nesterov",
        "this is Nesterov's rule, not plain momentum",
        "The step looks ahead along the velocity; a good rule, but another one.",
        {"w": lambda v: v.w + v.momentum * v.velocity - v.learning_rate * v.dw},
    ),
)
NESTEROV = _mistakes(
    "nesterov",
    "(132) v <- mu v - lr dw;  (134) w <- w + (1 + mu) v - mu v_before, which is w + mu v - lr dw",
    _NESTEROV_FIX,
    (
        "is-momentum",
        "this is plain momentum, not Nesterov's rule",
        "The look-ahead is missing.",
        {"w": lambda v: v.w + v.velocity},
    ),
    (
        "sign",
        "the step goes up the gradient",
        _UPHILL,
        {
            "velocity": lambda v: v.momentum * v.velocity + v.learning_rate * v.dw,
            "w": lambda v: v.w + v.momentum * v.velocity + v.learning_rate * v.dw,
        },
    ),
    (
        "look-ahead-without-gradient",
        "the look-ahead has lost the gradient: w moves by mu v alone",
        "The newest gradient enters with mu instead of 1 + mu.",
        {"w": lambda v: v.w + v.momentum * v.velocity},
    ),
    (
        "gradient-twice",
        "w moves by v - lr dw: mu is missing in the look-ahead",
        "The newest gradient enters twice, the old velocity too strongly.",
        {"w": lambda v: v.w + v.velocity - v.learning_rate * v.dw},
    ),
)
ADAGRAD = _mistakes(
    "adagrad",
    "(135) s <- s + dw^2;  (137) w <- w - lr dw / (sqrt(s) + eps)",
    _ADAGRAD_FIX,
    (
        "sums-gradients",
        "gradients are accumulated instead of their squares",
        "Signs cancel, the root of a negative sum is NaN, and steps do not fit the size of the gradient.",
        {"cache": lambda v: v.cache + v.dw},
    ),
    (
        "sums-absolute-values",
        "absolute values are accumulated instead of squares",
        "The step depends on the unit of the loss, which the root of squares avoids.",
        {"cache": lambda v: v.cache + np.abs(v.dw)},
    ),
    (
        "root-missing",
        "the step is divided by the sum of squares, without the root",
        "The step grows when the gradient shrinks.",
        {"w": lambda v: v.w - v.learning_rate * v.dw / (v.cache + v.epsilon)},
    ),
    (
        "eps-inside-the-root",
        "eps is added inside the root",
        _EPS,
        {"w": lambda v: v.w - v.learning_rate * v.dw / np.sqrt(v.cache + v.epsilon)},
    ),
    (
        "is-rmsprop",
        "the sum decays: this is RMSProp",
        "AdaGrad adds up all squares; a good rule, but another one.",
        {"cache": lambda v: v.decay_rate * v.cache + (1 - v.decay_rate) * v.dw**2},
    ),
    (
        "cache-not-kept",
        "the sum is not stored, so every step starts from nothing",
        "Each step is lr times the sign of the gradient.",
        {"cache": lambda v: v.cache_before_run + v.dw**2},
    ),
    (
        "sign",
        "the step goes up the gradient",
        _UPHILL,
        {"w": lambda v: v.w + v.learning_rate * v.dw / (np.sqrt(v.cache) + v.epsilon)},
    ),
    (
        "eps-hard-coded",
        "epsilon is a constant (1e-8); the one that was passed is ignored",
        _NO_EPS,
        {"w": lambda v: v.w - v.learning_rate * v.dw / (np.sqrt(v.cache) + 1e-8)},
    ),
)
RMSPROP = _mistakes(
    "rmsprop",
    "(136) s <- rho s + (1 - rho) dw^2;  (137) w <- w - lr dw / (sqrt(s) + eps)",
    _RMSPROP_FIX,
    (
        "eps-inside-the-root",
        "eps is added inside the root (TensorFlow's form; the courses and torch have it outside)",
        _EPS,
        {"w": lambda v: v.w - v.learning_rate * v.dw / np.sqrt(v.cache + v.epsilon)},
    ),
    (
        "root-missing",
        "the step is divided by the mean square, without the root",
        "The step grows when the gradient shrinks.",
        {"w": lambda v: v.w - v.learning_rate * v.dw / (v.cache + v.epsilon)},
    ),
    (
        "averages-gradients",
        "gradients are averaged instead of their squares",
        "Signs cancel, and the root of a negative average is NaN.",
        {"cache": lambda v: v.decay_rate * v.cache + (1 - v.decay_rate) * v.dw},
    ),
    (
        "decay-reversed",
        "decay_rate multiplies the new square instead of the old average",
        "With 0.99 the rule remembers hardly more than the last gradient.",
        {"cache": lambda v: (1 - v.decay_rate) * v.cache + v.decay_rate * v.dw**2},
    ),
    (
        "new-square-unweighted",
        "the new square enters with weight 1 instead of 1 - rho",
        "The average is 1/(1 - rho) times too large, and steps sqrt of that too small.",
        {"cache": lambda v: v.decay_rate * v.cache + v.dw**2},
    ),
    (
        "is-adagrad",
        "the sum does not decay: this is AdaGrad",
        "Steps shrink for ever.",
        {"cache": lambda v: v.cache + v.dw**2},
    ),
    (
        "cache-not-kept",
        "the average is not stored, so every step starts from nothing",
        "Each step is lr / sqrt(1 - rho) times the sign of the gradient.",
        {"cache": lambda v: v.decay_rate * v.cache_before_run + (1 - v.decay_rate) * v.dw**2},
    ),
    (
        "sign",
        "the step goes up the gradient",
        _UPHILL,
        {"w": lambda v: v.w + v.learning_rate * v.dw / (np.sqrt(v.cache) + v.epsilon)},
    ),
    (
        "eps-hard-coded",
        "epsilon is a constant (1e-8); the one that was passed is ignored",
        _NO_EPS,
        {"w": lambda v: v.w - v.learning_rate * v.dw / (np.sqrt(v.cache) + 1e-8)},
    ),
)
ADAM = _mistakes(
    "adam",
    "(138) m <- b1 m + (1-b1) dw;  (139) v <- b2 v + (1-b2) dw^2;  (140) m_hat = m/(1-b1^t), v_hat = v/(1-b2^t);  "
    "(141) w <- w - lr m_hat / (sqrt(v_hat) + eps)",
    _ADAM_FIX,
    (
        "no-bias-correction",
        "there is no bias correction",
        "m and v start at 0 and are too small at first, v more than m: the first steps are sqrt(10) times too large.",
        {"m_hat": lambda v: v.m, "v_hat": lambda v: v.v},
    ),
    (
        "m-not-corrected",
        "the bias of m is not corrected",
        "The first steps are (1 - b1) times as long as they should be.",
        {"m_hat": lambda v: v.m},
    ),
    (
        "v-not-corrected",
        "the bias of v is not corrected",
        "The first steps are 1/sqrt(1 - b2) times too long, 30 times for 0.999.",
        {"v_hat": lambda v: v.v},
    ),
    (
        "t-starts-at-0",
        "t is used before it is incremented, so the first step has t = 0",
        "1 - b1^0 is 0: the first step divides by zero.",
        {"t_used": lambda v: v.t - 1},
    ),
    (
        "t-not-incremented",
        "t is not incremented",
        "The correction stays that of one step for ever.",
        {"t": lambda v: v.t, "t_used": lambda v: v.t},
    ),
    (
        "t-stuck-at-1",
        "t is not stored: every step has the t it started with plus 1",
        "The correction of the first step is applied for ever, and steps grow.",
        {"t_used": lambda v: v.t_before_run + 1},
    ),
    (
        "eps-inside-the-root",
        "eps is added inside the root",
        _EPS,
        {"w": lambda v: v.w - v.learning_rate * v.m_hat / np.sqrt(v.v_hat + v.epsilon)},
    ),
    (
        "root-missing",
        "m_hat is divided by v_hat, without the root",
        "The step grows when the gradient shrinks.",
        {"w": lambda v: v.w - v.learning_rate * v.m_hat / (v.v_hat + v.epsilon)},
    ),
    (
        "v-averages-gradients",
        "v averages gradients instead of their squares",
        "The root of a negative average is NaN.",
        {"v": lambda v: v.beta2 * v.v + (1 - v.beta2) * v.dw},
    ),
    (
        "corrected-moments-stored",
        "the corrected moments are stored, and corrected again in the next step",
        "The correction piles up.",
        {
            "m": lambda v: v.beta1 * v.m_hat + (1 - v.beta1) * v.dw,
            "v": lambda v: v.beta2 * v.v_hat + (1 - v.beta2) * v.dw**2,
        },
    ),
    (
        "betas-exchanged",
        "beta1 and beta2 are exchanged",
        "The gradient is averaged over a thousand steps, its square over ten.",
        {
            "m": lambda v: v.beta2 * v.m + (1 - v.beta2) * v.dw,
            "v": lambda v: v.beta1 * v.v + (1 - v.beta1) * v.dw**2,
            "m_hat": lambda v: v.m / (1 - v.beta2**v.t_used),
            "v_hat": lambda v: v.v / (1 - v.beta1**v.t_used),
        },
    ),
    (
        "beta-reversed",
        "beta multiplies the new value instead of the old average",
        "With 0.9 the averages remember hardly more than the last gradient.",
        {
            "m": lambda v: (1 - v.beta1) * v.m + v.beta1 * v.dw,
            "v": lambda v: (1 - v.beta2) * v.v + v.beta2 * v.dw**2,
        },
    ),
    (
        "gradient-instead-of-m",
        "the step uses the gradient instead of its average m_hat",
        "That is RMSProp with a bias correction.",
        {"w": lambda v: v.w - v.learning_rate * v.dw / (np.sqrt(v.v_hat) + v.epsilon)},
    ),
    (
        "sign",
        "the step goes up the gradient",
        _UPHILL,
        {"w": lambda v: v.w + v.learning_rate * v.m_hat / (np.sqrt(v.v_hat) + v.epsilon)},
    ),
    (
        "eps-hard-coded",
        "epsilon is a constant (1e-8); the one that was passed is ignored",
        _NO_EPS,
        {"w": lambda v: v.w - v.learning_rate * v.m_hat / (np.sqrt(v.v_hat) + 1e-8)},
    ),
)
