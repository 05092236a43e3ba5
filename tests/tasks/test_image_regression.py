import csv
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import hftoolkit
from doubles.commands import hft, read_json, refused
from doubles.tiny.image_regression import RECIPE, write_bright_pictures
from hftoolkit.commands.setup import prepare
from hftoolkit.recipe import load_recipe
from hftoolkit.tasks.shared.baselines import pixel_ridge

pytestmark = pytest.mark.slow


def write_recipe(folder: Path, extra: str = "") -> Path:
    path = folder / "bright.yaml"
    path.write_text(RECIPE.format(table=write_bright_pictures(folder)) + extra, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bright")
    ended = hft("finetune", write_recipe(folder), "--run-dir", folder / "run")
    assert ended.code == 0, ended
    return folder / "run"


def test_it_learns_what_a_straight_line_cannot_miss(run: Path):
    results = read_json(run / "results.json")
    with (run / "predictions" / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    truth, predicted = (np.array([float(row[name]) for row in rows]) for name in ("worth", "predicted"))
    assert results["test"]["metrics"]["r2"] == pytest.approx(r2_score(truth, predicted), rel=1e-4)
    assert results["test"]["metrics"]["r2"] > 0.3
    assert results["baselines"]["pixel_ridge"]["metrics"]["r2"] > 0.95
    assert results["baselines"]["mean"]["metrics"]["r2"] < 0.01
    assert {"predicted.png", "worst.png"} <= {path.name for path in (run / "report").iterdir()}
    assert "samples.png" in (run / "model" / "README.md").read_text()


def test_files_arrays_and_pictures_give_one_number(run: Path):
    path = run.parent / "3.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
        answers = hftoolkit.load(run).predict([str(path), pixels, picture])
    assert answers == [pytest.approx(answers[0], abs=1e-4)] * 3 and 50 < answers[0] < 250


def test_the_ridge_baseline_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(20, 16, 16, 3), dtype=np.uint8)
    targets = generator.normal(size=20)
    gray = pixels.astype(np.float32).mean(axis=3).reshape(20, -1) / 255
    expected = Ridge().fit(gray[:15], targets[:15]).predict(gray[15:])
    np.testing.assert_allclose(pixel_ridge(pixels[:15], targets[:15], pixels[15:]), expected, rtol=1e-4)


def test_blended_images_are_drawn_to_the_number_of_either(tmp_path: Path):
    """The squared error of a blend is that to the blended number, and a rest that no weight changes."""
    setup = prepare(load_recipe(write_recipe(tmp_path, "augmentation: {mixup: 1.0}\n")), lambda _: None)
    task, model = setup.task, setup.tuned.model.eval()
    raw = setup.learner.raw["train"][:6]
    batch = task.collate(raw, training=True)
    targets = torch.tensor([row.target for row in raw])
    score = setup.dataset.schema
    units = (targets - score.mean) / score.std
    torch.manual_seed(3)
    ours = task.loss(model, batch)
    torch.manual_seed(3)
    torch.multinomial(torch.ones(1), 1)  # torchvision draws which of one way to blend
    share = float(torch.distributions.Beta(1.0, 1.0).sample())
    partners = torch.arange(6).roll(1)
    images = batch["pixels"].permute(0, 3, 1, 2).float()
    blended = share * images + (1 - share) * images[partners]
    settings = timm.get_pretrained_cfg("test_vit")
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    outputs = model(pixel_values=(blended / 255 - mean) / std).logits[:, 0]
    to_blend = (outputs - (share * units + (1 - share) * units[partners])).square().sum()
    rest = share * (1 - share) * (units - units[partners]).square().sum()
    torch.testing.assert_close(ours.loss_sum, to_blend + rest, rtol=1e-4, atol=1e-4)
    assert ours.num_examples == 6 and ours.weight == 6


def test_bad_rows_are_listed_with_the_names_of_their_images(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    table = tmp_path / "worth.csv"
    (tmp_path / "torn.png").write_bytes(b"no picture")
    table.write_text(table.read_text() + "4.png,dear\ntorn.png,5\nnowhere.png,6\n")
    refused(
        hft("finetune", recipe, "--dry-run"), 3, "worth is not a number", "4.png", "torn.png", "missing", "nowhere.png"
    )


def test_folders_may_be_numbers_and_words_are_not(tmp_path: Path):
    write_bright_pictures(tmp_path, 40)
    folders = tmp_path / "by age"
    for number in range(40):
        place = folders / str(20 + number % 4)
        place.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{number}.png").rename(place / f"{number}.png")
    recipe = tmp_path / "ages.yaml"
    text = RECIPE.format(table=folders).replace(", columns: {image: image, label: worth}", "")
    recipe.write_text(text, encoding="utf-8")
    ended = hft("finetune", recipe, "--dry-run")
    assert ended.code == 0, ended
    (folders / "20").rename(folders / "young")
    refused(hft("finetune", recipe, "--dry-run"), 3, "folder is not a number", "young")


def test_probes_are_refused(tmp_path: Path):
    refused(hft("finetune", write_recipe(tmp_path, "tuning: {method: linear-probe}\n"), "--dry-run"), 2, "linear-probe")
