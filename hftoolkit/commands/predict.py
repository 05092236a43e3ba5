"""``predict``: what the model of a finished run says of new rows, for any task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hftoolkit.contracts import Dataset, Emit, Event, InferenceProgress, Inputs, Message, Ranks, Unusable
from hftoolkit.data.sources.resolve import resolve_data
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.export.manifest import Manifest
from hftoolkit.models.backbones import head_names
from hftoolkit.models.kernels import arrange_for
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe import Recipe, load_recipe
from hftoolkit.runs.directory import RunDir, read_json
from hftoolkit.runs.prediction_tables import check_output, write_or_format
from hftoolkit.runs.resume import check_model, check_same_data, open_finished
from hftoolkit.runs.revisions import as_begun
from hftoolkit.tasks import task_of
from hftoolkit.tasks.shared.learner import joined
from hftoolkit.train.devices import make_accelerator
from hftoolkit.train.inference import Inference


def predict(
    folder: Path, source: Path, *, lines: list[str] | None, output: Path | None, top_k: int | None, emit: Emit
) -> str:
    """Predict what is at ``source``, or ``lines``; write ``output``, or return the CSV text if it is None."""
    if output is not None:
        check_output(output, source)
    predictor = load_run(folder, emit)
    inputs = predictor.task.inputs(source if lines is None else lines)
    answers = predictor.answers(inputs)
    columns = {"row": list(range(1, len(answers) + 1)), **inputs.columns}
    return write_or_format(columns | _answer_columns(predictor, answers, top_k), output)


class Predictor:
    """A trained model, ready to predict. Make one with ``hftoolkit.load``."""

    def __init__(self, folder: Path, manifest: Manifest, emit: Emit, run: RunDir | None = None) -> None:
        """Load a model and check that it has the outputs that it was trained for.

        Args:
            folder: of the model.
            manifest: what it was trained with.
            emit: is told how far predictions are.
            run: that the model is of; None for a model alone.

        Raises:
            DataError: it has others.
        """
        recipe = manifest.recipe
        assert isinstance(recipe, Recipe)
        self.recipe = recipe
        self._run = run
        kind = task_of(recipe)
        self._schema = kind.schema_from_json(manifest.schema)
        self._weights = Weights(recipe.model, saved=folder)
        base = kind.load(recipe, self._schema, self._weights)
        self._schema.check_names(head_names(base.model), str(folder))
        self.task = kind.build(recipe, self._schema, base, None)
        self._model: nn.Module = base.model
        accelerator = make_accelerator("fp32")
        arrange_for(base.model, accelerator.device)  # as in training, so that figures come out the same
        self._emit = emit
        self._infer = Inference(self.task, accelerator, self._tell)
        self._part: tuple[int, int, int] | None = None  # first row, rows, and rows in all, of a part that is predicted

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        """Predict rows, in order: of texts, or dicts with the columns of the recipe; of images, files or pixels.

        Raises:
            DataError: these are no such rows, a column is missing, or a row cannot be used and the recipe says
                ``on_bad_rows: error``.
        """
        return self.answers(self.task.inputs(rows))

    def answers(self, inputs: Inputs[Any]) -> list[Any]:
        """Return the answer for each row of opened inputs, some rows at a time.

        Where rows that cannot be used are an error, the first one ends the predictions; the rest are only looked at.
        """
        answers: list[Any] = []
        bad: dict[int, Unusable] = {}
        for start in range(0, inputs.num_rows, inputs.chunk):
            rows = inputs.read(start, min(start + inputs.chunk, inputs.num_rows))
            bad |= {place: row for place, row in enumerate(rows, start) if isinstance(row, Unusable)}
            if bad and not inputs.skip_unusable:
                continue
            usable = [row for row in rows if not isinstance(row, Unusable)]
            self._part = start, len(rows), inputs.num_rows
            found = iter(self.task.answers(self.outputs(usable), usable) if usable else ())
            self._part = None
            answers += [self.task.no_answer if isinstance(row, Unusable) else next(found) for row in rows]
        if bad and not inputs.skip_unusable:
            where = self._run.recipe if self._run else "the recipe"
            raise DataError(f"{inputs.describe(bad)} in {where}")
        for sentence in inputs.notes():
            self._emit(Message(sentence, "warning"))
        return answers

    @property
    def model(self) -> nn.Module:
        """The plain model."""
        return self._model

    @property
    def weights(self) -> Weights:
        """The model's weights, and what they were before training."""
        return self._weights

    def outputs(self, rows: Sequence[Any]) -> list[Any]:
        """Return what the model gives for each raw row, in fp32."""
        examples = self.task.encode(rows)
        return joined(self.task, self._infer(self._model, examples, full_precision=True), examples, rows)

    def _tell(self, event: Event) -> None:
        if isinstance(event, InferenceProgress) and self._part is not None:
            first, num_rows, total = self._part
            event = InferenceProgress(first + num_rows * event.done // event.total, total)
        self._emit(event)

    def labelled(self, split: str, source: str | None) -> Sequence[Any]:
        """Return the rows of a split of the run, or all rows of another source, with their targets.

        Raises:
            DataError: the run's data changed since, or the other source does not fit.
            RecipeError: there is no such split.
        """
        kind, recipe = type(self.task), self.recipe
        if source is not None:
            return kind.read_labelled(recipe, resolve_data(source).path, self._weights, self._schema)
        splits = self.own_data().splits
        if split not in splits:
            raise RecipeError(f"--split {split}: the splits of this run are {', '.join(splits)}")
        return splits[split]

    def own_data(self) -> Dataset[Any]:
        """Return the data of the run, divided as in training.

        Raises:
            DataError: they changed since.
        """
        kind, recipe = type(self.task), self.recipe
        data = (recipe if self._run is None else as_begun(recipe, self._run)).data
        path = resolve_data(data.source, sha256=data.sha256).path
        dataset: Dataset[Any] = kind.read(recipe, path, self._weights, self._schema, lambda _: None)
        assert self._run is not None, "the splits of a run are those that it wrote down"
        check_same_data(self._run, recipe.data.source, dataset.summary["fingerprint"])
        return dataset


def load_run(path: Path, emit: Emit = lambda _: None) -> Predictor:
    """Return the predictor of a run directory, which tells ``emit`` how far it is.

    Raises:
        DataError: there is no run, it did not finish, or it holds another model than its labels.
    """
    run = open_finished(path)
    check_model(run, emit)
    return load_model(run.model, Manifest(load_recipe(run.recipe), read_json(run.labels)), emit, run)


def load_model(folder: Path, manifest: Manifest, emit: Emit, run: RunDir | None = None) -> Predictor:
    """Return the predictor of a model folder, see ``Predictor``."""
    return Predictor(folder, manifest, emit, run)


def _answer_columns(predictor: Predictor, answers: list[Any], top_k: int | None) -> dict[str, list[Any]]:
    if top_k is None:
        return predictor.task.columns(answers)
    if not isinstance(predictor.task, Ranks):
        raise RecipeError(f"--top-k is for classes; a run of {predictor.recipe.task.kind} ranks none; leave it out")
    return predictor.task.top_columns(answers, top_k)
