"""Training an existing adapter further: the options of the method become the adapter's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.model.adapters import AdapterPart, held_rows
from luthier.model.inspection import OWN_METHOD

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def continued_options(options: MethodOptions, part: AdapterPart) -> MethodOptions:
    """The options with what the adapter was made with, where they don't say it themselves.

    Raises:
        ModelError: the adapter is of another method, or an option contradicts it or would not act.
    """
    if options.name != part.method:
        raise ModelError(
            f"model.continue_adapter: {part.folder} is an adapter of method {part.method}, and method is {options.name}.",
            f"Set method: {part.method}, or leave continue_adapter out to merge it and make a new one.",
        )
    settings = part.settings
    kind = type(options)
    saved = dict(settings["options"]) if OWN_METHOD in settings else kind.of_adapter(settings)
    saved.pop("name", None)
    chosen = {name: getattr(options, name) for name in options.model_fields_set}
    wrong = []
    for name, value in chosen.items():
        if name == "name" or name in kind.of_the_run:
            continue
        default = kind.model_fields[name].get_default(call_default_factory=True)
        if name in saved and value != saved[name]:
            wrong.append(f"method.{name} is {value!r}, but the adapter has {saved[name]!r}")
        elif name not in saved and value != default:
            wrong.append(f"method.{name} is {value!r}, which has no effect on an adapter that is there already")
    if wrong:
        raise ModelError(
            f"model.continue_adapter trains {part.folder} as it is: {'; '.join(wrong)}.", "Leave those settings out."
        )
    return kind.model_validate({**chosen, **saved, "name": options.name})


def check_vocabulary(model: PreTrainedModel, part: AdapterPart, own_rows: int) -> None:
    """Refuse to train an adapter further that holds an embedding of another size: it would be saved without it.

    Args:
        model: with rows for the run's tokens. own_rows: how many the base has.

    Raises:
        ModelError: one whose rows are neither the base's own nor, where it learns whole, those of the run's tokens.
    """
    rows, fitted = held_rows(model, part), model.get_input_embeddings().weight.shape[0]
    learns_whole = bool(part.settings.get("modules_to_save"))
    if rows is not None and (rows != fitted or (rows != own_rows and not learns_whole)):
        raise ModelError(
            f"model.continue_adapter: {part.folder} holds an embedding of {rows:,} rows beside its update; its base has "
            f"{own_rows:,}, and the run's tokens need {fitted:,}. What trains it further could not keep them.",
            "Leave continue_adapter out: it is merged, with its embedding, and a new adapter is made on top.",
        )
