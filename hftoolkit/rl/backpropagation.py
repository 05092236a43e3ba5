"""Action values for learning, and the gradients of weights that follow from gradients of values.

Autograd does that for every network. For a small MLP it spends as much time on its bookkeeping as on products of
matrices, so there the chain rule is written out, layer by layer, into memory that every update uses again.
"""

from typing import Protocol

import torch
from torch import nn

from hftoolkit.rl.networks import QNetwork


class Values(Protocol):
    """Action values of a network whose weights and gradients are views of one vector; see ``one_vector``."""

    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        """Return action values, (B, A), for observations, (B, ...)."""
        ...

    def backward(self, gradient: torch.Tensor) -> None:
        """Replace the gradients of all weights, given that of the values of the latest call, (B, A)."""
        ...


def values_of(network: QNetwork, gradient: torch.Tensor) -> Values:
    """Return the values of a network.

    Args:
        network: the gradients of its weights are views of ``gradient``.
        gradient: of all weights, (W,).
    """
    layers = [layer for layer in network.encoder.modules() if not list(layer.children())]
    if all(isinstance(layer, nn.Flatten | nn.Linear | nn.LayerNorm | nn.ReLU) for layer in layers):
        return MlpValues(network)
    return AutogradValues(network, gradient)


class AutogradValues:
    """The values of any network, differentiated by autograd; arguments are those of ``values_of``."""

    def __init__(self, network: nn.Module, gradient: torch.Tensor) -> None:
        self._network, self._gradient = network, gradient
        self._values: torch.Tensor | None = None

    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        """Return action values, (B, A)."""
        self._values = self._network(observations)
        return self._values.detach()

    def backward(self, gradient: torch.Tensor) -> None:
        """Replace the gradients of all weights."""
        assert self._values is not None
        self._gradient.zero_()
        self._values.backward(gradient)  # type: ignore[no-untyped-call]


class MlpValues:
    """The values of linear layers, layer normalizations and ReLUs, with the chain rule written out.

    Args:
        network: one whose encoder has no other layers, except for one that flattens observations.
    """

    def __init__(self, network: QNetwork) -> None:
        self._normalizer, self._dueling = network.normalizer, network.dueling
        self._layers: list[_Linear | _LayerNorm | _Relu] = []
        for layer in [*network.encoder.modules(), network.head]:
            match layer:
                case nn.Linear():
                    self._layers.append(_Linear(layer, is_first=not self._layers))
                case nn.LayerNorm():
                    self._layers.append(_LayerNorm(layer))
                case nn.ReLU():
                    self._layers.append(_Relu())

    @torch.inference_mode()
    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        """Return action values, (B, A)."""
        features: torch.Tensor = self._normalizer(observations).flatten(1)
        for layer in self._layers:
            features = layer.forward(features)
        if not self._dueling:
            return features.clone()  # the next call writes there
        advantages = features[:, :-1]
        return features[:, -1:] + advantages - advantages.mean(dim=1, keepdim=True)

    @torch.inference_mode()
    def backward(self, gradient: torch.Tensor) -> None:
        """Replace the gradients of all weights."""
        if self._dueling:
            advantages = gradient - gradient.mean(dim=1, keepdim=True)
            gradient = torch.cat([advantages, gradient.sum(dim=1, keepdim=True)], dim=1)
        for layer in reversed(self._layers):
            gradient = layer.backward(gradient)


class _Linear:
    """x W^T + b; the gradient of its input is left out for the first layer, where nobody needs it."""

    def __init__(self, layer: nn.Linear, *, is_first: bool) -> None:
        assert layer.weight.grad is not None and layer.bias.grad is not None
        self._weight, self._bias = layer.weight.detach(), layer.bias.detach()
        self._weight_gradient, self._bias_gradient = layer.weight.grad, layer.bias.grad
        self._is_first = is_first
        self._inputs = self._input_gradient = self._weight.new_empty(0, layer.in_features)
        self._outputs = self._weight.new_empty(0, layer.out_features)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self._inputs = inputs
        if len(self._outputs) != len(inputs):
            self._outputs = self._outputs.new_empty(len(inputs), self._outputs.shape[1])
            self._input_gradient = torch.empty_like(inputs)
        return torch.addmm(self._bias, inputs, self._weight.t(), out=self._outputs)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        torch.mm(gradient.t(), self._inputs, out=self._weight_gradient)
        torch.sum(gradient, dim=0, out=self._bias_gradient)
        return gradient if self._is_first else torch.mm(gradient, self._weight, out=self._input_gradient)


class _LayerNorm:
    """PyTorch's own layer normalization and its derivative."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        assert layer.weight.grad is not None and layer.bias.grad is not None
        self._shape, self._epsilon = list(layer.normalized_shape), layer.eps
        self._weight, self._bias = layer.weight.detach(), layer.bias.detach()
        self._weight_gradient, self._bias_gradient = layer.weight.grad, layer.bias.grad
        self._inputs = self._mean = self._scale = torch.empty(0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self._inputs = inputs
        outputs, self._mean, self._scale = torch.native_layer_norm(
            inputs, self._shape, self._weight, self._bias, self._epsilon
        )
        return outputs

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        of_inputs, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, self._inputs, self._shape, self._mean, self._scale, self._weight, self._bias, [True, True, True]
        )
        self._weight_gradient.copy_(of_weight)
        self._bias_gradient.copy_(of_bias)
        inputs: torch.Tensor = of_inputs
        return inputs


class _Relu:
    """max(x, 0), in the memory of x, which the layers before do not need any more."""

    def __init__(self) -> None:
        self._outputs = torch.empty(0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self._outputs = inputs.relu_()
        return self._outputs

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        inputs: torch.Tensor = torch.ops.aten.threshold_backward(gradient, self._outputs, 0)
        return inputs
