import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hftoolkit.runs.figures import overlay, worst_first, write_confusion_png, write_image_grid, write_reliability_png
from hftoolkit.runs.prediction_tables import write_csv
from hftoolkit.runs.tables import confusion_table, per_class_table, results_table

pytestmark = pytest.mark.filterwarnings("error")

RESULTS = {
    "test": {
        "examples": 12,
        "metrics": {"accuracy": 0.81254, "macro_f1": 0.7, "ece": 0.05},
        "intervals": {"accuracy": [0.75, 0.875], "macro_f1": [0.6, 0.8]},
    },
    "baselines": {
        "majority": {
            "metrics": {"accuracy": 0.5, "macro_f1": 0.25},
            "intervals": {},
            "difference": {"macro_f1": [0.45, -0.01, 0.9]},
        }
    },
}


HEADLINE = {"accuracy": "accuracy", "macro_f1": "macro-F1", "ece": "ECE"}


def test_results_table_sets_the_model_beside_its_baselines() -> None:
    table = results_table(RESULTS, HEADLINE)
    assert "12 rows" in table.title
    assert table.columns == ("model", "accuracy", "macro-F1", "ECE", "lead in macro-F1")
    assert table.rows == (
        ("fine-tuned", "0.813 [0.750, 0.875]", "0.700 [0.600, 0.800]", "0.050", "-"),
        ("majority", "0.500", "0.250", "-", "+0.450 [-0.010, +0.900]"),
    )


def test_results_table_without_baselines_has_one_row() -> None:
    table = results_table({"test": RESULTS["test"]}, HEADLINE)
    assert table.columns == ("model", "accuracy", "macro-F1", "ECE")
    assert len(table.rows) == 1


def test_per_class_table_has_dashes_for_a_class_that_does_not_occur() -> None:
    metrics = {"f1/good": 0.5, "precision/good": 0.25, "recall/good": 1.0}
    table = per_class_table(metrics, {"f1/good": (0.4, 0.6)}, ["good", "rare"])
    assert table.rows == (("good", "0.250", "1.000", "0.500 [0.400, 0.600]"), ("rare", "-", "-", "-"))


def test_confusion_table_keeps_true_classes_in_rows() -> None:
    table = confusion_table(np.array([[3, 1], [0, 2]]), ["no", "yes"])
    assert table.columns == ("true", "no", "yes")
    assert table.rows == (("no", "3", "1"), ("yes", "0", "2"))


@pytest.mark.parametrize("num_classes", [2, 21, 50])
def test_confusion_picture_fits_any_number_of_classes_and_odd_names(num_classes: int, tmp_path: Path) -> None:
    names = [f"$x_{index} & <b> {'very ' * 10}long" for index in range(num_classes)]
    write_confusion_png(np.eye(num_classes, dtype=int) * 7, names, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        image.load()
        assert image.format == "PNG"
        assert 500 <= image.width <= 2400
        assert 500 <= image.height <= 2400


def test_confusion_picture_survives_a_class_without_rows(tmp_path: Path) -> None:
    write_confusion_png(np.array([[3, 1], [0, 0]]), ["no", "yes"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_confusion_picture_is_darker_where_more_of_a_true_class_fell(tmp_path: Path) -> None:
    images = []
    for matrix in ([[9, 0], [0, 9]], [[0, 9], [9, 0]]):
        write_confusion_png(np.array(matrix), ["no", "yes"], tmp_path / "confusion.png")
        with Image.open(tmp_path / "confusion.png") as image:
            images.append(np.asarray(image.convert("L"), dtype=int))
    changed = np.argwhere(np.abs(images[0] - images[1]) > 50)
    top, left = changed.min(axis=0) + 10
    bottom, right = changed.max(axis=0) - 10
    assert images[0][top, left] < 100 < images[0][top, right]
    assert images[0][bottom, right] < 100 < images[0][bottom, left]


@pytest.mark.parametrize("multi_label", [False, True])
def test_reliability_picture_has_its_size(multi_label: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), 50)
    targets = generator.integers(0, 2, (50, 3)) if multi_label else generator.integers(0, 3, 50)
    write_reliability_png(probabilities, targets, tmp_path / "reliability.png")
    with Image.open(tmp_path / "reliability.png") as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (750, 825))


def test_the_worst_examples_are_those_whose_truth_got_least() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.05, 0.95]])
    targets = np.array([0, 0, 1, 0])
    assert worst_first(probabilities, targets, 3).tolist() == [3, 1, 2]


def test_a_grid_of_images_is_a_picture_whatever_their_number(tmp_path: Path) -> None:
    images = [np.full((8, 12, 3), value, dtype=np.uint8) for value in range(0, 140, 20)]
    for count in (1, 6, 7):
        write_image_grid(images[:count], [str(number) for number in range(count)], tmp_path / "grid.png")
        with Image.open(tmp_path / "grid.png") as image:
            assert image.size[0] == 225 * min(count, 6)


def test_heat_is_red_where_it_helps_and_blue_where_it_hurts() -> None:
    heat = np.array([[2.0, 0.0, -1.0]])
    (red, plain, blue) = overlay(np.full((1, 3, 3), 100, dtype=np.uint8), heat)[0].tolist()
    assert red[0] > red[2] and blue[2] > blue[0] and plain == [100, 100, 100]


def test_pictures_touch_no_global_state(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    write_confusion_png(np.eye(2, dtype=int), ["no", "yes"], tmp_path / "confusion.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_table_comes_back_as_it_went_in(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    texts = ['a "quoted", text\nof two lines', "plain"]
    write_csv({"row": [3, 8], "text": texts, "label": ["no", "yes"], "p(no)": [0.75, 2 / 3]}, path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts
    assert [row["row"] for row in rows] == ["3", "8"]
    assert [row["label"] for row in rows] == ["no", "yes"]
    assert [row["p(no)"] for row in rows] == ["0.750000", "0.666667"]
