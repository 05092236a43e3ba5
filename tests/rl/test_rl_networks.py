"""Networks of agents: encoders, dueling heads, normalization, against plain torch and numpy."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from hftoolkit.errors import DataError, RecipeError
from hftoolkit.recipe import Dqn, MlpNetwork, NatureCnn, TimmEncoder
from hftoolkit.rl.encoders import Perception, nature_cnn, perception, timm_encoder
from hftoolkit.rl.networks import QNetwork, RunningNormalizer, build_network, mlp

ARCHITECTURE = "test_resnet"
SIZE, STACK = 32, 3


def frames(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def random_timm(seed: int = 1) -> Any:
    """A model whose batch norms have statistics of their own, as after training."""
    torch.manual_seed(seed)
    model: Any = timm.create_model(ARCHITECTURE, num_classes=5)
    model.train()(torch.randn(8, 3, SIZE, SIZE))
    return model.eval()


def timm_features(model: Any, stacks: np.ndarray) -> torch.Tensor:
    """What timm gives for each frame of (B, stack, H, W[, 3]), joined."""
    model.reset_classifier(0)
    data = timm.data.resolve_data_config(model=model)
    mean, std = torch.tensor(data["mean"]), torch.tensor(data["std"])
    pixels = torch.from_numpy(stacks if stacks.ndim == 5 else stacks[..., None].repeat(3, axis=-1))
    with torch.no_grad():
        each = [model(((pixels[:, i] / 255 - mean) / std).permute(0, 3, 1, 2)) for i in range(stacks.shape[1])]
    return torch.cat(each, dim=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(random_timm().state_dict(), path)
    return path


def timm_section(weights: Path | None, **knobs: Any) -> TimmEncoder:
    backbone = None if weights is None else str(weights)
    return TimmEncoder(encoder="timm", architecture=ARCHITECTURE, backbone=backbone, **knobs)


@pytest.mark.parametrize("shape", [(4, 84, 84), (1, 36, 36), (2, 50, 50, 3)])
def test_nature_cnn_is_the_network_of_the_paper_on_pixels_from_0_to_1(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder, num_features = nature_cnn(frames(*shape))
    channels = shape[0] * (3 if len(shape) == 4 else 1)
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(channels, 32, 8, stride=4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    stacks = frames(5, *shape)
    images = np.concatenate([*np.moveaxis(stacks, -1, 2).swapaxes(0, 1)], axis=1) if stacks.ndim == 5 else stacks
    wanted = plain(torch.from_numpy(images.astype(np.float32) / np.float32(255)))
    features = encoder(torch.from_numpy(stacks))
    assert features.shape == (5, num_features)
    torch.testing.assert_close(features, wanted)


def test_nature_cnn_has_3136_features_of_84_pixels() -> None:
    assert nature_cnn(frames(4, 84, 84))[1] == 3136


def test_frames_too_small_for_the_convolutions_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"pixels.size: 35 is too small for nature-cnn; the least is 36"):
        nature_cnn(frames(4, 35, 35))


def test_layers_are_normalized_before_each_relu() -> None:
    torch.manual_seed(0)
    encoder, rows = mlp((3, 7, 5), layer_norm=True), torch.randn(4, 3)
    wanted = rows
    for linear in (encoder[0], encoder[3]):
        wanted = wanted @ linear.weight.T + linear.bias
        centred = wanted - wanted.mean(dim=1, keepdim=True)
        wanted = (centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(encoder(rows), wanted)


def dueling(num_actions: int) -> QNetwork:
    torch.manual_seed(0)
    return QNetwork(mlp((3, 7), layer_norm=False), 7, num_actions, dueling=True, normalizer=nn.Identity())


def test_a_dueling_head_adds_the_state_value_to_advantages_without_their_mean() -> None:
    network, observations = dueling(4), torch.randn(6, 3)
    streams = network.head(network.encoder(observations))
    advantages, state_values = streams[:, :4], streams[:, 4]
    values = network(observations)
    torch.testing.assert_close(values.mean(dim=1), state_values)
    torch.testing.assert_close(values - values[:, :1], advantages - advantages[:, :1])


def test_a_constant_added_to_all_advantages_changes_no_value() -> None:
    network, observations = dueling(4), torch.randn(6, 3)
    before = network(observations)
    with torch.no_grad():
        network.head.bias[:4] += 5
    torch.testing.assert_close(network(observations), before)


def test_the_normalizer_knows_mean_and_variance_of_all_batches() -> None:
    generator = np.random.default_rng(0)
    scale = np.array([1.0, 100.0, 0.01])
    batches = [generator.normal(3 * scale, scale, (size, 3)).astype(np.float32) for size in (1, 7, 2, 300)]
    normalizer = RunningNormalizer(3)
    for batch in batches:
        normalizer.update(torch.from_numpy(batch))
    everything = np.concatenate(batches).astype(np.float64)
    mean, deviation = everything.mean(axis=0), everything.std(axis=0)
    np.testing.assert_allclose(normalizer.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(normalizer.variance, deviation**2, rtol=1e-4)
    far = torch.from_numpy((mean + np.array([[1, -2, 0.5], [99, -99, 9]]) * deviation).astype(np.float32))
    np.testing.assert_allclose(normalizer(far), [[1, -2, 0.5], [10, -10, 9]], rtol=1e-2)


def test_an_untouched_normalizer_changes_nothing() -> None:
    observations = torch.tensor([[1.0, -2.0]])
    torch.testing.assert_close(RunningNormalizer(2)(observations), observations)


@pytest.mark.parametrize("shape", [(STACK, SIZE, SIZE), (STACK, SIZE, SIZE, 3)])
@pytest.mark.parametrize("frozen", [True, False])
def test_timm_features_are_those_of_each_frame_joined(weights: Path, shape: tuple[int, ...], frozen: bool) -> None:
    stacks = frames(2, *shape)
    encoder, num_features = timm_encoder(timm_section(weights, frozen=frozen), stacks[0])
    wanted = timm_features(random_timm(), stacks)
    assert wanted.shape == (2, num_features)
    torch.testing.assert_close(encoder(torch.from_numpy(stacks)).detach(), wanted, rtol=1e-4, atol=1e-5)


def test_a_frozen_backbone_never_changes(weights: Path) -> None:
    stacks = torch.from_numpy(frames(4, STACK, SIZE, SIZE))
    encoder, _ = timm_encoder(timm_section(weights), frames(STACK, SIZE, SIZE))
    state = copy.deepcopy(encoder.state_dict())
    for mode in (True, False):
        assert not encoder.train(mode)(stacks).requires_grad
    assert not [module for module in encoder[0].backbone.modules() if module.training]
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


def test_a_fine_tuned_backbone_learns_but_keeps_its_statistics(weights: Path) -> None:
    stacks = torch.from_numpy(frames(4, STACK, SIZE, SIZE))
    encoder, _ = timm_encoder(timm_section(weights, frozen=False), frames(STACK, SIZE, SIZE))
    encoder.train()
    statistics = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    assert statistics
    features = encoder(stacks)
    torch.testing.assert_close(features[:1], encoder(stacks[:1]))  # no matter what it is seen with
    features.square().mean().backward()
    stem, *others = encoder.parameters()
    assert stem.grad is not None and stem.grad.any() and all(weight.grad is not None for weight in others)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in encoder.named_buffers())


def test_random_weights_follow_the_seed_of_torch() -> None:
    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        encoder, _ = timm_encoder(timm_section(None, frozen=False), frames(STACK, SIZE, SIZE))
        return next(encoder.parameters()), torch.rand(3)

    for again, other in zip(draw(0), draw(1), strict=True):
        assert not torch.equal(again, other)
    for first, again in zip(draw(0), draw(0), strict=True):
        assert torch.equal(first, again)


def test_errors_name_the_knobs_of_this_kind_of_recipe(weights: Path) -> None:
    observation = frames(STACK, SIZE, SIZE)
    unknown = TimmEncoder(encoder="timm", architecture="test_resnett", frozen=False)
    with pytest.raises(RecipeError, match=r"algorithm.network.architecture: .* did you mean test_resnet"):
        timm_encoder(unknown, observation)
    vit = TimmEncoder(encoder="timm", architecture="test_vit", frozen=False)
    with pytest.raises(RecipeError, match=r"environment.pixels.size: 36 does not suit"):
        timm_encoder(vit, frames(STACK, 36, 36))
    misfit = TimmEncoder(encoder="timm", architecture="test_vit", backbone=str(weights))
    with pytest.raises(DataError, match=r"do not fit algorithm.network.architecture test_vit"):
        timm_encoder(misfit, observation)


def test_a_frozen_encoder_sees_each_frame_once(weights: Path) -> None:
    video = frames(2, 10, SIZE, SIZE)  # of two environments
    stacks = [video[:, time : time + STACK] for time in range(10 - STACK + 1)]
    perceive = perception(timm_section(weights), stacks[0][0])
    encoded: list[int] = []
    assert perceive.encoder is not None
    perceive.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
    model = random_timm()
    for stack in stacks:
        for _ in range(2):  # after a step, and before the next
            seen = perceive(stack)
            assert seen.shape[:2] == (2, STACK) and seen.dtype == np.float32
            wanted = timm_features(model, stack)
            torch.testing.assert_close(torch.from_numpy(seen).flatten(1), wanted, rtol=1e-4, atol=1e-5)
    assert encoded == [2 * STACK] + [2] * (10 - STACK)


class Corner(nn.Module):
    """Take the first pixels of a frame for its features, and count the frames of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, stacks: torch.Tensor) -> torch.Tensor:
        self.counts.append(len(stacks))
        return stacks.flatten(1)[:, :5] * self.scale


