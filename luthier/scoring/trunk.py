"""The trunk: hidden states below the lowest trained layer, which no step changes, computed once for each example.

They are kept on disk and mapped into memory; every epoch begins at the first trained layer.

Shapes: T tokens of a packed row, R tokens of all examples, end to end, H hidden width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.data.batch import Batch
from luthier.data.packing import pack
from luthier.foundation.files import free_bytes, human_bytes, remove_leftovers, whole_folder
from luthier.foundation.progress import progress_bar
from luthier.scoring.attention import Layout
from luthier.scoring.backbone import backbone_of
from luthier.scoring.dropout import drops_out
from luthier.scoring.dynamic_positions import independent_length

if TYPE_CHECKING:
    from luthier.data.examples import TokenizedExample
    from luthier.scoring.scorer import Scorer

STATES, ABOUT = "states.bin", "about.json"
# Of a pass, in whole examples: always the same ones, so that a rebuilt trunk has the same bits however a run packs. Without
# gradients so many take little beside a step; an example that is longer is one that a step must hold too.
TOKENS_AT_ONCE = 2048
TOLERANCE = 1e-5
GOES_NOT_ON = (
    "none: in this family the layers above need more than the states that reach them, which are computed in every epoch"
)
MAKING = "It was while the trunk was made: the states below the layers that learn."  # a note of the error


@dataclass(frozen=True)
class Trunk:
    """The hidden states that enter a layer.

    Args:
        layer: number of layers below.
        states_RH: of every token of every example, mapped from a file; float32.
        dtype: that they have in the model: not that of the layer's weights, which may be in 4 bits.
    """

    layer: int
    states_RH: np.ndarray[Any, np.dtype[np.float32]]
    dtype: torch.dtype

    def of(self, rows_T: Tensor, like: nn.Module) -> Tensor:
        """The states [T, H] of some rows, on the device of a module's weights."""
        chosen = torch.from_numpy(self.states_RH[rows_T.cpu().numpy()])
        return chosen.to(device=next(like.parameters()).device, dtype=self.dtype)


