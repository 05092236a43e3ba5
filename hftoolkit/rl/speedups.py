"""The updates of ``dqn.Learner`` in less time: the same numbers up to rounding, and nothing else.

For networks as small as those of control tasks, autograd and the hooks of ``torch.optim`` take as long as products of
matrices. So weights, and their gradients, are one vector each, of which the layers see parts; Adam is called by its
function; the derivatives of loss and MLP are written out. Networks with other layers are left to autograd. What a
gradient is, ``dqn.Learner`` says; ``tests/rl/test_rl_speedups.py`` holds both against each other.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.adam import adam

from hftoolkit.recipe import Dqn
from hftoolkit.rl.networks import QNetwork


class FastLearner:
    """Does what ``dqn.Learner`` does, with the same arguments and methods; only the names of its state are others.

    Args:
        network: its weights become parts of one vector, and must be changed in place only.
        section: which loss, and how long a gradient may be.
    """

    def __init__(self, network: QNetwork, section: Dqn) -> None:
        self._section = section
        vector = one_vector(network)
        assert vector.grad is not None
        self._weights, self._gradient = vector.detach(), vector.grad
        self._values = MlpValues(network) if is_mlp(network) else AutogradValues(network, self._gradient)
        self._defaults = torch.optim.Adam([vector]).defaults
        self._moments = {
            "step": torch.zeros((), device=vector.device),
            "exp_avg": torch.zeros_like(self._weights),
            "exp_avg_sq": torch.zeros_like(self._weights),
        }

    def backward(
        self, observations: torch.Tensor, actions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, float, float]:
        """Return values of the actions, (B,), loss, and norm of the gradient before clipping, as ``dqn.Learner``."""
        values = self._values(observations)  # (B, A)
        columns = actions.unsqueeze(1)
        q_values = values.gather(1, columns).squeeze(1)
        loss, slopes = loss_and_slopes(q_values - targets, weights, huber=self._section.loss == "huber")
        self._values.backward(torch.zeros_like(values).scatter_(1, columns, slopes.unsqueeze(1)))
        norm = self._gradient.norm().item()
        if norm > self._section.max_gradient_norm:
            self._gradient.mul_(self._section.max_gradient_norm / norm)
        return q_values, loss, norm

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Change the weights along the gradient of the latest ``backward``."""
        adam(
            [self._weights],
            [self._gradient],
            [self._moments["exp_avg"]],
            [self._moments["exp_avg_sq"]],
            [],
            [self._moments["step"]],
            fused=True,
            amsgrad=False,
            beta1=self._defaults["betas"][0],
            beta2=self._defaults["betas"][1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=self._defaults["eps"],
            maximize=False,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Return Adam's moments, (W,) each, and its number of steps."""
        return self._moments

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what ``state`` gave."""
        for name, tensor in state.items():
            self._moments[name].copy_(tensor)


def one_vector(network: nn.Module) -> nn.Parameter:
    """Move the weights of a network, and their gradients, into one vector each, (W,), and return it.

    The network goes on working on views of it. Clipping and optimizer then are one operation each instead of one a
    layer.
    """
    weights = list(network.parameters())
    vector = nn.Parameter(torch.cat([weight.detach().reshape(-1) for weight in weights]))
    vector.grad = torch.zeros_like(vector)
    begin = 0
    for weight in weights:
        end = begin + weight.numel()
        weight.data = vector.data[begin:end].view_as(weight)
        weight.grad = vector.grad[begin:end].view_as(weight)
        begin = end
    return vector


@torch.inference_mode()
def loss_and_slopes(errors: torch.Tensor, weights: torch.Tensor | None, *, huber: bool) -> tuple[float, torch.Tensor]:
    """Return the weighted mean loss of errors, (B,), and its derivative by each of them, (B,).

    Huber's loss is half the square of an error up to 1, and beyond that a line; the other is the square.
    """
    if huber:
        slopes = errors.clamp(-1, 1)
        losses = slopes * (errors - slopes / 2)
    else:
        slopes, losses = 2 * errors, errors.square()
    if weights is not None:
        slopes, losses = slopes * weights, losses * weights
    return losses.mean().item(), slopes / len(errors)


Layer = nn.Flatten | nn.Linear | nn.LayerNorm | nn.ReLU


def is_mlp(network: QNetwork) -> bool:
    """Return whether ``MlpValues`` computes what the network does: one layer after the other, all of kinds it knows.

    The layers of a residual network, say, are of these kinds too, and put together in another way.
    """
    layers = plain_chain(network.encoder)
    if type(network) is not QNetwork or layers is None or type(network.head) is not nn.Linear:
        return False
    steps = [layer for layer in [*layers, network.head] if not isinstance(layer, nn.Flatten)]
    # Weights that come twice would keep the gradient of their last place only.
    weights = [id(layer.weight) for layer in steps if not isinstance(layer, nn.ReLU)]
    is_shared = len(set(weights)) < len(weights)
    return isinstance(steps[0], nn.Linear) and not is_shared and all(map(_is_known, [*layers, network.head]))


def plain_chain(module: nn.Module) -> list[Layer] | None:
    """Return the layers that a module applies one after the other; None if it may do anything else."""
    if type(module) in (nn.Flatten, nn.Linear, nn.LayerNorm, nn.ReLU):
        assert isinstance(module, Layer)
        return [module]
    if type(module) is not nn.Sequential:
        return None
    layers: list[Layer] = []
    for part in module:
        found = plain_chain(part)
        if found is None:
            return None
        layers += found
    return layers


def _is_known(layer: Layer) -> bool:
    """Return whether a layer has all that its written-out derivative needs."""
    match layer:
        case nn.Flatten():
            return (layer.start_dim, layer.end_dim) == (1, -1)
        case nn.LayerNorm():
            return layer.elementwise_affine and layer.bias is not None and len(layer.normalized_shape) == 1
        case nn.Linear():
            return layer.bias is not None
        case _:
            return True


class AutogradValues:
    """Action values of any network, differentiated by autograd.

    Args:
        network: the gradients of its weights are views of ``gradient``.
        gradient: of all weights, (W,).
    """

    def __init__(self, network: nn.Module, gradient: torch.Tensor) -> None:
        self._network, self._gradient = network, gradient
        self._values: torch.Tensor | None = None

    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        """Return action values, (B, A)."""
        self._values = self._network(observations)
        return self._values.detach()

    def backward(self, gradient: torch.Tensor) -> None:
        """Replace the gradients of all weights, given that of the latest values, (B, A)."""
        assert self._values is not None
        self._gradient.zero_()
        self._values.backward(gradient)  # type: ignore[no-untyped-call]


class MlpValues:
    """Action values of linear layers, layer normalizations and ReLUs, with the chain rule written out.

    Args:
        network: one that ``is_mlp``, whose weights have gradients; any other is refused.
    """

    def __init__(self, network: QNetwork) -> None:
        layers = plain_chain(network.encoder)
        assert layers is not None and is_mlp(network), "the chain rule is written out for plain chains of layers alone"
        self._normalizer, self._dueling = network.normalizer, network.dueling
        self._layers: list[_Linear | _LayerNorm | _Relu] = []
        for layer in [*layers, network.head]:
            match layer:
                case nn.Linear():
                    self._layers.append(_Linear(layer, is_first=not self._layers))
                case nn.LayerNorm():
                    self._layers.append(_LayerNorm(layer))
                case nn.ReLU():
                    self._layers.append(_Relu())

    @torch.inference_mode()
    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        """Return action values, (B, A), until the next call, which writes there."""
        features: torch.Tensor = self._normalizer(observations).flatten(1)
        for layer in self._layers:
            features = layer.forward(features)
        if not self._dueling:
            return features
        advantages = features[:, :-1]
        return features[:, -1:] + advantages - advantages.mean(dim=1, keepdim=True)

    @torch.inference_mode()
    def backward(self, gradient: torch.Tensor) -> None:
        """Replace the gradients of all weights, given that of the latest values, (B, A)."""
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
