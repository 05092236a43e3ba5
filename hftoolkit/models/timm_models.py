"""timm models by name, with weights from a folder or a bare file, always in the names that timm gives its tensors."""

import difflib
import inspect
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from hftoolkit.errors import DataError, RecipeError

LoadedBy = Literal["name", "position", "none"]
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
# What of a checkpoint's pretrained_cfg is about the weights; the rest says where they were downloaded.
KEPT_SETTINGS = (
    "tag",
    "input_size",
    "test_input_size",
    "min_input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "test_crop_pct",
    "crop_mode",
    "mean",
    "std",
    "first_conv",
    "classifier",
    "license",
    "origin_url",
    "paper_name",
    "paper_ids",
)
# What timm.create_model takes beside the arguments of an architecture; a folder may not say where weights come from.
NOT_OF_A_FOLDER = frozenset(inspect.signature(timm.create_model).parameters) - {"kwargs"}
KNOBS = {"drop_rate": "dropout", "drop_path_rate": "drop_path", "img_size": "image_size"}  # timm's argument: ours
# What torch, safetensors, timm and its converters of old checkpoints raise for files that do not fit.
UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError, SafetensorError)
MISFIT = (RuntimeError, LookupError, AttributeError, ValueError, AssertionError)


@dataclass(frozen=True, slots=True)
class TimmWeights:
    """Weights of a timm model.

    Attributes:
        architecture: a name that timm knows, with its tag if it was given.
        state: tensors by name.
        num_classes: outputs of the head in ``state``; 0 without one.
        class_names: of that head, in order; empty when unknown.
        arguments: what ``timm.create_model`` needs besides.
        settings: entries of timm's ``pretrained_cfg``; None where those of the architecture hold.
    """

    architecture: str
    state: Mapping[str, torch.Tensor]
    num_classes: int
    class_names: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None


def check_architecture(name: str) -> str:
    """Return the name if timm has such a model.

    Raises:
        RecipeError: it has not; the message names similar ones.
    """
    if re.search(r"[:/\\]", name) is None and timm.is_model(name):
        return name
    similar = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(similar)}?" if similar else "timm.list_models() names them all"
    raise RecipeError(f"model.architecture: timm {timm.__version__} has no model {name!r}; {hint}")


