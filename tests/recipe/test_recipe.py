"""Recipes: what is read, what is refused, and what the refusal says."""

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from hftoolkit.errors import RecipeError
from hftoolkit.recipe import (
    FullTuning,
    LastLayers,
    LinearProbe,
    LoraTuning,
    differences,
    dump_recipe,
    json_schema,
    list_recipes,
    load_recipe,
)
from hftoolkit.recipe.kinds import RECIPES
from hftoolkit.recipe.reading.yaml_file import MAX_BYTES, read_yaml, write_value, write_yaml
from hftoolkit.recipe.sections import Section

GOLDEN = Path(__file__).parent / "golden_mistakes.txt"  # pytest --update-golden writes it
GOOD = """\
task:
  kind: text-classification
  labels: {1: negative, 5: positive}
data:
  source: reviews.csv
  columns: {text: [Title, Review Text], label: Rating}
model:
  backbone: some/model
"""


@pytest.fixture
def write(tmp_path: Path):
    def write_recipe(text: str | bytes) -> Path:
        path = tmp_path / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_recipe


@pytest.fixture
def refused(write):
    """Return the message about a text and overrides that must be refused, with the file called FILE."""

    def message(text: str | bytes, *overrides: str) -> str:
        path = write(text)
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, overrides)
        assert caught.value.exit_code == 2
        return str(caught.value).replace(str(path), "FILE")

    return message


# Files that are no recipes


def test_bytes_that_are_not_utf_8_are_refused_with_their_line(refused):
    assert refused(GOOD.encode() + b"# caf\xe9\n") == "FILE:9: byte 0xe9 is not UTF-8; save the file as UTF-8"
    assert "is not UTF-8" in refused(GOOD.encode("utf-16"))


def test_windows_line_ends_and_byte_order_mark_are_accepted(write):
    good = load_recipe(write(GOOD))
    assert load_recipe(write(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())) == good


def test_a_file_over_one_mebibyte_is_refused_unread(refused):
    assert "larger than" in refused(GOOD + "#" * MAX_BYTES)


# What a recipe error says


def test_five_mistakes_are_named_in_one_message_with_their_lines(refused):
    message = refused(
        "task:\n"
        "  kind: text-classification\n"
        "data:\n"
        "  source: reviews.csv\n"
        "  columns: {text: Review, label: Rating}\n"
        "  on_bad_row: skip\n"  # line 6
        "model:\n"
        "  backbone: some/model\n"
        "  max_length: '128'\n"  # line 9
        "tuning:\n"
        "  method: lorra\n"  # line 11
        "train:\n"
        "  lerning_rate: 1e-3\n"  # line 13
        "  epochs: 0\n"  # line 14
    )
    header, *problems = message.splitlines()
    assert header == "FILE is not a valid recipe (5 problems):"
    expected = [  # where, which knob, and a part of the fix
        ("  FILE:6: data.on_bad_row: ", "'on_bad_rows'"),
        ("  FILE:9: model.max_length: ", "drop the quotes"),
        ("  FILE:11: tuning.method: ", "'lora'"),
        ("  FILE:13: train.lerning_rate: ", "'learning_rate'"),
        ("  FILE:14: train.epochs: ", "at least 1"),
    ]
    for problem, (start, fix) in zip(problems, expected, strict=True):
        assert problem.startswith(start) and fix in problem


