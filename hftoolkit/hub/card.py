"""The model card, from the evidence of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hftoolkit.data.sources.address import public_address
from hftoolkit.data.sources.resolve import Resolved
from hftoolkit.recipe import (
    AnyRecipe,
    ImageRecipe,
    Model,
    Recipe,
    TextRecipe,
    dump_recipe,
)
from hftoolkit.runs.checkpoint import Checkpoint
from hftoolkit.runs.directory import RunDir

CARD_METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "mcc": "MCC", "ece": "Expected calibration error"}


def write_card(
    run: RunDir, recipe: Recipe, results: Mapping[str, Any], data: Mapping[str, Any], base: str | None
) -> None:
    """Write ``model/README.md``: use, results with intervals, data fingerprint, limits, recipe, and the model-index.

    Args:
        run: a run whose model is exported.
        recipe: the recipe of the run.
        results: the content of results.json.
        data: the content of data.json.
        base: Hub id of the pretrained weights, if they have one.
    """
    recipe = _public(recipe)
    write_folder_card(run.model, _metadata(recipe, results, base), _sections(recipe, results, data))


def write_unfinished_card(
    folder: Path, recipe: Recipe, data: Mapping[str, Any], base: str | None, best: Checkpoint
) -> None:
    """Write the card of the best model so far into its folder; arguments as those of ``write_card``."""
    recipe, metric = _public(recipe), recipe.evaluation.best_by
    metadata = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag=recipe.task.kind,
        license=recipe.model.license,
        tags=["hftoolkit", recipe.tuning.method, "unfinished"],
    )
    state = f"""**Unfinished.** These are the best weights so far, of step {best.step}, of a training that goes on. The
finished model will take their place.

- {metric} on the validation split, which chose them: {best.metrics[metric]:.3f}. Nothing was measured on test data.
- Probabilities are not calibrated yet, and predictions were not compared with those of the trained model."""
    title, use = _opening(recipe, data)
    write_folder_card(folder, metadata, (title, state, use, _data(recipe, data), recipe_section(recipe)))


def write_folder_card(folder: Path, metadata: ModelCardData, sections: Sequence[str]) -> None:
    """Write ``README.md`` of a model folder: metadata as YAML, then the sections."""
    text = "\n\n".join((f"---\n{metadata.to_yaml()}\n---", *sections)) + "\n"
    (folder / "README.md").write_text(str(ModelCard(text)), encoding="utf-8")


def hub_id(model: Model, weights: Resolved | None) -> str | None:
    """Return the Hub id that a recipe states for the pretrained weights, or the one they came by, if there is any."""
    if model.hub_id:
        return model.hub_id
    return weights.address.partition("@")[0] if weights is not None and weights.kind == "hub" else None


def _public(recipe: Recipe) -> Recipe:
    """The recipe without folders of this machine."""
    data = recipe.data.model_copy(update={"source": public_address(recipe.data.source)})
    backbone = recipe.model.backbone
    model = recipe.model.model_copy(update={"backbone": backbone and public_address(backbone)})
    return recipe.model_copy(update={"data": data, "model": model})


def _metadata(recipe: Recipe, results: Mapping[str, Any], base: str | None) -> ModelCardData:
    dataset = recipe.data.source
    measured = [
        EvalResult(
            task_type=recipe.task.kind,
            dataset_type=_dataset_type(dataset),
            dataset_name=_dataset_name(dataset),
            dataset_split="test",
            metric_type=key,
            metric_name=name,
            metric_value=round(results["test"]["metrics"][key], 4),
        )
        for key, name in CARD_METRICS.items()
        if key in results["test"]["metrics"]
    ]
    return ModelCardData(
        model_name=_dataset_name(dataset),
        base_model=base,
        library_name="transformers",
        pipeline_tag=recipe.task.kind,
        license=recipe.model.license,
        tags=["hftoolkit", recipe.tuning.method],
        eval_results=measured,
    )


def _dataset_name(address: str) -> str:
    return address.rpartition("/")[2].partition(".")[0] or address


def _dataset_type(address: str) -> str:
    return _dataset_name(address).lower()


def _sections(recipe: Recipe, results: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[str, ...]:
    samples = "\n\n![Predictions for test images](samples.png)" if isinstance(recipe, ImageRecipe) else ""
    found = _results(results) + samples
    return (*_opening(recipe, data), found, _data(recipe, data), _limits(recipe, results), recipe_section(recipe))


def _opening(recipe: Recipe, data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the title, and how the model is used."""
    noun, use = ("Image", _IMAGE_USE) if isinstance(recipe, ImageRecipe) else ("Text", _TEXT_USE)
    return f"# {noun} classifier: {', '.join(data['class_counts']['train'])}", f"## Use\n\n```python\n{use}\n```"


