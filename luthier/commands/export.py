"""`luthier export`: a trained model as plain transformers or peft loads it, compared with the one it was made from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from luthier.commands.verb_options import named_model
from luthier.config.adapters_section import STACK
from luthier.config.plugins import EXPORTERS
from luthier.exporting.exporter import Exporter, ExportRequest, ExportResult
from luthier.foundation.errors import CheckpointError, UserError
from luthier.foundation.files import free_bytes, human_bytes, is_disk_full, whole_folder
from luthier.foundation.progress import say
from luthier.model.placement import parse

# what a model's folder holds: --overwrite removes nothing else
MODEL_FILE = re.compile(r"\.(safetensors|json|jinja|model|txt)$|^README\.md$")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def export(
    model: str,
    out: str | Path,
    *,
    format: str = "merged",
    max_shard_size: str = "5GB",
    dtype: str = "auto",
    overwrite: bool = False,
    adapters: Sequence[str] = (),
    combine: str = STACK,
    device_map: str | None = None,
    offload_folder: str | None = None,
    trust_remote_code: bool = False,
) -> ExportResult:
    """Export a model.

    Args:
        model: a run, a checkpoint, an adapter or a model.
        out: the folder to write; it appears whole or not at all.
        format: a name in exporting/exporters, or a dotted path.
        adapters: put on the model, each PATH or PATH=WEIGHT. combine: how several become one, as model.combine.
        device_map: see `luthier.model.placement.parse`.

    Raises:
        UserError: the folder is in use, the precision unknown, the model not exportable so.
    """
    from luthier.model import loading

    module = EXPORTERS.load(format)
    exporter: Exporter = module.build(module.Options(name=format))
    target = Path(out).expanduser()
    _check_options(target, dtype, max_shard_size, overwrite)
    placement = parse(device_map, offload_folder)
    if placement is not None and format != "merged":
        raise UserError(f"--device-map has no effect on format {format}.", "Leave it out, or choose --format merged.")
    source = loading.find(named_model(model, adapters, combine))
    parts = [part.resolve() for part in (source.base, *(part.folder for part in source.adapters))]
    if any(part == target.resolve() or target.resolve() in part.parents for part in parts):
        raise UserError(f"{str(target)!r} holds the model that is to be exported.", "Choose another folder.")
    try:
        with whole_folder(target) as building:
            measured = exporter.export(
                ExportRequest(source, building, max_shard_size, dtype, trust_remote_code, placement)
            )
            files = [path for path in building.rglob("*") if path.is_file()]
            for path in files:
                path.chmod(0o644)  # safetensors writes files that only their owner can read
            size = sum(path.stat().st_size for path in files)
            if target.exists() and overwrite:
                shutil.rmtree(target)
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise CheckpointError(
            f"the disk is full: the export could not be written to {target} ({human_bytes(free_bytes(target))} free).",
            "Make room, or choose another disk; nothing was left behind.",
        ) from error
    result = ExportResult(str(target), format, bytes=size, files=len(files), **asdict(measured))
    _say_measured(result)
    return result


def _say_measured(result: ExportResult) -> None:
    say(
        f"Exported to {result.path}: {result.format}, {result.dtype}, {human_bytes(result.bytes)} in {result.files} files."
    )
    say(
        f"Read back, its logits differ from the source's by at most {result.largest_logit_difference:.2g} "
        f"(the largest logit is {result.largest_logit:.3g})."
    )
    if result.quantized_logit_difference is not None:
        say(
            "The adapter was trained beside quantized weights, and stands in plain ones now: from what was trained the "
            f"logits differ by at most {result.quantized_logit_difference:.2g}."
        )
    if result.dtype == "float32" and result.largest_logit_difference > 1e-3 * result.largest_logit:
        say("warning: that is more than rounding: the exported model is not the one that was trained.")


def _check_options(target: Path, dtype: str, max_shard_size: str, overwrite: bool) -> None:
    """Raise UserError for what can be refused before the model is looked for."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown.", f"Choose one of {', '.join(DTYPES)}.")
    limit = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", max_shard_size.strip(), re.IGNORECASE)
    if limit is None or float(limit[1]) <= 0:
        raise UserError(f"--max-shard-size {max_shard_size!r} is no size.", "Write it like 5GB or 500MB.")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise UserError(
            f"{str(target)!r} is there already and not empty.", "Choose another folder, or replace it with --overwrite."
        )
    strange = [path.name for path in sorted(target.iterdir())] if target.is_dir() else [target.name]
    if target.is_dir() and any((target / name).is_file() for name in ("config.json", "adapter_config.json")):
        strange = [name for name in strange if not MODEL_FILE.search(name)]
    if strange:
        raise UserError(
            f"--overwrite would remove {', '.join(strange[:5])} in {str(target)!r}, which no export left there.",
            "Choose another folder.",
        )
