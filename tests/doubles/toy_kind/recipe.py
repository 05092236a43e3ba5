"""``hftoolkit/recipe/length.py`` of a copy of the package: recipes that learn how many words a text has."""

from typing import ClassVar, Literal

from pydantic import Field

from hftoolkit.recipe.sections import Data, PredictionEvaluation, Recipe, Section, Task
from hftoolkit.recipe.text_classification import TextModel


class Length(Task):
    """What to learn: how many words a text has."""

    kind: Literal["text-length"] = Field(description="The kind of problem.")


class LengthColumns(Section):
    """Which column is read."""

    text: str = Field(description="Column of texts.")


class LengthData(Data):
    """Where the texts come from."""

    columns: LengthColumns = Field(description="Which column is read.")


class LengthEvaluation(PredictionEvaluation):
    """When and by what the best weights are chosen."""

    lower_is_better: ClassVar[frozenset[str]] = frozenset({"mae"})

    best_by: Literal["mae", "r2"] = Field("mae", description="Validation metric that chooses the best weights.")


class LengthRecipe(Recipe):
    """Fine-tuning of a model that counts words."""

    implementation: ClassVar[str] = "hftoolkit.tasks.length:LengthTask"

    task: Length = Field(description="What to learn.")
    data: LengthData = Field(description="What to learn it from.")
    model: TextModel = Field(description="Which pretrained weights to start from.")
    evaluation: LengthEvaluation = Field(default_factory=LengthEvaluation, description="How results are measured.")
