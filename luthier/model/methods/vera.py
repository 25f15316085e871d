"""VeRA: one pair of frozen random matrices for all layers, scaled by learnt vectors (Kopiczko et al. 2024,
https://arxiv.org/abs/2310.11454), by peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.config.sections import MethodOptions
from luthier.model.method import Apply
from luthier.model.methods._peft_adapter import PeftMethod
from luthier.model.methods._targets import ALL_LINEAR, TargetModules, check_targets, has_conv1d

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Options(MethodOptions):
    """VeRA's settings, as in peft's VeraConfig."""

    name: str = "vera"
    rank: int = Field(256, ge=1, description="Rank of the shared random matrices (peft: r).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input (peft: vera_dropout).")
    d_initial: float = Field(0.1, description="Where the vector between the two matrices starts.")
    projection_seed: int = Field(0, ge=0, description="Seed of the random matrices (peft: projection_prng_key).")
    save_projection: bool = Field(
        True, description="Save the random matrices too: larger, and safe against another torch that draws others."
    )
    target_modules: TargetModules = Field(
        ALL_LINEAR,
        description="Modules that get an update: all-linear (the head excepted), names, or a regular expression.",
    )

    recommended_learning_rate: ClassVar[float] = 4e-3  # the paper tunes language models with 1e-3 to 2e-2
    in_adapter: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "d_initial": "d_initial",
        "projection_seed": "projection_prng_key",
        "save_projection": "save_projection",
        "target_modules": "target_modules",
    }
    of_the_run: ClassVar[frozenset[str]] = frozenset({"dropout"})


class Vera(PeftMethod):
    """Trains two vectors a layer; saved in peft's format."""

    run_settings: ClassVar[tuple[str, ...]] = ("vera_dropout",)

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's VeraConfig for these options."""
        from peft import VeraConfig

        own = self.options
        check_targets(model, own.target_modules, [], embeddings=False)
        return VeraConfig(
            task_type="CAUSAL_LM",
            r=own.rank,
            vera_dropout=own.dropout,
            d_initial=own.d_initial,
            projection_prng_key=own.projection_seed,
            save_projection=own.save_projection,
            target_modules=own.target_modules,
            fan_in_fan_out=has_conv1d(model),
        )


def build(options: Options) -> Vera:
    """The method for these options."""
    return Vera(options)
