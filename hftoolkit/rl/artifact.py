"""A trained policy on disk: safetensors and JSON, nothing that runs code when it is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from hftoolkit.errors import ArtifactError, DataError
from hftoolkit.models.folders import UNREADABLE
from hftoolkit.recipe import Algorithm, Dqn, ReinforcementRecipe
from hftoolkit.rl.dqn import DqnAgent, QPolicy
from hftoolkit.rl.encoders import perception
from hftoolkit.rl.evaluation import Policy
from hftoolkit.rl.networks import build_network
from hftoolkit.rl.tabular import TablePolicy, TabularAgent

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save_policy(folder: Path, agent: DqnAgent | TabularAgent, recipe: ReinforcementRecipe) -> None:
    """Write ``model.safetensors`` and ``config.json``, in place of what an interrupted run may have left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "algorithm": recipe.algorithm.model_dump(mode="json"),
        "environment": recipe.environment.model_dump(mode="json"),
        "num_actions": agent.environments.num_actions,
        "num_states": agent.environments.num_states,
    }
    if isinstance(agent, DqnAgent):
        example = agent.environments.observations[0]
        config["observation"] = {"shape": list(example.shape), "dtype": str(example.dtype)}
    save_file(_tensors(agent), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_saved(folder: Path, agent: DqnAgent | TabularAgent) -> None:
    """Raise ArtifactError unless what was written is read back as the weights of the agent, and makes a policy."""
    load_policy(folder)
    written, held = load_file(folder / WEIGHTS), _tensors(agent)
    if written.keys() != held.keys() or not all(torch.equal(written[name], held[name]) for name in held):
        raise ArtifactError(f"the weights read back from {folder} are not those that were trained")


def _tensors(agent: DqnAgent | TabularAgent) -> dict[str, torch.Tensor]:
    if isinstance(agent, DqnAgent):
        # Copies, because weights may be views of one vector or have channels last, which the format does not know.
        plain = torch.contiguous_format
        weights = agent.online.state_dict()
        return {name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in weights.items()}
    return {"table": torch.from_numpy(agent.table.copy())}


def load_policy(folder: Path) -> Policy:
    """Return the greedy policy that ``save_policy`` wrote.

    Raises:
        DataError: a file is missing, damaged, or does not fit the other.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        algorithm: Algorithm = TypeAdapter[Algorithm](Algorithm).validate_python(config["algorithm"], strict=False)
        tensors = load_file(folder / WEIGHTS)
        policy: Policy
        if not isinstance(algorithm, Dqn):
            policy = TablePolicy(tensors["table"].numpy())
        else:
            seen = config["observation"]
            example = torch.zeros(seen["shape"], dtype=getattr(torch, seen["dtype"])).numpy()
            perceive = perception(algorithm.network, example)
            network = build_network(algorithm, perceive(example[None])[0], config["num_actions"])
            network.load_state_dict(tensors)
            policy = QPolicy(network.eval(), perceive, torch.device("cpu"))
        num_states = config.get("num_states")  # folders written before 0.4 lack it
        return policy if num_states is None else NumberedStates(policy, num_states)
    except UNREADABLE as error:
        raise DataError(f"the policy in {folder} cannot be read: {error}") from error


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return what ``save_policy`` wrote of a network or a table.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS)
    except UNREADABLE as error:
        raise DataError(f"the policy in {folder} cannot be read: {error}") from error


class NumberedStates:
    """A policy that takes the numbers of states as well as one-hot vectors.

    Args:
        policy: takes one-hot vectors, (N, S).
        num_states: S.
    """

    def __init__(self, policy: Policy, num_states: int) -> None:
        self.policy, self._num_states = policy, num_states

    def act(self, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Return the best action, (N,) int, for states, (N,) int from 0 or (N, S) one-hot, among those masks allow."""
        states = np.asarray(observations)
        if states.ndim > 1:
            return self.policy.act(states, masks)
        vectors = np.zeros((len(states), self._num_states), np.float32)
        vectors[np.arange(len(states)), states] = 1
        return self.policy.act(vectors, masks)
