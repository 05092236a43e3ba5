"""The model card of a policy, from the evidence of its run."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hftoolkit.contracts.names import markdown
from hftoolkit.hub.card import recipe_section, write_folder_card
from hftoolkit.recipe import Dqn, MlpNetwork, ReinforcementRecipe
from hftoolkit.rl.environments import Translation
from hftoolkit.runs.directory import RunDir


def write_policy_card(
    run: RunDir, recipe: ReinforcementRecipe, results: Mapping[str, Any], translation: Translation
) -> None:
    """Write ``model/README.md`` of a reinforcement-learning run.

    Args:
        run: a run whose policy is saved.
        recipe: the recipe of the run.
        results: the content of results.json.
        translation: from the observations and actions of the environment to those of the policy.
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
    write_folder_card(run.model, metadata, _policy_sections(recipe, results, translation))


def _policy_sections(
    recipe: ReinforcementRecipe, results: Mapping[str, Any], translation: Translation
) -> tuple[str, ...]:
    rows = {"this policy": results["test"], **results["baselines"]}
    lines = [f"| {name} | {_return_cell(measured)} |" for name, measured in rows.items()]
    return (
        f"# {recipe.algorithm.kind} on {markdown(recipe.environment.id)}",
        f"## Use\n\n{_policy_use(recipe, translation)}{_about_masks(translation)}",
        f"## Results\n\n{results['test']['examples']} greedy episodes with fixed seeds, after "
        f"{results['train']['steps']} environment steps; mean return with its 95 % bootstrap interval over episodes. "
        "One training seed: another one may do better or worse.\n\n| policy | mean return |\n|---|---|\n"
        + "\n".join(lines),
        recipe_section(recipe),
    )


def _return_cell(measured: Mapping[str, Any]) -> str:
    low, high = measured["intervals"]["mean_return"]
    return f"{measured['metrics']['mean_return']:.3g} [{low:.3g}, {high:.3g}]"


def _policy_use(recipe: ReinforcementRecipe, translation: Translation) -> str:
    """Return how to act with the weights alone, where that fits a few lines of plain PyTorch or NumPy."""
    algorithm = recipe.algorithm
    first = f" + {translation.first_action}" if translation.first_action else ""
    if not isinstance(algorithm, Dqn):
        return _table_use(translation, first)
    if not isinstance(algorithm.network, MlpNetwork) or (translation.flatten == "space" and translation.mask):
        return _OTHER_USE.format(masks="masks" if translation.mask else "None", first=first)
    normed = algorithm.network.layer_norm
    functions, layer = ("layer_norm, linear, relu", _NORMED_LAYER) if normed else ("linear, relu", _LAYER)
    return _MLP_USE.format(
        functions=f"{functions}, one_hot" if translation.num_states is not None else functions,
        imports="".join(f"{line}\n" for line in _imports(translation)),
        tensors="float32, inf, tensor, where" if translation.mask else "float32, tensor",
        seen=_seen(translation),
        normalize=_NORMALIZE if algorithm.normalize_observations else "",
        layer=layer,
        actions=_ACTIONS if algorithm.dueling else "",
        mask=f"values = where(tensor({translation.mask}).bool(), values, -inf)\n" if translation.mask else "",
        first=first,
    )


def _imports(translation: Translation) -> list[str]:
    return ["from gymnasium.spaces.utils import flatten"] if translation.flatten == "space" else []


def _seen(translation: Translation) -> str:
    """Return Python that makes the vector that the network sees of the environment's own observation."""
    own = "observation" if translation.key is None else f'observation["{translation.key}"]'
    if translation.num_states is not None:
        number = f"{own} - {translation.first_state}" if translation.first_state else own
        return f"one_hot(tensor({number}), {translation.num_states}).float()"
    if translation.flatten == "space":
        return f"tensor(flatten(env.observation_space, {own}), dtype=float32)"
    return f"tensor({own}, dtype=float32)" + (".flatten()" if translation.flatten == "array" else "")


def _table_use(translation: Translation, first: str) -> str:
    own = "state" if translation.key is None else f'observation["{translation.key}"]'
    number = f"{own} - {translation.first_state}" if translation.first_state else own
    values = f"table[{number}]"
    if translation.mask is None:
        return _TABLE_USE.format(numpy="", values=values, first=first)
    return _TABLE_USE.format(
        numpy="import numpy as np\n", values=f"np.where({translation.mask}, {values}, -np.inf)", first=first
    )


def _about_masks(translation: Translation) -> str:
    if translation.mask is None:
        return ""
    return (
        f"\n\nNot every action is always allowed: the action mask, `{translation.mask}` after each reset and step, has "
        "a 1 for each that is."
    )


_TABLE_USE = """```python
{numpy}from safetensors.numpy import load_file

table = load_file("model.safetensors")["table"]  # (states, actions)
action = {values}.argmax(){first}
```"""

_MLP_USE = """```python
{imports}from safetensors.torch import load_file
from torch import {tensors}
from torch.nn.functional import {functions}

weights = load_file("model.safetensors")
names = {{key.rpartition(".")[0] for key in weights if key.endswith(".weight")}}  # encoder.0, encoder.2, ..., head
values = {seen}
{normalize}for name in sorted(names, key=lambda name: (name == "head", len(name), name)):
    weight, bias = weights[f"{{name}}.weight"], weights[f"{{name}}.bias"]
{layer}
{actions}{mask}action = values.argmax().item(){first}
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
actions = policy.act(observations, {masks}){first}  # (N, ...) -> (N,)
```"""
