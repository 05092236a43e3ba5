"""Reload an exported model as a stranger would. Run by path: ``python -I fresh_process.py REQUEST ANSWER``.

hftoolkit is made impossible to import first, so nothing of it can help.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

sys.modules["hftoolkit"] = None  # type: ignore[assignment]  # from here on, importing it raises ImportError

PROCESSOR_TOLERANCE = 1e-6  # on floating-point tensors


def main(request_path: str, answer_path: str) -> None:
    """Run the model of the request on its tensors with plain libraries, and plain peft where there is an adapter."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    tensors, folder = load_file(request["tensors"]), Path(answer_path).parent
    load = partial(getattr(transformers, request["auto_class"]).from_pretrained, dtype=torch.float32)
    model = load(request["model"])
    found = {"transformers": run(model, tensors, request["outputs"])}
    if hasattr(model, "timm_model"):
        import timm

        plain = timm.create_model(f"local-dir:{request['model']}", pretrained=True).eval()
        with torch.inference_mode():
            found["timm"] = {"logits": plain(tensors["pixel_values"])}
    if request["adapter"]:
        from peft import PeftModel

        head = {"num_labels": request["num_labels"], "ignore_mismatched_sizes": True} if request["num_labels"] else {}
        base = load(request["backbone"], **head)
        found["adapter"] = run(PeftModel.from_pretrained(base, request["adapter"]), tensors, request["outputs"])
    for who, outputs in found.items():
        save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, folder / f"{who}.safetensors")
    answer = {
        "names": [model.config.id2label[index] for index in range(len(model.config.id2label or {}))],
        "outputs": {who: str(folder / f"{who}.safetensors") for who in found},
        "processor": list(differences(request, tensors)) if request["processor"] else [],
        "pipeline": list(other_answers(model, request)) if request["pipeline"] else [],
    }
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def run(model: Any, tensors: dict[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
    """Return the named outputs of a model in eval mode, float32."""
    with torch.inference_mode():
        output = model.eval()(**tensors)
    return {name: output[name].float() for name in names if name in output}


def differences(request: Any, tensors: dict[str, torch.Tensor]) -> Iterator[str]:
    """Yield how what the processor makes of the raw rows differs from the tensors that the model was trained on."""
    processor = getattr(transformers, request["processor"]).from_pretrained(request["model"])
    made = processor(**request["raw"], return_tensors="pt")
    for name, tensor in tensors.items():
        if name not in made:
            yield f"it gives no {name}"
        elif made[name].shape != tensor.shape:
            yield f"{name} has the shape {list(made[name].shape)}, trained was {list(tensor.shape)}"
        elif not (close := (made[name].double() - tensor.double()).abs() <= PROCESSOR_TOLERANCE).all():  # no NaN is
            row = int(close.logical_not().nonzero()[0, 0])
            yield f"{name} differs, first in row {row + 1} of {len(tensor)}"


def other_answers(model: Any, request: Any) -> Iterator[str]:
    """Yield where transformers' pipeline answers otherwise than the model was trained to."""
    from transformers import AutoTokenizer

    check = request["pipeline"]
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    ask = transformers.pipeline(check["task"], model=model, tokenizer=tokenizer, **check["options"])
    for text, expected in zip(check["inputs"], request["answers"], strict=True):
        found = [[item[key] for key in check["keys"]] for item in ask(text)]
        if found != expected:
            yield f"a plain pipeline finds {found} in {text!r:.60}, the trained model {expected}"
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