ADDED = [  # to a good recipe: what, in which line, the knob that is blamed, a part of the fix
    ("train: {epochs: '3'}", 9, "train.epochs", "whole number"),
    ("train: {epochs: 1.5}", 9, "train.epochs", "whole number"),
    ("train: {epochs: }", 9, "train.epochs", "whole number"),
    ("train: {length_buckets: yes}", 9, "train.length_buckets", "true or false"),
    ("train: {learning_rate: .nan}", 9, "train.learning_rate", "a number, over 0"),
    ("train: {weight_decay: -1}", 9, "train.weight_decay", "at least 0"),
    ("train: {model: x}", 9, "train.model", "did you mean model?"),
    ("train:\n  dropout: 0.1", 10, "train.dropout", "model.dropout or tuning.dropout?"),
    ("train: {Learning-Rate: 1}", 9, "train.Learning-Rate", "'learning_rate'"),
    ("train: {bootstrap_sample: 1}", 9, "train.bootstrap_sample", "evaluation.bootstrap_samples"),
    ("evaluation: {xyz: 1}", 9, "evaluation.xyz", "best_by"),
    ("evaluation: {1: 1}", 9, "evaluation.1", "best_by"),
    ("evaluation: {~: 1}", 9, "evaluation.null", "best_by"),
    ("evaluation: 3", 9, "evaluation", "best_by"),
    ("learning_rate: 1", 9, "learning_rate", "train.learning_rate?"),
    ("tokenizer: {}", 9, "tokenizer", "task, data, model"),
    ("hub: {repo: reviews}", 9, "hub.repo", "OWNER/NAME"),
    ("hub: {repo: a/b, token: hf_x}", 9, "hub.token", "repo, private"),
    ("train: {schedule: Linear}", 9, "train.schedule", "linear, cosine"),
    ("train: {trackers: wandb}", 9, "train.trackers", "list"),
    ("train: {trackers: [wandb,\n x]}", 10, "train.trackers.1", "tensorboard"),
    ("tuning:\n  rank: 8", 9, "tuning.method", "full, lora"),
    ("tuning: lora", 9, "tuning", "'method'"),
    ("tuning: {method: [lora]}", 9, "tuning.method", "full, lora"),
    ("tuning: {method: full,\n rank: 8}", 10, "tuning.rank", "method lora"),
    ("tuning: {method: lora,\n full: 8}", 10, "tuning.full", "layer_decay"),
    ("tuning: {method: lora, rank: 0}", 9, "tuning.rank", "at least 1"),
    ("tuning: {method: last-layers}", 9, "tuning.layers", "at least 1"),
    ("train:\n  batch_size: 4\n  micro_batch_size: 8", 11, "train", "batch_size 4"),
]


@pytest.mark.parametrize(("added", "line", "knob", "fix"), ADDED)
def test_a_mistake_is_told_with_what_is_allowed(refused, added, line, knob, fix):
    header, *problems = refused(GOOD + added).splitlines()
    assert header == "FILE is not a valid recipe (1 problem):"
    assert len(problems) == 1
    assert problems[0].startswith(f"  FILE:{line}: {knob}: ") and fix in problems[0]
    assert "Value error" not in problems[0]


REPLACED = [  # in a good recipe: what, by what, in which line, the knob that is blamed, a part of the fix
    ("1: negative", "1: 3", 3, "task.labels.1", 'write "3"'),
    ("1: negative", "~: negative", 3, "task.labels.null", "write text"),
    ("label: Rating", "label: 5", 6, "data.columns.label", "text, or a list"),
    ("[Title, Review Text]", "[[x]]", 6, "data.columns.text.0", "text"),
    ("labels", "label", 3, "task.label", "'labels'"),
    ("Review Text]", "[x]]", 6, "data.columns.text.1", "text"),
    ("text-classification", "text-clasification", 2, "task.kind", "'text-classification'"),
    ("  source: reviews.csv\n", "", 4, "data.source", "text"),
    ("  backbone: some/model\n", "", 7, "model.backbone", "text"),
    ("model:\n  backbone: some/model\n", "", 1, "model", "backbone"),
    (GOOD[-5:], "l\n  sha256: abc", 9, "model.sha256", "matches"),
    ("data:\n", "data:\n  split: {validation: 1.5}\n", 5, "data.split.validation", "under 1"),
]


@pytest.mark.parametrize(("old", "new", "line", "knob", "fix"), REPLACED)
def test_a_mistake_in_the_required_part_is_told_with_what_is_allowed(refused, old, new, line, knob, fix):
    assert old in GOOD
    _, problem = refused(GOOD.replace(old, new)).splitlines()
    assert problem.startswith(f"  FILE:{line}: {knob}: ") and fix in problem


def test_a_check_of_several_sections_speaks_for_itself_at_the_line_to_change(refused):
    message = refused(GOOD + "  dropout: 0.1\ntuning:\n  method: linear-probe\n")
    assert message.splitlines()[1].startswith("  FILE:11: tuning.method: ") and "model.dropout must be 0" in message


