"""Names from data, which may hold anything, as terminals, cards and pictures show them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from doubles.commands import hft, read_json
from hftoolkit.contracts.names import code_block, code_span, listed, markdown, short, short_names, visible
from hftoolkit.data.labels import LabelSet
from hftoolkit.export.gate import _adapter_readme
from hftoolkit.hub.card import licence

HOSTILE = "\x1b]0;owned\x07<img src=x>\n# Injected\n---\n| `a` | [x](http://e.vil) $x$ \u202e \x9b2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u72ac na\u00efve \U0001f468\u200d\U0001f469", None),
        ("\x1b[2J\x07\r\n\t\x7f\x9b", r"\x1b[2J\x07\r\n\t\x7f\x9b"),
        ("a\u202eb\u200b\u2028\ud800", r"a\u202eb\u200b\u2028\ud800"),
    ],
)
def test_what_a_terminal_obeys_is_written_out(text: str, shown: str | None) -> None:
    assert visible(text) == (text if shown is None else shown)


def test_line_ends_may_be_kept() -> None:
    assert visible("a\n\tb\x1b\r", lines=True) == "a\n\tb\\x1b\\r"


def test_long_names_keep_beginning_and_end_and_differ() -> None:
    assert short("x" * 48) == "x" * 48
    assert short("a" * 40 + "b" * 40, 11) == "aaaa...bbbb"
    assert short_names(["a" * 99, "b", "a" * 98 + "a"], 5) == ["a...a #0", "b", "a...a #2"]


def test_of_many_names_the_first_are_listed() -> None:
    names = [f"c{index}" for index in range(60)]
    assert listed(names[:3]) == "c0, c1, c2" and listed(names).endswith("c9 and 50 more")
    assert len(LabelSet.from_names(names, False).describe()) < 100


def test_markdown_of_a_name_is_one_line_without_tags_links_or_emphasis() -> None:
    said = markdown(HOSTILE)
    assert "\n" not in said and "<" not in said and "\x1b" not in said and "://" not in said
    assert markdown("a*b_c_ __d <b> `e` [f](g) $h$ #1 | ~x~ \\") == (
        r"a\*b_c\_ \_\_d &lt;b&gt; \`e\` \[f\](g) \$h\$ \#1 \| \~x\~ " + "\\\\"
    )
    assert markdown("Tomato___Late_blight") == "Tomato___Late_blight"
    assert licence("mit\n# Injected") == r", licence: mit\\n\# Injected"


def test_nothing_in_code_ends_it() -> None:
    assert code_span("a`b") == "``a`b``" and code_span("`") == "`` ` ``"
    assert code_block("```\n# Injected", "yaml") == "````yaml\n```\n# Injected\n````"


def test_the_card_of_an_adapter_holds_names_as_text() -> None:
    assert "# Injected" not in _adapter_readme("a/b", [HOSTILE, "b"], "AutoModel").splitlines()


def renamed(run: Path, folder: Path, names: dict[str, str]) -> Path:
    """Return a copy of a run whose classes have other names, and which was not measured yet."""
    shutil.copytree(run, folder)
    (folder / "model.sha256").unlink()  # of the model that is changed here
    for path in (folder / "labels.json", folder / "model" / "config.json"):
        content = read_json(path)
        if "values" in content:
            content |= {"names": [names[name] for name in content["names"]]}
            content["values"] = {value: names[name] for value, name in content["values"].items()}
        else:
            content["id2label"] = {place: names[name] for place, name in content["id2label"].items()}
            content["label2id"] = {name: int(place) for place, name in content["id2label"].items()}
        path.write_text(json.dumps(content))
    results = read_json(folder / "results.json")
    del results["test"]
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_hostile_class_names_stay_names(tiny_run: Path, tmp_path: Path) -> None:
    run = renamed(tiny_run, tmp_path / "run", {"bad": HOSTILE, "fine": "$", "good": "\u72ac" * 60})
    ended = hft("report", run)
    assert ended.code == 0, ended
    log = (run / "train.log").read_text(encoding="utf-8")
    for shown in (ended.out, log[-3000:]):
        assert r"\x1b]0;owned" in shown and not {"\x1b", "\x9b", "\u202e"} & set(shown)
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    lines = card.splitlines()
    assert "# Injected" not in lines and lines.count("---") == 2 and "<img" not in card and "\x1b" not in card
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "text-classification"
    table = (run / "predictions" / "test.csv").read_text(encoding="utf-8")
    assert "\x1b]0;owned\x07" in table  # data are what they were


def test_a_class_without_test_rows_is_said_to_be_unmeasured(tiny_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run = renamed(tiny_run, tmp_path / "run", {name: name for name in ("bad", "fine", "good")})
    honest = LabelSet.from_json
    four = lambda stored: honest(stored | {"names": [*stored["names"], "rare"]})  # noqa: E731
    monkeypatch.setattr(LabelSet, "from_json", staticmethod(four))
    monkeypatch.setattr(LabelSet, "check_names", lambda *_: None)
    monkeypatch.setattr("hftoolkit.commands.predict.Predictor.outputs", lambda self, rows: [[0, 1, 0, 2.0]] * len(rows))
    ended = hft("report", run)
    assert ended.code == 0, ended
    assert "not measured (no rows): rare" in ended.out and ended.out.count("not measured") == 4
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert card.count("Not measured, because no test rows have it: rare.") == 2
    assert "Weakest class: bad" in card and read_json(run / "results.json")["test"]["unmeasured"] == ["rare"]
