"""DQN, whole: how the agent acts, what it remembers, what it learns from, and when.

Mnih et al. 2015, with Double DQN (van Hasselt et al. 2016), n-step returns (Sutton 1988), a dueling head (Wang et al.
2016) and prioritized replay (Schaul et al. 2016), each a switch of the recipe. ``advance`` is the loop; read it first.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hftoolkit.errors import TrainingError
from hftoolkit.recipe import Dqn, PixelObservations
from hftoolkit.rl.adam import Adam
from hftoolkit.rl.backpropagation import values_of
from hftoolkit.rl.encoders import Perception, perception
from hftoolkit.rl.environments import Environments, Step
from hftoolkit.rl.exploration import Exploration
from hftoolkit.rl.networks import RunningNormalizer, build_network, one_vector
from hftoolkit.rl.replay import Replay, Transitions
from hftoolkit.rl.schedules import epsilon, importance_exponent, rate
from hftoolkit.rl.statistics import Statistics
from hftoolkit.seeding import numpy_generator, seed_torch

DIVERGED = 10.0  # mean values this many times beyond what rewards allow are no values any more


class QPolicy:
    """Takes the action of the highest value.

    Args:
        network: what is perceived of observations, (B, ...) -> action values, (B, A).
        perceive: observations -> what the network sees of them; see ``Perception``.
        device: where the network is.
    """

    def __init__(self, network: nn.Module, perceive: Perception, device: torch.device) -> None:
        self._network, self._perceive, self._device = network, perceive, device

    def act(self, observations: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        """Return the best action, (N,) int, for each observation, (N, ...), among those that masks, (N, A), allow."""
        return self.choose(self._perceive(observations), masks)

    def choose(self, seen: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        """Return the same for what is perceived of the observations."""
        with torch.inference_mode():
            values = self._network(torch.from_numpy(seen).to(self._device))
            allowed = None if masks is None else torch.from_numpy(masks).to(self._device)
            best: np.ndarray = _allowed(values, allowed).argmax(dim=1).cpu().numpy()
        return best


class DqnAgent:
    """An agent that learns while it acts.

    Args:
        section: the algorithm.
        environments: where it acts; what it sees there decides the shape of its network.
        pixels: how frames become observations; None for vectors.
        seed: of weights, exploration and replay.
        total_steps: environment steps after which its schedules end.
        device: where the network is.

    Attributes:
        step: environment steps done, over all environments. All schedules count these.
        updates: gradient steps done.
        online: the network that acts and is trained.
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
    ) -> None:
        self.section, self.environments, self.total_steps, self.device = section, environments, total_steps, device
        self.step = self.updates = 0
        seed_torch(seed, "network")
        self._perceive = perception(section.network, environments.observations[0]).to(device)
        self._seen = self._perceive(environments.observations)
        self.online = build_network(section, self._seen[0], environments.num_actions).to(device)
        self.target = copy.deepcopy(self.online)
        self._weights, self._target_weights = one_vector(self.online), one_vector(self.target)
        self.target.requires_grad_(False)
        assert self._weights.grad is not None and self._target_weights.grad is not None
        self._gradient = self._weights.grad
        self._values = values_of(self.online, self._gradient)
        self._target_values = values_of(self.target, self._target_weights.grad)
        self.policy = QPolicy(self.online, self._perceive.forgetful(), device)
        self._optimizer = Adam(self._weights)
        self._generator = numpy_generator(seed, "agent")
        self._exploration = Exploration(
            environments.num_envs,
            environments.num_actions,
            self._generator,
            repeat_exponent=section.repeat_exponent,
        )
        self._statistics = Statistics()
        self._largest_reward = 0.0
        frames = self._seen if pixels is None else self._seen[:, -1]
        self.replay = Replay(
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
        self._take_note(seen, outcome)
        before, self.step = self.step, self.step + self.environments.num_envs
        # Many environments may pass several multiples at once, some of them before learning starts.
        before = max(before, self.section.learning_starts - 1)
        self.learn(self._times(self.section.update_every, before) * self.section.updates)
        for _ in range(self._times(self.section.target_update_every, before)):
            self._update_target()

    def act(self, observations: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        """Return the best actions, as ``QPolicy`` does."""
        return self.policy.act(observations, masks)

    def _explore(self, seen: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        """Return greedy actions, and random ones with probability epsilon, decided for each environment by itself."""
        actions, random = self._exploration.draw(epsilon(self.section, self.step, self.total_steps), masks)
        return actions if random.all() else np.where(random, actions, self.policy.choose(seen, masks))

    @torch.inference_mode()
    def targets(self, batch: Transitions) -> torch.Tensor:
        """Return what the values of a batch should have been, (B,): the rewards of k steps and what follows is worth.

        The target network gives that value, for the action that the online network (``double``) or it itself prefers.
        ``batch.discounts`` is gamma to the power of k, and 0 after a termination, but not after a truncation.
        """
        following, masks = self._tensor(batch.next_observations), self._optional(batch.next_masks)
        values = self._target_values(following)
        preference = self._values(following) if self.section.double else values
        best = _allowed(preference, masks).argmax(dim=1, keepdim=True)
        worth = values.gather(1, best).squeeze(1)
        return torch.addcmul(self._tensor(batch.returns), self._tensor(batch.discounts), worth)

    def learn(self, updates: int) -> None:
        """Do so many gradient steps, each towards the targets of other remembered transitions."""
        beta = importance_exponent(self.section, self.step, self.total_steps)
        for batch in self.replay.batches(updates, self.section.batch_size, self._generator, beta):
            self._update(batch)

    def _update(self, batch: Transitions) -> None:
        """Do one gradient step towards the targets of a batch.

        Raises:
            TrainingError: the loss or its gradient is not finite; the weights are as before.
        """
        targets = self.targets(batch)
        actions = self._tensor(batch.actions).unsqueeze(1)
        values = self._values(self._tensor(batch.observations))  # (B, A)
        chosen = values.gather(1, actions).squeeze(1)
        errors = chosen - targets
        loss, slopes = self._loss(errors, self._optional(batch.weights))
        self._values.backward(torch.zeros_like(values).scatter_(1, actions, slopes.unsqueeze(1)))
        norm = self._gradient.norm().item()
        # Both, because the gradient of the Huber loss of an infinite error is finite.
        if not np.isfinite(norm) or not np.isfinite(loss):
            raise TrainingError(
                f"step {self.step}: the loss or its gradient is not finite, and nothing was updated with it; "
                "try a lower algorithm.learning_rate, or see whether a reward is no finite number"
            )
        if norm > self.section.max_gradient_norm:
            self._gradient.mul_(self.section.max_gradient_norm / norm)
        self._optimizer.step(self._gradient, rate(self.section, self.step, self.total_steps))
        self.updates += 1
        if batch.weights is not None:
            self.replay.set_priorities(batch.places, errors.cpu().numpy())
        self._statistics.add(loss=loss, mean_value=chosen.mean().item(), gradient_norm=norm)

    @torch.inference_mode()
    def _loss(self, errors: torch.Tensor, weights: torch.Tensor | None) -> tuple[float, torch.Tensor]:
        """Return the weighted mean loss of errors, (B,), and its derivative by each of them, (B,).

        Huber's loss is half the square of an error up to 1, and beyond that a line.
        """
        if self.section.loss == "huber":
            slopes = errors.clamp(-1, 1)
            losses = slopes * (errors - slopes / 2)
        else:
            slopes, losses = 2 * errors, errors.square()
        if weights is not None:
            slopes, losses = slopes * weights, losses * weights
        return losses.mean().item(), slopes / len(errors)

    def _update_target(self) -> None:
        with torch.no_grad():
            self._target_weights.lerp_(self._weights, self.section.tau)
            for kept, new in zip(self.target.buffers(), self.online.buffers(), strict=True):
                kept.copy_(new)

    def _times(self, every: int, before: int) -> int:
        """Return how many multiples of ``every`` environment steps the last step passed."""
        return max(0, self.step // every - before // every)

    def _take_note(self, seen: np.ndarray, outcome: Step) -> None:
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
        means = self._statistics.take()
        means["epsilon"] = epsilon(self.section, self.step, self.total_steps)
        means["learning_rate"] = rate(self.section, self.step, self.total_steps)
        value = abs(means.get("mean_value", 0.0))
        if self.section.discount < 1:
            largest = max(1.0, self._largest_reward)  # values begin at random, also where every reward so far was 0
            most = largest / (1 - self.section.discount)
            if value > DIVERGED * most:
                raise TrainingError(
                    f"step {self.step}: the values diverge; their mean is {value:.3g}, and with rewards up to "
                    f"{largest:.3g} and discount {self.section.discount} no state is worth more than "
                    f"{most:.3g}. Try a lower algorithm.learning_rate or a higher algorithm.target_update_every"
                )
        return means

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all that decides what comes next, as arrays and plain values, for ``restore``."""
        tensors = {"weights": self._weights.detach(), "target_weights": self._target_weights.detach()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self._optimizer.state().items()}
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
        self._perceive.remember(arrays["observations"], self._seen)
        with torch.no_grad():
            self._weights.copy_(torch.from_numpy(arrays["weights"]))
            self._target_weights.copy_(torch.from_numpy(arrays["target_weights"]))
            for prefix, network in (("online", self.online), ("target", self.target)):
                for name, buffer in network.named_buffers():
                    buffer.copy_(torch.from_numpy(arrays[f"{prefix}.{name}"]))
        moments = _under("optimizer", arrays)
        self._optimizer.restore({name: torch.from_numpy(array) for name, array in moments.items()})
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


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with the prefix and a dot, without it."""
    return {name.removeprefix(f"{prefix}."): array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
