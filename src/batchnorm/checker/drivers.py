"""In the child process: run a candidate on the inputs and write down what came out.

Each driver takes the candidate's functions in the style of the courses (`styles` brings other styles into it), calls
them as a training script would, and returns an array per output. NumPy and the standard library only: the child loads
this file by its path.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Record = Callable[[str, Any], None]
Functions = dict[str, Any]


class CandidateError(Exception):
    """What a candidate returned cannot be compared; the message says what was expected."""


class Recording(dict[str, Any]):
    """A dictionary that remembers which keys were read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value as a dictionary does."""
        self.read.add(key)
        return super().get(key, default)


class Numpy:
    """Arrays as they are."""

    name = "numpy"

    def give(self, value: Any) -> Any:
        """Return a copy for the candidate, which may change it."""
        return np.array(value, dtype=np.float64)


class Torch:
    """Tensors for a candidate that imported torch itself; this file does not."""

    name = "torch"

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def give(self, value: Any) -> Any:
        """Return a new float64 tensor."""
        return self.torch.tensor(np.asarray(value), dtype=self.torch.float64)


def take(name: str, value: Any) -> Any:
    """Return what the candidate gave as an array; raise CandidateError if it is none."""
    if value is None:
        raise CandidateError(f"{name} is None: the function does not return it")
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        raise CandidateError(f"{name} must be numbers, but is {type(value).__name__}")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def several(what: str, value: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the values of a function that gives several; raise CandidateError if the number is wrong."""
    if not isinstance(value, tuple | list) or len(value) != len(names):
        came = f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__
        raise CandidateError(f"{what} must return {len(names)} values ({', '.join(names)}), but returned {came}")
    return tuple(value)


def batchnorm(functions: Functions, bridge: Any, given: dict[str, Any], record: Record) -> dict[str, Any]:
    """Two training steps, a test step, a backward; then digits, and the default momentum."""
    forward, backward, label = functions["forward"], functions.get("backward"), functions["label"]
    give = bridge.give

    def step(
        x: Any, mode: str, running: tuple[Any, Any], **settings: Any
    ) -> tuple[Any, Any, tuple[Any, Any], list[Any]]:
        parameters = {
            "mode": mode,
            "eps": given["eps"],
            "momentum": given["momentum"],
            "running_mean": give(running[0]),
            "running_var": give(running[1]),
        } | settings
        parameters = {key: value for key, value in parameters.items() if value is not None}
        arguments = [give(x), give(given["gamma"]), give(given["beta"])]
        out, cache = several(label["forward"], forward(*arguments, parameters), ("out", "cache"))
        stored = tuple(parameters.get(name) for name in ("running_mean", "running_var"))
        return out, cache, (stored[0], stored[1]), arguments

    start = given["running_mean"], given["running_var"]
    out, cache, running, arguments = step(given["x"], "train", start)
    record("out", out)
    record("running_mean", running[0])
    record("running_var", running[1])
    for name, argument in zip(("x", "gamma", "beta"), arguments, strict=True):
        record(f"{name}_after", argument)
    test_out, _, after, _ = step(given["x_test"], "test", start)
    record("test_out", test_out)
    record("running_mean_after_test", after[0])
    record("running_var_after_test", after[1])
    if take("out", out).dtype == np.float64:  # float32 has no digits left there, whatever the formula
        record("out_far", step(given["x"] + given["far"], "train", start)[0])
    if backward is not None:
        dout = give(given["dout"])
        gradients = several(label["backward"], backward(dout, cache), ("dx", "dgamma", "dbeta"))
        for name, gradient in zip(("dx", "dgamma", "dbeta"), gradients, strict=True):
            record(name, gradient)
        record("dout_after", dout)

        def loss(x: Any, gamma: Any, beta: Any) -> float:
            parameters = {"mode": "train", "eps": given["eps"], "momentum": given["momentum"]}
            parameters |= {"running_mean": give(start[0]), "running_var": give(start[1])}
            y = several(label["forward"], forward(give(x), give(gamma), give(beta), parameters), ("out", "cache"))[0]
            return float(np.sum(given["dout"] * take("out", y)))

        for name, slope in zip(
            ("dx", "dgamma", "dbeta"), slopes(loss, given["x"], given["gamma"], given["beta"]), strict=True
        ):
            record(f"own_{name}", slope)
    second = step(given["x_second"], "train", (take("running_mean", running[0]), take("running_var", running[1])))[2]
    record("running_mean_second", second[0])
    record("running_var_second", second[1])
    facts = {"own_eps": bool(getattr(forward, "own_eps", False))}
    # Without a momentum the function's own default counts: does it keep more of the old value than it takes of the new?
    try:
        _, _, by_default, _ = step(given["x"], "train", start, momentum=None)
    except Exception:  # a function without a default is no mistake
        return facts
    moved = take("running_mean", by_default[0]) - start[0]
    way = np.mean(given["x"], axis=(0, *range(2, given["x"].ndim))) - start[0]
    if moved.shape == way.shape and np.any(moved):
        record("default_keeps_old", float(np.median(moved / way) < 0.5))
    return facts


