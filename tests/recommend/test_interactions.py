"""The log of interactions: what is read, counted and refused, and what each protocol holds out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doubles.recommend_tables import write_csv
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.recipe import RecommendationData
from hftoolkit.recommend.protocols import RecommendationSplits, load_recommendation_splits

ITEMS = [(f"i{place}", f"title {place}") for place in range(12)]
Load = Callable[..., RecommendationSplits]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a log of (user, item, time) rows and return its splits."""

    def read(
        rows: list[tuple[Any, ...]],
        header: tuple[str, ...] = ("user_id", "item_id", "time"),
        items: list[tuple[Any, ...]] = ITEMS,
        users_file: Path | None = None,
        **sections: Any,
    ) -> RecommendationSplits:
        log = write_csv(tmp_path / "log.csv", header, rows)
        catalogue = write_csv(tmp_path / "items.csv", ("item_id", "title"), items)
        columns = {"timestamp": "time", **sections.pop("columns", {})}
        data = RecommendationData.model_validate(
            {
                "interactions": {"source": "log.csv", "columns": columns, **sections.pop("interactions", {})},
                "items": {"source": "items.csv", "columns": "title"},
                **sections,
            }
        )
        return load_recommendation_splits(log, catalogue, users_file, data)

    return read


def world(num_users: int = 10, num_items: int = 12, each: int = 8, seed: int = 0) -> list[tuple[str, str, int]]:
    generator = np.random.default_rng(seed)
    rows = [
        (f"u{user}", f"i{item}", int(generator.integers(0, 1000)))
        for user in range(num_users)
        for item in generator.permutation(num_items)[:each]
    ]
    return [rows[place] for place in generator.permutation(len(rows))]


def chosen(splits: RecommendationSplits, part: str) -> dict[str, list[str]]:
    """Return the ids of the items of each user: train, or the histories or targets of a split."""
    ids = splits.catalogue.ids
    if part == "train":
        users, histories = splits.train_users, splits.train
    else:
        split, which = part.split("/")
        users, histories = splits.cases[split].users, getattr(splits.cases[split], which)
    lists = np.split(histories.items, histories.offsets[1:-1])
    return {splits.user_ids[user]: [ids[item] for item in items] for user, items in zip(users, lists, strict=True)}


def test_leave_one_out_holds_back_the_last_two_of_each_user_and_ties_follow_the_file(load: Load) -> None:
    rows = [("a", "i3", 5), ("b", "i1", 1), ("a", "i1", 5), ("a", "i2", 1), ("b", "i2", 2), ("a", "i0", 5)]
    splits = load(rows)
    assert chosen(splits, "train") == {"a": ["i2", "i3"], "b": ["i1", "i2"]}
    assert chosen(splits, "validation/histories") == {"a": ["i2", "i3"]}
    assert chosen(splits, "validation/targets") == {"a": ["i1"]}
    assert chosen(splits, "test/histories") == {"a": ["i2", "i3", "i1"]}
    assert chosen(splits, "test/targets") == {"a": ["i0"]}
    assert splits.summary["ties"] == {"interactions": pytest.approx(2 / 6), "last": 0.5}
    assert splits.summary["users_with_too_few_to_test"] == 1
    assert any("1 of 2 users have fewer than 3 interactions" in each for each in splits.summary["warnings"])


def test_a_time_split_trains_on_what_was_before_and_folds_in_all_that_precedes_a_target(load: Load) -> None:
    rows = world(num_users=30)
    splits = load(rows, split={"protocol": "time", "validation": 0.1, "test": 0.2})
    cuts = np.quantile([time for *_, time in rows], [0.7, 0.8])
    before: dict[str, list[tuple[int, int, str]]] = {}
    for place, (user, item, time) in enumerate(rows):
        before.setdefault(user, []).append((time, place, item))
    train = {user: [item for time, _, item in sorted(found) if time < cuts[0]] for user, found in before.items()}
    assert chosen(splits, "train") == {user: items for user, items in sorted_by(splits, train) if items}
    histories, targets = {}, {}
    for user, found in before.items():
        ordered = sorted(found)
        if ordered[-1][0] >= cuts[1] and len(ordered) > 1:
            histories[user], targets[user] = [item for *_, item in ordered[:-1]], [ordered[-1][2]]
    assert chosen(splits, "test/histories") == histories
    assert chosen(splits, "test/targets") == targets
    validation = chosen(splits, "validation/histories")
    for user, items in validation.items():
        inside = [(time, item) for time, _, item in sorted(before[user]) if time < cuts[1]]
        assert inside[-1][0] >= cuts[0]
        assert items == [item for _, item in inside[:-1]]
    assert validation


