"""What the verbs of the command line have in common: arguments that mean the same everywhere, and where output goes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from luthier.foundation.errors import UserError

if TYPE_CHECKING:
    from luthier.config.schema import ModelConfig

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


def people(as_json: bool) -> TextIO:
    """Where output for people goes: --json keeps standard output for the object."""
    return sys.stderr if as_json else sys.stdout


def print_json(value: dict[str, Any]) -> None:
    """One object as the last line of standard output."""
    sys.stderr.flush()
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def named_model(
    name: str, adapters: Sequence[str] = (), combine: str = "stack", quantization: str | None = None
) -> ModelConfig:
    """A model by name with adapters on it, each PATH or PATH=WEIGHT.

    Raises:
        UserError: a weight or a combination that the config would refuse.
    """
    from pydantic import ValidationError  # here: it would take longer than all of `luthier --help`

    from luthier.config.schema import ModelConfig

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
