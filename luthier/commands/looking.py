"""What `luthier auto` finds out before it chooses: rows, their lengths, the model, the machine. No weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from luthier.commands.setup import Setup, set_up
from luthier.config.data_section import DataEntry
from luthier.config.loading import load
from luthier.config.plugins import STAGES
from luthier.config.schema import ModelConfig
from luthier.data.detection import FormatError
from luthier.data.encoders._labels import label_names, names_of
from luthier.data.entries import KINDS, convert_rows, formats_of
from luthier.data.examples import TokenizedExample
from luthier.data.locating import locate
from luthier.data.reading import read_files
from luthier.data.records import Conversation, Document, Labelled, Pair, Record
from luthier.foundation.devices import autocast_precision, choose_device, free_memory_bytes
from luthier.foundation.errors import DataError, UserError
from luthier.model import loading
from luthier.model.config_changes import known_positions
from luthier.planning.auto import Facts, Kind

SAMPLE = 1000  # rows that are tokenized to know their lengths
LONGEST = 32_768  # tokens that a row is looked at
STAGE_OF: dict[Kind, str] = {
    "conversations": "sft",
    "pairs": "dpo",
    "text": "pretrain",
    "classes": "classification",
    "numbers": "regression",
}
NAMES = (
    "Name its columns as a format has them (a text and its class or number: text and label; a question and its answer: "
    "instruction and output; a text alone: text; docs/data.md has the others), or write a config that maps them in "
    "data.train.0.columns: auto takes no columns."
)
ANOTHER_TEMPLATE = 0.05  # share of rows that a template may refuse before the next one is tried


@dataclass(frozen=True)
class Rows:
    """What the data hold.

    Args:
        records: of all rows that can be used; rejected: how many can't.
    """

    kind: Kind
    records: Sequence[Record]
    rejected: int


def look(model: str, data: str, *, trust_remote_code: bool = False) -> Facts:
    """Everything the rules go by.

    Raises:
        UserError: rows of a kind that auto does not choose for, no template that renders them, or a model or file that
            can't be used.
    """
    rows = look_at_rows(data)
    setup, template, reason = look_at_model(model, data, rows, trust_remote_code)
    examples = setup.data.train
    records = setup.data.report.splits["train"].records
    learnt = examples.tokens if rows.kind == "text" else examples.targets or records
    text = setup.model_config.get_text_config()
    device = choose_device()
    return Facts(
        kind=rows.kind,
        rows=len(rows.records),
        rejected=rows.rejected,
        token_lengths=tuple(sorted(_length(example, rows.kind) for example in examples)),
        trained_tokens=int(learnt / max(1, records) * len(rows.records)),
        has_tools=any(isinstance(record, (Conversation, Pair)) and record.tools for record in rows.records),
        classes=_counted(rows.records) if rows.kind == "classes" else {},
        several_labels=_several(rows.records),
        unrendered=setup.data.report.splits["train"].unrendered,
        sampled=_total(rows) > SAMPLE,
        template=template,
        template_reason=reason,
        parameters=setup.count.total - setup.count.trainable,
        width=int(getattr(text, "hidden_size", 0)),
        layers=int(getattr(text, "num_hidden_layers", 0)),
        positions=known_positions(setup.model_config),
        reads_both_ways=_reads_both_ways(setup),
        device=device.type,
        precision=autocast_precision(device),
        free_bytes=free_memory_bytes(device),
        can_quantize="quantization" in ModelConfig.model_fields and find_spec("bitsandbytes") is not None,
    )


def _length(example: TokenizedExample, kind: Kind) -> int:
    """Tokens that the limit of length counts: of a pair, the longer answer with the prompt."""
    if kind == "pairs":
        return max(len(sequence.input_ids) for sequence in example.sequences)
    return example.untruncated_length


def look_at_rows(data: str) -> Rows:
    """The rows as records, and of what kind they are."""
    located = locate(DataEntry(path=data))
    rows = read_files(located)
    try:
        chosen = formats_of(located.entry, rows, None)[0]
    except FormatError as error:
        raise DataError(error.problem, NAMES) from error
    records, rejected = convert_rows([(row, chosen.convert_all) for row in rows])
    if not records:
        raise DataError(f"{data}: none of its {len(rows):,} rows can be used: {rejected[0].reason}.", "Mend them.")
    kinds: dict[type, Kind] = {Conversation: "conversations", Pair: "pairs", Document: "text", Labelled: "classes"}
    kind = kinds.get(chosen.record)
    if kind == "classes" and _are_numbers([record.label for record in records if isinstance(record, Labelled)]):
        kind = "numbers"
    if kind is None or STAGE_OF[kind] not in STAGES.names():
        what, stages = KINDS[chosen.record]
        raise UserError(
            f"{data} holds {what} (format {chosen.name}: {chosen.reason}); they are learnt by {stages.removeprefix('stage: ')}, and "
            f"luthier trains {', '.join(STAGES.names())} so far.",
            "To learn good answers alone, write a config that names their columns in data.train.0.columns.",
        )
    return Rows(kind, records, len(rejected))


def _are_numbers(labels: Sequence[Any]) -> bool:
    """Whether labels are quantities: numbers, with fractions or of very many different values."""
    try:
        values = [float(label) for label in labels]
    except (TypeError, ValueError):
        return False
    different = len(set(values))
    return any(not value.is_integer() for value in values) or (different > 20 and different > len(values) / 10)


def _counted(records: Sequence[Record]) -> dict[str, int]:
    """The classes in the order of their numbers, and how many rows have each."""
    counts = Counter(name for record in records if isinstance(record, Labelled) for name in names_of(record))
    return {name: counts[name] for name in label_names(records)}


def look_at_model(model: str, data: str, rows: Rows, trust_remote_code: bool) -> tuple[Setup, str, str]:
    """The model with a sample of the rows tokenized for it, the template that renders them, and why that one."""
    source = loading.find(ModelConfig(name=model))
    model_config = loading.config_at(source.base, trust_remote_code=trust_remote_code)
    known = known_positions(model_config) or LONGEST
    length = min(known, 1024 if rows.kind == "text" else LONGEST)
    candidates = [("", "")]
    if rows.kind in ("conversations", "pairs"):
        tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
        tools = any(isinstance(record, (Conversation, Pair)) and record.tools for record in rows.records)
        candidates = list(_templates(tokenizer, tools))
    refusals = []
    for template, reason in candidates:
        try:
            setup = set_up(
                load(_light(model, data, rows, length, template)), trust_remote_code=trust_remote_code, say=_ignore
            )
        except DataError as error:
            if not template:  # which has no part in it, then
                raise
            refusals.append(f"{template or 'the rows'}: {error.problem}")
            continue
        report = setup.data.report.splits["train"]
        if report.unrendered <= ANOTHER_TEMPLATE * report.records:
            return setup, template, reason
        refusals.append(f"{template}: refuses {report.unrendered} of {report.records} rows")
    raise UserError(
        f"none of the templates that were tried renders the rows of {data} ({'; '.join(refusals)}).",
        "Look at them with `luthier data show`, and name a template in a config of your own.",
    )


def _ignore(remark: str) -> None:
    """Remarks of the look are made again when the run is set up."""


def _templates(tokenizer: Any, tools: bool) -> list[tuple[str, str]]:
    """Chat templates to try, in order, each with its reason."""
    found = []
    if tokenizer.chat_template:
        found.append(("auto", "the tokenizer brings its own: the one the model knows"))
    chatml = {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_vocab())
    known = "whose markers the tokenizer has" if chatml else "whose two markers are new tokens"
    if tools:
        return [*found, ("qwen2.5", f"ChatML, {known}, with tools as Qwen2.5 writes them: the rows call tools")]
    markers = ("chatml", f"a base model's tokenizer has no template; ChatML, {known}")
    plain = ("default", "a base model's tokenizer has no template; plain headings need no new tokens")
    return [*found, *((markers, plain) if chatml else (plain, markers))]


def _light(model: str, data: str, rows: Rows, length: int, template: str) -> dict[str, Any]:
    """A config that tokenizes a sample."""
    sample = {"path": data, "max_samples": SAMPLE} if _total(rows) > SAMPLE else {"path": data}
    settings = {"train": sample, "cutoff_length": length, "invalid_rows": "reject", "cache": False}
    if template:
        settings["template"] = template
    stage: Any = STAGE_OF[rows.kind]
    if rows.kind == "classes":
        stage = {"name": stage, "multi_label": _several(rows.records)}
        known = label_names(rows.records)
        if len(known) > 1:  # a sample need not have them all
            stage["labels"] = list(known)
    return {"model": model, "data": settings, "stage": stage, "method": "lora"}


def _total(rows: Rows) -> int:
    return len(rows.records) + rows.rejected


def _several(records: Sequence[Record]) -> bool:
    """Whether rows have several labels, or none."""
    labels = [record.label for record in records if isinstance(record, Labelled)]
    return any(isinstance(label, tuple) and len(label) != 1 for label in labels)


def _reads_both_ways(setup: Setup) -> bool:
    """Whether the model is an encoder: no causal language model is known of its kind, or its config says so."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = setup.model_config.model_type
    return kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(setup.model_config, "is_decoder", False)
