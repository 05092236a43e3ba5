"""Encode texts with an item tower as a stranger would. Run by path: ``python -I fresh_tower.py REQUEST ANSWER``.

hftoolkit is made impossible to import first, so nothing of it can help.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.modules["hftoolkit"] = None  # type: ignore[assignment]  # from here on, importing it raises ImportError


def main(request_path: str, answer_path: str) -> None:
    """Encode with plain transformers, with sentence-transformers where that is installed, and with peft's adapter."""
    from transformers import AutoModel

    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    folder, texts = Path(request["model"]), request["texts"]
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    answer = {"transformers": encode(model, folder, texts)}
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        answer["sentence-transformers"] = SentenceTransformer(str(folder), device="cpu").encode(texts).tolist()
    if request["adapter"]:
        from peft import PeftModel

        base = AutoModel.from_pretrained(request["backbone"], dtype=torch.float32)
        answer["peft"] = encode(PeftModel.from_pretrained(base, request["adapter"]), folder, texts)
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def encode(model: Any, folder: Path, texts: list[str]) -> list[list[float]]:
    """Return the vector of each text: mean of the outputs, the affine map if there is one, length 1."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        states = model.eval()(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        vectors = (states * mask).sum(dim=1) / mask.sum(dim=1)
        dense = folder / "2_Dense" / "model.safetensors"
        if dense.is_file():
            affine = load_file(dense)
            vectors = vectors @ affine["linear.weight"].T + affine["linear.bias"]
        result: list[list[float]] = torch.nn.functional.normalize(vectors, dim=-1).tolist()
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
