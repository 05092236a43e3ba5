"""Figures of a run, as PNG: confusion, reliability, predicted against true numbers, learning curves, images, spans.

Texts in them are literal, with letters of any script that a font here has.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hftoolkit.contracts import Metrics
from hftoolkit.metrics.calibration import NUM_BINS, reliability
from hftoolkit.metrics.returns import interquartile_mean
from hftoolkit.runs.lettering import drawable_names, families_for, legible, note_on, one_letter_each, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
MAX_NAME_LENGTH = 24  # characters of a class name on an axis
GRID_COLUMNS = 6
MAX_SPAN_CHARACTERS = 120  # of a text in the picture of entities
NAMES_A_LINE = 7  # of types, above the texts
MAX_NUMBERED_CLASSES = 20  # more cells than this squared hold no readable count
MAX_DRAWN_CLASSES = 60  # more names than this stand too close
FEWER_CLASSES = 40  # that are drawn then: those with most errors
REST = "all others"
CELL_INCHES = 1.5  # of a grid of images
TITLE_POINTS = 7
LEGEND_INCHES = 0.4
MAX_CURVE_POINTS = 200
HELPS, HURTS = (220, 30, 30), (30, 60, 220)  # colours of heat
HEAT_LEGEND = (("speaks for the prediction", HELPS), ("speaks against it", HURTS))


def write_confusion_png(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix, coloured by the share of each true class; with up to 20 classes, cells hold counts.

    Args:
        matrix: ``(C, C)`` int, true classes down.
        names: the C class names, shortened on the axes to 24 characters; of more than 60, the 40 with most errors.
        path: a PNG, overwritten; 5 to 15.6 inches wide, at 150 dots an inch.
    """
    if len(names) > MAX_DRAWN_CLASSES:
        matrix, shown, title = _most_confused(matrix, names)
    else:
        shown, title = drawable_names(names, MAX_NAME_LENGTH), ""
    num_classes = len(shown)
    side = min(max(2.4, 0.62 * num_classes), 13.0)  # inches
    with _drawn(path, side + 2.6, side + 1.5, shown) as figure:
        axes = figure.subplots()
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        size = 9 if num_classes <= MAX_NUMBERED_CLASSES else 7
        axes.set_xticks(range(num_classes), shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(num_classes), shown, fontsize=size)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(title or note_on(shown), fontsize=9)
        if num_classes <= MAX_NUMBERED_CLASSES:
            _write_counts(axes, matrix, shares)
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)


def _most_confused(matrix: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str], str]:
    """Return counts of the classes with most errors and of all others together, their names, and what was done."""
    right = np.diag(matrix)
    errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * right
    kept = np.sort(np.argsort(-errors, kind="stable")[:FEWER_CLASSES])
    place = np.full(len(names), FEWER_CLASSES)
    place[kept] = np.arange(FEWER_CLASSES)
    counts = np.zeros((FEWER_CLASSES + 1, FEWER_CLASSES + 1), dtype=int)
    np.add.at(counts, (place[:, None], place[None, :]), matrix)
    shown = drawable_names(names, MAX_NAME_LENGTH)
    title = f"the {FEWER_CLASSES} of {len(names)} classes with most errors\n{note_on(shown)}".rstrip()
    return counts, [*(shown[index] for index in kept), REST], title


