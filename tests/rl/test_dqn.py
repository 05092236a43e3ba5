"""DQN against plain torch, hand-made tables of values, and value iteration."""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from hftoolkit.errors import DataError, TrainingError
from hftoolkit.recipe import Dqn, Environment, Interaction, MlpNetwork
from hftoolkit.rl.dqn import DqnAgent, Learner, QPolicy
from hftoolkit.rl.encoders import Perception
from hftoolkit.rl.environments import Environments, Step, make_environment
from hftoolkit.rl.evaluation import Episodes, evaluate_policy
from hftoolkit.rl.replay import Transitions
from hftoolkit.rl.speedups import FastLearner
from hftoolkit.rl.training import Training

pytestmark = pytest.mark.smoke

CPU = torch.device("cpu")


class Meadow(gymnasium.Env[np.ndarray, int]):
    """Where four numbers drift with noise and actions; episodes of 1 to 8 steps are cut off or terminate.

    Args:
        masked: forbid one action or two.
        broken_after: steps after which rewards are broken.
        broken: what they are then.
        calm: rewards are 0.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(
        self,
        masked: bool = False,
        broken_after: int = -1,
        broken: str = "nan",
        calm: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.masked, self.broken_after, self.broken, self.calm = masked, broken_after, float(broken), calm
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=4).astype(np.float32)
        self.left = int(self.np_random.integers(1, 9))
        self.terminates = bool(self.np_random.integers(2))
        return self.place, self.info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        push = np.roll([1.0, 0.5, 0.0, -1.0], action)
        self.place = np.tanh(self.place + push + self.np_random.normal(scale=0.3, size=4)).astype(np.float32)
        self.left -= 1
        reward = 0.0 if self.calm else float(self.place[0] - self.place[3])
        if 0 <= self.broken_after < self.steps:
            reward = self.broken
        over = self.left == 0
        return self.place, reward, over and self.terminates, over and not self.terminates, self.info()

    def info(self) -> dict[str, Any]:
        if not self.masked:
            return {}
        mask = self.np_random.random(3) < 0.4
        mask[self.np_random.integers(3)] = True
        return {"action_mask": mask.astype(np.int8)}


class Chain(gymnasium.Env[np.ndarray, int]):
    """Five states in a row, shown one-hot; the last one is the end. An episode begins in any other.

    Actions: 0 left, 1 right, 2 stay. What they bring is in ``move``. With masks, staying is forbidden in odd states.
    """

    observation_space = spaces.Box(0, 1, (5,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, masked: bool = False, render_mode: str | None = None) -> None:
        self.masked = masked

    @staticmethod
    def move(state: int, action: int) -> tuple[int, float, bool]:
        following = max(0, state + (-1, 1, 0)[action])
        reward = 1.0 if following == 4 else 0.3 if (state, action) == (0, 0) else (0.0, -0.1, 0.12)[action]
        return following, reward, following == 4

    @staticmethod
    def mask(state: int) -> np.ndarray:
        return np.array([True, True, state % 2 == 0])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(4))
        return self.show(), self.info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.state, reward, terminated = self.move(self.state, action)
        return self.show(), reward, terminated, False, self.info()

    def show(self) -> np.ndarray:
        return np.eye(5, dtype=np.float32)[self.state]

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.mask(self.state)} if self.masked else {}


@pytest.fixture(autouse=True)
def worlds() -> Iterator[None]:
    for world in (Meadow, Chain):
        gymnasium.register(f"{world.__name__}-v0", world)
    yield
    for world in (Meadow, Chain):
        del gymnasium.registry[f"{world.__name__}-v0"]


def section(**knobs: Any) -> Dqn:
    small = {
        "network": MlpNetwork(hidden_sizes=(16,)),
        "learning_rate": 1e-2,
        "batch_size": 8,
        "learning_starts": 12,
        "update_every": 4,
        "target_update_every": 20,
        "replay_size": 60,
    }
    return Dqn(kind="dqn", **small | knobs)


def agent_in(
    world: str,
    algorithm: Dqn,
    *,
    num_envs: int = 3,
    seed: int = 0,
    total_steps: int = 200,
    speedups: bool = True,
    **knobs: Any,
) -> DqnAgent:
    limit = knobs.pop("max_episode_steps", None)
    where = Environment(id=f"{world}-v0", num_envs=num_envs, options=knobs, max_episode_steps=limit)
    environments = Environments(where, seed=seed)
    return DqnAgent(
        algorithm, environments, pixels=None, seed=seed, total_steps=total_steps, device=CPU, speedups=speedups
    )


with_and_without_speedups = pytest.mark.parametrize("speedups", [True, False], ids=["auto", "none"])


def weights_of(network: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


class Table(nn.Module):
    """Values that are looked up by number instead of computed."""

    def __init__(self, values: list[list[float]]) -> None:
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.values[numbers[:, 0].long()]


def transitions(following: list[int], returns: list[float], discounts: list[float], masks: Any = None) -> Transitions:
    number = len(following)
    return Transitions(
        observations=np.zeros((number, 1), np.float32),
        actions=np.zeros(number, np.int64),
        returns=np.array(returns, np.float32),
        discounts=np.array(discounts, np.float32),
        next_observations=np.array(following, np.float32)[:, None],
        next_masks=None if masks is None else np.array(masks, bool),
        weights=None,
        indices=np.arange(number),
    )


ONLINE = [[1.0, 5.0, 3.0], [7.0, 2.0, 6.0]]
TARGET = [[10.0, 20.0, 40.0], [60.0, 50.0, 30.0]]


@pytest.mark.parametrize(
    ("double", "masks", "values"),
    [
        (False, None, [40.0, 60.0]),
        (True, None, [20.0, 60.0]),
        (False, [[1, 1, 0], [0, 1, 1]], [20.0, 50.0]),
        (True, [[1, 0, 1], [0, 1, 1]], [40.0, 30.0]),
    ],
)
def test_targets_are_rewards_and_the_discounted_value_of_the_preferred_allowed_action(
    double: bool, masks: Any, values: list[float]
) -> None:
    agent = agent_in("Meadow", section(double=double))
    agent.online, agent.target = Table(ONLINE), Table(TARGET)  # type: ignore[assignment]
    # gamma to the power of 1 and of 3, and a termination
    batch = transitions([0, 1, 0], [1.0, -2.0, 3.0], [0.9, 0.729, 0.0], masks and [*masks, [1, 1, 1]])
    targets = agent.targets(batch)
    wanted = [1 + 0.9 * values[0], -2 + 0.729 * values[1], 3.0]
    torch.testing.assert_close(targets, torch.tensor(wanted))
    assert not targets.requires_grad


@pytest.mark.parametrize("double", [False, True])
def test_a_terminated_state_that_allows_nothing_is_worth_nothing(double: bool) -> None:
    agent = agent_in("Meadow", section(double=double))
    agent.online, agent.target = Table(ONLINE), Table(TARGET)  # type: ignore[assignment]
    targets = agent.targets(transitions([0], [3.0], [0.0], [[0, 0, 0]]))
    torch.testing.assert_close(targets, torch.tensor([3.0]))


@pytest.mark.parametrize("double", [False, True])
def test_an_environment_that_allows_nothing_at_its_end_gives_finite_targets(double: bool) -> None:
    class Closing(Meadow):
        def info(self) -> dict[str, Any]:
            return {"action_mask": np.full(3, self.left > 0)}

    gymnasium.register("Closing-v0", Closing)
    agent = agent_in("Closing", section(double=double, n_steps=2), num_envs=2)
    for _ in range(40):
        agent.advance()
        batch = agent.replay.sample(50, np.random.default_rng(0))
        assert torch.isfinite(agent.targets(batch)).all()
    assert agent.updates > 10 and (batch.discounts == 0).any()
    assert batch.next_masks is not None and batch.next_masks[batch.discounts == 0].all()
    del gymnasium.registry["Closing-v0"]


class PlainDqn:
    """The same algorithm, written once more with one tensor a layer and nothing clever."""

    def __init__(self, agent: DqnAgent) -> None:
        self.section, self.total_steps = agent.section, agent.total_steps
        width = agent.environments.num_actions + agent.section.dueling
        self.online = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, width))
        self.target = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, width))
        for network in (self.online, self.target):
            for ours, theirs in zip(network.parameters(), agent.online.parameters(), strict=True):
                ours.data = theirs.detach().clone()
        self.optimizer = torch.optim.Adam(self.online.parameters(), fused=False, foreach=False)
        self.clipped = 0

    def values(self, network: nn.Module, observations: np.ndarray) -> torch.Tensor:
        outputs: torch.Tensor = network(torch.from_numpy(observations))
        if not self.section.dueling:
            return outputs
        advantages, state = outputs[:, :3], outputs[:, 3:]
        return state + advantages - advantages.sum(1, keepdim=True) / 3

    def update(self, batch: Transitions, step: int) -> torch.Tensor:
        """Return the temporal-difference errors."""
        following = []
        with torch.no_grad():
            target = self.values(self.target, batch.next_observations)
            preference = self.values(self.online, batch.next_observations) if self.section.double else target
            for row in range(len(batch.actions)):
                allowed = range(3) if batch.next_masks is None else np.flatnonzero(batch.next_masks[row])
                best = max(allowed, key=lambda action, row=row: float(preference[row, action]))
                following.append(batch.returns[row] + batch.discounts[row] * float(target[row, best]))
        chosen = self.values(self.online, batch.observations)[range(len(batch.actions)), batch.actions.tolist()]
        errors = chosen - torch.tensor(np.array(following, np.float32))
        squares = errors**2
        huber = torch.where(errors.abs() < 1, squares / 2, errors.abs() - 0.5)
        each = huber if self.section.loss == "huber" else squares
        weights = torch.ones(len(each)) if batch.weights is None else torch.from_numpy(batch.weights)
        self.optimizer.zero_grad()
        ((each * weights).sum() / len(each)).backward()
        norm = torch.sqrt(sum((weight.grad**2).sum() for weight in self.online.parameters()))  # type: ignore
        if norm > self.section.max_gradient_norm:
            self.clipped += 1
            for weight in self.online.parameters():
                weight.grad *= self.section.max_gradient_norm / norm
        falling = self.section.schedule == "linear"
        self.optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / self.total_steps if falling else 1)
        self.optimizer.step()
        return errors.detach()

    def sync(self) -> None:
        for kept, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
            kept.data = kept.data * (1 - self.section.tau) + self.section.tau * new.data


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"double": False, "loss": "mse", "n_steps": 1},
        {"dueling": True, "schedule": "constant"},
        {"tau": 0.3, "loss": "mse"},
        {"prioritized": True},
        {"prioritized": True, "dueling": True, "double": False, "loss": "mse", "n_steps": 2, "tau": 0.5, "updates": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True], ids=["all-allowed", "masked"])
@with_and_without_speedups
def test_updates_are_those_of_plain_torch(knobs: dict[str, Any], masked: bool, speedups: bool) -> None:
    algorithm = section(max_gradient_norm=0.7, discount=0.9, **knobs)
    agent = agent_in("Meadow", algorithm, masked=masked, speedups=speedups)
    assert isinstance(agent._learner, FastLearner if speedups else Learner)
    plain, batches, betas, errors = PlainDqn(agent), [], [], []
    sample, set_priorities, weighted = agent.replay.sample, agent.replay.set_priorities, 0

    def note(indices: np.ndarray, error: np.ndarray) -> None:
        errors.append(error)
        set_priorities(indices, error)

    def record(count: int, generator: np.random.Generator, beta: float) -> Transitions:
        betas.append(beta)
        batches.append(sample(count, generator, beta))
        return batches[-1]

    with (
        mock.patch.object(agent.replay, "sample", record),
        mock.patch.object(agent.replay, "set_priorities", note),
    ):
        for _ in range(40):
            agent.advance()
            for number, batch in enumerate(batches):
                assert (batch.weights is not None) == algorithm.prioritized
                weighted += batch.weights is not None and np.ptp(batch.weights) > 0.1
                wanted = plain.update(batch, agent.step)
                if algorithm.prioritized:
                    np.testing.assert_allclose(np.abs(errors[number]), wanted.abs(), atol=1e-5)
                    assert betas[number] == pytest.approx(0.4 + 0.6 * agent.step / 200)
            batches.clear(), betas.clear(), errors.clear()
            if agent.step >= 12 and agent.step // 20 > (agent.step - 3) // 20:
                plain.sync()
            torch.testing.assert_close(weights_of(agent.online), weights_of(plain.online), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(weights_of(agent.target), weights_of(plain.target), atol=1e-6, rtol=1e-6)
    assert agent.updates == 28 * algorithm.updates and 0 < plain.clipped
    assert weighted > 20 or not algorithm.prioritized


def test_prioritized_updates_leave_the_new_errors_as_priorities() -> None:
    agent = agent_in("Meadow", section(prioritized=True, priority_exponent=0.5, learning_starts=10**6))
    for _ in range(10):
        agent.advance()
    batches, sample = [], agent.replay.sample

    def record(*arguments: Any) -> Transitions:
        batches.append(sample(*arguments))
        return batches[-1]

    with torch.no_grad(), mock.patch.object(agent.replay, "sample", record):
        values = agent.online
        before = {name: tensor.clone() for name, tensor in values.state_dict().items()}
        with torch.enable_grad():
            agent.learn(1)
        values.load_state_dict(before)
        (batch,) = batches
        taken = values(torch.from_numpy(batch.observations))[range(8), batch.actions.tolist()]
        errors = (taken - agent.targets(batch)).abs().numpy()
    leaves = agent.replay.state()["priorities.leaves"]
    np.testing.assert_allclose(leaves[batch.indices], np.sqrt(errors + 1e-6), atol=1e-4)
    untouched = np.setdiff1d(np.arange(30), batch.indices)
    assert len(untouched) > 5 and (leaves[untouched] == 1).all()


def n_step_values(n_steps: int, discount: float, masked: bool) -> np.ndarray:
    """Return what n-step targets converge to, (5, 3), where all actions are taken equally often.

    For one step these are the optimal values. For more, the steps between are those of the random behaviour: there is
    no correction for that in n-step DQN, nor in Rainbow.
    """
    values = np.zeros((5, 3))
    allowed = [np.flatnonzero(Chain.mask(state) if masked else np.ones(3)) for state in range(5)]
    for _ in range(500):
        worth = np.array([max(values[state, allowed[state]]) for state in range(5)])
        for distance in range(n_steps):
            values = np.zeros((5, 3))
            for state in range(4):
                for action in range(3):
                    following, reward, terminated = Chain.move(state, action)
                    values[state, action] = reward + discount * (not terminated) * worth[following]
            if distance < n_steps - 1:
                worth = np.array([values[state, allowed[state]].mean() for state in range(5)])
    return values


@pytest.mark.parametrize(
    ("n_steps", "double", "knobs"),
    [
        (1, False, {"max_episode_steps": 3}),
        (1, True, {"max_episode_steps": 3}),
        (1, True, {"max_episode_steps": 3, "masked": True}),
        (3, False, {}),
        (3, True, {"masked": True}),
    ],
)
def test_learnt_values_are_those_of_value_iteration(n_steps: int, double: bool, knobs: dict[str, Any]) -> None:
    algorithm = section(
        n_steps=n_steps,
        double=double,
        discount=0.8,
        epsilon_start=1.0,
        epsilon_end=1.0,
        batch_size=64,
        replay_size=10_000,
        learning_starts=500,
        update_every=6,
        target_update_every=100,
        network=MlpNetwork(hidden_sizes=(32,)),
    )
    agent = agent_in("Chain", algorithm, num_envs=2, total_steps=6000, **knobs)
    while agent.step < 6000:
        agent.advance()
    learnt = agent.online(torch.eye(5)).detach().numpy()[:4]
    masked = "masked" in knobs
    wanted = n_step_values(n_steps, 0.8, masked)[:4]
    met = np.array([Chain.mask(state) if masked else np.ones(3, bool) for state in range(4)])
    # Rewards of several random steps are spread, and so are the values that are learnt from 6000 of them.
    np.testing.assert_allclose(learnt[met], wanted[met], atol=0.03 if n_steps == 1 else 0.05)
    assert np.ptp(wanted[met]) > 0.5


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"dueling": True, "loss": "mse", "tau": 0.3, "n_steps": 2},
        {"normalize_observations": True, "network": MlpNetwork(hidden_sizes=(16, 8), layer_norm=True)},
    ],
    ids=str,
)
def test_speedups_change_an_agent_by_rounding_only(knobs: dict[str, Any]) -> None:
    # Actions are random, so that both agents meet the same transitions.
    algorithm = section(epsilon_start=1.0, epsilon_end=1.0, max_gradient_norm=1.0, **knobs)
    plain, fast = (agent_in("Meadow", algorithm, speedups=speedups) for speedups in (False, True))
    initial = weights_of(plain.online)
    while plain.step < 180:
        plain.advance()
        fast.advance()
    assert plain.updates == fast.updates > 40
    for one, other in ((plain.online, fast.online), (plain.target, fast.target)):
        torch.testing.assert_close(weights_of(one), weights_of(other), atol=1e-5, rtol=1e-4)
    assert (weights_of(plain.online) - initial).abs().mean() > 0.01
    report, other_report = plain.report(), fast.report()
    assert report == pytest.approx(other_report, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("num_envs", [1, 3, 4, 5, 12])
def test_updates_and_schedules_count_environment_steps(num_envs: int) -> None:
    algorithm = section(updates=2, target_update_every=20, epsilon_fraction=0.5, epsilon_end=0.1)
    agent = agent_in("Meadow", algorithm, num_envs=num_envs, total_steps=120)
    updated_at, synced_at = [], []
    update, sync = agent._update, agent._update_target
    with (
        mock.patch.object(agent, "_update", lambda batch: (updated_at.append(agent.step), update(batch))),
        mock.patch.object(agent, "_update_target", lambda: (synced_at.append(agent.step), sync())),
    ):
        while agent.step < 60:
            agent.advance()
    assert agent.step == 60
    # Multiples of 4 from 12 to 60, twice each; multiples of 20. They happen at the end of the step that passes them.
    assert agent.updates == 2 * 13 and len(updated_at) == 2 * 13

    def passing(multiple: int) -> int:
        return -(-multiple // num_envs) * num_envs

    assert updated_at == [passing(multiple) for multiple in range(12, 61, 4) for _ in range(2)]
    assert synced_at == [passing(multiple) for multiple in (20, 40, 60)]
    report = agent.report()
    assert report["epsilon"] == pytest.approx(0.1) and report["learning_rate"] == pytest.approx(5e-3)


@pytest.mark.parametrize("num_envs", [1, 4, 12])
def test_epsilon_falls_with_environment_steps_and_acting_knows_it(num_envs: int) -> None:
    algorithm = section(epsilon_fraction=0.5, epsilon_start=0.9, epsilon_end=0.1, learning_starts=10**6)
    agent = agent_in("Meadow", algorithm, num_envs=num_envs, total_steps=240)
    for _ in range(24 // num_envs):
        agent.advance()
    assert agent.report()["epsilon"] == pytest.approx(0.9 - 0.8 * 24 / 120)
    agent.step = 120 * 100  # far beyond
    assert agent.report()["epsilon"] == pytest.approx(0.1) and agent.report()["learning_rate"] == 0


@pytest.mark.parametrize("num_envs", [1, 3, 4, 12])
def test_a_soft_target_moves_as_often_as_environment_steps_say(num_envs: int) -> None:
    algorithm = section(tau=0.25, target_update_every=2, update_every=10**6)
    agent = agent_in("Meadow", algorithm, num_envs=num_envs)
    while agent.step < 12 - num_envs:
        agent.advance()
    online = weights_of(agent.online)
    with torch.no_grad():
        for weight in agent.target.parameters():
            weight += 1.0
    while agent.step < 36:
        agent.advance()
    moves = len(range(12, 37, 2))
    torch.testing.assert_close(weights_of(agent.target), online + 0.75**moves, atol=1e-5, rtol=0)


@pytest.mark.parametrize("knobs", [{}, {"tau": 0.3}, {"normalize_observations": True, "dueling": True}], ids=str)
def test_the_target_network_changes_only_when_it_is_due(knobs: dict[str, Any]) -> None:
    agent = agent_in("Meadow", section(**knobs))
    tau = agent.section.tau
    torch.testing.assert_close(weights_of(agent.target), weights_of(agent.online), atol=0, rtol=0)
    assert all(one.data_ptr() != two.data_ptr() for one, two in zip(*both(agent), strict=True))
    moved = 0
    for _ in range(60):
        before, buffers = weights_of(agent.target), [buffer.clone() for buffer in agent.target.buffers()]
        agent.advance()
        if agent.step >= 12 and agent.step // 20 > (agent.step - 3) // 20:
            moved += 1
            wanted = (1 - tau) * before + tau * weights_of(agent.online)
            torch.testing.assert_close(weights_of(agent.target), wanted, atol=1e-7, rtol=1e-6)
            assert not torch.equal(before, weights_of(agent.target))
            for kept, new in zip(agent.target.buffers(), agent.online.buffers(), strict=True):
                assert torch.equal(kept, new)
        else:
            assert torch.equal(before, weights_of(agent.target))
            assert all(torch.equal(*pair) for pair in zip(buffers, agent.target.buffers(), strict=True))
    assert moved == 9
    for weight in agent.target.parameters():
        assert not weight.requires_grad and (weight.grad is None or not weight.grad.any())


def both(agent: DqnAgent) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return list(agent.online.parameters()), list(agent.target.parameters())


def actions_of(agent: DqnAgent, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what was done and what would have been greedy, (steps, N)."""
    done, greedy = [], []
    step = agent.environments.step

    def record(actions: np.ndarray) -> Step:
        done.append(actions)
        greedy.append(agent.act(agent.environments.observations, agent.environments.masks))
        return step(actions)

    with mock.patch.object(agent.environments, "step", record):
        for _ in range(steps):
            agent.advance()
    return np.array(done), np.array(greedy)


