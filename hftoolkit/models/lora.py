"""LoRA through peft, sole owner of that library: targets found and checked, heads never lost."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

from hftoolkit.contracts import Tensors
from hftoolkit.errors import RecipeError
from hftoolkit.models.backbones import is_image_model

# peft wraps heads of these names itself, whole; to name their parts too would wrap those twice.
PEFT_HEADS = ("classifier.", "score.")
TASKS = {
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
    "ForQuestionAnswering": None,  # peft's wrapper of that task drops token_type_ids and position_ids
    "ForCausalLM": TaskType.CAUSAL_LM,
    "ForConditionalGeneration": TaskType.SEQ_2_SEQ_LM,
}
# What peft's layers let through of the layer that they wrap.
OF_PEFT = frozenset({"weight", "bias", "in_features", "out_features"})
GENERAL_TARGETS = ("auto", "all-linear")
# ``auto`` passes over kinds of layers that hold less of the blocks' weights than this.
MIN_AUTO_SHARE = 0.1


def apply_lora(  # noqa: PLR0913 - peft's settings, and what of the model only the caller knows
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str,
    blocks: Set[str],
    trained_modules: Sequence[str],
    variants: dict[str, bool],
    example: Tensors | None = None,
) -> PeftModel:
    """Wrap a classifier with low-rank adapters.

    Args:
        model: the classifier; its weights are frozen in place.
        rank: rank of each update.
        alpha: scale of the update.
        dropout: probability on the adapter's input.
        targets: ``auto``, ``all-linear`` or a regular expression over whole module names.
        blocks: names of the parameters of the encoder blocks, where ``auto`` looks.
        trained_modules: modules that are trained in full and saved with the adapter: the head, its pooler and whatever
            else has no pretrained weights. peft by itself saves only heads called ``classifier`` or ``score``.
        variants: ``use_dora`` and ``use_rslora``.
        example: an input by which layers are found that an adapter cannot stand in for; None: all can be replaced.

    Raises:
        RecipeError: no layer that can have an adapter matches ``targets``.
    """
    names = _match_targets(model, targets, blocks, trained_modules)
    if example is not None:
        names = _without_irreplaceable(model, names, example, targets)
    # For these tasks peft knows some heads itself.
    own_heads = PEFT_HEADS if _task(model) in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS) else ()
    config = LoraConfig(
        task_type=_task(model),
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        modules_to_save=[name for name in trained_modules if not name.startswith(own_heads)],
        **variants,
    )
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    for module in wrapped.modules():
        if isinstance(module, BaseTunerLayer):  # peft would cast to fp32 what autocast then casts back to bf16
            module.cast_input_dtype_enabled = False
    return wrapped


def is_lora(model: nn.Module) -> TypeGuard[PeftModel]:
    """Return whether the model is wrapped by ``apply_lora``."""
    return isinstance(model, PeftModel)


def merge(model: PeftModel) -> nn.Module:
    """Return the plain model with the adapters folded into its weights; the wrapped one must not be used after."""
    merged: nn.Module = model.merge_and_unload()
    return merged


def save_adapter(model: PeftModel, directory: Path, *, base: str) -> None:
    """Write the adapter alone, in peft's layout, naming ``base`` (a Hub id or source address) as its base model."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = base
    config.inference_mode = True
    if isinstance(config.target_modules, set):  # written in an order that differs from process to process
        config.target_modules = sorted(config.target_modules)
    with _quiet():
        # The vocabulary does not change in training; peft would ask the Hub whether it did.
        model.save_pretrained(directory, safe_serialization=True, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # peft's empty template; the run writes its own


def adaptable_names(model: nn.Module, excluded: Sequence[str] = ()) -> list[str]:
    """Return the names of all layers outside the excluded modules that an adapter fits.

    They are the linear ones and, in image models, convolutions in one group.
    """
    kinds = (_is_linear, _is_convolution) if is_image_model(model) else (_is_linear,)
    return [
        name
        for name, module in model.named_modules()
        if any(fits(module) for fits in kinds) and not any(name == e or name.startswith(e + ".") for e in excluded)
    ]


def lora_target_names(model: nn.Module, blocks: Set[str], excluded: Sequence[str] = ()) -> list[str]:
    """Return what ``auto`` adapts: the linear layers of the encoder blocks.

    In image models whose blocks have hardly any, it is their 1x1 convolutions, and where those are few too, as in
    the smaller ResNets, all their convolutions; never grouped ones, the stem or what leads to the head.
    """
    names = [name for name in adaptable_names(model, excluded) if f"{name}.weight" in blocks]
    if not is_image_model(model):
        return names
    # What stands beside the blocks, as timm's conv_head, leads to the head.
    inside = {name: model.get_submodule(name) for name in names if name.count(".") > 1}
    total = sum(parameter.numel() for name, parameter in model.named_parameters() if name in blocks)
    for fits in (_is_linear, _is_pointwise, _is_convolution):
        found = [name for name, module in inside.items() if fits(module)]
        if sum(model.get_parameter(f"{name}.weight").numel() for name in found) >= MIN_AUTO_SHARE * total:
            return found
    return list(inside)


class _StandIn(nn.Module):
    """Stands where a layer stood, as an adapter does, and notes what the model does with it.

    Attributes:
        called: whether it was run.
        plain: whether its output was that of a linear layer or a convolution with its weights and its settings.
        read: names of the layer's own attributes that the model asked for.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.called, self.plain = False, True
        self.read: set[str] = set()

    def forward(self, *inputs: Any) -> Any:
        """Run the layer."""
        self.called, output = True, self.layer(*inputs)
        self.plain = self.plain and _is_plain(self.layer, inputs[0], output)
        return output

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the layer, and note its name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            self.read.add(name)
            return getattr(self.layer, name)


def irreplaceable_layers(model: nn.Module, names: Sequence[str], example: Tensors) -> dict[str, str]:
    """Return the layers that an adapter cannot stand in for, and why, in words about them.

    Some architectures do not call a layer, but compute with its weights, so that its adapter would learn nothing;
    others read its settings, which peft's layers do not have. Layers that change their weights or their padding first,
    as those with standardized weights do, give something else when the adapter is merged.

    Args:
        model: not wrapped yet.
        names: of the layers in question.
        example: keyword arguments of its forward pass.
    """
    stand_ins = {name: _StandIn(model.get_submodule(name)) for name in names}
    try:
        for name, stand_in in stand_ins.items():
            model.set_submodule(name, stand_in)
        with torch.inference_mode():
            model(**example)
    finally:
        for name, stand_in in stand_ins.items():
            model.set_submodule(name, stand_in.layer)
    reasons = {}
    for name, stand_in in stand_ins.items():
        if read := stand_in.read - (OF_PEFT if stand_in.called else set()):
            reasons[name] = f"the model reads {', '.join(sorted(read))} of them"
        elif not stand_in.plain:
            reasons[name] = "they change their weights or their padding first"
    return reasons


def _is_plain(layer: nn.Module, x: torch.Tensor, output: torch.Tensor) -> bool:
    """Return whether a layer computed what its class in torch would with the same weights."""
    if type(layer) in (nn.Linear, Conv1D):
        return True
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    if not isinstance(layer, nn.Conv2d):
        expected = nn.functional.linear(x, weight, bias)
    elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        return True
    else:
        padded = [2 * side for side in layer.padding] if isinstance(layer.padding, tuple) else [0, 0]
        spans = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(side + more <= span for side, more, span in zip(x.shape[-2:], padded, spans, strict=True)):
            return False  # a plain convolution would not fit
        expected = nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return expected.shape == output.shape and torch.allclose(expected, output, rtol=1e-3, atol=1e-5)


def _without_irreplaceable(model: nn.Module, names: Sequence[str], example: Tensors, targets: str) -> list[str]:
    """Return the names that an adapter can stand in for.

    Raises:
        RecipeError: there is none, or the recipe names others itself.
    """
    irreplaceable = irreplaceable_layers(model, names, example)
    kept = [name for name in names if name not in irreplaceable]
    if kept and (targets in GENERAL_TARGETS or not irreplaceable):
        return kept
    reason = next(iter(irreplaceable.values()))
    what = (
        f"in {type(model).__name__} an adapter cannot stand in for {_summarize(list(irreplaceable))}, because {reason}"
    )
    if kept:
        raise RecipeError(
            f"tuning.target_modules: {what}; leave them out, for example with a pattern for {_summarize(kept)}"
        )
    raise RecipeError(f"tuning.target_modules: {what}; set tuning.method to full, last-layers or linear-probe")


def _match_targets(model: nn.Module, targets: str, blocks: Set[str], excluded: Sequence[str]) -> list[str]:
    names = adaptable_names(model, excluded)
    match targets:
        case "auto":
            found = lora_target_names(model, blocks, excluded)
        case "all-linear":
            found = names
        case _:
            pattern = _compile(targets)
            found = [name for name in names if pattern.fullmatch(name)]
    if not names:
        raise RecipeError(
            f"tuning.method: {type(model).__name__} has no layer that an adapter fits; use tuning.method: full, "
            "last-layers or linear-probe"
        )
    if not found:
        kind = "linear layer or convolution in one group" if is_image_model(model) else "linear layer"
        raise RecipeError(
            f"tuning.target_modules: {targets!r} matches no {kind}. This model has: {_summarize(names)}; "
            r"write a pattern for whole names, for example '.*\.(query|value)', or auto"
        )
    return found


def _task(model: nn.Module) -> TaskType | None:
    """Return peft's task of a model by the head in the name of its class; peft has none for images."""
    if is_image_model(model):
        return None
    name = type(model).__name__
    return next((task for head, task in TASKS.items() if name.endswith(head)), TaskType.FEATURE_EXTRACTION)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == 1


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == 1 and module.kernel_size == (1, 1)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"tuning.target_modules: {pattern!r} is not a regular expression: {error}") from error


def _summarize(names: Sequence[str]) -> str:
    """``encoder.layer.*.attention.self.query (6)`` instead of six lines."""
    counts = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names)
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts.items())


@contextmanager
def _quiet() -> Iterator[None]:
    """peft warns that it cannot ask the Hub whether the vocabulary changed; it did not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_lora_b(parameter_name: str) -> bool:
    """Return whether a parameter is a B matrix, which LoRA+ trains faster."""
    return ".lora_B." in parameter_name
