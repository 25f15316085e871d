"""A model opened to be measured on rows as training's evaluations measure it: the same encoders, stages, Scorer and sums.

But with the stages' own settings in the loss, whatever the model's run had: so models are measured alike. A remark says where
the losses of its run are others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.commands.opening import open_tokenizer
from luthier.config.data_section import DataConfig
from luthier.config.files import read_file
from luthier.config.loading import describe
from luthier.config.plugins import STAGES
from luthier.config.schema import ModelConfig
from luthier.config.sections import PluginOptions
from luthier.config.training_section import TrainingConfig
from luthier.data.encoding import ChosenEncoder
from luthier.data.preparing import choose_encoder
from luthier.data.records import Conversation, Document, Labelled, Origin, Record
from luthier.data.rejecting import MEND, refuse
from luthier.evaluation.opening import open_weights
from luthier.foundation.devices import choose_device
from luthier.foundation.errors import ConfigError, DataError, UserError
from luthier.foundation.files import read_json
from luthier.foundation.progress import progress_bar
from luthier.metrics._metric import Task
from luthier.model import loading
from luthier.model.heads import SequenceHead
from luthier.model.placement import Placement, is_spread
from luthier.scoring.scorer import Scorer
from luthier.training.engine import make_engine
from luthier.training.stage import Stage
from luthier.training.validation import Evaluation, SetReader

TASKS: dict[str, Task] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
STAGE_OF_KIND: dict[type, str] = {Conversation: "sft", Document: "pretrain"}
IN_THE_LOSS = (
    "train_on",
    "attend_across_documents",
    "class_weights",
    "label_smoothing",
)  # a stage's settings that act there


@dataclass(frozen=True, slots=True)
class Numbered(Origin):
    """Where a record came from, and which of all it is: several may come from one row."""

    number: int


@dataclass(frozen=True)
class Reading:
    """A model, and the encoder and stage that its rows go through.

    Args:
        remark: on losses of its run that are taken otherwise; empty where they are not.
    """

    stage: Stage
    encoder: ChosenEncoder
    scorer: Scorer
    cutoff_length: int
    remark: str = ""

    def read(
        self, name: str, records: Sequence[Record], batch_size: int, say: Callable[[str], None], *, each: bool
    ) -> tuple[list[int], Evaluation]:
        """Which records a source's examples were made of (of joined ones the first), by their numbers, and what an evaluation
        finds on the examples.

        Raises:
            DataError: rows that can't be used, or none with anything to predict.
        """
        numbered = [
            replace(record, origin=Numbered(record.origin.path, record.origin.row, number))
            for number, record in enumerate(records)
        ]
        encoded = self.encoder.encode_counted(numbered, self.cutoff_length)
        refuse(encoded.refused, remedy=MEND)
        for rows, why in ((encoded.too_long, "are too long"), (encoded.untrained, "have nothing to predict")):
            if rows:
                say(f"{name}: {len(rows):,} rows {why} and are left out, {rows[0].origin} the first")
        if not encoded.used:
            raise DataError(f"{name} has no row with anything to predict.", "Look at it with `luthier data show`.")
        if cut := sum(example.truncated for example in encoded.used):
            say(f"{name}: {cut:,} rows are cut to {self.cutoff_length:,} tokens (--cutoff-length)")
        engine = make_engine(TrainingConfig(engine="single"), choose_device())
        reader = SetReader(self.scorer, self.stage, engine, batch_size, self.scorer.may_share(training=False))
        with progress_bar("measuring, batches", math.ceil(len(encoded.used) / batch_size)) as bar:
            found = reader.read(encoded.used, lambda: bar.advance(1), each=each)
        return [example.origin.number for example in encoded.used], found  # type: ignore[attr-defined]


def answers_with_labels(model: ModelConfig, records: Sequence[Sequence[Record]]) -> bool:
    """Whether the rows are labelled, and the model is of a run that learnt to answer with their words."""
    return any(isinstance(part[0], Labelled) for part in records) and _stage_of_run(model) is not None


def why_no_loss(records: Sequence[Sequence[Record]]) -> str:
    """Why rows have no loss of this model; empty where they have one.

    Raises:
        DataError: rows of several kinds.
    """
    kinds = {type(record) for part in records for record in part}
    if len(kinds) > 1:
        raise DataError(
            f"the rows are of several kinds: {', '.join(sorted(kind.__name__.lower() for kind in kinds))}.",
            "Evaluate them apart.",
        )
    if not kinds or kinds <= STAGE_OF_KIND.keys():
        return "" if kinds else "without rows there is no loss"
    return f"rows of the kind {kinds.pop().__name__.lower()} have no loss of a language model"


def open_reading(
    model: ModelConfig,
    records: Sequence[Sequence[Record]],
    head: SequenceHead | None,
    template: str,
    cutoff_length: int,
    trust_remote_code: bool,
    weights: Callable[[], Any] | None = None,
    placement: Placement | None = None,
) -> Reading:
    """Read a model's weights, and choose encoder and stage by its head, its run or the rows' kind.

    Args:
        weights: gives the model where something else has it too; it is left as it is.
        placement: where its modules lie, without `weights`.

    Raises:
        UserError: model, template or rows that can't be used.
    """
    stage, options = _stage(model, records, head)
    source = loading.find(model)
    data = DataConfig.model_validate({"train": ".", "template": template, "cutoff_length": cutoff_length})
    config = loading.config_of(source, trust_remote_code=trust_remote_code)
    tokenizer, _, renderer = open_tokenizer(
        data, source, config, encoder=stage.encoder, trust_remote_code=trust_remote_code
    )
    labels = _labels(model, stage, records, head)
    settings = {**stage.encoder_options, **({"labels": labels} if labels else {})}
    encoder = choose_encoder(data, tokenizer, stage.encoder, settings, renderer)
    stage.know(labels)
    if weights:
        read = beside(weights())
    else:
        read, _ = open_weights(source, wish=model.dtype, placement=placement, trust_remote_code=trust_remote_code)
    loading.grow_embeddings(read, tokenizer)
    scorer = Scorer(read, model.attention, tokenizer.pad_token_id or 0, fused=model.fused)
    placed = scorer if is_spread(read) else scorer.to(choose_device())
    return Reading(stage, encoder, placed, cutoff_length, _measured_otherwise(model, options))


def beside(model: Any) -> Any:
    """The same model with the same tensors, in modules of its own: a Scorer changes those that it is given, but for one
    whose modules lie on several devices, which it can only call."""
    if is_spread(model):
        return model
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, tensors)


def _stage(
    model: ModelConfig, records: Sequence[Sequence[Record]], head: SequenceHead | None
) -> tuple[Stage, PluginOptions]:
    """The stage that rows are measured with, and its options."""
    if head is not None:
        named: dict[str, Any] = {"name": "regression" if head.problem == "regression" else "classification"}
        if head.labels:
            named |= {"labels": list(head.labels), "multi_label": head.problem == "multi_label_classification"}
    else:
        kind = type(records[0][0])
        of_run = _stage_of_run(model) if kind is Labelled else None
        named = of_run if of_run is not None else {"name": STAGE_OF_KIND[kind]}
    module = STAGES.load(named["name"])
    options: PluginOptions = module.Options.model_validate(named)
    stage: Stage = module.build(options)
    if head is not None:
        stage.keep(head)
    return stage, options


def _measured_otherwise(model: ModelConfig, options: PluginOptions) -> str:
    """A remark where the evaluations of the model's run took another loss than these options do; else nothing."""
    folder = _run_of(model)
    of_run = _named_stage(folder) if folder is not None else {}
    taken = options.model_dump()
    if of_run.get("name") != taken["name"]:
        return ""
    others = [name for name in IN_THE_LOSS if name in taken and of_run.get(name, taken[name]) != taken[name]]
    if not others:
        return ""
    there, here = (", ".join(f"{name} {values[name]}" for name in others) for values in (of_run, taken))
    return f"the losses of its run's own evaluations are others: taken with stage.{there}; here with {here}, as of any model"


