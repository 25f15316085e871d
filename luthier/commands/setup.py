"""What every verb that reads a config does first: everything that can be found out, or refused, before weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.commands.opening import open_tokenizer
from luthier.config.plugins import METHODS, STAGES
from luthier.config.schema import RunConfig
from luthier.data.preparing import PreparedData, prepare
from luthier.data.rejecting import write_rejected
from luthier.foundation.errors import ConfigError, ModelError
from luthier.foundation.ranks import ranks
from luthier.model import loading
from luthier.model.adapters import AdapterPart, check_shapes
from luthier.model.base_settings import BaseSettings
from luthier.model.config_changes import known_positions, with_factor
from luthier.model.continuing import check_vocabulary, continued_options
from luthier.model.finding import is_base_quantized, trained_on
from luthier.model.heads import SequenceHead, load_head, saved_head, train_head
from luthier.model.merging import check_mergeable
from luthier.model.method import Apply, CalibrationBatches, Method, ParameterCount, count_parameters
from luthier.model.placement import check_on_one
from luthier.model.tokenizers.repair import Repair, fit_model
from luthier.scoring.probe import has_sequence_head, probe
from luthier.scoring.scorer import Scorer
from luthier.scoring.sequence_summary import reads_last_column
from luthier.scoring.virtual_tokens import has_virtual_tokens, refuse_checkpointed_prefix
from luthier.training.answering import check_answers
from luthier.training.callbacks import metric_problems
from luthier.training.grouping import GroupedOrder, shares
from luthier.training.optimization import check_optimizer, trained_shapes
from luthier.training.schedule import IndexedSchedule, Schedule, StreamSchedule
from luthier.training.stage import Stage
from luthier.training.trained import TrainedParameter

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Setup:
    """A run before its weights.

    Args:
        head: what the stage's labels need in place of a head over words; None: a language model.
        count: trainable and all parameters, from the model's skeleton. trained: each of the former.
        repaired: what was mended in the tokenizer.
    """

    config: RunConfig
    source: loading.ModelSource
    model_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    repaired: Repair
    stage: Stage
    method: Method
    data: PreparedData
    schedule: Schedule
    head: SequenceHead | None
    count: ParameterCount
    trained: list[TrainedParameter] = field(default_factory=list)

    def tune(
        self,
        model: PreTrainedModel,
        base_name: str | None = None,
        *,
        batches: CalibrationBatches | None = None,
        base_folder: Path | None = None,
        checkpoint: Path | None = None,
    ) -> nn.Module:
        """The model with what the method trains, and a head that learns if there is one; see `Apply`.

        Raises:
            ModelError: the method does not fit.
        """
        how = replace(self.apply_settings(base_name), batches=batches, base_folder=base_folder, checkpoint=checkpoint)
        tuned = self.method.apply(model, how)
        if self.head is not None and not hasattr(tuned, "peft_config"):
            train_head(model, self.config.training.pure_bf16)
            if self.config.model.continue_adapter and self.source.adapter is not None:
                load_head(model, self.source.adapter)
        return tuned

    def load_weights(self, model: nn.Module, folder: Path) -> None:
        """Put a checkpoint's weights back."""
        self.method.load(model, folder)
        if self.head is not None:
            load_head(model, folder)

    def apply_settings(self, base_name: str | None = None) -> Apply:
        """What the method is told."""
        own_base = base_name in (None, self.source.base_name)
        return Apply(
            seed=self.config.training.seed,
            new_token_ids=self.repaired.new_token_ids,
            base_name=base_name or self.source.base_name,
            revision=self.source.revision if own_base else None,
            pure_bf16=self.config.training.pure_bf16,
            total_steps=self.schedule.total_steps,
            tokenizer=self.tokenizer,
            adapter=self.source.adapter if self.config.model.continue_adapter else None,
            head=self.head,
            needs_start=self.stage.reference,
            quantized=is_base_quantized(self.config.model, self.source),
        )

    @property
    def base_settings(self) -> BaseSettings:
        """How the base that the method stands on is changed while it loads."""
        return trained_on(self.config.model, self.source)

    @property
    def merged_adapters(self) -> tuple[AdapterPart, ...]:
        """The model's adapters that are merged into the base before the method is applied."""
        return self.source.adapters[:-1] if self.config.model.continue_adapter else self.source.adapters


