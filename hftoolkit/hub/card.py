"""The model card, from the evidence of a run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hftoolkit.contracts import CardText, Task
from hftoolkit.contracts.names import code_block, code_span, listed, markdown, visible
from hftoolkit.data.sources.address import public_address
from hftoolkit.metrics.extra import extra_values
from hftoolkit.recipe import AnyRecipe, Recipe, dump_recipe
from hftoolkit.runs.checkpoint import Checkpoint
from hftoolkit.runs.directory import RunDir


def write_card(
    run: RunDir, recipe: Recipe, task: Task, results: Mapping[str, Any], data: Mapping[str, Any], base: str | None
) -> None:
    """Write ``model/README.md``: use, results with intervals, data fingerprint, limits, recipe, and the model-index.

    Args:
        run: a run whose model is exported.
        recipe: the recipe of the run.
        task: says what only it knows.
        results: the content of results.json.
        data: the content of data.json.
        base: Hub id of the pretrained weights, if they have one.
    """
    recipe, words = public_recipe(recipe), task.card(results)
    metadata = ModelCardData(
        model_name=_dataset_name(recipe.data.source),
        base_model=base,
        library_name="transformers",
        pipeline_tag=task.pipeline_tag,
        license=recipe.model.license,
        tags=["hftoolkit", recipe.tuning.method],
        eval_results=_measured(recipe, task, results),
    )
    limits = "\n".join(f"- {sentence}" for sentence in words.limits)
    found = "\n\n".join(filter(None, (_results(results, task.headline), _drawn(words.pictures, run.model))))
    sections = (*_opening(words), found, _data(recipe, data), f"## Limits\n\n{limits}", recipe_section(recipe))
    write_folder_card(run.model, metadata, sections)


def write_plain_card(run: RunDir, recipe: Recipe) -> None:
    """Write a card that says of a model only what its recipe says, unless there is one from before."""
    if (run.model / "README.md").is_file():
        return
    recipe = public_recipe(recipe)
    metadata = ModelCardData(license=recipe.model.license, tags=["hftoolkit", recipe.tuning.method])
    text = "This model is exported and checked, but no results are shown: its card could not be written in full."
    write_folder_card(run.model, metadata, (f"# A model of {recipe.task.kind}", text, recipe_section(recipe)))


def write_unfinished_card(
    folder: Path, recipe: Recipe, task: Task, data: Mapping[str, Any], base: str | None, best: Checkpoint
) -> None:
    """Write the card of the best model so far into its folder; arguments as those of ``write_card``."""
    recipe, metric = public_recipe(recipe), recipe.evaluation.best_by
    metadata = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag=task.pipeline_tag,
        license=recipe.model.license,
        tags=["hftoolkit", recipe.tuning.method, "unfinished"],
    )
    state = f"""**Unfinished.** These are the best weights so far, of step {best.step}, of a training that goes on. The
finished model will take their place.

- {metric} on the validation split, which chose them: {best.metrics[metric]:.3f}. Nothing was measured on test data.
- Probabilities are not calibrated yet, and predictions were not compared with those of the trained model."""
    title, use = _opening(task.card({}))
    write_folder_card(folder, metadata, (title, state, use, _data(recipe, data), recipe_section(recipe)))


def write_folder_card(folder: Path, metadata: ModelCardData, sections: Sequence[str]) -> None:
    """Write ``README.md`` of a model folder: metadata as YAML, then the sections."""
    text = "\n\n".join((f"---\n{metadata.to_yaml()}\n---", *sections)) + "\n"
    (folder / "README.md").write_text(str(ModelCard(text)), encoding="utf-8")


def public_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe without folders of this machine."""
    data = recipe.data.model_copy(update={"source": public_address(recipe.data.source)})
    backbone = recipe.model.backbone
    model = recipe.model.model_copy(update={"backbone": backbone and public_address(backbone)})
    extra = tuple(map(public_address, recipe.evaluation.extra_metrics))
    evaluation = recipe.evaluation.model_copy(update={"extra_metrics": extra})
    return recipe.model_copy(update={"data": data, "model": model, "evaluation": evaluation})


def _measured(recipe: Recipe, task: Task, results: Mapping[str, Any]) -> list[EvalResult]:
    dataset, metrics = _dataset_name(recipe.data.source), results["test"]["metrics"]
    return [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type=dataset.lower(),
            dataset_name=dataset,
            dataset_split="test",
            metric_type=key,
            metric_name=name,
            metric_value=round(metrics[key], 4),
        )
        for key, name in task.headline.items()
        if key in metrics
    ]


def _dataset_name(address: str) -> str:
    return visible(address.rpartition("/")[2].partition(".")[0] or address)


def _opening(words: CardText) -> tuple[str, str]:
    """Return the title, and how the model is used."""
    return f"# {words.title}", f"## Use\n\n{code_block(words.usage, 'python')}"


def recipe_section(recipe: AnyRecipe) -> str:
    """Return the section that shows a recipe whole."""
    return f"## Recipe\n\n{code_block(dump_recipe(recipe), 'yaml')}"


def _results(results: Mapping[str, Any], headline: Mapping[str, str]) -> str:
    test = results["test"]
    missing = test.get("unmeasured", [])
    without = f" Not measured, because no test rows have it: {markdown(listed(missing))}." if missing else ""
    rows = {"this model": test, **results.get("baselines", {})}
    lines = [
        f"## Results\n\n{test['examples']} test examples; 95 % bootstrap intervals; the same split for every row."
        f"{without}\n",
        "| model | " + " | ".join(headline.values()) + " |",
        "|---" * (len(headline) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(_cell(measured, key) for key in headline) + " |"
            for name, measured in rows.items()
        ),
    ]
    extra = extra_values(test["metrics"])
    if extra:
        lines += ["\nMetrics of others (`evaluation.extra_metrics`), of this model, without intervals:\n"]
        lines += [f"- {markdown(name)}: {value:.4g}" for name, value in extra.items()]
    return "\n".join(lines)


def _drawn(pictures: str, folder: Path) -> str:
    """Return Markdown of pictures, or nothing where one of them was not drawn."""
    return pictures if all((folder / name).is_file() for name in re.findall(r"\]\(([^)]+)\)", pictures)) else ""


def _cell(measured: Mapping[str, Any], key: str) -> str:
    if key not in measured["metrics"]:
        return "-"
    low, high = measured["intervals"][key]
    return f"{measured['metrics'][key]:.3f} [{low:.3f}, {high:.3f}]"


def _data(recipe: Recipe, data: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {count}" for name, count in data["sizes"].items())
    return f"""## Data

- Source: {code_span(recipe.data.source)}{licence(recipe.data.license)}
- Weights: {_weights(recipe)}
- Rows: {sizes}; left out: {sum(data["skipped"].values())}
- Fingerprint of the split (SHA-256): `{data["fingerprint"]}`"""


def _weights(recipe: Recipe) -> str:
    backbone = recipe.model.backbone
    return f"{code_span(backbone)}{licence(recipe.model.license)}" if backbone else "random ones, trained from scratch"


def licence(name: str | None) -> str:
    """Return what a card says of a licence, after a comma."""
    return f", licence: {markdown(name)}" if name else ", licence: not stated in the recipe"
