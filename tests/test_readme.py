"""What README and docs/how-to/own-data.md tell a newcomer to type, typed, with the real weights."""

import csv
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from doubles.paths import ROOT
from hftoolkit import cli


def hftoolkit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hftoolkit", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_own_data_in_five_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = random.Random(0)
    words = {1: ("awful", "itchy", "thin"), 2: ("poor", "faded", "tight"), 3: ("lovely", "soft", "great")}
    with Path("reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("comment", "stars"))
        for index in range(480):
            stars = generator.choice((1, 2, 3, 3))
            writer.writerow((f"This dress is {generator.choice(words[stars])}, number {index}.", stars))
    assert hftoolkit(monkeypatch, "recipes", "copy", "sentiment", "mine.yaml") == 0
    text = Path("mine.yaml").read_text()
    text = re.sub(r"source: .*\n  sha256: .*\n", "source: ./reviews.csv\n", text, count=1)
    text = re.sub(r"columns: .*", "columns: {text: comment, label: stars}", text)
    text = re.sub(r"labels: .*", "labels: {1: bad, 2: bad, 3: good}", text)
    Path("mine.yaml").write_text(text)
    assert hftoolkit(monkeypatch, "finetune", "mine.yaml", "--dry-run") == 0
    assert not Path("runs").exists()
    assert hftoolkit(monkeypatch, "finetune", "mine.yaml") == 0

    import hftoolkit as package

    bad, good = package.load("runs/mine").predict(["This dress is itchy.", "This dress is lovely."])
    assert (bad.label, good.label) == ("bad", "good")


def test_the_shell_scripts_are_valid() -> None:
    scripts = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]
    assert len(scripts) == 12
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_every_file_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("## Where things are") :]
    names = re.findall(r"^ +([\w./]+?)/? {2,}", tree, flags=re.MULTILINE)
    assert len(names) > 20
    missing = [name for name in names if not (ROOT / name).exists() and not (ROOT / "hftoolkit" / name).exists()]
    assert not missing


def test_every_command_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"^ +hftoolkit (\w+)", readme, flags=re.MULTILINE))
    assert commands >= {"finetune", "predict", "evaluate", "recipes"}
    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    known |= {group.name for group in cli.app.registered_groups}
    assert commands <= known
