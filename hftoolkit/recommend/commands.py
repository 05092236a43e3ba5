"""What the commands do with a recommendation recipe, from the recipe to the run directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.contracts import Emit, InferenceProgress, Message, Table
from hftoolkit.data.sources.sealing import seal
from hftoolkit.errors import EnvironmentFault, HFToolkitError, RecipeError
from hftoolkit.export.manifest import Manifest
from hftoolkit.hub.push import publish
from hftoolkit.hub.repository import check_push_access
from hftoolkit.metrics.statistics import mean_intervals
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe import RecommendationRecipe
from hftoolkit.recommend.card import public_tables, write_recommender_card
from hftoolkit.recommend.export import TowerFiles, TowerGate, export_recommender
from hftoolkit.recommend.fusion import ScorerFusion, ablations
from hftoolkit.recommend.fusion_weights import allowed_items
from hftoolkit.recommend.job import RecommendationJob, load_splits, prepare
from hftoolkit.recommend.predictor import (
    RecommendationPredictor,
    Recommended,
    list_columns,
    load_recommender,
    read_candidates,
)
from hftoolkit.recommend.protocols import RecommendationSplits
from hftoolkit.recommend.ranking import NOBODY, RankedLists, blocks, mean_values, summarize_lists
from hftoolkit.recommend.recommender import KnownUsers, Recommender
from hftoolkit.recommend.scorers import Queries, Scorer, TextVectors
from hftoolkit.recommend.tower import ItemTower, load_text_encoder, save_encoder
from hftoolkit.runs.attempts import Attempts, complete_report
from hftoolkit.runs.checkpoint import prune
from hftoolkit.runs.directory import RunDir, read_json, write_json
from hftoolkit.runs.evaluations import keep_evaluation
from hftoolkit.runs.extension import hand_over
from hftoolkit.runs.lifecycle import finished_run_lifecycle, run_lifecycle, with_recording, write_status
from hftoolkit.runs.prediction_tables import check_output, write_or_format, write_prediction_file
from hftoolkit.runs.resume import Resume, check_unchanged, meant_path, open_finished, open_run, write_manifest
from hftoolkit.runs.revisions import as_begun, pinned
from hftoolkit.runs.tables import gains_table, results_table
from hftoolkit.train.distributed.collectives import num_processes
from hftoolkit.train.distributed.launch import join_processes
from hftoolkit.train.loop import fit, one_step
from hftoolkit.train.state import FitResult

GATE_USERS = 8
DEFAULT_TOP_K = 10
COMPARED = ("hr", "ndcg")  # metrics with a paired lead
HEADLINE = {"hr": "HR", "recall": "recall", "ndcg": "NDCG", "coverage": "coverage"}


@dataclass(frozen=True)
class Choice:
    """What is to be recommended: how many items, which, and with which reasons."""

    top_k: int = 10
    include_seen: bool = False
    candidates: Path | None = None
    new_items: Path | None = None
    explain: bool = False

    @cached_property
    def candidate_ids(self) -> list[str] | None:
        """The ids in the file of candidates, which is read once."""
        return None if self.candidates is None else read_candidates(self.candidates)

    def predictor(self, folder: Path, emit: Emit) -> RecommendationPredictor:
        """Return the predictor of a run, which knows the new items."""
        predictor = load_recommender(folder, emit)
        return predictor.with_new_items(self.new_items) if self.new_items is not None else predictor

    def lists(self, predictor: RecommendationPredictor, queries: Queries) -> list[list[Recommended]]:
        """Return the recommendations for each query."""
        return predictor.recommend(
            queries,
            top_k=self.top_k,
            include_seen=self.include_seen,
            candidates=self.candidate_ids,
            explain=self.explain,
        )


def finetune(
    recipe: RecommendationRecipe,
    *,
    name: str,
    run_dir: Path | None,
    emit: Emit,
    resume: Resume = False,
    allow_code: bool = False,
) -> Path:
    """Train, fuse, export, check and measure a recommender; return its run directory.

    Args:
        recipe: what to do.
        name: run name, used when ``run_dir`` is None.
        run_dir: exactly where the run goes, or is.
        emit: gets everything a user or a log wants to see.
        resume: resume the run of that name or directory, from its newest checkpoint; ``auto``: start it if there is
            none, and do nothing if it is done.
        allow_code: changes nothing, since these recipes name no code.

    Raises:
        HFToolkitError: see ``errors``; status.json says what happened.
    """
    _check_single_process()
    run = open_run(recipe, name, run_dir, resume=resume, emit=emit)
    listen = with_recording(run, emit)
    if run.is_done():
        complete_report(run, partial(report, run.root, emit=emit), emit)
        publish(recipe.hub, run, emit=listen)
        return run.root
    with run_lifecycle(run) as ending:
        write_manifest(recipe, run, listen)
        check_push_access(recipe.hub, create=True, emit=listen)
        job = prepare(pinned(recipe, run), listen)
        check_unchanged(run.data, job.splits.summary, "the data")
        check_unchanged(run.backbone, job.weights.origin, "the pretrained weights")
        fitted, text = _train(job, run, listen)
        fusion = ScorerFusion(job.splits, recipe.fusion, recipe.evaluation, recipe.train.seed)
        recommender = fusion.fit(job.summed(text))
        gate = _export(job, recommender, text, run)
        Manifest(public_tables(recipe)).write(run.model)
        seal(run.model)
        KnownUsers(job.splits.user_ids, job.splits.everything, job.splits.groups).save(run.users)
        listen(Message(f"reloaded {run.model} in a fresh process without hftoolkit: same vectors"))
        ours = fusion.rank(recommender, "test")
        results = measure(job, fusion, recommender, {**job.scorers, "text": text}, ours)
        results |= {"train": fitted.facts("users"), "gate": gate}
        write_json(run.results, results)
        attempts = _report(recipe, job.splits, run, ours, results, job.weights.hub_id, listen)
        ending.update(attempts.ending())
        prune(run.checkpoints, keep=1)  # which a larger train.epochs extends
    run = hand_over(run)
    publish(recipe.hub, run, emit=with_recording(run, emit))
    return run.root


def _check_single_process() -> None:
    join_processes()
    if num_processes() > 1:
        raise EnvironmentFault("recommendation trains in one process; start it without a launcher")


def dry_run(recipe: RecommendationRecipe, *, run_dir: Path | None, emit: Emit, allow_code: bool = False) -> float:
    """Do all that precedes training and one real optimizer step; write nothing; return the loss of the step."""
    _check_single_process()
    if run_dir is not None:
        RunDir.check_free(run_dir)
    check_push_access(recipe.hub, create=False, emit=emit)
    job = prepare(recipe, emit)
    with job.pooling():
        return one_step(
            job.task,
            job.tuned,
            train=recipe.train,
            evaluation=recipe.evaluation,
            accelerator=job.infer.accelerator,
        )


def measure(
    job: RecommendationJob,
    fusion: ScorerFusion,
    recommender: Recommender,
    scorers: Mapping[str, Scorer],
    ours: RankedLists,
) -> dict[str, Any]:
    """Return the test metrics of the sum, of each scorer alone and of other sums, with intervals and paired leads.

    Args:
        job: gives recipe and data.
        stage: fuses and ranks.
        recommender: the sum.
        scorers: to compare it with; but for ``text``, none of them knows of the tuned tower.
        ours: the lists of the sum on the test split.
    """
    recipe = job.recipe
    others = {}
    if recipe.evaluation.baselines:
        others = {name: job.task.rank(scorer, "test") for name, scorer in scorers.items()}
        for name, members in ablations(recipe.fusion.parts):
            others[name] = fusion.rank(fusion.fit({member: scorers[member] for member in members}), "test")
    out_of_fold = fusion.out_of_fold(recommender.scorers)
    pairs = [("text", "frozen-text"), ("text", "popularity")]
    gains = {f"{a} over {b}": _leads(recipe, others[a], others[b]) for a, b in pairs if a in others and b in others}
    return {
        "task": recipe.task.kind,
        "cutoff": recipe.evaluation.cutoff,
        "protocol": job.splits.summary["protocol"],
        "test": _measured(recipe, job.splits, ours, "test"),
        "validation": {
            "sum, out of fold": {"metrics": mean_values(out_of_fold.values)},
            "text": {"metrics": mean_values(job.task.rank(scorers["text"], "validation").values)},
        },
        "chosen": {name: dict(choice) for name, choice in job.chosen.items()},
        "weights": dict(zip(recommender.scorers, map(float, recommender.weights), strict=True)),
        "baselines": {
            name: _measured(recipe, job.splits, lists, "test") | {"difference": _leads(recipe, ours, lists)}
            for name, lists in others.items()
        },
        "gains": gains,
    }


def load_run(folder: Path, emit: Emit = lambda _: None) -> RecommendationPredictor:
    """Return the recommender of a run directory."""
    return load_recommender(folder, emit)


def load_model(folder: Path, manifest: Manifest, emit: Emit) -> RecommendationPredictor:
    """Return the recommender of a model folder, which knows no users."""
    assert isinstance(manifest.recipe, RecommendationRecipe)
    return RecommendationPredictor.of_model(folder, manifest.recipe)


def evaluate(
    folder: Path,
    *,
    split: str,
    source: str | None,
    emit: Emit,
    allow_code: bool = False,
    on_bad_rows: str = "skip",
) -> dict[str, Any]:
    """Measure the saved recommender of a run again, on one of its splits, whose rows the recipe alone decides on.

    Raises:
        DataError: the run has no model, or its data changed since.
        RecipeError: there is no such split, or another source was named.
    """
    if source is not None:
        raise RecipeError("--data is for classifiers; a recommender is measured on the splits of its own log")
    predictor = load_recommender(folder, emit)
    recipe, splits = predictor.recipe, _own_splits(predictor.recipe, RunDir(folder), emit)
    if split not in splits.cases:
        raise RecipeError(f"--split {split}: a recommender is measured on {' or '.join(splits.cases)}")
    predictor.check_same_data(splits.summary["fingerprint"])
    fusion = ScorerFusion(splits, recipe.fusion, recipe.evaluation, recipe.train.seed)
    results = {"test": _measured(recipe, splits, fusion.rank(predictor.recommender, split), split)}
    emit(replace(results_table(results | {"cutoff": recipe.evaluation.cutoff}, HEADLINE), title=f"{folder} on {split}"))
    keep_evaluation(RunDir(folder), {"split": split}, results["test"], emit)
    return results["test"]


def predict(
    folder: Path,
    source: Path,
    *,
    lines: list[str] | None,
    output: Path | None,
    top_k: int | None,
    emit: Emit,
    on_bad_rows: str = "skip",
    keep: Sequence[str] | None = None,
) -> str:
    """Recommend to each user of a table of interactions, from the history that it gives them."""
    if lines is not None:
        raise RecipeError("a recommender reads a table of interactions, and no standard input; name a file")
    if keep is not None:
        raise RecipeError("--keep is for rows that get a prediction each; a recommender answers users; leave it out")
    if output is not None:
        check_output(output, source)
    predictor = load_recommender(folder, emit)
    users, queries, skipped = predictor.users_of(source, on_bad_rows)
    if skipped:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in skipped.items())
        emit(Message(f"{sum(skipped.values())} interactions of {source.name} are left out ({reasons})", "warning"))
    lists: list[list[Recommended]] = []
    for places in blocks(len(users), predictor.recipe.evaluation.block_users):
        some = Queries(queries.histories.select(places), queries.groups[places])
        lists += predictor.recommend(some, top_k=top_k or DEFAULT_TOP_K)
        emit(InferenceProgress(len(lists), len(users)))
    return write_or_format(list_columns(users, lists), output)


def recommend_to_all(folder: Path, *, output: Path | None, choice: Choice, emit: Emit) -> str:
    """Recommend to each user of the log of a run; write ``output``, or return the CSV text if it is None."""
    if output is not None:
        check_output(output, folder)
    predictor = choice.predictor(folder, emit)
    names: list[str] = []
    lists: list[list[Recommended]] = []
    for users, queries in predictor.all_users(predictor.recipe.evaluation.block_users):
        names += users
        lists += choice.lists(predictor, queries)
        emit(InferenceProgress(len(lists), len(predictor.known.ids)))
    return write_or_format(list_columns(names, lists), output)


def recommend(folder: Path, *, user: str | None, history: list[str] | None, choice: Choice, emit: Emit) -> None:
    """Show recommendations for a user of the log, or for a history of anybody."""
    predictor = choice.predictor(folder, emit)
    query = predictor.user(user) if user is not None else predictor.history(history or [])
    emit(recommendations_table(choice.lists(predictor, query)[0], explained=choice.explain))


def recommendations_table(found: list[Recommended], *, explained: bool) -> Table:
    """Return a row for each recommendation; explained, also with its parts and the items of the history behind it."""
    columns = ["rank", "item", "title", "score", *(list(found[0].parts) if explained and found else [])]
    rows = []
    for rank, each in enumerate(found, start=1):
        row = [str(rank), each.item, each.title, f"{each.score:.3f}"]
        if explained:
            row += [f"{value:+.3f}" for value in each.parts.values()]
            row.append("; ".join(f"{title} {value:+.2f}" for title, value in each.because) or "-")
        rows.append(tuple(row))
    return Table("Recommendations", (*columns, *(["because of"] if explained else [])), tuple(rows))


def report(folder: Path, *, emit: Emit, allow_code: bool = False) -> None:
    """Show the closing tables of a finished run again, and write its test lists and its card anew.

    Raises:
        DataError: the run has no model, or its data changed since.
        HFToolkitError: a part failed again.
    """
    run = open_finished(folder)
    listen, predictor = with_recording(run, emit), load_recommender(folder, emit)
    recipe, splits = predictor.recipe, _own_splits(predictor.recipe, run, listen)
    predictor.check_same_data(splits.summary["fingerprint"])
    fusion = ScorerFusion(splits, recipe.fusion, recipe.evaluation, recipe.train.seed)
    with finished_run_lifecycle(run):
        ours, base = fusion.rank(predictor.recommender, "test"), Weights(recipe.model).hub_id
        attempts = _report(recipe, splits, run, ours, read_json(run.results), base, listen)
        write_status(run, "done", exit_code=0, **attempts.ending())
    if attempts.failed:
        raise HFToolkitError(f"failed again: {', '.join(attempts.failed)}; {run.log} says why")


def _own_splits(recipe: RecommendationRecipe, run: RunDir, emit: Emit) -> RecommendationSplits:
    """Return the data of a finished run, divided as in training."""
    return load_splits(as_begun(recipe, run), emit, partial(meant_path, run, advice="bring it back"))


def _report(
    recipe: RecommendationRecipe,
    splits: RecommendationSplits,
    run: RunDir,
    ours: RankedLists,
    results: dict[str, Any],
    base: str | None,
    emit: Emit,
) -> Attempts:
    """Show the closing tables, write the lists of the test split and the card; none of that can cost the model."""
    attempts = Attempts(run, emit)
    with attempts.at("closing tables"):
        k, users = results["cutoff"], results["test"]["examples"]
        title = f"Test split ({results['protocol']}), {users} users, all items ranked, lists of {k}, 95 % intervals"
        emit(replace(results_table(results, HEADLINE, ours="sum of parts"), title=title))
        if results["gains"]:
            emit(gains_table(results["gains"], HEADLINE))
    with attempts.at("test predictions"):
        _write_test_lists(splits, run, ours)
    with attempts.at("model card"):
        write_recommender_card(run, recipe, results, splits.summary, base)
    attempts.warn_of_missing()
    return attempts


def _write_test_lists(splits: RecommendationSplits, run: RunDir, ours: RankedLists) -> None:
    run.predictions.mkdir(exist_ok=True)
    cases = splits.cases["test"]
    rows = [
        (splits.user_ids[user], rank, splits.catalogue.ids[item], splits.catalogue.titles[item], item in targets)
        for user, items, targets in zip(cases.users, ours.items_BK.tolist(), cases.targets.as_sets(), strict=True)
        for rank, item in enumerate(items, start=1)
        if item != NOBODY
    ]
    names = ("user", "rank", "item", "title", "chosen")
    columns = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    write_prediction_file(columns, run.predictions / "test.csv")


def _measured(
    recipe: RecommendationRecipe, splits: RecommendationSplits, lists: RankedLists, split: str
) -> dict[str, Any]:
    cases = splits.cases[split]
    popularity = np.bincount(splits.train.items, minlength=len(splits.catalogue))
    return {
        "examples": len(cases),
        "metrics": summarize_lists(lists, cases, popularity),
        "intervals": mean_intervals(lists.values, samples=recipe.evaluation.bootstrap_samples, seed=recipe.train.seed),
    }


def _leads(recipe: RecommendationRecipe, ours: RankedLists, theirs: RankedLists) -> dict[str, tuple[float, ...]]:
    """Return how much better ours is by each compared metric, and the paired interval of that."""
    gaps = {metric: ours.values[metric] - theirs.values[metric] for metric in COMPARED}
    intervals = mean_intervals(gaps, samples=recipe.evaluation.bootstrap_samples, seed=recipe.train.seed)
    means = mean_values(gaps)
    return {metric: (means[metric], *intervals[metric]) for metric in COMPARED if metric in intervals}


def _train(job: RecommendationJob, run: RunDir, emit: Emit) -> tuple[FitResult, TextVectors]:
    """Run the loop, after which the tower of the job has the best weights; return also its vectors in fp32."""
    with job.pooling():
        fitted = fit(
            job.task,
            job.tuned,
            train=job.recipe.train,
            evaluation=job.recipe.evaluation,
            accelerator=job.infer.accelerator,
            run=run,
            emit=emit,
        )
        emit(Message("best weights loaded; encoding all items in fp32, and weighing the parts on validation"))
        return fitted, job.task.text_scorer(job.tuned.model, job.infer, full_precision=True)


def _export(job: RecommendationJob, recommender: Recommender, text: TextVectors, run: RunDir) -> dict[str, Any]:
    tower = job.tuned.model
    assert isinstance(tower, ItemTower)
    cases = job.splits.cases["test"]
    users = np.arange(min(GATE_USERS, len(cases)))
    model, path = job.recipe.model, job.weights.path
    assert path is not None  # a recommender starts from pretrained weights

    def save_base(folder: Path) -> None:
        base, pooler = load_text_encoder(path, max_length=model.max_length, dropout=0.0)
        save_encoder(base.model, base.tokenizer, pooler, folder)

    files = TowerFiles(job.tokenizer, job.pooler, job.weights.hub_id, save_base)
    queries = Queries.of(cases, users, job.splits.groups)
    gate = TowerGate(job.splits.catalogue.texts, text.vectors, queries, allowed_items(cases, users))
    return export_recommender(tower, recommender, run, files=files, gate=gate)
