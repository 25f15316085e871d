"""Where a model's modules lie: on one device, over several, or partly in memory and on the disk, for use and export."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import ModelError, UserError
from luthier.foundation.registry import nearest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

AUTO = "auto"
DISK = "disk"


@dataclass(frozen=True, slots=True)
class Placement:
    """Which module goes where.

    Args:
        device_map: auto (accelerators first, then memory, then the disk), or devices by the names of modules; "" is all.
        offload_folder: where modules on the disk go; None: only those that stay in their own weight files may.
    """

    device_map: str | Mapping[str, int | str]
    offload_folder: Path | None = None


def parse(device_map: str | None, offload_folder: str | None) -> Placement | None:
    """What a command line asks for: `auto`, a device, or a JSON mapping.

    Raises:
        UserError: neither of these, or a folder for modules that nothing puts there.
    """
    if device_map is None:
        if offload_folder is not None:
            raise UserError("--offload-folder has no effect without --device-map.", "Add --device-map auto.")
        return None
    folder = Path(offload_folder).expanduser() if offload_folder is not None else None
    if not device_map.lstrip().startswith("{"):
        return Placement(device_map if device_map == AUTO else {"": device_map}, folder)
    try:
        found = json.loads(device_map)
    except ValueError as error:
        raise UserError(
            f"--device-map is broken JSON: {error}.",
            'Write it like auto, cpu, or \'{"model.embed_tokens": 0, "model.layers": "cpu", ...}\'.',
        ) from error
    return Placement(found, folder)


def resolved(placement: Placement, model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Any]:
    """A device for every module, from a skeleton.

    Raises:
        ModelError: names of modules that there are not, modules without a device, no folder for those on the disk.
    """
    import torch
    from accelerate import infer_auto_device_map

    if placement.device_map == AUTO:
        kinds = list(getattr(model, "_no_split_modules", None) or [])
        found = dict(infer_auto_device_map(model, no_split_module_classes=kinds, dtype=dtype))
    else:
        found = dict(placement.device_map)  # type: ignore[arg-type]
        _check_names(found, model)
        found = _rest_named(found, model)
    for name, device in found.items():
        try:
            torch.device(device if device != DISK else "cpu")
        except (RuntimeError, TypeError) as error:
            raise ModelError(
                f"the device map puts {name or 'the model'} on {device!r}, which is no device.",
                "Devices are cpu, disk, cuda:0 or the number of a GPU.",
            ) from error
    if DISK in found.values() and placement.offload_folder is None:
        raise ModelError(
            f"the device map puts {sum(device == DISK for device in found.values())} modules on the disk, and no folder is named "
            "for them.",
            "Name one with room for them: --offload-folder DIR.",
        )
    return found


def _rest_named(device_map: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """The map without its entry for all others: transformers takes it for the whole model beside the named ones."""
    if "" not in device_map or len(device_map) == 1:
        return device_map
    named = {name: device for name, device in device_map.items() if name}
    rest = {
        name: device_map[""]
        for name, module in model.named_modules()
        if name
        and not any(name == part or name.startswith(f"{part}.") for part in named)
        and [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    }
    return {**named, **rest}


def _check_names(device_map: Mapping[str, Any], model: PreTrainedModel) -> None:
    modules = {name for name, _ in model.named_modules()}
    for name in device_map:
        if name not in modules:
            close = nearest(name, modules, 3)
            raise ModelError(
                f"the device map names {name!r}, which is no module of {type(model).__name__}.",
                f"Did you mean {' or '.join(close)}?"
                if close
                else "Its parts: " + ", ".join(sorted(modules)[1:8]) + " ...",
            )
    without = [
        name
        for name, _ in model.named_parameters()
        if not any(part == "" or name == part or name.startswith(f"{part}.") for part in device_map)
    ]
    if without:
        raise ModelError(
            f"the device map has no device for {len(without)} weights, such as {without[0]}.",
            'Name every module, or give all others a device with "".',
        )


def check_on_one(
    device_map: str | Mapping[str, int | str], skeleton: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> None:
    """Refuse a device map that would put a part of a model in training elsewhere than on the process's device.

    Raises:
        ModelError: with the first module that would lie elsewhere.
    """
    import torch

    # the folder is not used: nothing is put there
    found = resolved(Placement(device_map, Path()), skeleton, dtype)
    for name, place in found.items():
        where = torch.device("meta") if place == DISK else torch.device(place)
        if where.type != device.type or (where.index or 0) != (device.index or 0):
            raise ModelError(
                f"model.device_map puts {name or 'the model'} on {place}, and this process trains on {device}: a module that "
                "lies elsewhere can't be trained.",
                "Leave model.device_map out; a model that does not fit is trained with model.quantization, or on several GPUs.",
            )


def dispatch(model: Any, inner: PreTrainedModel, device_map: Mapping[str, Any], folder: Path | None) -> Any:
    """Put the modules of a loaded model, an adapter around it included, where they belong."""
    from accelerate import dispatch_model

    prefix = next(name for name, module in model.named_modules() if module is inner)
    full = {".".join(filter(None, (prefix, name))): device for name, device in device_map.items()}
    beside = None if folder is None else workshop(folder, model)
    devices = set(full.values()) - {DISK}
    placed = dispatch_model(
        model, full, offload_dir=beside, main_device=None if devices - {"cpu"} else "cpu", force_hooks=True
    )
    inner.hf_device_map = dict(
        device_map
    )  # by which transformers knows, when it saves the model, where its weights are
    return placed


def workshop(folder: Path, owner: object) -> str:
    """A folder of this process's own in the one named, which goes with its owner."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(prefix="luthier-offload-", dir=folder)
    weakref.finalize(owner, shutil.rmtree, made, ignore_errors=True)
    return made


def is_spread(model: Any) -> bool:
    """Whether a model's modules lie on several devices or come from the disk for each pass: its weights are there only
    while the module that owns them is called."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    devices = set(getattr(inner, "hf_device_map", {"": 0}).values())
    return hasattr(model, "_hf_hook") or len(devices) > 1


def input_device(model: Any) -> torch.device:
    """Where a model takes its token ids: not the device of its first weights, if those lie on the disk."""
    import torch

    own: torch.device = model.device
    return torch.device("cpu") if own.type == "meta" else own


def without_gradients(model: Any) -> AbstractContextManager[Any]:
    """torch's inference mode; where modules come from the disk for each pass, they must not stay tensors of that mode."""
    import torch

    return torch.no_grad() if hasattr(model, "_hf_hook") else torch.inference_mode()
