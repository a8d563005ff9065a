"""The claims of Wu and Johnson: verdicts on planted records, and what measures on cases with known answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d, BatchNorm2d, Ghost
from batchnorm.lab.experiments import bare_loop
from batchnorm.lab.experiments.claims import class_leakage, domain_statistics, registry


def verdict(name: str, records: list[dict], arrays: dict | None = None) -> str:
    """Judge records of 3 seeds; a little noise is added by the caller."""
    claim = registry.claim(name)
    assert claim.find_in_records is not None
    return claim.find_in_records({**claim.budgets["small"], "seeds": 3}, records, arrays or {}).status


@pytest.mark.parametrize(
    ("by_size", "expected"),
    [
        ([60, 52, 50, 52, 55], "holds"),
        ([50, 52, 55, 52, 60], "does not hold"),  # few samples are best
        ([60, 55, 52, 51, 50], "does not hold"),  # all of them are best
    ],
)
def test_the_best_normalization_size_must_be_in_the_middle(by_size, expected) -> None:
    sizes = registry.claim("normalization-size").budgets["small"]["sizes"]
    records = [
        {"seed": seed, "size": size, "train_batch": 1.0, "test_batch": 2.0, "test_population": error + 0.1 * seed}
        for seed in range(3) for size, error in zip(sizes, by_size, strict=True)
    ]  # fmt: skip
    assert verdict("normalization-size", records) == expected


@pytest.mark.parametrize(("gain", "expected"), [(-2.0, "holds"), (2.0, "does not hold")])
def test_frozen_statistics_must_lower_the_error(gain, expected) -> None:
    records = [
        {"seed": seed, "size": size, "frozen": frozen, "error": 50 + seed + (gain + 0.1 * seed) * frozen}
        for seed in range(3) for size in (2, 4) for frozen in (False, True)
    ]  # fmt: skip
    assert verdict("frozen-at-the-end", records) == expected


@pytest.mark.parametrize(("mixed", "expected"), [(30.0, "holds"), (70.0, "does not hold")])
def test_consistent_statistics_must_be_better_than_mixed_ones(mixed, expected) -> None:
    records = [
        {"seed": seed, "training": a, "inference": b, "accuracy": (60.0 if a == b else mixed) + 0.1 * seed * (a != b)}
        for seed in range(3) for a in domain_statistics.KINDS for b in domain_statistics.KINDS
    ]  # fmt: skip
    assert verdict("domain-statistics", records) == expected


@pytest.mark.parametrize(
    ("inference", "expected"),
    [
        ({"sorted": 15, "shuffled": 48, "sorted, whole": 50}, "holds"),
        ({"sorted": 85, "shuffled": 48, "sorted, whole": 50}, "does not hold"),  # nothing leaks
        ({"sorted": 15, "shuffled": 20, "sorted, whole": 50}, "does not hold"),  # shuffling does not help
    ],
)
def test_leakage_must_collapse_in_inference_and_only_where_batches_are_sorted(inference, expected) -> None:
    trained = {"sorted": 90, "shuffled": 50, "sorted, whole": 52}
    records = [
        {"seed": seed, "arm": arm, "as_trained": trained[arm] + 0.1 * seed, "inference": inference[arm] + 0.0}
        for seed in range(3) for arm in class_leakage.ARMS
    ]  # fmt: skip
    assert verdict("class-leakage", records) == expected


def test_sorting_keeps_the_examples_of_a_batch() -> None:
    classes = torch.tensor([2, 0, 1, 2, 0, 1])
    chosen = torch.tensor([0, 5, 1, 3])
    assert class_leakage.by_class(classes, chosen).tolist() == [1, 5, 0, 3]


def test_separate_domains_are_normalized_by_themselves() -> None:
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    inner = BatchNorm2d(3)
    separate = domain_statistics.TwoDomains(inner, separate=True)(x)
    shared = domain_statistics.TwoDomains(inner, separate=False)(x)
    # Each domain has mean 0 by itself; together only all of them have.
    torch.testing.assert_close(separate[:4].mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    assert shared[:4].mean() < -0.5 < 0.5 < shared[4:].mean()
    torch.testing.assert_close(shared.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.fixture
def images() -> bare_loop.Images:
    return bare_loop.few_images("digits", 120, 60, 8)


def test_few_images_are_standardized_and_no_larger_than_asked(images) -> None:
    assert images.x.shape == (120, 1, 8, 8)
    assert images.x_test.shape == (60, 1, 8, 8)
    assert images.x.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.x.std().item() == pytest.approx(1, abs=1e-5)
    assert bare_loop.few_images("digits", 4, 4, 4).x.shape == (4, 1, 4, 4)


def test_the_loop_takes_the_steps_of_gradient_descent(images) -> None:
    """One full batch at a time of a linear model: the order does not matter, and each step is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    w, x, hot = torch.zeros(10, 64), images.x.flatten(1), nn.functional.one_hot(images.y, 10).float()
    b = torch.zeros(10)
    for k in range(3):
        error = ((x @ w.T + b).softmax(1) - hot) / len(x)
        w, b = w - 0.5 * (1 - k / 3) * error.T @ x, b - 0.5 * (1 - k / 3) * error.sum(0)
    losses = list(bare_loop.descend(model, images, steps=3, batch=120, lr=0.5, seed=0, optimizer="SGD"))
    assert losses[0] == pytest.approx(torch.tensor(10.0).log().item(), abs=1e-5)
    torch.testing.assert_close(model[1].weight.detach(), w, atol=1e-6, rtol=1e-4)


def test_the_loop_ends_at_a_loss_that_is_not_finite(images) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    losses = list(bare_loop.descend(model, images, steps=50, batch=60, lr=1e38, seed=0))
    assert len(losses) < 50


def test_accuracy_leaves_the_model_as_it_was_and_uses_the_statistics_it_is_told(images) -> None:
    model = nn.Sequential(nn.Flatten(), BatchNorm1d(64), nn.Linear(64, 10)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training, running = (bare_loop.accuracy(model, images.x, images.y, training=mode) for mode in (True, False))
    assert not model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    bare_loop.measure_statistics(model, images.x)
    assert bare_loop.accuracy(model, images.x, images.y) == training != running


def test_ghost_batches_are_those_that_are_asked_for(images) -> None:
    layers = bare_loop.normalizations(bare_loop.network("vgg_small", "batch", images, seed=0, ghost=4, width=0.125))
    assert [layer.statistics for layer in layers] == [Ghost(4)] * 4
