"""Which model made a field, and how: what its file says, and whether two fields compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aef.timecode import Period


@dataclass(frozen=True)
class MadeBy:
    """What a field was made by, which travels in its file's tags: fields of different makers do not compare.

    Attributes:
        version: preset and step of the model.
        weights: SHA-256 of its weights.
        left_out: input sources that were ignored.
        inpainted: pixels that were never observed have a vector too.
    """

    version: str
    weights: str = ""
    left_out: tuple[str, ...] = ()
    inpainted: bool = False

    @property
    def tags(self) -> dict[str, str]:
        """As they stand in a field's file; what is empty is left out."""
        every = {
            "model_version": self.version,
            "model_weights": self.weights,
            "left_out": ", ".join(self.left_out),
            "unobserved": "inpainted" if self.inpainted else "",
        }
        return {name: value for name, value in every.items() if value}

    def other_model(self, tags: Mapping[str, str]) -> str | None:
        """Both models in words if a field's tags tell of another one, else None."""
        if all(tags.get(name) == self.tags.get(name) for name in ("model_version", "model_weights")):
            return None
        return f"expected model {_model_in_words(self.tags)}, found {_model_in_words(tags)}"

    def difference(self, tags: Mapping[str, str], support: Period | None = None) -> str | None:
        """What a field's tags tell of another maker, or of another support than the one that is given; None if nothing."""
        if (model := self.other_model(tags)) is not None:
            return model
        wanted, found = (given.get("left_out") for given in (self.tags, tags))
        if wanted != found:
            return f"expected {wanted or 'no source'} left out, found {found or 'none'}"
        wanted, found = (given.get("unobserved", "no data") for given in (self.tags, tags))
        if wanted != found:
            return f"expected unobserved pixels to be {wanted}, found {found}"
        if support is not None and tags.get("support") != str(support):
            return f"expected the support {support}, found {tags.get('support', 'none stated')}"
        return None


def _model_in_words(tags: Mapping[str, str]) -> str:
    weights = tags.get("model_weights")
    return f"{tags.get('model_version', 'unknown')} (weights {weights[:12] if weights else 'not stated'})"
