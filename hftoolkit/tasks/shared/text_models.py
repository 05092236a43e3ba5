"""What tasks on texts have in common: the backbone of a recipe."""

from hftoolkit.contracts import HeadSpec
from hftoolkit.models.backbones import TextBackbone, load_saved_text_model, load_text_model
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe.text_classification import TextModel


def load_backbone(section: TextModel, auto_class: str, head: HeadSpec, weights: Weights, seed: int) -> TextBackbone:
    """Return the exported model of ``weights``, or the backbone that a recipe names with this head.

    Args:
        section: of the recipe.
        auto_class: name of the class that loads it, for example ``AutoModelForSequenceClassification``.
        head: its outputs.
        weights: of the recipe or of a run.
        seed: of what has no weights yet.

    Raises:
        DataError: the folder holds no usable transformers text model.
    """
    if weights.saved is not None:
        return load_saved_text_model(weights.saved, auto_class, max_length=section.max_length)
    assert weights.path is not None
    return load_text_model(
        weights.path, auto_class, head, max_length=section.max_length, dropout=section.dropout, seed=seed
    )