def slopes(loss: Callable[..., float], *arguments: Any) -> list[Any]:
    """Central differences of the candidate's own forward with respect to each argument."""
    found = []
    step = 1e-5  # truncation step^2 and rounding 1e-16 / step are both near 1e-10
    for position, argument in enumerate(arguments):
        slope = np.zeros_like(argument)
        for index in np.ndindex(argument.shape):
            up, down = argument.copy(), argument.copy()
            up[index] += step
            down[index] -= step
            values = [loss(*arguments[:position], moved, *arguments[position + 1 :]) for moved in (up, down)]
            slope[index] = (values[0] - values[1]) / (2 * step)
        found.append(slope)
    return found


def dropout(functions: Functions, bridge: Any, given: dict[str, Any], record: Record) -> dict[str, Any]:
    """A training step, a test step and their backwards, as features of the mask."""
    forward, backward = functions["forward"], functions.get("backward")
    reads: set[str] = set()
    for mode, prefix in (("train", ""), ("test", "test_")):
        parameters = Recording({key: given[key] for key in ("p", "keep_prob", "seed")} | {"mode": mode})
        x, dout = bridge.give(given["x"]), bridge.give(given["dout"])
        out, cache = several(functions["label"]["forward"], forward(x, parameters), ("out", "cache"))
        reads |= parameters.read
        factor = same_shape("out", take("out", out), given["x"]) / given["x"]
        passed = factor != 0
        record(f"{prefix}kept", passed.mean())
        record(f"{prefix}scale", one_value(factor[passed]))
        if mode == "train":
            alike = [np.mean(np.ptp(passed.astype(int), axis=axis) == 0) for axis in (0, 1)]
            record("rows_alike", float(max(alike) > 0.5))
            record("x_after", x)
        if backward is not None:
            gradient = same_shape("dx", take("dx", backward(dout, cache)), given["x"]) / given["dout"]
            back = gradient != 0
            record(f"{prefix}back_kept", back.mean())
            record(f"{prefix}back_scale", one_value(gradient[back]))
            if mode == "train":
                record("back_agrees", np.mean(back == passed))
                record("dout_after", dout)
    return {"reads_keep_prob": "keep_prob" in reads and "p" not in reads}


def same_shape(name: str, value: Any, like: Any) -> Any:
    """Return the value; raise CandidateError if it does not have the shape."""
    if value.shape != like.shape:
        raise CandidateError(f"{name} has shape {value.shape}, expected {like.shape}")
    return value


def one_value(values: Any) -> float:
    """Return the value that all have, or NaN: what is kept must be kept with one factor."""
    return float(np.median(values)) if values.size and np.ptp(values) < 1e-4 * np.max(np.abs(values)) else float("nan")


def optimizer(functions: Functions, bridge: Any, given: dict[str, Any], record: Record) -> None:
    """Four steps from the start, and two from the state of an earlier run."""
    rule = functions["rule"]
    state = {key: value if key == "t" else bridge.give(value) for key, value in given["state"].items()}
    zeros = {key: 0 if key == "t" else bridge.give(np.zeros_like(given["w"])) for key in state}

    def steps(names: list[str], config: dict[str, Any]) -> None:
        w = bridge.give(given["w"])
        for number, name in enumerate(names):
            dw = bridge.give(given["gradients"][number])
            w, config = several(functions["label"]["rule"], rule(w, dw, config), ("w", "config"))
            record(name, np.array(take(name, w)))
            if name == "w_1":
                record("dw_after", dw)

    fresh = [f"w_{number}" for number in range(1, 5)]
    try:
        steps(fresh, dict(given["config"]))
    except KeyError:  # it does not set up its own state
        steps(fresh, given["config"] | zeros)
    steps(["w_resumed_1", "w_resumed_2"], given["config"] | state)


def initializer(functions: Functions, given: dict[str, Any], record: Record) -> None:
    """Draw weights, dense and, if there is a kernel size, of a convolution; raise CandidateError for a wrong size."""
    draw, accepts = functions["draw"], functions["accepts"]()
    fans = given["fan_in"], given["fan_out"]
    extra = (given["std"],) if "std" in given["right"] else ()
    sizes: tuple[Any, ...] = (fans,) if accepts["shape"] else fans
    weights = take("the weights", draw(*sizes, *extra))
    if weights.size != fans[0] * fans[1]:
        raise CandidateError(f"the weights have shape {weights.shape}, expected {fans[0]} by {fans[1]}")
    deviation = float(weights.std())
    record("mean", weights.mean() / deviation if deviation > 1e-12 else float("nan"))
    record("deviation", deviation / given["right"]["dense"])
    if accepts["kernel"]:
        channels, kernel = (given["in_channels"], given["out_channels"]), given["kernel"]
        weights = take("the weights", draw(*channels, **{accepts["kernel"]: kernel}))
        if weights.size != channels[0] * channels[1] * kernel**2:
            raise CandidateError(
                f"the weights have shape {weights.shape}, expected {(channels[1], channels[0], kernel, kernel)}"
            )
        record("conv_deviation", weights.std() / given["right"]["conv"])


def penalty(functions: Functions, bridge: Any, given: dict[str, Any], record: Record) -> dict[str, Any]:
    """Cost and gradient for one matrix of weights."""
    penalty_of, arguments = functions["penalty"], functions["arguments"]()
    weights = bridge.give(given["W"])
    values = (given["lambd"], given["m"])[: max(arguments - 1, 1)]
    cost, gradient = several(functions["label"]["penalty"], penalty_of(weights, *values), ("cost", "dW"))
    record("cost", cost)
    record("dW", gradient)
    record("W_after", weights)
    return {"m": given["m"] if arguments > 2 else 1.0}
