"""What a student may look like: every knob is named here, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Choose = Callable[[str, Sequence[Any]], Any]  # a knob's name and its values -> one of them


@dataclass(frozen=True, slots=True)
class Candidate:
    """A student's shape, as a part of its teacher's."""

    layers: tuple[int, ...]  # of the teacher, counted from 0
    heads: int  # of every layer, the most important first
    ffn: int  # feed-forward width, the most important neurons first


class Space(BaseModel):
    """The values of each knob; widths are cut from the teacher's, by importance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[tuple[int, ...], ...] = Field(min_length=1)
    heads: tuple[int, ...] = Field(min_length=1)
    ffn: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _makes_sense(self) -> Space:
        for layers in self.layers:
            if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
                raise ValueError(f"layers {list(layers)}: name each once, from 0, in order")
        for name, widths in (("heads", self.heads), ("ffn", self.ffn)):
            if min(widths) < 1:
                raise ValueError(f"{name} {min(widths)}: at least 1")
        return self

    @property
    def smallest(self) -> Candidate:
        """Return the cheapest candidate: what all others contain."""
        return Candidate(min(self.layers, key=len), min(self.heads), min(self.ffn))

    @property
    def largest(self) -> Candidate:
        return Candidate(max(self.layers, key=len), max(self.heads), max(self.ffn))

    def candidate(self, choose: Choose) -> Candidate:
        """Return the candidate that `choose` makes, one knob after the other."""
        # As text: what an optimizer can take for a category.
        subsets = {",".join(map(str, layers)): layers for layers in self.layers}
        return Candidate(
            layers=subsets[choose("layers", tuple(subsets))],
            heads=choose("heads", self.heads),
            ffn=choose("ffn", self.ffn),
        )
