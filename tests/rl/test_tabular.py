"""Tabular agents against dynamic programming, a textbook loop over their own log, and breadth-first search."""

import itertools
import json
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from doubles.grid_road import MOVES, ROADS
from hftoolkit.errors import RecipeError
from hftoolkit.recipe import Environment, QLearning, Sarsa
from hftoolkit.rl.environments import Environments, Step, make_environment
from hftoolkit.rl.evaluation import evaluate_policy
from hftoolkit.rl.tabular import TabularAgent

# S states, A actions, N environments
MDP_STATES, MDP_ACTIONS, MDP_END = 5, 3, 4
DISCOUNT = 0.8


class Experience(NamedTuple):
    """One step as the environment saw it."""

    episode: int
    state: int
    action: int
    reward: float
    next_state: int
    terminated: bool


class SmallMdp(gymnasium.Env[int, int]):
    """Five states and three actions with random transitions and rewards; the last state ends the episode."""

    generator = np.random.default_rng(7)
    transitions = generator.dirichlet(np.full(MDP_STATES, 0.4), (MDP_STATES, MDP_ACTIONS))  # (S, A, S)
    rewards = generator.normal(size=(MDP_STATES, MDP_ACTIONS))  # (S, A)
    log: ClassVar[list[Experience]] = []
    episode = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Discrete(MDP_STATES)
        self.action_space = spaces.Discrete(MDP_ACTIONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(MDP_END))
        self.episode += 1
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        before = self.state
        self.state = int(self.transitions[before, action].cumsum().searchsorted(self.np_random.random()))
        reward = float(np.float32(self.rewards[before, action]))
        ended = self.state == MDP_END
        self.log.append(Experience(self.episode, before, int(action), reward, self.state, ended))
        return self.state, reward, ended, False, {}


class OneState(gymnasium.Env[int, int]):
    """One state, a reward of 1 for each step."""

    def __init__(self, num_actions: int = 4, terminates: bool = False, render_mode: str | None = None) -> None:
        self.terminates, self.render_mode = terminates, render_mode
        self.observation_space = spaces.Discrete(1)
        self.action_space = spaces.Discrete(num_actions)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        return 0, 1.0, self.terminates, False, {}


