"""Right answers as classes of static methods on tensors."""

import torch


class BatchNorm:
    @staticmethod
    def forward(x, gamma, beta, bn_param):
        mode = bn_param["mode"]
        eps = bn_param.get("eps", 1e-5)
        momentum = bn_param.get("momentum", 0.9)
        D = x.shape[1]
        running_mean = bn_param.get("running_mean", torch.zeros(D, dtype=x.dtype))
        running_var = bn_param.get("running_var", torch.zeros(D, dtype=x.dtype))
        if mode == "train":
            mean = torch.mean(x, dim=0)
            var = torch.var(x, dim=0, unbiased=False)
            sigma = torch.sqrt(var + eps)
            x_std = (x - mean) / sigma
            running_mean = momentum * running_mean + (1 - momentum) * mean
            running_var = momentum * running_var + (1 - momentum) * var
        else:
            sigma = torch.sqrt(running_var + eps)
            x_std = (x - running_mean) / sigma
        out = gamma * x_std + beta
        bn_param["running_mean"] = running_mean.detach()
        bn_param["running_var"] = running_var.detach()
        return out, (gamma, sigma, x_std)

    @staticmethod
    def backward(dout, cache):
        gamma, sigma, x_std = cache
        N = dout.shape[0]
        dgamma = torch.sum(dout * x_std, dim=0)
        dbeta = torch.sum(dout, dim=0)
        dx = gamma / sigma / N * (N * dout - dbeta - x_std * dgamma)
        return dx, dgamma, dbeta

    @staticmethod
    def backward_alt(dout, cache):
        return BatchNorm.backward(dout, cache)


class SpatialBatchNorm:
    @staticmethod
    def forward(x, gamma, beta, bn_param):
        N, C, H, W = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, C)
        out, cache = BatchNorm.forward(rows, gamma, beta, bn_param)
        return out.reshape(N, H, W, C).permute(0, 3, 1, 2), cache

    @staticmethod
    def backward(dout, cache):
        N, C, H, W = dout.shape
        dx, dgamma, dbeta = BatchNorm.backward(dout.permute(0, 2, 3, 1).reshape(-1, C), cache)
        return dx.reshape(N, H, W, C).permute(0, 3, 1, 2), dgamma, dbeta


class Dropout:
    @staticmethod
    def forward(x, dropout_param):
        p, mode = dropout_param["p"], dropout_param["mode"]
        mask = None
        out = x
        if mode == "train":
            mask = (torch.rand_like(x) > p).float()
            out = x * mask / (1 - p)
        return out, (dropout_param, mask)

    @staticmethod
    def backward(dout, cache):
        dropout_param, mask = cache
        if dropout_param["mode"] == "train":
            return dout * mask / (1 - dropout_param["p"])
        return dout


def adam(w, dw, config=None):
    config.setdefault("m", torch.zeros_like(w))
    config.setdefault("v", torch.zeros_like(w))
    config.setdefault("t", 0)
    config["t"] += 1
    m = config["beta1"] * config["m"] + (1 - config["beta1"]) * dw
    v = config["beta2"] * config["v"] + (1 - config["beta2"]) * (dw**2)
    m_hat = m / (1 - config["beta1"] ** config["t"])
    v_hat = v / (1 - config["beta2"] ** config["t"])
    next_w = w - config["learning_rate"] * m_hat / (torch.sqrt(v_hat) + config["epsilon"])
    config["m"], config["v"] = m, v
    return next_w, config


def kaiming_initializer(Din, Dout, K=None, relu=True, device="cpu", dtype=torch.float32):
    gain = 2.0 if relu else 1.0
    if K is None:
        return torch.normal(mean=0, std=(gain / Din) ** 0.5, size=(Din, Dout), dtype=dtype, device=device)
    return torch.normal(mean=0, std=(gain / Din / K / K) ** 0.5, size=(Dout, Din, K, K), dtype=dtype, device=device)


def l2_penalty(W, reg):
    return reg * torch.sum(W**2), 2 * reg * W
