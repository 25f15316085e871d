"""What is computed once, before the first step, and kept: a preference stage's reference, and the states below the layers
that learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from luthier.commands import run_folder
from luthier.commands.setup import Setup
from luthier.config.loading import dump
from luthier.data.examples import ExamplesThrough, TokenizedExample
from luthier.data.fingerprints import code_fingerprint, plugin_code, tokenizer_fingerprint
from luthier.data.token_arrays import ExamplesPart
from luthier.foundation.progress import say
from luthier.scoring.scorer import Scorer, transformers_model
from luthier.scoring.trunk import GOES_NOT_ON, Room, make_trunk, remove_trunk, trunk_layer
from luthier.training.engine import Engine
from luthier.training.grouping import Packing
from luthier.training.reference import Reference


def with_reference(
    setup: Setup, engine: Engine, scorer: nn.Module, share: bool
) -> dict[str, Sequence[TokenizedExample]]:
    """The run's examples by split; where the stage asks for it, with the log-probabilities of the model as it is now."""
    data, size = setup.data, setup.config.training.per_device_eval_batch_size
    whole = {"train": data.train, "validation": data.validation, "test": data.test}
    splits: dict[str, Sequence[TokenizedExample]] = {**whole}
    if setup.stage.reference:
        reference = Reference(scorer, engine, _identity(setup, engine, scorer), size, share, say)
        splits = {name: reference.examples(name, examples) for name, examples in whole.items()}
    for name, part in data.validation_sets.items():
        splits[f"validation {name}"] = ExamplesPart(splits["validation"], part.places)
    return splits


def with_trunk(setup: Setup, engine: Engine, scorer: Scorer, packing: Packing, run: Path, reserved: int) -> Packing:
    """The packing, which names rows of the trunk where the scorer has one; it stands in the run's folder until its end.

    There is none of a stream, and where `trunk_layer` or `make_trunk` says so.

    Args:
        reserved: bytes of the disk that the run needs for its checkpoints.
    """
    config, train, model = setup.config, setup.data.train, transformers_model(scorer.model)
    limit = config.training.trunk_cache_limit_gib
    epochs = setup.schedule.total_epochs if setup.data.stream is None else 1
    layer = trunk_layer(model, scorer, limit, epochs, engine.world_size, train.longest_sequence)
    if not layer:
        engine.lead(lambda: remove_trunk(run / run_folder.TRUNK))  # of the run as it was before a change
        return packing
    if not scorer.finding.goes_on:
        say(f"trunk: {GOES_NOT_ON}")
        return packing
    learnt = ExamplesThrough(train, setup.stage.learnt)
    tokens_E = train.token_counts if setup.stage.learns_whole else np.array([example.tokens for example in learnt])
    about = {**_identity(setup, engine, scorer), "data": train.content_hash(), "tokens": int(tokens_E.sum())}
    folder, room = run / run_folder.TRUNK, Room(limit, reserved)
    scorer.trunk = make_trunk(model, layer, learnt, folder, room, about, engine, say)
    if scorer.trunk is None:
        return packing
    return replace(packing, trunk_starts=(tokens_E.cumsum() - tokens_E).tolist())


def _identity(setup: Setup, engine: Engine, scorer: nn.Module) -> dict[str, Any]:
    """Everything that shapes numbers of the model as it is before the first step, beside the tokens that it reads."""
    told, training = dump(setup.config), setup.config.training
    dtypes = sorted({str(parameter.dtype) for parameter in scorer.parameters()})  # model.dtype auto asks the device
    return {
        # the weights' bytes: a model that was trained anew in its place has the same names, sizes and headers
        "model": [engine.lead(setup.source.content_hash), told["model"], told["method"], training.seed],
        "tokenizer": tokenizer_fingerprint(setup.tokenizer),  # the model has a row for each of its tokens
        "precision": [training.bf16, training.fp16, training.pure_bf16, training.tf32, dtypes],
        "device": engine.device.type,
        "versions": run_folder.versions(),
        "code": [code_fingerprint("**/*.py"), plugin_code({setup.config.method.name})],
    }
