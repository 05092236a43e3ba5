"""Tabular Q-learning and SARSA: one value for each state and action, corrected after every step.

Q-learning   target = reward + discount * value of the best action in the next state
SARSA        target = reward + discount * value of the action taken next, which may be a random one
both         value += rate * (target - value)

``advance`` is the loop; read it first.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hftoolkit.errors import RecipeError
from hftoolkit.recipe import QLearning, Sarsa
from hftoolkit.rl.environments import Environments
from hftoolkit.rl.running_means import RunningMeans
from hftoolkit.rl.schedules import epsilon_at, learning_rate_at
from hftoolkit.seeding import numpy_generator


class TablePolicy:
    """Takes the action of the highest value, the first of equals.

    Args:
        table: (S, A), a value for each state and action.
    """

    def __init__(self, table: np.ndarray) -> None:
        self._table = table

    def act(self, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Return the best action, (N,) int, for each one-hot vector, (N, S), among those that masks, (N, A), allow."""
        actions: np.ndarray = _allowed(self._table[_states(observations)], masks).argmax(axis=1)
        return actions


class TabularAgent:
    """An agent that learns while it acts, in N environments with S states and A actions.

    Args:
        section: the algorithm.
        environments: where it acts.
        seed: of exploration.
        total_steps: environment steps after which its schedules end.

    Attributes:
        step: environment steps done, over all environments. The schedules count these.
        table: (S, A) float64, the return that is expected after each action in each state.
        policy: the greedy policy of this table.

    Raises:
        RecipeError: the environment does not number its states.
    """

    def __init__(self, section: QLearning | Sarsa, environments: Environments, *, seed: int, total_steps: int) -> None:
        if environments.num_states is None:
            raise RecipeError(
                f"algorithm.kind: {section.kind} needs numbered states (Discrete), and this environment shows "
                f"{environments.observation_space}; use algorithm.kind: dqn"
            )
        self.section, self.environments, self.total_steps = section, environments, total_steps
        self.step = 0
        self.table = np.full((environments.num_states, environments.num_actions), section.initial_value)
        self.policy = TablePolicy(self.table)
        self._generator = numpy_generator(seed, "exploration")
        self._statistics = RunningMeans()
        self._actions = self._explore(environments.observations, environments.masks)  # (N,), what it does next

    def advance(self) -> None:
        """Act once in every environment, and correct the values of what was done."""
        states, actions = _states(self.environments.observations), self._actions
        learning_rate = learning_rate_at(self.section, self.step, self.total_steps)
        outcome = self.environments.step(actions)
        self.step += self.environments.num_envs
        is_sarsa = isinstance(self.section, Sarsa)
        choose = self._explore if is_sarsa else self.act
        next_actions = choose(outcome.next_observations, outcome.next_masks)
        next_values = self.table[_states(outcome.next_observations), next_actions]
        # Only a terminated episode has nothing more to expect; a truncated one could have gone on.
        targets = outcome.rewards + self.section.discount * np.where(outcome.terminated, 0.0, next_values)
        self._correct(states, actions, targets, learning_rate)
        self._actions = self._explore(self.environments.observations, self.environments.masks)
        if is_sarsa:
            ended = outcome.terminated | outcome.truncated
            self._actions = np.where(ended, self._actions, next_actions)
        for episode_return, length in outcome.finished:
            self._statistics.add(episode_return=episode_return, episode_length=length)

    def act(self, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Return the best actions, as ``TablePolicy`` does."""
        return self.policy.act(observations, masks)

    def report(self) -> dict[str, float]:
        """Return means since the last report, and the epsilon and learning rate of now.

        ``td_error`` is the mean absolute error over steps; ``episode_return`` and ``episode_length`` are there if
        episodes ended.
        """
        return {
            **self._statistics.pop(),
            "epsilon": epsilon_at(self.section, self.step, self.total_steps),
            "learning_rate": learning_rate_at(self.section, self.step, self.total_steps),
        }

    def advice(self) -> list[str]:
        """Return nothing: a table takes numbers of any size."""
        return []

    def begin_with(self, weights: Mapping[str, Any]) -> None:
        """Take the table of a policy that was saved.

        Raises:
            RecipeError: it has other states or actions, or is no table.
        """
        table = weights.get("table")
        if table is None or tuple(table.shape) != self.table.shape:
            found, needed = ("no table" if t is None else " x ".join(map(str, t.shape)) for t in (table, self.table))
            raise RecipeError(
                f"train.start_from: {self.section.kind} needs a table of {needed} (states and actions), and there is "
                f"{found}; name a run of this algorithm in this environment"
            )
        self.table[:] = np.asarray(table)
        self._actions = self._explore(self.environments.observations, self.environments.masks)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all that decides what comes next: arrays, and values that JSON can hold."""
        arrays = {"table": self.table.copy(), "actions": self._actions, "observations": self.environments.observations}
        values = {
            "step": self.step,
            "generator": self._generator.bit_generator.state,
            "environments": self.environments.state(),
            "statistics": self._statistics.state(),
        }
        return arrays, values

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take back what ``state`` gave.

        Raises:
            DataError: the environments cannot be brought back.
        """
        self.environments.restore(values["environments"], arrays["observations"])
        self.table[:] = arrays["table"]
        self._actions = arrays["actions"].copy()
        self._generator.bit_generator.state = values["generator"]
        self.step = values["step"]
        self._statistics.restore(values["statistics"])

    def _explore(self, observations: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        """Return allowed actions, (N,) int: any with probability epsilon, else one of the best."""
        values = _allowed(self.table[_states(observations)], masks)
        random = self._generator.random(len(values)) < epsilon_at(self.section, self.step, self.total_steps)
        candidates = np.where(random[:, None], values > -np.inf, values == values.max(axis=1, keepdims=True))
        lots = np.where(candidates, self._generator.random(values.shape), -1.0)
        actions: np.ndarray = lots.argmax(axis=1)
        return actions

    def _correct(self, states: np.ndarray, actions: np.ndarray, targets: np.ndarray, learning_rate: float) -> None:
        """Move the values of states and actions towards their targets, all (N,)."""
        for state, action, target in zip(states, actions, targets, strict=True):  # two may be of one state and action
            error = float(target - self.table[state, action])
            self.table[state, action] += learning_rate * error
            self._statistics.add(td_error=abs(error))


def _states(observations: np.ndarray) -> np.ndarray:
    """Return the numbers, (N,), of one-hot vectors, (N, S)."""
    states: np.ndarray = observations.argmax(axis=-1)
    return states


def _allowed(values: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """Return values, (N, A), with minus infinity for actions that masks, (N, A), do not allow."""
    return values if masks is None else np.where(masks, values, -np.inf)
