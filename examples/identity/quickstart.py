"""What `make quickstart` runs: three questions before, a training run of minutes, the same questions after."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import luthier
from luthier.commands.chat import open_talker
from luthier.commands.models import fetch
from luthier.config.generation_section import GenerationSettings
from luthier.config.loading import load
from luthier.config.model_section import ModelConfig
from luthier.data.records import Message
from luthier.foundation.errors import LuthierError

HERE = Path("examples") / "identity"  # `make quickstart` runs in the repository
CONFIG = HERE / "config.yaml"
LONGEST_ANSWER_TOKENS = 60
ENDINGS = (".", "!", "?", "。", "！", "？")


def answers(model: str, questions: list[str]) -> list[str]:
    """What a model says to each question; the likeliest token each time, so the same on every run."""
    talker = open_talker(ModelConfig(name=model), GenerationSettings(max_new_tokens=LONGEST_ANSWER_TOKENS))
    told = [talker.answer([Message("user", question)]).strip() for question in questions]
    return [text if text.endswith(ENDINGS) else f"{text} ..." for text in told]  # cut at the longest answer


def show(name: str, answer: str) -> None:
    """An answer beside its name, in lines of a terminal's width."""
    print(textwrap.fill(answer, 100, initial_indent=f"  {name:<8}", subsequent_indent=" " * 10))


def main() -> int:
    """Fetch, ask, train, ask again."""
    config = load(CONFIG)
    questions = (HERE / "held_out.txt").read_text(encoding="utf-8").splitlines()
    print(f"1. Fetching {config.model.name} (once; it stays in the cache)", flush=True)
    fetch(config.model.name)
    print("2. Asking it three questions that are not in the training data", flush=True)
    before = answers(config.model.name, questions)
    print(f"3. Training LoRA on {config.data.train[0].path}: a few minutes on two cores", flush=True)
    result = luthier.train(CONFIG, overwrite=True)
    print("4. Asking the same questions again", flush=True)
    after = answers(result.output_dir, questions)
    for question, untrained, trained in zip(questions, before, after, strict=True):
        print(f"\n{question}")
        show("before:", untrained)
        show("after:", trained)
    print(f"\nTrained in {result.seconds:.0f} s. The loss curve: {result.loss_plot}")
    print("Three commands to try next:")
    luthier_command = Path(sys.executable).with_name("luthier")
    if luthier_command.is_relative_to(Path.cwd()):
        luthier_command = luthier_command.relative_to(Path.cwd())
    print(f"  {luthier_command} chat {result.output_dir} --compare-base")
    print(f"  {luthier_command} export {result.output_dir} runs/identity-merged --format merged")
    print(f"  {luthier_command} train {CONFIG} method.rank=16 output_dir=runs/identity-16")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LuthierError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
