"""Reload an exported model as a stranger would. Run by path: ``python -I fresh_process.py REQUEST ANSWER``.

hftoolkit is made impossible to import first, so nothing of it can help.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.modules["hftoolkit"] = None  # type: ignore[assignment]  # from here on, importing it raises ImportError


def main(request_path: str, answer_path: str) -> None:
    """Predict the texts of the request with plain transformers, and with plain peft if there is an adapter."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    model = AutoModelForSequenceClassification.from_pretrained(request["model"], dtype=torch.float32)
    names = [model.config.id2label[index] for index in range(len(model.config.id2label))]
    answer = {"labels": names, "logits": predict(model, tokenizer, request["texts"])}
    if request["adapter"]:
        from peft import PeftModel

        base = AutoModelForSequenceClassification.from_pretrained(
            request["backbone"], num_labels=request["num_labels"], dtype=torch.float32, ignore_mismatched_sizes=True
        )
        adapted = PeftModel.from_pretrained(base, request["adapter"])
        answer["adapter_logits"] = predict(adapted, tokenizer, request["texts"])
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def predict(model: Any, tokenizer: Any, texts: list[str]) -> list[list[float]]:
    """Return the logits of each text, in eval mode."""
    model.eval()
    with torch.inference_mode():
        inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        logits: list[list[float]] = model(**inputs).logits.float().tolist()
    return logits


if __name__ == "__main__":
    main(*sys.argv[1:])