def test_each_environment_decides_by_itself_whether_to_explore() -> None:
    algorithm = section(epsilon_start=0.5, epsilon_end=0.5, learning_starts=10**6)
    done, greedy = actions_of(agent_in("Meadow", algorithm, num_envs=32), 60)
    explored = (done != greedy).sum(axis=1)  # a random action is the greedy one in a third of all cases
    assert (explored > 0).all() and (explored < 32).all()
    assert explored.mean() == pytest.approx(32 / 3, abs=4 * np.sqrt(32 * 2 / 9 / 60))
    assert explored.var() == pytest.approx(32 * 2 / 9, rel=0.6)  # 32 coins, not a few
    assert len(set(map(bytes, done))) > 50


def test_epsilon_0_is_greedy_and_epsilon_1_is_uniform() -> None:
    done, greedy = actions_of(agent_in("Meadow", section(epsilon_start=0.0, epsilon_end=0.0)), 50)
    np.testing.assert_array_equal(done, greedy)
    done, _ = actions_of(agent_in("Meadow", section(epsilon_start=1.0, epsilon_end=1.0), num_envs=8), 200)
    shares = np.bincount(done.ravel(), minlength=3) / done.size
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)


def test_a_random_action_is_repeated_to_the_end_of_its_episode_at_most() -> None:
    algorithm = section(epsilon_start=1.0, epsilon_end=1.0, repeat_exponent=1.01)  # nearly every draw is long
    agent = agent_in("Meadow", algorithm, num_envs=8)
    done, ended, step = [], [], agent.environments.step

    def record(actions: np.ndarray) -> Step:
        outcome = step(actions)
        done.append(actions)
        ended.append(outcome.terminated | outcome.truncated)
        return outcome

    with mock.patch.object(agent.environments, "step", record):
        for _ in range(300):
            agent.advance()
    same, over = np.array(done[1:]) == np.array(done[:-1]), np.array(ended[:-1])
    assert over.sum() > 200
    assert same[~over].mean() > 0.9
    assert same[over].mean() == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("repeat_exponent", [None, 1.5])