def test_layers_that_would_never_be_unfrozen_are_a_mistake(refused, write):
    late = "tuning: {method: full, unfreeze_epochs: 2}\ntrain: {epochs: 2}\n"
    message = refused(GOOD + late)
    assert "tuning.unfreeze_epochs: 2" in message and "less than train.epochs" in message
    assert load_recipe(write(GOOD + late), ["train.epochs=3"]).tuning.unfreeze_epochs == 2


def test_an_empty_section_means_its_defaults(write):
    assert load_recipe(write(GOOD + "train:\nevaluation: {}\ntuning:\n")) == load_recipe(write(GOOD))


def test_thousands_of_unknown_keys_give_a_short_message_quickly(refused):
    message = refused(GOOD + "".join(f"key{number}: 1\n" for number in range(3_000)))
    assert message.startswith("FILE is not a valid recipe (3000 problems):")
    assert message.endswith("\n  and 2950 more")


# Overrides


def test_overrides_win_over_the_file_and_the_file_over_defaults(write):
    path = write(GOOD + "train: {epochs: 7, batch_size: 8}\n")
    train = load_recipe(path, ["train.epochs=9", "train.learning_rate=1e-3", "train.epochs=10"]).train
    assert (train.epochs, train.batch_size, train.learning_rate, train.seed) == (10, 8, 0.001, 0)


def test_overrides_make_missing_sections_and_replace_whole_values(write):
    overrides = ["tuning.method=lora", "tuning.rank=4", "data.split={seed: 3}", "task.labels.1=bad", "model.license="]
    recipe = load_recipe(write(GOOD + "  license: x\ntuning:\n"), overrides)
    assert isinstance(recipe.tuning, LoraTuning)
    assert (recipe.tuning.rank, recipe.data.split.seed, recipe.model.license) == (4, 3, None)
    assert recipe.task.labels == {1: "bad", 5: "positive"}


LONG = ".".join("a" * 5000)
OVERRIDES = [  # as typed after --set, what is blamed, a part of the fix
    ("train.epochs", "train.epochs", "--set section.key=value"),
    ("=3", "", "a key is empty"),
    ("train..epochs=3", "train..epochs", "a key is empty"),
    ("data.source.x=3", "data.source.x", "no keys in it"),
    ("data.columns.text.0=x", "data.columns.text.0", "a list"),
    ("train.epochs=many", "train.epochs: train.epochs", "whole number"),
    ("train={epoch: 1}", "train: train.epoch", "'epochs'"),
    ("data.columns={text: a}", "data.columns: data.columns.label", "text, or a list"),
    (f"{LONG}=1", LONG, "32 parts"),
]


@pytest.mark.parametrize(("override", "blamed", "fix"), OVERRIDES)
def test_a_wrong_override_is_named_as_it_was_typed(refused, override, blamed, fix):
    header, problem = refused(GOOD, override).splitlines()
    assert header == "FILE is not a valid recipe (1 problem):"
    assert problem.startswith(f"  --set {blamed}: ") and fix in problem


@pytest.mark.parametrize(
    "name",
    [
        'a/b"); import os; os.system("id") #',
        "a/b\n\n## Injected",
        "a/b/c",
        "a b",
        "../x",
        "a--b/c",
        "",
        "https://x.y/a",
    ],
)
def test_what_is_no_hub_id_is_refused_before_it_enters_a_card(refused, name: str) -> None:
    message = refused(GOOD + f"  hub_id: {write_value(name)}\n")
    assert "FILE:9: model.hub_id: " in message and "write OWNER/NAME" in message


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"])
def test_hub_ids_with_and_without_an_owner_are_taken(write, name: str) -> None:
    assert load_recipe(write(GOOD + f"  hub_id: {name}\n")).model.hub_id == name


def test_each_mistake_is_told_in_the_words_of_the_golden_file(refused, golden):
    said = {added: refused(GOOD + added) for added, *_ in ADDED}
    said |= {f"{old!r} -> {new!r}": refused(GOOD.replace(old, new)) for old, new, *_ in REPLACED}
    said |= {f"--set {override}": refused(GOOD, override) for override, *_ in OVERRIDES if LONG not in override}
    lines = [f"{mistake}\n{message.split(chr(10), 1)[1]}\n" for mistake, message in said.items()]
    golden.compare(GOLDEN, "\n".join(lines).replace(", ".join(RECIPES), "(ALL KINDS)"))