def recipe_section(recipe: AnyRecipe) -> str:
    """Return the section that shows a recipe whole."""
    return f"## Recipe\n\n```yaml\n{dump_recipe(recipe).strip()}\n```"


_TEXT_USE = """from transformers import pipeline

classify = pipeline("text-classification", model="path/or/repository", top_k=None)
classify("The fabric is thin and it runs small.", truncation=True)"""

_IMAGE_USE = """from transformers import pipeline

classify = pipeline("image-classification", model="path/or/repository")
classify("photo.jpg")"""


def _results(results: Mapping[str, Any]) -> str:
    test = results["test"]
    lines = [
        f"## Results\n\n{test['examples']} test examples; 95 % bootstrap intervals; the same split for every row.\n",
        "| model | " + " | ".join(CARD_METRICS.values()) + " |",
        "|---" * (len(CARD_METRICS) + 1) + "|",
        _row("this model", test),
        *(_row(name, baseline) for name, baseline in results["baselines"].items()),
    ]
    return "\n".join(lines)


def _row(name: str, measured: Mapping[str, Any]) -> str:
    return f"| {name} | " + " | ".join(_cell(measured, key) for key in CARD_METRICS) + " |"


def _cell(measured: Mapping[str, Any], key: str) -> str:
    if key not in measured["metrics"]:
        return "-"
    low, high = measured["intervals"][key]
    return f"{measured['metrics'][key]:.3f} [{low:.3f}, {high:.3f}]"


def _data(recipe: Recipe, data: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {count}" for name, count in data["sizes"].items())
    return f"""## Data

- Source: `{recipe.data.source}`{licence(recipe.data.license)}
- Weights: {_weights(recipe)}
- Rows: {sizes}; left out: {sum(data["skipped"].values())}
- Fingerprint of the split (SHA-256): `{data["fingerprint"]}`"""


def _weights(recipe: Recipe) -> str:
    backbone = recipe.model.backbone
    return f"`{backbone}`{licence(recipe.model.license)}" if backbone else "random ones, trained from scratch"


def licence(name: str | None) -> str:
    """Return what a card says of a licence, after a comma."""
    return f", licence: {name}" if name else ", licence: not stated in the recipe"


def _limits(recipe: Recipe, results: Mapping[str, Any]) -> str:
    worst = min(
        (key for key in results["test"]["metrics"] if key.startswith("f1/")),
        key=lambda key: results["test"]["metrics"][key],
    )
    return f"""## Limits

- Weakest class: {worst.removeprefix("f1/")}, F1 {results["test"]["metrics"][worst]:.3f}.
- {_input_limits(recipe, results)}
- Probabilities are calibrated on one validation split (temperature {results["temperature"]:.3f}); other data may need
  another. Nothing was tested on other domains{" or languages" if isinstance(recipe, TextRecipe) else ""}."""


def _input_limits(recipe: Recipe, results: Mapping[str, Any]) -> str:
    if isinstance(recipe, TextRecipe):
        share = results["truncated"]["test"] / results["test"]["examples"]
        return f"Texts are cut at {recipe.model.max_length} tokens; {share:.1%} of the test texts are longer."
    height, width = results["image_size"]
    flipped = isinstance(recipe, ImageRecipe) and recipe.task.test_time_flip
    mirrored = "; the results are means over each image and its mirror image" if flipped else ""
    return f"Images are seen at {height} x {width} pixels{mirrored}."
