"""Several processes: two ranks x 4 give the gradients of one x 8; a stop asked of one stops all; what is wrong is told once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.commands.launching import processes_for
from luthier.config.training_section import TrainingConfig
from luthier.foundation.errors import ConfigError, TrainingError, UserError
from luthier.foundation.ranks import Ranks, ranks
from luthier.training.engine import make_engine
from luthier.training.engines import ddp
from tests import warm_python
from tests.tiny import config_for, write_rows

ROOT = Path(__file__).parents[2]


TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]


def start(
    config: dict[str, Any], folder: Path, *flags: str, launcher: str = "ours"
) -> subprocess.CompletedProcess[str]:
    """`luthier train` in two processes, as a user starts them."""
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    torchrun = [*TORCHRUN, "--rdzv_endpoint", "127.0.0.1:0"] if launcher == "torchrun" else []
    asked = [] if torchrun else ["--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *torchrun, "-m", "luthier.cli", "train", str(file), *flags, *asked],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def start_warm(config: dict[str, Any], folder: Path, *flags: str) -> tuple[list[int], str]:
    """The same processes without the launcher and without their imports: their statuses, and what they say."""
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(2)]
    command = [str(ROOT / "luthier" / "cli.py"), "train", str(file), *flags]
    ended = warm_python.run_together(command, outputs=folder, environments=places)
    return [process.returncode for process in ended], "".join(process.stderr for process in ended)


def settings(tiny_llama: Path, folder: Path, **training: Any) -> dict[str, Any]:
    """Two epochs of 20 rows in steps of 8: the third step of an epoch has 4, none of them for the second rank.

    With plain SGD a difference of weights is a difference of gradients, not one of their signs.
    """
    defaults = {"max_steps": -1, "num_train_epochs": 2, "save_steps": 2, "eval_strategy": "epoch"}
    defaults |= {"per_device_eval_batch_size": 2, "optim": "tests.training.plain_sgd", "learning_rate": 0.05}
    rows = write_rows(folder / "rows.jsonl", count=31)
    config = config_for(tiny_llama, rows, folder / "run", **{**defaults, **training})
    config["method"] = "full"
    config["data"] |= {"validation": 6, "test": 5}
    return config


def lines(run: Path) -> list[dict[str, float]]:
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in kept]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


@pytest.fixture(scope="module")
def two(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("two")
    done = start(settings(tiny_llama, folder), folder, launcher="torchrun")
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stderr


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (8, 1)])
def test_two_ranks_give_the_gradients_of_one(
    batch: int, accumulation: int, two: tuple[Path, str], tiny_llama: Path, tmp_path: Path
) -> None:
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    one = luthier.train(settings(tiny_llama, tmp_path, **sizes))
    results = json.loads((two[0] / "run.json").read_text())["results"]
    assert (results["steps"], results["test_loss"]) == (one.steps, pytest.approx(one.test_loss, rel=1e-6))
    for mine, theirs in zip(lines(two[0]), lines(tmp_path / "run"), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            if key != "epoch" or accumulation == 1:  # Trainer's share of an epoch counts batches
                assert mine[key] == pytest.approx(value, rel=2e-6), key
    alone = weights(tmp_path / "run")
    for name, value in weights(two[0]).items():
        torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-6, msg=name)


def test_eva_finds_the_same_on_two_ranks_as_on_one(tiny_llama: Path, tmp_path: Path) -> None:
    """Both look at the same rows; ranks that differed would change the shapes that gradients are summed in."""

    def config(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        made = settings(tiny_llama, folder, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=2)
        made["method"] = {"name": "lora", "rank": 4, "init": "eva", "eva_rho": 2.0}
        return made

    statuses, said = start_warm(config(tmp_path / "two"), tmp_path / "two")
    assert statuses == [0, 0], said
    alone = config(tmp_path / "one")
    alone["training"]["per_device_train_batch_size"] = 8
    luthier.train(alone)
    adapters = [load_file(tmp_path / name / "run" / "final" / "adapter_model.safetensors") for name in ("two", "one")]
    assert adapters[0].keys() == adapters[1].keys()
    assert len({value.shape[0] for name, value in adapters[1].items() if "lora_A" in name}) > 1
    for name, value in adapters[0].items():
        torch.testing.assert_close(value, adapters[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_one_rank_speaks_and_writes(two: tuple[Path, str]) -> None:
    run, said = two
    assert said.count("Done: 6 steps") == 1
    assert said.count("examples, ") == 1
    assert json.loads((run / "run.json").read_text())["hardware"]["ranks"] == 2
    assert len([line for line in lines(run) if "loss" in line]) == 6


def test_a_stop_asked_of_one_rank_stops_all_and_the_run_goes_on_with_the_same_bits(
    two: tuple[Path, str], tiny_llama: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, tmp_path)
    stopping = {**config, "training": {**config["training"], "callbacks": ["tests.training.stop_one_rank.StopOneRank"]}}
    stopped = start(stopping, tmp_path)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "stopped after step 3 of 6, as asked" in stopped.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert f"{tmp_path / 'config.json'} --nproc-per-node 2 --resume" in stopped.stderr
    # time is the first rank's to watch: the second one's clock, which no checkpoint would know of, ends nothing
    late = "tests.training.stop_one_rank.time_is_up_on_the_second_rank"
    going_on = {**config, "training": {**config["training"], "callbacks": [late]}}
    statuses, said = start_warm(going_on, tmp_path, "--resume")
    assert statuses == [0, 0], said
    assert "Going on from step-00000003." in said
    assert lines(tmp_path / "run") == lines(two[0])
    whole = weights(two[0])
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "run").items())


def test_what_the_first_rank_refuses_ends_the_others_without_a_word(two: tuple[Path, str], tmp_path: Path) -> None:
    run = two[0]
    config = json.loads((run.parent / "config.json").read_text())
    moved = {**config, "training": {**config["training"], "max_steps": 2}}
    done = start(moved, tmp_path, "--resume")
    assert done.stderr.count("is past the end of this config") == 1
    assert "lost touch" not in done.stderr
    assert "should not" not in done.stderr
    assert done.returncode == 2


def test_what_all_ranks_refuse_is_told_once(tiny_llama: Path, tmp_path: Path) -> None:
    config = settings(tiny_llama, tmp_path)
    (tmp_path / "odd.jsonl").write_text('{"frage": "a", "antwort": "b"}\n')  # which is met when rows are read
    config["data"]["train"] = str(tmp_path / "odd.jsonl")
    done = start(config, tmp_path)
    assert done.stderr.count("error: ") == done.stderr.count("odd.jsonl") == 1
    assert done.returncode == 2


def test_one_rank_asks_for_a_save_and_one_is_killed(tiny_llama: Path, tmp_path: Path) -> None:
    """All save what one rank's callback asked for; the death of one ends the run with what to do."""
    own = [f"tests.training.stop_one_rank.{name}" for name in ("SaveOneRank", "KillOneRank")]
    config = settings(tiny_llama, tmp_path, callbacks=own, ddp_timeout=30)
    config["training"]["save_strategy"] = "no"
    del config["training"]["save_steps"]
    done = start(config, tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()
    assert "rank 1 was ended by SIGKILL" in done.stderr
    assert "mostly because memory ran out. Go on with --resume." in done.stderr
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete", True),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=BROADCAST)", True),
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer", False),
    ],
)
def test_who_waited_too_long_is_told_of_the_setting(message: str, told: bool) -> None:
    """The other may be at work, as the first is while it generates answers."""
    with pytest.raises(TrainingError) as caught, ddp._touch():
        raise RuntimeError(message)
    assert ("training.ddp_timeout" in str(caught.value)) is told
    assert ("lost touch" in caught.value.problem) is not told
    assert "go on with --resume" in caught.value.remedy


