"""Turn a loaded backbone into the model that is trained: which weights move, and how fast."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from hftoolkit.contracts import Table
from hftoolkit.models.backbones import (
    Backbone,
    encoder_layers,
    freeze_all_but,
    is_under,
    last_layer_modules,
    parameter_layers,
)
from hftoolkit.models.lora import apply_lora, is_lora_b
from hftoolkit.optim import rate_scales
from hftoolkit.recipe import FullTuning, LastLayers, LinearProbe, LoraTuning, Tuning


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model with the right weights trainable, and the factor on the learning rate of each parameter by name."""

    model: nn.Module
    rate_scales: Mapping[str, float]


def apply_tuning(backbone: Backbone, tuning: Tuning) -> TunedModel:
    """Freeze, wrap or leave the backbone as the method asks.

    Raises:
        RecipeError: LoRA targets match nothing, or more layers are named than exist.
    """
    head = backbone.fresh_modules
    model = backbone.model
    match tuning:
        case FullTuning():
            pass
        case LastLayers(layers=count):
            freeze_all_but(model, last_layer_modules(model, count, head))
        case LinearProbe():
            freeze_all_but(model, head)
        case LoraTuning():
            model = apply_lora(
                model,
                rank=tuning.rank,
                alpha=tuning.alpha,
                dropout=tuning.dropout,
                targets=tuning.target_modules,
                blocks=encoder_layers(model)[0],
                trained_modules=head,
                variants={"use_dora": tuning.dora, "use_rslora": tuning.rslora},
            )
    return TunedModel(model, _scales(model, head, tuning))


def trainable_table(model: nn.Module) -> Table:
    """Return the trainable and total parameters by part of the model."""
    trained: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    stack = encoder_layers(model)[0]
    for name, parameter in model.named_parameters():
        part = _part(name, stack)
        total[part] += parameter.numel()
        trained[part] += parameter.numel() if parameter.requires_grad else 0
    rows = [(part, f"{trained[part]:,}", f"{total[part]:,}") for part in total]
    everything = ("all", f"{sum(trained.values()):,}", f"{sum(total.values()):,}")
    return Table("Parameters", ("part", "trained", "total"), (*rows, everything))


def _part(name: str, stack: str) -> str:
    """The module a parameter is counted under: all encoder blocks as one, and no names that peft put around it."""
    part = stack if name.startswith(stack + ".") else name.rpartition(".")[0]
    part = part.removesuffix(".modules_to_save.default").removesuffix(".original_module")
    return part.removeprefix("base_model.model.")


def _scales(model: nn.Module, head: tuple[str, ...], tuning: Tuning) -> dict[str, float]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = rate_scales(
        names,
        parameter_layers(model, head) if tuning.layer_decay < 1 else (),
        frozenset(name for name in names if is_under(name, head)),
        decay=tuning.layer_decay,
        head_scale=tuning.head_learning_rate_scale,
    )
    if isinstance(tuning, LoraTuning):
        return {n: scale * (tuning.lora_plus_ratio if is_lora_b(n) else 1.0) for n, scale in scales.items()}
    return scales
