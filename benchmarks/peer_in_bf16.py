"""The peer's script under autocast in bfloat16 (`bf16=True`); its weights stay float32.

python benchmarks/peer_in_bf16.py ../shared/bench/peer_trainer.py --peer hf ...
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import transformers


class InBf16(transformers.TrainingArguments):
    """What the script sets, but for the precision."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "bf16": True})


def main() -> int:
    transformers.TrainingArguments = InBf16  # type: ignore[misc]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