def test_processes_are_one_for_each_gpu(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    on_gpu, on_cpu = settings(tiny_llama, tmp_path, use_cpu=False), settings(tiny_llama, tmp_path)
    assert processes_for(on_gpu, [], None) == 8
    assert processes_for(on_gpu, ["training.engine=single"], None) == 1
    assert processes_for(on_gpu, [], 3) == 3
    assert processes_for(on_cpu, [], None) == 1
    with pytest.raises(UserError, match="--nproc-per-node is 2, but"):
        processes_for(on_cpu, ["training.engine=single"], 2)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert processes_for(on_gpu, [], None) == 1
    with pytest.raises(UserError, match="that a launcher started"):
        processes_for(on_gpu, [], 2)


def test_where_a_process_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert ranks() == Ranks(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")  # a cluster's count of machines, not torchrun's
    assert ranks() == Ranks(0, 1, 0)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks() == Ranks(3, 4, 1)
    with pytest.raises(ConfigError, match="engine is single, but 4 processes were started"):
        make_engine(TrainingConfig(engine="single"), torch.device("cpu"))
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(UserError, match="RANK='4', WORLD_SIZE='4'"):
        ranks()


def test_ddp_needs_a_launcher() -> None:
    with pytest.raises(ConfigError, match="torchrun --nproc_per_node N"):
        make_engine(TrainingConfig(engine="ddp"), torch.device("cpu"))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(ddp, "Ddp", lambda training, device: device)
    assert make_engine(TrainingConfig(), torch.device("cuda", 1)) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"process 3 on its machine, .* 2 are there; start 2 \(--nproc-per-node 2\)"):
        make_engine(TrainingConfig(), torch.device("cuda", 2))


def test_ranks_wait_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    asked = []

    def initialised(backend: str, timeout: Any) -> None:
        asked.append((backend, timeout.total_seconds()))

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", initialised)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    make_engine(TrainingConfig(ddp_timeout=77), torch.device("cpu"))
    assert asked == [("gloo", 77.0)]


@pytest.mark.slow
def test_ranks_merge_up_to_the_same_number_of_tokens(two: tuple[Path, str], tiny_llama: Path, tmp_path: Path) -> None:
    """The second rank, which plans nothing, is told; the steps are those of batches as they were drawn."""
    merging = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "tokens_per_batch": "auto"}
    done = start(settings(tiny_llama, tmp_path, **merging, grouping="off"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("batches hold at most") == 1
    settled = json.loads((tmp_path / "run" / "run.json").read_text())["batches"]
    assert settled["whole_steps"] and f"at most {settled['tokens']:,} tokens" in done.stderr
    for mine, theirs in zip(lines(tmp_path / "run"), lines(two[0]), strict=True):
        for key in ("loss", "eval_loss"):
            if key in theirs:
                assert mine[key] == pytest.approx(theirs[key], rel=2e-6)
