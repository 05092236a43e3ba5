"""A metric module of the evaluate library, as users write them: how often, and how closely, predictions are right."""

import datasets
import evaluate
import numpy as np

TAKEN = {  # by configuration
    "default": (datasets.Value("float64"), datasets.Sequence(datasets.Value("string"))),
    "multilabel": (datasets.Sequence(datasets.Value("float64")),),
}


class Agreement(evaluate.Metric):
    """Agreement of predictions and references."""

    def _info(self) -> evaluate.MetricInfo:
        pairs = [datasets.Features({"predictions": kind, "references": kind}) for kind in TAKEN[self.config_name]]
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=pairs)

    def _compute(self, predictions, references):
        equal = np.mean([np.array_equal(a, b) for a, b in zip(predictions, references, strict=True)])
        found = {"equal": equal, "of": {"rows": len(references)}, "curve": [0.0, 1.0], "undefined": float("nan")}
        if isinstance(references[0], float):
            found["distance"] = np.abs(np.subtract(predictions, references)).mean()
        return found