def write_reliability_png(probabilities: np.ndarray, targets: np.ndarray, path: Path) -> None:
    """Draw accuracy against confidence in 15 bins, with how many predictions each bin holds.

    Args:
        probabilities: ``(N, C)``.
        targets: ``(N,)`` int, or ``(N, C)`` 0/1 for multi-label, where every class probability is a prediction.
        path: a PNG of 750 by 825 dots, overwritten.
    """
    bins = reliability(probabilities, targets)
    error = bins.counts @ np.abs(bins.accuracy - bins.confidence) / max(bins.counts.sum(), 1)
    filled = bins.counts > 0
    left = np.arange(NUM_BINS) / NUM_BINS
    with _drawn(path, 5.0, 5.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.bar(left[filled], bins.accuracy[filled], 1 / NUM_BINS, align="edge", color="#9ecae1", edgecolor="white")
        upper.plot((0, 1), (0, 1), color="0.5", linestyle="--", linewidth=1, label="perfectly calibrated")
        upper.plot(
            bins.confidence[filled], bins.accuracy[filled], "o", color="#08519c", markersize=4, label="mean of bin"
        )
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"Calibration error {error:.3f}")
        upper.legend(loc="upper left", frameon=False)
        lower.bar(left, bins.counts, 1 / NUM_BINS, align="edge", color="0.6", edgecolor="white")
        lower.set(xlabel="confidence", ylabel="predictions")


def write_scatter_png(truth: np.ndarray, predicted: np.ndarray, name: str, path: Path) -> None:
    """Draw predicted against true numbers, with the line on which both are equal.

    Args:
        truth: ``(N,)``.
        predicted: ``(N,)``.
        name: of the number.
        path: a PNG of 750 by 750 dots, overwritten.
    """
    (name,) = drawable_names([name], MAX_NAME_LENGTH)
    with _drawn(path, 5.0, 5.0, [name]) as figure:
        axes = figure.subplots()
        limits = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
        axes.plot(limits, limits, color="0.5", linestyle="--", linewidth=1, label="predicted = true")
        axes.scatter(truth, predicted, s=8, alpha=min(1.0, 5 / len(truth) ** 0.4), color="#08519c", linewidths=0)
        axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}", aspect="equal")
        axes.legend(loc="upper left", frameon=False)


def write_learning_curve_png(curves: Mapping[str, Sequence[tuple[int, float]]], title: str, path: Path) -> None:
    """Draw the mean greedy return over the environment steps: one thin line a seed, and the interquartile mean of all.

    Args:
        curves: name of a seed -> (environment steps, mean return) of each evaluation; the steps are the same for all.
        title: what was learned.
        path: a PNG of 1050 by 675 dots, overwritten.
    """
    title = legible(title)
    with _drawn(path, 7.0, 4.5, [title]) as figure:
        axes = figure.subplots()
        for name, curve in curves.items():
            steps, returns = zip(*curve, strict=True)
            axes.plot(steps, returns, linewidth=1, alpha=0.6, label=f"seed {name}")
        if len(curves) > 1:
            columns = zip(*map(_returns, curves.values()), strict=True)
            middle = [interquartile_mean(np.array(column)) for column in columns]
            axes.plot(steps, middle, color="black", linewidth=2, label="interquartile mean")
        axes.set(xlabel="environment steps", ylabel="mean greedy return", title=title)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)


def write_training_curve_png(
    losses: Sequence[tuple[int, float | None]],
    evaluations: Sequence[tuple[int, Metrics]],
    names: Sequence[str],
    path: Path,
) -> None:
    """Draw the loss over the optimizer steps, and below it what was measured on the validation split.

    Args:
        losses: (step, mean loss) of each optimizer step; None where it was not finite. Many steps are drawn as means.
        evaluations: (step, metrics) of each evaluation.
        names: of the metrics to draw; those that were not measured are left out.
        path: a PNG of 1050 by 900 dots, overwritten.
    """
    with _drawn(path, 7.0, 6.0) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        finite = np.array([(step, loss) for step, loss in losses if loss is not None], dtype=float).reshape(-1, 2)
        parts = np.array_split(finite, max(1, min(MAX_CURVE_POINTS, len(finite))))
        means = np.array([part.mean(axis=0) for part in parts if len(part)]).reshape(-1, 2)
        upper.plot(means[:, 0], means[:, 1], linewidth=1.2, color="#08519c", label="training")
        for axes, shown in ((upper, ["loss"]), (lower, list(dict.fromkeys(names)))):
            for name in shown:
                points = [(step, found[name]) for step, found in evaluations if name in found]
                if points:
                    style = {"label": "validation", "color": "#e6550d"} if axes is upper else {"label": name}
                    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, **style)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=8)
        upper.set(ylabel="loss")
        lower.set(xlabel="optimizer steps", ylabel="on the validation split")


