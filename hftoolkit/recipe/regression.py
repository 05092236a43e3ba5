"""What recipes that predict a number have of their own."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from hftoolkit.recipe.image_classification import Augmentation, ImageData, ImageModel
from hftoolkit.recipe.sections import PredictionEvaluation, Recipe, Task
from hftoolkit.recipe.text_classification import TextData, TextModel


class Regression(Task):
    """What to learn: a number for each example."""

    loss: Literal["mse", "mae", "huber"] = Field(
        "mse", description="Loss on the number in units of its standard deviation: squared, absolute, or Huber's."
    )


class TextRegression(Regression):
    """What to learn: a number for each text, or pair of texts."""

    kind: Literal["text-regression"] = Field(description="The kind of problem.")


class ImageRegression(Regression):
    """What to learn: a number for each image."""

    kind: Literal["image-regression"] = Field(description="The kind of problem.")


class RegressionEvaluation(PredictionEvaluation):
    """When and by what the best weights are chosen."""

    lower_is_better: ClassVar[frozenset[str]] = frozenset({"rmse", "mae"})

    best_by: Literal["rmse", "mae", "r2", "pearson", "spearman"] = Field(
        "rmse", description="Validation metric that chooses the best weights; of rmse and mae, lower is better."
    )
    baselines: bool = Field(
        True, description="Report the mean of the training rows, and ridge on TF-IDF of texts or on small gray images."
    )


class RegressionRecipe(Recipe):
    """Fine-tuning of a model that gives a number."""

    evaluation: RegressionEvaluation = Field(
        default_factory=RegressionEvaluation, description="How results are measured."
    )

    @model_validator(mode="after")
    def _no_probe(self) -> Self:
        if self.tuning.method == "linear-probe":
            raise ValueError("tuning.method: linear-probe is for classes; use last-layers, lora or full")
        return self


class TextRegressionRecipe(RegressionRecipe):
    """Fine-tuning of a model that gives texts a number."""

    implementation: ClassVar[str] = "hftoolkit.tasks.text_regression:TextRegressionTask"

    task: TextRegression = Field(description="What to learn.")
    data: TextData = Field(description="What to learn it from; data.columns.label holds the numbers.")
    model: TextModel = Field(description="Which pretrained weights to start from.")

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if len(self.data.columns.label) > 1:
            raise ValueError("data.columns.label names several columns; regression learns one number")
        return self


class ImageRegressionRecipe(RegressionRecipe):
    """Fine-tuning of a model that gives images a number."""

    implementation: ClassVar[str] = "hftoolkit.tasks.image_regression:ImageRegressionTask"

    task: ImageRegression = Field(description="What to learn.")
    data: ImageData = Field(description="What to learn it from; data.columns.label holds the numbers.")
    model: ImageModel = Field(description="Which backbone to start from.")
    augmentation: Augmentation = Field(default_factory=Augmentation, description="Random changes of training images.")

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.data.columns is not None and len(self.data.columns.label) > 1:
            raise ValueError("data.columns.label names several columns; regression learns one number")
        return self
