"""The faster learner against the one of dqn.py, and its chain rule against plain autograd on a copy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hftoolkit.recipe import Dqn, MlpNetwork, NatureCnn
from hftoolkit.rl.dqn import Learner
from hftoolkit.rl.networks import QNetwork, RunningNormalizer, build_network
from hftoolkit.rl.speedups import AutogradValues, FastLearner, MlpValues, is_mlp, loss_and_slopes, one_vector

pytestmark = pytest.mark.smoke

SIZE, ACTIONS, FRAMES = 5, 3, (2, 36, 36)


def section(**knobs: Any) -> Dqn:
    return Dqn(kind="dqn", **{"network": MlpNetwork(hidden_sizes=(8, 6))} | knobs)


def network_of(algorithm: Dqn, observation: np.ndarray) -> QNetwork:
    torch.manual_seed(0)
    network = build_network(algorithm, observation, ACTIONS)
    with torch.no_grad():
        for weight in network.parameters():  # layer normalizations begin at 1 and 0, which would hide mistakes
            weight.add_(0.3 * torch.randn_like(weight))
    if isinstance(network.normalizer, RunningNormalizer):
        network.normalizer.update(2 + 3 * torch.randn(50, observation.size))
    return network


def learners(algorithm: Dqn, observation: np.ndarray, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return (network, learner) of dqn.py and the same of speedups.py, with equal weights."""
    plain, fast = (network_of(algorithm, observation).to(dtype) for _ in range(2))
    return (plain, Learner(plain, algorithm)), (fast, FastLearner(fast, algorithm))


def gradient(network: QNetwork) -> torch.Tensor:
    return torch.cat([weight.grad.reshape(-1) for weight in network.parameters() if weight.grad is not None])


def weights_of(network: QNetwork) -> torch.Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def batch(number: int, shape: tuple[int, ...], dtype: torch.dtype, *, weighted: bool) -> tuple[Any, ...]:
    """Return observations, actions, targets on both sides of where Huber's loss turns, and importance weights."""
    generator = torch.Generator().manual_seed(number)
    rows = (7, 12, 4)[number % 3]
    observations = 3 * torch.randn(rows, *shape, generator=generator, dtype=dtype)
    actions = torch.randint(ACTIONS, (rows,), generator=generator)
    targets = 2 * torch.randn(rows, generator=generator, dtype=dtype)
    weights = 0.1 + torch.rand(rows, generator=generator, dtype=dtype)
    return observations, actions, targets, weights if weighted else None


MLP_VARIANTS = [
    {},
    {"dueling": True},
    {"network": MlpNetwork(hidden_sizes=(8, 6), layer_norm=True)},
    {"normalize_observations": True},
    {"dueling": True, "normalize_observations": True, "network": MlpNetwork(hidden_sizes=(4, 7, 5), layer_norm=True)},
]


def every_variant(test: Any) -> Any:
    for mark in (
        pytest.mark.parametrize("clips", [False, True], ids=["free", "clipped"]),
        pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"]),
        pytest.mark.parametrize("loss", ["huber", "mse"]),
        pytest.mark.parametrize("knobs", MLP_VARIANTS, ids=str),
    ):
        test = mark(test)
    return test


@every_variant
def test_both_learners_have_the_same_gradients(knobs: dict[str, Any], loss: str, weighted: bool, clips: bool) -> None:
    algorithm = section(loss=loss, max_gradient_norm=0.05 if clips else 1e6, **knobs)
    (plain, learner), (fast, fast_learner) = learners(algorithm, np.zeros(SIZE, np.float32), torch.float64)
    assert isinstance(fast_learner._values, MlpValues)
    for number in range(12):
        arguments = batch(number, (SIZE,), torch.float64, weighted=weighted)
        q_values, value, norm = learner.backward(*arguments)
        fast_q_values, fast_value, fast_norm = fast_learner.backward(*arguments)
        assert not q_values.requires_grad and not fast_q_values.requires_grad
        torch.testing.assert_close(fast_q_values, q_values, rtol=1e-9, atol=1e-12)
        assert (fast_value, fast_norm) == pytest.approx((value, norm), rel=1e-9)
        assert (norm > algorithm.max_gradient_norm) == clips
        # torch adds 1e-6 to the norm by which it divides, and the faster learner does not.
        wanted = gradient(plain) * (1 + 1e-6 / norm) if clips else gradient(plain)
        torch.testing.assert_close(gradient(fast), wanted, rtol=1e-9, atol=1e-12)
        assert gradient(fast).norm().item() == pytest.approx(min(norm, algorithm.max_gradient_norm))


