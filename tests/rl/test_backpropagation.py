"""The chain rule as it is written out for MLPs, and as autograd applies it, against plain autograd on a copy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hftoolkit.recipe import Dqn, MlpNetwork, NatureCnn
from hftoolkit.rl.backpropagation import AutogradValues, MlpValues, Values, values_of
from hftoolkit.rl.networks import QNetwork, RunningNormalizer, build_network, one_vector

SIZE, ACTIONS = 5, 3


def network_of(observation: np.ndarray, **knobs: Any) -> QNetwork:
    torch.manual_seed(0)
    network = build_network(Dqn(kind="dqn", **knobs), observation, ACTIONS)
    with torch.no_grad():
        for weight in network.parameters():  # layer normalizations begin at 1 and 0, which would hide mistakes
            weight.add_(0.3 * torch.randn_like(weight))
    if isinstance(network.normalizer, RunningNormalizer):
        network.normalizer.update(2 + 3 * torch.randn(50, observation.size))
    return network


def gradient_of(network: QNetwork, observations: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """The gradient of all weights of a copy, one after the other, by plain autograd."""
    plain = copy.deepcopy(network)
    for weight in plain.parameters():
        weight.grad = None
    (plain(observations) * slopes).sum().backward()
    return torch.cat([weight.grad.reshape(-1) for weight in plain.parameters() if weight.grad is not None])


def assert_right(network: QNetwork, values: Values, gradient: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Compare values and gradients for batches of several sizes, with other calls before."""
    kept = []
    for number, rows in enumerate((7, 7, 4, 9)):
        observations, slopes = torch.randn(rows, *shape), torch.randn(rows, ACTIONS)
        values(torch.randn(rows, *shape))
        found = values(observations)
        assert not found.requires_grad
        values.backward(slopes)
        torch.testing.assert_close(found, network(observations).detach(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(gradient, gradient_of(network, observations, slopes), atol=2e-6, rtol=1e-5)
        assert gradient.abs().min() < gradient.abs().max()
        kept.append((found, found.clone()))
        with torch.no_grad():
            for weight in network.parameters():  # as an optimizer does: in place
                weight.add_(0.1 * torch.randn_like(weight) * (number + 1))
    assert all(torch.equal(found, copied) for found, copied in kept)  # later calls write elsewhere


@pytest.mark.parametrize("hidden_sizes", [(8,), (8, 6), (4, 7, 5)])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_chain_rule_of_an_mlp_is_that_of_autograd(
    hidden_sizes: tuple[int, ...], layer_norm: bool, dueling: bool, normalized: bool
) -> None:
    network = network_of(
        np.zeros(SIZE, np.float32),
        network=MlpNetwork(hidden_sizes=hidden_sizes, layer_norm=layer_norm),
        dueling=dueling,
        normalize_observations=normalized,
    )
    gradient = one_vector(network).grad
    assert gradient is not None
    values = values_of(network, gradient)
    assert isinstance(values, MlpValues)
    assert_right(network, values, gradient, (SIZE,))


def test_observations_of_several_rows_are_flattened_first() -> None:
    network = network_of(np.zeros((2, SIZE), np.float32))
    network.encoder.insert(0, nn.Flatten())  # type: ignore[operator]
    gradient = one_vector(network).grad
    assert gradient is not None
    values = values_of(network, gradient)
    assert isinstance(values, MlpValues)
    assert_right(network, values, gradient, (2, SIZE))


@pytest.mark.parametrize("dueling", [False, True])
def test_networks_with_other_layers_are_differentiated_by_autograd(dueling: bool) -> None:
    frame = np.zeros((2, 36, 36), np.float32)
    cnn = NatureCnn(encoder="nature-cnn", hidden_sizes=(6,))
    network = network_of(frame, network=cnn, dueling=dueling)
    gradient = one_vector(network).grad
    assert gradient is not None
    values = values_of(network, gradient)
    assert isinstance(values, AutogradValues)
    assert_right(network, values, gradient, frame.shape)