def set_up(
    config: RunConfig, *, trust_remote_code: bool = False, say: Callable[[str], None], day: date | None = None
) -> Setup:
    """Resolve, read, count and check: model folder, tokenizer, stage, data, method. `refusals.check` went before.

    Args:
        say: told one sentence about everything that was changed or found odd.
        day: that a template which writes the date is told; None: today.

    Raises:
        UserError: whatever of it can't be used.
    """
    stage: Stage = STAGES.load(config.stage.name).build(config.stage)
    config, source = _with_room(config, loading.find(config.model), trust_remote_code, say)
    if config.model.continue_adapter:
        config = config.model_copy(update={"method": continued_options(config.method, source.adapters[-1])})
    method: Method = METHODS.load(config.method.name).build(config.method)
    model_config = loading.config_of(source, trust_remote_code=trust_remote_code)
    tokenizer, mended, renderer = open_tokenizer(
        config.data,
        source,
        model_config,
        encoder=stage.encoder,
        trust_remote_code=trust_remote_code,
        day=day,
    )
    for change in mended.changes:
        say(f"tokenizer: {change}")
    data = prepare(
        config,
        tokenizer,
        encoder=stage.encoder,
        encoder_options=stage.encoder_options,
        renderer=renderer,
        say=say,
    )
    for remark in data.report.remarks():
        say(remark)
    head = _settled_head(source, stage, stage.meet(data))
    unknown = metric_problems(config, data.validation_sets)
    if unknown:
        raise ConfigError(unknown)
    for held in (data.validation, data.test):
        check_answers(config.training.answer_metrics(), tokenizer, held)
    schedule = _schedule(config, data, say)
    setup = Setup(
        config, source, model_config, tokenizer, mended, stage, method, data, schedule, head, ParameterCount(0, 0)
    )
    setup.count = _look_at_skeleton(setup, trust_remote_code, say)
    return setup


def _with_room(
    config: RunConfig, source: loading.ModelSource, trust_remote_code: bool, say: Callable[[str], None]
) -> tuple[RunConfig, loading.ModelSource]:
    """The config and the model with a factor for stretched positions, where none is set."""
    how = config.model.rope_scaling
    if how is None or how.factor is not None:
        return config, source
    known = loading.config_at(source.base, trust_remote_code=trust_remote_code)
    how = with_factor(how, known, config.data.cutoff_length)
    if how is None:
        say(f"model.rope_scaling is left out: data.cutoff_length {config.data.cutoff_length} has room without it")
    elif how.factor is not None:
        say(f"model.rope_scaling: factor {how.factor:g}, as data.cutoff_length {config.data.cutoff_length} needs")
    model = config.model.model_copy(update={"rope_scaling": how})
    return config.model_copy(update={"model": model}), replace(
        source, settings=replace(source.settings, rope_scaling=how)
    )


def _schedule(config: RunConfig, data: PreparedData, say: Callable[[str], None]) -> Schedule:
    """Which examples form which step, on this rank."""
    training = config.training
    sizes = (training.per_device_train_batch_size, training.gradient_accumulation_steps)
    rank, world_size = ranks().rank, ranks().world_size
    if data.stream is not None:
        for remark in data.stream.remarks():
            say(remark)
        return StreamSchedule(*sizes, total_steps=training.max_steps, rank=rank, world_size=world_size)
    schedule = IndexedSchedule(
        len(data.train),
        *sizes,
        epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        seed=config.data_seed(),
        shuffle=config.data.shuffle,
        rank=rank,
        world_size=world_size,
    )
    if training.grouping != "within_buffer":
        return schedule
    if training.per_device_train_batch_size == 1 and training.tokens_per_batch is None:
        say(
            "training.grouping is within_buffer, but a batch holds one example, which shares nothing with the others of its "
            "step: set training.tokens_per_batch to auto, or grouping to within_step"
        )

    return replace(schedule, order=GroupedOrder(schedule, data.train, training.grouping_buffer_size))


