"""Parameter groups, the optimizer and its schedule, and their state as safetensors and JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from luthier.config.plugins import OPTIMIZERS
from luthier.config.schema import RunConfig
from luthier.foundation.errors import TrainingError
from luthier.model.heads import ENDING, head_modules
from luthier.training.trained import Role, TrainedParameter, check_fit

SEPARATOR = "|"  # between a parameter's name and its state's: neither contains it


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that require a gradient, a tied one once, in the model's order."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rate: float, ratio: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Weights that decay, and norms, biases and other vectors that don't; apart again for each role and learning rate.

    Each has its parameters' names (`param_names`, as torch has them), their places in the model's order
    (`param_places`), and their `role`.

    Args:
        ratio: how many times learning_rate a parameter learns with, by its name (see `Method.learning_rate_ratio`).
    """
    groups: dict[tuple[float, Role], dict[str, Any]] = {}
    roles = parameter_roles(model)
    for place, (name, parameter) in enumerate(trained_parameters(model)):
        times, role = ratio(name), roles[name]
        kind: dict[str, Any] = {
            "params": [],
            "param_names": [],
            "param_places": [],
            "role": role,
            "weight_decay": 0.0 if role == "vector" else weight_decay,
            "lr": learning_rate * times,
        }
        group = groups.setdefault((times, role), kind)
        group["params"].append(parameter)
        group["param_names"].append(name)
        group["param_places"].append(place)
    return [groups[kind] for kind in sorted(groups)]


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """What each trained parameter is to an optimizer, by its name."""
    tables: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for end in _ends(model):  # what an adapter puts beside or in place of one is inside it
        tables += end.modules()
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    embeddings, vectors = (
        {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
        for modules in (tables, norms)
    )
    roles: dict[str, Role] = {}
    for name, parameter in trained_parameters(model):
        # IA3 keeps its vectors as a row or a column; a module's weight of one row (a head of one label) is a matrix
        flat = parameter.ndim < 2 or (max(parameter.shape) == parameter.numel() and not name.endswith("weight"))
        if flat or name.endswith("bias") or id(parameter) in vectors:
            roles[name] = "vector"
        else:
            roles[name] = "embedding" if id(parameter) in embeddings else "matrix"
    return roles


def _ends(model: nn.Module) -> list[nn.Module]:
    """The embedding of a model's tokens, its head over them, and a head that gives classes or a number."""
    wrapper: Any = model
    inner = wrapper.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, PreTrainedModel):
        return []
    heads = head_modules(inner).values() if type(inner).__name__.endswith(ENDING) else ()
    found: list[Any] = [inner.get_input_embeddings(), inner.get_output_embeddings(), *heads]
    return [module for module in found if module is not None]


def trained_shapes(model: nn.Module, *, pure_bf16: bool = False) -> list[TrainedParameter]:
    """The trained parameters as a memory planner wants them; the model's weights may be on the meta device, and in another
    precision than the float32 (or, on request, bfloat16) that they will be trained in."""
    roles = parameter_roles(model)
    return [
        TrainedParameter(name, tuple(parameter.shape), roles[name], 2 if pure_bf16 else 4)
        for name, parameter in trained_parameters(model)
    ]


def make_optimizer(config: RunConfig, model: nn.Module, ratio: Callable[[str], float] = lambda name: 1.0) -> Optimizer:
    """The config's optimizer over the trained parameters.

    Raises:
        TrainingError: an optimizer whose state can't be saved as tensors and numbers, before any step is made.
    """
    build = OPTIMIZERS.load(config.training.optim.name).build
    _refuse_unsavable_state(build, config)
    rate = config.learning_rate()
    groups = parameter_groups(model, config.training.weight_decay, rate, ratio)
    optimizer: Optimizer = build(config.training, groups, rate)
    return optimizer


def _refuse_unsavable_state(build: Any, config: RunConfig) -> None:
    """Make one step on a small matrix and look at the state it leaves."""
    trial = nn.Parameter(torch.ones(8, 8))
    names = {"param_names": ["trial"], "param_places": [0], "role": "matrix"}
    group = {"params": [trial], "weight_decay": 0.0, **names}
    optimizer: Optimizer = build(config.training, [group], config.learning_rate())
    to_training(optimizer)
    trial.grad = torch.ones_like(trial)
    optimizer.step()
    to_evaluation(optimizer)
    for key, value in optimizer.state[trial].items():
        if not isinstance(value, (Tensor, int, float, bool, str, type(None))):
            raise TrainingError(
                f"the optimizer {config.training.optim.name!r} keeps {key!r} as a {type(value).__name__}, which fits neither "
                "safetensors nor JSON, so a run could not be resumed.",
                "Choose another optimizer.",
            )


def check_optimizer(config: RunConfig, model: nn.Module, ratio: Callable[[str], float], total_steps: int) -> list[str]:
    """Whether the optimizer fits what is trained; the model's weights may be on the meta device.

    Returns:
        What is worth knowing of the two, a sentence each.

    Raises:
        TrainingError: nothing of it is what the optimizer is for, or what decays, or the steps are too few for the schedule. MissingExtraError: a package is absent.
    """
    optim, parameters = config.training.optim, trained_shapes(model)
    plugin = OPTIMIZERS.load(optim.name)
    check_fit(optim, parameters)
    if config.training.weight_decay and all(parameter.role == "vector" for parameter in parameters):
        raise TrainingError(
            f"training.weight_decay is {config.training.weight_decay:g}, but nothing would decay: what method "
            f"{config.method.name} trains here are norms, biases and scales, which never do.",
            "Leave weight_decay out.",
        )
    make_scheduler(config, make_optimizer(config, model, ratio), total_steps)
    remark = plugin.remark(optim, parameters, total_steps) if hasattr(plugin, "remark") else None
    return [remark] if remark else []


