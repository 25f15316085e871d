"""`training.tokens_per_batch: auto` at a run's start: the number is found once, noted in run.json, and taken again by whoever goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.commands import run_folder
from luthier.foundation.devices import free_memory_bytes
from luthier.foundation.files import human_bytes, read_json
from luthier.foundation.progress import say
from luthier.foundation.ranks import ranks_here

if TYPE_CHECKING:
    from luthier.commands.setup import Setup
    from luthier.training.engine import Engine

Settled = Mapping[str, Any]
UNSETTLED: Settled = {}


def free_for_each(setup: Setup, engine: Engine) -> int:
    """Bytes that are free for each rank, the least that one finds; 0 where nobody needs to know."""
    training = setup.config.training
    if training.tokens_per_batch != "auto":
        return 0
    share = 1 if engine.device.type == "cuda" else ranks_here()
    return -engine.largest(-(free_memory_bytes(engine.device) // share))[0]


def settle(
    setup: Setup, engine: Engine, folder: Path, free_bytes: int, trust_remote_code: bool, again: bool
) -> Settled:
    """What run.json is told of a run's batches, see `BatchTokens`; empty where the config says it all.

    Args:
        free_bytes: see `free_for_each`. again: the run goes on from a checkpoint, with what was settled at its start.

    Raises:
        UserError: not even one example fits, or batches can't be merged here.
    """
    from luthier.planning.batch_tokens import choose_tokens
    from luthier.planning.hardware import this_machine
    from luthier.planning.planner import Planner
    from luthier.planning.subject import Subject

    training = setup.config.training
    if training.tokens_per_batch != "auto":
        return UNSETTLED
    before: Settled = read_json(folder / run_folder.RUN_FILE).get("batches") or UNSETTLED if again else UNSETTLED
    if before and before["memory_budget_gib"] == training.memory_budget_gib:
        say(f"batches hold at most {before['tokens']:,} tokens, as at the run's start")
        return before
    hardware = replace(this_machine(training.use_cpu), count=engine.world_size)
    planner = Planner(Subject.of(setup, trust_remote_code=trust_remote_code), hardware)
    found = choose_tokens(planner, setup.config, free_bytes)
    say(str(found))
    if found.budget_bytes > planner.fixed_bytes + free_bytes:
        say(f"training.memory_budget_gib is more than the {human_bytes(free_bytes)} that are free")
    if planner.device.kind != "cpu":
        say("what a GPU holds is reckoned, not measured: lower training.memory_budget_gib if memory runs out")
    return {"memory_budget_gib": training.memory_budget_gib, **found.as_dict()}


def bounded(setup: Setup, settled: Settled) -> None:
    """Give a setup's config the number that was settled."""
    from luthier.planning.batch_tokens import with_tokens

    if settled:
        setup.config = with_tokens(setup.config, settled["tokens"])
