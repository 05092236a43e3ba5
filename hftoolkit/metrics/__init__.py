"""How good predictions are, and how sure that is.

probabilities    logits to probabilities and decisions, log loss, temperature; light enough for ``predict``
calibration      reliability bins and the calibration error
classification   every metric of a split, through ``evaluate`` (slow to import) and scikit-learn
bootstrap        confidence intervals and paired differences
"""

from hftoolkit.recipe.sections import LOWER_IS_BETTER


def is_better(metric: str, new: float, old: float) -> bool:
    """Tell whether ``new`` beats ``old``; a tie does not, and neither does ``nan``."""
    return new < old if metric in LOWER_IS_BETTER else new > old
