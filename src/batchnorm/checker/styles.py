"""In the child process: find what a file has, and bring it into the style of the courses.

Three styles are known without help: functions (``batchnorm_forward(x, gamma, beta, bn_param) -> (out, cache)``),
classes of static methods with the same arguments, and layers that keep their own state (``BatchNorm(C)``, a torch
module included). Whatever else a file has, its dictionary ``CHECK`` can name a function in the style of the courses.
NumPy and the standard library only: the child loads this file by its path.
"""

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

#: Subject: role: names under which a function is found, in order.
FUNCTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "batchnorm": {
        "forward": ("batchnorm_forward", "batch_norm_forward"),
        "backward": ("batchnorm_backward", "batch_norm_backward"),
    },
    "batchnorm_alt": {
        "forward": ("batchnorm_forward", "batch_norm_forward"),
        "backward": ("batchnorm_backward_alt", "batch_norm_backward_alt"),
    },
    "spatial_batchnorm": {"forward": ("spatial_batchnorm_forward",), "backward": ("spatial_batchnorm_backward",)},
    "dropout": {"forward": ("dropout_forward",), "backward": ("dropout_backward",)},
    "sgd": {"rule": ("sgd",)},
    "sgd_momentum": {"rule": ("sgd_momentum", "momentum")},
    "nesterov": {"rule": ("nesterov", "sgd_nesterov", "nesterov_momentum")},
    "adagrad": {"rule": ("adagrad",)},
    "rmsprop": {"rule": ("rmsprop",)},
    "adam": {"rule": ("adam",)},
    "kaiming": {"draw": ("kaiming_initializer", "kaiming_init", "kaiming", "he_initializer", "he_init", "he")},
    "xavier": {"draw": ("xavier_initializer", "xavier_init", "xavier", "glorot_initializer", "glorot_init", "glorot")},
    "gaussian": {"draw": ("gaussian_initializer", "gaussian_init", "small_gaussian")},
    "l2": {"penalty": ("l2_penalty", "l2_regularization", "l2")},
    "l1": {"penalty": ("l1_penalty", "l1_regularization", "l1")},
}
CLASSES: Mapping[str, tuple[str, ...]] = {
    "batchnorm": ("BatchNorm", "BatchNorm1d", "BatchNormalization"),
    "batchnorm_alt": ("BatchNorm",),
    "spatial_batchnorm": ("SpatialBatchNorm", "BatchNorm2d"),
    "dropout": ("Dropout",),
}
#: A layer's own names for what the courses pass as arguments.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "gamma": ("weight", "gamma"),
    "beta": ("bias", "beta"),
    "running_mean": ("running_mean", "moving_mean"),
    "running_var": ("running_var", "moving_var", "moving_variance"),
    "dgamma": ("dgamma", "dweight"),
    "dbeta": ("dbeta", "dbias"),
}
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
TRAINING = ("training", "train", "is_training", "train_flg")

Found = dict[str, dict[str, Any]]


def find(module: ModuleType, tell: Callable[[str], None]) -> Found:
    """Return for each subject in the file its functions by role, and under ``label`` what they are called."""
    declared = {key: value for key, value in vars(module).get("CHECK", {}).items() if callable(value)}
    known = {name for roles in FUNCTIONS.values() for names in roles.values() for name in names}
    unknown = sorted(set(declared) - known)
    if unknown:
        tell(f"CHECK has the unknown name {unknown[0]!r}; known are {', '.join(sorted(known))}")
    names = {key: value for key, value in vars(module).items() if callable(value)} | declared
    found: Found = {}
    for subject, roles in FUNCTIONS.items():
        functions = {role: next((name for name in options if name in names), None) for role, options in roles.items()}
        if subject == "batchnorm_alt" and functions["backward"] is None:
            functions = {}
        if any(functions.values()):
            first = next(iter(roles))
            if functions[first] is None:
                tell(f"{functions['backward']} is there but {roles[first][0]} is not, which makes its cache")
                continue
            found[subject] = {role: names[name] for role, name in functions.items() if name}
            found[subject]["label"] = {role: name for role, name in functions.items() if name}
            if "draw" in roles:
                found[subject]["accepts"] = lambda draw=found[subject]["draw"]: initializer_arguments(draw)
            if "penalty" in roles:
                found[subject]["arguments"] = lambda function=found[subject]["penalty"]: required_arguments(function)
            continue
        for name in CLASSES.get(subject, ()):
            if inspect.isclass(names.get(name)):
                functions_of = from_class(names[name], name, subject)
                if functions_of:
                    found[subject] = functions_of
                break
    return found


def initializer_arguments(draw: Callable[..., Any]) -> dict[str, Any]:
    """Say whether it takes one shape instead of two sizes, and what its kernel size is called."""
    parameters = inspect.signature(draw).parameters
    kernel = next((name for name in parameters if name.lower() in {"k", "kernel", "kernel_size", "ksize"}), None)
    return {"shape": next(iter(parameters), "") in {"shape", "size", "dims"}, "kernel": kernel}


