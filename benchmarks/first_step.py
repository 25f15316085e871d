"""A transformers callback that notes when the first step begins."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class FirstStep(TrainerCallback):
    """Writes when the first step begins, and what was imported by then."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            begun = time.time()
            packages = {name for name in sys.modules if not name.startswith(("luthier", "benchmarks", "__"))}
            foreign = {name for name in packages if name.partition(".")[0] not in sys.stdlib_module_names}
            # of a package's own modules only transformers': it reads them when they are asked for
            names = [
                name for name in sys.modules if name in foreign and ("." not in name or "transformers.models" in name)
            ]
            Path(os.environ["LUTHIER_FIRST_STEP"]).write_text(
                json.dumps({"begun": begun, "modules": names}), encoding="utf-8"
            )