@every_variant
def test_both_learners_have_the_same_weights_after_updates(
    knobs: dict[str, Any], loss: str, weighted: bool, clips: bool
) -> None:
    algorithm = section(loss=loss, max_gradient_norm=0.5 if clips else 1e6, **knobs)
    (plain, learner), (fast, fast_learner) = learners(algorithm, np.zeros(SIZE, np.float32), torch.float64)
    before, clipped = weights_of(plain), 0
    for number in range(30):
        arguments = batch(number, (SIZE,), torch.float64, weighted=weighted)
        for each in (learner, fast_learner):
            _, _, norm = each.backward(*arguments)
            each.step(1e-2 / (1 + number / 10))
        clipped += norm > algorithm.max_gradient_norm
    assert clipped > 10 if clips else clipped == 0
    # The 1e-6 that torch adds to the norm changes a clipped gradient by 2e-6 of itself.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if clips else {"rtol": 1e-8, "atol": 1e-9}
    torch.testing.assert_close(weights_of(fast), weights_of(plain), **tolerance)
    assert (weights_of(plain) - before).abs().mean() > 0.01


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("dueling", [False, True])
def test_both_learners_agree_on_other_networks_too(dueling: bool, weighted: bool) -> None:
    cnn = NatureCnn(encoder="nature-cnn", hidden_sizes=(6,))
    algorithm = section(network=cnn, dueling=dueling, max_gradient_norm=0.5)
    (plain, learner), (fast, fast_learner) = learners(algorithm, np.zeros(FRAMES, np.uint8), torch.float32)
    assert isinstance(fast_learner._values, AutogradValues)
    for number in range(5):
        observations, *others = batch(number, FRAMES, torch.float32, weighted=weighted)
        arguments = (observations.mul(40).clamp(0, 255).byte(), *others)
        _, value, norm = learner.backward(*arguments)
        assert fast_learner.backward(*arguments)[1:] == pytest.approx((value, norm), rel=1e-4)
        torch.testing.assert_close(gradient(fast), gradient(plain), rtol=1e-3, atol=1e-5)
        learner.step(1e-3)
        fast_learner.step(1e-3)
    torch.testing.assert_close(weights_of(fast), weights_of(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [Learner, FastLearner])
def test_a_restored_learner_goes_on_to_the_last_bit(kind: type[Learner] | type[FastLearner]) -> None:
    algorithm = section(dueling=True)
    observation = np.zeros(SIZE, np.float32)

    def updated(network: QNetwork, learner: Learner | FastLearner, numbers: range) -> None:
        for number in numbers:
            learner.backward(*batch(number, (SIZE,), torch.float32, weighted=True))
            learner.step(1e-2)

    network = network_of(algorithm, observation)
    learner = kind(network, algorithm)
    assert kind is FastLearner or not learner.state()
    updated(network, learner, range(5))
    state = {name: tensor.clone() for name, tensor in learner.state().items()}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    again = copy.deepcopy(network)
    resumed = kind(again, algorithm)
    resumed.restore(state)
    updated(network, learner, range(5, 10))
    updated(again, resumed, range(5, 10))
    assert torch.equal(weights_of(network), weights_of(again))
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())  # what was given is not written to


def test_the_names_in_states_of_the_fast_learner_are_those_of_earlier_versions() -> None:
    state = FastLearner(network_of(section(), np.zeros(SIZE, np.float32)), section()).state()
    assert {name: tensor.ndim for name, tensor in state.items()} == {"step": 0, "exp_avg": 1, "exp_avg_sq": 1}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("loss", "torchs"), [("huber", functional.smooth_l1_loss), ("mse", functional.mse_loss)])
def test_losses_and_their_derivatives_are_those_of_torch(loss: str, torchs: Any, weighted: bool) -> None:
    errors = torch.linspace(-3, 3, 12, requires_grad=True)
    weights = torch.linspace(0.1, 1, 12) if weighted else None
    wanted = (torchs(errors, torch.zeros(12), reduction="none") * (1 if weights is None else weights)).mean()
    wanted.backward()
    found, slopes = loss_and_slopes(errors.detach(), weights, huber=loss == "huber")
    assert found == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(slopes, errors.grad)


