"""What the verbs of the command line have in common: arguments that mean the same everywhere, and where output goes."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, get_type_hints

import typer

from luthier.foundation.errors import UserError
from luthier.foundation.files import finite

if TYPE_CHECKING:
    from luthier.config.schema import ModelConfig
    from luthier.model.placement import Placement

Config = Annotated[
    str | None, typer.Argument(metavar="[CONFIG]", help="A YAML or JSON file; may be left out where settings say all.")
]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as training.learning_rate=1e-4.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="Put this adapter on the model, as PATH or PATH=WEIGHT; may be repeated."),
]
Combine = Annotated[
    str,
    typer.Option(help="How several adapters become one: stack, or a name of `luthier config explain model.combine`."),
]
Template = Annotated[str, typer.Option(help="Chat template: auto is the tokenizer's own.")]
Quantization = Annotated[str | None, typer.Option(help="Read a plain base as nf4, fp4 or int8.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Where modules lie: auto (accelerators, then memory, then the disk), a device, or a JSON mapping."
    ),
]
OffloadFolder = Annotated[str | None, typer.Option(help="Where --device-map puts modules that lie on the disk.")]
Ended = tuple[Any, bool]
"""A verb's result, and whether --json was given: the command line prints the object."""


def grouped(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb for typer, whose parameters that are of a dataclass are options: the fields, in the parameter's place."""
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}
    parameters = []
    for name, parameter in inspect.signature(verb).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        kinds = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            default = parameter.empty if field.default is MISSING else field.default
            parameters.append(
                inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=default, annotation=kinds[field.name])
            )

    def called(**given: Any) -> Any:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        return verb(**given)

    called.__name__, called.__doc__ = verb.__name__, verb.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


@dataclass(frozen=True)
class OnModel:
    """What is put on a model, and how its base is read."""

    adapter: Adapters = None
    combine: Combine = "stack"
    quantization: Quantization = None

    def named(self, model: str) -> ModelConfig:
        """The model by its name, with all that."""
        return named_model(model, self.adapter or (), self.combine, self.quantization)


@dataclass(frozen=True)
class Placed:
    """Where a model's modules lie."""

    device_map: DeviceMap = None
    offload_folder: OffloadFolder = None

    def placement(self) -> Placement | None:
        """That, parsed."""
        from luthier.model.placement import parse

        return parse(self.device_map, self.offload_folder)


def people(as_json: bool) -> TextIO:
    """Where output for people goes: --json keeps standard output for the object."""
    return sys.stderr if as_json else sys.stdout


def print_json(value: dict[str, Any]) -> None:
    """One object as the last line of standard output; null for a number that is not finite."""
    sys.stderr.flush()
    print(json.dumps(finite(value), ensure_ascii=False, default=str, allow_nan=False), flush=True)


def named_model(
    name: str, adapters: Sequence[str] = (), combine: str = "stack", quantization: str | None = None
) -> ModelConfig:
    """A model by name with adapters on it, each PATH or PATH=WEIGHT.

    Raises:
        UserError: a weight or a combination that the config would refuse.
    """
    from pydantic import ValidationError  # here: it would take longer than all of `luthier --help`

    from luthier.config.model_section import QUANTIZED_TYPES
    from luthier.config.schema import ModelConfig

    if quantization is not None and quantization not in QUANTIZED_TYPES:
        raise UserError(
            f"--quantization is {quantization!r}.", f"It is {', '.join(QUANTIZED_TYPES)}; a config may say more."
        )
    entries: list[dict[str, Any]] = []
    for text in adapters:
        path, sign, weight = text.rpartition("=")
        entries.append(
            {"path": path, "weight": weight} if sign and path and not Path(text).exists() else {"path": text}
        )
    try:
        return ModelConfig.model_validate(
            {"name": name, "adapters": entries, "combine": combine, "quantization": quantization}
        )
    except ValidationError as error:
        found = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise UserError(
            f"--adapter, --combine or --quantization can't be used: {'; '.join(found)}.",
            "Such as --adapter runs/a=0.7 --adapter runs/b=0.3 --combine cat.",
        ) from error


def split_config(config: str | None, settings: list[str] | None) -> tuple[str | None, list[str]]:
    """A first argument that has a `=` and names no file is a setting, not the config."""
    if config is not None and "=" in config and not Path(config).exists():
        return None, [config, *(settings or ())]
    return config, list(settings or ())
