"""Linear probe: what the head sees of each text is computed once, then the head is trained on that alone.

A transformers classifier is ``head(base(inputs))``. The base is swapped for a stand-in that hands through what was
cached: one position of its hidden states and, where it has one, its pooled output. Encoders read their first position,
decoders the last that is no padding. Heads that read anything else, or want the tokens as well, would give other logits
or none, so the caller compares both on real rows before it trusts the cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from hftoolkit.contracts import Batch


class CachedBase(nn.Module):
    """Stand-in for a base model: ``inputs_embeds`` (B, 2, H) holds one position and the pooled output."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Return both as the base model would have."""
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=inputs_embeds[:, :1], pooler_output=inputs_embeds[:, 1]
        )


def base_features(model: Any, batch: Batch, *, last: bool = False) -> torch.Tensor:
    """Return what the head sees of each text, (B, 2, H); the second half repeats the first without a pooler.

    Args:
        model: the classifier.
        batch: ``input_ids`` and what else goes into the base model.
        last: the position of the last token that is no padding, as decoders find it, instead of the first position.
    """
    names = ("input_ids", "attention_mask", "token_type_ids")
    output = model.base_model(**{name: batch[name] for name in names if name in batch})
    states_BLH, place_B = output.last_hidden_state, torch.zeros_like(batch["input_ids"][:, 0])
    if last:
        is_text_BL = batch["input_ids"] != model.config.get_text_config().pad_token_id
        place_B = (torch.arange(is_text_BL.shape[1], device=is_text_BL.device) * is_text_BL).argmax(-1)
    seen_BH = states_BLH[torch.arange(len(states_BLH), device=states_BLH.device), place_B]
    pooled = getattr(output, "pooler_output", None)
    return torch.stack([seen_BH, seen_BH if pooled is None else pooled], dim=1)


@contextmanager
def cached_base(model: nn.Module) -> Iterator[None]:
    """Inside, the model's base model hands through what was cached."""
    base = swap_base(model, CachedBase())
    try:
        yield
    finally:
        swap_base(model, base)


def swap_base(model: Any, base: nn.Module) -> nn.Module:
    """Put ``base`` in the place of the model's base model and return the one that was there."""
    previous: nn.Module = model.base_model
    setattr(model, model.base_model_prefix, base)
    return previous
