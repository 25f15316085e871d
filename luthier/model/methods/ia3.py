"""IA3: keys, values and the feed-forward's inner activations are scaled by learnt vectors (Liu et al. 2022,
https://arxiv.org/abs/2205.05638), by peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.model.method import Apply
from luthier.model.methods._peft_adapter import PeftMethod
from luthier.model.methods._targets import FEED_FORWARD_OUT, KEY_VALUE, check_targets, has_conv1d, present

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Options(MethodOptions):
    """IA3's settings, as in peft's IA3Config."""

    name: str = "ia3"
    target_modules: list[str] = Field(
        default_factory=list,
        description="Linear modules whose output is scaled; empty: the family's projections of keys and values.",
    )
    feedforward_modules: list[str] = Field(
        default_factory=list,
        description="Linear modules whose input is scaled; empty: the family's last projection of the feed-forward block.",
    )

    recommended_learning_rate: ClassVar[float] = 3e-3  # as in the paper

    @classmethod
    def of_adapter(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """peft lists the modules that are scaled at their input among the others."""
        targets, inner = settings.get("target_modules"), settings.get("feedforward_modules")
        if not isinstance(targets, list) or not isinstance(inner, list):
            return {}
        return {"target_modules": sorted(set(targets) - set(inner)), "feedforward_modules": sorted(inner)}


class IA3(PeftMethod):
    """Trains scaling vectors, which start at one; saved in peft's format."""

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's IA3Config with the family's own modules.

        Raises:
            ModelError: names that match nothing, or one that is scaled at both ends.
        """
        from peft import IA3Config

        scaled = self.options.target_modules or present(model, KEY_VALUE, "projections of keys and values")
        inner = self.options.feedforward_modules or present(model, FEED_FORWARD_OUT, "feed-forward's last projections")
        check_targets(model, [*scaled, *inner], [], embeddings=False)
        if both := sorted(set(scaled) & set(inner)):
            raise ModelError(
                f"method.target_modules and method.feedforward_modules both name {', '.join(both)}.",
                "A module is scaled at its output or at its input: name it once.",
            )
        return IA3Config(
            task_type="CAUSAL_LM",
            target_modules=[*scaled, *inner],
            feedforward_modules=inner,
            fan_in_fan_out=has_conv1d(model),
        )


def build(options: Options) -> IA3:
    """The method for these options."""
    return IA3(options)