def required_arguments(function: Callable[..., Any]) -> int:
    """Count positional arguments."""
    return sum(parameter.kind in POSITIONAL for parameter in inspect.signature(function).parameters.values())


def from_class(cls: Any, name: str, subject: str) -> dict[str, Any] | None:
    """Return functions in the style of the courses, from static methods with their arguments or from a layer."""
    method = getattr(cls, "forward", None)
    if method is None:
        return None
    arguments = [p for p in inspect.signature(method).parameters if p != "self"]
    wanted = 2 if subject == "dropout" else 4
    if len(arguments) == wanted and isinstance(inspect.getattr_static(cls, "forward", None), staticmethod):
        backward = "backward_alt" if subject == "batchnorm_alt" else "backward"
        functions = {
            role: getattr(cls, attribute, None) for role, attribute in (("forward", "forward"), ("backward", backward))
        }
        if subject == "batchnorm_alt" and functions["backward"] is None:
            return None
        functions = {role: function for role, function in functions.items() if function}
        label = {"forward": f"{name}.forward", "backward": f"{name}.{backward}"}
        return {**functions, "label": {role: label[role] for role in functions}}
    if subject == "batchnorm_alt" or subject == "dropout":
        return None
    forward, backward_of = layer(cls, name)
    return {
        "forward": forward,
        "backward": backward_of,
        "label": {"forward": f"{name}.forward", "backward": f"{name}.backward"},
    }


def layer(cls: Any, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return forward and backward that make a layer, give it the parameters, and read them back."""

    def forward(x: Any, gamma: Any, beta: Any, bn_param: dict[str, Any]) -> tuple[Any, Any]:
        accepted = inspect.signature(cls).parameters
        known = {"gamma": gamma, "beta": beta, "weight": gamma, "bias": beta, **bn_param}
        settings = {key: value for key, value in known.items() if key in accepted}
        settings = {key: value for key, value in settings.items() if key != "bias" or "weight" in accepted}
        missing = [
            key
            for key, parameter in accepted.items()
            if key not in settings and parameter.default is parameter.empty and parameter.kind in POSITIONAL
        ]
        one = cls(*[x.shape[1]] * bool(missing), **settings)
        for key in {"eps", "momentum"} - set(settings):  # what it has but does not take
            if hasattr(one, key) and key in bn_param:
                setattr(one, key, bn_param[key])
            elif key == "eps":
                forward.own_eps = True  # type: ignore[attr-defined]
        if hasattr(one, "double"):
            one = one.double()
        for what, value in (
            ("gamma", gamma),
            ("beta", beta),
            *((key, bn_param[key]) for key in ("running_mean", "running_var")),
        ):
            put(one, name, what, value)
        training = bn_param["mode"] == "train"
        keyword = {}
        if hasattr(one, "train") and hasattr(one, "eval") and callable(one.train):
            (one.train if training else one.eval)()
        else:
            options = inspect.signature(one.forward if hasattr(one, "forward") else one).parameters
            keyword = {key: training for key in TRAINING if key in options}
            for key in TRAINING:
                if hasattr(one, key) and not callable(getattr(one, key)):
                    setattr(one, key, training)
        if hasattr(x, "requires_grad_"):
            x.requires_grad_()
        out = one(x, **keyword) if callable(one) else one.forward(x, **keyword)
        for key in ("running_mean", "running_var"):
            bn_param[key] = attribute(one, name, key)[1]
            if np.ndim(bn_param[key]) > 1 and np.size(bn_param[key]) == x.shape[1]:
                bn_param[key] = bn_param[key].reshape(-1)
        return out, (one, x, out)

    def backward(dout: Any, cache: Any) -> Any:
        one, x, out = cache
        if not hasattr(one, "backward"):  # torch's autograd is the backward
            out.backward(dout)
            return (
                x.grad,
                attribute(one, name, "gamma")[1].grad.reshape(-1),
                attribute(one, name, "beta")[1].grad.reshape(-1),
            )
        result = one.backward(dout)
        if isinstance(result, tuple):
            return result
        return (
            result,
            np.reshape(attribute(one, name, "dgamma")[1], -1),
            np.reshape(attribute(one, name, "dbeta")[1], -1),
        )

    return forward, backward


def attribute(one: Any, name: str, what: str) -> tuple[str, Any]:
    """Return name and value of a layer's attribute; raise AttributeError if it has none of the known names."""
    for option in ATTRIBUTES[what]:
        if getattr(one, option, None) is not None:
            return option, getattr(one, option)
    raise AttributeError(
        f"{name} has no attribute {' or '.join(ATTRIBUTES[what])}; name your function in CHECK instead (see the guide)"
    )


def put(one: Any, name: str, what: str, value: Any) -> None:
    """Set a parameter or a running value, in the shape that it has."""
    option, old = attribute(one, name, what)
    if hasattr(old, "detach"):
        old.data.copy_(value.reshape(old.shape))
    else:
        setattr(one, option, np.reshape(np.asarray(value, dtype=np.float64), np.shape(old)))
