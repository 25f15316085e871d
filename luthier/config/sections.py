"""What every part of a config is: a frozen pydantic class that knows its keys; and the bases of plug-ins' options."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

# settings of `training` that act on some optimizers and not on others
ADAM_SETTINGS = frozenset({"adam_beta1", "adam_beta2", "adam_epsilon"})
OPTIMIZER_SETTINGS = ADAM_SETTINGS | {"weight_decay"}


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values can't be changed after loading."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1, so `learning_rate: true` would train
        if isinstance(value, bool) and info.field_name is not None:
            kinds = set(plain_types(cls.model_fields[info.field_name].annotation))
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"must be a number, found {str(value).lower()}")
        return value


def plain_types(annotation: Any) -> Iterator[Any]:
    """The types an annotation mentions, looking through Annotated, Optional, unions and containers."""
    arguments = getattr(annotation, "__args__", ())
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from plain_types(argument)


class PluginOptions(Section):
    """Base of every plug-in's `Options`; `name` says which plug-in it is."""

    name: str


class MethodOptions(PluginOptions):
    """Base of every method's `Options`.

    Args:
        in_adapter: the options that a saved adapter decides where it is trained further, by their name in its config.
        of_the_run: those that act then all the same.
        needs_all_gradients: whether the method looks at the gradients of all it trains in every step.
        changes_weights: whether it sets some of what it trains itself, after the optimizer's step.
    """

    recommended_learning_rate: ClassVar[float] = 5e-5
    in_adapter: ClassVar[Mapping[str, str]] = {}
    of_the_run: ClassVar[frozenset[str]] = frozenset()
    needs_all_gradients: ClassVar[bool] = False
    changes_weights: ClassVar[bool] = False

    @classmethod
    def of_adapter(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The options that an adapter's own config has."""
        return {own: settings[key] for own, key in cls.in_adapter.items() if settings.get(key) is not None}

    def optimizer_problem(self, optim: OptimizerOptions) -> str:
        """Why an optimizer can't train what this method trains; empty if it can."""
        if self.needs_all_gradients and not optim.makes_all_gradients:
            return (
                f"method {self.name} looks at the gradients of all its weights in every step, but training.optim {optim.name} "
                "makes those of one block"
            )
        if self.changes_weights and optim.gives_an_average:
            return (
                f"method {self.name} sets weights itself, but training.optim {optim.name} gives an average of others than those "
                "it learns at, which would not follow"
            )
        return ""


class OptimizerOptions(PluginOptions):
    """Base of every optimizer's `Options`.

    reads: settings of `training` that act on it; changing one of `OPTIMIZER_SETTINGS` that it does not name is refused.
    schedules: shapes of the learning rate that it takes, the first being its default; empty: any.
    counts: keys of its parameter groups in which it counts; a resumed run takes them from the checkpoint, and all others
    from the config.
    transformers_name: what TrainingArguments.optim calls it, where transformers has it.
    makes_all_gradients: whether every step makes the gradients of all that is trained.
    gives_an_average: whether the weights that are used and saved are others than those that it learns at.
    package: what must be installed for it, of the extra "optimizers".
    """

    reads: ClassVar[frozenset[str]] = frozenset({"weight_decay"})
    schedules: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[frozenset[str]] = frozenset()
    transformers_name: ClassVar[str | None] = None
    makes_all_gradients: ClassVar[bool] = True
    gives_an_average: ClassVar[bool] = False
    package: ClassVar[str | None] = None

    @property
    def learning_rate_ratio(self) -> float:
        """How many times the method's recommended rate, which is AdamW's, it is best given."""
        return 1.0


def expand_user(value: str) -> str:
    """`~` is the home folder."""
    return os.path.expanduser(value)


def name_to_mapping(value: Any) -> Any:
    """A section may be written as its name alone."""
    return {"name": value} if isinstance(value, str) else value


def one_to_list(value: Any) -> Any:
    """A list may be written as its only item."""
    return [value] if isinstance(value, (str, dict)) else value
