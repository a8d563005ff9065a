"""``merge_statistics``: clients, ranks and checkpoints as if one model had seen all data; and recipes that need it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import batchnorm
from batchnorm.reference.statistics import to_rows
from tools.normalized import batches, layers, network

#: Clients with different amounts of different data.
SHARES = [(16, 9), (4,), (7, 16, 3)]


def clients() -> list[list[Tensor]]:
    data = [x.double() for x in batches(sum(SHARES, ()))]
    shares, start = [], 0
    for sizes in SHARES:
        shares.append(data[start : start + len(sizes)])
        start += len(sizes)
    return shares


def test_with_reports_it_is_the_recalibration_on_pooled_data() -> None:
    shares = clients()
    given = network().double()
    models, reports = zip(*(batchnorm.recalibrate(given, share, report=True) for share in shares), strict=True)
    before = [copy.deepcopy(m.state_dict()) for m in models]
    pooled = batchnorm.recalibrate(given, [x for share in shares for x in share])
    merged = batchnorm.merge_statistics(models, reports)
    by_state = batchnorm.merge_statistics([m.state_dict() for m in models], reports)
    for name, layer in layers(merged).items():
        expected = layers(pooled)[name]
        deviation = expected.running_var.sqrt()
        torch.testing.assert_close(
            layer.running_mean / deviation, expected.running_mean / deviation, rtol=0, atol=1e-12
        )
        torch.testing.assert_close(layer.running_var, expected.running_var, rtol=1e-12, atol=0)
        assert layer.num_batches_tracked == expected.num_batches_tracked == 6
        # Averages over the clients, weighed by their data or not, lack the differences between them.
        for weights in ([25, 4, 26], [1, 1, 1]):
            parts = [layers(m)[name].running_var * w / sum(weights) for m, w in zip(models, weights, strict=True)]
            differ = (sum(parts) / expected.running_var - 1).abs() > 0.01
            assert differ.any() or name != "1"  # later layers see what batches have normalized
    assert list(by_state) == list(merged.state_dict())
    assert all(torch.equal(by_state[n], t) for n, t in merged.state_dict().items())
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_digits_survive_a_mean_of_a_million_deviations() -> None:
    x = torch.randn(300, 4, dtype=torch.float64) + 1e6
    done = [batchnorm.recalibrate(nn.Sequential(nn.BatchNorm1d(4)).double(), [p], report=True) for p in x.split(70)]
    merged = batchnorm.merge_statistics([m for m, _ in done], [r for _, r in done])[0]
    np.testing.assert_allclose(
        merged.running_var, (x - 1e6).numpy().var(0, ddof=1), rtol=1e-8
    )  # x has 1e-10 deviations
    first, second = (torch.stack([m[0].running_mean ** k for m, _ in done]) for k in (1, 2))
    naive = second.mean(0) - first.mean(0) ** 2  # the variance between, from squares
    between = torch.stack([m[0].running_mean - 1e6 for m, _ in done]).var(0, correction=0)
    assert ((naive / between - 1).abs() > 0.01).any()


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [3.0, 0.0, 0.5], [10**9, 1, 10**9]])
def test_with_numbers_it_is_the_law_of_total_variance(weights: Any) -> None:
    models = [batchnorm.recalibrate(network().double(), share) for share in clients()]
    merged = batchnorm.merge_statistics(models, weights)
    shares = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
    for name, layer in layers(merged).items():
        means = np.stack([layers(m)[name].running_mean.numpy() for m in models])
        variances = np.stack([layers(m)[name].running_var.numpy() for m in models])
        mean = shares @ means
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(layer.running_var, shares @ (variances + (means - mean) ** 2), rtol=1e-12)


def test_one_source_is_itself_in_any_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        model = network().to(dtype)
        merged = batchnorm.merge_statistics([model, model])
        assert merged is not model
        for name, tensor in merged.state_dict().items():
            other = model.state_dict()[name]
            assert tensor.dtype == other.dtype
            assert torch.equal(tensor, other if not name.endswith("tracked") else 2 * other), name


def test_everything_else_is_that_of_the_first() -> None:
    first, second = network().train(), network()
    with torch.no_grad():
        second[0].weight.zero_()
    merged = batchnorm.merge_statistics([first, second])
    assert torch.equal(merged[0].weight, first[0].weight)
    assert [m.training for m in merged.modules()] == [m.training for m in first.modules()]
    assert batchnorm.merge_statistics([first.state_dict()])["0.weight"].data_ptr() != first[0].weight.data_ptr()


def test_old_models_without_a_counter() -> None:
    model = nn.BatchNorm1d(3)
    model.num_batches_tracked = None
    assert batchnorm.merge_statistics([model, model]).num_batches_tracked is None


def _broken(**changes: Any) -> dict[str, Any]:
    return {**network().state_dict(), **changes}


def _report(data: list[Tensor], **options: Any) -> Any:
    return batchnorm.recalibrate(network(), data, report=True, **options)[1]


@pytest.mark.parametrize(
    ("sources", "weights", "error", "message"),
    [
        (list, None, ValueError, "needs at least one model or state_dict; got none"),
        (lambda: network(), None, TypeError, "takes a sequence of models or state_dicts; got a Sequential"),
        (lambda: network().state_dict(), None, TypeError, "got a OrderedDict"),
        (lambda: [network(), network().state_dict()], None, TypeError, "all of one kind; got Sequential, OrderedDict"),
        (lambda: [3, 4], None, TypeError, "got int, int"),
        (lambda: [nn.Linear(2, 2)], None, ValueError, r"the first source has none.*checkpoint\['model'\]"),
        (lambda: [{"model": network().state_dict()}], None, ValueError, "the first source has none"),
        (lambda: [network(), network()[:4]], None, ValueError, r"source 1 and source 0 differ in \['12.', '6.', '9."),
        (
            lambda: [_broken(), _broken(**{"6.running_var": torch.ones(5)})],
            None, ValueError, r"6.running_var must have the same shape.*\(6,\) in source 0 and \(5,\) in source 1",
        ),
        (
            lambda: [_broken(), {k: v for k, v in _broken().items() if k != "6.running_mean"}],
            None, ValueError, "6.running_mean must have.*missing in source 1",
        ),
        (
            lambda: [_broken(), _broken(**{"6.running_var": torch.full((6,), torch.nan)})],
            None, ValueError, "must be finite; 6.running_var of source 1 is not. Recalibrate",
        ),
        (lambda: [network()], [1, 2], ValueError, "one per source; got 2 for 1 sources"),
        (lambda: [network(), network()], [1, -1], ValueError, r"at least 0, with a sum above 0; got \[1.0, -1.0\]"),
        (lambda: [network(), network()], [0, 0], ValueError, "with a sum above 0"),
        (lambda: [network(), network()], [1, float("inf")], ValueError, "finite numbers"),
        (lambda: [network(), network()], [1, _report(batches())], ValueError, "all numbers or all reports.*got both"),
        (
            lambda: [network()], [_report(batches(), layers=["1", "6", "9"])],
            ValueError, "it has none for '12': not among layers=. Try numbers of samples",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_message(sources: Any, weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        batchnorm.merge_statistics(sources(), weights)


# Recipes: weights that no training step has made have no statistics of their own.


def trained(steps: int = 4) -> list[nn.Sequential]:
    """A network after each of some large steps."""
    model, data = network().double().train(), [x.double() for x in batches()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    states = []
    for k in range(steps):
        x = data[k % len(data)]
        optimizer.zero_grad()
        (model(x) ** 2 * torch.arange(7)).mean().backward()
        optimizer.step()
        states.append(copy.deepcopy(model))
    return states


def off(model: nn.Module, data: list[Tensor]) -> float:
    """Return how far stored variances are from those of the frozen network, in the worst channel."""
    model = copy.deepcopy(model).eval()
    seen: dict[str, list[np.ndarray]] = {name: [] for name in layers(model)}
    for name, layer in layers(model).items():
        layer.register_forward_pre_hook(lambda _m, args, name=name: seen[name].append(to_rows(args[0].numpy())))
    with torch.no_grad():
        for x in data:
            model(x)
    found = {name: np.concatenate(rows).var(0, ddof=1) for name, rows in seen.items()}
    return max(float(np.abs(layers(model)[name].running_var.numpy() / var - 1).max()) for name, var in found.items())


@pytest.mark.parametrize("kind", ["swa", "ema"])
@pytest.mark.parametrize("use_buffers", [False, True])
def test_recipe_averaged_weights(kind: str, use_buffers: bool) -> None:
    states, data = trained(), [x.double() for x in batches()]
    how = {"multi_avg_fn": get_ema_multi_avg_fn(0.5)} if kind == "ema" else {}
    averaged = AveragedModel(states[0], use_buffers=use_buffers, **how)
    for model in states:
        averaged.update_parameters(model)
    count = averaged.n_averaged.clone()
    assert off(averaged, data) > 0.1  # stored statistics are the first model's, or averages of all: neither fits
    averaged = batchnorm.recalibrate(averaged, data, mode="sequential")
    assert off(averaged, data) < 1e-10
    assert torch.equal(averaged.n_averaged, count)


def test_recipe_merged_weights() -> None:
    data = [x.double() for x in batches()]
    first, second = trained(1)[0], network().double()
    for p in second.parameters():  # another training, from the same start
        if p.dim() > 1:
            nn.init.normal_(p, std=0.3)
    models = [batchnorm.recalibrate(m, data, mode="sequential") for m in (first, second)]
    soup = batchnorm.merge_statistics(models)
    with torch.no_grad():
        for p, *others in zip(soup.parameters(), *(m.parameters() for m in models), strict=True):
            p.copy_(torch.stack(others).mean(0))
    assert off(soup, data) > 0.1  # statistics of two networks, merged, are not those of a third
    assert off(batchnorm.recalibrate(soup, data, mode="sequential"), data) < 1e-10


def test_recipe_clients_of_one_model() -> None:
    """Federated: the server's model measures at each client; reports and statistics travel, data do not."""
    server, shares = network().double(), clients()
    done = [batchnorm.recalibrate(server, share, report=True) for share in shares]
    merged = batchnorm.merge_statistics([m.state_dict() for m, _ in done], [r for _, r in done])
    server.load_state_dict(merged)
    pooled = batchnorm.recalibrate(network().double(), [x for share in shares for x in share])
    torch.testing.assert_close(server.state_dict(), pooled.state_dict(), rtol=1e-12, atol=1e-12)