def gradient_of(network: QNetwork, observations: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """The gradient of all weights of a copy, one after the other, by plain autograd."""
    plain = copy.deepcopy(network)
    for weight in plain.parameters():
        weight.grad = None
    (plain(observations) * slopes).sum().backward()
    return gradient(plain)


def assert_right(network: QNetwork, values: MlpValues | AutogradValues, shape: tuple[int, ...]) -> None:
    """Compare values and gradients for batches of several sizes, with other calls before."""
    for number, rows in enumerate((7, 7, 4, 9)):
        observations, slopes = torch.randn(rows, *shape), torch.randn(rows, ACTIONS)
        values(torch.randn(rows, *shape))
        found = values(observations)
        assert not found.requires_grad
        torch.testing.assert_close(found, network(observations).detach(), atol=1e-6, rtol=1e-6)
        values.backward(slopes)
        wanted = gradient_of(network, observations, slopes)
        torch.testing.assert_close(gradient(network), wanted, atol=2e-6, rtol=1e-5)
        assert wanted.abs().min() < wanted.abs().max()
        with torch.no_grad():
            for weight in network.parameters():  # as an optimizer does: in place
                weight.add_(0.1 * torch.randn_like(weight) * (number + 1))


@pytest.mark.parametrize("hidden_sizes", [(8,), (8, 6), (4, 7, 5)])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_chain_rule_of_an_mlp_is_that_of_autograd(
    hidden_sizes: tuple[int, ...], layer_norm: bool, dueling: bool, normalized: bool
) -> None:
    mlp = MlpNetwork(hidden_sizes=hidden_sizes, layer_norm=layer_norm)
    algorithm = section(network=mlp, dueling=dueling, normalize_observations=normalized)
    network = network_of(algorithm, np.zeros(SIZE, np.float32))
    one_vector(network)
    assert is_mlp(network)
    assert_right(network, MlpValues(network), (SIZE,))


def test_observations_of_several_rows_are_flattened_first() -> None:
    network = network_of(section(), np.zeros((2, SIZE), np.float32))
    network.encoder.insert(0, nn.Flatten())  # type: ignore[operator]
    one_vector(network)
    assert is_mlp(network)
    assert_right(network, MlpValues(network), (2, SIZE))


@pytest.mark.parametrize("dueling", [False, True])
def test_networks_with_other_layers_are_differentiated_by_autograd(dueling: bool) -> None:
    frame = np.zeros(FRAMES, np.float32)
    network = network_of(section(network=NatureCnn(encoder="nature-cnn", hidden_sizes=(6,)), dueling=dueling), frame)
    vector = one_vector(network)
    assert vector.grad is not None and not is_mlp(network)
    assert_right(network, AutogradValues(network, vector.grad), frame.shape)


def test_weights_in_one_vector_train_like_weights_apart() -> None:
    torch.manual_seed(0)
    apart = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    together = copy.deepcopy(apart)
    inputs, targets = torch.randn(5, 1, 4, 4), torch.randn(5, 2)
    vector = one_vector(together)
    assert vector.numel() == sum(weight.numel() for weight in apart.parameters())
    torch.testing.assert_close(together(inputs), apart(inputs), rtol=0, atol=0)
    optimizers = torch.optim.Adam(apart.parameters(), lr=0.1), torch.optim.Adam([vector], lr=0.1)
    for _ in range(3):
        optimizers[0].zero_grad()
        assert vector.grad is not None
        vector.grad.zero_()
        for network, optimizer in zip((apart, together), optimizers, strict=True):
            (network(inputs) - targets).square().mean().backward()
            optimizer.step()
        gradients = [weight.grad.reshape(-1) for weight in apart.parameters() if weight.grad is not None]
        torch.testing.assert_close(vector.grad, torch.cat(gradients))
        assert vector.grad.any()
    for own, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(own, other)


class Residual(nn.Module):
    """Its layers are of known kinds, and put together in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.inner(values)


class Doubled(QNetwork):
    """A network with a forward of its own."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(observations)


SHARED = nn.Linear(SIZE, SIZE)
NO_CHAINS: dict[str, nn.Module] = {
    "residual": Residual(),
    "residual inside": nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), Residual()),
    "weights twice": nn.Sequential(SHARED, nn.ReLU(), SHARED),
    "no bias": nn.Sequential(nn.Linear(SIZE, SIZE, bias=False), nn.ReLU()),
    "no weights in the norm": nn.Sequential(nn.Linear(SIZE, SIZE), nn.LayerNorm(SIZE, elementwise_affine=False)),
    "begins with a relu": nn.Sequential(nn.ReLU(), nn.Linear(SIZE, SIZE)),
    "another layer": nn.Sequential(nn.Linear(SIZE, SIZE), nn.Tanh()),
    "flattens less": nn.Sequential(nn.Flatten(start_dim=-1), nn.Linear(SIZE, SIZE)),
}


@pytest.mark.parametrize("encoder", NO_CHAINS.values(), ids=NO_CHAINS)
def test_a_network_that_is_no_plain_chain_is_refused_and_left_to_autograd(encoder: nn.Module) -> None:
    network = QNetwork(copy.deepcopy(encoder), SIZE, ACTIONS, dueling=False, normalizer=nn.Identity())
    learner = FastLearner(network, section())
    assert not is_mlp(network) and isinstance(learner._values, AutogradValues)
    observations = torch.randn(4, SIZE)
    torch.testing.assert_close(learner._values(observations), network(observations).detach())
    with pytest.raises(AssertionError, match="plain chains"):
        MlpValues(network)


def test_a_network_with_a_forward_of_its_own_is_no_plain_chain() -> None:
    encoder = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU())
    assert is_mlp(QNetwork(encoder, SIZE, ACTIONS, dueling=False, normalizer=nn.Identity()))
    assert not is_mlp(Doubled(encoder, SIZE, ACTIONS, dueling=False, normalizer=nn.Identity()))
