"""The recipes that come with hftoolkit: they load, they are found in every layout, and copies overwrite nothing."""

import re

import pytest

from hftoolkit.errors import EnvironmentFault, RecipeError
from hftoolkit.recipe import (
    AnyRecipe,
    copy_recipe,
    is_reinforcement_recipe,
    list_recipes,
    load_recipe,
    load_reinforcement_recipe,
    read_recipe_text,
)
from hftoolkit.recipe.reading import shipped


def test_every_shipped_recipe_loads_and_has_a_title():
    recipes = list_recipes()
    assert recipes
    for recipe in recipes:
        path = shipped.recipes_directory() / f"{recipe.name}.yaml"
        load = load_reinforcement_recipe if is_reinforcement_recipe(path) else load_recipe
        assert isinstance(load(path), AnyRecipe)
        assert recipe.title and "hftoolkit" not in recipe.title


@pytest.fixture
def one_shipped(tmp_path, monkeypatch):
    """Lay a package out as an installed wheel has it, with one recipe."""
    folder = tmp_path / "site-packages" / "hftoolkit" / "recipes"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text("# A title.   hftoolkit finetune tiny.yaml\ntask:\n")
    monkeypatch.setattr(shipped, "__file__", str(folder.parent / "recipe" / "reading" / "shipped.py"))
    return folder


def test_recipes_are_found_in_the_package_first_then_beside_it(one_shipped, tmp_path):
    beside = tmp_path / "site-packages" / "recipes"
    beside.mkdir()
    assert shipped.recipes_directory() == one_shipped
    assert list_recipes() == [("tiny", "A title.")]
    one_shipped.rename(tmp_path / "gone")
    assert shipped.recipes_directory() == beside
    beside.rmdir()
    with pytest.raises(EnvironmentFault):
        list_recipes()


def test_an_unknown_shipped_name_suggests_the_right_one(one_shipped):
    assert read_recipe_text("tiny").endswith("task:\n")
    for name in ("tinny", "tiny.yaml"):
        with pytest.raises(RecipeError, match="did you mean tiny"):
            read_recipe_text(name)
    for name in ("", "../recipes/tiny"):
        with pytest.raises(RecipeError, match="there are: tiny"):
            read_recipe_text(name)


def test_a_copy_goes_to_a_folder_or_a_new_file_and_never_overwrites(one_shipped, tmp_path):
    assert copy_recipe("tiny", tmp_path) == tmp_path / "tiny.yaml"
    assert copy_recipe("tiny", tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "tiny.yaml"
    mine = copy_recipe("tiny", tmp_path / "deep" / "mine.yml")
    assert (mine.name, mine.read_text()) == ("mine.yml", read_recipe_text("tiny"))
    mine.write_text("edited")
    for destination in (mine, tmp_path, mine / "below"):
        with pytest.raises((RecipeError, EnvironmentFault), match=re.escape(str(tmp_path))):
            copy_recipe("tiny", destination)
    assert mine.read_text() == "edited"