class Computing(Protocol):
    """Where and in which precision a run computes."""

    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision context of a forward pass."""
        ...


class _ReachedError(Exception):
    """The layer above the trunk has been reached."""


def frozen_layers(model: PreTrainedModel) -> int:
    """How many layers, from the first, neither learn nor drop anything out; 0 where the embedding learns or does."""
    backbone: Any = backbone_of(model)
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return 0
    # of layers that share a parameter the lowest counts, which is written last
    within = {id(p): number for number, layer in reversed(list(enumerate(layers))) for p in layer.parameters()}
    last_norm: Any = getattr(backbone, "norm", None)
    of_norm = {id(p) for p in last_norm.parameters()} if isinstance(last_norm, nn.Module) else set()
    before = {id(p) for p in backbone.parameters()} - within.keys() - of_norm  # embeddings, of tokens or positions
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    if learning & before:
        return 0
    # the last layer is always computed: it may be narrowed to what is read
    lowest = min([len(layers) - 1, *(number for key, number in within.items() if key in learning)])
    dropping = next((number for number, layer in enumerate(layers) if drops_out(layer)), lowest)
    outside = (part for name, part in backbone.named_children() if name != "layers")
    return 0 if any(map(drops_out, outside)) else min(lowest, dropping)


def trunk_layer(model: PreTrainedModel, scorer: Scorer, limit_gib: float, epochs: int, ranks: int, longest: int) -> int:
    """The layer that a run's trunk leads up to; 0 where it has none: every layer learns, a run makes one pass, the route is
    padded, a router's loss reads every layer, or several ranks would each need one.

    Args:
        model: what the scorer reads. limit_gib: of the trunk on disk; 0: none is wanted.
        longest: tokens of the longest sequence, by which a batch's states may differ.
    """
    if longest > independent_length(model):
        return 0
    if not limit_gib or epochs < 2 or ranks > 1 or scorer.route == "padded" or scorer.router_loss.arguments:
        return 0
    return frozen_layers(model)


class _StandIn(nn.Module):
    """In the place of a layer below: gives the states of all of them, whatever comes in."""

    def __init__(self, states_TH: Tensor) -> None:
        super().__init__()
        self.states_1TH = states_TH[None]

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.states_1TH


@contextmanager
def above(model: PreTrainedModel, layer: int, states_TH: Tensor) -> Iterator[None]:
    """The model with its layers from `layer` on alone, which go on from the states [T, H].

    Those above keep their numbers, by which some families (Gemma 3) choose a layer's mask and positions.
    """
    backbone: Any = backbone_of(model)
    whole = backbone._modules["layers"]
    backbone._modules["layers"] = nn.ModuleList([_StandIn(states_TH)] * layer + list(whole)[layer:])
    try:
        yield
    finally:
        backbone._modules["layers"] = whole


def states_below(model: PreTrainedModel, layer: int, batch: Batch) -> Tensor:
    """The states [T, H] that enter a layer, for a packed row."""
    backbone: Any = backbone_of(model)
    found: list[Tensor] = []

    def stop(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(arguments[0] if arguments else named["hidden_states"])
        raise _ReachedError

    handle = backbone.layers[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        backbone(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.position_ids_T[None],
            use_cache=False,
            segments=Layout.of(batch.segments),
        )
    except _ReachedError:
        return found[0][0]
    finally:
        handle.remove()
    raise RuntimeError("the backbone has not reached its layer")


def goes_on(model: PreTrainedModel, layer: int, batch: Batch) -> bool:
    """Whether the layers from `layer` on, given the states below, end as the whole model does.

    They do not where something else comes up to them from below: the first layers' keys and values, say.
    """
    backbone: Any = backbone_of(model)

    def computed() -> Tensor:
        output = backbone(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.position_ids_T[None],
            use_cache=False,
            segments=Layout.of(batch.segments),
        )
        last: Tensor = output.last_hidden_state
        return last

    whole = computed()
    with above(model, layer, states_below(model, layer, batch)):
        parts = computed()
    return bool((parts - whole).norm() <= TOLERANCE * whole.norm())


def bytes_of(tokens: int, model: PreTrainedModel) -> int:
    """What the trunk of so many tokens takes on disk."""
    return 4 * tokens * int(model.config.get_text_config().hidden_size)


@dataclass(frozen=True)
class Room:
    """What a trunk may take.

    Args:
        limit_gib: on disk.
        reserved: bytes of the disk that the run needs for other things; of what else is free half stays free.
    """

    limit_gib: float
    reserved: int = 0

    def refusal(self, layer: int, needed: int, place: Path | None) -> str:
        """Why so many bytes of states are not kept; empty where they are.

        Args:
            place: on the disk that they would take; None: any has room.
        """
        states, then = (
            f"the states below layer {layer} would take {human_bytes(needed)}",
            "they are computed in every epoch",
        )
        if needed > self.limit_gib * 2**30:
            return f"{states}, more than training.trunk_cache_limit_gib; {then}"
        if place is None or needed <= ((free := free_bytes(place)) - self.reserved) / 2:
            return ""
        rest = f", {human_bytes(self.reserved)} of which are for checkpoints" if self.reserved else ""
        return f"{states} of the {human_bytes(free)} that are free in {place}{rest}; {then}"


def remove_trunk(folder: Path) -> None:
    """Remove a trunk, and what a process left of one that was killed while it wrote it: their room is free."""
    shutil.rmtree(folder, ignore_errors=True)
    remove_leftovers(folder)


def make_trunk(
    model: PreTrainedModel,
    layer: int,
    examples: Sequence[TokenizedExample],
    folder: Path,
    room: Room,
    identity: Mapping[str, Any],
    engine: Computing,
    say: Callable[[str], None],
) -> Trunk | None:
    """The trunk of all examples: from its folder where it is whole, else computed and written there.

    Args:
        identity: everything that shapes the states, beside the layer; `tokens`, of all examples, among it.

    Returns:
        None, and says why, where there is no room or it can't be written; and where the layers above do not go on from
        the states as the whole model does, told by trying the first example.
    """
    width = int(model.config.get_text_config().hidden_size)
    about = json.loads(json.dumps({**identity, "layer": layer, "width": width}, default=str))
    kept = _open(folder, about)
    if kept is None:
        remove_trunk(folder)  # of another model, or of other tokens
    if reason := room.refusal(layer, bytes_of(about["tokens"], model), folder.parent if kept is None else None):
        remove_trunk(folder)
        say(f"trunk: {reason}")
        return None
    if kept is not None:
        say(f"trunk: the states below layer {layer} from the cache ({folder})")
        return kept
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), engine.autocast():
            if not goes_on(model, layer, pack([examples[0]]).to(engine.device)):
                say(f"trunk: {GOES_NOT_ON}")
                return None
            say(f"trunk: the states below layer {layer} are computed once, for {len(examples):,} examples")
            _write(folder, about, model, layer, examples, engine.device)
        made = _open(folder, about)
        if made is None:
            raise OSError("it is gone")
        return made
    except (MemoryError, RuntimeError) as error:  # memory that has run out: which setting does without
        error.add_note(MAKING)
        raise
    except OSError as error:  # a quota, or a disk that has filled meanwhile
        say(f"trunk: not kept, since {folder} can't be written ({error}); the states are computed in every epoch")
        return None
    finally:
        model.train(training)


def _write(
    folder: Path,
    about: Mapping[str, Any],
    model: PreTrainedModel,
    layer: int,
    examples: Sequence[TokenizedExample],
    device: torch.device,
) -> None:
    """Compute the states of all examples, and what tells of them, into a folder that appears whole or not at all."""
    with whole_folder(folder) as building, (building / STATES).open("wb") as file:
        with progress_bar("trunk", len(examples), unit="rows") as bar:
            for few in _passes(examples):
                states_TH = states_below(model, layer, pack(few).to(device))
                file.write(states_TH.float().cpu().numpy().tobytes())
                bar.advance(len(few))
        told = {**about, "dtype": str(states_TH.dtype).removeprefix("torch.")}
        (building / ABOUT).write_text(json.dumps(told, indent=1), encoding="utf-8")


def _passes(examples: Sequence[TokenizedExample]) -> Iterator[list[TokenizedExample]]:
    """The examples in their order, as many at a time as `TOKENS_AT_ONCE` holds, but at least one."""
    few: list[TokenizedExample] = []
    tokens = 0
    for example in examples:
        if few and tokens + example.tokens > TOKENS_AT_ONCE:
            yield few
            few, tokens = [], 0
        few.append(example)
        tokens += example.tokens
    yield few


def _open(folder: Path, about: Mapping[str, Any]) -> Trunk | None:
    """What stands in a folder, if it is whole and of this model and these tokens."""
    try:
        told = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        dtype = getattr(torch, told.pop("dtype"))
        if told != about:
            return None
        shape = (about["tokens"], about["width"])
        if (folder / STATES).stat().st_size != 4 * shape[0] * shape[1]:
            return None
        return Trunk(about["layer"], np.memmap(folder / STATES, np.float32, mode="r", shape=shape), dtype)
    except (OSError, ValueError, KeyError):
        return None
