"""The item tower: a text encoder, mean pooling, centring, an optional projection, and vectors of length 1.

Shape suffixes: N texts, L tokens, H width of the encoder, D width of the vectors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel

from hftoolkit.models.backbones import (
    TextBackbone,
    dropout_settings,
    quiet_transformers,
    readable_errors,
)
from hftoolkit.models.lora import is_lora
from hftoolkit.models.tokenizers import agree_on_padding, cut_at, fit_to_model, load_tokenizer, longest_text
from hftoolkit.models.tuning import TunedModel
from hftoolkit.seeding import seed_torch

POOLING, DENSE, NORMALIZE = "1_Pooling", "2_Dense", "Normalize"
SENTENCE_TRANSFORMERS = "sentence_transformers"


@dataclass(frozen=True, slots=True)
class TowerShape:
    """What is put on an encoder: ``dimensions`` of a projection (None: none), and whether texts have a bias."""

    dimensions: int | None
    item_bias: bool


class ItemTower(nn.Module):
    """Maps texts to vectors of length 1 and one bias each."""

    center: torch.Tensor | None

    def __init__(self, backbone: nn.Module, shape: TowerShape, seed: int, center: torch.Tensor | None = None) -> None:
        """Put a projection with orthonormal rows, which keeps angles about as they are, and a bias of 0 on top.

        Args:
            backbone: the encoder.
            shape: of what is put on it.
            seed: of the projection.
            center: (H,) subtracted from what was pooled. Texts of one catalogue are much alike to a pretrained encoder;
                without what they have in common, their differences show.
        """
        super().__init__()
        self.backbone = backbone
        width = _width(backbone)
        self.register_buffer("center", center)
        seed_torch("head", seed)
        self.projection = nn.Linear(width, shape.dimensions, bias=False) if shape.dimensions else None
        if self.projection is not None:
            nn.init.orthogonal_(self.projection.weight)
        self.bias = nn.Linear(shape.dimensions or width, 1, bias=False) if shape.item_bias else None
        if self.bias is not None:
            nn.init.zeros_(self.bias.weight)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the vector and the bias of each text, (N, D + 1)."""
        return self.head(self.pooled(input_ids, attention_mask))

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the mean of the encoder's outputs over the tokens of each text, (N, H)."""
        states_NLH = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_NL1 = attention_mask.unsqueeze(-1).to(states_NLH.dtype)
        pooled_NH: torch.Tensor = (states_NLH * mask_NL1).sum(dim=1) / mask_NL1.sum(dim=1)
        return pooled_NH

    def head(self, pooled_NH: torch.Tensor) -> torch.Tensor:
        """Return the vector and the bias of each text, (N, D + 1) float32, from what was pooled."""
        pooled_NH = pooled_NH.float()
        with torch.autocast(pooled_NH.device.type, enabled=False):
            centred_NH = pooled_NH if self.center is None else pooled_NH - self.center
            projected_ND = centred_NH if self.projection is None else self.projection(centred_NH)
            vectors_ND = nn.functional.normalize(projected_ND, dim=-1)
            if self.bias is None:
                return torch.cat([vectors_ND, vectors_ND.new_zeros(len(vectors_ND), 1)], dim=-1)
            # Entries of a unit vector are small; at scale 1 the bias learns as fast as other layers do.
            bias_N1 = self.bias(vectors_ND * vectors_ND.shape[-1] ** 0.5)
            return torch.cat([vectors_ND, bias_N1], dim=-1)


