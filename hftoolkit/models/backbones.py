"""Pretrained transformers backbones with a classification head: load, inspect, freeze. Text ones are loaded here."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from hftoolkit.contracts import HeadSpec
from hftoolkit.data.sources.hub import offline
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.models.folders import blames_files, check_config, reason_of
from hftoolkit.models.tokenizers import agree_on_padding, cut_at, fit_to_model, load_tokenizer, longest_text
from hftoolkit.seeding import seed_torch

# A backbone with more fresh weights than this was not really loaded: its names do not fit the architecture.
MAX_FRESH_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A model ready to be tuned, or one that was.

    Attributes:
        model: fp32, on the CPU, in eval mode; its output has ``logits``.
        output_layers: names of the layers that give the logits: one, or several whose outputs are added or averaged.
        fresh_modules: modules with random weights, the output layers in or among them; all must be trained and saved.
        has_trained_head: whether its own head was trained for the same names, and is kept.
        replaced_labels: class names of the head that was thrown away; empty when there was none.
        note: what a user should know of how the weights were found; empty for nothing.
    """

    model: nn.Module
    output_layers: tuple[str, ...] = ()
    fresh_modules: tuple[str, ...] = ()
    has_trained_head: bool = False
    replaced_labels: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBackbone(Backbone):
    """A text classifier.

    Attributes:
        tokenizer: cuts at ``max_length`` and carries that number into what it saves.
        longest: tokens that the model reads at most; None where nothing limits them, or it was trained already.
    """

    tokenizer: Any
    longest: int | None = None


