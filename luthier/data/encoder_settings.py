"""An encoder's options, from the config's data section, its stage and the training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from luthier.config.data_section import DataConfig
from luthier.config.loading import describe
from luthier.config.sections import PluginOptions
from luthier.data.entries import KINDS
from luthier.data.records import Document, Record
from luthier.foundation.errors import DataError

# data settings that only some encoders know
LENGTHS = ("over_length", "max_source_length", "max_target_length")


def encoder_settings(
    encoder: Any, data: DataConfig, stage_options: Mapping[str, Any], train: Sequence[Record] = ()
) -> PluginOptions:
    """The options of an encoder's module.

    Args:
        stage_options: the stage's own settings for it; they go before what the rows decide.
        train: the training rows, of which class names are collected.

    Raises:
        DataError: a data setting that the encoder would ignore, or settings that contradict each other.
    """
    options: type[PluginOptions] = encoder.Options
    acting = {"cutoff_length", *LENGTHS} & set(options.model_fields)
    ignored = [name for name in LENGTHS if name not in acting]
    ignored += [] if encoder.NEEDS_TEMPLATE else ["template"]
    ignored += ["preprocessing_num_workers"] if joins_records(encoder.RECORD) else []
    set_anyway = [name for name in ignored if getattr(data, name) != DataConfig.model_fields[name].default]
    rows, stages = KINDS[encoder.RECORD]
    if set_anyway:
        found = " and ".join(f"data.{name} is {getattr(data, name)!r}" for name in set_anyway)
        raise DataError(
            f"{found}, which {'has' if len(set_anyway) == 1 else 'have'} no effect on {rows} ({stages}).",
            "Remove it." if len(set_anyway) == 1 else "Remove them.",
        )
    decided = encoder.from_records(train) if hasattr(encoder, "from_records") else {}
    try:
        return options(**{**decided, **{name: getattr(data, name) for name in acting}, **stage_options})
    except ValidationError as error:
        raise DataError(f"{'; '.join(describe(error.errors(), options))}.", f"The rows are read as {rows}.") from error


def joins_records(record: type) -> bool:
    """Whether an example may hold several records of a kind, so that they can't be encoded apart, in several processes."""
    return record is Document


def left_to_rows(encoder: Any, given: Mapping[str, Any]) -> dict[str, str]:
    """The options of an encoder's module that the rows decide, which are empty until then, as if the stage had asked for
    none."""
    decide = getattr(encoder, "from_records", None)
    return {} if decide is None else {name: "of the training files" for name in decide(()) if name not in given}