class TwoNumbers(OneState):
    """States without a number of their own."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.observation_space = spaces.MultiDiscrete((2, 3))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.int64), super().reset(seed=seed)[1]


gymnasium.register("SmallMdp-v0", entry_point=SmallMdp)
gymnasium.register("OneState-v0", entry_point=OneState)
gymnasium.register("TwoNumbers-v0", entry_point=TwoNumbers)

KINDS: tuple[Callable[..., QLearning | Sarsa], ...] = (
    lambda **knobs: QLearning(kind="q-learning", **knobs),
    lambda **knobs: Sarsa(kind="sarsa", **knobs),
)
BOTH = pytest.mark.parametrize("kind", KINDS, ids=("q-learning", "sarsa"))


def always(probability: float) -> dict[str, float]:
    """Knobs for an epsilon that stays."""
    return {"epsilon_start": probability, "epsilon_end": probability}


def new_agent(section: QLearning | Sarsa, environment: Environment, steps: int, seed: int = 0) -> TabularAgent:
    return TabularAgent(section, Environments(environment, seed=seed), seed=seed, total_steps=steps)


def learn(section: QLearning | Sarsa, environment: Environment, steps: int, seed: int = 0) -> TabularAgent:
    agent = new_agent(section, environment, steps, seed)
    while agent.step < steps:
        agent.advance()
    return agent


def action_values(
    transitions: np.ndarray, rewards: np.ndarray, policy: np.ndarray | None = None, discount: float = DISCOUNT
) -> np.ndarray:
    """Return the values, (S, A), of a policy, (S, A) probabilities, or of the best one, by iteration to a fixed point.

    Transitions, (S, A, S), that end an episode are zero.
    """
    values = np.zeros_like(rewards)
    for _ in range(10_000):
        following = values.max(axis=1) if policy is None else (policy * values).sum(axis=1)
        before, values = values, rewards + discount * transitions @ following
        if np.abs(values - before).max() < 1e-12:
            return values
    raise AssertionError("no fixed point")


def small_mdp_model() -> tuple[np.ndarray, np.ndarray]:
    transitions = SmallMdp.transitions.copy()
    transitions[..., MDP_END] = 0
    return transitions, SmallMdp.rewards


def toy_text_model(environment: Environment) -> tuple[np.ndarray, np.ndarray]:
    """Return transitions, (S, A, S), and expected rewards, (S, A), from the table of a gymnasium toy environment."""
    table = make_environment(environment).unwrapped.P
    transitions, rewards = np.zeros((len(table), len(table[0]), len(table))), np.zeros((len(table), len(table[0])))
    for state, action in itertools.product(range(len(table)), range(len(table[0]))):
        for probability, following, reward, terminated in table[state][action]:
            rewards[state, action] += probability * reward
            transitions[state, action, following] += 0 if terminated else probability
    return transitions, rewards


def greedy_probabilities(agent: TabularAgent) -> np.ndarray:
    states, actions = agent.table.shape
    return np.eye(actions)[agent.act(np.eye(states, dtype=np.float32), None)]


@pytest.mark.parametrize("num_envs", (1, 3))
def test_q_learning_finds_the_values_of_value_iteration_while_it_acts_at_random(num_envs):
    environment = Environment(id="SmallMdp-v0", max_episode_steps=6, num_envs=num_envs)
    agent = learn(QLearning(kind="q-learning", discount=DISCOUNT, **always(1.0)), environment, 12_000)
    expected = action_values(*small_mdp_model())
    assert np.abs(agent.table - expected)[:MDP_END].max() < 0.12
    assert not agent.table[MDP_END].any()


def test_sarsa_finds_the_values_of_the_random_policy_that_it_follows():
    environment = Environment(id="SmallMdp-v0", max_episode_steps=2)
    agent = learn(Sarsa(kind="sarsa", discount=DISCOUNT, **always(1.0)), environment, 12_000)
    uniform = np.full((MDP_STATES, MDP_ACTIONS), 1 / MDP_ACTIONS)
    expected = action_values(*small_mdp_model(), policy=uniform)
    best = action_values(*small_mdp_model())
    assert np.abs(agent.table - expected)[:MDP_END].max() < 0.12 < 0.3 < np.abs(best - expected)[:MDP_END].max()


@BOTH
@pytest.mark.parametrize(
    ("schedule", "max_episode_steps", "probability"),
    # Only a greedy SARSA tells which action it would have taken after a truncation.
    [("constant", None, 0.5), ("linear", None, 0.5), ("constant", 3, 0.0)],
)
def test_the_table_is_that_of_the_textbook_loop_over_the_same_experience(
    kind, schedule, max_episode_steps, probability
):
    SmallMdp.log.clear()
    section = kind(discount=DISCOUNT, learning_rate=0.4, schedule=schedule, initial_value=0.5, **always(probability))
    agent = learn(section, Environment(id="SmallMdp-v0", max_episode_steps=max_episode_steps), 500)
    learnt = agent.table.copy()
    agent.advance()  # shows what SARSA had in mind
    assert len(SmallMdp.log) == 501
    assert sum(row.terminated for row in SmallMdp.log) > 20
    table = np.full((MDP_STATES, MDP_ACTIONS), 0.5)
    for index, (now, following) in enumerate(itertools.pairwise(SmallMdp.log)):
        values = table[now.next_state]
        goes_on = section.kind == "sarsa" and following.episode == now.episode
        next_value = values[following.action] if goes_on else values.max()
        target = now.reward + (0 if now.terminated else DISCOUNT * next_value)
        learning_rate = 0.4 * (1 - index / 500) if schedule == "linear" else 0.4
        table[now.state, now.action] += learning_rate * (target - table[now.state, now.action])
    np.testing.assert_allclose(learnt, table, rtol=1e-12)


@pytest.mark.parametrize("slippery", (False, True))
def test_q_learning_solves_frozen_lake(slippery):
    environment = Environment(id="FrozenLake-v1", options={"is_slippery": slippery})
    section = QLearning(kind="q-learning", epsilon_fraction=1.0, learning_rate=0.3)
    agent = learn(section, environment, 30_000 if slippery else 5_000)
    model = toy_text_model(environment)
    best = action_values(*model, discount=section.discount).max(axis=1)
    found = (greedy_probabilities(agent) * action_values(*model, greedy_probabilities(agent), section.discount)).sum(1)
    assert 0 < (0.97 if slippery else 1 - 1e-9) * best[0] <= found[0]


def greedy_walk(agent: TabularAgent, environment: Environment) -> list[int]:
    """Return the cells of an episode that reaches the goal."""
    env = make_environment(environment)
    observation, _ = env.reset(seed=0)
    cells, terminated, truncated = [], False, False
    while not terminated:
        assert not truncated
        observation, _, terminated, truncated, _ = env.step(agent.act(observation[None], None)[0])
        cells.append(int(observation.argmax()))
    return cells


def test_q_learning_walks_along_the_cliff_and_sarsa_keeps_away_from_it():
    environment = Environment(id="CliffWalking-v1", max_episode_steps=200)
    steps_on_the_edge, returns_while_learning = [], []
    for kind in KINDS:
        agent = new_agent(kind(learning_rate=0.3, discount=1.0, **always(0.1)), environment, 14_000)
        while agent.step < 14_000:
            agent.advance()
            if agent.step == 7_000:
                agent.report()
        returns_while_learning.append(agent.report()["episode_return"])
        cells = greedy_walk(agent, environment)
        steps_on_the_edge.append(sum(cell // 12 == 2 and 0 < cell % 12 < 11 for cell in cells))
    assert steps_on_the_edge == [10, 0]
    assert returns_while_learning[1] > returns_while_learning[0] + 10


@BOTH
def test_a_truncated_episode_is_worth_its_continuation_and_a_terminated_one_is_not(kind):
    knobs = {"discount": 0.9, "learning_rate": 0.5, "schedule": "constant"}
    truncated = learn(kind(**knobs), Environment(id="OneState-v0", max_episode_steps=1), 1500)
    terminated = learn(kind(**knobs), Environment(id="OneState-v0", options={"terminates": True}), 1500)
    both = learn(kind(**knobs), Environment(id="OneState-v0", options={"terminates": True}, max_episode_steps=1), 1500)
    np.testing.assert_allclose(truncated.table.max(), 1 / (1 - 0.9), rtol=1e-3)
    np.testing.assert_allclose(terminated.table[0, terminated.table[0] > 0], 1, rtol=1e-3)
    np.testing.assert_array_equal(terminated.table, both.table)


@BOTH
@pytest.mark.parametrize("num_envs", (1, 4))
def test_schedules_and_reports_count_environment_steps_however_many_there_are_at_once(kind, num_envs):
    section = kind(learning_rate=0.2, epsilon_start=0.9, epsilon_end=0.1, epsilon_fraction=0.5)
    agent = new_agent(section, Environment(id="OneState-v0", max_episode_steps=10, num_envs=num_envs), 400)
    seen = []
    for until in (100, 200, 400):
        while agent.step < until:
            agent.advance()
        seen.append(agent.report())
    assert [report["epsilon"] for report in seen] == pytest.approx([0.5, 0.1, 0.1])
    assert [report["learning_rate"] for report in seen] == pytest.approx([0.15, 0.1, 0.0])
    assert [(report["episode_return"], report["episode_length"]) for report in seen] == [(10, 10)] * 3
    assert agent.report().keys() == {"epsilon", "learning_rate"}


def test_a_report_holds_the_mean_absolute_error():
    environment = Environment(id="OneState-v0", options={"terminates": True}, num_envs=4)
    agent = new_agent(QLearning(kind="q-learning", learning_rate=1.0, schedule="constant"), environment, 400)
    agent.table[:] = 3.0
    agent.advance()
    tried = int((agent.table == 1).sum())
    assert agent.report()["td_error"] == pytest.approx(2 * tried / 4)


def test_copies_that_do_the_same_correct_one_after_the_other():
    environment = Environment(id="OneState-v0", options={"num_actions": 1, "terminates": True}, num_envs=4)
    section = QLearning(kind="q-learning", learning_rate=0.5, schedule="constant", initial_value=3.0)
    assert learn(section, environment, 4).table[0, 0] == 1 + 2 * 0.5**4


def watch(agent: TabularAgent, monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return a list that fills with the actions, (N,), of each step and the masks, (N, A), before it."""
    step, seen = agent.environments.step, []

    def watched(actions: np.ndarray) -> Step:
        seen.append((actions, agent.environments.masks))
        return step(actions)

    monkeypatch.setattr(agent.environments, "step", watched)
    return seen


