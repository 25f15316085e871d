"""Data parallel: every process holds the whole model, computes its share of each step, and all sum their gradients.

Started by torchrun, one process for each GPU, or several on CPUs (gloo). The gradients are summed once a step, in
blocks, and not through torch's DistributedDataParallel: that needs the same number of backward passes and the same
touched parameters on every rank, which the last step of an epoch and a router's experts do not give.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from luthier.config.sections import PluginOptions
from luthier.foundation.errors import ConfigError, LuthierError, RankStoppedError, TrainingError
from luthier.foundation.ranks import is_launched, ranks
from luthier.training.engines.single import Single

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from luthier.config.training_section import TrainingConfig

STOPPED = 130  # the exit status of what Ctrl-C ended
BLOCK_BYTES = 25 * 2**20  # gradients that travel together: DistributedDataParallel's bucket size
Value = TypeVar("Value")


class Options(PluginOptions):
    """The ddp engine's settings stand in the config's training section: ddp_timeout."""

    name: str = "ddp"


class Ddp(Single):
    """One of several ranks with the same weights."""

    def __init__(self, training: TrainingConfig, device: torch.device) -> None:
        import torch
        import torch.distributed as dist

        super().__init__(training, device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._joined = not dist.is_initialized()
        if self._joined:
            with _touch():
                dist.init_process_group(
                    "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=training.ddp_timeout)
                )
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def prepare(self, scorer: nn.Module) -> nn.Module:
        """Move the scorer to the device, its trained weights made those of rank 0."""
        import torch.distributed as dist

        scorer = super().prepare(scorer)
        with _touch():
            for parameter in scorer.parameters():
                if parameter.requires_grad:
                    dist.broadcast(parameter.detach(), src=0)
        return scorer

    def totals(self, *values: float) -> list[float]:
        """The sum of each number over all ranks."""
        return self._reduced(values, "SUM")

    def largest(self, *flags: int) -> list[int]:
        """The largest of each number over all ranks."""
        return [int(value) for value in self._reduced(flags, "MAX")]

    def lead(self, work: Callable[[], Value]) -> Value:
        """Let rank 0 do the work; all get its JSON value."""
        if self.rank:
            told = json.loads(self._broadcast(b""))
            if "stopped" in told:
                raise RankStoppedError(told["stopped"], told["exit_status"])
            return told["value"]  # type: ignore[no-any-return]
        try:
            value = work()
        except BaseException as error:
            known = error if isinstance(error, LuthierError) else LuthierError(f"{type(error).__name__}: {error}")
            stopped = isinstance(error, KeyboardInterrupt)
            told = {"stopped": known.problem, "exit_status": STOPPED if stopped else known.exit_status}
            self._broadcast(json.dumps(told).encode())
            raise
        self._broadcast(json.dumps({"value": value}).encode())
        return value

    def gather(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over all ranks. One that a rank has not (no batch, no routed token) counts as zero; one
        that none has stays absent, as it would with one rank."""
        import torch

        touched = self.largest(*(parameter.grad is not None for parameter in parameters))
        gradients = []
        for parameter, is_touched in zip(parameters, touched, strict=True):
            if is_touched:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for block in _blocks(gradients):
            self._sum(block)

    def close(self) -> None:
        """Leave the group, if this engine made it."""
        import torch.distributed as dist

        if self._joined:
            dist.destroy_process_group()

    def _sum(self, block: Sequence[Tensor]) -> None:
        import torch
        import torch.distributed as dist

        flat = torch.cat([gradient.flatten() for gradient in block])
        with _touch():
            dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in block])
        for gradient, part in zip(block, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _reduced(self, values: Sequence[float], operation: str) -> list[float]:
        import torch
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _touch():
            dist.all_reduce(found, getattr(dist.ReduceOp, operation))
        return found.tolist()

    def _broadcast(self, message: bytes) -> bytes:
        """Rank 0's bytes."""
        import torch
        import torch.distributed as dist

        length = torch.tensor([len(message)], device=self.device)
        with _touch():
            dist.broadcast(length, src=0)
            found = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
            if message:
                found.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
            dist.broadcast(found, src=0)
        return bytes(found.tolist())


def _blocks(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in order, in blocks of one dtype and about BLOCK_BYTES."""
    block: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if block and (gradient.dtype != block[0].dtype or size + gradient.nbytes > BLOCK_BYTES):
            yield block
            block, size = [], 0
        block.append(gradient)
        size += gradient.nbytes
    if block:
        yield block


@contextmanager
def _touch() -> Iterator[None]:
    """What goes wrong between ranks is mostly that another one has ended, or takes longer than they wait: say so."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are of this kind
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            raise TrainingError(
                f"rank {ranks().rank} of {ranks().world_size} waited for another longer than training.ddp_timeout lets it "
                f"({str(error)[:120]}...).",
                "Where one has ended, it says why. Where one was still at work, as the first is while it generates answers for "
                "training.predict_with_generate, raise training.ddp_timeout (seconds), or give fewer validation and test "
                "rows. Checkpoints are kept: go on with --resume.",
            ) from error
        raise TrainingError(
            f"rank {ranks().rank} of {ranks().world_size} lost touch with the others ({str(error)[:120]}...).",
            "The rank that ended first says why. Checkpoints are kept: go on with --resume.",
        ) from error


def build(training: TrainingConfig, device: torch.device) -> Ddp:
    """This process's part in the group; waits until all are there.

    Raises:
        ConfigError: no launcher started the process, or there is no GPU left for it. TrainingError: the others can't be
            reached.
    """
    if not is_launched():
        raise ConfigError(
            [
                "training.engine is ddp, but this process was started alone; use `luthier train CONFIG "
                "--nproc-per-node N`, `torchrun --nproc_per_node N -m luthier.cli train CONFIG`, or training.engine=auto"
            ]
        )
    if device.type not in ("cuda", "cpu"):
        raise ConfigError([f"training.engine ddp has no way to sum gradients on {device.type}; set training.use_cpu"])
    if device.type == "cuda":
        import torch

        gpus = torch.cuda.device_count()
        if device.index >= gpus:
            raise ConfigError(
                [
                    f"this is process {device.index + 1} on its machine, where each needs a GPU and {gpus} "
                    f"{'is' if gpus == 1 else 'are'} there; start {gpus} (--nproc-per-node {gpus}), or set training.use_cpu"
                ]
            )
    return Ddp(training, device)
