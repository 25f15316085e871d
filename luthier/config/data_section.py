"""The config's `data`: rows, and how they become tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from luthier.config.chat_templates import template_list
from luthier.config.plugins import FORMATS
from luthier.config.sections import Section, expand_user, one_to_list
from luthier.config.split_slices import checked_split, split_kind, split_number


def _path_to_mapping(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class DataEntry(Section):
    """One source of rows. Short form: its path."""

    path: Annotated[str, AfterValidator(expand_user)] = Field(
        description="A JSON, JSONL, CSV, TSV, Parquet, Arrow or text file (text types also .gz or .zst), a folder of files "
        "of one type, a pattern such as data/*.jsonl, a folder that datasets' save_to_disk wrote, or a data set of the "
        "Hugging Face Hub (owner/name, huggingface:name) or of ModelScope (modelscope:owner/name), or one of LLaMA-Factory's registry (dataset_info.json#name)."
    )
    format: str = Field(
        "auto",
        description=f"auto: found out from the columns; {', '.join(FORMATS.names())}; or my_package.my_format, a Python "
        "module of your own (docs/data.md).",
    )
    columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Where a row's parts stand, by the format's own names: {instruction: question, output: answer}; null: "
        "nowhere, so a column of the part's usual name is not read.",
    )
    tags: dict[str, str] = Field(
        default_factory=dict,
        description="What a turn's keys and roles are called: {role_tag: role, content_tag: text, user_tag: me, ...}.",
    )
    split: Annotated[str, AfterValidator(checked_split)] | None = Field(
        None,
        description="A split, a slice of it or both: train, train[:70%], train[10:200], [70%:]. Default: train, all of it.",
    )
    subset: str | None = Field(None, description="Configuration of a hub's data set.")
    folder: str | None = Field(None, description="Folder inside a hub's data set.")
    system: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="System prompt for rows that bring none; of a list, each row gets one by the seed."
    )
    max_samples: Annotated[int, Field(gt=0)] | None = Field(
        None, description="A seeded random sample of this many rows."
    )
    weight: Annotated[float, Field(gt=0)] | None = Field(
        None, description="With data.mix: how often rows of this entry are drawn, in proportion to the others' (1)."
    )
    head: bool = Field(False, description="Take the first max_samples rows instead (many sets are sorted).")

    @model_validator(mode="after")
    def _head_of_something(self) -> DataEntry:
        if self.head and self.max_samples is None:
            raise ValueError("head has no effect without max_samples: say how many rows")
        return self


Entry = Annotated[DataEntry, BeforeValidator(_path_to_mapping, json_schema_input_type=str | DataEntry)]
Entries = Annotated[
    list[Entry],
    BeforeValidator(one_to_list, json_schema_input_type=str | DataEntry | list[Entry]),
    Field(min_length=1),
]


Split = Annotated[
    Annotated[float | int, BeforeValidator(split_number), Tag("<number>")] | Annotated[Entries, Tag("<entries>")],
    Discriminator(split_kind),
]


class DataConfig(Section):
    """Rows, and how they become tokens."""

    train: Entries = Field(description="Training rows: a path, a mapping, or a list of them.")
    validation: Split | None = Field(
        None, description="A share (0.1) or a count (100) of the training rows, or a list like train."
    )
    evaluate_each: bool = Field(
        False, description="Keep the entries of validation apart, each a set of its own with a loss of its own."
    )
    test: Split | None = Field(None, description="Like validation; scored once, after training, into run.json.")
    template: str = Field(
        "auto",
        description=f"Chat template: auto (the tokenizer's own), or {template_list()}. unverified: no template of the "
        "family's own and no public fixture was found to check it against.",
    )
    cutoff_length: int = Field(1024, ge=2, description="Longest example, in tokens.")
    over_length: Literal["truncate", "truncate_left", "drop", "split", "error"] = Field(
        "truncate",
        description="What happens to longer rows; every one is counted. truncate: the last turns go, whole; truncate_left: "
        "the first ones; split: several examples; a turn too long by itself is cut inside, with room kept for its answer.",
    )
    max_source_length: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longest question of every turn, in tokens, with max_target_length; instead of over_length."
    )
    max_target_length: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longest answer of every turn, in tokens, with max_source_length; instead of over_length."
    )
    invalid_rows: Literal["error", "reject"] = Field(
        "error", description="Rows that can't be used: stop at once, or count them and write them to rejected.jsonl."
    )
    shuffle: bool = Field(
        True, description="Shuffle the training rows anew every epoch (a function of seed and epoch)."
    )
    streaming: bool = Field(
        False,
        description="Read the training rows while they are trained on: nothing is read, counted or tokenized before. Needs "
        "training.max_steps, and validation and test from entries of their own.",
    )
    buffer_size: int = Field(
        10000, ge=1, description="With streaming: so many rows are read, tokenized and shuffled at a time."
    )
    mix: Literal["concat", "interleave_under", "interleave_over"] = Field(
        "concat",
        description="Entries of train: all rows of each; or mixed by weight (by turns without any) until the first entry "
        "ends (under), or until all have ended, shorter ones repeated (over).",
    )

    preprocessing_num_workers: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Processes that render and tokenize; unset: one for each core, where there is much to do. Plain text has "
        "one.",
    )
    cache: bool = Field(
        True,
        description="Keep the tokens under LUTHIER_HOME, and read them there when nothing that shapes them has changed.",
    )

    @model_validator(mode="after")
    def _limits_agree(self) -> DataConfig:
        source, target = self.max_source_length, self.max_target_length
        if source is None and target is None:
            return self
        if source is None or target is None:
            missing, given = ("source", "target") if source is None else ("target", "source")
            raise ValueError(f"max_{given}_length is set without max_{missing}_length: give both, or use cutoff_length")
        if self.over_length != "truncate":
            raise ValueError(
                f"over_length is {self.over_length}, but max_source_length and max_target_length cut every turn: "
                "remove it, or the two"
            )
        if source + target > self.cutoff_length:
            raise ValueError(
                f"a turn of max_source_length + max_target_length = {source + target} tokens does not fit into "
                f"cutoff_length {self.cutoff_length}: raise that to {source + target} or more, or lower the two"
            )
        return self

    @model_validator(mode="after")
    def _stream_can_do_it(self) -> DataConfig:
        if not self.streaming:
            if self.buffer_size != type(self).model_fields["buffer_size"].default:
                raise ValueError("buffer_size has no effect without streaming: remove it")
            return self
        problems = [
            f"{name} is {getattr(self, name)}, which is taken from all training rows; streaming reads them once: give "
            f"{name} entries of its own"
            for name in ("validation", "test")
            if isinstance(getattr(self, name), (int, float))
        ]
        problems += [
            f"train.{place}.max_samples is a random sample of all rows, which streaming does not see: set head, for the "
            "first ones"
            for place, entry in enumerate(self.train)
            if entry.max_samples is not None and not entry.head
        ]
        if self.preprocessing_num_workers is not None and not (self.validation or self.test):
            problems.append("preprocessing_num_workers has no effect with streaming: remove it")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _each_of_several(self) -> DataConfig:
        if self.evaluate_each and not isinstance(self.validation, list):
            raise ValueError("evaluate_each needs validation to be a list of entries: there is nothing to keep apart")
        return self

    @model_validator(mode="after")
    def _mix_acts(self) -> DataConfig:
        held = [item for part in (self.validation, self.test) if isinstance(part, list) for item in part]
        if any(item.weight is not None for item in held):
            raise ValueError("weight has no effect in validation and test, whose rows are all used once: remove it")
        if self.mix == "concat" and any(item.weight is not None for item in self.train):
            raise ValueError("weight has no effect with mix: concat; set mix to interleave_under or interleave_over")
        if self.mix != "concat" and len(self.train) < 2:
            raise ValueError(f"mix: {self.mix} needs at least two entries in train, found one")
        return self