def to_training(optimizer: Optimizer) -> None:
    """Before a step's forward: an optimizer with a `train` of its own puts the weights in place that it learns at
    (schedule_free), or says which parameters need a gradient (badam)."""
    getattr(optimizer, "train", lambda: None)()


def to_evaluation(optimizer: Optimizer) -> None:
    """Before weights are used or saved: an optimizer with an `eval` of its own puts those in place that it gives."""
    getattr(optimizer, "eval", lambda: None)()


# what each shape of the learning rate takes besides its warm-up, as transformers' functions name it
SCHEDULE_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "polynomial": ("power", "lr_end"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "min_lr_ratio", "num_cycles"),
}
WHOLE = {("cosine_with_restarts", "num_cycles"), ("inverse_sqrt", "timescale")}


def make_scheduler(config: RunConfig, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The learning-rate schedule, by transformers' own functions.

    Raises:
        TrainingError: settings that the schedule does not take, or lacks.
    """
    from transformers import get_scheduler

    training = config.training
    shape, warm = training.lr_scheduler_type, warmup_steps(training.warmup_steps, total_steps)
    try:
        schedule: LambdaLR = get_scheduler(
            shape,
            optimizer,
            num_warmup_steps=warm,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=_schedule_settings(shape, training.lr_scheduler_kwargs, warm, total_steps),
        )
    except (TypeError, ValueError) as error:
        taken = (f"{name} takes {' and '.join(settings)}" for name, settings in SCHEDULE_SETTINGS.items())
        raise TrainingError(
            f"training.lr_scheduler_kwargs {training.lr_scheduler_kwargs} do not fit the schedule {shape}: {error}",
            f"{', '.join(taken)}; the others take none.",
        ) from error
    return schedule


def _schedule_settings(shape: str, given: Mapping[str, float], warm: int, total_steps: int) -> dict[str, Any]:
    """A schedule's settings as its function takes them; `warm` are the steps of warm-up.

    Raises:
        ValueError: one that it does not take, lacks, or that is no whole number.
    """
    found: dict[str, Any] = dict(given)
    for name, value in found.items():
        if name not in SCHEDULE_SETTINGS.get(shape, ()):
            raise ValueError(f"it takes no {name}")
        if (shape, name) in WHOLE:
            if value != int(value):
                raise ValueError(f"{name} must be a whole number, found {value}")
            found[name] = int(value)
    if shape == "warmup_stable_decay":
        if "num_decay_steps" not in found:
            raise ValueError(
                "num_decay_steps is missing: over how many steps, or which share, the rate falls at the end"
            )
        found["num_decay_steps"] = warmup_steps(found["num_decay_steps"], total_steps)
        if not 0 < found["num_decay_steps"] <= total_steps - warm:
            raise ValueError(
                f"num_decay_steps is {found['num_decay_steps']}, and {total_steps - warm} steps follow the warm-up"
            )
    return found


def check_schedule(config: RunConfig) -> None:
    """Raise TrainingError if the schedule's settings do not fit it, however many steps there will be."""
    trial = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate())
    make_scheduler(config, trial, total_steps=10**9)


def warmup_steps(setting: float, total_steps: int) -> int:
    """Steps of warm-up: a count, or below 1 a share of all steps rounded up (as TrainingArguments reads it)."""
    import math

    return int(setting) if setting >= 1 else math.ceil(total_steps * setting)


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors for safetensors, and the rest for JSON."""
    names = {id(parameter): name for name, parameter in _own_parameters(model, optimizer)}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    seen: set[int] = set()
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            place = f"{names[id(parameter)]}{SEPARATOR}{key}"
            if isinstance(value, Tensor):
                kept = value.detach().to("cpu").contiguous()
                # safetensors takes no tensor twice, and an optimizer may share one among its parameters (a quantization map)
                tensors[place] = kept.clone() if kept.data_ptr() in seen else kept
                seen.add(kept.data_ptr())
            else:
                numbers[place] = value
    unsaved = ("params", "param_names", "param_places")
    groups = [{key: value for key, value in group.items() if key not in unsaved} for group in optimizer.param_groups]
    # in an order that does not tell whether the run was gone on with
    return tensors, {"numbers": dict(sorted(numbers.items())), "param_groups": groups}


def _own_parameters(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of what an optimizer trains, whether or not they need a gradient at this moment."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) in own)


def restore_optimizer(
    model: nn.Module,
    optimizer: Optimizer,
    tensors: dict[str, Tensor],
    rest: dict[str, Any],
    counts: Collection[str] = (),
) -> None:
    """Put a saved state back, to the same bits.

    Args:
        counts: what the optimizer counts in its groups, see `OptimizerOptions.counts`; the rest of what it has a default
            for is a setting, and as the config says now.

    Raises:
        TrainingError: it belongs to other parameters than the model trains.
    """
    saved = {place.rsplit(SEPARATOR, 1)[0] for place in [*tensors, *rest["numbers"]]}
    parameters = dict(_own_parameters(model, optimizer))
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
            # settings are the config's, which may have been changed on purpose
            if key in counts or (key not in optimizer.defaults and key not in ("lr", "initial_lr")):
                group[key] = tuple(value) if isinstance(value, list) else value


def restore_scheduler(scheduler: LambdaLR, optimizer: Optimizer, last_epoch: int) -> None:
    """Put a schedule where it was after `last_epoch` steps; its shape is the config's of now."""
    scheduler.last_epoch = last_epoch
    scheduler._step_count = last_epoch + 1
    rates = [base * shape(last_epoch) for base, shape in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler._last_lr = rates
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