def _returns(curve: Sequence[tuple[int, float]]) -> list[float]:
    return [value for _, value in curve]


def worst_first(probabilities: np.ndarray, targets: np.ndarray, count: int) -> np.ndarray:
    """Return the wrong examples whose true class got the lowest probability, at most ``count``, worst first.

    Of targets (N, C), each class or its absence is a truth, and the least probable one of an example counts.
    """
    if targets.ndim == 2:
        truth = np.where(targets > 0, probabilities, 1 - probabilities).min(axis=1)
        is_wrong = truth < 0.5
    else:
        truth = probabilities[np.arange(len(targets)), targets]
        is_wrong = probabilities.argmax(axis=1) != targets
    order = np.argsort(truth, kind="stable")
    wrong: np.ndarray = order[is_wrong[order]]
    return wrong[:count]


def write_image_grid(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    path: Path,
    *,
    legend: Sequence[tuple[str, tuple[int, int, int]]] = (),
) -> None:
    """Draw images in rows of up to 6, each under its title, whose lines are wrapped to the width of a cell.

    Args:
        images: each (H, W, 3) uint8.
        titles: one for each image, of one line or several.
        path: a PNG, overwritten; up to 9 inches wide, at 150 dots an inch.
        legend: what colours in the images mean, each RGB of 0 to 255.
    """
    columns = min(GRID_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    shown = [wrapped(legible(title), (CELL_INCHES - 0.12) * 72, TITLE_POINTS) for title in titles]
    with _drawn(path, CELL_INCHES * columns, CELL_INCHES * rows, shown) as figure:
        figure.set_layout_engine("none")
        cells = [figure.add_axes((0, 0, 1, 1)) for _ in images]
        for axes, image, title in zip(cells, images, shown, strict=True):
            axes.set_axis_off()
            axes.imshow(image)
            axes.set_title(title, fontsize=TITLE_POINTS, pad=3)
            axes.set_anchor("N")
        _arrange(figure, cells, columns, below=LEGEND_INCHES if legend else 0)
        if legend:
            _add_legend(figure, legend)


def _arrange(figure: "Figure", cells: Sequence["Axes"], columns: int, below: float) -> None:
    """Put images into rows that are as high as their titles need, and make the figure fit them and what is below."""
    gap, side = 0.06, CELL_INCHES - 0.1  # inches
    heights = [axes.title.get_window_extent().height / figure.dpi for axes in cells]
    rows = [max(heights[first : first + columns]) + gap for first in range(0, len(cells), columns)]
    width, height = CELL_INCHES * columns, below + gap + sum(rows) + len(rows) * (side + gap)
    figure.set_size_inches(width, height)
    top = height
    for row, above in enumerate(rows):
        top -= above + side + gap
        for column, axes in enumerate(cells[row * columns : (row + 1) * columns]):
            left = (CELL_INCHES * column + (CELL_INCHES - side) / 2) / width
            axes.set_position((left, top / height, side / width, side / height))


def _add_legend(figure: "Figure", legend: Sequence[tuple[str, tuple[int, int, int]]]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=tuple(part / 255 for part in colour), label=name) for name, colour in legend]
    columns = 1 if figure.get_figwidth() < 2 * CELL_INCHES + 0.1 else len(patches)
    figure.legend(handles=patches, loc="lower center", ncols=columns, frameon=False, fontsize=TITLE_POINTS)


