"""The command line, run in this process, and how it ends."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from hftoolkit.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def hft(*arguments: object, stdin: bytes = b"") -> Ended:
    """Run the command line in this process, which spares the seconds that importing torch takes."""
    out, err = io.StringIO(), io.StringIO()
    argv, lines = ["hftoolkit", *map(str, arguments)], io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    with mock.patch.object(sys, "argv", argv), mock.patch.object(sys, "stdin", lines):
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code or 0
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())


def refused(ended: Ended, code: int, *fragments: str) -> None:
    """Assert a clean refusal: the exit code, one message on stderr that holds the fragments, and no traceback."""
    assert ended.code == code, ended
    assert ended.err.startswith("error: ") and "Traceback" not in ended.err
    for fragment in fragments:
        assert fragment in ended.err


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