def test_a_perception_can_be_told_what_it_knew_and_forget_it() -> None:
    stacks, encoder = frames(2, STACK, SIZE, SIZE), Corner()
    perceive = Perception(encoder)
    seen = perceive(stacks)
    np.testing.assert_array_equal(seen, stacks[:, :, 0, :5])
    resumed = perceive.with_empty_cache()
    resumed.fill_cache(stacks, seen + 1)
    np.testing.assert_array_equal(resumed(stacks), seen + 1)
    assert encoder.counts == [2 * STACK]
    np.testing.assert_array_equal(perceive.with_empty_cache()(stacks), seen)
    assert encoder.counts == [2 * STACK] * 2


def test_a_perception_forgets_frames_that_left_the_stacks() -> None:
    encoder = Corner()
    perceive = Perception(encoder)
    for seed in (0, 1, 0):
        perceive(frames(2, STACK, SIZE, SIZE, seed=seed))
    assert encoder.counts == [2 * STACK] * 3


def test_equal_frames_are_encoded_once_and_all_others_apart() -> None:
    stacks, encoder = frames(2, STACK, SIZE, SIZE), Corner()
    stacks[1, 0] = stacks[0, 2]
    np.testing.assert_array_equal(Perception(encoder)(stacks), stacks[:, :, 0, :5])
    assert encoder.counts == [2 * STACK - 1]


