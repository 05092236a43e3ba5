"""A recommendation recipe made real: log, catalogue, tower and models of ids, loaded and checked."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import Emit, Message
from hftoolkit.data.sources.resolve import describe, resolve_data
from hftoolkit.models.backbones import enable_gradient_checkpointing
from hftoolkit.models.kernels import set_attention
from hftoolkit.models.pretrained import Weights
from hftoolkit.models.tuning import TunedModel, apply_tuning, trainable_table
from hftoolkit.recipe import IdModels, LinearProbe, RecommendationRecipe
from hftoolkit.recommend.factors import item_features, similarities
from hftoolkit.recommend.fitting import ITEM_SQUARED, TrainingLog, alternatives, filled_in, fit_choices, fit_scorer
from hftoolkit.recommend.protocols import RecommendationSplits, load_recommendation_splits
from hftoolkit.recommend.ranking import mean_values
from hftoolkit.recommend.scorers import Factors, Scorer, TextVectors
from hftoolkit.recommend.task import RecommendationTower
from hftoolkit.recommend.tower import ItemTower, TowerShape, load_text_encoder, put_on_top
from hftoolkit.train.devices import describe_device, make_accelerator
from hftoolkit.train.inference import Inference

TEXT_SCORERS = ("text", "frozen-text")
BASELINES = ("popularity", "recent-popularity", "item-knn", "ease", "slit", "ials")


@dataclass(frozen=True, slots=True)
class RecommendationJob:
    """Everything a recipe names, loaded and checked.

    Attributes:
        log: what models of ids were fitted on.
        scorers: what needs no training of the tower, by name: models of ids, and ``frozen-text``.
        pooled: (I, H) what the encoder gave for each item before training.
        chosen: settings of those that were chosen on validation, by name.
        pooler: of the encoder, unused, but kept for the saved model.
    """

    recipe: RecommendationRecipe
    splits: RecommendationSplits
    task: RecommendationTower
    tuned: TunedModel
    tokenizer: Any
    pooler: nn.Module | None
    infer: Inference
    weights: Weights
    log: TrainingLog
    scorers: Mapping[str, Scorer]
    pooled: torch.Tensor
    chosen: Mapping[str, Mapping[str, float | None]]

    def pooling(self) -> AbstractContextManager[None]:
        """Return a context in which a frozen encoder is run once and for all."""
        if isinstance(self.recipe.tuning, LinearProbe):
            return self.task.cached_pooling(self.pooled)
        return nullcontext()

    def summed(self, text: TextVectors) -> dict[str, Scorer]:
        """Return the scorers of the sum, by name, given what the tuned tower makes of the texts."""
        scorers: dict[str, Scorer] = {**self.scorers, "text": text}
        ials = scorers.get("ials")
        if isinstance(ials, Factors):
            scorers["ials"] = filled_in(ials, _with_texts(self.log, text.vectors), self.recipe.id_models)
        return {name: scorers[name] for name in self.recipe.fusion.parts}


def prepare(recipe: RecommendationRecipe, emit: Emit) -> RecommendationJob:
    """Fetch, load and check everything, and fit what needs no training of the tower.

    Raises:
        RecipeError, DataError, EnvironmentFault: what is wrong, before anything was trained.
    """
    splits = load_splits(recipe, emit)
    weights = Weights(recipe.model)
    emit(Message(f"backbone: {weights.describe()}"))
    assert weights.path is not None  # a recommender starts from pretrained weights
    accelerator = make_accelerator(recipe.train.precision)
    encoder, pooler = load_text_encoder(weights.path, max_length=recipe.model.max_length, dropout=recipe.model.dropout)
    kernel = set_attention(encoder.model, accelerator.device)
    if recipe.model.gradient_checkpointing:
        enable_gradient_checkpointing(encoder.model)
    task = RecommendationTower(
        recipe.task, splits, encoder.tokenizer, recipe.evaluation, frozen=isinstance(recipe.tuning, LinearProbe)
    )
    _tell_about_truncation(task, recipe.model.max_length, emit)
    infer = Inference(task, accelerator, emit)
    plain = TowerShape(None, item_bias=False)
    pooled = task.pooled(ItemTower(encoder.model, plain, recipe.train.seed), infer)
    center = pooled[task.trained_items].mean(dim=0)
    frozen = ItemTower(encoder.model, plain, recipe.train.seed, center)
    with torch.inference_mode():
        text = task.scorer_of(frozen.head(pooled).numpy())
    groups = splits.groups[splits.train_users]
    catalogue = len(splits.catalogue)
    log = TrainingLog(splits.train, groups, splits.train_items, catalogue, attributes=splits.attributes)
    scorers, chosen = _fit_scorers(recipe, task, log, text.vectors, emit)
    scorers["frozen-text"] = text
    tuned = apply_tuning(encoder, recipe.tuning)
    shape = TowerShape(recipe.model.dimensions, recipe.model.item_bias)
    tower = ItemTower(tuned.model, shape, recipe.train.seed, center if recipe.model.center else None)
    tuned = put_on_top(tuned, tower, head_scale=recipe.tuning.head_learning_rate_scale)
    emit(trainable_table(tuned.model))
    emit(Message(f"{describe_device(accelerator)}, attention {kernel}"))
    return RecommendationJob(
        recipe, splits, task, tuned, encoder.tokenizer, pooler, infer, weights, log, scorers, pooled, chosen
    )


def load_splits(
    recipe: RecommendationRecipe, emit: Emit, meant: Callable[[str], str] = lambda address: address
) -> RecommendationSplits:
    """Fetch the tables of a recipe and divide them; ``meant`` gives what an address of a finished run stood for."""
    tables = [recipe.data.interactions, recipe.data.items, *([recipe.data.users] if recipe.data.users else [])]
    found = [resolve_data(meant(table.source), sha256=table.sha256) for table in tables]
    for each in found:
        emit(Message(f"data: {describe(each)}"))
    users = found[2].path if recipe.data.users else None
    splits = load_recommendation_splits(found[0].path, found[1].path, users, recipe.data)
    summary = splits.summary
    sizes = ", ".join(f"{name} {count}" for name, count in summary["sizes"].items())
    emit(Message(f"{summary['users']} users, {summary['items']} items; {summary['protocol']}: {sizes} interactions"))
    for sentence in summary["warnings"]:
        emit(Message(sentence, "warning"))
    return splits


def _fit_scorers(
    recipe: RecommendationRecipe, task: RecommendationTower, log: TrainingLog, texts: np.ndarray, emit: Emit
) -> tuple[dict[str, Scorer], dict[str, dict[str, float | None]]]:
    """Fit the models of ids that the sum adds up, and those it is compared with; return also what was chosen."""
    wanted: list[str] = [name for name in recipe.fusion.parts if name not in TEXT_SCORERS]
    if recipe.evaluation.baselines:
        wanted += [name for name in BASELINES if name not in wanted]
        too_large = [name for name in wanted if name in ITEM_SQUARED and name not in recipe.fusion.parts]
        if log.num_items > recipe.id_models.max_items and too_large:
            wanted = [name for name in wanted if name not in too_large]
            emit(Message(f"no baselines {', '.join(too_large)}: the catalogue is above id_models.max_items", "warning"))
    if "ials" in wanted:
        log = _with_texts(log, texts)
    scorers: dict[str, Scorer] = {}
    chosen: dict[str, dict[str, float | None]] = {}
    for name in wanted:
        choices = list(alternatives(name, recipe.id_models))
        if len(choices) == 1:
            scorers[name] = fit_scorer(name, log, recipe.id_models)
        else:
            scorers[name], chosen[name] = best_choice(name, log, choices, task, recipe.evaluation.best_by)
            listed = ", ".join(f"{knob} {'null' if value is None else value}" for knob, value in chosen[name].items())
            emit(Message(f"{name}: {listed}, the best of {len(choices)} choices on validation"))
    return scorers, chosen


def _with_texts(log: TrainingLog, texts: np.ndarray) -> TrainingLog:
    """Return a log that says how similar items are by texts, (I, D), and attributes, if some were never chosen."""
    known_I = log.known
    if known_I.all():
        return log
    return replace(log, similarities=similarities(item_features(texts, log.attributes, known_I), known_I))


def best_choice(
    name: str,
    log: TrainingLog,
    choices: Sequence[tuple[dict[str, float | None], IdModels]],
    task: RecommendationTower,
    metric: str,
) -> tuple[Scorer, dict[str, float | None]]:
    """Return the scorer that ranks validation best by ``metric``, the first of equal ones, and its settings."""
    best: tuple[float, Scorer, dict[str, float | None]] | None = None
    for choice, scorer in fit_choices(name, log, choices):
        value = mean_values(task.rank(scorer, "validation").values)[metric]
        if best is None or value > best[0]:
            best = value, scorer, choice
    assert best is not None
    return best[1:]


def _tell_about_truncation(task: RecommendationTower, max_length: int, emit: Emit) -> None:
    cut = int((task.token_counts > max_length).sum())
    if cut:
        emit(Message(f"{cut} of {len(task.token_counts)} item texts are cut at {max_length} tokens", "warning"))