@pytest.mark.parametrize("override", ["train.epochs=012", "train.epochs=[", "train.epochs=*x", "train.epochs=!!int 3"])
def test_override_values_follow_the_rules_of_the_file(refused, override):
    assert refused(GOOD, override).startswith("--set train.epochs: ")


def test_problems_of_file_and_overrides_come_in_one_message_in_reading_order(refused):
    message = refused(GOOD + "train:\n  epochs: 0\n  epoch: 0\n", "model.backbone", "task.multi_label=3")
    places = [line.split(": ")[0] for line in message.splitlines()[1:]]
    assert places == ["  FILE:10", "  FILE:11", "  --set model.backbone", "  --set task.multi_label"]


# Files


def test_a_missing_file_is_named_with_the_shipped_recipes_and_how_to_copy_one(tmp_path):
    with pytest.raises(RecipeError, match=r"nope\.yaml does not exist") as caught:
        load_recipe(tmp_path / "nope.yaml")
    assert "hftoolkit recipes copy NAME DEST" in str(caught.value)
    assert all(recipe.name in str(caught.value) for recipe in list_recipes())


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000])
def test_what_cannot_be_opened_is_refused_by_name(tmp_path, name):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / name)


def test_a_reinforcement_learning_recipe_is_told_apart(refused):
    message = refused("environment: {id: CartPole-v1}\nalgorithm: {kind: dqn}\ntrain: {seed: 0}\n")
    assert "is a reinforcement-learning recipe" in message
    assert "finetune does not run those" in message


# Dump, differences, schema


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("tuning={method: lora, alpha: 32, lora_plus_ratio: 16}", "train.trackers=[wandb]", "train.learning_rate=5e-6"),
        ("tuning={method: last-layers, layers: 2}", "data.columns.text='null'", "data.missing_values=[]"),
        ("task.labels={true: 'no', 2.5: \"a: 'b' #\\n\", '012': '~', \u00e9: \u00fc}", "data.template='{a}: {b}'"),
        ("task.labels={}", "model.backbone='pypi:a==1.0/b c'", "data.split={train: a, test: '0.5'}"),
    ],
)
def test_a_dumped_recipe_is_complete_and_loads_equal(write, overrides):
    recipe = load_recipe(write(GOOD), overrides)
    text = dump_recipe(recipe)
    again = load_recipe(write(text))
    assert again == recipe
    assert differences(again, recipe) == []
    assert repr(again) == repr(recipe)  # equal keys may differ in type or order
    knobs = {name for section in _sections(recipe) for name in type(section).model_fields}
    assert knobs <= set(re.findall(r"^ *(\w+):", text, re.MULTILINE))


def _sections(section: Section) -> list[Section]:
    children = [getattr(section, name) for name in type(section).model_fields]
    return [section, *(inner for child in children if isinstance(child, Section) for inner in _sections(child))]


def test_differences_name_each_changed_knob_with_both_values(write):
    a = load_recipe(write(GOOD))
    b = load_recipe(write(GOOD), ["train.epochs=9", "tuning.method=lora", "tuning.rank=4"])
    found = differences(a, b)
    assert {"tuning.method: full -> lora", "train.epochs: 3 -> 9"} <= set(found)
    assert "tuning.rank: (absent) -> 4" in found


def test_the_order_of_labels_is_a_difference(write):
    a = load_recipe(write(GOOD))
    b = load_recipe(write(GOOD), ["task.labels={5: positive, 1: negative}"])
    assert differences(a, b) == ["task.labels: {1: negative, 5: positive} -> {5: positive, 1: negative}"]


def test_the_json_schema_names_its_dialect_and_describes_each_knob():
    schema = json_schema()
    assert (schema["$schema"], schema["title"]) == ("https://json-schema.org/draft/2020-12/schema", "hftoolkit recipe")
    assert schema["$defs"]["Train"]["properties"]["epochs"]["description"]
    schema.clear()
    assert json_schema()["title"] == "hftoolkit recipe"


