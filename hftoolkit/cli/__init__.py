"""The command line."""

from hftoolkit.cli.entry import app, main

__all__ = ["app", "main"]
