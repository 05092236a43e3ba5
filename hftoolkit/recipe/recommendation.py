"""What recommendation recipes have of their own."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hftoolkit.recipe.sections import (
    ColumnNames,
    Evaluation,
    Fraction,
    FullTuning,
    Hub,
    LinearProbe,
    Model,
    Names,
    Section,
    Sha256,
    TableFormat,
    Train,
    Tuning,
    check_unfreezing,
)

Part = Literal[
    "text",
    "frozen-text",
    "popularity",
    "recent-popularity",
    "groups",
    "attributes",
    "item-knn",
    "ease",
    "slit",
    "ials",
]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Recency = Annotated[float | None, Field(gt=0, le=1e6)]


def _one_value_is_a_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


# One value, or several of which the best on validation is taken.
Positives = Annotated[
    tuple[Positive, ...],
    Field(min_length=1, strict=False),
    BeforeValidator(_one_value_is_a_list, json_schema_input_type=Positive | tuple[Positive, ...]),
]
Recencies = Annotated[
    tuple[Recency, ...],
    Field(min_length=1, strict=False),
    BeforeValidator(_one_value_is_a_list, json_schema_input_type=Recency | tuple[Recency, ...]),
]


class RecommendationTask(Section):
    """What the item tower learns: which items go with a history of others."""

    kind: Literal["recommendation"] = Field(description="The kind of problem.")
    objective: Literal["next-item", "rest-of-history"] = Field(
        "rest-of-history",
        description="Targets of a step: the item after a random place of each history, or all that a random part of "
        "the history leaves.",
    )
    loss: Literal["softmax", "sampled-softmax", "bpr"] = Field(
        "softmax",
        description="Cross-entropy over the whole catalogue, or over sampled negatives with corrected logits (logQ), "
        "or pairs with one sampled negative for each target (Rendle et al. 2009).",
    )
    negatives: int = Field(
        1024, ge=1, le=1_000_000, description="Items sampled a step, for sampled-softmax and bpr; shared by its users."
    )
    items_per_step: int | None = Field(
        None,
        ge=2,
        le=1_000_000,
        description="Trained items drawn evenly for each step of a softmax, which is then over these alone, as are the "
        "histories: fewer cost less. Default: all.",
    )
    draws_per_epoch: int = Field(
        1, ge=1, le=100_000, description="Times that each user is seen an epoch, with another part of the history."
    )
    temperature: float = Field(0.05, gt=0, le=10, description="Similarities are divided by it in the loss.")
    recency: Recency = Field(
        None, description="Items after which a past one counts 1/e as much in a user's vector; null: all count alike."
    )
    max_history: int = Field(1000, ge=2, le=100_000, description="Latest items of a history that are read.")

    @model_validator(mode="after")
    def _items_are_drawn_once(self) -> Self:
        if self.items_per_step is not None and self.loss != "softmax":
            raise ValueError(f"items_per_step is for loss: softmax; {self.loss} draws items by itself (negatives)")
        return self


class InteractionColumns(Section):
    """Which columns of the table say who chose what, and when."""

    user: str = Field("user_id", min_length=1, description="Who.")
    item: str = Field("item_id", min_length=1, description="What.")
    timestamp: str | None = Field(None, min_length=1, description="When: a number or an ISO date. Default: file order.")
    value: str | None = Field(None, min_length=1, description="A rating or amount, for minimum_value.")
    weight: str | None = Field(None, min_length=1, description="How much an interaction counts. Default: 1.")


class Source(Section):
    """A table."""

    source: str = Field(
        min_length=1, description="Hub data set id[@revision], local file or folder, or pypi:DIST==VERSION/path."
    )
    sha256: Sha256 | None = Field(None, description="SHA-256 of the wheel (pypi:) or of the local file.")
    format: TableFormat = Field(default_factory=TableFormat, description="How table files are read.")


class InteractionTable(Source):
    """Who chose what."""

    columns: InteractionColumns = Field(default_factory=InteractionColumns, description="Which columns are read.")
    minimum_value: float | None = Field(
        None, ge=-1e12, le=1e12, description="Interactions of a smaller value are left out."
    )

    @model_validator(mode="after")
    def _value_is_read(self) -> Self:
        if self.minimum_value is not None and self.columns.value is None:
            raise ValueError("minimum_value needs columns.value")
        return self


class ItemTable(Source):
    """What there is to recommend."""

    id: str = Field("item_id", min_length=1, description="Column of the id that interactions name.")
    columns: ColumnNames = Field(description="Columns of texts, categories or numbers that describe an item.")
    flags: dict[str, Names] = Field(
        default_factory=dict, description="Name -> columns of 0 and 1; the names of those with 1 become one text."
    )
    categories: Names = Field((), description="Columns whose values are attributes of items, as flags are.")
    numbers: Names = Field(
        (), description="Columns of numbers or dates, for attributes; five groups of equal size are made of each."
    )
    template: str | None = Field(
        None,
        min_length=1,
        description="How columns and flags are joined, for example '{title}. {genres}'. Default: the non-empty ones, "
        "each on a line.",
    )


class UserTable(Source):
    """What is known of users; a user that it does not have is no mistake."""

    id: str = Field("user_id", min_length=1, description="Column of the id that interactions name.")
    categories: Names = Field((), description="Columns whose values make groups of users.")
    numbers: Names = Field((), description="Columns of numbers; five groups of equal size are made of each.")


class RankingProtocol(Section):
    """What is held out. All models are fitted on the training interactions alone."""

    protocol: Literal["leave-one-out", "time", "random", "cold-items"] = Field(
        "leave-one-out",
        description="leave-one-out: the last item of each user is for test, the one before for validation; time: cut "
        "the log at two moments, and the last item of each user in a window is its target; random: fractions of each "
        "user's interactions; cold-items: fractions of the items, none of whose interactions is trained on.",
    )
    validation: Fraction = Field(0.1, description="Fraction of interactions or items; leave-one-out needs none.")
    test: Fraction = Field(0.1, description="Fraction of interactions or items; leave-one-out needs none.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of random and cold-items; independent of train.seed.")

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave nothing to train on; their sum must be under 1")
        return self


class RecommendationData(Section):
    """The log of interactions, the catalogue, and what is known of users."""

    interactions: InteractionTable = Field(description="Who chose what.")
    items: ItemTable = Field(description="The catalogue, with texts.")
    users: UserTable | None = Field(None, description="Groups of users, for the part 'groups'.")
    license: str | None = Field(None, min_length=1, description="Licence of the data, for the model card.")
    split: RankingProtocol = Field(default_factory=RankingProtocol, description="What is held out.")
    on_bad_rows: Literal["error", "skip"] = Field(
        "error", description="Rows without an id, a time or an item of the catalogue stop the run, or are left out."
    )

    @model_validator(mode="after")
    def _time_is_known(self) -> Self:
        if self.split.protocol == "time" and self.interactions.columns.timestamp is None:
            raise ValueError("split.protocol: time needs interactions.columns.timestamp")
        return self


class EncoderModel(Model):
    """Which pretrained text encoder becomes the item tower."""

    backbone: str = Field(min_length=1, description="Hub id[@revision], local folder, or pypi:DIST==VERSION/path.")
    max_length: int = Field(64, ge=4, le=131072, description="Tokens of an item's text that are kept.")
    dimensions: int | None = Field(
        None, ge=1, le=16384, description="Width of a trained projection after mean pooling. Default: no projection."
    )
    center: bool = Field(
        True, description="Subtract the mean of the pretrained outputs for all trained items, before the projection."
    )
    item_bias: bool = Field(
        True, description="Learn from the text also how popular an item is, and add that to its similarity."
    )


class IdModels(Section):
    """Models of item ids, in closed form or nearly; they know nothing of texts, and nothing of new items."""

    max_items: int = Field(
        20_000,
        ge=1,
        le=100_000,
        description="Above it EASE, SLIT and ItemKNN, which need its square in memory, are refused.",
    )
    recent_share: Fraction = Field(0.1, description="Latest share of the training log that recent popularity counts.")
    neighbors: int = Field(100, ge=1, le=100_000, description="Similar items that ItemKNN keeps for each.")
    item_knn_recency: Recencies = Field(
        (None,),
        description="As task.recency, in what ItemKNN scores. Of a list, here and below, what ranks validation best "
        "is taken; each ridge costs a fit.",
    )
    ease_regularization: Positives = Field((100.0, 400.0, 1000.0), description="Ridge of EASE (Steck 2019).")
    ease_recency: Recencies = Field((10.0, 20.0, 50.0, None), description="As task.recency, in what EASE scores.")
    slit_regularization: Positives = Field(
        (20.0,), description="Ridge of the sequential model SLIT (Choi et al. 2021)."
    )
    slit_recency: Positives = Field((10.0,), description="As task.recency, in what SLIT learns from and scores.")
    ials_dimensions: int = Field(64, ge=1, le=4096, description="Factors of iALS (Hu et al. 2008).")
    ials_regularization: Positives = Field((10.0, 30.0), description="Ridge of iALS.")
    ials_confidence: Positives = Field(
        (1.0, 3.0, 10.0), description="How much more an interaction weighs than its absence."
    )
    ials_feature_regularization: float = Field(
        3.0,
        gt=0,
        description="Ridge of the map from vectors of texts, and attributes, to factors, for items nobody chose in "
        "training.",
    )
    ials_iterations: int = Field(15, ge=1, le=1000, description="Alternations of iALS.")


class Fusion(Section):
    """The second stage: a weighted sum of scores, learned on the validation targets across folds of users."""

    parts: Annotated[tuple[Part, ...], Field(strict=False, min_length=1)] = Field(
        ("text", "ease", "slit", "popularity"), description="Whose scores are added."
    )
    folds: int = Field(5, ge=2, le=100, description="Parts of the users, for validation figures out of fold.")
    regularization: float = Field(1.0, ge=0, description="Ridge on the weights of the sum.")


class RankingEvaluation(Evaluation):
    """How rankings of all items are measured, and by what the best tower is chosen."""

    best_by: Literal["hr", "recall", "ndcg", "mrr", "map"] = Field(
        "ndcg",
        description="Validation metric that chooses the best weights of the tower alone, and settings in id_models.",
    )
    baselines: bool = Field(True, description="Report every part alone and other fusions on the same split.")
    cutoff: int = Field(10, ge=1, le=10_000, description="Length of the lists that are measured.")
    block_users: int = Field(256, ge=1, le=1_000_000, description="Users ranked at a time; bounds memory.")


class RecommendationRecipe(Section):
    """Fine-tuning of an item tower on behaviour, with models of ids beside it."""

    commands: ClassVar[str] = "hftoolkit.recommend.commands"
    usage: ClassVar[str] = "recommend {} --user ID"
    extended_by: ClassVar[str | None] = "train.epochs"

    task: RecommendationTask = Field(description="What to learn.")
    data: RecommendationData = Field(description="What to learn it from.")
    model: EncoderModel = Field(description="Which pretrained weights to start from.")
    tuning: Tuning = Field(default_factory=FullTuning, description="Which weights are trained.")
    train: Train = Field(default_factory=Train, description="The optimization; an example is a user.")
    id_models: IdModels = Field(default_factory=IdModels, description="Models without texts.")
    fusion: Fusion = Field(default_factory=Fusion, description="The second stage.")
    evaluation: RankingEvaluation = Field(default_factory=RankingEvaluation, description="How results are measured.")
    hub: Hub | None = Field(None, description="Where the model is pushed when the run is done. Default: nowhere.")

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if isinstance(self.tuning, LinearProbe) and self.model.dimensions is None:
            raise ValueError("tuning.method: linear-probe trains the projection alone; set model.dimensions")
        return self

    @model_validator(mode="after")
    def _all_layers_join(self) -> Self:
        check_unfreezing(self.tuning, self.train)
        return self

    @model_validator(mode="after")
    def _side_features_are_known(self) -> Self:
        if "groups" in self.fusion.parts and self.data.users is None:
            raise ValueError("fusion.parts: groups needs data.users")
        items = self.data.items
        if "attributes" in self.fusion.parts and not (items.flags or items.categories or items.numbers):
            raise ValueError("fusion.parts: attributes needs data.items.flags, categories or numbers")
        return self
