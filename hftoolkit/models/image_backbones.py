"""Pretrained image classifiers: timm architectures inside transformers' TimmWrapper, and transformers' own.

Both are transformers models that take ``pixel_values`` and return ``logits``, so training, adapters and saving are one
path. What was saved loads in transformers, in its pipelines and, where it came from there, in timm.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from hftoolkit.contracts import HeadSpec, Tensors
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.models.backbones import (
    Backbone,
    compare_head,
    dropout_settings,
    head_settings,
    is_under,
    load_with_head,
    parameter_layers,
    quiet_transformers,
    readable_errors,
)
from hftoolkit.models.preprocessing import (
    Preprocessing,
    height_and_width,
    make_processor,
    processor_preprocessing,
    resized_by,
    timm_preprocessing,
    timm_settings,
)
from hftoolkit.models.timm_models import (
    MISFIT,
    WEIGHT_SUFFIXES,
    LoadedBy,
    check_architecture,
    check_config,
    create_model,
    create_pretrained,
    first_line,
    head_modules,
    output_layers,
    parameter_groups,
    read_file,
    read_folder,
    replace_head,
)
from hftoolkit.seeding import seed_torch

MAX_NAMED_LABELS = 5
BY_POSITION = "the weights have foreign names; count and shapes agree, so they were loaded by position"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBackbone(Backbone):
    """An image classifier.

    Attributes:
        preprocessing: what the model expects of images.
        architecture: timm's name of it; None for a transformers architecture.
        loaded_by: whether the weights were told apart by name, by position, or are random.
    """

    preprocessing: Preprocessing
    architecture: str | None
    loaded_by: LoadedBy = "name"


def load_image_classifier(
    path: Path | None,
    head: HeadSpec,
    *,
    architecture: str | None,
    image_size: int | tuple[int, int] | None,
    dropout: float,
    drop_path: float,
    seed: int,
    resize: str | None = None,
) -> ImageBackbone:
    """Load an image backbone and give it a head.

    A head that was trained for the same names in the same order is kept; any other is replaced.

    Args:
        path: a folder of timm or transformers, or a weights file; None draws random weights from the seed.
        head: its outputs.
        architecture: timm's name, for a weights file and for random weights.
        image_size: height and width in pixels, one number where they are equal; None takes that of the weights.
        dropout: probability before the head, and wherever a transformers architecture has dropout.
        drop_path: probability of skipping a residual branch in training.
        seed: of the new head, and of random weights.
        resize: what happens to the aspect ratio: ``crop``, ``squash`` or ``pad``; None: as with the weights before.

    Raises:
        RecipeError: the architecture is missing, unknown, or cannot do what is asked.
        DataError: the path holds no usable image classifier.
    """
    config = None if path is None else _read_config(path)
    if path is not None and config is not None and architecture is not None:
        if architecture.partition(".")[0] != str(config.get("architecture", "")).partition(".")[0]:
            raise RecipeError("model.architecture: the folder of model.backbone has its own; leave the line out")
    if path is not None and config is not None and config.get("model_type", "timm_wrapper") != "timm_wrapper":
        backbone = _load_transformers(path, head, image_size, dropout=dropout, drop_path=drop_path, seed=seed)
    else:
        knobs = {"drop_rate": dropout, "drop_path_rate": drop_path}
        active = {name: value for name, value in knobs.items() if value > 0}
        with nullcontext() if path is None else readable_errors(path, "image"):
            backbone = _load_timm(path, config, head, architecture, image_size, active, seed)
    backbone = replace(backbone, preprocessing=resized_by(backbone.preprocessing, resize))
    if backbone.architecture is None:
        _check_processor_can(backbone.preprocessing)
    with _size_errors(image_size), torch.inference_mode():
        if image_size is not None:
            backbone.model(**example_of(backbone))
    return backbone


def _check_processor_can(own: Preprocessing) -> None:
    """Check that an image processor of transformers, which the exported model has, can do the same."""
    if own.crop_mode == "border":
        raise RecipeError(
            "model.resize: pad is for timm models; transformers' image processors do not centre what "
            "they pad. Set crop or squash"
        )
    if own.crop_mode == "center" and own.height != own.width:
        raise RecipeError(
            f"model.image_size: transformers' image processors do not crop to {own.height} x {own.width}; set "
            "model.resize: squash beside it, or one number"
        )


def save_image_classifier(model: nn.Module, preprocessing: Preprocessing, directory: Path) -> None:
    """Write a plain folder: safetensors, and a config with label names and this preprocessing."""
    plain: Any = model
    with quiet_transformers():
        if isinstance(plain.config, TimmWrapperConfig):
            plain.config.pretrained_cfg = plain.config.pretrained_cfg | timm_settings(preprocessing)
            plain.config.architectures = [type(model).__name__]
            plain.config.save_pretrained(directory)
            # transformers would write the names that only TimmWrapper knows. Copies, as some tensors have two names.
            state = {name: tensor.clone() for name, tensor in plain.timm_model.state_dict().items()}
            save_file(
                {name: tensor.contiguous() for name, tensor in state.items()},
                directory / "model.safetensors",
                metadata={"format": "pt"},
            )
        else:
            plain.save_pretrained(directory)
            make_processor(preprocessing).save_pretrained(directory)


def load_saved_image_classifier(path: Path) -> ImageBackbone:
    """Load an exported model, in fp32 and eval mode, with its preprocessing.

    Raises:
        DataError: the folder does not hold one.
    """
    _check_saved(path)
    with quiet_transformers(), readable_errors(path, "image"):
        model = AutoModelForImageClassification.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
        preprocessing = _saved_preprocessing(path, model.config)
    return ImageBackbone(model=model.eval(), preprocessing=preprocessing, architecture=None)


def saved_preprocessing(path: Path) -> Preprocessing:
    """Return what an exported model expects of images, without loading it.

    Raises:
        DataError: the folder does not hold one.
    """
    _check_saved(path)
    with quiet_transformers(), readable_errors(path, "image"):
        return _saved_preprocessing(path, AutoConfig.from_pretrained(path, trust_remote_code=False))


def _check_saved(path: Path) -> None:
    config = _read_config(path)
    if config is not None and "architecture" in config:
        check_config(path, config)


def _saved_preprocessing(path: Path, config: PretrainedConfig) -> Preprocessing:
    if isinstance(config, TimmWrapperConfig):
        return timm_preprocessing(config.pretrained_cfg, None)
    return processor_preprocessing(path, None)


def example_of(backbone: ImageBackbone) -> Tensors:
    """Return an input that the model takes: one image of a smooth change, ``pixel_values`` (1, 3, H, W)."""
    height, width = backbone.preprocessing.height, backbone.preprocessing.width
    return {"pixel_values": torch.linspace(-1, 1, 3 * height * width).view(1, 3, height, width)}


def is_convolutional(model: nn.Module) -> bool:
    """Return whether most weights are those of convolutions."""
    weights = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    convolutions = sum(module.weight.numel() for module in weights if isinstance(module, nn.Conv2d))
    return convolutions > 0.5 * sum(module.weight.numel() for module in weights)


def timm_part(model: nn.Module) -> nn.Module | None:
    """Return the timm model inside, also when peft has wrapped it; None for any other architecture."""
    part: nn.Module | None = getattr(model, "timm_model", None)
    return part


def image_parameter_layers(model: nn.Module, top_modules: Sequence[str]) -> list[frozenset[str]]:
    """Return parameter names by depth: the stem first, then each block. What is above them is in none.

    Raises:
        RecipeError: a transformers architecture has no list of blocks.
    """
    names = [name for name, _ in model.named_parameters()]
    inner = timm_part(model)
    if inner is None:
        stem, *blocks = parameter_layers(model, top_modules)
        first = next(index for index, name in enumerate(names) if name in frozenset().union(*blocks))
        return [stem | frozenset(n for n in names[:first] if not is_under(n, top_modules)), *blocks]
    prefix = next(name for name, module in model.named_modules() if module is inner) + "."
    groups = [frozenset(prefix + name for name in group) for group in parameter_groups(inner)]
    return [group for group in groups if not any(is_under(name, top_modules) for name in group)]


def _read_config(path: Path) -> dict[str, Any] | None:
    file = path / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file.name} of {path.name} is not JSON: {error}") from error
    if not isinstance(config, dict) or not ("architecture" in config or "model_type" in config):
        raise DataError(f"{file.name} of {path.name} is of no model: it has neither architecture nor model_type")
    return config


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    if len(files) != 1:
        raise DataError(f"{path.name} has no config.json and {len(files)} weights files; name one file in it")
    return files[0]


def _load_timm(
    path: Path | None,
    config: Mapping[str, Any] | None,
    head: HeadSpec,
    architecture: str | None,
    image_size: int | tuple[int, int] | None,
    knobs: dict[str, Any],
    seed: int,
) -> ImageBackbone:
    if config is None and architecture is None:
        raise RecipeError("model.architecture is missing: bare weights need it; write the name of a timm model")
    kept, replaced = False, tuple[str, ...]()
    loaded_by: LoadedBy = "none"
    if path is None:
        name, arguments = check_architecture(str(architecture)), dict[str, Any]()
        arguments |= _fixed_size(timm.get_pretrained_cfg(name).to_dict(), image_size)
        seed_torch("weights", seed)
        with _size_errors(image_size):
            inner = create_model(name, len(head.names), arguments | knobs)
    else:
        weights = read_file(_weights_file(path), str(architecture)) if config is None else read_folder(path, config)
        name, settings = (
            weights.architecture,
            weights.settings or timm.get_pretrained_cfg(weights.architecture).to_dict(),
        )
        arguments = dict(weights.arguments) | _fixed_size(settings, image_size)
        try:
            inner, loaded_by = create_pretrained(weights, arguments | knobs)
        except DataError as error:
            if arguments == weights.arguments:
                raise
            create_pretrained(weights, weights.arguments)  # raises if the weights are at fault, not the size
            raise RecipeError(f"model.image_size: {image_size} does not suit this backbone: {error}") from error
        kept = weights.class_names == head.names
        if not kept:
            seed_torch("head", seed)
            replace_head(inner, len(head.names), arguments)
            replaced = _readable_labels(weights.class_names)
    preprocessing = timm_preprocessing(inner.pretrained_cfg, image_size)
    outputs, heads = output_layers(inner, name, arguments), head_modules(inner)
    heads += tuple(layer for layer in outputs if not is_under(f"{layer}.", heads))  # VOLO does not name its second
    return ImageBackbone(
        model=_wrap(inner, name.partition(".")[0], head, arguments, preprocessing),
        output_layers=tuple(f"timm_model.{layer}" for layer in outputs),
        fresh_modules=tuple(f"timm_model.{module}" for module in heads),
        has_trained_head=kept,
        replaced_labels=replaced,
        preprocessing=preprocessing,
        architecture=name,
        loaded_by=loaded_by,
        note=BY_POSITION if loaded_by == "position" else "",
    )


def _fixed_size(settings: Mapping[str, Any], image_size: int | tuple[int, int] | None) -> dict[str, Any]:
    """The argument that resamples position tables, for architectures that have them."""
    return {"img_size": image_size} if image_size is not None and settings.get("fixed_input_size") else {}


def _wrap(
    inner: Any, architecture: str, head: HeadSpec, arguments: Mapping[str, Any], preprocessing: Preprocessing
) -> nn.Module:
    """Put a timm model into transformers' wrapper, which would otherwise draw all weights anew."""
    config = TimmWrapperConfig(
        architecture=architecture,
        model_args=dict(arguments),
        pretrained_cfg=inner.pretrained_cfg | timm_settings(preprocessing),
        num_features=inner.num_features,
        **head_settings(head),
    )
    with torch.device("meta"):
        model: Any = TimmWrapperForImageClassification(config)
    model.timm_model = inner
    wrapped: nn.Module = model.eval()
    return wrapped


