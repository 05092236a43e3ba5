"""Recommendation from the command line: one small run, and what users do with it."""

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import hftoolkit
from doubles.commands import Ended, hft, read_json, refused
from doubles.recommend_tables import NUM_ITEMS, RECIPE, kind_of, write_csv, write_world
from hftoolkit.cli import render
from hftoolkit.errors import DataError, EnvironmentFault
from hftoolkit.recipe import load_recipe
from hftoolkit.recommend import tower as item_tower
from hftoolkit.recommend.factors import fill_in_factors, item_features, similarities
from hftoolkit.recommend.job import load_splits
from hftoolkit.recommend.predictor import RecommendationPredictor
from hftoolkit.recommend.recommender import Recommender
from hftoolkit.recommend.scorers import Factors, TextVectors

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 120
QUICK = ("--set", "train.epochs=1", "--set", "evaluation.baselines=false", "--set", "fusion.parts=[text, popularity]")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, lively_backbone: Path) -> Path:
    """A folder with tables and ``tiny.yaml``."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    (folder / "tiny.yaml").write_text(RECIPE.format(folder=folder, backbone=lively_backbone), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    """A finished run; its output is in ``stdout.txt`` beside it."""
    with chdir(world):
        ended = hft("finetune", "tiny.yaml")
    assert ended.code == 0, ended
    (world / "stdout.txt").write_text(ended.out, encoding="utf-8")
    return world / "runs" / "tiny"


def log_of(world: Path) -> dict[str, list[str]]:
    """Return the items of each user by time."""
    with (world / "log.csv").open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["when"]))
    users = dict.fromkeys(row["who"] for row in rows)
    return {user: [row["what"] for row in rows if row["who"] == user] for user in users}


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def listed(run: Path, *arguments: str) -> list[str]:
    """Return the item ids that ``recommend`` shows."""
    ended = hft("recommend", run, *arguments)
    assert ended.code == 0, ended
    cells = [[cell.strip() for cell in line.split("\u2502")] for line in ended.out.splitlines() if "\u2502" in line]
    return [cell[2] for cell in cells]


def test_a_run_ends_with_a_table_of_ours_next_to_baselines_on_the_same_split(run: Path, world: Path) -> None:
    shown = (world / "stdout.txt").read_text(encoding="utf-8")
    rows = [
        "sum of parts",
        "ease",
        "popularity",
        "recent-popularity",
        "item-knn",
        "slit",
        "ials",
        "frozen-text",
        "text",
    ]
    for name in (*rows, "sum without text", "sum with frozen text", "text over frozen-text"):
        assert name in shown
    results = read_json(run / "results.json")
    assert set(results["baselines"]) >= set(rows[1:])
    assert results["test"]["examples"] == 60
    assert results["baselines"]["text"]["metrics"]["ndcg"] > results["baselines"]["frozen-text"]["metrics"]["ndcg"]
    assert results["chosen"]["ease"].keys() == {"ease_regularization", "ease_recency"}
    assert "the best of 4 choices on validation" in shown
    assert read_json(run / "data.json")["protocol"] == "leave-one-out"
    assert read_json(run / "status.json")["state"] == "done"
    for name, row in results["baselines"].items():
        lead = results["test"]["metrics"]["ndcg"] - row["metrics"]["ndcg"]
        assert row["difference"]["ndcg"][0] == pytest.approx(lead, abs=1e-9), name
        assert row["difference"]["ndcg"][1] <= lead <= row["difference"]["ndcg"][2]


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_recommender(run: Path, world: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    command = [sys.executable, "-m", "hftoolkit", "finetune", world / "tiny.yaml", "--run-dir", again]
    process = subprocess.Popen(command, cwd=world, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    start = time.monotonic()
    while not (again / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() - start < PATIENCE_SECONDS, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130 and "--resume" in err, err
    with chdir(world):
        refused(
            hft("finetune", "tiny.yaml", "--run-dir", again, "--resume", "--set", "train.seed=9"),
            2,
            "train.seed: 0 -> 9",
        )
        ended = hft("finetune", "tiny.yaml", "--run-dir", again, "--resume")
    assert ended.code == 0 and "resumed after step" in ended.out, ended
    files = sorted(path.relative_to(run) for path in run.glob("model/**/*.safetensors"))
    assert len(files) >= 2
    for file in files:
        whole, resumed = load_file(run / file), load_file(again / file)
        assert whole.keys() == resumed.keys()
        for name, tensor in whole.items():
            np.testing.assert_array_equal(tensor, resumed[name], err_msg=f"{file} {name}")


def test_the_reported_hit_rate_is_that_of_the_written_lists(run: Path, world: Path) -> None:
    log = log_of(world)
    lists: dict[str, list[str]] = {}
    for row in rows_of((run / "predictions" / "test.csv").read_text(encoding="utf-8")):
        lists.setdefault(row["user"], []).append(row["item"])
        assert row["chosen"] == str(row["item"] == log[row["user"]][-1])
    assert {len(items) for items in lists.values()} == {5}
    for user, items in lists.items():
        assert set(items).isdisjoint(log[user][:-1])
    hits = np.mean([log[user][-1] in items for user, items in lists.items()])
    assert read_json(run / "results.json")["test"]["metrics"]["hr"] == pytest.approx(hits)


def test_a_report_makes_lists_and_card_again(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    made = [Path("predictions", "test.csv"), Path("model", "README.md")]
    for path in made:
        (copy / path).unlink()
    ended = hft("report", copy)
    assert ended.code == 0 and "sum of parts" in ended.out, ended
    assert [path for path in made if (copy / path).read_bytes() != (run / path).read_bytes()] == []


def test_the_tower_is_laid_out_for_sentence_transformers_and_the_gate_says_so(run: Path) -> None:
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((run / "model" / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]  # the layer subtracts the center
    gate = read_json(run / "results.json")["gate"]
    assert gate["rows"] == NUM_ITEMS and gate["vectors"]["transformers"] < 1e-5
    assert gate["vectors"]["sentence-transformers"] < 1e-5
    users = json.loads((run / "users" / "users.json").read_text())
    inside = "".join(path.read_text() for path in (run / "model").rglob("*.json"))
    assert users[0] == "u0" and '"u0"' not in inside  # who chose what is no part of a model that may be published
    assert (run / "model" / "README.md").read_text().startswith("---\n")


def test_a_user_gets_titles_that_are_new_to_them(run: Path, world: Path) -> None:
    items = listed(run, "--user", "u2")
    assert len(set(items)) == 10 and set(items).isdisjoint(log_of(world)["u2"])
    assert listed(run, "--user", "u2", "--top-k", "3") == items[:3]
    with_seen = listed(run, "--user", "u2", "--include-seen", "--top-k", "40")
    assert sorted(with_seen) == sorted(f"i{item}" for item in range(NUM_ITEMS))


def test_anybody_with_a_history_gets_what_is_of_its_kind(run: Path) -> None:
    items = listed(run, "--history", "i2,i6,i10,i14", "--top-k", "4")
    assert [kind_of(int(item[1:])) for item in items].count(2) >= 3


def test_candidates_are_the_only_choice(run: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("i1\ni5\n\ni30\n")
    assert set(listed(run, "--history", "i5", "--candidates", str(tmp_path / "some.txt"))) == {"i1", "i30"}
    (tmp_path / "some.txt").write_text("i1\nnone\n")
    refused(hft("recommend", run, "--history", "i5", "--candidates", tmp_path / "some.txt"), 3, "none")
    refused(hft("recommend", run, "--history", "i5", "--candidates", tmp_path / "no.txt"), 2, "no.txt")


def test_an_explanation_adds_up(run: Path) -> None:
    predictor = hftoolkit.load(run)
    assert isinstance(predictor, RecommendationPredictor)
    query = predictor.history(["i3", "i7", "i11"])
    (found,) = predictor.recommend(query, explain=True)
    for each in found:
        assert sum(each.parts.values()) == pytest.approx(each.score, abs=1e-5)
        assert set(each.parts) == {"text", "ease", "popularity", "groups", "attributes"}
    allowed = np.ones(NUM_ITEMS, dtype=bool)
    allowed[[3, 7, 11]] = False
    places = [int(each.item[1:]) for each in found]
    influences = predictor.recommender.influences(query, allowed, places)
    # Over the whole history, these are the parts that are sums over it, but for the bias of a text.
    text, ease = predictor.recommender.scorers["text"], predictor.recommender.scorers["ease"]
    plain = hftoolkit.recommend.recommender.Recommender(  # type: ignore[attr-defined]
        predictor.recommender.catalogue,
        {"text": type(text)(text.vectors, np.zeros_like(text.biases), text.temperature, text.recency), "ease": ease},
        predictor.recommender.weights[:2],
    )
    assert influences.sum(axis=0) == pytest.approx(plain.scores(query, allowed[None])[0, places], abs=1e-4)
    shown = hft("recommend", run, "--history", "i3,i7", "--explain").out
    assert "because of" in shown and "ease" in shown


def test_the_code_of_the_card_recommends_what_the_command_does(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[2].split("```")[0].replace("path/or/repository", str(run / "model"))
    assert re.findall(r"\bhftoolkit\.\w+", code) == ["hftoolkit.load"]  # nothing inside of the package
    exec(compile(code, "card", "exec"), {})
    titles = [line.rpartition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    predictor = hftoolkit.load(run)
    assert isinstance(predictor, RecommendationPredictor)
    (found,) = predictor.recommend(predictor.history(["i0", "i1", "i2"]))
    assert titles == [each.title for each in found]


def test_new_items_are_recommended_by_their_texts(run: Path, tmp_path: Path) -> None:
    new = [("n1", "good word2", 0, 1), ("n2", "bad word3", 0, 1)]
    table = write_csv(tmp_path / "new.csv", ("what", "title", "red", "blue"), new)
    history = ",".join(f"i{item}" for item in range(2, NUM_ITEMS, 4))  # all of kind 2, which is 'good'
    items = listed(run, "--history", history, "--new-items", str(table), "--top-k", "32")
    assert items.index("n1") < items.index("n2")
    assert items.index("n1") < 5
    items = listed(run, "--history", "n1", "--new-items", str(table), "--top-k", "10", "--explain")
    assert "n1" not in items and [kind_of(int(item[1:])) for item in items if item != "n2"].count(2) >= 5
    refused(hft("recommend", run, "--history", "n1"), 3, "not known: n1")
    write_csv(table, ("what", "title", "red", "blue"), [("i3", "known", 0, 0)])
    refused(hft("recommend", run, "--history", "i1", "--new-items", table), 3, "known already: i3")


def test_a_new_item_with_the_text_of_an_old_one_has_its_vector(run: Path, tmp_path: Path) -> None:
    with (run.parents[1] / "items.csv").open(encoding="utf-8") as file:
        first = next(iter(csv.DictReader(file)))
    table = write_csv(tmp_path / "new.csv", tuple(first), [("twin", *list(first.values())[1:])])
    predictor = hftoolkit.load(run)
    assert isinstance(predictor, RecommendationPredictor)
    text: Any = predictor.with_new_items(table).recommender.scorers["text"]
    assert text.vectors[-1] == pytest.approx(text.vectors[0], abs=1e-5)
    assert text.biases[-1] == pytest.approx(text.biases[0], abs=1e-4)


@pytest.mark.parametrize("exact", [True, False])
def test_an_index_finds_the_items_that_the_tower_ranks_first(run: Path, tmp_path: Path, exact: bool) -> None:
    import faiss

    predictor = hftoolkit.load(run)
    assert isinstance(predictor, RecommendationPredictor)
    predictor.export_index(tmp_path / "items.faiss", exact=exact)
    index = faiss.read_index(str(tmp_path / "items.faiss"))
    query = predictor.history(["i3", "i7", "i11"])
    scores, places = index.search(predictor.index_queries(query), 10)
    expected = predictor.recommender.scorers["text"].scores(query)[0]
    assert scores[0] == pytest.approx(np.sort(expected)[::-1][:10], abs=1e-4)
    ids = read_json(tmp_path / "items.faiss.json")
    assert [ids[place] for place in places[0]] == [f"i{place}" for place in np.argsort(-expected)[:10]]


def test_an_index_without_faiss_or_without_texts_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = hftoolkit.load(run)
    assert isinstance(predictor, RecommendationPredictor)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'hftoolkit\[faiss\]'"):
        predictor.export_index(tmp_path / "items.faiss")
    scorers = {name: scorer for name, scorer in predictor.recommender.scorers.items() if name != "text"}
    mute = replace(predictor, recommender=replace(predictor.recommender, scorers=scorers))
    with pytest.raises(DataError, match=r"no 'text' in fusion\.parts"):
        mute.export_index(tmp_path / "items.faiss")


def test_plain_sentence_transformers_gives_the_vectors_of_the_tower(run: Path) -> None:
    from sentence_transformers import SentenceTransformer

    predictor = hftoolkit.load(run)
    assert isinstance(predictor, RecommendationPredictor)
    text: Any = predictor.recommender.scorers["text"]
    vectors = SentenceTransformer(str(run / "model"), device="cpu").encode(list(predictor.recommender.catalogue.texts))
    np.testing.assert_allclose(vectors, text.vectors, atol=1e-5)


def test_all_users_get_the_lists_that_each_gets_alone(run: Path, tmp_path: Path) -> None:
    ended = hft("recommend", run, "--all-users", "--top-k", "4", "--output", tmp_path / "all.csv")
    assert (ended.code, ended.out) == (0, ""), ended
    rows = rows_of((tmp_path / "all.csv").read_text())
    assert len(rows) == 60 * 4
    assert [row["item"] for row in rows if row["user"] == "u7"] == listed(run, "--user", "u7", "--top-k", "4")
    assert hft("recommend", run, "--all-users", "--top-k", "4").out == (tmp_path / "all.csv").read_text()


def test_predict_reads_the_histories_of_new_users(run: Path, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "new.csv", ("who", "what", "when"), [("x", "i6", 2), ("x", "i2", 1), ("y", "i5", 1)])
    ended = hft("predict", run, table, "--top-k", 3)
    assert ended.code == 0, ended
    rows = rows_of(ended.out)
    assert [row["user"] for row in rows] == ["x"] * 3 + ["y"] * 3
    assert [row["item"] for row in rows if row["user"] == "x"] == listed(run, "--history", "i2,i6", "--top-k", "3")


def test_long_lists_tell_how_far_they_are_beside_the_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "PLAIN_PAUSE", 0.0)
    ended = hft("recommend", run, "--all-users", "--top-k", "4")
    assert ended.err.splitlines() == [f"inference: {users} of 60 examples" for users in range(7, 60, 7)]
    assert len(rows_of(ended.out)) == 60 * 4
    table = write_csv(tmp_path / "new.csv", ("who", "what", "when"), [(f"n{user}", "i6", 1) for user in range(9)])
    ended = hft("predict", run, table, "--top-k", "3")
    assert (ended.err, len(rows_of(ended.out))) == ("inference: 7 of 9 examples\n", 9 * 3)


def test_evaluate_gives_the_numbers_of_the_run(run: Path, world: Path) -> None:
    ended = hft("evaluate", run)
    assert ended.code == 0, ended
    assert f"{read_json(run / 'results.json')['test']['metrics']['ndcg']:.3f} [" in ended.out
    assert hft("evaluate", run, "--split", "validation").code == 0
    refused(hft("evaluate", run, "--split", "train"), 2, "validation or test")
    refused(hft("evaluate", run, "--data", world / "log.csv"), 2, "its own log")


def test_evaluate_refuses_a_log_that_has_changed(world: Path, run: Path) -> None:
    before = (world / "log.csv").read_text(encoding="utf-8")
    try:
        (world / "log.csv").write_text(before.rstrip().rpartition("\n")[0], encoding="utf-8")
        refused(hft("evaluate", run), 3, "has changed since the run")
    finally:
        (world / "log.csv").write_text(before, encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        ((), 2, "one of --user ID, --history ID,ID,... and --all-users"),
        (("--user", "u1", "--all-users"), 2, "one of --user"),
        (("--user", "u1", "--output", "x.csv"), 2, "--output goes with --all-users"),
        (("--user", "nobody"), 3, "no user 'nobody'"),
        (("--history", "i1,i99"), 3, "i99"),
    ],
)
def test_what_cannot_be_recommended_is_said(run: Path, arguments: tuple[str, ...], code: int, fragment: str) -> None:
    refused(hft("recommend", run, *arguments), code, fragment)


def test_classifiers_recommend_nothing(tiny_run: Path) -> None:
    refused(hft("recommend", tiny_run, "--user", "1"), 3, "text-classification", "hftoolkit predict")


def finetune(world: Path, name: str, *arguments: str) -> Ended:
    settings = [part for argument in arguments for part in ("--set", argument)]
    with chdir(world):
        return hft("finetune", "tiny.yaml", "--run-dir", name, *QUICK, *settings)


def test_a_dry_run_writes_nothing(world: Path, run: Path) -> None:
    with chdir(world):
        ended = hft("finetune", "tiny.yaml", "--run-dir", "never", "--dry-run", *QUICK)
    assert ended.code == 0 and "one step ran" in ended.out, ended
    assert not (world / "never").exists()


def test_lora_with_a_projection_exports_a_merged_tower_and_its_adapter(world: Path) -> None:
    ended = finetune(world, "lora", "tuning={method: lora, rank: 2}", "model.dimensions=8")
    assert ended.code == 0, ended
    folder = world / "lora" / "model"
    gate = read_json(world / "lora" / "results.json")["gate"]["vectors"]
    assert gate.keys() == {"transformers", "sentence-transformers", "peft"} and max(gate.values()) < 1e-4
    assert load_file(folder / "2_Dense" / "model.safetensors")["linear.weight"].shape == (8, 16)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "adapter" / "base" / "config.json").is_file()
    assert listed(world / "lora", "--user", "u1", "--top-k", "2")


@pytest.mark.parametrize(
    "settings",
    [
        ("task.loss=sampled-softmax", "task.negatives=20", "data.split={protocol: time}"),
        ("task.loss=bpr", "task.negatives=20", "data.split={protocol: random}"),
        (
            "task={kind: recommendation, objective: next-item, recency: 3, items_per_step: 30}",
            "fusion.parts=[text, frozen-text, ials]",
            "model.center=false",
        ),
    ],
    ids=["sampled-softmax", "bpr", "next-item"],
)
def test_other_losses_and_protocols_train_and_export(world: Path, settings: tuple[str, ...]) -> None:
    ended = finetune(world, settings[0], *settings)
    assert ended.code == 0, ended
    assert read_json(world / settings[0] / "results.json")["gate"]["scores"] < 1e-5


def test_the_tuned_texts_tell_ials_of_items_that_nobody_chose(world: Path) -> None:
    settings = ("data.split={protocol: cold-items}", "fusion.parts=[text, ials]", "id_models.ials_dimensions=4")
    ended = finetune(world, "cold", *settings)
    assert ended.code == 0, ended
    scorers = Recommender.load(world / "cold" / "model" / "recommender").scorers
    text, ials = scorers["text"], scorers["ials"]
    assert isinstance(text, TextVectors) and isinstance(ials, Factors)
    splits = load_splits(load_recipe(world / "cold" / "recipe.yaml"), lambda event: None)
    known = np.bincount(splits.train_items, minlength=len(splits.catalogue)) > 0
    expected = np.where(known[:, None], ials.items, 0)
    alike_by = similarities(item_features(text.vectors, splits.attributes, known), known)
    expected = fill_in_factors(expected, alike_by, known, regularization=3.0)
    assert not known.all() and ials.items == pytest.approx(expected, abs=1e-5)


def test_a_frozen_encoder_stays_as_it_was(world: Path, lively_backbone: Path) -> None:
    settings = ("tuning={method: linear-probe}", "model.dimensions=8", "data.split={protocol: cold-items}")
    ended = finetune(world, "probe", *settings)
    assert ended.code == 0, ended
    before, after = (load_file(path / "model.safetensors") for path in (lively_backbone, world / "probe" / "model"))
    assert all((before[name] == after[name]).all() for name in before)


def test_a_spoiled_tower_fails_its_gate(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = item_tower.save_encoder

    def spoil(encoder: Any, *others: Any) -> None:
        encoder.embeddings.word_embeddings.weight.data[:, 0] += 0.5
        save(encoder, *others)

    monkeypatch.setattr(item_tower, "save_encoder", spoil)
    refused(finetune(world, "spoiled"), 6, "not what was trained", "vectors by transformers")


def test_reviews_without_users_end_with_3_before_anything_is_trained(world: Path) -> None:
    write_csv(world / "reviews.csv", ("Clothing ID", "Review Text", "Rating"), [("767", "silky", 4)])
    ended = finetune(world, "reviews", f"data.interactions.source={world}/reviews.csv")
    refused(ended, 3, "not in reviews.csv: 'who', 'what', 'when'", "who chose what")


@pytest.mark.parametrize(
    ("setting", "fragment"),
    [
        ("tuning={method: linear-probe}", "set model.dimensions"),
        ("data={interactions: {source: x}, items: {source: x, columns: title}}", "groups needs data.users"),
        (
            "data={interactions: {source: x}, items: {source: x, columns: title}, users: {source: x}}",
            "attributes needs data.items.flags, categories or numbers",
        ),
        ("task={kind: recommendation, loss: bpr, items_per_step: 4}", "items_per_step is for loss: softmax"),
        ("data.split={protocol: leave-two-out}", "choose one of leave-one-out"),
        ("data.split={validation: 0.5, test: 0.5}", "leave nothing to train on"),
        ("evaluation.best_by=accuracy", "choose one of hr"),
        ("task.recencyy=3", "did you mean 'recency'"),
    ],
)
def test_mistakes_in_a_recipe_are_told(world: Path, setting: str, fragment: str) -> None:
    with chdir(world):
        refused(hft("finetune", "tiny.yaml", "--run-dir", "wrong", "--set", setting), 2, fragment)


def test_a_softmax_over_too_many_items_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hftoolkit.recommend.task.MOST_TRAINED_ITEMS", 20)
    refused(finetune(world, "wide"), 2, "at most 20 are possible with a trained encoder", "task.items_per_step")
