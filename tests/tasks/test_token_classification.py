import csv
import json
from pathlib import Path

import pytest

import hftoolkit
from doubles.commands import hft, read_json, refused
from doubles.entities import TOKEN_RECIPE, write_sentences
from hftoolkit.commands.setup import prepare
from hftoolkit.contracts import Examples
from hftoolkit.data.token_rows import EntityTypes, SpanText
from hftoolkit.recipe import load_recipe
from hftoolkit.tasks.token_classification import WordTag

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory, lively_backbone: Path) -> Path:
    """A finished run; its output is beside it."""
    folder = tmp_path_factory.mktemp("tokens")
    table = write_sentences(folder / "sentences.jsonl")
    recipe = folder / "tokens.yaml"
    recipe.write_text(TOKEN_RECIPE.format(table=table, backbone=lively_backbone, length=32))
    ended = hft("finetune", recipe, "--run-dir", folder / "run")
    assert ended.code == 0, ended
    (folder / "stdout.txt").write_text(ended.out)
    return folder / "run"


def setup_of(tmp_path: Path, backbone: Path, length: int = 32, words: int = 8):
    table = write_sentences(tmp_path / "sentences.jsonl", length=words)
    recipe = tmp_path / "tokens.yaml"
    recipe.write_text(TOKEN_RECIPE.format(table=table, backbone=backbone, length=length))
    return prepare(load_recipe(recipe), lambda event: None)


def test_entities_are_found_and_beat_a_dictionary(run: Path):
    results = read_json(run / "results.json")
    assert results["test"]["metrics"]["f1"] > 0.8
    assert results["baselines"]["dictionary"]["metrics"]["f1"] < results["test"]["metrics"]["f1"]
    assert results["gate"]["saved"] <= 1e-5
    shown = (run.parent / "stdout.txt").read_text()
    assert "entity F1" in shown and "entity types: person, place" in shown
    assert (run / "report" / "entities.png").stat().st_size > 1000


def test_predictions_are_characters_of_the_text_and_those_of_a_plain_pipeline(run: Path, tmp_path: Path):
    from transformers import pipeline

    plain = pipeline("token-classification", model=str(run / "model"), aggregation_strategy="first")
    texts = ["word9 good word2 word1 word8", "bad word4 word7 good word3 word3"]
    for text, found in zip(texts, hftoolkit.load(run).predict(texts), strict=True):
        assert found and all(text[entity.start : entity.end] == entity.text for entity in found)
        expected = [(item["entity_group"], item["start"], item["end"]) for item in plain(text)]
        assert [(entity.type, entity.start, entity.end) for entity in found] == expected
    source = tmp_path / "texts.csv"
    source.write_text("text\n" + "\n".join(texts) + "\n")
    ended = hft("predict", run, source)
    assert ended.code == 0, ended
    rows = list(csv.DictReader(ended.out.splitlines()))
    assert [row["row"] for row in rows] == ["1", "2"]
    for row, text, found in zip(rows, texts, hftoolkit.load(run).predict(texts), strict=True):
        assert [item["text"] for item in json.loads(row["entities"])] == [entity.text for entity in found]
        assert all(text[item["start"] : item["end"]] == item["text"] for item in json.loads(row["entities"]))


def test_evaluate_gives_the_same_again(run: Path):
    ended = hft("evaluate", run)
    assert ended.code == 0, ended
    expected = read_json(run / "results.json")["test"]["metrics"]["f1"]
    assert f"{expected:.3f}" in ended.out


def test_windows_cover_a_long_text_and_joining_them_keeps_the_one_with_more_context(
    tmp_path: Path, lively_backbone: Path
):
    setup = setup_of(tmp_path, lively_backbone, length=12, words=30)
    examples, rows = setup.learner.examples("train"), setup.dataset.splits["train"]
    assert isinstance(examples, Examples) and len(examples) > 2 * len(rows)
    assert max(len(window.token_ids) for window in examples.items) <= 12
    for place, row in enumerate(rows):
        words = {
            word[1:]
            for own, item in zip(examples.owners, examples.items, strict=True)
            if own == place
            for word in item.words
        }
        assert [row.text[start:end] for start, end in sorted(words)] == row.text.split()
    few, many = WordTag(0, 3, 1, 0.9, 1), WordTag(0, 3, 2, 0.5, 4)
    assert setup.task.join([[few], [many]], rows[0]) == [many] == setup.task.join([[many], [few]], rows[0])


def test_the_loss_is_a_mean_over_words_however_a_step_is_cut(tmp_path: Path, lively_backbone: Path):
    setup = setup_of(tmp_path, lively_backbone)
    items = setup.learner.examples("train").items[:8]
    model = setup.tuned.model.eval()

    def loss(chosen):
        return setup.learner.loss(model, setup.learner.collate(chosen, training=True))

    whole, parts = loss(items), [loss(items[:3]), loss(items[3:])]
    assert whole.weight == sum(part.weight for part in parts) == sum(len(item.words) for item in items)
    assert whole.num_examples == 8
    assert whole.loss_sum.item() == pytest.approx(sum(part.loss_sum.item() for part in parts), rel=1e-5)


@pytest.mark.parametrize("tags", ["B-person I-person O", "B-person E-person O", "person person O"])
def test_words_with_tags_of_any_scheme_become_spans(tags: str, tmp_path: Path, lively_backbone: Path):
    table = tmp_path / "words.csv"
    table.write_text("words,tags\n" + "".join(f"word{i} word2 word7,{tags}\n" for i in range(20)))
    recipe = tmp_path / "tokens.yaml"
    text = TOKEN_RECIPE.format(table=table, backbone=lively_backbone, length=32)
    recipe.write_text(text.replace("{text: text, spans: spans}", "{words: words, tags: tags}"))
    said = []
    setup = prepare(load_recipe(recipe), said.append)
    assert setup.dataset.schema == EntityTypes(("person",))
    assert {row.spans for row in setup.dataset.splits["train"]} <= {(("person", 0, 11),), (("person", 0, 12),)}
    assert any("tags are read as" in getattr(event, "text", "") for event in said)


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ('{"text": "good word1", "spans": [[5, 99, "person"]]}', "a span lies outside of its text"),
        ('{"text": "good word1", "spans": [[5, 5, "person"]]}', "a span lies outside of its text"),
        ('{"text": "good word1", "spans": "person"}', "spans are no list"),
        ('{"text": "", "spans": []}', "text is empty"),
    ],
)
def test_bad_rows_are_listed_before_anything_is_trained(line, fragment, tmp_path: Path, lively_backbone: Path):
    table = write_sentences(tmp_path / "sentences.jsonl")
    table.write_text(table.read_text() + line + "\n")
    recipe = tmp_path / "tokens.yaml"
    recipe.write_text(TOKEN_RECIPE.format(table=table, backbone=lively_backbone, length=32))
    refused(hft("finetune", recipe, "--dry-run"), 3, fragment, "row 181", "data.on_bad_rows: skip")


def test_columns_that_do_not_go_together_are_refused(tmp_path: Path, lively_backbone: Path):
    recipe = tmp_path / "tokens.yaml"
    text = TOKEN_RECIPE.format(table="t.jsonl", backbone=lively_backbone, length=32)
    recipe.write_text(text.replace("{text: text, spans: spans}", "{text: text, tags: tags}"))
    refused(hft("finetune", recipe, "--dry-run"), 2, "name text and spans, or words and tags")


def test_a_text_without_entities_is_an_answer_too(run: Path):
    assert hftoolkit.load(run / "model").predict(["word9 word8"]) == [()]
    assert SpanText("a").spans is None
