"""The model card of a policy, from the evidence of its run."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hftoolkit.contracts.names import markdown
from hftoolkit.hub.card import recipe_section, write_folder_card
from hftoolkit.recipe import Dqn, MlpNetwork, ReinforcementRecipe
from hftoolkit.runs.directory import RunDir


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
    write_folder_card(run.model, metadata, _policy_sections(recipe, results))


def _policy_sections(recipe: ReinforcementRecipe, results: Mapping[str, Any]) -> tuple[str, ...]:
    rows = {"this policy": results["test"], **results["baselines"]}
    lines = [f"| {name} | {_return_cell(measured)} |" for name, measured in rows.items()]
    return (
        f"# {recipe.algorithm.kind} on {markdown(recipe.environment.id)}",
        f"## Use\n\n{_policy_use(recipe)}",
        f"## Results\n\n{results['test']['examples']} greedy episodes with fixed seeds, after "
        f"{results['train']['steps']} environment steps; mean return with its 95 % bootstrap interval over episodes. "
        "One training seed: another one may do better or worse.\n\n| policy | mean return |\n|---|---|\n"
        + "\n".join(lines),
        recipe_section(recipe),
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
import hftoolkit

policy = hftoolkit.load("path/or/repository")
actions = policy.act(observations, None)  # (N, ...) -> (N,)
```"""