@BOTH
def test_each_copy_explores_by_itself_with_probability_epsilon_and_ties_fall_by_lot(kind, monkeypatch):
    agent = new_agent(kind(discount=0.0, **always(0.4)), Environment(id="OneState-v0", num_envs=4), 6000)
    seen = watch(agent, monkeypatch)
    for _ in range(1500):
        agent.table[:] = (1, 1, 0, 0)
        agent.advance()
    taken = np.array([actions for actions, _ in seen[1:]])
    frequencies = np.bincount(taken.ravel()) / taken.size
    assert frequencies == pytest.approx([0.4, 0.4, 0.1, 0.1], abs=0.025)
    assert (taken >= 2).any(axis=1).mean() == pytest.approx(1 - 0.8**4, abs=0.04)


def test_the_greedy_policy_takes_the_first_best_of_the_allowed_actions():
    agent = new_agent(QLearning(kind="q-learning"), Environment(id="SmallMdp-v0"), 10)
    agent.table[:3] = ((0, 2, 2), (5, 1, 2), (0, 0, 0))
    observations = np.eye(MDP_STATES, dtype=np.float32)[:3]
    assert agent.act(observations, None).tolist() == [1, 0, 0]
    masks = np.array(((True, False, True), (False, True, True), (False, True, True)))
    assert agent.act(observations, masks).tolist() == [2, 2, 1]


