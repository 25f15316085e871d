"""metrics.jsonl: one line for the steps since the line before, or for an evaluation; and the plot made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.foundation.files import write_text


@dataclass(slots=True)
class Window:
    """What the steps since the last line added up to. `seconds` leaves out evaluation and saving; learning_rate and
    grad_norm are the last step's, the norm None where it is not finite."""

    steps: int = 0
    loss_sum: float = 0.0
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    learning_rate: float | None = None
    grad_norm: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class JsonLines:
    """A file that grows by lines while a run goes on, and is cut back where one goes on from a checkpoint.

    Args:
        writes: False on every rank but the first, which count its lines only.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.lines = self._count()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        if self.writes:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, allow_nan=False) + "\n")
        self.lines += 1

    def cut_to(self, lines: int) -> None:
        """Keep the first `lines` lines: a resumed run writes the later ones again."""
        if not (self.writes and self.path.exists()):
            self.lines = 0
            return
        kept = self.path.read_text(encoding="utf-8").splitlines()[:lines]
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        self.lines = len(kept)

    def _count(self) -> int:
        return len(self.path.read_text(encoding="utf-8").splitlines()) if self.writes and self.path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """All lines."""
        return (
            [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            if self.path.exists()
            else []
        )


def plot_losses(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training and evaluation loss over steps into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    evaluated = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if trained:
        steps, losses = zip(*trained, strict=True)
        # a dot where there is only one line, which a curve would not show
        axes.plot(
            steps,
            losses,
            color="#b5651d",
            linewidth=1.6,
            marker="o" if len(steps) < 30 else "",
            markersize=3,
            label="training",
        )
    if evaluated:
        steps, losses = zip(*evaluated, strict=True)
        axes.plot(steps, losses, color="#1f6f8b", linewidth=1.6, marker="s", markersize=4, label="evaluation")
    for name in sorted({key for line in lines for key in line if key.startswith("eval_") and key.endswith("_loss")}):
        if name != "eval_loss":
            points = [(line["step"], line[name]) for line in lines if name in line]
            label = name.removeprefix("eval_").removesuffix("_loss")
            axes.plot(*zip(*points, strict=True), linewidth=1, linestyle="--", marker=".", label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per target)")
    if title.isascii():  # matplotlib's own font has no other letters, and would draw boxes
        axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    if trained or evaluated:
        axes.legend(frameon=False)
    temporary = path.with_name(f".{path.name}.part")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
