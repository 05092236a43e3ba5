"""Tables and images: read, checked, divided into splits, summed up.

``fit``, by which images are brought to the size of a model, is what scripts compare with other libraries.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return ``fit``; it needs Pillow, which not everything here does."""
    if name == "fit":
        from hftoolkit.data.image.cache import fit

        return fit
    raise AttributeError(f"module {__name__} has no attribute {name}")
