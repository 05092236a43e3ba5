"""Turn a loaded backbone into the model that is trained: which weights move, and how fast."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from hftoolkit.contracts import Table
from hftoolkit.errors import RecipeError
from hftoolkit.models.backbones import (
    Backbone,
    encoder_layers,
    freeze_all_but,
    freeze_below,
    is_image_model,
    is_under,
    parameter_layers,
)
from hftoolkit.models.image_backbones import ImageBackbone, example_of, image_parameter_layers, timm_part
from hftoolkit.models.lora import apply_lora, is_lora_b
from hftoolkit.recipe import FullTuning, LastLayers, LinearProbe, LoraTuning, Tuning

# The table of parameters shows the stages of a network one by one, and more blocks than this as one.
MAX_STAGES = 8


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model with the right weights trainable.

    Attributes:
        model: parameters that require gradients are trained.
        rate_scales: factor on the learning rate by parameter name.
        unfreeze_at: epoch, maybe a fraction, from which a parameter is trained, by name; others are from the start.
    """

    model: nn.Module
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    unfreeze_at: Mapping[str, float] = field(default_factory=dict)


def apply_tuning(backbone: Backbone, tuning: Tuning) -> TunedModel:
    """Freeze, wrap or leave the backbone as the method asks.

    Raises:
        RecipeError: LoRA targets match nothing, there are no norms to train, or more layers are named than exist.
    """
    head, model = backbone.fresh_modules, backbone.model
    poolers = _poolers(model, head)
    match tuning:
        case FullTuning():
            pass
        case LastLayers(layers=count):
            freeze_below(model, _layers(model, head), count)
        case LinearProbe():
            freeze_all_but(model, head)
        case LoraTuning():
            model = apply_lora(
                model,
                rank=tuning.rank,
                alpha=tuning.alpha,
                dropout=tuning.dropout,
                targets=tuning.target_modules,
                blocks=_blocks(model, head) if tuning.target_modules == "auto" else frozenset(),
                trained_modules=(*head, *poolers, *(_norms(model, head) if tuning.norms else ())),
                variants={"use_dora": tuning.dora, "use_rslora": tuning.rslora},
                example=example_of(backbone) if isinstance(backbone, ImageBackbone) else None,
            )
    return TunedModel(model, _scales(model, head, poolers, tuning), _unfreezing(model, head, tuning))


def trainable_table(model: nn.Module) -> Table:
    """Return the trainable and total parameters by part of the model."""
    trained: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    part_of = _stack(model) if timm_part(model) is None else _stages(model)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        total[part] += parameter.numel()
        trained[part] += parameter.numel() if parameter.requires_grad else 0
    rows = [(part, f"{trained[part]:,}", f"{total[part]:,}") for part in total]
    everything = ("all", f"{sum(trained.values()):,}", f"{sum(total.values()):,}")
    return Table("Parameters", ("part", "trained", "total"), (*rows, everything))


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the modules that keep running statistics of batches."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def frozen_statistics(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms none of whose parameters is trained: in training they must stay in eval mode.

    peft saves no running statistics, so an adapter trained while they move gives other logits when it is reloaded.
    Batch norms without parameters count as frozen when anything else is.
    """
    anything = any(not parameter.requires_grad for parameter in model.parameters())
    return [
        module
        for module in batch_norms(model)
        if not any(parameter.requires_grad for parameter in module.parameters())
        and (anything or any(True for _ in module.parameters()))
    ]


def _stack(model: nn.Module) -> Callable[[str], str]:
    """Return the module that a parameter is counted under: all encoder blocks as one, and no names of peft's."""
    try:
        stack = encoder_layers(model)[0]
    except RecipeError:  # no such list: each module counts by itself
        stack = type(model).__name__

    def part(name: str) -> str:
        module = stack if name.startswith(stack + ".") else name.rpartition(".")[0]
        module = module.removesuffix(".modules_to_save.default").removesuffix(".original_module")
        return module.removeprefix("base_model.model.")

    return part


