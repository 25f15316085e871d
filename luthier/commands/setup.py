"""What every verb that reads a config does first: everything that can be found out, or refused, before weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.plugins import METHODS, STAGES
from luthier.config.schema import DataConfig, RunConfig
from luthier.data.preparing import PreparedData, prepare, write_rejected
from luthier.data.rendering import AUTO, Renderer
from luthier.data.template_files import load_template
from luthier.model import loading
from luthier.model.method import Apply, Method, ParameterCount, count_parameters
from luthier.model.tokenizers.repair import Repair, fit_model, repair
from luthier.training.schedule import Schedule
from luthier.training.stage import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass
class Setup:
    """A run before its weights.

    Args:
        count: trainable and all parameters, from the model's skeleton.
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
    count: ParameterCount

    def apply_settings(self, base_name: str | None = None) -> Apply:
        """What the method is told."""
        return Apply(
            seed=self.config.training.seed,
            new_token_ids=self.repaired.new_token_ids,
            base_name=base_name or self.source.base_name,
            revision=self.source.revision,
            pure_bf16=self.config.training.pure_bf16,
        )


def open_tokenizer(
    data: DataConfig,
    source: loading.ModelSource,
    model_config: PreTrainedConfig,
    *,
    needs_template: bool,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedTokenizerBase, Repair, Renderer | None]:
    """The tokenizer, mended for the config's template, which is written into it, and the renderer of that template."""
    tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
    if not needs_template:
        return tokenizer, repair(tokenizer, model_config), None
    named = None if data.template == AUTO else load_template(data.template)
    mended = repair(tokenizer, model_config, named.special_tokens if named else (), named.stop_tokens if named else ())
    renderer = Renderer(tokenizer, data.template)
    tokenizer.chat_template = renderer.chat_template
    stops = tuple(dict.fromkeys([*mended.stop_token_ids, *renderer.stop_token_ids]))
    return tokenizer, Repair(mended.changes, mended.new_token_ids, stops), renderer


def set_up(config: RunConfig, *, trust_remote_code: bool = False, say: Callable[[str], None]) -> Setup:
    """Resolve, read, count and check: model folder, tokenizer, stage, data, method.

    Args:
        say: told one sentence about everything that was changed or found odd.

    Raises:
        UserError: whatever of it can't be used.
    """
    stage: Stage = STAGES.load(config.stage.name).build(config.stage)
    method: Method = METHODS.load(config.method.name).build(config.method)
    source = loading.find(config.model)
    model_config = loading.config_at(source.base, trust_remote_code=trust_remote_code)
    tokenizer, mended, renderer = open_tokenizer(
        config.data, source, model_config, needs_template=stage.encoder != "text", trust_remote_code=trust_remote_code
    )
    for change in mended.changes:
        say(f"tokenizer: {change}")
    data = prepare(config, tokenizer, encoder=stage.encoder, encoder_options=stage.encoder_options, renderer=renderer)
    for remark in data.report.remarks():
        say(remark)
    _warn_of_length(config, model_config, say)
    training = config.training
    schedule = Schedule(
        examples=len(data.train),
        batch_size=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        seed=config.data_seed(),
        shuffle=config.data.shuffle,
    )
    setup = Setup(config, source, model_config, tokenizer, mended, stage, method, data, schedule, ParameterCount(0, 0))
    setup.count = _count(setup, trust_remote_code)
    return setup


def _count(setup: Setup, trust_remote_code: bool) -> ParameterCount:
    """Apply the method to the model's skeleton: names that match nothing are found before weights are read."""
    model = loading.skeleton(setup.model_config, trust_remote_code=trust_remote_code)
    fit_model(model, setup.tokenizer, setup.repaired)
    return count_parameters(setup.method.apply(model, setup.apply_settings()))


def _warn_of_length(config: RunConfig, model_config: Any, say: Callable[[str], None]) -> None:
    longest = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and config.data.cutoff_length > longest:
        say(
            f"data.cutoff_length is {config.data.cutoff_length}, but the model knows positions up to {longest}: "
            "longer examples will be trained poorly or fail"
        )


def leave_rejected(setup: Setup, folder: Path) -> None:
    """Write rejected.jsonl if there are rejected rows."""
    if setup.data.rejected:
        write_rejected(folder / "rejected.jsonl", setup.data.rejected)
