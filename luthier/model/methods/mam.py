"""Mix-and-match adapter: a short prefix for attention, and a scaled bottleneck beside every feed-forward block (He et al.
2022, https://arxiv.org/abs/2110.04366, section 4.6).

Saved like `adapter`, in luthier's own format.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.model.methods import adapter
from luthier.model.methods._combination import Combination, CombinedOptions
from luthier.model.methods._own_adapter import read_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Options(CombinedOptions):
    """Length of the prefix, shape of the bottlenecks; the defaults are the paper's."""

    name: str = "mam"
    num_virtual_tokens: int = Field(30, ge=1, description="Learnt keys and values before every row.")
    reduction_factor: float = Field(2, ge=1, description="The model's hidden size divided by the bottleneck's width.")
    activation: adapter.Activation = Field("relu", description="Between the bottleneck's two linear maps.")
    scale: float = Field(4.0, gt=0, description="What the bottleneck adds is multiplied by this.")

    recommended_learning_rate: ClassVar[float] = 5e-4


class MixAndMatch(Combination):
    """Trains a prefix and parallel bottlenecks."""

    options: Options

    def hang(self, model: PreTrainedModel) -> None:
        """A bottleneck beside every feed-forward block."""
        own = self.options
        shape = {"reduction_factor": own.reduction_factor, "activation": own.activation, "scale": own.scale}
        adapter.hang(model, adapter.Options(placement="parallel", **shape))


def attach(model: PreTrainedModel, folder: Path) -> Any:
    """A base model with the saved parts in it, for use."""
    return MixAndMatch(Options(**read_options(folder))).attach(model, folder)


def shapes(model: PreTrainedModel, folder: Path) -> dict[str, tuple[int, ...]]:
    """What a saved adapter of these options holds for a model (without weights), which it changes."""
    return MixAndMatch(Options(**read_options(folder))).shapes(model)


def build(options: Options) -> MixAndMatch:
    """The method for these options."""
    return MixAndMatch(options)
