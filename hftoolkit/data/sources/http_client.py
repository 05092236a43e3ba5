"""The HTTP library that huggingface_hub talks with, whose errors come through it."""

import importlib
from types import ModuleType


def http_client() -> ModuleType:
    """Return the HTTP library of the installed huggingface_hub: httpx below its version 2, httpx2 from there on."""
    from huggingface_hub.errors import HfHubHTTPError

    return importlib.import_module(HfHubHTTPError.__bases__[0].__module__)
