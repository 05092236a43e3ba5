"""Model folders that may come from anybody: what they may ask for, and whose fault it is when one cannot be loaded."""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hftoolkit.errors import DataError

ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
# What libraries raise where a file holds other values than they count on. While a folder is read, bugs of ours look
# like that, too; --verbose shows the traceback of each.
UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, TypeError, ValueError, SafetensorError, pickle.PickleError),
)
LIBRARIES = ("huggingface_hub", "tokenizers", "transformers")  # have exceptions of their own, which are none of these
LONGEST_REASON = 300  # characters


def check_config(folder: Path) -> None:
    """Check that config.json of a folder, if there is one, asks for nothing that is not to be loaded.

    Raises:
        DataError: it is damaged, or asks for code of the Hub or for quantized weights.
    """
    file = folder / "config.json"
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"config.json of {folder.name} cannot be read: {error}; fetch the model again") from error
    if not isinstance(config, dict):
        raise DataError(f"config.json of {folder.name} holds no JSON object; fetch the model again")
    for name, value in _settings(config):
        if name == "quantization_config" and value:
            method = value.get("quant_method", "unknown") if isinstance(value, Mapping) else value
            raise DataError(
                f"the weights of {folder.name} are quantized ({method}, says quantization_config in config.json), and "
                "those can be neither trained nor exported here; name the model that was not quantized"
            )
        if name in ATTENTION and any("/" in part for part in _texts(value)):
            raise DataError(
                f"config.json of {folder.name} asks for {name}: {value}, which is code of the Hub and is not fetched; "
                f"remove {name} from it if you trust the rest"
            )


def blames_files(error: Exception) -> bool:
    """Return whether an error that a library raised while it read a folder says that its files are bad."""
    library = type(error).__module__.partition(".")[0]
    # The tokenizers library raises Exception itself.
    return isinstance(error, UNREADABLE) or library in LIBRARIES or type(error) is Exception


def reason_of(error: Exception) -> str:
    """Return the first sentence of what a library says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    shown = lines[0] if not lines[0].endswith(":") or len(lines) == 1 else f"{lines[0]} {lines[1]}"
    return shown[:LONGEST_REASON]


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield all settings, also those of the parts that a model is put together from."""
    for name, value in config.items():
        yield name, value
        if isinstance(value, Mapping):
            yield from _settings(value)


def _texts(value: Any) -> list[str]:
    """Return the texts in a setting that may be one, or one for each part of a model."""
    if isinstance(value, Mapping):
        return [text for each in value.values() for text in _texts(each)]
    return [value] if isinstance(value, str) else []
