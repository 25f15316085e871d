"""From a setup to a run: weights, method, scorer, engine, optimizer, schedule and callbacks, put together for the loop."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.commands.calibration import calibration_batches
from luthier.commands.precomputed import with_reference, with_trunk
from luthier.commands.setup import Setup
from luthier.commands.space import space_needed
from luthier.config.model_section import QuantizationConfig
from luthier.config.schema import RunConfig
from luthier.foundation.errors import ModelError
from luthier.foundation.files import human_bytes, whole_folder
from luthier.foundation.progress import say
from luthier.foundation.ranks import ranks
from luthier.model import loading
from luthier.model.heads import save_head, saved_head
from luthier.model.inspection import is_model_folder
from luthier.model.merging import merge
from luthier.model.method import count_parameters, save_for_resuming
from luthier.model.quantization import is_quantized, quantized_layers
from luthier.model.tokenizers.repair import fit_model
from luthier.scoring.compiled import compiler
from luthier.scoring.dynamic_positions import independent_length
from luthier.scoring.scorer import Scorer, transformers_model
from luthier.training.answering import Answering
from luthier.training.callbacks import Bridge
from luthier.training.checkpoints import Checkpoints
from luthier.training.engine import Engine
from luthier.training.feeds import make_feed
from luthier.training.grouping import packing_of, with_dealing
from luthier.training.interruption import StopRequest
from luthier.training.metrics_log import JsonLines
from luthier.training.optimization import make_optimizer, make_scheduler
from luthier.training.run import Fit

if TYPE_CHECKING:
    from transformers import TrainerCallback  # at run time it would import peft before luthier.training.callbacks can


def assemble(
    setup: Setup,
    folder: Path,
    engine: Engine,
    checkpoints: Checkpoints,
    callbacks: list[TrainerCallback],
    resume_command: str,
    *,
    checkpoint: Path | None = None,
    trust_remote_code: bool = False,
) -> Fit:
    """Read the weights and put the run together; `checkpoint` is what the caller puts back afterwards."""
    config = setup.config
    model, base_name = _base_model(setup, folder, engine, trust_remote_code)
    for change in fit_model(model, setup.tokenizer, setup.repaired):
        say(f"model: {change}")
    _say_quantized(model)
    tuned = _tune(setup, engine.place(model), base_name, checkpoint)
    setup.count = count_parameters(tuned)
    _checkpoint_gradients(model, config)
    scorer = _scorer(setup, tuned)
    packing = packing_of(scorer, config.training, setup.stage)
    share_in_evaluation = scorer.may_share(training=False) and config.training.prefix_sharing != "off"
    prepared = engine.prepare(scorer)
    sets = with_reference(setup, engine, prepared, share_in_evaluation)
    packing = with_trunk(setup, engine, scorer, packing, folder, space_needed(setup, checkpoints))
    schedule = with_dealing(setup.schedule, setup.data.train, packing)
    optimizer = make_optimizer(config, tuned, setup.method.learning_rate_ratio)
    scheduler = make_scheduler(config, optimizer, schedule.total_steps)
    bridge = Bridge(config, schedule, [*callbacks, *setup.method.callbacks(tuned)])
    bridge.state.is_world_process_zero, bridge.state.is_local_process_zero = engine.rank == 0, ranks().local_rank == 0
    bridge.attach(tuned, setup.tokenizer, optimizer, scheduler)
    bridge.fire("init_end")
    return Fit(
        config=config,
        schedule=schedule,
        stage=setup.stage,
        engine=engine,
        scorer=prepared,
        model=tuned,
        optimizer=optimizer,
        scheduler=scheduler,
        bridge=bridge,
        checkpoints=checkpoints,
        metrics=JsonLines(folder / "metrics.jsonl", writes=engine.rank == 0),
        rejected=JsonLines(folder / "rejected.jsonl", writes=engine.rank == 0 and setup.data.stream is not None),
        feed=make_feed(sets["train"], setup.data.stream, schedule, packing, config.training.dataloader_num_workers),
        share_in_evaluation=share_in_evaluation,
        answering=_answering(setup, tuned),
        validation=sets["validation"],
        test=sets["test"],
        validation_sets={name: sets[f"validation {name}"] for name in setup.data.validation_sets},
        save_model=lambda place: save_model(setup, tuned, place),
        save_method_state=lambda place: save_for_resuming(setup.method, tuned, place),
        stop=StopRequest(),
        report=lambda step, values: None,
        say=say,
        resume_command=resume_command,
    )


def _answering(setup: Setup, model: nn.Module) -> Answering | None:
    """How evaluations generate answers, if they do."""
    metrics = setup.config.training.answer_metrics()
    if not metrics:
        return None
    eos = setup.tokenizer.eos_token_id
    stops = tuple(dict.fromkeys([*setup.repaired.stop_token_ids, *([eos] if eos is not None else [])]))
    return Answering(model, setup.tokenizer, stops, setup.config.generation, metrics)


def _tune(setup: Setup, model: PreTrainedModel, base_name: str, checkpoint: Path | None) -> nn.Module:
    """The model with what the method trains; it is told where the run's rows and the base's weights are."""
    return setup.tune(
        model,
        base_name,
        batches=partial(calibration_batches, setup),
        base_folder=Path(base_name) if setup.merged_adapters else setup.source.base,
        checkpoint=checkpoint,
    )


def _scorer(setup: Setup, tuned: nn.Module) -> Scorer:
    """The scorer of a model, and what is worth saying of it."""
    config = setup.config
    if next(tuned.parameters()).device.type == "cpu" and (kernels := compiler.advice()):
        say(f"kernels: {kernels}")
    scorer = Scorer(
        tuned,
        config.model.attention,
        setup.tokenizer.pad_token_id or 0,
        config.model.router_aux_loss_coef,
        lambda: setup.method.penalty(tuned),
        config.model.fused,
    )
    if scorer.router_loss.possible and config.model.router_aux_loss_coef is None:
        weight = scorer.router_loss.coefficient
        say(
            f"model: a mixture of experts; its load-balancing loss counts {weight:g} times, as its config says"
            if weight
            else "model: a mixture of experts; its load-balancing loss is off, as its config says "
            "(model.router_aux_loss_coef turns it on)"
        )
    data = setup.data
    lengths = [config.data.cutoff_length if data.stream is not None else data.train.longest_sequence]
    longest = max(*lengths, data.validation.longest_sequence, data.test.longest_sequence)
    if longest > (alone := independent_length(tuned)):
        say(
            f"model: a sequence of more than {alone:,} tokens (there are some of up to {longest:,}) stretches the rotary "
            "positions of all that share its batch; with training.per_device_train_batch_size and "
            "per_device_eval_batch_size of 1 each has its own"
        )
    if scorer.route == "padded" and config.model.attention == "auto":
        say(f"attention: padded rows, because {scorer.finding.reason}")
    return scorer


def _base_model(setup: Setup, folder: Path, engine: Engine, trust_remote_code: bool) -> tuple[Any, str]:
    """The model to train, and what an adapter names as its base.

    Adapters that are not trained further are merged first; an adapter on top of that needs a base that exists, so the
    merged one is written into the run's folder.
    """
    training = setup.config.training
    dtype = loading.choose_dtype(setup.config.model.dtype, setup.model_config, engine.device)
    if setup.method.trains_inside and training.pure_bf16:
        dtype = torch.bfloat16
    elif dtype != torch.float32 and setup.method.needs_float32(training.bf16 or training.fp16, engine.device.type):
        if setup.config.model.dtype != "auto":
            how = "can't be had here" if training.bf16 or training.fp16 else "needs training.bf16 or fp16"
            say(
                f"model: model.dtype {setup.config.model.dtype} {how} with method {setup.config.method.name}; float32 is used"
            )
        dtype = torch.float32
    source, under = setup.source, setup.merged_adapters
    read = partial(
        loading.weights_at,
        dtype=dtype,
        head=setup.head,
        seed=training.seed,
        quantization=_with_compute_dtype(setup),
        device=engine.device,
        trust_remote_code=trust_remote_code,
    )
    if source.from_scratch:
        fresh = loading.fresh_weights(
            setup.model_config, dtype, head=setup.head, seed=training.seed, trust_remote_code=trust_remote_code
        )
        return fresh, ""
    if not under:
        brought = (
            source.adapter if saved_head(source.adapter, source.base) is not None else None
        )  # none of it drawn anew
        return read(source.base, config=setup.model_config, adapter=brought), source.base_name
    whole = source if under == source.adapters else source.only(under)

    def merged() -> Any:
        return merge(loading.load(whole, dtype, plain=True, trust_remote_code=trust_remote_code))

    if setup.method.saves == "model" and saved_head(whole.adapter, whole.base) == setup.head:
        return merged(), ""
    base = folder / "base"

    def write() -> None:
        if is_model_folder(base):
            return
        names = ", ".join(str(part.folder) for part in under)
        say(
            f"model: {names} {'is' if len(under) == 1 else 'are'} merged, and written to {base} as the new adapter's base"
        )
        made = merged()
        with whole_folder(base) as building:
            made.save_pretrained(building)
            setup.tokenizer.save_pretrained(building)

    engine.lead(write)
    return read(base), str(base.absolute())


def _with_compute_dtype(setup: Setup) -> QuantizationConfig | None:
    """The quantization with the precision of its products: autocast's, where there is one."""
    how, training = setup.base_settings.quantization, setup.config.training
    if how is None or how.compute_dtype != "auto" or not (training.bf16 or training.fp16):
        return how
    return how.model_copy(update={"compute_dtype": "bfloat16" if training.bf16 else "float16"})


