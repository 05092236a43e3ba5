"""From observations to action values: an encoder, and a head that may be dueling."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from hftoolkit.recipe import Dqn, MlpNetwork, NatureCnn, TimmEncoder
from hftoolkit.rl.encoders import nature_cnn, timm_encoder


class QNetwork(nn.Module):
    """Action values.

    Args:
        encoder: observations (B, ...) -> features (B, F).
        num_features: F.
        num_actions: A.
        dueling: add a state value to advantages whose mean over the actions is taken off (Wang et al. 2016, eq. 9).
        normalizer: what observations go through first.
    """

    def __init__(
        self, encoder: nn.Module, num_features: int, num_actions: int, *, dueling: bool, normalizer: nn.Module
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.encoder = encoder
        # One matrix for both streams of a dueling head; the state value is the last row.
        self.head = nn.Linear(num_features, num_actions + dueling)
        self.dueling = dueling

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return action values, (B, A) float32."""
        values: torch.Tensor = self.head(self.encoder(self.normalizer(observations)))
        if not self.dueling:
            return values
        advantages = values[:, :-1]
        return values[:, -1:] + advantages - advantages.mean(dim=1, keepdim=True)


class RunningNormalizer(nn.Module):
    """Subtract the mean and divide by the deviation of all observations so far (Welford 1962, in batches)."""

    mean: torch.Tensor
    variance: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return normalized observations, (B, size), cut at 10 deviations."""
        return ((observations - self.mean) / (self.variance + 1e-8).sqrt()).clamp(-10, 10)

    @torch.no_grad()
    def update(self, observations: torch.Tensor) -> None:
        """Take new observations, (B, size), into mean and variance."""
        number = len(observations)
        total = self.count + number
        difference = observations.mean(dim=0) - self.mean
        squares = self.variance * self.count + observations.var(dim=0, correction=0) * number
        self.variance.copy_((squares + difference**2 * self.count * number / total) / total)
        self.mean.add_(difference * number / total)
        self.count.copy_(total)


def build_network(section: Dqn, observation: np.ndarray, num_actions: int) -> QNetwork:
    """Return the network of a recipe with random or pretrained weights.

    Args:
        section: the algorithm.
        observation: one example as ``Perception`` returns it; (size,) float32, (stack, height, width[, 3]) uint8, or
            (stack, features) float32 where the encoder is frozen.
        num_actions: A.
    """
    match section.network:
        case MlpNetwork():
            base, size = nn.Sequential(), observation.size
        case NatureCnn():
            base, size = nature_cnn(observation)
        case TimmEncoder(frozen=True):
            base, size = nn.Sequential(nn.Flatten()), observation.size
        case TimmEncoder() as timm_section:
            base, size = timm_encoder(timm_section, observation)
    encoder = nn.Sequential(*base, *mlp((size, *section.network.hidden_sizes), layer_norm=section.network.layer_norm))
    normalizer = RunningNormalizer(observation.size) if section.normalize_observations else nn.Identity()
    return QNetwork(
        encoder, section.network.hidden_sizes[-1], num_actions, dueling=section.dueling, normalizer=normalizer
    )


def mlp(sizes: Sequence[int], *, layer_norm: bool) -> nn.Sequential:
    """Return linear layers of these sizes, each with a ReLU after it, and layer normalization between if wanted."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers.append(nn.Linear(inputs, outputs))
        if layer_norm:
            layers.append(nn.LayerNorm(outputs))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
