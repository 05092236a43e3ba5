"""Image classification through the command line: what a user runs first, and what goes wrong first."""

import csv
import io
import json
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import hftoolkit
from doubles.commands import hft
from doubles.pictures import RECIPE, write_pictures
from hftoolkit.commands.predict import load_run
from hftoolkit.contracts import InferenceProgress
from hftoolkit.errors import DataError

pytestmark = [pytest.mark.slow, pytest.mark.smoke]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    (folder / "r.yaml").write_text(RECIPE.format(source=pictures, architecture="resnet10t"))
    ended = hft("finetune", folder / "r.yaml", "--run-dir", folder / "run")
    assert ended.code == 0, ended
    return folder / "run"


def results(run):
    return json.loads((run / "results.json").read_text())


def refused(ended, code, *words):
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    assert all(word in ended.err for word in words), ended.err


def test_a_run_learns_and_keeps_the_promises_of_the_run_directory(run):
    content = results(run)
    assert content["task"] == "image-classification"
    assert content["test"]["examples"] == 9
    assert content["test"]["metrics"]["accuracy"] >= 0.8
    assert content["image_size"] == [32, 32]
    assert set(content["baselines"]) == {"majority", "pixel_logreg"}
    assert content["gate"]["saved"] < 1e-5
    names = {path.name for path in run.iterdir()}
    assert {"recipe.yaml", "data.json", "labels.json", "results.json", "model", "report", "predictions"} <= names
    lines = list(csv.DictReader((run / "predictions" / "test.csv").open()))
    assert len(lines) == 9 and lines[0]["image"].endswith(".png")
    card = (run / "model" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "32 x 32" in card
    assert not list((run / "model").glob("*.bin"))


def test_the_model_is_one_of_plain_timm_and_of_plain_transformers(run, pictures):
    from transformers import pipeline

    path = pictures / "red" / "3.png"
    plain = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(plain)
    assert tuple(config["input_size"]) == (3, 32, 32)
    ours = hftoolkit.load(run).predict([path])[0]
    pixels = timm.data.create_transform(**config, is_training=False)(Image.open(path).convert("RGB"))
    with torch.inference_mode():
        probabilities = plain(pixels[None]).softmax(1)[0].tolist()
    assert probabilities == pytest.approx(list(ours.probabilities.values()), abs=0.02)
    classify = pipeline("image-classification", model=str(run / "model"))
    best = classify(str(path))[0]
    assert best["label"] == ours.label == "red"
    assert best["score"] == pytest.approx(ours.probabilities["red"], abs=0.02)


def test_evaluate_repeats_the_numbers_of_the_run(run):
    ended = hft("evaluate", run)
    assert ended.code == 0, ended
    accuracy = results(run)["test"]["metrics"]["accuracy"]
    assert f"{accuracy:.3f}" in ended.out


def test_predict_reads_a_folder_a_pattern_a_file_and_a_table(run, pictures, tmp_path):
    ended = hft("predict", run, pictures, "--output", tmp_path / "all.csv")
    assert ended.code == 0, ended
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert len(rows) == 90
    truth = [Path(row["image"]).parent.name for row in rows]
    assert np.mean([row["label"] == name for row, name in zip(rows, truth, strict=True)]) > 0.8
    one = hft("predict", run, pictures / "blue" / "7.png")
    assert one.code == 0 and one.out.count("\n") == 2
    assert hft("predict", run, pictures / "red" / "1*.png").out.count("\n") == 12
    refused(hft("predict", run, tmp_path / "nothing"), 3, "nothing")


def test_predictions_tell_how_far_they_are(run, pictures):
    told = []
    predictor = load_run(run, told.append)
    predictor.predict(sorted(pictures.rglob("*.png")))
    rows = predictor.task.inputs(list(np.zeros((70, 32, 32, 3), dtype=np.uint8))).read(0, 70)
    predictor.outputs(rows)
    assert told == [InferenceProgress(*counts) for counts in ((64, 90), (90, 90), (64, 70), (70, 70))]


def test_the_most_probable_classes_come_first(run, pictures):
    ended = hft("predict", run, pictures / "blue", "--top-k", "2")
    assert ended.code == 0, ended
    whole = {prediction.label for prediction in hftoolkit.load(run).predict(sorted((pictures / "blue").iterdir()))}
    for row in csv.DictReader(ended.out.splitlines()):
        assert row["label"] == row["top1"] != row["top2"]
        assert float(row["p1"]) >= float(row["p2"])
        assert set(row) == {"row", "image", "label", "top1", "p1", "top2", "p2"}
        assert row["label"] in whole


def test_a_broken_image_leaves_its_row_empty_or_is_refused(run, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [pictures / "red" / "1.png", tmp_path / "broken.png", pictures / "blue" / "1.png"]
    predictor = hftoolkit.load(run)
    refusal = r"1 of 3 rows cannot be used:\n  image is not one of .*: 1 \(row 2 \(.*broken\.png\)\)"
    with pytest.raises(DataError, match=refusal):
        predictor.predict(images, on_bad_rows="error")
    first = predictor.predict(images[:1])[0].label
    content = images[0].read_bytes()
    cut = Image.open(io.BytesIO(content[: len(content) // 2]))  # read when its pixels are asked for
    data = datasets.Dataset.from_dict({"image": [{"bytes": path.read_bytes(), "path": None} for path in images]})
    for rows in (
        images,
        pd.DataFrame({"image": list(map(str, images)), "n": range(3)}),
        (row for row in [content, cut, np.asarray(Image.open(images[2]))]),
        [Image.open(images[0]), None, {"bytes": images[2].read_bytes(), "path": None}],
        data.cast_column("image", datasets.Image()),
    ):
        with pytest.warns(UserWarning, match="1 of 3 rows is left blank: image"):
            assert [prediction.label for prediction in predictor.predict(rows)] == [first, "", "blue"]
    with pytest.raises(DataError, match="rows lack image; they have 'picture'"):
        predictor.predict([{"picture": images[0]}])


def test_python_takes_files_bytes_arrays_and_images(run, pictures):
    path = pictures / "green" / "2.png"
    kinds = [str(path), path, path.read_bytes(), np.asarray(Image.open(path)), Image.open(path)]
    predictions = hftoolkit.load(run).predict(kinds)
    assert len({tuple(prediction.probabilities.values()) for prediction in predictions}) == 1


def tuned_again(run, pictures, folder, method):
    """Fine-tune an earlier run once more; return its timm weights and the new ones."""
    recipe = folder / "r.yaml"
    recipe.write_text(RECIPE.format(source=pictures, architecture="x"))
    ended = hft(
        *("finetune", recipe, "--run-dir", folder / "run", "--set", "model.pretrained=true"),
        *("--set", f"model.backbone={run}", "--set", "model.architecture=null", "--set", f"tuning={method}"),
    )
    assert ended.code == 0, ended
    models = [timm.create_model(f"local-dir:{path / 'model'}", pretrained=True) for path in (run, folder / "run")]
    return [model.state_dict() for model in models]


@pytest.mark.parametrize("method", ["{method: lora, rank: 4}", "{method: linear-probe}"])
def test_other_methods_start_from_an_earlier_run_and_leave_its_statistics(run, pictures, tmp_path, method):
    before, after = tuned_again(run, pictures, tmp_path, method)
    gate = results(tmp_path / "run")["gate"]
    assert gate["saved"] < 1e-5
    assert (gate["merged"] is not None) == ("lora" in method)
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


def test_layers_that_join_late_are_trained_late(run, pictures, tmp_path):
    # 15 steps; the stem joins for the last one, at a rate near zero
    before, after = tuned_again(run, pictures, tmp_path, "{method: full, unfreeze_epochs: 2.8}")
    moved = {name: (before[name] - after[name]).abs().max() for name in before if before[name].is_floating_point()}
    assert moved["fc.weight"] > 0 and moved["layer4.0.conv1.weight"] > 0 and moved["layer4.0.bn1.running_mean"] > 0
    stem = [name for name in moved if name.startswith("conv1.") and "running" not in name]
    assert all(moved[name] < 0.1 * moved["layer4.0.conv1.weight"] for name in stem)
    ended = hft(
        *("finetune", tmp_path / "r.yaml", "--run-dir", tmp_path / "never", "--set", "model.pretrained=true"),
        *("--set", f"model.backbone={run}", "--set", "model.architecture=null"),
        *("--set", "tuning={method: full, unfreeze_epochs: 2.9}"),
    )
    refused(ended, 2, "would join after the last of 15 steps", "at most 2.8 epochs")


@pytest.mark.parametrize(
    ("architecture", "arguments", "cached"),
    [
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 32}, True),
        ("deit_tiny_distilled_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 32}, False),
        ("dpn48b", {}, False),
    ],
)
def test_a_probe_runs_the_backbone_in_each_step_where_the_head_alone_does_not_give_the_logits(
    architecture, arguments, cached, pictures, tmp_path
):
    torch.manual_seed(0)
    backbone = timm.create_model(architecture, num_classes=5, **arguments)
    timm.models.save_for_hf(backbone, tmp_path / "backbone", model_args=arguments, safe_serialization=True)
    (tmp_path / "r.yaml").write_text(RECIPE.format(source=pictures, architecture="x"))
    ended = hft(
        *("finetune", tmp_path / "r.yaml", "--run-dir", tmp_path / "run", "--set", "model.pretrained=true"),
        *("--set", f"model.backbone={tmp_path / 'backbone'}", "--set", "model.architecture=null"),
        *("--set", "tuning={method: linear-probe}", "--set", "train.epochs=2"),
    )
    assert ended.code == 0, ended
    assert ("the frozen backbone runs in each step" in ended.out + ended.err) != cached
    assert results(tmp_path / "run")["gate"]["saved"] < 1e-5


def test_every_switch_of_training_runs(pictures, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(source=pictures, architecture="resnet10t"))
    switches = "{preset: strong, mixup: 0.2, cutmix: 1.0, erasing: 0.2}"
    ended = hft(
        *("finetune", recipe, "--dry-run", "--set", f"augmentation={switches}", "--set", "task.test_time_flip=true"),
        *("--set", "model.drop_path=0.1", "--set", "model.dropout=0.1", "--set", "task.label_smoothing=0.1"),
        *("--set", "train.ema_decay=0.9", "--set", "task.imbalance=sampler"),
        *("--set", "tuning={method: full, layer_decay: 0.8, unfreeze_epochs: 0.5}"),
    )
    assert ended.code == 0, ended


def test_a_table_of_pixels(tmp_path):
    generator = np.random.default_rng(3)
    lines = []
    for number in range(60):
        label = number % 2
        pixels = generator.integers(0, 60, size=(6, 6))
        pixels[:, 3 * label : 3 * label + 3] += 150
        lines.append([*pixels.ravel().tolist(), label])
    with (tmp_path / "pixels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    (tmp_path / "r.yaml").write_text(RECIPE.format(source=tmp_path / "pixels.csv", architecture="resnet10t"))
    pixels = "data.pixels={shape: [6, 6], label: last, header: false}"
    ended = hft("finetune", tmp_path / "r.yaml", "--run-dir", tmp_path / "run", "--set", pixels)
    assert ended.code == 0, ended
    assert results(tmp_path / "run")["test"]["metrics"]["accuracy"] > 0.8
    ended = hft("predict", tmp_path / "run", tmp_path / "pixels.csv")
    assert ended.code == 0 and ended.out.count("\n") == 61
    wrong = "data.pixels={shape: [5, 6], label: last, header: false}"
    refused(hft("finetune", tmp_path / "r.yaml", "--dry-run", "--set", wrong), 3, "31", "37")


def test_broken_images_are_found_before_training_or_left_out_and_counted(tmp_path):
    folder = write_pictures(tmp_path / "pictures", per_class=12)
    (folder / "red" / "empty.png").write_bytes(b"")
    (folder / "blue" / "cut.png").write_bytes((folder / "blue" / "1.png").read_bytes()[:200])
    (tmp_path / "r.yaml").write_text(RECIPE.format(source=folder, architecture="resnet10t"))
    refused(hft("finetune", tmp_path / "r.yaml", "--run-dir", tmp_path / "a"), 3, "empty.png", "cut.png", "on_bad_rows")
    ended = hft("finetune", tmp_path / "r.yaml", "--run-dir", tmp_path / "b", "--set", "data.on_bad_rows=skip")
    assert ended.code == 0, ended
    assert sum(results(tmp_path / "b")["skipped"].values()) == 2


def test_mistakes_in_an_image_recipe(pictures, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(source=pictures, architecture="resnet10t"))

    def refuse(*words, **knobs):
        overrides = [part for key, value in knobs.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
        refused(hft("finetune", recipe, "--dry-run", *overrides), 2, *words)

    refuse("resnet10t", model__architecture="resnet10x")
    refuse("choose one of", "image-classification", task__kind="image-clasification")
    refuse("max_length", "unknown key", model__max_length=64)
    refuse("multi_label needs a table", "data.columns", task__multi_label="true")
    refuse("several columns", "multi_label: true", data__columns="{label: [a, b]}")
    refuse("linear-probe", "augmentation.preset", tuning="{method: linear-probe}", augmentation="{preset: light}")
    refuse("backbone", model__pretrained="true", model__architecture="null")
    refuse("pixels", data__pixels="{shape: [2, 2], label: last, header: true}", data__columns="{image: a}")
