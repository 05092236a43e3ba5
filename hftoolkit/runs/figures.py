"""Figures of a run, as PNG: confusion, reliability, predicted against true numbers, learning curve, images, spans."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hftoolkit.metrics.calibration import NUM_BINS, reliability
from hftoolkit.metrics.returns import interquartile_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
MAX_NAME_LENGTH = 24  # characters of a class name on an axis
GRID_COLUMNS = 6
MAX_SPAN_CHARACTERS = 120  # of a text in the picture of entities
MAX_NUMBERED_CLASSES = 20  # more cells than this squared hold no readable count


def write_confusion_png(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix, coloured by the share of each true class; with up to 20 classes, cells hold counts.

    Args:
        matrix: ``(C, C)`` int, true classes down.
        names: the C class names, shortened on the axes to 24 characters.
        path: a PNG, overwritten; 5 to 15.6 inches wide, at 150 dots an inch.
    """
    num_classes = len(names)
    side = min(max(2.4, 0.62 * num_classes), 13.0)  # inches
    figure = _new_figure(side + 2.6, side + 1.5)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    shown = [_shorten(name) for name in names]
    size = 9 if num_classes <= MAX_NUMBERED_CLASSES else 7
    axes.set_xticks(range(num_classes), shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(num_classes), shown, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    if num_classes <= MAX_NUMBERED_CLASSES:
        _write_counts(axes, matrix, shares)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    figure.savefig(path, format="png")


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
    figure = _new_figure(5.0, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(left[filled], bins.accuracy[filled], 1 / NUM_BINS, align="edge", color="#9ecae1", edgecolor="white")
    upper.plot((0, 1), (0, 1), color="0.5", linestyle="--", linewidth=1, label="perfectly calibrated")
    upper.plot(bins.confidence[filled], bins.accuracy[filled], "o", color="#08519c", markersize=4, label="mean of bin")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"Calibration error {error:.3f}")
    upper.legend(loc="upper left", frameon=False)
    lower.bar(left, bins.counts, 1 / NUM_BINS, align="edge", color="0.6", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="predictions")
    figure.savefig(path, format="png")


def write_scatter_png(truth: np.ndarray, predicted: np.ndarray, name: str, path: Path) -> None:
    """Draw predicted against true numbers, with the line on which both are equal.

    Args:
        truth: ``(N,)``.
        predicted: ``(N,)``.
        name: of the number.
        path: a PNG of 750 by 750 dots, overwritten.
    """
    figure = _new_figure(5.0, 5.0)
    axes = figure.subplots()
    limits = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    axes.plot(limits, limits, color="0.5", linestyle="--", linewidth=1, label="predicted = true")
    axes.scatter(truth, predicted, s=8, alpha=min(1.0, 5 / len(truth) ** 0.4), color="#08519c", linewidths=0)
    axes.set(xlabel=f"true {_shorten(name)}", ylabel=f"predicted {_shorten(name)}", aspect="equal")
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, format="png")


def write_learning_curve_png(curves: Mapping[str, Sequence[tuple[int, float]]], title: str, path: Path) -> None:
    """Draw the mean greedy return over the environment steps: one thin line a seed, and the interquartile mean of all.

    Args:
        curves: name of a seed -> (environment steps, mean return) of each evaluation; the steps are the same for all.
        title: what was learned.
        path: a PNG of 1050 by 675 dots, overwritten.
    """
    figure = _new_figure(7.0, 4.5)
    axes = figure.subplots()
    for name, curve in curves.items():
        steps, returns = zip(*curve, strict=True)
        axes.plot(steps, returns, linewidth=1, alpha=0.6, label=f"seed {name}")
    if len(curves) > 1:
        middle = [interquartile_mean(np.array(column)) for column in zip(*map(_returns, curves.values()), strict=True)]
        axes.plot(steps, middle, color="black", linewidth=2, label="interquartile mean")
    axes.set(xlabel="environment steps", ylabel="mean greedy return", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png")


def _returns(curve: Sequence[tuple[int, float]]) -> list[float]:
    return [value for _, value in curve]


def worst_first(probabilities: np.ndarray, targets: np.ndarray, count: int) -> np.ndarray:
    """Return the examples whose true class got the lowest probability, at most ``count``, worst first.

    Of targets (N, C), each class or its absence is a truth, and the least probable one of an example counts.
    """
    if targets.ndim == 2:
        truth = np.where(targets > 0, probabilities, 1 - probabilities).min(axis=1)
    else:
        truth = probabilities[np.arange(len(targets)), targets]
    return np.argsort(truth, kind="stable")[:count]


def write_image_grid(images: Sequence[np.ndarray], titles: Sequence[str], path: Path) -> None:
    """Draw images in rows of up to 6, each under its title.

    Args:
        images: each (H, W, 3) uint8.
        titles: one for each image.
        path: a PNG, overwritten; up to 9 inches wide, at 150 dots an inch.
    """
    columns = min(GRID_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = _new_figure(1.5 * columns, 1.75 * rows)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, image, title in zip(cells, images, titles, strict=False):
        axes.imshow(image)
        axes.set_title(title, fontsize=7)
    figure.savefig(path, format="png")


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a grayed image, (H, W, 3) uint8, with positive heat, (H, W), in red and negative in blue."""
    strength = heat / max(float(np.abs(heat).max()), 1e-12)
    gray = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    colour = np.where(strength[..., None] > 0, (220.0, 30.0, 30.0), (30.0, 60.0, 220.0))
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
    figure = _new_figure(11.0, 0.8 + 0.62 * max(1, len(shown)))
    axes = figure.subplots()
    axes.set(xlim=(-6, MAX_SPAN_CHARACTERS), ylim=(2.4 * len(shown), -2.2))
    axes.set_axis_off()
    for row, (text, *both) in enumerate(shown):
        for line, (what, spans) in enumerate(zip(("gold", "model"), both, strict=True)):
            height = 2.4 * row + line
            axes.text(-1, height, what, ha="right", va="center", fontsize=6, color="0.5")
            for place, character in enumerate(text[:MAX_SPAN_CHARACTERS].replace("\n", " ").replace("$", r"\$")):
                axes.text(place, height, character, ha="center", va="center", fontsize=6, family="monospace")
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
    for index, name in enumerate(types):
        axes.text(14 * index, -1.5, _shorten(name), fontsize=7, backgroundcolor=(*colours[name][:3], 0.35))
    figure.savefig(path, format="png")


def _band(axes: "Axes", height: float) -> tuple[float, float]:
    """Return where a line of text lies, as shares of the height of the axes."""
    bottom, top = axes.get_ylim()
    return tuple(sorted(((height + half - bottom) / (top - bottom)) for half in (-0.45, 0.45)))  # type: ignore[return-value]


def _shorten(name: str) -> str:
    """Cut a long name, and keep matplotlib from reading ``$`` as mathematics."""
    short = name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 3] + "..."
    return short.replace("$", r"\$")


def _new_figure(width_inches: float, height_inches: float) -> "Figure":
    """Make a figure that belongs to nobody: no pyplot, so no backend is chosen and nothing is kept."""
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    return Figure(figsize=(width_inches, height_inches), dpi=DOTS_PER_INCH, layout="constrained")


def _write_counts(axes: "Axes", matrix: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
