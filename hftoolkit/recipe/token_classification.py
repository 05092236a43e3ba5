"""What recipes of token classification (named entities) have of their own."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hftoolkit.recipe.sections import Data, PredictionEvaluation, Recipe, Section, Task
from hftoolkit.recipe.text_classification import TextModel


class TokenClassification(Task):
    """What to learn: which spans of a text are of which type."""

    kind: Literal["token-classification"] = Field(description="The kind of problem.")
    types: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="Types of entities, in order. Default: those found in the data, in natural order."
    )
    scheme: Literal["auto", "BIO", "BIOES", "bare"] = Field(
        "auto",
        description="How tags of words mark where an entity begins: BIO (or IOB1), BIOES (or BILOU), or bare types, of "
        "which equal neighbours are one entity. auto: found out from the tags, and said.",
    )
    window_overlap: int = Field(
        32, ge=0, le=65536, description="Tokens that neighbouring windows of a text beyond model.max_length share."
    )


class TokenColumns(Section):
    """Which columns hold the texts with their spans, or the words with their tags."""

    text: str | None = Field(None, min_length=1, description="Column of texts; goes with spans.")
    spans: str | None = Field(
        None,
        min_length=1,
        description="Column of lists of spans (or JSON of one), each [start, end, type] or an object with start, end "
        "and label (or type); characters from 0 on, the end exclusive.",
    )
    words: str | None = Field(None, min_length=1, description="Column of lists of words; goes with tags.")
    tags: str | None = Field(None, min_length=1, description="Column of lists of tags, one a word.")

    @model_validator(mode="after")
    def _one_pair(self) -> Self:
        pairs = (self.text, self.spans), (self.words, self.tags)
        if [all(pair) for pair in pairs].count(True) != 1 or any(any(pair) != all(pair) for pair in pairs):
            raise ValueError("columns: name text and spans, or words and tags")
        return self


class TokenData(Data):
    """Where the texts come from."""

    columns: TokenColumns = Field(description="Which columns are read.")


class TokenEvaluation(PredictionEvaluation):
    """When and by what the best weights are chosen: scores of entities, not of tokens."""

    best_by: Literal["f1", "precision", "recall", "macro_f1", "exact_f1", "type_f1", "partial_f1"] = Field(
        "f1", description="Validation metric that chooses the best weights; f1 is right only in type and both ends."
    )
    baselines: bool = Field(True, description="Report a dictionary baseline: the most frequent tag of each word.")


class TokenRecipe(Recipe):
    """Fine-tuning of a model that finds entities."""

    implementation: ClassVar[str] = "hftoolkit.tasks.token_classification:TokenClassificationTask"

    task: TokenClassification = Field(description="What to learn.")
    data: TokenData = Field(description="What to learn it from.")
    model: TextModel = Field(description="Which pretrained weights to start from.")
    evaluation: TokenEvaluation = Field(default_factory=TokenEvaluation, description="How results are measured.")

    @model_validator(mode="after")
    def _windows_move_on(self) -> Self:
        if self.task.window_overlap > self.model.max_length // 2:
            raise ValueError(
                f"task.window_overlap: {self.task.window_overlap} is more than half of model.max_length "
                f"({self.model.max_length})"
            )
        return self

    @model_validator(mode="after")
    def _no_probe(self) -> Self:
        if self.tuning.method == "linear-probe":
            raise ValueError("tuning.method: linear-probe caches one vector a text; use last-layers, lora or full")
        return self