def test_forbidden_actions_are_never_taken(epsilon: float, repeat_exponent: float | None) -> None:
    algorithm = section(epsilon_start=epsilon, epsilon_end=epsilon, repeat_exponent=repeat_exponent)
    agent = agent_in("Meadow", algorithm, num_envs=8, masked=True)
    forbade = 0
    for _ in range(60):
        masks = agent.environments.masks
        assert masks is not None
        (done,), _ = actions_of(agent, 1)
        assert masks[np.arange(8), done].all()
        forbade += (~masks).sum()
    assert forbade > 100


def test_the_greedy_policy_takes_the_best_of_what_is_allowed() -> None:
    policy = QPolicy(Table(ONLINE), Perception(None), CPU)
    numbers = np.array([[0.0], [1.0], [1.0]], np.float32)
    np.testing.assert_array_equal(policy.act(numbers, None), [1, 0, 0])
    masks = np.array([[1, 0, 1], [0, 1, 1], [0, 1, 0]], bool)
    np.testing.assert_array_equal(policy.act(numbers, masks), [2, 2, 1])


def test_equal_seeds_give_equal_agents_whatever_other_generators_do() -> None:
    def trained(seed: int, other: int) -> tuple[np.ndarray, torch.Tensor]:
        np.random.seed(other)
        torch.manual_seed(other)
        agent = agent_in("Meadow", section(prioritized=True), seed=seed)
        done = []
        for _ in range(30):
            np.random.seed(other)
            torch.manual_seed(other)
            done.append(actions_of(agent, 1)[0])
        return np.concatenate(done), weights_of(agent.online)

    one, two, three = trained(5, 1), trained(5, 2), trained(6, 1)
    np.testing.assert_array_equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not np.array_equal(one[0], three[0]) and not torch.equal(one[1], three[1])