def load_text_model(
    path: Path, auto_class: str, head: HeadSpec, *, max_length: int, dropout: float, seed: int
) -> TextBackbone:
    """Load a transformers text backbone and give it a head.

    A head that was trained for the same names in the same order is kept; any other is replaced.

    Args:
        path: a folder of transformers.
        auto_class: name of the class that loads it, for example ``AutoModelForSequenceClassification``.
        head: its outputs.
        max_length: tokens at which the tokenizer cuts.
        dropout: probability, wherever the architecture has dropout.
        seed: of a new head.

    Raises:
        DataError: the folder holds no usable transformers text model.
        RecipeError: the model reads fewer than ``max_length`` tokens.
    """
    with quiet_transformers(), readable_errors(path, "text"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        kept, replaced = compare_head(config, head.names, auto_class.removeprefix("AutoModel"))
        config.update(head_settings(head) | dropout_settings(config, dropout))
        tokenizer = load_tokenizer(path)
        agree_on_padding(config, tokenizer, path.name)
        model, output_layers, fresh = load_with_head(
            getattr(transformers, auto_class), path, config, keep_head=kept, seed=seed
        )
        longest = longest_text(model)
        cut_at(tokenizer, max_length, longest)
        note = fit_to_model(model, tokenizer)
    return TextBackbone(
        model=model,
        tokenizer=tokenizer,
        longest=longest,
        note=note,
        output_layers=output_layers,
        fresh_modules=fresh,
        has_trained_head=kept,
        replaced_labels=replaced,
    )


def load_with_head(
    auto_class: Any, path: Path, config: PretrainedConfig, *, keep_head: bool, seed: int
) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """Load a classifier in fp32 and eval mode, with the head that ``config`` asks for, drawn from the seed if new.

    Returns:
        The model, the names of its output layers, and the names of all modules with random weights.

    Raises:
        DataError: most of the weights are not in the files.
    """
    output_layers = _find_output_layers(auto_class, config)
    seed_torch("head", seed)
    model, report = auto_class.from_pretrained(
        path,
        config=config,
        dtype=torch.float32,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        weights_only=True,
    )
    fresh = {name.rpartition(".")[0] for name in report["missing_keys"]}
    fresh |= {entry[0].rpartition(".")[0] for entry in report["mismatched_keys"]}
    if not keep_head:
        fresh |= set(output_layers)
        for layer in output_layers:
            _draw_head(model.get_submodule(layer), getattr(config, "initializer_range", 0.02))
    _check_mostly_pretrained(model, fresh, path)
    return model.eval(), output_layers, tuple(sorted(fresh | set(output_layers)))


def load_saved_text_model(path: Path, auto_class: str, *, max_length: int) -> TextBackbone:
    """Load an exported model and its tokenizer, which cuts at ``max_length`` tokens, in fp32 and eval mode.

    Raises:
        DataError: the folder does not hold one.
    """
    with quiet_transformers(), readable_errors(path, "text"):
        tokenizer = load_tokenizer(path, max_length=max_length)
        model = getattr(transformers, auto_class).from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    return TextBackbone(model=model.eval(), tokenizer=tokenizer)


def save_text_model(model: nn.Module, tokenizer: Any, directory: Path) -> None:
    """Write a plain transformers folder: safetensors, config with label names, tokenizer."""
    plain: Any = model
    with quiet_transformers():
        plain.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute activations of each block in the backward pass instead of keeping them.

    Raises:
        RecipeError: the architecture cannot.
    """
    plain: Any = model
    try:
        plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise RecipeError(f"model.gradient_checkpointing: {error}") from error


def is_image_model(model: nn.Module) -> bool:
    """Return whether the model reads images, also when peft has wrapped it."""
    return getattr(model, "main_input_name", None) == "pixel_values"


def encoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the encoder blocks: the longest ModuleList that is in no other.

    Raises:
        RecipeError: the model has no list of blocks.
    """
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    stacks = [(name, stack) for name, stack in stacks if not is_under(name, [other for other, _ in stacks])]
    if not stacks:
        raise RecipeError(
            f"{type(model).__name__} has no list of encoder blocks; use full or lora, without layer-wise knobs"
        )
    return max(stacks, key=lambda entry: len(entry[1]))


def parameter_layers(model: nn.Module, top_modules: Sequence[str]) -> list[frozenset[str]]:
    """Return parameter names by depth: embeddings first, then each encoder block. What is above them is in none."""
    stack_name, stack = encoder_layers(model)
    names = [name for name, _ in model.named_parameters()]
    blocks = [frozenset(n for n in names if n.startswith(f"{stack_name}.{index}.")) for index in range(len(stack))]
    tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    below = [n for n in names if "embed" in n or is_under(n, tables)]  # norms beside the tables are named by place
    embeddings = frozenset(n for n in below if not is_under(n, [stack_name, *top_modules]))
    return [embeddings, *blocks]


def freeze_all_but(model: nn.Module, modules: Sequence[str]) -> None:
    """Leave only the parameters of these modules trainable."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = is_under(name, modules)


def freeze_below(model: nn.Module, layers: Sequence[frozenset[str]], count: int) -> None:
    """Leave only the last ``count`` of these layers trainable, and what is in none of them; the first is the stem.

    Raises:
        RecipeError: there are fewer blocks.
    """
    blocks = len(layers) - 1
    if count > blocks:
        raise RecipeError(f"tuning.layers: {count} is more than the {blocks} encoder blocks of this model")
    frozen = frozenset().union(*layers[: len(layers) - count])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name not in frozen


def is_under(parameter_name: str, modules: Sequence[str]) -> bool:
    """Return whether a parameter belongs to one of the modules, also when peft has wrapped the model."""
    plain_name = "." + parameter_name.replace(".modules_to_save.default.", ".")
    return any(f".{module}." in plain_name for module in modules)


def divide_logits(model: nn.Module, output_layers: Sequence[str], divisor: float) -> None:
    """Divide the logits by dividing the trained weights and biases of the layers that give them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and is_under(name, output_layers):
                parameter.div_(divisor)


def compare_head(config: PretrainedConfig, labels: Sequence[str], suffix: str) -> tuple[bool, tuple[str, ...]]:
    """Return whether the checkpoint's own head is for these labels, and the labels it had if it is not.

    Args:
        config: of the checkpoint.
        labels: wanted, in order.
        suffix: of the class names of models with such a head, for example ``ForSequenceClassification``.
    """
    names = tuple(config.id2label[index] for index in sorted(config.id2label))
    has_head = any(suffix in name for name in config.architectures or ())
    if names == tuple(labels):
        return has_head, ()
    return False, names if has_head else ()


def head_settings(head: HeadSpec) -> dict[str, Any]:
    """Return what a transformers config says about its head."""
    return {
        "num_labels": len(head.names),
        "id2label": dict(enumerate(head.names)),
        "label2id": {name: index for index, name in enumerate(head.names)},
        "problem_type": head.problem_type,
    }


def head_names(model: Any) -> tuple[str, ...]:
    """Return the names of the outputs that a transformers model has, in order."""
    return tuple(model.config.id2label[index] for index in range(model.config.num_labels))


def dropout_settings(config: PretrainedConfig, probability: float) -> dict[str, float]:
    """Every dropout probability the architecture has, under whatever name (hidden_dropout_prob, attn_pdrop, ...)."""
    return {
        key: probability
        for key, value in config.to_dict().items()
        if ("dropout" in key or key.endswith("pdrop"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def _find_output_layers(auto_class: Any, config: PretrainedConfig) -> tuple[str, ...]:
    """Return the modules whose weights grow with the number of labels, found on weightless copies of the model."""
    shapes = []
    for extra in (0, 1):
        variant = copy.deepcopy(config)
        variant.num_labels = len(config.id2label) + extra
        with torch.device("meta"):
            model = auto_class.from_config(variant, trust_remote_code=False)
        shapes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    changed = {name.rpartition(".")[0] for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    if not changed:
        raise DataError(f"{config.model_type} has no layer that depends on the number of labels")
    return tuple(sorted(changed))


def _draw_head(layer: nn.Module, standard_deviation: float) -> None:
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=standard_deviation)


def _check_mostly_pretrained(model: nn.Module, fresh: set[str], path: Path) -> None:
    total = sum(parameter.numel() for parameter in model.parameters())
    missing = sum(p.numel() for name, p in model.named_parameters() if name.rpartition(".")[0] in fresh)
    if missing > MAX_FRESH_SHARE * total:
        raise DataError(
            f"{missing:,} of {total:,} weights of {path.name} are not in its files; "
            "model.backbone is not a pretrained model of that architecture"
        )


@contextmanager
def readable_errors(path: Path, kind: str) -> Iterator[None]:
    """Turn what transformers raises for a bad folder into a DataError; ``kind`` is ``text`` or ``image``.

    Names of other models in the folder are not looked up: nothing inside asks the Hub.
    """
    check_config(path)
    try:
        with offline():
            yield
    except Exception as error:
        if not blames_files(error):
            raise
        raise DataError(f"cannot load a transformers {kind} model from {path.name}: {reason_of(error)}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own reports; what matters of them is said by the run."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
