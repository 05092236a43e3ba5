"""The model card of a recommender, from the evidence of its run."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from hftoolkit.contracts.names import code_span
from hftoolkit.data.sources.address import public_address
from hftoolkit.hub.card import licence, recipe_section, write_folder_card
from hftoolkit.recipe import RecommendationRecipe
from hftoolkit.runs.directory import RunDir


def write_recommender_card(
    run: RunDir, recipe: RecommendationRecipe, results: Mapping[str, Any], data: Mapping[str, Any], base: str | None
) -> None:
    """Write ``model/README.md`` of a recommender: use, results with intervals, data fingerprint, limits, recipe.

    Args:
        run: a run whose model is exported.
        recipe: the recipe of the run.
        results: the content of results.json.
        data: the content of data.json.
        base: Hub id of the pretrained weights, if they have one.
    """
    tables = recipe.data.interactions, recipe.data.items
    sources = [code_span(public_address(table.source)) for table in tables]
    metadata = ModelCardData(
        base_model=base,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        license=recipe.model.license,
        tags=["hftoolkit", "recommendation", recipe.tuning.method],
    )
    k, test = results["cutoff"], results["test"]
    rows = {"sum of parts": test, **results["baselines"]}
    lines = [f"| {name} | {_ranked_cell(row, 'hr')} | {_ranked_cell(row, 'ndcg')} |" for name, row in rows.items()]
    weights = ", ".join(f"{name} {weight:.3f}" for name, weight in results["weights"].items())
    sections = (
        f"# Item tower and recommender, {data['users']} users and {data['items']} items",
        f"## Use\n\nThe item tower alone:\n\n```python\n{_TOWER_USE}\n```\n\n"
        f"Everything, with `hftoolkit`: `recommender/` holds the parts whose standardized scores are added ({weights}) "
        "as safetensors and JSON.\n\n```python\n" + _RECOMMENDER_USE + "\n```",
        f"## Results\n\nProtocol {results['protocol']}; {test['examples']} users, all items ranked, own history left "
        f"out; 95 % bootstrap intervals.\n\n| model | HR@{k} | NDCG@{k} |\n|---|---|---|\n" + "\n".join(lines),
        f"## Data\n\n- Sources: {', '.join(sources)}{licence(recipe.data.license)}\n"
        f"- Fingerprint of the split (SHA-256): `{data['fingerprint']}`",
        f"## Limits\n\n- {data['ties']['interactions']:.0%} of the interactions share their time with the one before; "
        "the order of the file decided between them.\n- Lists favour what was popular in the training log. New items "
        "are known by their texts alone.\n- Histories of users are personal data and not part of this folder.",
        recipe_section(public_tables(recipe)),
    )
    write_folder_card(run.model, metadata, sections)


def public_tables(recipe: RecommendationRecipe) -> RecommendationRecipe:
    """Return the recipe without folders of this machine."""
    data = recipe.data
    public = {
        name: table.model_copy(update={"source": public_address(table.source)})
        for name, table in (("interactions", data.interactions), ("items", data.items), ("users", data.users))
        if table is not None
    }
    model = recipe.model.model_copy(update={"backbone": public_address(recipe.model.backbone)})
    return recipe.model_copy(update={"data": data.model_copy(update=public), "model": model})


def _ranked_cell(measured: Mapping[str, Any], metric: str) -> str:
    low, high = measured["intervals"][metric]
    return f"{measured['metrics'][metric]:.3f} [{low:.3f}, {high:.3f}]"


_TOWER_USE = """from sentence_transformers import SentenceTransformer

tower = SentenceTransformer("path/or/repository")
vectors = tower.encode(["Toy Story (1995). Animation, Children's, Comedy"])  # length 1; compare by dot product"""

_RECOMMENDER_USE = """import hftoolkit

recommender = hftoolkit.load("path/or/repository")
chosen = recommender.items[:3]  # ids of items that a user chose, oldest first
for found in recommender.recommend(recommender.history(chosen), top_k=10)[0]:
    print(found.title, found.score)"""
