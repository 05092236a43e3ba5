"""DQN, whole: how the agent acts, what it remembers, what it learns from, and when.

Mnih et al. 2015, with Double DQN (van Hasselt et al. 2016), n-step returns (Sutton 1988), a dueling head (Wang et al.
2016) and prioritized replay (Schaul et al. 2016), each a switch of the recipe. ``DqnAgent.advance`` is the loop; read
it first, then ``DqnAgent.targets`` and ``Learner``. In shapes, N are environments, A actions, B transitions of a batch.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hftoolkit.errors import RecipeError, TrainingError
from hftoolkit.recipe import Dqn, MlpNetwork, PixelObservations
from hftoolkit.rl.encoders import Perception, perception
from hftoolkit.rl.environments import Environments, Step
from hftoolkit.rl.exploration import EpsilonGreedy
from hftoolkit.rl.networks import RunningNormalizer, build_network
from hftoolkit.rl.replay import ReplayBuffer, Transitions
from hftoolkit.rl.running_means import RunningMeans
from hftoolkit.rl.schedules import epsilon_at, importance_exponent_at, learning_rate_at
from hftoolkit.rl.speedups import FastLearner
from hftoolkit.seeding import numpy_generator, seed_torch

DIVERGED = 10.0  # mean values this many times beyond what rewards allow are no values any more
LARGE_OBSERVATION = 1e3  # the memory of a game console has bytes, of which an MLP learns still
LARGE_REWARD = 1e3


class QPolicy:
    """Takes the action of the highest value.

    Args:
        network: what is perceived of observations, (B, ...) -> action values, (B, A).
        perceive: observations -> what the network sees of them; see ``Perception``.
        device: where the network is.
    """

    def __init__(self, network: nn.Module, perceive: Perception, device: torch.device) -> None:
        self._network, self._perceive, self._device = network, perceive, device

    def act(self, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Return the best action, (N,) int, for each observation, (N, ...), among those that masks, (N, A), allow."""
        return self.choose(self._perceive(observations), masks)

    def choose(self, seen: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        """Return the same for what is perceived of the observations."""
        with torch.inference_mode():
            values = self._network(torch.from_numpy(seen).to(self._device))
            allowed = None if masks is None else torch.from_numpy(masks).to(self._device)
            best: np.ndarray = _allowed(values, allowed).argmax(dim=1).cpu().numpy()
        return best


class Learner:
    """Gradient descent on temporal-difference errors, with Adam (Kingma and Ba 2015) and gradients of bounded norm.

    ``speedups.FastLearner`` does the same, up to rounding, in less time.

    Args:
        network: observations, (B, ...) -> action values, (B, A).
        section: which loss, and how long a gradient may be.
    """

    def __init__(self, network: nn.Module, section: Dqn) -> None:
        self._network, self._section = network, section
        self._optimizer = torch.optim.Adam(network.parameters(), lr=section.learning_rate)

    def backward(
        self, observations: torch.Tensor, actions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, float, float]:
        """Compute the loss of a batch and its gradient, and clip that.

        Args:
            observations: (B, ...).
            actions: (B,) int64, taken there.
            targets: (B,), what the values of these actions should be.
            weights: (B,), of the errors in the mean (Schaul et al. 2016); None for equal ones.

        Returns:
            q_values: (B,), of these actions.
            loss: the mean over the batch.
            norm: of the gradient, before it was clipped.
        """
        q_values = self._network(observations).gather(1, actions.unsqueeze(1)).squeeze(1)
        loss_of = functional.smooth_l1_loss if self._section.loss == "huber" else functional.mse_loss
        losses = loss_of(q_values, targets, reduction="none")
        loss = losses.mean() if weights is None else (weights * losses).mean()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), self._section.max_gradient_norm)
        return q_values.detach(), loss.item(), norm.item()

    def step(self, learning_rate: float) -> None:
        """Change the weights along the gradient of the latest ``backward``."""
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()

    def state(self) -> dict[str, torch.Tensor]:
        """Return what Adam keeps of each weight tensor, by the number of the tensor and the name it has in torch."""
        kept = self._optimizer.state_dict()["state"]
        return {f"{number}.{name}": tensor for number, each in kept.items() for name, tensor in each.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what ``state`` gave."""
        kept: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in state.items():
            number, name = key.split(".")
            kept.setdefault(int(number), {})[name] = tensor.clone()
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": kept})


class DqnAgent:
    """An agent that learns while it acts.

    Args:
        section: the algorithm.
        environments: where it acts; what it sees there decides the shape of its network.
        pixels: how frames become observations; None for vectors.
        seed: of weights, exploration and replay.
        total_steps: environment steps after which its schedules end.
        device: where the network is.
        speedups: learn with ``FastLearner`` instead of ``Learner``.

    Attributes:
        step: environment steps done, over all environments. All schedules count these.
        updates: gradient steps done.
        online: the network that acts and is trained.
        target: its older or slower copy, which values what follows.
        policy: its greedy policy.
    """

    def __init__(
        self,
        section: Dqn,
        environments: Environments,
        *,
        pixels: PixelObservations | None,
        seed: int,
        total_steps: int,
        device: torch.device,
        speedups: bool = True,
    ) -> None:
        self.section, self.environments, self.total_steps, self.device = section, environments, total_steps, device
        self.step = self.updates = 0
        seed_torch(seed, "network")
        self._perceive = perception(section.network, environments.observations[0]).to(device)
        self._seen = self._perceive(environments.observations)
        self.online = build_network(section, self._seen[0], environments.num_actions).to(device)
        self._learner = FastLearner(self.online, section) if speedups else Learner(self.online, section)
        # After the learner, which may change where in memory weights are, and with that their products' last bits.
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.policy = QPolicy(self.online, self._perceive.with_empty_cache(), device)
        self._generator = numpy_generator(seed, "agent")
        self._exploration = EpsilonGreedy(
            environments.num_envs,
            environments.num_actions,
            self._generator,
            repeat_exponent=section.repeat_exponent,
        )
        self._statistics = RunningMeans()
        self._largest_reward = 0.0
        frames = self._seen if pixels is None else self._seen[:, -1]
        self.replay = ReplayBuffer(
            section.replay_size,
            environments.num_envs,
            frame=frames[0],
            stack=None if pixels is None else pixels.stack,
            num_actions=None if environments.masks is None else environments.num_actions,
            n_steps=section.n_steps,
            discount=section.discount,
            priority_exponent=section.priority_exponent if section.prioritized else None,
        )

    def advance(self) -> None:
        """Act once in every environment, remember it, and do all updates that are due."""
        seen, masks = self._seen, self.environments.masks
        actions = self._explore(seen, masks)
        outcome = self.environments.step(actions)
        followed = dataclasses.replace(outcome, next_observations=self._perceive(outcome.next_observations))
        self.replay.add(seen, masks, actions, followed)
        self._exploration.stop(outcome.terminated | outcome.truncated)
        self._seen = self._perceive(self.environments.observations)
        self._record(seen, outcome)
        before, self.step = self.step, self.step + self.environments.num_envs
        # Many environments may pass several multiples at once, some of them before learning starts.
        before = max(before, self.section.learning_starts - 1)
        self.learn(self._multiples_passed(self.section.update_every, before) * self.section.updates)
        for _ in range(self._multiples_passed(self.section.target_update_every, before)):
            self._update_target()

    def act(self, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Return the best actions, as ``QPolicy`` does."""
        return self.policy.act(observations, masks)

    def _explore(self, seen: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        """Return greedy actions, and random ones with probability epsilon, decided for each environment by itself."""
        actions, random = self._exploration.draw(epsilon_at(self.section, self.step, self.total_steps), masks)
        return actions if random.all() else np.where(random, actions, self.policy.choose(seen, masks))

    @torch.no_grad()
    def targets(self, batch: Transitions) -> torch.Tensor:
        """Return what the values of the actions in a batch should have been, (B,).

        Rewards of k <= n steps, and what the target network takes the state after them to be worth:

            r_1 + g r_2 + ... + g^(k-1) r_k + g^k Q_target(s', a'),  a' = argmax_a Q_online(s', a)

        Without ``double``, the target network chooses a', too. After a termination, though not after a truncation,
        nothing follows; ``batch.discounts`` is 0 there, and else g^k.
        """
        next_observations = self._tensor(batch.next_observations)
        next_values = self.target(next_observations)  # (B, A)
        preferences = self.online(next_observations) if self.section.double else next_values
        best = _allowed(preferences, self._optional(batch.next_masks)).argmax(dim=1, keepdim=True)
        bootstrap = next_values.gather(1, best).squeeze(1)
        return torch.addcmul(self._tensor(batch.returns), self._tensor(batch.discounts), bootstrap)

    def learn(self, updates: int) -> None:
        """Do so many gradient steps, each towards the targets of other remembered transitions."""
        beta = importance_exponent_at(self.section, self.step, self.total_steps)
        for batch in self.replay.batches(updates, self.section.batch_size, self._generator, beta):
            self._update(batch)

    def _update(self, batch: Transitions) -> None:
        """Do one gradient step towards the targets of a batch.

        Raises:
            TrainingError: the loss or its gradient is not finite; the weights are as before.
        """
        targets = self.targets(batch)
        observations, actions = self._tensor(batch.observations), self._tensor(batch.actions)
        q_values, loss, norm = self._learner.backward(observations, actions, targets, self._optional(batch.weights))
        # Both, because the gradient of the Huber loss of an infinite error is finite.
        if not np.isfinite(norm) or not np.isfinite(loss):
            raise TrainingError(
                f"step {self.step}: the loss or its gradient is not finite, and nothing was updated with it. "
                + self._remedy()
            )
        self._learner.step(learning_rate_at(self.section, self.step, self.total_steps))
        self.updates += 1
        if batch.weights is not None:
            self.replay.set_priorities(batch.indices, (q_values - targets).cpu().numpy())
        self._statistics.add(loss=loss, mean_value=q_values.mean().item(), gradient_norm=norm)

    @torch.no_grad()
    def _update_target(self) -> None:
        """Move the weights of the target network towards those of the online network, and copy running statistics."""
        for old, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
            old.lerp_(new, self.section.tau)
        for kept, latest in zip(self.target.buffers(), self.online.buffers(), strict=True):
            kept.copy_(latest)

    def _multiples_passed(self, every: int, before: int) -> int:
        """Return how many multiples of ``every`` environment steps the last step passed."""
        return max(0, self.step // every - before // every)

    def _record(self, seen: np.ndarray, outcome: Step) -> None:
        for total_reward, length in outcome.finished:
            self._statistics.add(episode_return=total_reward, episode_length=length)
        self._largest_reward = max(self._largest_reward, float(np.abs(outcome.rewards).max()))
        if isinstance(self.online.normalizer, RunningNormalizer):
            self.online.normalizer.update(self._tensor(seen))

    def report(self) -> dict[str, float]:
        """Return means since the last report: returns and lengths of exploring episodes, loss, values, schedules.

        Raises:
            TrainingError: values are far beyond what the rewards so far allow.
        """
        means = self._statistics.pop()
        means["epsilon"] = epsilon_at(self.section, self.step, self.total_steps)
        means["learning_rate"] = learning_rate_at(self.section, self.step, self.total_steps)
        value = abs(means.get("mean_value", 0.0))
        if self.section.discount < 1:
            largest = max(1.0, self._largest_reward)  # values begin at random, also where every reward so far was 0
            most = largest / (1 - self.section.discount)
            if value > DIVERGED * most:
                raise TrainingError(
                    f"step {self.step}: the values diverge; their mean is {value:.3g}, and with rewards up to "
                    f"{largest:.3g} and discount {self.section.discount} no state is worth more than "
                    f"{most:.3g}. {self._remedy()}"
                )
        return means

    def advice(self) -> list[str]:
        """Return what keeps a network from learning well: numbers much larger than one."""
        found = []
        if (seen := self._largest_observation()) > LARGE_OBSERVATION:
            found.append(
                f"observations reach {seen:.3g}, and a network learns best from numbers of about one; set "
                "algorithm.normalize_observations=true"
            )
        if self._largest_reward > LARGE_REWARD:
            found.append(
                f"rewards reach {self._largest_reward:.3g}, and a network learns values of about one best; set "
                f"environment.reward.scale={1 / self._largest_reward:.1g}"
            )
        return found

    def _remedy(self) -> str:
        """Return what to do about values that grow: first what the numbers say, then what often helps."""
        rest = (
            "Try a lower algorithm.learning_rate, a higher algorithm.target_update_every, or a smaller "
            "environment.reward.scale"
        )
        return " ".join((*(f"{each[0].upper()}{each[1:]}." for each in self.advice()), rest))

    def _largest_observation(self) -> float:
        """Return how large the numbers are that a network without normalization sees now; 0 for images."""
        takes_them_as_they_are = (
            isinstance(self.section.network, MlpNetwork) and not self.section.normalize_observations
        )
        return float(np.abs(self._seen).max()) if takes_them_as_they_are else 0.0

    def begin_with(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of a policy that was saved; both networks then are the one that it had.

        Raises:
            RecipeError: they are those of another network.
        """
        try:
            self.online.load_state_dict(dict(weights))
        except RuntimeError as error:
            first = str(error).splitlines()[1:2] or [str(error)]
            raise RecipeError(
                f"train.start_from: those weights do not fit this network ({first[0].strip()}); write the algorithm of "
                "the recipe that trained them"
            ) from error
        self.target.load_state_dict(self.online.state_dict())

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all that decides what comes next, as arrays and plain values, for ``restore``."""
        networks = {"weights": self.online, "target_weights": self.target}
        tensors = {name: _weights(network) for name, network in networks.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self._learner.state().items()}
        tensors |= {f"online.{name}": buffer for name, buffer in self.online.named_buffers()}
        tensors |= {f"target.{name}": buffer for name, buffer in self.target.named_buffers()}
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        arrays |= {f"replay.{name}": array for name, array in self.replay.state().items()}
        arrays |= {f"exploration.{name}": array for name, array in self._exploration.state().items()}
        arrays |= {"observations": self.environments.observations, "seen": self._seen.copy()}
        values = {
            "step": self.step,
            "updates": self.updates,
            "largest_reward": self._largest_reward,
            "statistics": self._statistics.state(),
            "generator": self._generator.bit_generator.state,
            "environments": self.environments.state(),
        }
        return arrays, values

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take back what ``state`` gave, and go on as if nothing had happened.

        Raises:
            DataError: the environments do not come back to where they were.
        """
        self.environments.restore(values["environments"], arrays["observations"])
        self._seen = arrays["seen"]
        self._perceive.fill_cache(arrays["observations"], self._seen)
        _set_weights(self.online, torch.from_numpy(arrays["weights"]))
        _set_weights(self.target, torch.from_numpy(arrays["target_weights"]))
        for prefix, network in (("online", self.online), ("target", self.target)):
            for name, buffer in network.named_buffers():
                buffer.copy_(torch.from_numpy(arrays[f"{prefix}.{name}"]))
        optimizer = _under("optimizer", arrays)
        self._learner.restore({name: torch.from_numpy(array) for name, array in optimizer.items()})
        self.replay.restore(_under("replay", arrays))
        self._exploration.restore(_under("exploration", arrays))
        self._generator.bit_generator.state = values["generator"]
        self.step, self.updates = values["step"], values["updates"]
        self._largest_reward = values["largest_reward"]
        self._statistics.restore(values["statistics"])

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def _optional(self, array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else self._tensor(array)


def _allowed(values: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
    """Return the values, (B, A), with forbidden actions at minus infinity."""
    return values if masks is None else values.masked_fill(~masks, -torch.inf)


def _weights(network: nn.Module) -> torch.Tensor:
    """Return all weights of a network one after the other, (W,)."""
    return torch.cat([weight.detach().reshape(-1) for weight in network.parameters()])


@torch.no_grad()
def _set_weights(network: nn.Module, vector: torch.Tensor) -> None:
    """Write what ``_weights`` gave into the weights of a network, where they are."""
    weights = list(network.parameters())
    parts = torch.split(vector, [weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.copy_(part.view_as(weight))


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with the prefix and a dot, without it."""
    return {name.removeprefix(f"{prefix}."): array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