def _stages(model: nn.Module) -> Callable[[str], str]:
    """Return the part of a timm model that a parameter is counted under: stages one by one, long lists as one."""
    inner = timm_part(model)
    assert inner is not None
    prefix = next(name for name, module in model.named_modules() if module is inner)
    lists = {
        name
        for name, module in inner.named_children()
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(module) <= MAX_STAGES
    }

    def part(name: str) -> str:
        names = name.removeprefix(f"{prefix}.").split(".")
        return ".".join(names[: 2 if names[0] in lists else 1])

    return part


def _layers(model: nn.Module, head: Sequence[str]) -> list[frozenset[str]]:
    return image_parameter_layers(model, head) if is_image_model(model) else parameter_layers(model, head)


def _blocks(model: nn.Module, head: Sequence[str]) -> frozenset[str]:
    return frozenset().union(*_layers(model, head)[1:])


def _poolers(model: nn.Module, head: Sequence[str]) -> list[str]:
    """Return the linear layers between the encoder blocks of a text model and its head, such as BERT's pooler.

    They are small, and what they were pretrained for has nothing to do with the labels: frozen, or with an adapter
    alone, they hold LoRA back.
    """
    if is_image_model(model):
        return []
    try:
        stack, _ = encoder_layers(model)
    except RecipeError:  # no list of blocks
        return []
    names = [name for name, _ in model.named_modules()]
    above = names[names.index(stack) :]
    lists = [name for name in above if isinstance(model.get_submodule(name), nn.ModuleList)]  # also a decoder's
    linear = [name for name in above if isinstance(model.get_submodule(name), nn.Linear)]
    return [name for name in linear if not is_under(f"{name}.weight", [*lists, *head])]


def _norms(model: nn.Module, head: Sequence[str]) -> list[str]:
    """Return the norms outside the head that have weights and no running statistics.

    Raises:
        RecipeError: there are none.
    """
    names = [
        name
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        and not isinstance(module, nn.modules.batchnorm._NormBase)
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and not is_under(f"{name}.weight", head)
    ]
    if not names:
        raise RecipeError("tuning.norms: this model has no norms but batch norms; leave the line out")
    return names


def _unfreezing(model: nn.Module, head: Sequence[str], tuning: Tuning) -> dict[str, float]:
    """Spread the layers evenly: of N, the highest joins after 1/N of the time and the stem at its end."""
    if not isinstance(tuning, FullTuning) or tuning.unfreeze_epochs == 0:
        return {}
    from_the_top = _layers(model, head)[::-1]
    return {
        name: tuning.unfreeze_epochs * position / len(from_the_top)
        for position, layer in enumerate(from_the_top, start=1)
        for name in layer
    }


def _scales(model: nn.Module, head: Sequence[str], poolers: Sequence[str], tuning: Tuning) -> dict[str, float]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = rate_scales(
        names,
        _layers(model, head) if tuning.layer_decay < 1 else (),
        frozenset(name for name in names if is_under(name, (*head, *poolers))),
        decay=tuning.layer_decay,
        head_scale=tuning.head_learning_rate_scale,
    )
    if isinstance(tuning, LoraTuning):
        return {n: scale * (tuning.lora_plus_ratio if is_lora_b(n) else 1.0) for n, scale in scales.items()}
    return scales


def rate_scales(
    names: Sequence[str], layers: Sequence[frozenset[str]], head: frozenset[str], *, decay: float, head_scale: float
) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter.

    Args:
        names: parameters to scale.
        layers: parameter names by depth, from the embeddings up; parameters in none of them count as the top.
        head: parameters of the task head.
        decay: factor for each layer further from the top.
        head_scale: factor for the head, on top of the rest.
    """
    depth = {name: index for index, layer in enumerate(layers) for name in layer}
    top = len(layers)
    return {name: decay ** (top - depth.get(name, top)) * (head_scale if name in head else 1.0) for name in names}