def _say_quantized(model: PreTrainedModel) -> None:
    layers = [module for module in model.modules() if is_quantized(module)]
    if layers:
        count, all_weights = sum(count_parameters(layer).total for layer in layers), count_parameters(model).total
        kept = human_bytes(model.get_memory_footprint())
        say(f"model: {count:,} of {all_weights:,} weights are quantized; the base takes {kept}")
        if left := quantized_layers(model):
            say(
                f"model: {len(left)} layers whose width is no multiple of 64 stay plain, which bitsandbytes computes wrongly "
                f"here: {', '.join(left[:3])}{' ...' if len(left) > 3 else ''}"
            )


def _checkpoint_gradients(model: Any, config: RunConfig) -> None:
    if not config.training.gradient_checkpointing:
        return
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} has no gradient checkpointing.", "Set training.gradient_checkpointing to false."
        ) from error


def save_model(setup: Setup, model: nn.Module, folder: Path) -> None:
    """Trained weights, tokenizer with its template, and generation_config: enough to stand wherever a model may."""

    setup.method.save(model, folder)
    if setup.head is not None and setup.method.saves == "adapter":
        save_head(setup.head, transformers_model(model) if not hasattr(model, "peft_config") else model, folder)
    if setup.method.saves == "adapter":
        setup.base_settings.write(folder)
    setup.tokenizer.save_pretrained(folder)
    generation = getattr(transformers_model(model), "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)