def _fields() -> list[tuple[type[Section], str, FieldInfo]]:
    """Return every field of every section, found from the section base, each once."""
    todo, found = [Section], []
    while todo:
        section = todo.pop()
        todo += section.__subclasses__()
        found += [(section, name, field) for name, field in section.model_fields.items()]
    assert len(found) > 50
    return found


@pytest.mark.parametrize(("section", "name", "field"), _fields())
def test_each_knob_has_a_description_and_each_number_a_bound(section, name, field):
    # A section and a tag are described by the docstring of the class they name.
    is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    described = field.annotation.__doc__ if is_section else field.description
    assert described or (name in ("kind", "method") and section.__doc__)
    node = section.model_json_schema()["properties"][name]
    for member in node.get("anyOf", [node]):
        if member.get("type") in ("integer", "number"):
            assert {"minimum", "exclusiveMinimum"} & member.keys(), "no lower bound"


# Nothing but RecipeError


def _knobs(data: dict[Any, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    nested = [
        _knobs(value, (*path, key)) if key != "labels" and isinstance(value, dict) else [(*path, key)]
        for key, value in data.items()
    ]
    return [knob for knobs in nested for knob in knobs]


TUNINGS = ("full", "lora", "linear-probe", "last-layers, layers: 1")


@pytest.mark.parametrize("tuning", [TUNINGS[1], TUNINGS[3]])  # together they have all knobs
@pytest.mark.parametrize("bad", [".nan", "-3", "{x: [1]}", "[[1]]", "!!python/name:os.system ''", "*x", "&x 1", "012"])
def test_a_value_wrong_for_any_knob_is_refused_with_its_key_and_line(tmp_path, tuning, bad):
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD + f"tuning: {{method: {tuning}}}\n")
    base, knobs = read_yaml(path.read_text(), "x").data, _knobs(load_recipe(path).model_dump())
    assert len(knobs) > 40
    for knob in knobs:
        lines = write_yaml(_replaced(base, knob, "BAD")).replace("BAD", bad).splitlines()
        path.write_text("\n".join(lines))
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        place = re.search(rf"bad\.yaml:(\d+): {re.escape('.'.join(knob))}[.:]", str(caught.value))
        assert place, f"{knob} is not named: {caught.value}"
        assert lines[int(place[1]) - 1].strip().startswith(f"{knob[-1]}:")


def _replaced(data: dict[Any, Any], path: tuple[str, ...], value: object) -> dict[Any, Any]:
    key, *rest = path
    return {**data, key: _replaced(data.get(key, {}), tuple(rest), value) if rest else value}


def test_damaged_files_give_a_recipe_or_a_recipe_error(write):
    draw = random.Random(0)
    junk = [
        b"\xff",
        b"*a",
        b"&a ",
        b"!!python/object:os.x ",
        b"[",
        b"{",
        b"\t",
        b"012",
        b": ",
        b"\n",
        b"'",
        b'"\\',
        b"#",
    ]
    junk += [
        b"~",
        b".nan",
        b"-",
        b"? ",
        b"|",
        b">",
        b"%",
        b"@",
        b"\x00",
        b"\xe2\x80\xa8",
        b"<<: ",
        b"---\n",
        b", ",
        b"}",
    ]
    num_refused = 0
    for _ in range(200):
        text = bytearray((GOOD + "tuning: {method: lora, rank: 8}\ntrain:\n  epochs: 3\n").encode())
        for _ in range(draw.randint(1, 3)):
            start = draw.randrange(len(text))
            text[start : start + draw.choice((0, 0, 1, 9))] = draw.choice(junk)
        try:
            load_recipe(write(bytes(text)))
        except RecipeError as error:
            num_refused += 1
            assert "my.yaml" in str(error)
    assert num_refused > 100


# The whole


def test_reading_a_recipe_imports_no_torch():
    heavy = "{'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    code = f"import sys; from hftoolkit.recipe import load_recipe, list_recipes; list_recipes(); print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_all_methods_are_reachable_by_name(write):
    classes = [type(load_recipe(write(GOOD), [f"tuning={{method: {tuning}}}"]).tuning) for tuning in TUNINGS]
    assert classes == [FullTuning, LoraTuning, LinearProbe, LastLayers]
