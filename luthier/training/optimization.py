"""Parameter groups, the optimizer and its schedule, and their state as safetensors and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from luthier.config.plugins import OPTIMIZERS
from luthier.config.schema import RunConfig
from luthier.foundation.errors import TrainingError

SEPARATOR = "|"  # between a parameter's name and its state's: neither contains it


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that require a gradient, a tied one once, in the model's order."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rate: float, ratio: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Weights that decay, and norms, biases and other vectors that don't; apart again for each learning rate.

    Args:
        ratio: how many times learning_rate a parameter learns with, by its name (see `Method.learning_rate_ratio`).
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model):
        vector = parameter.ndim < 2 or name.endswith("bias") or id(parameter) in norms
        groups.setdefault((ratio(name), vector), []).append(parameter)
    return [
        {
            "params": groups[times, vector],
            "weight_decay": 0.0 if vector else weight_decay,
            "lr": learning_rate * times,
        }
        for times, vector in sorted(groups)
    ]


def make_optimizer(config: RunConfig, model: nn.Module, ratio: Callable[[str], float] = lambda name: 1.0) -> Optimizer:
    """The config's optimizer over the trained parameters.

    Raises:
        TrainingError: an optimizer whose state can't be saved as tensors and numbers, before any step is made.
    """
    build = OPTIMIZERS.load(config.training.optim).build
    _refuse_unsavable_state(build, config)
    rate = config.learning_rate()
    groups = parameter_groups(model, config.training.weight_decay, rate, ratio)
    optimizer: Optimizer = build(config.training, groups, rate)
    return optimizer


def _refuse_unsavable_state(build: Any, config: RunConfig) -> None:
    """Make one step on a small matrix and look at the state it leaves."""
    trial = nn.Parameter(torch.ones(8, 8))
    optimizer: Optimizer = build(config.training, [{"params": [trial], "weight_decay": 0.0}], config.learning_rate())
    trial.grad = torch.ones_like(trial)
    optimizer.step()
    for key, value in optimizer.state[trial].items():
        if not isinstance(value, (Tensor, int, float, bool, str, type(None))):
            raise TrainingError(
                f"the optimizer {config.training.optim!r} keeps {key!r} as a {type(value).__name__}, which fits neither "
                "safetensors nor JSON, so a run could not be resumed.",
                "Choose another optimizer.",
            )


def make_scheduler(config: RunConfig, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The learning-rate schedule, by transformers' own functions."""
    from transformers import get_scheduler

    training = config.training
    kwargs: dict[str, Any] = dict(training.lr_scheduler_kwargs)
    if kwargs and training.lr_scheduler_type in ("constant", "constant_with_warmup"):
        raise TrainingError(
            f"training.lr_scheduler_kwargs {kwargs} have no effect on the schedule {training.lr_scheduler_type}.",
            "Remove them.",
        )
    try:
        if "num_cycles" in kwargs and training.lr_scheduler_type == "cosine_with_restarts":
            if kwargs["num_cycles"] != int(kwargs["num_cycles"]):
                raise ValueError(f"num_cycles must be a whole number, found {kwargs['num_cycles']}")
            kwargs["num_cycles"] = int(kwargs["num_cycles"])
        schedule: LambdaLR = get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup_steps(training.warmup_steps, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=kwargs,
        )
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"training.lr_scheduler_kwargs {kwargs} do not fit the schedule {training.lr_scheduler_type}: {error}",
            "cosine takes num_cycles, cosine_with_restarts num_cycles, polynomial power and lr_end.",
        ) from error
    return schedule


def check_schedule(config: RunConfig) -> None:
    """Raise TrainingError if the schedule's settings do not fit it."""
    trial = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate())
    make_scheduler(config, trial, total_steps=10)


def warmup_steps(setting: float, total_steps: int) -> int:
    """Steps of warm-up: a count, or below 1 a share of all steps rounded up (as TrainingArguments reads it)."""
    import math

    return int(setting) if setting >= 1 else math.ceil(total_steps * setting)


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors for safetensors, and the rest for JSON."""
    names = {id(parameter): name for name, parameter in trained_parameters(model)}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            place = f"{names[id(parameter)]}{SEPARATOR}{key}"
            if isinstance(value, Tensor):
                tensors[place] = value.detach().to("cpu").contiguous()
            else:
                numbers[place] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"numbers": numbers, "param_groups": groups}


def restore_optimizer(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Put a saved state back, to the same bits.

    Raises:
        TrainingError: it belongs to other parameters than the model trains.
    """
    saved = {place.rsplit(SEPARATOR, 1)[0] for place in [*tensors, *rest["numbers"]]}
    parameters = dict(trained_parameters(model))
    if saved - set(parameters) or len(rest["param_groups"]) != len(optimizer.param_groups):
        strangers = sorted(saved - set(parameters))[:3]
        raise TrainingError(
            f"the checkpoint's optimizer state belongs to other parameters than this run trains: {strangers}",
            "Resume with the method that the run was started with, or start anew with --overwrite.",
        )
    for place, value in [*tensors.items(), *rest["numbers"].items()]:
        name, key = place.rsplit(SEPARATOR, 1)
        parameter = parameters[name]
        # torch keeps a step counter on the CPU unless the optimizer is capturable or fused on a GPU; moving it with
        # its parameter is right for the fused one
        optimizer.state[parameter][key] = value.to(parameter.device) if isinstance(value, Tensor) else value
    for group, kept in zip(optimizer.param_groups, rest["param_groups"], strict=True):
        for key, value in kept.items():
            # settings are the config's, which may have been changed on purpose; what an optimizer counts is the state's
            if key not in optimizer.defaults and key not in ("lr", "initial_lr"):
                group[key] = tuple(value) if isinstance(value, list) else value


def restore_scheduler(scheduler: LambdaLR, optimizer: Optimizer, last_epoch: int) -> None:
    """Put a schedule where it was after `last_epoch` steps; its shape is the config's of now."""
    scheduler.last_epoch = last_epoch
    scheduler._step_count = last_epoch + 1
    rates = [base * shape(last_epoch) for base, shape in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler._last_lr = rates
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
