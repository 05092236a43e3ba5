"""Classification losses per example, with what helps rare classes. B examples, C classes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class ClassificationLoss:
    """Cross-entropy of one label an example, or binary cross-entropy of each class with ``multi_label``.

    Attributes:
        multi_label: targets are (B, C) 0/1 instead of (B,) class indices.
        class_weights: (C,) factor on an example by its class; for multi-label, on the positives of a class.
        log_priors: (C,) added to the logits in training only (Menon et al. 2021, arXiv 2007.07314).
        focal_gamma: the loss is multiplied by (1 - p)^gamma, p the probability of the truth (Lin et al. 2017).
        smoothing: share of the target spread evenly over the classes.
    """

    multi_label: bool = False
    class_weights: tuple[float, ...] | None = None
    log_priors: tuple[float, ...] | None = None
    focal_gamma: float = 0.0
    smoothing: float = 0.0

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each example, (B,), float32; for multi-label, the mean over its classes."""
        logits = logits.float()
        return self._binary(logits, targets) if self.multi_label else self._categorical(logits, targets)

    def _categorical(self, logits_BC: torch.Tensor, targets_B: torch.Tensor) -> torch.Tensor:
        if self.log_priors is not None:
            logits_BC = logits_BC + logits_BC.new_tensor(self.log_priors)
        losses_B = functional.cross_entropy(logits_BC, targets_B, reduction="none", label_smoothing=self.smoothing)
        if self.focal_gamma > 0:
            truth_B = logits_BC.log_softmax(-1).gather(1, targets_B[:, None]).squeeze(1).exp()
            losses_B = losses_B * (1 - truth_B) ** self.focal_gamma
        if self.class_weights is not None:
            losses_B = losses_B * losses_B.new_tensor(self.class_weights)[targets_B]
        return losses_B

    def _binary(self, logits_BC: torch.Tensor, targets_BC: torch.Tensor) -> torch.Tensor:
        smooth_BC = targets_BC * (1 - self.smoothing) + 0.5 * self.smoothing
        losses_BC = functional.binary_cross_entropy_with_logits(logits_BC, smooth_BC, reduction="none")
        if self.focal_gamma > 0:
            truth_BC = torch.where(targets_BC > 0.5, logits_BC, -logits_BC).sigmoid()
            losses_BC = losses_BC * (1 - truth_BC) ** self.focal_gamma
        if self.class_weights is not None:
            losses_BC = losses_BC * torch.where(targets_BC > 0.5, losses_BC.new_tensor(self.class_weights), 1.0)
        return losses_BC.mean(1)


def build_loss(
    targets: np.ndarray, num_classes: int, *, imbalance: str, strength: float, smoothing: float
) -> ClassificationLoss:
    """Return the loss for a training split.

    Args:
        targets: (N,) class indices or (N, C) 0/1.
        num_classes: C.
        imbalance: ``none``, ``weights``, ``sampler``, ``focal`` or ``logit-adjust``.
        strength: power of the class frequency, or gamma for focal.
        smoothing: label smoothing.
    """
    frequency = class_frequencies(targets, num_classes)
    return ClassificationLoss(
        multi_label=targets.ndim == 2,
        class_weights=_weights(targets, frequency, strength) if imbalance == "weights" else None,
        log_priors=tuple(strength * np.log(frequency)) if imbalance == "logit-adjust" else None,
        focal_gamma=strength if imbalance == "focal" else 0.0,
        smoothing=smoothing,
    )


def sampling_weights(targets: np.ndarray, num_classes: int, strength: float) -> np.ndarray:
    """Return the relative frequency of each row, (N,): its class frequency to the power of ``-strength``."""
    chances: np.ndarray = class_frequencies(targets, num_classes)[targets] ** -strength
    return chances


def class_frequencies(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the share of rows of each class, (C,); a class without rows counts as half a row, so that logs exist."""
    counts = targets.sum(0) if targets.ndim == 2 else np.bincount(targets, minlength=num_classes)
    share: np.ndarray = np.maximum(counts, 0.5) / len(targets)
    return share


def _weights(targets: np.ndarray, frequency: np.ndarray, strength: float) -> tuple[float, ...]:
    """Weights whose mean over the training rows is 1, so that the learning rate keeps its meaning."""
    if targets.ndim == 2:  # odds against the class, for its positives
        return tuple(((1 - frequency) / frequency).clip(min=1e-3) ** strength)
    weights = frequency**-strength
    return tuple(weights / weights[targets].mean())
