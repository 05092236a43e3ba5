"""Draw the closing table of a run as docs/images/closing-table.svg, from what ``finetune`` printed.

hftoolkit finetune recipes/vision-lora.yaml | tee run.log
python scripts/docs_picture.py recipes/vision-lora.yaml run.log
"""

import io
import re
import sys
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "closing-table.svg"
# Without the fonts that rich would let a browser fetch.
SVG = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("Fira Code,", "")


def main(recipe: str, log: Path) -> None:
    """Draw the last message, the first table behind it and where the results are."""
    lines = log.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("reloaded "))
    table_end = next(number for number, line in enumerate(lines) if number > start and line.startswith("└"))
    ending = len(lines) - lines[::-1].index("")
    shown = [f"$ hftoolkit finetune {recipe}", "...", *lines[start : table_end + 1], "...", *lines[ending:]]
    width = max(map(len, shown))
    console = Console(record=True, width=width, file=io.StringIO(), color_system="truecolor")
    for line in shown:
        style = "bold green" if line.startswith("$") else "bold" if "fine-tuned" in line else ""
        console.print(Text(line, style), overflow="crop", no_wrap=True)
    PICTURE.parent.mkdir(exist_ok=True)
    console.save_svg(str(PICTURE), title="hftoolkit", code_format=SVG, unique_id="closing-table")
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
