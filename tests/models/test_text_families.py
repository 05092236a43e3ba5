"""Every architecture of texts that people use, trained and saved: plain transformers gives the same for a text alone.

Six are tried in each run of the tests; all of them with ``bash scripts/nightly.sh``.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from doubles.reviews import review_rows
from doubles.text_families import FAMILIES, save_family
from hftoolkit.commands.finetune import fit_setup
from hftoolkit.commands.setup import prepare
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.models.lora import is_lora, merge, save_adapter
from hftoolkit.recipe import load_recipe
from hftoolkit.runs.directory import RunDir
from hftoolkit.train.distributed.strategy import WHOLE

pytestmark = pytest.mark.slow

METHODS = ("full", "lora", "linear-probe")
ALWAYS = ("roberta", "deberta-v2", "xlnet", "bart", "gpt2", "qwen2")
REFUSED = {  # family and method -> what the refusal names
    **{("fnet", method): r"reads padding as if it were text .*model\.backbone" for method in METHODS},
    ("squeezebert", "lora"): r"no layer that an adapter fits; use tuning\.method: full",
    ("ibert", "lora"): r"no layer that an adapter fits; use tuning\.method: full",
}
FINDS_END_TOKENS = {"t5", "mt5"}  # written out in texts, by SentencePiece: such texts are refused
DEPEND_ON_PADDING = {"convbert", "mobilebert"}  # the run says so
RECIPE = """\
task: {{kind: text-classification}}
data: {{source: {table}, columns: {{text: text, label: label}}}}
model: {{backbone: {backbone}, max_length: 16}}
tuning: {{method: {method}}}
train: {{epochs: 1, batch_size: 8, learning_rate: 5.0e-3, precision: fp32}}
"""
# Tokens that mean something to one tokenizer or the other, written out.
NAMES = ("bad", "fine", "good")
ODD_TEXTS = ("good </s> word1", "bad [SEP] word2 <|endoftext|>", "fine <pad> word3 [PAD]", "good <s> </s> </s>")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in ALWAYS else pytest.mark.nightly) for name in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(family)
    save_family(family, path / "backbone")
    rows = [*review_rows(60), *((text, text.split()[0]) for text in odd_texts(family))]
    with (path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.mark.parametrize("method", METHODS)
def test_plain_transformers_gives_what_was_trained_for_each_text_alone(
    family: str, folder: Path, method: str, tmp_path: Path
) -> None:
    recipe = folder / f"{method}.yaml"
    table, backbone = folder / "table.csv", folder / "backbone"
    recipe.write_text(RECIPE.format(table=table, backbone=backbone, method=method), encoding="utf-8")
    if (family, method) in REFUSED:
        with pytest.raises((DataError, RecipeError), match=REFUSED[family, method]):
            prepare(load_recipe(recipe), lambda _: None)
        return
    said: list[str] = []
    setup = prepare(load_recipe(recipe), lambda event: said.append(str(event)))
    assert (family in DEPEND_ON_PADDING) == any("depend on how far" in text for text in said)
    assert sum("validation has" in text and "too few to choose" in text for text in said) == 1
    fit_setup(setup, RunDir.create("run", tmp_path / "run"), WHOLE, lambda event: said.append(str(event)))
    model = setup.tuned.model.eval()
    texts = [row.text for row in setup.dataset.splits["test"]] + odd_texts(family)
    expected = dict(zip(texts, answers(setup, texts), strict=True))
    if is_lora(model):
        save_adapter(model, tmp_path / "adapter", base="some/backbone")
        setup.save_base(tmp_path / "base")
        base = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True
        )
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
        check(family, expected, dict(zip(texts, plain(adapted, tokenizer, texts), strict=True)))
        model = merge(model)
    setup.task.save(model, tmp_path / "model")
    ask = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None)
    found = {text: {answer["label"]: answer["score"] for answer in ask([text], truncation=True)[0]} for text in texts}
    check(family, expected, {text: np.array([by_name[name] for name in NAMES]) for text, by_name in found.items()})


def odd_texts(family: str) -> list[str]:
    return [text for text in ODD_TEXTS if family not in FINDS_END_TOKENS or "</s>" not in text]


def answers(setup, texts: list[str]) -> list[np.ndarray]:
    """Return the probabilities of each text, of a batch of all of them."""
    rows = setup.task.inputs(texts).read(0, len(texts))
    outputs = setup.infer(setup.tuned.model, setup.task.encode(rows), full_precision=True)
    return [np.array([answer.probabilities[name] for name in NAMES]) for answer in setup.task.answers(outputs, rows)]


def plain(model, tokenizer, texts: list[str]) -> Iterator[np.ndarray]:
    for text in texts:
        with torch.inference_mode():
            yield model(**tokenizer(text, truncation=True, return_tensors="pt")).logits.softmax(-1)[0].numpy()


def check(family: str, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    assert len(expected) > len(ODD_TEXTS) + 2
    worst = max(float(np.abs(found[text] - expected[text]).max()) for text in expected)
    assert worst <= (0.05 if family in DEPEND_ON_PADDING else 1e-4)
    assert any(np.ptp(list(found.values()), axis=0) > 1e-4)  # not the same answer for every text