def load_text_encoder(path: Path, *, max_length: int, dropout: float) -> tuple[TextBackbone, nn.Module | None]:
    """Load a transformers text encoder without its pooler, which mean pooling has no use for, and that pooler.

    Raises:
        DataError: the folder holds no usable transformers text model.
        RecipeError: ``max_length`` is more than its positions.
    """
    with quiet_transformers(), readable_errors(path, "text"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        config.update(dropout_settings(config, dropout))
        tokenizer = load_tokenizer(path)
        agree_on_padding(config, tokenizer, path.name)
        model = AutoModel.from_pretrained(
            path, config=config, dtype=torch.float32, trust_remote_code=False, weights_only=True
        )
        longest = longest_text(model)
        cut_at(tokenizer, max_length, longest)
        note = fit_to_model(model, tokenizer)
    pooler = getattr(model, "pooler", None)
    if pooler is not None:
        model.pooler = None
    return TextBackbone(model=model.eval(), tokenizer=tokenizer, longest=longest, note=note), pooler


def put_on_top(tuned: TunedModel, tower: ItemTower, *, head_scale: float) -> TunedModel:
    """Return a tower around its tuned encoder; its projection and bias are trained ``head_scale`` times as fast."""
    heads = [name for name, _ in tower.named_parameters() if not name.startswith("backbone.")]
    scales = {f"backbone.{name}": scale for name, scale in tuned.rate_scales.items()}
    unfreeze = {f"backbone.{name}": epoch for name, epoch in tuned.unfreeze_at.items()}
    return TunedModel(tower, scales | dict.fromkeys(heads, head_scale), unfreeze)


def save_tower(tower: ItemTower, tokenizer: Any, pooler: nn.Module | None, directory: Path) -> None:
    """Write the encoder as a plain transformers folder, and beside it what sentence-transformers reads.

    The tower must hold no adapters any more. The bias is no part of that layout.
    """
    assert not is_lora(tower.backbone)
    save_encoder(tower.backbone, tokenizer, pooler, directory)
    width = _width(tower.backbone)
    modules = [("", "Transformer"), (POOLING, "Pooling")]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    _write(directory / POOLING / "config.json", pooling)
    if tower.projection is not None or tower.center is not None:
        weight, bias = _affine(tower, width)
        dense = {"in_features": width, "out_features": len(weight), "bias": True}
        _write(directory / DENSE / "config.json", dense | {"activation_function": "torch.nn.modules.linear.Identity"})
        save_file({"linear.weight": weight, "linear.bias": bias}, directory / DENSE / "model.safetensors")
        modules.append((DENSE, "Dense"))
    modules.append((f"{len(modules)}_{NORMALIZE}", NORMALIZE))
    (directory / modules[-1][0]).mkdir()
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"{SENTENCE_TRANSFORMERS}.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    _write(directory / "modules.json", listed)
    _write(directory / "sentence_bert_config.json", {"max_seq_length": tokenizer.model_max_length})
    _write(directory / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def _affine(tower: ItemTower, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight, (D, H), and the bias, (D,), that center and project at once."""
    weight = torch.eye(width) if tower.projection is None else tower.projection.weight.detach().clone()
    center = torch.zeros(width) if tower.center is None else tower.center
    return weight, -weight @ center


def save_encoder(encoder: nn.Module, tokenizer: Any, pooler: nn.Module | None, directory: Path) -> None:
    """Write a plain transformers folder, with the pooler that ``load_text_encoder`` took out."""
    plain: Any = encoder
    if pooler is not None:
        plain.pooler = pooler
    with quiet_transformers():
        plain.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    if pooler is not None:
        plain.pooler = None


def load_tower(directory: Path, bias: torch.Tensor | None) -> tuple[ItemTower, Any]:
    """Load what ``save_tower`` wrote, and its tokenizer, in fp32 and eval mode.

    Args:
        directory: of the tower.
        bias: (D,) weights of the bias, which are kept elsewhere.

    Raises:
        DataError: the folder does not hold one.
    """
    with quiet_transformers(), readable_errors(directory, "text"):
        tokenizer = load_tokenizer(directory)
        backbone = AutoModel.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
        dense = directory / DENSE / "model.safetensors"
        affine = load_file(dense) if dense.is_file() else None
    tower = ItemTower(backbone, TowerShape(None, item_bias=False), seed=0)
    with torch.no_grad():
        if affine is not None:
            rows, width = affine["linear.weight"].shape
            tower.projection = nn.Linear(width, rows)
            tower.projection.weight.copy_(affine["linear.weight"])
            tower.projection.bias.copy_(affine["linear.bias"])
        if bias is not None:
            tower.bias = nn.Linear(len(bias), 1, bias=False)
            tower.bias.weight.copy_(bias[None])
    return tower.eval(), tokenizer


def _width(encoder: nn.Module) -> int:
    plain: Any = encoder
    return int(plain.config.hidden_size)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