@BOTH
@pytest.mark.parametrize("name", ("Taxi-v4", "GridRoad-v0"))
def test_only_allowed_actions_are_taken(kind, name, monkeypatch):
    agent = new_agent(kind(**always(0.5)), Environment(id=name, num_envs=3, max_episode_steps=40), 1500)
    seen = watch(agent, monkeypatch)
    while agent.step < 1500:
        agent.advance()
    assert len(seen) == 500
    assert all(masks[range(3), actions].all() for actions, masks in seen)


def random_roads(seed: int) -> str:
    generator = np.random.default_rng(seed)
    cells = np.where(generator.random((6, 7)) < 0.3, "#", ".")
    cells[0, 0], cells[-1, -1] = "S", "G"
    return "/".join("".join(row) for row in cells)


def distances_to_goal(roads: str) -> dict[tuple[int, int], int]:
    """Return the moves to the goal from each cell that leads there, by breadth-first search from the goal."""
    cells = {(y, x): cell for y, row in enumerate(roads.split("/")) for x, cell in enumerate(row) if cell != "#"}
    goal = next(place for place, cell in cells.items() if cell == "G")
    found, queue = {goal: 0}, deque((goal,))
    while queue:
        y, x = queue.popleft()
        for dy, dx in MOVES:
            place = y + dy, x + dx
            if place in cells and place not in found:
                found[place] = found[y, x] + 1
                queue.append(place)
    return found


