"""A recipe made real: data, model, task and device, loaded and checked."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftoolkit.contracts import Dataset, Emit, HasPairs, Message, Task
from hftoolkit.contracts.names import listed
from hftoolkit.data.sources.resolve import describe, resolve_data
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.metrics.extra import ExtraMetric, load_extra_metrics
from hftoolkit.models.backbones import Backbone, enable_gradient_checkpointing
from hftoolkit.models.image_backbones import is_convolutional
from hftoolkit.models.kernels import arrange_for
from hftoolkit.models.pretrained import Weights
from hftoolkit.models.tuning import TunedModel, apply_tuning, trainable_table
from hftoolkit.recipe import FullTuning, LinearProbe, Recipe, check_code_allowed
from hftoolkit.tasks import task_of
from hftoolkit.tasks.shared.learner import TaskLearner
from hftoolkit.train.devices import describe_device, make_accelerator
from hftoolkit.train.distributed.launch import join_processes
from hftoolkit.train.distributed.strategy import Strategy
from hftoolkit.train.inference import Inference

# With fewer, one row more or less that is right moves the metrics by more than three points.
FEW_VALIDATION_ROWS = 30


def join(recipe: Recipe) -> Strategy:
    """Join the processes of a launcher; return how the model is to lie in them.

    Raises:
        EnvironmentFault: the launcher asked for what is not supported.
        RecipeError: the recipe asks for what a sharded model cannot do.
    """
    strategy = join_processes()
    if not strategy.is_sharded:
        return strategy
    problems = []
    if isinstance(recipe.tuning, LinearProbe):
        problems.append("tuning.method: linear-probe trains the head alone, which is too small to be sharded")
    if isinstance(recipe.tuning, FullTuning) and recipe.tuning.unfreeze_epochs > 0:
        problems.append("tuning.unfreeze_epochs: what is trained is fixed when the model is sharded")
    if recipe.train.micro_batch_size == "auto":
        problems.append("train.micro_batch_size: auto lets memory run out, and the other ranks would wait forever")
    if recipe.train.precision == "fp16":
        problems.append("train.precision: fp16 scales gradients, which is not done there; use bf16 or fp32")
    if problems:
        listed = "\n  ".join(problems)
        what = f"not possible with {strategy.name}; change the recipe, or launch with --multi_gpu alone"
        raise RecipeError(f"{what}:\n  {listed}")
    return strategy


def prepare_extra_metrics(recipe: Recipe, *, allow_code: bool) -> tuple[ExtraMetric, ...]:
    """Load the metric modules that a recipe names, if any.

    Raises:
        RecipeError: running their code was not allowed, the kind of task cannot use them, or one is no such module.
        EnvironmentFault: a package that one needs is missing.
    """
    addresses = recipe.evaluation.extra_metrics
    if not addresses:
        return ()
    check_code_allowed("evaluation.extra_metrics", ", ".join(addresses), allow_code=allow_code)
    if not issubclass(task_of(recipe), HasPairs):
        raise RecipeError(f"evaluation.extra_metrics: {recipe.task.kind} predicts nothing that they take; leave it out")
    return load_extra_metrics(addresses)


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a recipe names, loaded and checked.

    Attributes:
        save_base: writes the backbone as it was before training into a folder that plain libraries load, for an
            adapter to be put on.
    """

    recipe: Recipe
    task: Task
    dataset: Dataset[Any]
    learner: TaskLearner
    tuned: TunedModel
    infer: Inference
    weights: Weights
    save_base: Callable[[Path], None]

    def probe(self, emit: Emit) -> AbstractContextManager[None]:
        """Return a context in which a linear probe uses cached features; any other method is left as it is."""
        if isinstance(self.recipe.tuning, LinearProbe):
            return self.learner.cached_features(self.tuned.model, self.infer, emit)
        return nullcontext()


def prepare(recipe: Recipe, emit: Emit) -> Setup:
    """Fetch, load and check everything a recipe names.

    Raises:
        RecipeError, DataError, EnvironmentFault: what is wrong, before anything was trained.
    """
    return build(recipe, *read_data(recipe, emit), emit)


def read_data(recipe: Recipe, emit: Emit) -> tuple[Weights, Dataset[Any]]:
    """Fetch and check the data; the weights are fetched when they are first asked for."""
    data = recipe.data
    if data.made_by is not None and not Path(data.source).exists():
        raise DataError(f"{data.source} does not exist; make it with: {data.made_by}")
    source = resolve_data(data.source, sha256=data.sha256)
    emit(Message(f"data: {describe(source)}"))
    weights = Weights(recipe.model)
    dataset = task_of(recipe).read(recipe, source.path, weights, None, emit)
    _describe_data(dataset, emit)
    _warn_of_few_rows(len(dataset.splits["validation"]), recipe.evaluation.best_by, emit)
    return weights, dataset


def build(recipe: Recipe, weights: Weights, dataset: Dataset[Any], emit: Emit) -> Setup:
    """Load the model and put everything on the device."""
    kind = task_of(recipe)
    emit(Message(f"backbone: {weights.describe()}"))
    base: Backbone = kind.load(recipe, dataset.schema, weights)
    accelerator = make_accelerator(recipe.train.precision, bf16_pays_on_cpus=not is_convolutional(base.model))
    kernel = arrange_for(base.model, accelerator.device)
    if base.note:
        emit(Message(base.note))
    task = kind.build(recipe, dataset.schema, base, dataset.splits["train"])
    learner = TaskLearner(task, dataset)
    _warn_of_truncation(learner, task, emit)
    tuned = tune(recipe, base, emit)
    emit(Message(", ".join(filter(None, (describe_device(accelerator), kernel)))))

    def save_base(folder: Path) -> None:
        task.save(kind.load(recipe, dataset.schema, weights).model, folder)

    return Setup(recipe, task, dataset, learner, tuned, Inference(learner, accelerator, emit), weights, save_base)


def tune(recipe: Recipe, base: Backbone, emit: Emit) -> TunedModel:
    """Make those weights trainable that the recipe trains, and say which."""
    if base.replaced_labels:
        text = f"replaced the head of the backbone, trained for {listed(base.replaced_labels)}"
        emit(Message(text, "warning"))
    if recipe.model.gradient_checkpointing:
        enable_gradient_checkpointing(base.model)
    tuned = apply_tuning(base, recipe.tuning)
    emit(trainable_table(tuned.model))
    return tuned


def _describe_data(dataset: Dataset[Any], emit: Emit) -> None:
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in dataset.splits.items())
    emit(Message(f"rows: {sizes}; {dataset.schema.describe()}"))
    for sentence in dataset.summary["warnings"]:
        emit(Message(sentence, "warning"))


def _warn_of_few_rows(num_rows: int, best_by: str, emit: Emit) -> None:
    if num_rows < FEW_VALIDATION_ROWS:
        text = (
            f"validation has {num_rows} rows, too few to choose the best weights by {best_by}: chance decides between "
            "most values, and equal ones go to the lower loss. A larger data.split.validation helps"
        )
        emit(Message(text, "warning"))


def _warn_of_truncation(learner: TaskLearner, task: Task, emit: Emit) -> None:
    examples = learner.examples("train")
    if not examples.num_truncated:
        return
    share = examples.num_truncated / len(learner.raw["train"])
    text = f"{examples.num_truncated} training {task.unit}s ({share:.1%}) are cut {examples.advice}"
    emit(Message(text.rstrip(), "warning"))
