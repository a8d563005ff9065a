"""Right answers in the style of the courses: functions on NumPy arrays."""

import numpy as np


def batchnorm_forward(x, gamma, beta, bn_param):
    mode = bn_param["mode"]
    eps = bn_param.get("eps", 1e-5)
    momentum = bn_param.get("momentum", 0.9)

    N, D = x.shape
    running_mean = bn_param.get("running_mean", np.zeros(D, dtype=x.dtype))
    running_var = bn_param.get("running_var", np.zeros(D, dtype=x.dtype))

    out, cache = None, None
    if mode == "train":
        mean = np.mean(x, axis=0)
        xmu = x - mean
        var = np.mean(xmu**2, axis=0)
        sqrtvar = np.sqrt(var + eps)
        ivar = 1.0 / sqrtvar
        x_norm = xmu * ivar
        out = gamma * x_norm + beta
        cache = (x, x_norm, xmu, ivar, sqrtvar, var, gamma, eps, out)
        running_mean = momentum * running_mean + (1 - momentum) * mean
        running_var = momentum * running_var + (1 - momentum) * var
    elif mode == "test":
        x_norm = (x - running_mean) / np.sqrt(running_var + eps)
        out = gamma * x_norm + beta
    else:
        raise ValueError(mode)

    bn_param["running_mean"] = running_mean
    bn_param["running_var"] = running_var
    return out, cache


def batchnorm_backward(dout, cache):
    x, x_norm, xmu, ivar, sqrtvar, var, gamma, eps, out = cache
    N, D = dout.shape
    dbeta = np.sum(dout, axis=0)
    dgamma = np.sum(dout * x_norm, axis=0)
    dx_norm = dout * gamma
    dvar = np.sum(dx_norm * xmu, axis=0) * -0.5 * (var + eps) ** (-1.5)
    dmean = np.sum(-dx_norm / np.sqrt(var + eps), axis=0) + dvar * np.sum(-2.0 * xmu, axis=0) / N
    dx1 = dx_norm / np.sqrt(var + eps)
    dx2 = dvar * 2.0 * xmu / N
    dx3 = dmean / N
    dx = dx1 + dx2 + dx3
    return dx, dgamma, dbeta


def batchnorm_backward_alt(dout, cache):
    x, x_norm, xmu, ivar, sqrtvar, var, gamma, eps, out = cache
    N = dout.shape[0]
    dbeta = dout.sum(axis=0)
    dgamma = (dout * x_norm).sum(axis=0)
    dx = gamma * ivar / N * (N * dout - dbeta - x_norm * dgamma)
    return dx, dgamma, dbeta


def spatial_batchnorm_forward(x, gamma, beta, bn_param):
    N, C, H, W = x.shape
    x2d = x.transpose(0, 2, 3, 1).reshape(N * H * W, C)
    out2d, cache = batchnorm_forward(x2d, gamma, beta, bn_param)
    out = out2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)
    return out, cache


def spatial_batchnorm_backward(dout, cache):
    N, C, H, W = dout.shape
    dout2d = dout.transpose(0, 2, 3, 1).reshape(N * H * W, C)
    dx2d, dgamma, dbeta = batchnorm_backward_alt(dout2d, cache)
    dx = dx2d.reshape(N, H, W, C).transpose(0, 3, 1, 2)
    return dx, dgamma, dbeta


def dropout_forward(x, dropout_param):
    p, mode = dropout_param["p"], dropout_param["mode"]
    if "seed" in dropout_param:
        np.random.seed(dropout_param["seed"])
    mask = None
    if mode == "train":
        mask = (np.random.rand(*x.shape) >= p) / (1 - p)
        out = x * mask
    else:
        out = x
    return out, (dropout_param, mask)


def dropout_backward(dout, cache):
    dropout_param, mask = cache
    if dropout_param["mode"] == "train":
        dx = dout * mask
    else:
        dx = dout
    return dx


def sgd(w, dw, config=None):
    if config is None:
        config = {}
    config.setdefault("learning_rate", 1e-2)
    w -= config["learning_rate"] * dw
    return w, config


def sgd_momentum(w, dw, config=None):
    config.setdefault("learning_rate", 1e-2)
    config.setdefault("momentum", 0.9)
    v = config.get("velocity", np.zeros_like(w))
    v = config["momentum"] * v - config["learning_rate"] * dw
    next_w = w + v
    config["velocity"] = v
    return next_w, config


def nesterov(w, dw, config=None):
    v_prev = config.get("velocity", np.zeros_like(w))
    v = config["momentum"] * v_prev - config["learning_rate"] * dw
    next_w = w - config["momentum"] * v_prev + (1 + config["momentum"]) * v
    config["velocity"] = v
    return next_w, config


def adagrad(w, dw, config=None):
    config.setdefault("cache", np.zeros_like(w))
    config["cache"] = config["cache"] + dw * dw
    next_w = w - config["learning_rate"] * dw / (np.sqrt(config["cache"]) + config["epsilon"])
    return next_w, config


def rmsprop(w, dw, config=None):
    config.setdefault("decay_rate", 0.99)
    config.setdefault("epsilon", 1e-8)
    config.setdefault("cache", np.zeros_like(w))
    cache = config["decay_rate"] * config["cache"] + (1 - config["decay_rate"]) * (dw**2)
    next_w = w - config["learning_rate"] * dw / (np.sqrt(cache) + config["epsilon"])
    config["cache"] = cache
    return next_w, config


def adam(w, dw, config=None):
    config.setdefault("beta1", 0.9)
    config.setdefault("beta2", 0.999)
    config.setdefault("epsilon", 1e-8)
    config.setdefault("m", np.zeros_like(w))
    config.setdefault("v", np.zeros_like(w))
    config.setdefault("t", 0)
    beta1, beta2, eps = config["beta1"], config["beta2"], config["epsilon"]
    t = config["t"] + 1
    m = beta1 * config["m"] + (1 - beta1) * dw
    v = beta2 * config["v"] + (1 - beta2) * (dw**2)
    mt = m / (1 - beta1**t)
    vt = v / (1 - beta2**t)
    next_w = w - config["learning_rate"] * mt / (np.sqrt(vt) + eps)
    config["m"], config["v"], config["t"] = m, v, t
    return next_w, config


def kaiming_initializer(Din, Dout, K=None, relu=True):
    gain = 2.0 if relu else 1.0
    if K is None:
        return np.random.randn(Din, Dout) * np.sqrt(gain / Din)
    return np.random.randn(Dout, Din, K, K) * np.sqrt(gain / (Din * K * K))


def xavier_init(fan_in, fan_out):
    return np.random.randn(fan_in, fan_out) / np.sqrt(fan_in)


def gaussian_init(fan_in, fan_out, std=0.01):
    return std * np.random.randn(fan_in, fan_out)


def l2_penalty(W, lambd, m):
    cost = lambd / (2 * m) * np.sum(np.square(W))
    dW = lambd / m * W
    return cost, dW


def l1_penalty(W, lambd, m):
    cost = lambd / m * np.sum(np.abs(W))
    dW = lambd / m * np.sign(W)
    return cost, dW
