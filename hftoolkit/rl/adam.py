"""Adam for weights that are one vector."""

from collections.abc import Mapping

import torch
from torch.optim.adam import adam


class Adam:
    """Adam (Kingma and Ba 2015) with PyTorch's own arithmetic.

    ``torch.optim.Adam`` would do the same; but for one small vector its hooks, groups and checks take longer than that.

    Args:
        weights: what is optimized, (W,); a step changes it in place.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self._weights = weights.detach()
        self._moments = {
            "step": torch.zeros((), device=weights.device),
            "exp_avg": torch.zeros_like(self._weights),
            "exp_avg_sq": torch.zeros_like(self._weights),
        }

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """Go one step against the gradient, (W,), at this learning rate."""
        adam(
            [self._weights],
            [gradient],
            [self._moments["exp_avg"]],
            [self._moments["exp_avg_sq"]],
            [],
            [self._moments["step"]],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Return the running moments and the number of steps; ``restore`` takes them back."""
        return self._moments

    def restore(self, moments: Mapping[str, torch.Tensor]) -> None:
        """Take back what ``state`` gave."""
        for name, tensor in moments.items():
            self._moments[name].copy_(tensor)