def _load_transformers(
    path: Path,
    head: HeadSpec,
    image_size: int | tuple[int, int] | None,
    *,
    dropout: float,
    drop_path: float,
    seed: int,
) -> ImageBackbone:
    with quiet_transformers(), readable_errors(path, "image"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if getattr(config, "num_channels", 3) != 3:
            raise DataError(
                f"{path.name} reads images of {config.num_channels} channels; the backbone must read 3 (RGB)"
            )
        kept, replaced = compare_head(config, head.names, "ForImageClassification")
        config.update(head_settings(head) | _noise_settings(config, dropout, drop_path))
        preprocessing = processor_preprocessing(path, image_size)
        model, layers, fresh = load_with_head(AutoModelForImageClassification, path, config, keep_head=kept, seed=seed)
        if image_size is not None and getattr(_sized(config), "image_size", image_size) != image_size:
            model = _resample_positions(model, image_size)
    return ImageBackbone(
        model=model,
        output_layers=layers,
        fresh_modules=fresh,
        has_trained_head=kept,
        replaced_labels=_readable_labels(replaced),
        preprocessing=preprocessing,
        architecture=None,
    )


def _noise_settings(config: PretrainedConfig, dropout: float, drop_path: float) -> dict[str, float]:
    settings = dropout_settings(config, dropout)
    if dropout > 0 and not settings:
        raise RecipeError(f"model.dropout: {config.model_type} cannot change it; leave the line out")
    if drop_path > 0 and not hasattr(config, "drop_path_rate"):
        raise RecipeError(f"model.drop_path: {config.model_type} cannot change it; leave the line out")
    return settings | ({"drop_path_rate": drop_path} if hasattr(config, "drop_path_rate") else {})


def _sized(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of a configuration that has the image size: CLIP and its like have one for each modality."""
    part: PretrainedConfig = getattr(config, "vision_config", config)
    return part


def _resample_positions(model: Any, image_size: int | tuple[int, int]) -> nn.Module:
    """Return the model for another image size, its position embeddings interpolated as transformers itself would."""
    config = copy.deepcopy(model.config)
    _sized(config).image_size = image_size
    resized: Any = type(model)(config).eval()
    state, wanted = model.state_dict(), resized.state_dict()
    for name in [name for name in state if state[name].shape != wanted[name].shape]:
        # A parameter of the embeddings themselves, or the weight of a table in them.
        owner = model.get_submodule(name.partition(".position_embedding")[0])
        if ".position_embedding" not in name or not hasattr(owner, "interpolate_pos_encoding"):
            raise RecipeError(f"model.image_size: {config.model_type} cannot change it; leave the line out")
        length = wanted[name].reshape(1, -1, wanted[name].shape[-1])  # (1, positions, width): only its shape is read
        found = owner.interpolate_pos_encoding(length, *height_and_width(image_size))
        state[name] = found.detach().reshape(wanted[name].shape)
    resized.load_state_dict(state)
    result: nn.Module = resized
    return result


@contextmanager
def _size_errors(image_size: int | tuple[int, int] | None) -> Iterator[None]:
    """Say of any image size that was asked for that the architecture cannot have it."""
    try:
        yield
    except MISFIT as error:
        if image_size is None:
            raise
        raise RecipeError(f"model.image_size: {image_size} does not suit this backbone: {first_line(error)}") from error


def _readable_labels(names: Sequence[str]) -> tuple[str, ...]:
    """At most MAX_NAMED_LABELS names to show; none where they only count (LABEL_0, LABEL_1)."""
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return ()
    if len(names) <= MAX_NAMED_LABELS:
        return tuple(names)
    return (*names[: MAX_NAMED_LABELS - 1], f"and {len(names) - MAX_NAMED_LABELS + 1} more")
