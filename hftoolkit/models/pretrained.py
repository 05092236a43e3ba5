"""The weights that a model starts from: those that a recipe names, or those of a finished run."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hftoolkit.data.sources.resolve import Resolved, describe, resolve_model
from hftoolkit.recipe import Model


@dataclass(frozen=True)
class Weights:
    """Fetched when they are first asked for, so that mistakes in the data are found before.

    Attributes:
        section: of the recipe.
        saved: folder of a finished model, whose weights are taken instead.
    """

    section: Model
    saved: Path | None = field(default=None, kw_only=True)

    @cached_property
    def resolved(self) -> Resolved | None:
        """Where the pretrained weights came from; None for training from scratch."""
        if self.section.from_scratch:
            return None
        return resolve_model(self.section.address, sha256=self.section.sha256)

    @property
    def path(self) -> Path | None:
        """The file or folder with the weights; None for training from scratch."""
        if self.saved is not None:
            return self.saved
        return self.resolved.path if self.resolved else None

    @property
    def origin(self) -> dict[str, str | None]:
        """What identifies the pretrained weights."""
        return {"revision": self.resolved.revision if self.resolved else None}

    @property
    def hub_id(self) -> str | None:
        """The Hub id that the recipe states for the pretrained weights, or the one they came by, if there is any."""
        if self.section.hub_id:
            return self.section.hub_id
        found = self.resolved
        return found.address.partition("@")[0] if found is not None and found.kind == "hub" else None

    def describe(self) -> str:
        """Return in words where the pretrained weights came from."""
        return describe(self.resolved) if self.resolved else f"{self.section.address}, from scratch"