DETOURS = [roads for roads in map(random_roads, range(100)) if distances_to_goal(roads).get((0, 0), 0) > 5 + 6]
MAPS = (ROADS, *DETOURS[:3])


@pytest.mark.parametrize("roads", MAPS)
def test_q_learning_finds_a_shortest_way_through_roads(roads):
    environment = Environment(id="GridRoad-v0", options={"roads": roads}, num_envs=2)
    shortest = distances_to_goal(roads)[0, 0]
    agent = learn(QLearning(kind="q-learning", learning_rate=1.0, schedule="constant"), environment, 6000)
    episodes = evaluate_policy(agent, lambda: make_environment(environment), episodes=1, seed=0)
    assert episodes.lengths.tolist() == [shortest]
    assert episodes.returns.tolist() == [-shortest]


def test_the_value_of_an_action_that_is_not_allowed_is_never_believed():
    section = QLearning(kind="q-learning", learning_rate=1.0, schedule="constant", initial_value=50.0, discount=0.9)
    agent = learn(section, Environment(id="GridRoad-v0", num_envs=2), 10_000)
    up, right, down, left = agent.table[0]
    assert up == left == 50
    assert max(right, down) == pytest.approx(-(1 - 0.9 ** distances_to_goal(ROADS)[0, 0]) / (1 - 0.9))


@pytest.mark.parametrize("roads", MAPS)
def test_the_masks_of_grid_road_are_its_roads_and_other_moves_lead_nowhere(roads):
    env = gymnasium.make("GridRoad-v0", roads=roads).unwrapped
    width = roads.index("/")
    roads_there = distances_to_goal(roads)
    env.reset(seed=0)
    for (y, x), action in itertools.product(roads_there, range(4)):
        env.state = y * width + x
        place = y + MOVES[action][0], x + MOVES[action][1]
        before = env.action_mask()
        state, reward, _, _, _ = env.step(action)
        assert before[action] == (place in roads_there)
        assert divmod(state, width) == (place if place in roads_there else (y, x))
        assert reward == -1


@pytest.mark.filterwarnings("error")
def test_grid_road_passes_gymnasium_s_own_checks():
    env = gymnasium.make("GridRoad-v0", render_mode="rgb_array", disable_env_checker=True).unwrapped
    check_env(env)
    assert env.render().shape == (16 * len(ROADS.split("/")), 16 * ROADS.index("/"), 3)


@BOTH
@pytest.mark.parametrize("name", ("FrozenLake-v1", "Taxi-v4"))
def test_a_resumed_agent_goes_on_exactly(kind, name):
    environment = Environment(id=name, num_envs=3, max_episode_steps=30)
    section = kind(learning_rate=0.3, epsilon_fraction=0.8, initial_value=0.1)
    whole = new_agent(section, environment, 1200)
    while whole.step < 600:
        whole.advance()
    arrays, values = whole.state()
    values = json.loads(json.dumps(values))
    while whole.step < 1200:
        whole.advance()
    resumed = new_agent(section, environment, 1200)
    resumed.restore(arrays, values)
    while resumed.step < 1200:
        resumed.advance()
    np.testing.assert_array_equal(resumed.table, whole.table)
    assert resumed.report() == whole.report()
    assert resumed.step == whole.step == 1200


@pytest.mark.parametrize("vectorization", ("sync", "async"))
def test_environments_know_how_many_states_they_number(vectorization):
    environments = Environments(Environment(id="FrozenLake-v1", num_envs=2, vectorization=vectorization), seed=0)
    assert environments.num_states == 16
    environments.close()


@BOTH
@pytest.mark.parametrize("name", ("CartPole-v1", "TwoNumbers-v0"))
def test_an_environment_without_numbered_states_is_refused(kind, name):
    section = kind()
    message = rf"algorithm.kind: {section.kind} needs numbered states.* Box\(.*; use algorithm.kind: dqn"
    with pytest.raises(RecipeError, match=message):
        new_agent(section, Environment(id=name), 10)
