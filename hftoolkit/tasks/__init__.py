"""One file a task, one case here."""

from hftoolkit.data import TextSplits
from hftoolkit.models.backbones import Backbone
from hftoolkit.recipe import TextClassification
from hftoolkit.tasks.text_classification import TextClassificationTask


def build_task(section: TextClassification, splits: TextSplits, backbone: Backbone) -> TextClassificationTask:
    """Return the task that a recipe names."""
    match section:
        case TextClassification():
            return TextClassificationTask(section, splits, backbone)