def create_model(
    architecture: str,
    num_classes: int,
    arguments: Mapping[str, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Any:
    """Return a timm model in eval mode, random or with the weights of ``state``, which must all fit.

    Raises:
        RecipeError: the architecture does not take one of the knobs.
        DataError: it does not take another of the arguments.
        RuntimeError and other ``MISFIT``: the weights do not fit.
    """
    overlay = dict(settings or {})
    if state is not None:
        overlay |= {"state_dict": dict(state), "source": "", "num_classes": num_classes, "label_offset": 0}
    try:
        model: Any = timm.create_model(
            architecture,
            pretrained=state is not None,
            pretrained_cfg_overlay=overlay,
            num_classes=num_classes,
            **arguments,
        )
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        if knob := KNOBS.get(unknown[1]):
            raise RecipeError(f"model.{knob}: {architecture} cannot change it; leave the line out") from error
        raise DataError(f"config.json: {architecture} takes no model_args.{unknown[1]}") from error
    model.pretrained_cfg = {key: model.pretrained_cfg[key] for key in KEPT_SETTINGS if key in model.pretrained_cfg}
    model.default_cfg = model.pretrained_cfg
    return model.eval()


def create_pretrained(weights: TimmWeights, arguments: Mapping[str, Any]) -> tuple[Any, LoadedBy]:
    """Return a timm model with these weights, and whether they were told apart by name or by position.

    Foreign names are accepted where the number of tensors and every shape agree with the architecture's own order.

    Raises:
        RecipeError: the architecture does not take one of the arguments.
        DataError: the weights do not fit.
    """
    try:
        return _fill(weights, arguments), "name"
    except MISFIT as error:
        if weights.settings is not None:  # a folder that says what it is: its names are timm's
            raise DataError(f"these weights do not fit {weights.architecture}: {first_line(error)}") from error
    with torch.device("meta"):
        wanted = create_model(weights.architecture, weights.num_classes, {}).state_dict()
    _check_positions(weights, wanted)
    renamed = replace(weights, state=dict(zip(wanted, weights.state.values(), strict=True)))
    try:
        return _fill(renamed, arguments), "position"
    except MISFIT as error:
        raise DataError(f"these weights do not fit {weights.architecture}: {first_line(error)}") from error


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Check what a folder says of its timm model, before timm reads it as an address or as a place of weights.

    Raises:
        DataError: timm has no such architecture, or the arguments name weights elsewhere.
    """
    try:
        check_architecture(str(config.get("architecture")))
    except RecipeError as error:
        raise DataError(f"config.json of {path.name}: {error}") from error
    foreign = NOT_OF_A_FOLDER.intersection(config.get("model_args") or ())
    if foreign:
        raise DataError(
            f"config.json of {path.name}: model_args.{min(foreign)} is not about the architecture; weights are read "
            "from this folder alone. Remove the line"
        )


def read_folder(path: Path, config: Mapping[str, Any]) -> TimmWeights:
    """Read a folder that timm or transformers' TimmWrapper wrote.

    Raises:
        DataError: it holds no such weights, or they are not for images of three channels.
    """
    check_config(path, config)
    settings = dict(config.get("pretrained_cfg") or config)
    arguments = {
        key: value
        for key, value in (config.get("model_args") or {}).items()
        if key not in ("num_classes", "drop_rate", "drop_path_rate", "in_chans")
    }
    channels = (config.get("model_args") or {}).get("in_chans", settings.get("input_size", (3,))[0])
    if channels != 3:
        raise DataError(f"{path.name} reads images of {channels} channels; the backbone must read 3 (RGB)")
    files = [path / f"{stem}{suffix}" for suffix in WEIGHT_SUFFIXES for stem in ("model", "pytorch_model")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise DataError(f"{path.name} has a config.json but no model.safetensors or pytorch_model.bin")
    state = {name.removeprefix("timm_model."): tensor for name, tensor in read_state(file).items()}
    num_classes = config.get("num_classes", settings.get("num_classes", 1000))
    kept = {key: settings.get(key) for key in KEPT_SETTINGS if key in settings or key.startswith("test_")}
    names = _class_names(config, settings, num_classes)
    return TimmWeights(config["architecture"], state, num_classes, names, arguments, kept)


def read_file(path: Path, architecture: str) -> TimmWeights:
    """Read a bare weights file of an architecture that timm knows.

    Raises:
        RecipeError: timm does not know it.
        DataError: the file holds no tensors.
    """
    classifier = timm.get_pretrained_cfg(check_architecture(architecture)).classifier
    state = read_state(path)
    # A head has the last tensors of a model, whatever their names are.
    head = state.get(f"{classifier}.weight", list(state.values())[-1])
    return TimmWeights(architecture, state, head.shape[0] if head.ndim else 0)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file; code in pickles is never run.

    Raises:
        DataError: it cannot be read, or holds anything else.
    """
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except UNREADABLE as error:
        raise DataError(f"cannot read weights from {path.name}: {first_line(error)}") from error
    if not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise DataError(f"{path.name} is not a state dict; save model.state_dict() and nothing else")
    return dict(state)


def output_layers(model: Any, architecture: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the layers that give the logits, which are linear in the weights of all of them together.

    They are those whose shapes change with the number of classes, found on a weightless copy.

    Raises:
        DataError: there is none.
    """
    with torch.device("meta"):
        wider = create_model(architecture, getattr(model, "num_classes", 0) + 1, arguments)
    shapes = {name: parameter.shape for name, parameter in wider.named_parameters()}
    changed = [name for name, own in model.named_parameters() if shapes.get(name, own.shape) != own.shape]
    if not changed:
        raise _no_output_layer(model)
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in changed))


def head_modules(model: Any) -> tuple[str, ...]:
    """Return the names of the modules that ``replace_head`` makes anew; items instead of lists, which peft refuses."""
    classifier = model.get_classifier()
    parts = classifier if isinstance(classifier, tuple) else (classifier,)
    heads = [head for part in parts for head in (part if isinstance(part, nn.ModuleList) else (part,))]
    return tuple(name for name, module in model.named_modules() if any(module is head for head in heads))


def replace_head(model: Any, num_classes: int, arguments: Mapping[str, Any]) -> None:
    """Give the model a new head; pooling and the number of heads stay as they are.

    Raises:
        DataError: the architecture has none.
    """
    if not hasattr(model, "reset_classifier"):
        raise _no_output_layer(model)
    kept = {"global_pool": arguments["global_pool"]} if "global_pool" in arguments else {}
    if getattr(getattr(model, "head", None), "distillation", False):  # RepViT and iFormer drop their second head
        kept["distillation"] = True
    model.reset_classifier(num_classes, **kept)


def parameter_groups(model: Any) -> list[list[str]]:
    """Return parameter names by depth from the stem up: as timm's own layer decay groups them, else by child."""
    if hasattr(model, "group_matcher"):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=False))
        return [groups[index] for index in sorted(groups)]
    by_child: dict[str, list[str]] = {"": []}
    for name, _ in model.named_parameters():
        child = re.match(r"(\w+\.\d+|\w+)\.", name)
        by_child.setdefault(child[1] if child else "", []).append(name)  # the model's own, as positions, join the stem
    own, stem, *rest = by_child.values()
    return [own + stem, *rest]


def _fill(weights: TimmWeights, arguments: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = create_model(
        weights.architecture, weights.num_classes, arguments, settings=weights.settings, state=weights.state
    )
    return model


def _no_output_layer(model: nn.Module) -> DataError:
    return DataError(f"{type(model).__name__} has no output layer; choose another architecture")


def _check_positions(weights: TimmWeights, wanted: Mapping[str, torch.Tensor]) -> None:
    counts = f"{len(weights.state)} tensors against {len(wanted)}"
    for (name, tensor), (own_name, own) in zip(weights.state.items(), wanted.items(), strict=False):
        if tensor.shape != own.shape:
            raise DataError(
                f"the weights do not fit model.architecture {weights.architecture} ({counts}), by name or by position; "
                f"first difference: {name} {list(tensor.shape)} in the file, {own_name} {list(own.shape)} in timm"
            )
    if len(weights.state) != len(wanted):
        raise DataError(f"the weights do not fit model.architecture {weights.architecture}: {counts} in timm")


def _class_names(config: Mapping[str, Any], settings: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The names that transformers would show: those of the folder, or ImageNet's where the weights come from it."""
    names = config.get("label_names") or settings.get("label_names")
    if not names and (subset := timm.data.infer_imagenet_subset(dict(config))):
        info = timm.data.ImageNetInfo(subset)
        descriptions = info.label_descriptions(as_dict=True)
        names = [descriptions[synset] for synset in info.label_names()]
    return tuple(names) if names and len(names) == num_classes else ()


def first_line(error: BaseException) -> str:
    """Return the start of a library's message, to be quoted in one of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__
