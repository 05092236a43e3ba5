"""``predict``: what the model of a finished run says of new rows, for any task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hftoolkit.contracts import Columns, Dataset, Emit, Event, InferenceProgress, Inputs, Message, Ranks, Task, Unusable
from hftoolkit.data.sources.resolve import resolve_data
from hftoolkit.data.tables import DataTable, require_columns
from hftoolkit.data.text_rows import bad_row_lines
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.export.manifest import Manifest
from hftoolkit.models.backbones import head_names
from hftoolkit.models.kernels import arrange_for
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe import Recipe, load_recipe
from hftoolkit.runs.directory import RunDir, read_json
from hftoolkit.runs.prediction_tables import check_output, write_or_format
from hftoolkit.runs.resume import check_model, check_same_data, meant_path, open_finished
from hftoolkit.runs.revisions import as_begun
from hftoolkit.tasks import task_of
from hftoolkit.tasks.shared.learner import joined
from hftoolkit.train.devices import make_accelerator
from hftoolkit.train.inference import Inference

BadRowsOption = Literal["skip", "error"]
KEPT = "id"  # column that is kept beside the predictions unless others are named
WITHOUT_THEM = "--on-bad-rows skip (in Python, on_bad_rows='skip')"


def predict(
    folder: Path,
    source: Path,
    *,
    lines: list[str] | None,
    output: Path | None,
    top_k: int | None,
    emit: Emit,
    on_bad_rows: BadRowsOption = "skip",
    keep: Sequence[str] | None = None,
) -> str:
    """Predict what is at ``source``, or ``lines``; write ``output``, or return the CSV text if it is None.

    Args:
        folder: of the run.
        source: a table, or what the task reads beside tables.
        lines: rows instead of ``source``.
        output: file of the predictions.
        top_k: how many of the best answers to write instead of all.
        emit: is told how far it is, and of rows without a prediction.
        on_bad_rows: whether rows that cannot be used are left blank, or refused.
        keep: columns of the table to put beside the predictions; None: ``id``, where there is one.

    Raises:
        DataError: the input cannot be used, or no row of it.
        RecipeError: ``output``, ``top_k`` or ``keep`` does not fit.
    """
    if output is not None:
        check_output(output, source)
    predictor = load_run(folder, emit)
    _check_top_k(predictor, top_k)
    inputs = predictor.task.inputs(source if lines is None else lines)
    kept = _kept(inputs.table, keep, "standard input" if lines is not None else str(source))
    answers, bad = predictor.answers_and_bad(inputs, on_bad_rows)
    if bad and len(bad) == len(answers):
        raise DataError(_described("no row can be predicted", bad))
    predictor.report_bad(f"{len(answers)} rows", bad, on_bad_rows, use="predict")
    columns = {"row": list(range(1, len(answers) + 1)), **inputs.columns}
    answered = _beside(columns | kept, _answer_columns(predictor.task, answers, top_k))
    return write_or_format(columns | kept | answered, output)


class Predictor:
    """A trained model, ready to predict. Make one with ``hftoolkit.load``."""

    def __init__(self, folder: Path, manifest: Manifest, emit: Emit, run: RunDir | None = None) -> None:
        """Load a model and check that it has the outputs that it was trained for.

        Args:
            folder: of the model.
            manifest: what it was trained with.
            emit: is told how far predictions are, and of rows that cannot be used.
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

    def predict(self, rows: Any, on_bad_rows: BadRowsOption = "skip") -> list[Any]:
        """Predict rows, in order.

        Args:
            rows: texts, or dicts with the columns of the recipe; images as file names, bytes, arrays or PIL images; in
                a list, a generator, a data frame, a split of ``datasets``, or a dict of columns.
            on_bad_rows: ``skip`` gives rows that cannot be used an empty answer, and warns of them; ``error`` refuses.

        Raises:
            DataError: these are no such rows, a column is missing, or rows cannot be used and are refused.
        """
        return self.answers(self.task.inputs(rows), on_bad_rows)

    def answers(self, inputs: Inputs[Any], on_bad_rows: BadRowsOption = "skip") -> list[Any]:
        """Return the answer for each row of opened inputs; the task's ``no_answer`` for rows that cannot be used."""
        answers, bad = self.answers_and_bad(inputs, on_bad_rows)
        self.report_bad(f"{len(answers)} rows", bad, on_bad_rows, use="predict")
        return answers

    def answers_and_bad(self, inputs: Inputs[Any], on_bad_rows: BadRowsOption) -> tuple[list[Any], dict[int, Unusable]]:
        """Return the answer for each row of opened inputs, and the rows that cannot be used, by 1-based number.

        Some rows are read at a time. Where bad ones are refused, the first one ends the predictions; the rest are only
        looked at.
        """
        answers: list[Any] = []
        bad: dict[int, Unusable] = {}
        for start in range(0, inputs.num_rows, inputs.chunk):
            rows = inputs.read(start, min(start + inputs.chunk, inputs.num_rows))
            bad |= {number: row for number, row in enumerate(rows, start + 1) if isinstance(row, Unusable)}
            if bad and on_bad_rows == "error":
                continue
            usable = [row for row in rows if not isinstance(row, Unusable)]
            self._part = start, len(rows), inputs.num_rows
            found = iter(self.task.answers(self.outputs(usable), usable) if usable else ())
            self._part = None
            answers += [self.task.no_answer if isinstance(row, Unusable) else next(found) for row in rows]
        if on_bad_rows == "error":
            self.report_bad(f"{inputs.num_rows} rows", bad, on_bad_rows, use="predict")
        for sentence in inputs.notes():
            self._emit(Message(sentence, "warning"))
        return answers, bad

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

    def report_bad(
        self,
        inputs: str,
        bad: Mapping[int, Unusable],
        on_bad_rows: BadRowsOption,
        *,
        use: str,
        allowed: Sequence[str] = (),
    ) -> None:
        """Refuse rows that cannot be used, or warn of them.

        Args:
            inputs: how many rows there are, in words.
            bad: those that cannot be used.
            on_bad_rows: of the command.
            use: ``predict`` or ``measure``.
            allowed: values of a label that are known.
        """
        if bad and on_bad_rows == "error":
            message = _described(f"{len(bad)} of {inputs} cannot be used", bad, allowed)
            raise DataError(f"{message}\nFix these rows, or {use} the others with {WITHOUT_THEM}")
        if bad:
            lines = "; ".join(bad_row_lines(bad, allowed))
            left = "blank" if use == "predict" else "out"
            verb = "are" if len(bad) > 1 else "is"
            self._emit(Message(f"{len(bad)} of {inputs} {verb} left {left}: {lines}", "warning"))

    def labelled(self, source: str, on_bad_rows: BadRowsOption) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return all usable rows of another source with their targets, and what of the source was used.

        Raises:
            DataError: it does not fit, or rows cannot be used and are refused.
        """
        resolved = resolve_data(source)
        found = type(self.task).read_labelled(self.recipe, resolved.path, self._weights, self._schema)
        total = len(found.rows) + len(found.bad)
        if not found.rows:
            raise DataError(_described(f"no row of {found.source} can be measured", found.bad, found.allowed))
        inputs = f"{total} rows of {found.source}"
        self.report_bad(inputs, found.bad, on_bad_rows, use="measure", allowed=found.allowed)
        reasons = [row.reason for row in found.bad.values()]
        counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
        return found.rows, {"data": source, "revision": resolved.revision, "rows": total, "left_out": counts}

    def own_data(self) -> Dataset[Any]:
        """Return the data of the run, divided as in training.

        Raises:
            DataError: they changed since, or are no longer where they were.
        """
        assert self._run is not None, "the splits of a run are those that it wrote down"
        begun = as_begun(self.recipe, self._run)
        source = meant_path(self._run, begun.data.source, "bring it back, or measure another source with --data")
        data = begun.data.model_copy(update={"source": source, "on_bad_rows": "skip"})
        recipe, path = begun.model_copy(update={"data": data}), resolve_data(source, sha256=data.sha256).path
        dataset: Dataset[Any] = type(self.task).read(recipe, path, self._weights, self._schema, lambda _: None)
        check_same_data(self._run, self.recipe.data.source, dataset.summary["fingerprint"])
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


def _described(summary: str, bad: Mapping[int, Unusable], allowed: Sequence[str] = ()) -> str:
    return "\n".join([f"{summary}:", *(f"  {line}" for line in bad_row_lines(bad, allowed))])


def _kept(table: Columns, keep: Sequence[str] | None, source: str) -> Columns:
    """Return the columns of the input that are put beside the predictions."""
    if keep is None:
        keep = [name for name in table if name.casefold() == KEPT]
    elif keep and not table:
        raise RecipeError(f"--keep {','.join(keep)}: {source} is no table, so it has no columns; leave --keep out")
    elif taken := [name for name in keep if name == "row"]:
        raise RecipeError(
            f"--keep {taken[0]}: the predictions have a column row of their own; rename that of the table"
        )
    require_columns(DataTable(table, 0, files=(Path(source).name,)), keep, "--keep")
    return {name: list(table[name]) for name in keep}


def _beside(shown: Columns, answered: Columns) -> Columns:
    """Return predictions with names that what stands beside them does not have, as in predictions/test.csv."""
    taken = [name for name in answered if name in shown]
    renamed = {name: "predicted" if len(taken) == 1 else f"predicted {name}" for name in taken}
    answered = {renamed.get(name, name): cells for name, cells in answered.items()}
    if clash := [name for name in answered if name in shown]:
        raise RecipeError(f"--keep {clash[0]}: the predictions have a column of that name; rename that of the table")
    return answered


def _check_top_k(predictor: Predictor, top_k: int | None) -> None:
    if top_k is not None and not isinstance(predictor.task, Ranks):
        raise RecipeError(f"--top-k is for classes; a run of {predictor.recipe.task.kind} ranks none; leave it out")


def _answer_columns(task: Task, answers: list[Any], top_k: int | None) -> Columns:
    if top_k is None:
        return task.columns(answers)
    assert isinstance(task, Ranks)
    return task.top_columns(answers, top_k)
