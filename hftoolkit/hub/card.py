"""The model card, from the evidence of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hftoolkit.checkpoint import Checkpoint
from hftoolkit.recipe import (
    AnyRecipe,
    Dqn,
    ImageRecipe,
    MlpNetwork,
    Model,
    Recipe,
    RecommendationRecipe,
    ReinforcementRecipe,
    TextRecipe,
    dump_recipe,
)
from hftoolkit.rundir import RunDir
from hftoolkit.sources import Resolved, public_address

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
    _write(run.model, _metadata(recipe, results, base), _sections(recipe, results, data))


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
    _write(folder, metadata, (title, state, use, _data(recipe, data), _recipe_section(recipe)))


def _write(folder: Path, metadata: ModelCardData, sections: Sequence[str]) -> None:
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
    return (*_opening(recipe, data), found, _data(recipe, data), _limits(recipe, results), _recipe_section(recipe))


def _opening(recipe: Recipe, data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the title, and how the model is used."""
    noun, use = ("Image", _IMAGE_USE) if isinstance(recipe, ImageRecipe) else ("Text", _TEXT_USE)
    return f"# {noun} classifier: {', '.join(data['class_counts']['train'])}", f"## Use\n\n```python\n{use}\n```"


def _recipe_section(recipe: AnyRecipe) -> str:
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

