import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hftoolkit.runs import figures, lettering
from hftoolkit.runs.figures import (
    overlay,
    worst_first,
    write_confusion_png,
    write_image_grid,
    write_reliability_png,
    write_scatter_png,
    write_spans_png,
    write_training_curve_png,
)
from hftoolkit.runs.prediction_tables import write_csv
from hftoolkit.runs.tables import PER_CLASS, confusion_table, per_class_table, results_table

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
    table = per_class_table(metrics, {"f1/good": (0.4, 0.6)}, ["good", "rare"], [3, 0])
    assert table.rows[0] == ("good", "0.250", "1.000", "0.500 [0.400, 0.600]", "3")
    assert table.rows[1] == ("rare", *["not measured"] * 3, "0")


def test_a_class_that_is_predicted_but_has_no_rows_is_not_measured() -> None:
    metrics = {f"{kind}/{name}": 0.0 for kind in ("f1", "precision", "recall") for name in ("good", "rare")}
    table = per_class_table(metrics, {}, ["good", "rare"], [3, 0])
    assert table.rows == (("good", "0.000", "0.000", "0.000", "3"), ("rare", *["not measured"] * 3, "0"))


def test_of_many_classes_the_weakest_are_shown_and_the_rest_are_counted() -> None:
    names = [f"class {index}" for index in range(250)]
    metrics = {f"{kind}/{name}": 1 - index / 250 for index, name in enumerate(names) for kind in PER_CLASS}
    table = per_class_table(metrics, {}, names, [0] * 50 + [2] * 200)
    assert len(table.rows) == 20 and table.rows[0][0] == "class 249"
    assert "weakest 20 of 250" in table.title and "50 have none in test" in table.title
    confusion = confusion_table(np.eye(250, dtype=int) * 3 + np.eye(250, k=1, dtype=int), names)
    assert len(confusion.rows) == 15 and confusion.rows[0] == ("class 0", "class 1", "1 of 4")
    assert "249 errors" in confusion.title


@pytest.mark.parametrize("table", [per_class_table, confusion_table], ids=["by class", "confusion"])
def test_long_names_stay_short_and_different_in_tables(table: Any) -> None:
    names = [f"{'Tomato___' * 20}{end}" for end in ("a", "b")] + [f"{'Tomato___' * 20}{mid}{'x' * 90}" for mid in "cd"]
    found = table({}, {}, names, [1] * 4) if table is per_class_table else table(np.eye(4, dtype=int)[::-1], names)
    firsts = [row[0] for row in found.rows]
    assert len(set(firsts)) == 4 and all(len(name) <= 52 for name in firsts)


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
    assert worst_first(probabilities, np.array([0, 0, 0, 0]), 3).tolist() == [3, 1]  # no more are wrong


def test_a_grid_of_images_is_a_picture_whatever_their_number(tmp_path: Path) -> None:
    images = [np.full((8, 12, 3), value, dtype=np.uint8) for value in range(0, 140, 20)]
    for count in (1, 6, 7):
        write_image_grid(images[:count], [str(number) for number in range(count)], tmp_path / "grid.png")
        with Image.open(tmp_path / "grid.png") as image:
            assert image.size[0] == 225 * min(count, 6)


LONG = ("Tomato___Spider_mites Two-spotted_spider_mite", "Tomato___Tomato_Yellow_Leaf_Curl_Virus")
WIDE = ("\u72ac\u732b" * 15, "W" * 40)


@pytest.mark.parametrize("names", [LONG, WIDE, ("$", "$$"), ("a$b$", "\\alpha")], ids=["long", "wide", "dollar", "tex"])
def test_titles_of_a_grid_stand_apart_and_inside_of_the_picture(names: Any, tmp_path: Path, monkeypatch: Any) -> None:
    made: list[Any] = []
    new = figures._new_figure
    monkeypatch.setattr(figures, "_new_figure", lambda *size: made.append(new(*size)) or made[-1])
    titles = [f"photos/IMG_{k:04}.jpg\n{names[k % 2]} 0.71\n(true: {names[(k + 1) % 2]})" for k in range(12)]
    images = [np.zeros((32, 32, 3), dtype=np.uint8)] * 12
    write_image_grid(images, titles, tmp_path / "grid.png", legend=figures.HEAT_LEGEND)
    (figure,) = made
    boxes = np.array([axes.title.get_window_extent().extents for axes in figure.axes]).reshape(2, 6, 4)
    assert (boxes[:, :-1, 2] <= boxes[:, 1:, 0]).all()
    assert (
        boxes.min() >= 0 and (boxes[..., 2] <= figure.bbox.width).all() and (boxes[..., 3] <= figure.bbox.height).all()
    )
    assert (boxes[1, :, 3] < figure.axes[0].get_window_extent().y0).all()  # under the images above
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["speaks for the prediction", "speaks against it"]


SCRIPTS = [f"\u72ac {index}" for index in range(3)] + [
    "\u30ab\u30e1",
    "\u05d0\u05d1",
    "\u0e01",
    "\U0001f600",
    "na\u00efve",
    "$",
]


def test_names_in_any_script_are_drawn_or_have_a_stand_in(tmp_path: Path) -> None:
    write_confusion_png(np.eye(len(SCRIPTS), dtype=int), SCRIPTS, tmp_path / "confusion.png")
    write_image_grid([np.zeros((8, 8, 3), dtype=np.uint8)], ["\u732b.jpg\n\ud800\x1b[2J"], tmp_path / "grid.png")
    write_scatter_png(np.arange(3.0), np.arange(3.0), "\u72ac$", tmp_path / "scatter.png")
    write_spans_png([("\u72ac $x$\n\x1b", [("\u732b", 0, 1)], [])], ["\u732b"], tmp_path / "spans.png")
    assert len(list(tmp_path.glob("*.png"))) == 4  # warnings are errors here: no letter was missing


def test_a_name_without_a_font_is_its_place(monkeypatch: Any) -> None:
    monkeypatch.setattr(lettering, "_installed", lambda: ())
    lettering._cover.cache_clear()
    try:
        assert lettering.drawable_names(["dog", "\u72ac", "\u732b"], 24) == ["dog", "class 1", "class 2"]
        assert lettering.legible("IMG \u72ac.jpg") == r"IMG \u72ac.jpg"
        assert lettering.one_letter_each("a\u72ac\n") == "a\u25a1 "
    finally:
        lettering._cover.cache_clear()


def test_a_confusion_picture_of_many_classes_shows_those_with_errors() -> None:
    matrix = np.eye(250, dtype=int) * 9
    matrix[200, 7] = 4
    counts, names, title = figures._most_confused(matrix, [f"c{index}" for index in range(250)])
    assert counts.shape == (41, 41) and counts.sum() == matrix.sum() and names[-1] == "all others"
    assert counts[names.index("c200"), names.index("c7")] == 4 and "40 of 250" in title


def test_the_learning_curve_of_a_training_is_a_picture(tmp_path: Path) -> None:
    losses = [(step, None if step == 7 else 1 / step) for step in range(1, 1000)]
    evaluations = [(step, {"macro_f1": step / 1000, "loss": 1 / step, "f1/a": 0.1}) for step in (300, 600, 999)]
    write_training_curve_png(losses, evaluations, ["macro_f1", "accuracy"], tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (1050, 900)


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