def _look_at_skeleton(setup: Setup, trust_remote_code: bool, say: Callable[[str], None]) -> ParameterCount:
    """Apply the method to the model without weights: names that match nothing, models that can't be trained and rows
    longer than the model can hold are found before anything large is read."""
    model = loading.skeleton(setup.model_config, head=setup.head, trust_remote_code=trust_remote_code)
    wish = setup.config.model.attention
    finding = probe(model.config, type(model), need_segments=wish != "padded")
    finding.choose(wish)
    _check_positions(setup, model, say)
    own_rows = model.get_input_embeddings().weight.shape[0]
    fit_model(model, setup.tokenizer, setup.repaired)
    if setup.config.model.continue_adapter:
        check_vocabulary(model, setup.source.adapters[-1], own_rows)
    found = saved_head(setup.source.adapter, setup.source.base)
    bare = model if found == setup.head else loading.skeleton(setup.model_config, trust_remote_code=trust_remote_code)
    check_shapes(bare, setup.source.adapters)
    for part in setup.merged_adapters:
        check_mergeable(part.folder)
    if has_sequence_head(model) and not finding.pools_last:
        reads_last_column(model, hasattr(setup.config.method, "num_virtual_tokens"))
    tuned = setup.tune(model)
    if has_virtual_tokens(tuned):
        refuse_checkpointed_prefix(tuned, setup.config.training.gradient_checkpointing)
    # the layout of its batches, before weights are read
    aux_loss_coef = setup.config.model.router_aux_loss_coef
    shares(Scorer(tuned, wish, router_aux_loss_coef=aux_loss_coef, fused=False), setup.config.training)
    ratio = setup.method.learning_rate_ratio
    for remark in check_optimizer(setup.config, tuned, ratio, setup.schedule.total_steps):
        say(remark)
    setup.trained = trained_shapes(tuned, pure_bf16=setup.config.training.pure_bf16)
    return count_parameters(tuned)


def _settled_head(source: loading.ModelSource, stage: Stage, wanted: SequenceHead | None) -> SequenceHead | None:
    """The head to train: the model's own, with the unit of its numbers, or the one that the rows need.

    Raises:
        ModelError: the model's was trained for something else, or with numbers in another unit; with both.
    """
    found = saved_head(source.adapter, source.base)
    if found is None:
        return wanted
    if wanted is not None and (found.problem, found.labels) == (wanted.problem, wanted.labels):
        stage.keep(found)
        return found
    remedy = "Start from the model that it was trained from."
    if wanted is None:
        raise ModelError(
            f"{source.adapter or source.base} was trained for {found.problem}: it has no head over words to train.",
            remedy,
        )
    raise ModelError(
        f"{source.adapter or source.base} was trained for {found.problem} of {', '.join(found.labels) or 'a number'}; this "
        f"run's rows need {wanted.problem} of {', '.join(wanted.labels) or 'a number'}.",
        f"{remedy} To go on with its classes, give them in its order in stage.labels.",
    )


def _check_positions(setup: Setup, model: PreTrainedModel, say: Callable[[str], None]) -> None:
    """Rows longer than the positions a model knows: an error where positions are looked up, else a warning.

    Raises:
        ModelError: learned positions, and an example longer than their table.
    """
    from torch import nn

    known = known_positions(setup.model_config)
    sets = (setup.data.train, setup.data.validation, setup.data.test)
    longest = max(part.longest_sequence for part in sets)
    if setup.data.stream is not None:
        longest = setup.config.data.cutoff_length  # the longest that may come
    virtual: int = getattr(setup.config.method, "num_virtual_tokens", 0)  # these take positions too
    longest += virtual
    if known is None or longest <= known:
        return
    words = model.get_input_embeddings()
    learned = any(isinstance(m, nn.Embedding) and m is not words and m.num_embeddings >= known for m in model.modules())
    beside = f" ({virtual} virtual ones included)" if virtual else ""
    what = f"an example has {longest} tokens{beside}, but the model knows positions up to {known}"
    if learned:
        raise ModelError(
            f"{what}, each with a learned embedding.", f"Set data.cutoff_length to {known - virtual} or less."
        )
    say(f"{what}: what lies beyond will be learnt poorly")


def leave_rejected(setup: Setup, folder: Path) -> None:
    """Write rejected.jsonl if there are rejected rows."""
    if setup.data.rejected:
        write_rejected(folder / "rejected.jsonl", setup.data.rejected)


def check_device_map(setup: Setup, device: torch.device) -> None:
    """Raise ModelError for modules that training would not find on its device."""
    asked = setup.config.model.device_map
    if asked is not None:
        dtype = loading.choose_dtype(setup.config.model.dtype, setup.model_config, device)
        check_on_one(asked, loading.skeleton(setup.model_config, head=setup.head), device, dtype)