- Source: `{recipe.data.source}`{_licence(recipe.data.license)}
- Weights: {_weights(recipe)}
- Rows: {sizes}; left out: {sum(data["skipped"].values())}
- Fingerprint of the split (SHA-256): `{data["fingerprint"]}`"""


def _weights(recipe: Recipe) -> str:
    backbone = recipe.model.backbone
    return f"`{backbone}`{_licence(recipe.model.license)}" if backbone else "random ones, trained from scratch"


def _licence(name: str | None) -> str:
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


def write_policy_card(run: RunDir, recipe: ReinforcementRecipe, results: Mapping[str, Any]) -> None:
    """Write ``model/README.md`` of a reinforcement-learning run.

    Args:
        run: a run whose policy is saved.
        recipe: the recipe of the run.
        results: the content of results.json.
    """
    environment, kind = recipe.environment.id, recipe.algorithm.kind
    test = results["test"]
    measured = EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=environment,
        dataset_name=environment,
        metric_type="mean_reward",
        metric_value=f"{test['metrics']['mean_return']:.2f} +/- {test['metrics']['std_return']:.2f}",
    )
    metadata = ModelCardData(
        model_name=f"{kind}-{environment}",
        library_name="hftoolkit",
        pipeline_tag="reinforcement-learning",
        tags=["hftoolkit", "reinforcement-learning", kind, environment],
        eval_results=[measured],
    )
    _write(run.model, metadata, _policy_sections(recipe, results))


def _policy_sections(recipe: ReinforcementRecipe, results: Mapping[str, Any]) -> tuple[str, ...]:
    rows = {"this policy": results["test"], **results["baselines"]}
    lines = [f"| {name} | {_return_cell(measured)} |" for name, measured in rows.items()]
    return (
        f"# {recipe.algorithm.kind} on {recipe.environment.id}",
        f"## Use\n\n{_policy_use(recipe)}",
        f"## Results\n\n{results['test']['examples']} greedy episodes with fixed seeds, after "
        f"{results['train']['steps']} environment steps; mean return with its 95 % bootstrap interval over episodes. "
        "One training seed: another one may do better or worse.\n\n| policy | mean return |\n|---|---|\n"
        + "\n".join(lines),
        _recipe_section(recipe),
    )


def _return_cell(measured: Mapping[str, Any]) -> str:
    low, high = measured["intervals"]["mean_return"]
    return f"{measured['metrics']['mean_return']:.3g} [{low:.3g}, {high:.3g}]"


def _policy_use(recipe: ReinforcementRecipe) -> str:
    """Return how to act with the weights alone, where that fits a few lines of plain PyTorch or NumPy."""
    algorithm = recipe.algorithm
    if not isinstance(algorithm, Dqn):
        return _TABLE_USE
    if not isinstance(algorithm.network, MlpNetwork):
        return _OTHER_USE
    normalize = _NORMALIZE if algorithm.normalize_observations else ""
    actions = _ACTIONS if algorithm.dueling else ""
    normed = algorithm.network.layer_norm
    functions, layer = ("layer_norm, linear, relu", _NORMED_LAYER) if normed else ("linear, relu", _LAYER)
    return _MLP_USE.format(functions=functions, normalize=normalize, layer=layer, actions=actions)


_TABLE_USE = """```python
from safetensors.numpy import load_file

table = load_file("model.safetensors")["table"]  # (states, actions)
action = table[state].argmax()
```"""

_MLP_USE = """```python
from safetensors.torch import load_file
from torch import float32, tensor
from torch.nn.functional import {functions}

weights = load_file("model.safetensors")
names = {{key.rpartition(".")[0] for key in weights if key.endswith(".weight")}}  # encoder.0, encoder.2, ..., head
values = tensor(observation, dtype=float32)
{normalize}for name in sorted(names, key=lambda name: (name == "head", len(name), name)):
    weight, bias = weights[f"{{name}}.weight"], weights[f"{{name}}.bias"]
{layer}
{actions}action = values.argmax().item()
```"""

_NORMALIZE = """mean, variance = weights["normalizer.mean"], weights["normalizer.variance"]
values = ((values - mean) / (variance + 1e-8).sqrt()).clamp(-10, 10)
"""

_LAYER = """    values = linear(values, weight, bias)
    if name != "head":
        values = relu(values)"""

_NORMED_LAYER = """    if weight.ndim == 2:
        values = linear(values, weight, bias)
    else:
        values = relu(layer_norm(values, weight.shape, weight, bias))"""

_ACTIONS = """values = values[:-1]  # the last one is the state value, which changes no choice
"""

_OTHER_USE = """```python
from pathlib import Path

from hftoolkit.rl.artifact import load_policy

policy = load_policy(Path("path/of/this/folder"))
actions = policy.act(observations, None)  # (N, ...) -> (N,)
```"""


def write_recommender_card(
    run: RunDir, recipe: RecommendationRecipe, results: Mapping[str, Any], data: Mapping[str, Any], base: str | None
) -> None:
    """Write ``model/README.md`` of a recommender: use, results with intervals, data fingerprint, limits, recipe.

    Args:
        run: a run whose model is exported.
        recipe: the recipe of the run.
        results: the content of results.json.
        data: the content of data.json.
        base: Hub id of the pretrained weights, if they have one.
    """
    tables = recipe.data.interactions, recipe.data.items
    sources = [f"`{public_address(table.source)}`" for table in tables]
    metadata = ModelCardData(
        base_model=base,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        license=recipe.model.license,
        tags=["hftoolkit", "recommendation", recipe.tuning.method],
    )
    k, test = results["cutoff"], results["test"]
    rows = {"sum of parts": test, **results["baselines"]}
    lines = [f"| {name} | {_ranked_cell(row, 'hr')} | {_ranked_cell(row, 'ndcg')} |" for name, row in rows.items()]
    weights = ", ".join(f"{name} {weight:.3f}" for name, weight in results["weights"].items())
    sections = (
        f"# Item tower and recommender, {data['users']} users and {data['items']} items",
        f"## Use\n\nThe item tower alone:\n\n```python\n{_TOWER_USE}\n```\n\n"
        f"Everything, with `hftoolkit`: `recommender/` holds the parts whose standardized scores are added ({weights}) "
        "as safetensors and JSON.\n\n```python\n" + _RECOMMENDER_USE + "\n```",
        f"## Results\n\nProtocol {results['protocol']}; {test['examples']} users, all items ranked, own history left "
        f"out; 95 % bootstrap intervals.\n\n| model | HR@{k} | NDCG@{k} |\n|---|---|---|\n" + "\n".join(lines),
        f"## Data\n\n- Sources: {', '.join(sources)}{_licence(recipe.data.license)}\n"
        f"- Fingerprint of the split (SHA-256): `{data['fingerprint']}`",
        f"## Limits\n\n- {data['ties']['interactions']:.0%} of the interactions share their time with the one before; "
        "the order of the file decided between them.\n- Lists favour what was popular in the training log. New items "
        "are known by their texts alone.\n- Histories of users are personal data and not part of this folder.",
        _recipe_section(_public_tables(recipe)),
    )
    _write(run.model, metadata, sections)


def _public_tables(recipe: RecommendationRecipe) -> RecommendationRecipe:
    """The recipe without folders of this machine."""
    data = recipe.data
    public = {
        name: table.model_copy(update={"source": public_address(table.source)})
        for name, table in (("interactions", data.interactions), ("items", data.items), ("users", data.users))
        if table is not None
    }
    model = recipe.model.model_copy(update={"backbone": public_address(recipe.model.backbone)})
    return recipe.model_copy(update={"data": data.model_copy(update=public), "model": model})


def _ranked_cell(measured: Mapping[str, Any], metric: str) -> str:
    low, high = measured["intervals"][metric]
    return f"{measured['metrics'][metric]:.3f} [{low:.3f}, {high:.3f}]"


_TOWER_USE = """from sentence_transformers import SentenceTransformer

tower = SentenceTransformer("path/or/repository")
vectors = tower.encode(["Toy Story (1995). Animation, Children's, Comedy"])  # length 1; compare by dot product"""

_RECOMMENDER_USE = """import numpy as np
from pathlib import Path

from hftoolkit.histories import Histories
from hftoolkit.models.recommend_parts import Queries
from hftoolkit.models.recommender import Recommender

recommender = Recommender.load(Path("path/recommender"))
chosen = recommender.catalogue.ids[:3]  # by a user, oldest first
history = [recommender.catalogue.ids.index(item) for item in chosen]
allowed = np.ones((1, len(recommender.catalogue)), dtype=bool)
allowed[0, history] = False
groups = np.zeros((1, recommender.num_groups), dtype=np.float32)  # of the user, where they are known
scores = recommender.scores(Queries(Histories.of([history]), groups), allowed)
best = np.where(allowed, scores, -np.inf)[0].argsort()[::-1][:10]
print([recommender.catalogue.titles[item] for item in best])"""
