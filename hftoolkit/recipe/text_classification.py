"""What text recipes have of their own."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from hftoolkit.recipe.sections import (
    Classification,
    ClassificationEvaluation,
    ColumnNames,
    Data,
    Model,
    Names,
    Recipe,
    Section,
)


class TextClassification(Classification):
    """What to learn: one label a text, or any number of labels with ``multi_label``."""

    kind: Literal["text-classification"] = Field(description="The kind of problem.")


class TextColumns(Section):
    """Which columns of the table hold the text and the label."""

    text: ColumnNames = Field(description="Text columns, joined in this order (see data.template).")
    text_pair: str | None = Field(
        None,
        min_length=1,
        description="Column of a second text, for pairs (similarity, entailment): the tokenizer puts its separator "
        "between the two. Default: no pairs.",
    )
    label: ColumnNames = Field(
        description="The label column; for multi-label, one column of lists or separated names, or several 0/1 columns."
    )


class TextData(Data):
    """Where the table of texts comes from and how its rows are read."""

    columns: TextColumns = Field(description="Which columns are read.")
    template: str | None = Field(
        None,
        min_length=1,
        description="How text columns are joined, for example '{Title}: {Review Text}'. Default: the non-empty ones, "
        "each on a line.",
    )
    missing_values: Names = Field(
        ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>"),
        description="Texts that mean 'no text'. [] keeps them as texts.",
    )


class TextModel(Model):
    """Which pretrained text encoder to start from, and how texts enter it."""

    backbone: str = Field(
        min_length=1, description="Hub id[@revision], local folder, an earlier run, or pypi:DIST==VERSION/path."
    )
    max_length: int = Field(128, ge=4, le=131072, description="Tokens of a text that are kept.")


class TextRecipe(Recipe):
    """Fine-tuning of a text classifier."""

    implementation: ClassVar[str] = "hftoolkit.tasks.text_classification:TextClassificationTask"

    task: TextClassification = Field(description="What to learn.")
    data: TextData = Field(description="What to learn it from.")
    model: TextModel = Field(description="Which pretrained weights to start from.")
    evaluation: ClassificationEvaluation = Field(
        default_factory=ClassificationEvaluation, description="How results are measured."
    )

    @model_validator(mode="after")
    def _label_columns_fit(self) -> Self:
        if len(self.data.columns.label) > 1 and not self.task.multi_label:
            raise ValueError("data.columns.label names several columns; that needs task.multi_label: true")
        return self