@pytest.mark.parametrize(
    "network",
    [MlpNetwork(), NatureCnn(encoder="nature-cnn"), TimmEncoder(encoder="timm", architecture="x", frozen=False)],
)
def test_without_a_frozen_encoder_observations_are_seen_as_they_are(network: Any) -> None:
    observations = frames(2, STACK, SIZE, SIZE)
    perceive = perception(network, observations[0])
    perceive.fill_cache(observations, observations)
    assert perceive(observations) is observations
    assert perceive.with_empty_cache()(observations) is observations


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "nature-cnn", "frozen", "fine-tuned"])
def test_each_network_gives_a_value_for_each_action(weights: Path, kind: str, dueling: bool) -> None:
    hidden: dict[str, Any] = {"hidden_sizes": (6,)}
    network, observations = {
        "mlp": (MlpNetwork(**hidden), np.zeros((2, 5), np.float32)),
        "nature-cnn": (NatureCnn(encoder="nature-cnn", **hidden), frames(2, STACK, 40, 40)),
        "frozen": (timm_section(weights, **hidden), frames(2, STACK, SIZE, SIZE)),
        "fine-tuned": (timm_section(None, frozen=False, **hidden), frames(2, STACK, SIZE, SIZE)),
    }[kind]
    seen = perception(network, observations[0])(observations)
    model = build_network(Dqn(kind="dqn", network=network, dueling=dueling), seen[0], 3)
    values = model(torch.from_numpy(seen))
    assert values.shape == (2, 3) and values.dtype == torch.float32
    assert all(weight.requires_grad for weight in model.parameters())  # a frozen backbone is not part of it


def test_images_are_not_normalized_like_vectors() -> None:
    with pytest.raises(ValidationError, match="normalize_observations is for vectors"):
        Dqn(kind="dqn", network=NatureCnn(encoder="nature-cnn"), normalize_observations=True)
