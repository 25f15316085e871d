"""Runs in processes of their own, which may be killed, and what two runs must have alike."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests import warm_python

RUNNER = Path(__file__).with_name("killed_run.py")


def launch(
    config: dict[str, Any],
    folder: Path,
    *arguments: str,
    limits: dict[str, int] | None = None,
    kill_after_seconds: float | None = None,
) -> subprocess.CompletedProcess[str]:
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    command = [str(RUNNER), str(file), *arguments]
    return warm_python.run(*command, outputs=folder, limits=limits, kill_after_seconds=kill_after_seconds)


def traces(out: Path) -> dict[str, Any]:
    """Everything that must have the same bits: weights, optimizer, the lines but for their seconds."""
    last = sorted((out / "checkpoints").glob("step-*"))[-1]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "lines": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "optimizer_rest": (last / "optimizer.json").read_text(),
        "weights": [(out / "final" / name).read_bytes() for name in names(out / "final")],
        "step": last.name,
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))
