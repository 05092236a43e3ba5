"""The command line."""

from hftoolkit.cli.main import app, main

__all__ = ["app", "main"]