def sorted_by(splits: RecommendationSplits, found: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(user, found[user]) for user in splits.user_ids if user in found]


def test_users_that_training_never_saw_are_marked(load: Load) -> None:
    old = [(f"u{user}", f"i{item}", item) for user in range(8) for item in range(8)]
    late = [("new", "i1", 100), ("new", "i2", 101), ("new", "i3", 102)]
    splits = load(old + late, split={"protocol": "time", "validation": 0.05, "test": 0.04})
    cases = splits.cases["test"]
    assert {splits.user_ids[user]: bool(unseen) for user, unseen in zip(cases.users, cases.unseen, strict=True)} == {
        "new": True
    }


def test_a_random_split_takes_its_share_of_each_user_and_depends_on_its_seed_alone(load: Load) -> None:
    rows = world(each=10)
    first, again, other = (load(rows, split={"protocol": "random", "seed": seed}) for seed in (0, 0, 1))
    assert {user: len(items) for user, items in chosen(first, "test/targets").items()} == dict.fromkeys(
        first.user_ids, 1
    )
    for user, targets in chosen(first, "test/targets").items():
        held = {*targets, *chosen(first, "validation/targets")[user]}
        assert held.isdisjoint(chosen(first, "train")[user])
        assert len(held) + len(chosen(first, "train")[user]) == 10
        assert sorted([*chosen(first, "test/histories")[user], *targets]) == sorted(
            item for who, item, _ in rows if who == user
        )
    assert first.summary["fingerprint"] == again.summary["fingerprint"] != other.summary["fingerprint"]


def test_random_shares_are_rounded_down_but_nobody_is_left_without_a_target(load: Load) -> None:
    items = [(f"i{place}", f"title {place}") for place in range(30)]
    rows = [("long", f"i{place}", place) for place in range(29)] + [("short", f"i{place}", place) for place in range(4)]
    splits = load(rows, items=items, split={"protocol": "random"})
    for name in ("validation", "test"):
        targets = chosen(splits, f"{name}/targets")
        assert {user: len(found) for user, found in targets.items()} == {"long": 2, "short": 1}


def test_cold_items_are_in_no_training_row_and_are_the_only_candidates(load: Load) -> None:
    splits = load(world(), split={"protocol": "cold-items", "validation": 0.25, "test": 0.25})
    hidden = {
        name: {splits.catalogue.ids[i] for i in np.flatnonzero(case.candidates)} for name, case in splits.cases.items()
    }
    assert {name: len(items) for name, items in hidden.items()} == {"validation": 3, "test": 3}
    drawn = np.random.default_rng(0).choice(12, 3, replace=False)  # which anybody can repeat
    assert hidden["test"] == {splits.catalogue.ids[i] for i in drawn}
    assert hidden["validation"].isdisjoint(hidden["test"])
    trained = {item for items in chosen(splits, "train").values() for item in items}
    assert trained.isdisjoint(hidden["validation"] | hidden["test"])
    for name, items in hidden.items():
        assert {item for found in chosen(splits, f"{name}/targets").values() for item in found} <= items
        assert items.isdisjoint(item for found in chosen(splits, f"{name}/histories").values() for item in found)


def test_the_fingerprint_changes_with_the_log_and_the_texts(load: Load) -> None:
    rows = world()
    prints = {
        load(rows).summary["fingerprint"],
        load(rows[1:]).summary["fingerprint"],
        load(rows, items=[*ITEMS[:-1], ("i11", "another title")]).summary["fingerprint"],
        load([(who, what, -time) for who, what, time in rows]).summary["fingerprint"],
    }
    assert len(prints) == 4


def test_the_fingerprint_changes_with_the_weights(load: Load) -> None:
    def fingerprint(weight: float) -> str:
        rows = [(*row, weight if place == 0 else 1) for place, row in enumerate(world())]
        splits = load(rows, header=("user_id", "item_id", "time", "weight"), columns={"weight": "weight"})
        return str(splits.summary["fingerprint"])

    assert fingerprint(2) == fingerprint(2) != fingerprint(1) == load(world()).summary["fingerprint"]


def test_the_fingerprint_changes_with_the_groups_of_a_user(load: Load, tmp_path: Path) -> None:
    def fingerprint(age_of_u0: int) -> str:
        users = [(f"u{user}", 20 + user if user else age_of_u0) for user in range(10)]
        table = write_csv(tmp_path / "users.csv", ("user_id", "age"), users)
        return str(load(world(), users_file=table, users={"source": "x", "numbers": ["age"]}).summary["fingerprint"])

    assert fingerprint(20) == fingerprint(20) != fingerprint(90)