def test_evaluations_are_greedy_and_leave_training_as_it_is() -> None:
    make = partial(make_environment, Environment(id="Meadow-v0", options={"masked": True}))

    def trained(evaluates: bool) -> DqnAgent:
        agent = agent_in("Meadow", section(epsilon_start=1.0, epsilon_end=1.0, n_steps=3), masked=True)
        for time in range(40):
            agent.advance()
            if evaluates and time % 8 == 0:
                evaluate_policy(agent, make, episodes=5, seed=1)
        return agent

    one, two = trained(evaluates=True), trained(evaluates=False)
    (arrays, values), (other_arrays, other_values) = one.state(), two.state()
    assert values == other_values and one.report() == two.report()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other_arrays[name], err_msg=name)
    played = evaluate_policy(one, make, episodes=30, seed=2)
    for policy in (one, two, QPolicy(copy.deepcopy(one.online), Perception(None), CPU)):
        again = evaluate_policy(policy, make, episodes=30, seed=2)
        np.testing.assert_array_equal(played.returns, again.returns)
        np.testing.assert_array_equal(played.lengths, again.lengths)
    one.step = 0  # epsilon is not theirs
    np.testing.assert_array_equal(evaluate_policy(one, make, episodes=30, seed=2).returns, played.returns)


def test_observations_are_normalized_by_all_that_were_seen() -> None:
    agent = agent_in("Meadow", section(normalize_observations=True))
    seen = []
    for _ in range(30):
        seen.append(agent.environments.observations)
        agent.advance()
    everything = np.concatenate(seen)
    np.testing.assert_allclose(agent.online.normalizer.mean, everything.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(agent.online.normalizer.variance, everything.var(axis=0), atol=1e-5)


def test_returns_and_lengths_of_exploring_episodes_are_reported() -> None:
    agent = agent_in("Meadow", section())
    finished = []
    step = agent.environments.step
    with mock.patch.object(agent.environments, "step", lambda actions: finished.append(step(actions)) or finished[-1]):
        for _ in range(30):
            agent.advance()
    over = [episode for each in finished for episode in each.finished]
    report = agent.report()
    assert report["episode_return"] == pytest.approx(np.mean([total for total, _ in over]))
    assert report["episode_length"] == pytest.approx(np.mean([length for _, length in over]))
    assert agent.report().keys() == {"epsilon", "learning_rate"}  # means begin anew


def training(agent: DqnAgent, folder: Path, steps: int) -> Training:
    def never() -> Episodes:
        raise AssertionError

    settings = Interaction(steps=steps, checkpoint_every=steps)
    return Training(
        agent=agent, settings=settings, curve_points=0, evaluate=never, checkpoints=folder, emit=lambda _: None
    )


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {
            "prioritized": True,
            "dueling": True,
            "normalize_observations": True,
            "double": False,
            "tau": 0.1,
            "repeat_exponent": 1.5,
        },
    ],
    ids=["plain", "everything"],
)
@pytest.mark.parametrize("masked", [False, True], ids=["all-allowed", "masked"])
@pytest.mark.parametrize("stop", [6, 180])  # before anything was learnt, and long after
@with_and_without_speedups
def test_a_resumed_agent_goes_on_to_the_last_bit_as_if_nothing_had_happened(
    tmp_path: Path, knobs: dict[str, Any], masked: bool, stop: int, speedups: bool
) -> None:
    def new() -> DqnAgent:
        algorithm = section(n_steps=3, **knobs)
        return agent_in("Meadow", algorithm, seed=3, total_steps=600, masked=masked, speedups=speedups)

    whole, first, second = new(), new(), new()
    training(first, tmp_path, stop).run()
    for _ in range(20):
        first.advance()  # what was done after the checkpoint is forgotten
    going_on = training(second, tmp_path, 420)
    assert going_on.resume() and second.step == stop
    going_on.run()
    training(whole, tmp_path / "whole", 420).run()
    assert (whole.step, whole.updates) == (second.step, second.updates) and whole.updates > 100
    (arrays, values), (resumed_arrays, resumed_values) = whole.state(), second.state()
    assert arrays.keys() == resumed_arrays.keys() and values == resumed_values
    for name, array in arrays.items():
        assert array.dtype == resumed_arrays[name].dtype and array.shape == resumed_arrays[name].shape, name
        np.testing.assert_array_equal(array, resumed_arrays[name], err_msg=name)


