"""Probes against plain NumPy, and that measuring leaves no trace."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.lab.compare.evaluation import evaluate, percentiles, recorded_inputs
from batchnorm.lab.models import Normalization, build


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(101, 1, 8, 8, generator=generator), torch.randint(0, 10, (101,), generator=generator)


def trained(model, norm, images, std=0.5):
    """A network whose running statistics are neither the initial ones nor those of the images."""
    network = build(model, Normalization(norm), input_shape=(1, 8, 8), classes=10, weight_std=std, seed=0)
    network.train()
    for k in range(3):
        network(images[0][k::3] + k)
    return network


def by_hand(network, x):
    """Logits and inputs to the nonlinearities of an mlp, in float64 NumPy."""
    x = x.flatten(1).numpy().astype(np.float64)
    inputs = []
    for layer in network.layers:
        state = {key: value.numpy().astype(np.float64) for key, value in layer.state_dict().items()}
        if isinstance(layer, nn.Linear):
            x = x @ state["weight"].T + state.get("bias", 0)
        elif isinstance(layer, nn.BatchNorm1d):
            x = (x - state["running_mean"]) / np.sqrt(state["running_var"] + layer.eps) * state["weight"] + state[
                "bias"
            ]
        elif isinstance(layer, nn.Sigmoid):
            inputs.append(x)
            x = 1 / (1 + np.exp(-x))
    return x, inputs


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("chunk", [1000, 101, 100, 7])
def test_evaluation_is_what_numpy_computes(images, norm, chunk):
    x, y = images
    network = trained("mlp", norm, images)
    found = evaluate(network, x, y, chunk)
    logits, inputs = by_hand(network, x)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    # float32 against float64 over values of size 1 to 10: a few ulp of float32 (1e-7) per layer.
    assert found.loss == pytest.approx(-log_p[np.arange(101), y].mean(), rel=1e-5)
    assert found.accuracy == (logits.argmax(1) == y.numpy()).mean()
    np.testing.assert_allclose(found.percentiles, np.percentile(inputs[-1], (15, 50, 85), axis=0), rtol=1e-4, atol=1e-5)
    ends = [1 / (1 + np.exp(-u)) for u in inputs]
    assert found.saturated == [np.mean((end < 0.05) | (end > 0.95)) for end in ends]
    assert 0 < found.saturated[0] < 1


def test_percentiles_interpolate_between_values():
    u = torch.tensor([[30.0, 1.0], [0.0, 1.0], [10.0, 1.0], [20.0, 1.0]])
    # Positions 0.15 * 3, 0.5 * 3 and 0.85 * 3 among the sorted 0, 10, 20, 30.
    np.testing.assert_allclose(percentiles(u), [[4.5, 1], [15, 1], [25.5, 1]], rtol=1e-6)


def test_a_channel_is_a_unit():
    u = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    expected = [np.percentile(u.numpy()[:, c], (15, 50, 85)) for c in range(3)]
    np.testing.assert_allclose(percentiles(u), np.transpose(expected), rtol=1e-6)


def test_percentiles_of_a_network_that_diverged_are_quiet():
    u = torch.tensor([[np.inf, np.nan, 1.0], [-np.inf, 0.0, 2.0]])
    found = percentiles(u)
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_allclose(found[1], [np.nan, np.nan, 1.5])


def test_convnet_is_measured_over_examples_channels_and_positions(images):
    x, y = images
    network = trained("convnet", "batch", images)
    with torch.no_grad():
        u = network.eval().layers[:2](x)  # convolution and normalization: (101, 16, 8, 8)
    found = evaluate(network, x, y, chunk=8)
    # A sum of products may round to either side of 0 in a batch of another size: up to two of 103,424.
    assert found.saturated[0] == pytest.approx((u <= 0).double().mean().item(), abs=2 / u.numel())
    assert found.percentiles.shape == (3, 100)
    assert len(found.saturated) == 3


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(images, training):
    network = trained("mlp", "batch", images).train(training)
    before = copy.deepcopy(network.state_dict())
    evaluate(network, *images)
    assert network.training is training
    assert all(module.training is training for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_exception_leaves_no_trace_either(images):
    network = trained("mlp", "batch", images)
    with pytest.raises(RuntimeError):
        evaluate(network, torch.rand(4, 1, 9, 9), torch.zeros(4, dtype=torch.int64))
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_recorded_inputs_are_in_the_order_of_the_calls():
    layer = nn.ReLU()
    with recorded_inputs([layer]) as inputs:
        layer(torch.tensor(1.0))
        layer(torch.tensor(2.0, requires_grad=True))
    layer(torch.tensor(3.0))
    assert [u.item() for u in inputs[0]] == [1, 2]
    assert not inputs[0][1].requires_grad
