"""Log-probabilities under the reference of preference stages: the model as it stands before the first step.

They are computed once for a data set and kept, each set under the hash of all that shapes them; a run that is resumed, or
one with another beta or learning rate, reads them.

Shapes: E examples, S sequences of one example or of a batch, N targets.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.examples import ExamplesWith, TokenizedExample
from luthier.data.token_arrays import StoredExamples
from luthier.foundation.files import home, whole_folder
from luthier.foundation.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.data.batch import Batch
    from luthier.training.engine import Engine

FORMAT_VERSION = 1  # raise it when what is kept changes its meaning
FILE = "logp.safetensors"
Array = np.ndarray[Any, np.dtype[np.float32]]


def name_of(sequence: int) -> str:
    """What an example's extras call the reference's log-probability of one of its sequences."""
    return f"reference.{sequence}"


def sequence_logp(logp_N: Tensor, batch: Batch) -> Tensor:
    """The log-probability of each sequence's targets together, each counted by its weight, float32 [S]."""
    whole_S = logp_N.new_zeros(len(batch.leaves))
    return whole_S.index_add(0, batch.sequence_of_source_N, logp_N * batch.weights_N)


@dataclass(frozen=True)
class Reference:
    """The reference of a run, and where its numbers are kept.

    Args:
        scorer: as the engine prepared it, before any step.
        identity: everything that shapes the numbers beside the examples and their batches: model, method, precision.
        batch_size: examples of a batch. share: see `luthier.data.packing.pack`.
        say: told whether they are computed or read.
    """

    scorer: nn.Module
    engine: Engine
    identity: Mapping[str, Any]
    batch_size: int
    share: bool
    say: Callable[[str], None]

    def examples(self, name: str, examples: StoredExamples) -> Sequence[TokenizedExample]:
        """The examples of a split with the reference's log-probabilities among their extras."""
        if not len(examples):
            return examples
        logp_ES = self.logp(name, examples)
        return ExamplesWith(examples, {name_of(number): column for number, column in enumerate(logp_ES.T)})

    def logp(self, name: str, examples: StoredExamples) -> Array:
        """float32 [E, S], computed where nothing is kept. All ranks call it alike, and get what rank 0 has."""
        path = reference_folder() / self._key(examples)
        shape = (len(examples), len(examples[0].sequences))
        kept = _read(path, shape) if self.engine.rank == 0 else None
        if self.engine.lead(lambda: kept is not None):  # another machine's cache may lack it
            self.say(f"reference: log-probabilities of {name} from the cache ({path})")
            return self._summed(np.zeros(shape) if kept is None else kept)
        found = self._compute(name, examples)
        self.engine.lead(lambda: _write(path, found, self.say))
        return found

    def _compute(self, name: str, examples: StoredExamples) -> Array:
        """Each rank computes its batches; the numbers of all are added to zeros elsewhere."""
        import torch

        from luthier.data.packing import pack
        from luthier.training.exhaustion import reading

        engine = self.engine
        found = np.zeros((len(examples), len(examples[0].sequences)))
        starts = range(0, len(examples), self.batch_size)[engine.rank :: engine.world_size]
        self.scorer.eval()
        self.say(f"reference: log-probabilities of {len(examples):,} examples of {name}, once")
        with torch.no_grad(), reading(), progress_bar(f"reference of {name}", len(examples), unit="rows") as bar:
            for start in starts:
                batch = pack(examples[start : start + self.batch_size], self.share).to(engine.device)
                with engine.autocast():
                    logp_S = sequence_logp(self.scorer(batch).logp_N, batch)
                rows = logp_S.view(-1, found.shape[1]).double().cpu().numpy()
                found[start : start + len(rows)] = rows
                bar.advance(len(rows) * engine.world_size)
        self.scorer.train()
        return self._summed(found)

    def _summed(self, part: np.ndarray[Any, Any]) -> Array:
        """The sum over all ranks."""
        if self.engine.world_size > 1:
            part = np.array(self.engine.totals(*part.ravel().tolist())).reshape(part.shape)
        return part.astype(np.float32)

    def _key(self, examples: StoredExamples) -> str:
        about = {**self.identity, "data": examples.content_hash(), "batch_size": self.batch_size, "share": self.share}
        about |= {"format_version": FORMAT_VERSION, "world_size": self.engine.world_size}
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:40]


def reference_folder() -> Path:
    """Where they are kept: `references` in luthier's cache."""
    return home() / "references"


def _write(path: Path, logp_ES: Array, say: Callable[[str], None]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    shutil.rmtree(path, ignore_errors=True)  # a damaged one
    try:
        with whole_folder(path) as building:
            save_file({"logp": np.ascontiguousarray(logp_ES)}, building / FILE)
    except (OSError, SafetensorError) as error:  # safetensors has one of its own for what the system refuses
        if not path.is_dir():  # else another run has written the same meanwhile
            say(f"reference: not kept, since {path} can't be written ({error}); a resumed run computes it again")


def _read(path: Path, shape: tuple[int, int]) -> Array | None:
    """What is kept, if it is whole."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found: Array = load_file(path / FILE)["logp"]
    except (OSError, SafetensorError, KeyError):
        return None
    return found if found.shape == shape else None