@pytest.mark.parametrize("broken", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("loss", ["huber", "mse"])
@pytest.mark.parametrize("prioritized", [False, True], ids=["uniform", "prioritized"])
@with_and_without_speedups
def test_a_reward_that_is_no_number_stops_training_before_it_is_learnt(
    broken: str, loss: str, prioritized: bool, speedups: bool
) -> None:
    algorithm = section(loss=loss, prioritized=prioritized, batch_size=32)
    agent = agent_in("Meadow", algorithm, broken_after=20, broken=broken, speedups=speedups)
    with pytest.raises(DataError, match=rf"the reward is {broken} after step \d+ of an episode; return a finite"):
        while agent.step < 600:
            before, remembered = agent.step, len(agent.replay)
            agent.advance()
    assert (agent.step, len(agent.replay)) == (before, remembered) and agent.step >= 57


@with_and_without_speedups
def test_a_gradient_that_overflows_stops_training_before_it_is_learnt(speedups: bool) -> None:
    algorithm = section(loss="mse", batch_size=32)
    agent = agent_in("Meadow", algorithm, broken_after=20, broken="1e38", speedups=speedups)
    assert_stops_before_weights_change(agent, "not finite")


def test_a_gradient_that_is_no_number_stops_training_though_the_loss_is_one() -> None:
    agent = agent_in("Meadow", section())
    assert isinstance(agent._learner, FastLearner)
    values = agent._learner._values
    backward = values.backward

    def spoil(gradient: torch.Tensor) -> None:
        backward(gradient if agent.updates < 10 else gradient * torch.inf)

    with mock.patch.object(values, "backward", spoil):
        assert_stops_before_weights_change(agent, "not finite")


def test_a_gradient_of_autograd_that_is_no_number_stops_training_too() -> None:
    agent = agent_in("Meadow", section(), speedups=False)
    agent.online.head.weight.register_hook(lambda gradient: gradient if agent.updates < 10 else gradient * torch.inf)
    assert_stops_before_weights_change(agent, "not finite")


def assert_stops_before_weights_change(agent: DqnAgent, message: str) -> None:
    with pytest.raises(TrainingError, match=message) as error:
        while agent.step < 600:
            before, updates = weights_of(agent.online), agent.updates
            moments = {name: tensor.clone() for name, tensor in agent._learner.state().items()}
            agent.advance()
    assert "algorithm.learning_rate" in str(error.value) and "reward" in str(error.value)
    assert updates > 5 and agent.updates == updates and torch.equal(before, weights_of(agent.online))
    assert moments
    for name, tensor in agent._learner.state().items():
        assert torch.equal(tensor, moments[name])


def test_values_beyond_what_rewards_allow_stop_training() -> None:
    algorithm = section(learning_rate=10.0, discount=0.9, loss="mse", schedule="constant", target_update_every=4)
    agent = agent_in("Meadow", algorithm, total_steps=3000)
    with pytest.raises(TrainingError, match=r"the values diverge; their mean is .* lower algorithm\.learning_rate"):
        while agent.step < 3000:
            agent.advance()
            if agent.step % 30 == 0:
                agent.report()


def test_an_agent_that_has_not_met_a_reward_yet_does_not_diverge() -> None:
    agent = agent_in("Meadow", section(), calm=True)
    for _ in range(60):
        agent.advance()
    assert agent.updates > 10 and agent.report()["mean_value"] != 0


def test_values_without_discount_have_no_bound() -> None:
    agent = agent_in("Meadow", section(discount=1.0), calm=True)
    for _ in range(60):
        agent.advance()
    assert agent.report()["mean_value"] != 0


def test_large_numbers_are_told_with_their_remedy() -> None:
    agent = agent_in("Meadow", section())
    agent.advance()
    assert agent.advice() == []
    agent._seen, agent._largest_reward = np.full((3, 2), -2.5e5, np.float32), 5e6
    observations, rewards = agent.advice()
    assert "observations reach 2.5e+05" in observations and "algorithm.normalize_observations=true" in observations
    assert "rewards reach 5e+06" in rewards and "environment.reward.scale=2e-07" in rewards
    assert agent._remedy().startswith("Observations reach 2.5e+05") and "algorithm.learning_rate" in agent._remedy()
    normalized = agent_in("Meadow", section(normalize_observations=True))
    normalized._seen = np.full((3, 2), 2.5e5, np.float32)
    assert normalized.advice() == []


def test_an_agent_that_begins_with_saved_weights_has_them_in_both_networks() -> None:
    one, other = agent_in("Meadow", section()), agent_in("Meadow", section(), seed=5)
    for _ in range(40):
        one.advance()
    assert one.updates > 5
    saved = {name: tensor.clone() for name, tensor in one.online.state_dict().items()}
    other.begin_with(saved)
    for network in (other.online, other.target):
        assert all(torch.equal(tensor, saved[name]) for name, tensor in network.state_dict().items())
    for _ in range(40):
        other.advance()  # and goes on learning where FastLearner has its vector
    assert not torch.equal(other.online.head.weight, saved["head.weight"])
