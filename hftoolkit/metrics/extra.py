"""Metric modules of the evaluate library that a recipe names: ``evaluation.extra_metrics``.

The only file that knows evaluate. A module is code, of a file here or of the Hub, and loading it runs that; who loads
one has asked whether it may. Our own metrics are no such modules, because intervals need their values on resamples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from os.path import exists, expanduser
from typing import Any

from hftoolkit.contracts import Metrics
from hftoolkit.errors import EnvironmentFault, RecipeError
from hftoolkit.recipe import metric_name

PREFIX = "extra/"  # of these metrics among those of a task, which have names like f1 and f1/CLASS
TAKES = frozenset({"predictions", "references"})
MULTI_LABEL = "multilabel"  # how accuracy, f1 and others of evaluate call the configuration for lists of 0 and 1
LONGEST_REASON = 300  # characters
KNOB = "evaluation.extra_metrics"


@dataclass(frozen=True, slots=True)
class ExtraMetric:
    """A loaded metric module.

    Attributes:
        address: as the recipe has it.
        module: an ``evaluate.EvaluationModule``.
    """

    address: str
    module: Any

    def compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> Metrics:
        """Return what the module computes, as ``extra/NAME/KEY``; anything that it raises goes through.

        Raises:
            ValueError: it returned no dict, or one without a finite number.
        """
        module = self.module
        if all(_is_multi_hot(reference) for reference in references):
            module = type(module)(config_name=MULTI_LABEL, keep_in_memory=True)
        found = module.compute(predictions=predictions, references=references)
        numbers = dict(_numbers(found)) if isinstance(found, Mapping) else {}
        if not numbers:
            raise ValueError("it returned no dict with a finite number")
        return {f"{PREFIX}{metric_name(self.address)}/{key}": value for key, value in numbers.items()}


def load_extra_metrics(addresses: Sequence[str]) -> tuple[ExtraMetric, ...]:
    """Load metric modules, which runs their code.

    Raises:
        RecipeError: there is none at an address, its code fails, or it takes something else than predictions and
            references.
        EnvironmentFault: a package that it needs is missing.
    """
    return tuple(_load(address) for address in addresses)


def compute_extra_metrics(
    metrics: Sequence[ExtraMetric], predictions: Sequence[Any], references: Sequence[Any]
) -> tuple[Metrics, dict[str, str]]:
    """Return the values of all that can be computed, and by address why the others cannot."""
    values: Metrics = {}
    failed = {}
    for metric in metrics:
        try:
            values |= metric.compute(predictions, references)
        except Exception as error:  # noqa: BLE001 - a stranger's code, which must not cost a trained model
            failed[metric.address] = _reason(error)
    return values, failed


def extra_values(metrics: Mapping[str, float]) -> Metrics:
    """Return those metrics of a split that are of such modules, as ``NAME/KEY``."""
    return {key.removeprefix(PREFIX): value for key, value in metrics.items() if key.startswith(PREFIX)}


def _load(address: str) -> ExtraMetric:
    import evaluate  # takes seconds

    name, _, revision = (address, "", "") if address.endswith(".py") else address.partition("@")
    try:
        module = evaluate.load(expanduser(name), revision=revision or None, module_type="metric", keep_in_memory=True)
    except ImportError as error:
        raise EnvironmentFault(
            f"{KNOB}: {address} needs a package that cannot be imported ({_reason(error)}); install it, and write one "
            "import a line"
        ) from error
    except Exception as error:
        if exists(expanduser(name)) or not isinstance(error, FileNotFoundError | ConnectionError):
            raise RecipeError(
                f"{KNOB}: {address} cannot be loaded as a metric ({_reason(error)}); mend its code, or take it out"
            ) from error
        is_path = address.startswith((".", "/", "~")) or address.endswith(".py")
        missing = f"file {address}" if is_path else f"{address} here, and none on the Hub as far as it can be reached"
        raise RecipeError(
            f"{KNOB}: there is no {missing}; write ./FILE.py, or a Hub id: evaluate-metric/NAME or OWNER/NAME, with "
            "@REVISION to pin one"
        ) from error
    features = module.features if isinstance(module.features, list) else [module.features]
    if not any(set(taken) == TAKES for taken in features):
        taken = ", ".join(dict.fromkeys(name for each in features for name in each))
        raise RecipeError(f"{KNOB}: {address} takes {taken}; only modules of predictions and references can be used")
    return ExtraMetric(address, module)


def _is_multi_hot(reference: Any) -> bool:
    return isinstance(reference, list) and bool(reference) and all(isinstance(each, int) for each in reference)


def _numbers(found: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of nested dicts, with the keys that lead to each; other values are left out."""
    for key, value in found.items():
        if hasattr(value, "item") and getattr(value, "size", 0) == 1:  # a number of numpy
            value = value.item()
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, Real) and isfinite(value):
            yield f"{prefix}{key}", float(value)


def _reason(error: Exception) -> str:
    """Return an exception of a stranger's code on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]