def test_the_fingerprint_changes_with_the_attributes_of_an_item(load: Load, tmp_path: Path) -> None:
    def fingerprint(genre_of_i0: str, section: dict[str, Any]) -> str:
        log = write_csv(tmp_path / "log.csv", ("user_id", "item_id"), [("a", f"i{item}") for item in range(10)])
        rows = [(f"i{item}", "title", "war" if item else genre_of_i0) for item in range(10)]
        items = write_csv(tmp_path / "items.csv", ("item_id", "title", "genre"), rows)
        section = {"source": "x", "columns": "title", **section}
        data = RecommendationData.model_validate({"interactions": {"source": "x"}, "items": section})
        return str(load_recommendation_splits(log, items, None, data).summary["fingerprint"])

    read = {"categories": ["genre"]}
    assert fingerprint("war", read) == fingerprint("war", read) != fingerprint("love", read)
    assert fingerprint("war", {}) == fingerprint("love", {})


def test_the_latest_of_repeats_stays_and_they_are_counted(load: Load) -> None:
    rows = [("a", "i0", 1), ("a", "i1", 2), ("a", "i0", 3), ("a", "i2", 4), ("a", "i3", 5), ("a", "i4", 6)]
    splits = load(rows)
    assert chosen(splits, "train") == {"a": ["i1", "i0", "i2"]}
    assert splits.summary["repeats"] == 1
    assert any("1 rows repeat an item" in each for each in splits.summary["warnings"])


BAD = [("", "i1", 1), ("a", "", 1), ("a", "other", 1), ("a", "i5", ""), ("b", "i5", "soon"), ("torn",)]


def test_rows_that_cannot_be_used_stop_the_run_with_all_reasons_or_are_counted(load: Load) -> None:
    rows = [*world(), *BAD]
    with pytest.raises(DataError) as refused:
        load(rows)
    for part in (
        "6 of 86 rows",
        "row cannot be read: 1 (row 86)",
        "user is missing: 1 (row 81)",
        "not in the catalogue: 1 (row 83)",
        "(rows 84, 85)",
    ):
        assert part in str(refused.value)
    splits = load(rows, on_bad_rows="skip")
    assert splits.summary["skipped"] == {
        "row cannot be read": 1,
        "user is missing": 1,
        "item is missing": 1,
        "item is not in the catalogue": 1,
        "timestamp is missing or no time": 2,
    }
    assert splits.summary["interactions"] == 80
    assert any(each.startswith("6 rows are left out") for each in splits.summary["warnings"])


def test_the_knob_of_a_log_is_named_as_the_recipe_calls_it(load: Load) -> None:
    with pytest.raises(DataError, match=r"set data\.interactions\.format\.names: \[NAME, NAME, NAME\]"):
        load([("a", "i0", 1)], header=("b", "i1", "2"), columns={"user": "who", "item": "what", "timestamp": "when"})


def test_small_values_are_left_out_and_weights_are_read(load: Load) -> None:
    rows = [("a", f"i{place}", place, 5 - place % 2, 1 + place) for place in range(10)]
    header = ("user_id", "item_id", "time", "stars", "hours")
    options = {"columns": {"value": "stars", "weight": "hours"}, "interactions": {"minimum_value": 5}}
    splits = load(rows, header, **options)
    assert splits.summary["below_minimum_value"] == 5
    assert chosen(splits, "train") == {"a": ["i0", "i2", "i4"]}
    assert splits.train.weights.tolist() == [1, 3, 5]
    with pytest.raises(DataError, match="weight is missing or not over 0: 1"):
        load([*rows, ("b", "i1", 1, 5, 0)], header, **options)


def test_dates_and_numbers_order_alike(load: Load) -> None:
    dates = ["2024-01-02", "2024-01-01T23:00:00", "2023-12-31 10:00:00+00:00", "2024-03-01"]
    splits = load([("a", f"i{place}", time) for place, time in enumerate(dates)])
    assert chosen(splits, "test/histories") == {"a": ["i2", "i1", "i0"]}


def test_without_timestamps_the_file_gives_the_order_and_time_splits_are_refused(load: Load) -> None:
    rows = [("a", f"i{place}", 9 - place) for place in range(4)]
    splits = load(rows, columns={"timestamp": None})
    assert chosen(splits, "test/targets") == {"a": ["i3"]}
    with pytest.raises(ValueError, match=r"needs interactions\.columns\.timestamp"):
        load(rows, columns={"timestamp": None}, split={"protocol": "time"})


