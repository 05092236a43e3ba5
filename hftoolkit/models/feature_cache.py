"""Linear probe: what the head sees of each text is computed once, then the head is trained on that alone.

A transformers classifier is ``head(base(inputs))``. The base is swapped for a stand-in that hands through what was
cached: the first position of its hidden states and, where it has one, its pooled output. Heads that read anything
else would give other logits, so the caller compares both on real rows before it trusts the cache.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hftoolkit.contracts import Batch


class CachedBase(nn.Module):
    """Stand-in for a base model: ``inputs_embeds`` (B, 2, H) holds its first position and its pooled output."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BaseModelOutputWithPooling:
        """Return both as the base model would have."""
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds[:, :1], pooler_output=inputs_embeds[:, 1])


def base_features(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return what the head sees of each text, (B, 2, H); the second half repeats the first without a pooler."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    output = model.base_model(**{name: batch[name] for name in names if name in batch})  # type: ignore[operator]
    first = output.last_hidden_state[:, 0]
    pooled = getattr(output, "pooler_output", None)
    return torch.stack([first, first if pooled is None else pooled], dim=1)


def swap_base(model: Any, base: nn.Module) -> nn.Module:
    """Put ``base`` in the place of the model's base model and return the one that was there."""
    previous: nn.Module = model.base_model
    setattr(model, model.base_model_prefix, base)
    return previous