def _labels(
    model: ModelConfig, stage: Stage, records: Sequence[Sequence[Record]], head: SequenceHead | None
) -> tuple[str, ...]:
    """The classes: the head's, or those that the run learnt; a number has none.

    Raises:
        UserError: a run that doesn't say them. The rows' own may be fewer, and the question and its answers others.
    """
    if head is not None:
        return head.labels
    named: Sequence[str] = stage.encoder_options.get("labels", ())
    if not named and isinstance(records[0][0], Labelled):
        raise UserError(
            f"the run of {model.name} does not say which classes it learnt: its run.json is from before they were noted.",
            "Name all of them as stage.labels in its config.yaml, sorted as training sorts them: numbers by size, then the "
            "others by letters.",
        )
    return tuple(named)


def _stage_of_run(model: ModelConfig) -> dict[str, Any] | None:
    """The stage of a run whose language model answers with classes' words; None where the model is of no such run.

    Of the config only the stage is read, and it must be one of luthier's: what a run's folder names may be anybody's
    module, which would run as it is imported. Classes that the config leaves to the training files stand in run.json.
    """
    folder = _run_of(model)
    named = _named_stage(folder) if folder is not None else {}
    if folder is None or named.get("head") != "generative":
        return None
    # the weights are left out of the loss, and metrics are the command line's: those of the run may be modules
    unused = {"class_weights": None, "metrics": None}
    labels = named.get("labels") or read_json(folder / "run.json").get("labels") or None
    return _checked({**named, **unused, "labels": labels}, folder / "config.yaml")


def _run_of(model: ModelConfig) -> Path | None:
    """The folder of the run that a model is of."""
    place = Path(model.name)
    if not place.exists():  # a hub's model, whatever stands in the folder that the command runs in
        return None
    for folder in (place, *place.parents[:2]):
        if (folder / "run.json").is_file() and (folder / "config.yaml").is_file():
            return folder
    return None


def _named_stage(folder: Path) -> dict[str, Any]:
    """The stage in a run's config, as it is written there."""
    found = read_file(folder / "config.yaml").get("stage")
    return found if isinstance(found, dict) else {"name": found}


def _checked(named: dict[str, Any], path: Path) -> dict[str, Any]:
    """All options of a stage that a run's config names. Raises UserError for one that is not luthier's, or has no such."""
    if named.get("name") not in STAGES.names():
        raise UserError(
            f"the stage in {path} is {named.get('name')!r}, which is none of luthier's, and a module that a run's folder "
            "names is not imported.",
            "Have its answers measured: --generate --metric label_accuracy.",
        )
    options: type[PluginOptions] = STAGES.load(named["name"]).Options
    try:
        return options.model_validate(named).model_dump()
    except ValidationError as error:
        raise ConfigError(describe(error.errors(), options, "stage"), str(path)) from error
