"""Adapters that are put on a model before anything else is done with it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.config.sections import Section, expand_user

STACK = "stack"
PRUNED = ("ties", "dare", "magnitude_prune")  # combinations that keep a share of the numbers


class AdapterEntry(Section):
    """One adapter. Short form: its path."""

    path: str = Field(min_length=1, description="A run, a checkpoint, a folder with an adapter, or a hub id.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    weight: float = Field(1.0, description="The update counts this many times; other than 1 for LoRA only.")

    @field_validator("path")
    @classmethod
    def _at_home(cls, value: str) -> str:
        return expand_user(value)

    @field_validator("weight")
    @classmethod
    def _counts(cls, value: float) -> float:
        if value == 0:
            raise ValueError("a weight of 0 leaves the adapter out: remove it from the list")
        return value


class CombineConfig(Section):
    """How several adapters become one. Short form: the name."""

    name: Literal[
        "stack",
        "cat",
        "linear",
        "svd",
        "ties",
        "ties_svd",
        "dare_linear",
        "dare_linear_svd",
        "dare_ties",
        "dare_ties_svd",
        "magnitude_prune",
        "magnitude_prune_svd",
    ] = Field(
        "stack",
        description="stack: one on top of the other, of any method. The others make one LoRA of several (peft: "
        "combination_type): cat is their exact weighted sum, at the sum of their ranks; svd the best of a smaller rank; "
        "linear adds the factors; ties (Yadav 2023), dare (Yu 2024) and magnitude_prune drop small or random numbers first.",
    )
    rank: int | None = Field(
        None, ge=1, description="Rank of the result, for the names with svd; unset: the largest one's (peft: svd_rank)."
    )
    density: float | None = Field(
        None, gt=0, le=1, description="Share of the numbers that ties, dare and magnitude_prune keep; unset: 0.5."
    )
    majority_sign_method: Literal["total", "frequency"] | None = Field(
        None, description="How ties elects a sign: by the sum, or by the number of votes; unset: total."
    )
    seed: int | None = Field(None, ge=0, description="Seed of what dare drops; unset: 0.")

    @model_validator(mode="after")
    def _only_what_acts(self) -> CombineConfig:
        acting = {
            "rank": self.name.endswith("svd"),
            "density": self.name.startswith(PRUNED),
            "majority_sign_method": "ties" in self.name,
            "seed": self.name.startswith("dare"),
        }
        idle = [key for key, acts in acting.items() if getattr(self, key) is not None and not acts]
        if idle:
            raise ValueError(f"{', '.join(idle)} has no effect with {self.name}: remove it")
        return self


def to_entries(value: Any) -> Any:
    """A list of paths or mappings, or one of them alone."""
    entries = [value] if isinstance(value, (str, dict)) else value
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries or []]