def test_reviews_without_users_are_refused_with_what_is_missing(load: Load) -> None:
    with pytest.raises(DataError, match=r"'user_id'.*it has: 'Clothing ID', 'item_id'.*who chose what"):
        load([("767", "i1", 1)], header=("Clothing ID", "item_id", "time"))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([*ITEMS, ("i1", "again")], "1 rows of items.csv repeat a item_id"),
        ([*ITEMS, ("", "nameless")], "1 rows of items.csv have no item_id"),
        ([*ITEMS, ("i99", " ")], "1 items of items.csv have no text"),
    ],
)
def test_a_catalogue_needs_ids_that_differ_and_texts(load: Load, items: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(world(), items=items)


def test_too_few_interactions_for_a_protocol_are_refused(load: Load) -> None:
    with pytest.raises(DataError, match="leaves nobody for validation"):
        load([("a", "i0", 1), ("b", "i1", 2)])


def test_groups_of_users_come_from_categories_and_fifths_of_numbers(load: Load, tmp_path: Path) -> None:
    users = [(f"u{user}", "xy"[user % 2], 20 + user) for user in range(9)]  # u9 is not in it
    table = write_csv(tmp_path / "users.csv", ("user_id", "country", "age"), users)
    section = {"source": "users.csv", "categories": ["country"], "numbers": ["age"]}
    splits = load(world(), users_file=table, users=section)
    of = dict(zip(splits.user_ids, splits.groups, strict=True))
    assert splits.groups.shape == (10, 7)
    assert of["u9"].tolist() == [0] * 7
    assert of["u0"].tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert of["u1"].tolist() == [0, 1, 1, 0, 0, 0, 0]
    assert of["u8"].tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert splits.summary["users_without_row"] == 1


def test_attributes_of_items_are_flags_categories_and_fifths_of_numbers_or_dates(load: Load, tmp_path: Path) -> None:
    made = [f"{1 + item:02}-Jan-{1950 + item}" for item in range(8)] + ["1958-03-01", ""]
    rows = [(f"i{item}", f"title {item}", item % 2, "xy"[item // 5], made[item]) for item in range(10)]
    header = ("item_id", "title", "war", "studio", "made")
    section = {
        "source": "x",
        "columns": "title",
        "flags": {"genre": ["war"]},
        "categories": ["studio"],
        "numbers": ["made"],
    }
    log = write_csv(tmp_path / "log.csv", ("user_id", "item_id"), [("a", f"i{item}") for item in range(10)])
    data = RecommendationData.model_validate({"interactions": {"source": "x"}, "items": section})
    found = load_recommendation_splits(log, write_csv(tmp_path / "items.csv", header, rows), None, data).attributes
    assert found.shape == (10, 1 + 2 + 5)
    assert found[:, 0].tolist() == [0, 1] * 5
    assert found[:, 1].tolist() == [1] * 5 + [0] * 5 and found[:, 2].tolist() == [0] * 5 + [1] * 5
    assert found[:9, 3:].sum(axis=1).tolist() == [1] * 9 and not found[9, 3:].any()
    assert found[0, 3] and found[8, 7] and (np.diff(found[:9, 3:].argmax(axis=1)) >= 0).all()
    rows = [(*row[:4], "soon") for row in rows]
    with pytest.raises(DataError, match="no value of made is a number or a date"):
        load_recommendation_splits(log, write_csv(tmp_path / "items.csv", header, rows), None, data)


def test_flags_and_a_template_make_one_text(load: Load, tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", ("user_id", "item_id"), [("a", "1"), ("a", "2"), ("a", "3.0")])
    items = write_csv(
        tmp_path / "items.csv",
        ("id", "title", "year", "War", "Western"),
        [("1", "Ran", 1985, 1, 0), ("2", "Shane", "", 0, 1), ("3", "Both", 1990, 1, 1)],
    )
    section = {
        "source": "x",
        "id": "id",
        "columns": ["title", "year"],
        "flags": {"genres": ["War", "Western"]},
        "template": "{title} ({year}): {genres}",
    }
    data = RecommendationData.model_validate({"interactions": {"source": "x"}, "items": section})
    splits = load_recommendation_splits(log, items, None, data)
    assert splits.catalogue.texts == ("Ran (1985): War", "Shane (): Western", "Both (1990): War, Western")
    assert splits.catalogue.titles == ("Ran", "Shane", "Both")
    wrong = RecommendationData.model_validate(
        {"interactions": {"source": "x"}, "items": section | {"template": "{tilte}"}}
    )
    with pytest.raises(RecipeError, match=r"data.items.template has \{tilte\}"):
        load_recommendation_splits(log, items, None, wrong)
    write_csv(items, ("id", "title", "year", "War", "Western"), [("1", "Ran", 1985, 2, 0)])
    with pytest.raises(DataError, match="row 1: War is '2'"):
        load_recommendation_splits(log, items, None, data)
