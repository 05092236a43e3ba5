"""Reload an exported model as a stranger would. Run by path: ``python -I fresh_process.py REQUEST ANSWER``.

hftoolkit is made impossible to import first, so nothing of it can help.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch

sys.modules["hftoolkit"] = None  # type: ignore[assignment]  # from here on, importing it raises ImportError


def main(request_path: str, answer_path: str) -> None:
    """Predict the rows of the request with plain libraries, and with plain peft if there is an adapter."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    load, predict = text_model(request) if "texts" in request else image_model(request)
    model = load(request["model"])
    names = [model.config.id2label[index] for index in range(len(model.config.id2label))]
    answer: dict[str, Any] = {"labels": names, "logits": {"transformers": predict(model)}}
    if hasattr(model, "timm_model"):
        import timm

        plain = timm.create_model(f"local-dir:{request['model']}", pretrained=True)
        answer["logits"]["timm"] = predict(plain)
    if request["adapter"]:
        from peft import PeftModel

        base = load(request["backbone"], num_labels=request["num_labels"], ignore_mismatched_sizes=True)
        answer["adapter_logits"] = predict(PeftModel.from_pretrained(base, request["adapter"]))
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def text_model(request: Any) -> tuple[Callable[..., Any], Callable[[Any], list[list[float]]]]:
    """Return how to load a text classifier, and how to get its logits of the texts."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    inputs = tokenizer(request["texts"], truncation=True, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    load = partial(AutoModelForSequenceClassification.from_pretrained, dtype=torch.float32)
    return load, lambda model: logits(model, **inputs)


def image_model(request: Any) -> tuple[Callable[..., Any], Callable[[Any], list[list[float]]]]:
    """Return how to load an image classifier, and how to get its logits of normalized images, (N, 3, H, W)."""
    from transformers import AutoModelForImageClassification

    pixels = torch.from_numpy(numpy.load(request["pixel_values"]))
    load = partial(AutoModelForImageClassification.from_pretrained, dtype=torch.float32)

    def predict(model: Any) -> list[list[float]]:
        return logits(model, pixel_values=pixels) if hasattr(model, "config") else logits(model, pixels)

    return load, predict


def logits(model: Any, *inputs: Any, **named: Any) -> list[list[float]]:
    """Return the logits of each row, in eval mode."""
    with torch.inference_mode():
        output = model.eval()(*inputs, **named)
    result: list[list[float]] = getattr(output, "logits", output).float().tolist()
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
