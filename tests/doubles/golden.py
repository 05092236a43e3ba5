"""Golden texts: what users read, word for word, in files that people review. ``pytest --update-golden`` writes them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ADVICE = "read the difference; if it is what users should read, run pytest with --update-golden, and commit the file"


@dataclass(frozen=True)
class Golden:
    """Compares texts with files, or with ``update`` writes the files."""

    update: bool

    def compare(self, path: Path, text: str) -> None:
        """Assert that a file holds a text."""
        if self.update:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text, ADVICE

    def compare_blocks(self, page: Path, texts: Mapping[str, str]) -> None:
        """Assert that a page in Markdown holds these texts, each indented under ``<!-- message: NAME -->``."""
        old = new = page.read_text(encoding="utf-8")
        named = re.findall(r"<!-- message: (.*?) -->", old)
        assert sorted(named) == sorted(texts), "the page has a place for each message, and a message for each place"
        for name, text in texts.items():
            block = "".join(f"    {line}".rstrip() + "\n" for line in text.splitlines())
            place = rf"(<!-- message: {re.escape(name)} -->\n\n)(?: {{4}}.*\n)*"
            new = re.sub(place, lambda found, block=block: found[1] + block, new)  # type: ignore[misc]
        self.compare(page, new)
