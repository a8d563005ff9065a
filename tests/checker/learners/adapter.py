"""Right answers with names and arguments of their own, which CHECK brings into the style of the courses."""

import numpy as np


def forward_train(x, weight, bias, epsilon):
    mean, var = x.mean(axis=0), x.var(axis=0)
    x_hat = (x - mean) / np.sqrt(var + epsilon)
    return weight * x_hat + bias, x_hat, mean, var


def forward_eval(x, weight, bias, mean, var, epsilon):
    return weight * (x - mean) / np.sqrt(var + epsilon) + bias


def in_course_style(x, gamma, beta, bn_param):
    old_mean, old_var, eps = bn_param["running_mean"], bn_param["running_var"], bn_param["eps"]
    if bn_param["mode"] == "test":
        return forward_eval(x, gamma, beta, old_mean, old_var, eps), None
    out, _, mean, var = forward_train(x, gamma, beta, eps)
    bn_param["running_mean"] = old_mean + bn_param["momentum"] * (mean - old_mean)
    bn_param["running_var"] = old_var + bn_param["momentum"] * (var - old_var)
    return out, None


def drop(values, keep_prob):
    mask = np.random.default_rng().random(values.shape) < keep_prob
    return values * mask / keep_prob, mask


def dropout_in_course_style(x, dropout_param):
    if dropout_param["mode"] == "test":
        return x, None
    return drop(x, dropout_param["keep_prob"])


CHECK = {
    "batchnorm_forward": in_course_style,
    "momentum": "new",
    "dropout_forward": dropout_in_course_style,
}