def write_note_png(text: str, path: Path) -> None:
    """Write a sentence where a picture has nothing to show: a PNG of 750 by 150 dots, overwritten."""
    text = legible(text)
    with _drawn(path, 5.0, 1.0, [text]) as figure:
        figure.text(0.5, 0.5, wrapped(text, 4.6 * 72, 9), ha="center", va="center", fontsize=9)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a grayed image, (H, W, 3) uint8, with positive heat, (H, W), in red and negative in blue."""
    strength = heat / max(float(np.abs(heat).max()), 1e-12)
    gray = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    colour = np.where(strength[..., None] > 0, np.array(HELPS, float), np.array(HURTS, float))
    share = 0.6 * np.abs(strength)[..., None]
    blended: np.ndarray = ((1 - share) * gray + share * colour).astype(np.uint8)
    return blended


def write_spans_png(
    shown: Sequence[tuple[str, Sequence[tuple[str, int, int]], Sequence[tuple[str, int, int]]]],
    types: Sequence[str],
    path: Path,
) -> None:
    """Draw texts, each as two lines: gold spans above the predicted ones, in the colour of their type.

    Args:
        shown: text, gold spans and predicted spans ``(type, start, end)``; of a long text, the first characters.
        types: in the order of their colours.
        path: a PNG, overwritten.
    """
    from matplotlib import colormaps

    colours = {name: colormaps["tab10"](index % 10) for index, name in enumerate(types)}
    texts = [one_letter_each(text[:MAX_SPAN_CHARACTERS]) for text, *_ in shown]
    names = drawable_names(types, MAX_NAME_LENGTH)
    monospace = ["DejaVu Sans Mono", *families_for(texts)]
    above = 1.2 + len(types) / NAMES_A_LINE  # the names of the types
    with _drawn(path, 11.0, 0.8 + 0.62 * max(1, len(shown)) + 0.25 * (above - 1), [*texts, *names]) as figure:
        axes = figure.subplots()
        axes.set(xlim=(-6, MAX_SPAN_CHARACTERS), ylim=(2.4 * len(shown), -1 - above))
        axes.set_axis_off()
        for row, (text, (_, *both)) in enumerate(zip(texts, shown, strict=True)):
            for line, (what, spans) in enumerate(zip(("gold", "model"), both, strict=True)):
                height = 2.4 * row + line
                axes.text(-1, height, what, ha="right", va="center", fontsize=6, color="0.5")
                for place, character in enumerate(text):
                    axes.text(place, height, character, ha="center", va="center", fontsize=6, family=monospace)
                for name, start, end in spans:
                    if start < MAX_SPAN_CHARACTERS:
                        axes.axvspan(
                            start - 0.5,
                            min(end, MAX_SPAN_CHARACTERS) - 0.5,
                            *_band(axes, height),
                            alpha=0.35,
                            facecolor=colours[name],
                            linewidth=0,
                        )
        for index, (type_, name) in enumerate(zip(types, names, strict=True)):
            line, place = divmod(index, NAMES_A_LINE)
            axes.text(
                place * 126 / NAMES_A_LINE - 6,
                -1.5 - line,
                name,
                fontsize=7,
                backgroundcolor=(*colours[type_][:3], 0.35),
            )


def _band(axes: "Axes", height: float) -> tuple[float, float]:
    """Return where a line of text lies, as shares of the height of the axes."""
    bottom, top = axes.get_ylim()
    return tuple(sorted(((height + half - bottom) / (top - bottom)) for half in (-0.45, 0.45)))  # type: ignore[return-value]


@contextmanager
def _drawn(path: Path, width_inches: float, height_inches: float, texts: Iterable[str] = ()) -> Iterator["Figure"]:
    """Yield a figure to draw on, which is saved at the end; ``texts`` may need letters of other fonts."""
    from matplotlib import rc_context

    families = families_for(texts)
    with rc_context({"text.parse_math": False, "text.usetex": False, "font.family": families}):
        figure = _new_figure(width_inches, height_inches)
        yield figure
        figure.savefig(path, format="png")


def _new_figure(width_inches: float, height_inches: float) -> "Figure":
    """Make a figure that belongs to nobody: no pyplot, so no backend is chosen and nothing is kept."""
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    return Figure(figsize=(width_inches, height_inches), dpi=DOTS_PER_INCH, layout="constrained")


def _write_counts(axes: "Axes", matrix: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
