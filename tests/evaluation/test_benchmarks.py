"""Multiple-choice benchmarks against transformers' own log-likelihoods, the three layouts, and the harness behind a stand-in."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.cli import main
from luthier.commands.benchmark import Benchmark, benchmark
from luthier.commands.harness import harness
from luthier.config.schema import ModelConfig
from luthier.data.packing import pack
from luthier.evaluation.benchmarks import Question, Subject, encoded, load_benchmark, prompt_of
from luthier.evaluation.comparison import compare
from luthier.evaluation.results import rows_path
from luthier.evaluation.statistics import Drawing
from luthier.foundation.errors import DataError
from luthier.model.loading import tokenizer_at
from luthier.model.placement import Placement
from tests.tiny import tiny_folder

FEW = Drawing(resamples=99)
ROWS = [
    ("the quick?", "fox", "name", "is", "what", "B"),
    ("your, name?", "the", "brown", "fox", "your", "D"),
    ("what is?", "a", "b", "c", "d", "A"),
]


def quoted(row: tuple[str, ...]) -> str:
    return ",".join(f'"{cell}"' for cell in row)


def mmlu(folder: Path) -> Path:
    for split, names in (("dev", ("virology", "astronomy")), ("test", ("virology", "astronomy", "made_up"))):
        (folder / split).mkdir(parents=True)
        for name in names:
            (folder / split / f"{name}_{split}.csv").write_text("\n".join(map(quoted, ROWS)) + "\n")
    return folder


def test_the_likeliest_answer_is_the_one_that_transformers_finds(tiny_llama: Path, tmp_path: Path) -> None:
    folder = mmlu(tmp_path / "mmlu")
    found = benchmark(ModelConfig(name=str(tiny_llama)), Benchmark(folder, shots=1, batch_size=2, how=FEW))
    tokenizer, model = tokenizer_at(tiny_llama), AutoModelForCausalLM.from_pretrained(tiny_llama)
    subjects = {subject.name: subject for subject in load_benchmark(folder, "test", 1)}
    assert len(found.rows) == 9
    for row in found.rows:
        subject = subjects[row["source"]]
        question = next(one for one in subject.questions if one.origin.row == row["row"])
        prompt, answers = prompt_of(subject, question, subject.shots)
        for answer in answers:
            ids, length = tokenizer(prompt + answer)["input_ids"], len(tokenizer(prompt)["input_ids"])
            assert tokenizer(prompt)["input_ids"] == ids[:length]
            logp = model(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
            expected = sum(float(logp[place - 1, ids[place]]) for place in range(length, len(ids)))
            assert row["log_likelihoods"][answer.strip()] == pytest.approx(expected, abs=2e-5)
        assert row["predicted"] == max(row["log_likelihoods"], key=row["log_likelihoods"].get)
    right = [row["label"] == row["predicted"] for row in found.rows]
    assert found.numbers[0].value == pytest.approx(sum(right) / 9)
    categories = {part["category"]: part for part in found.settings["categories"]}
    assert set(categories) == {"STEM", "other"} and categories["other"]["rows"] == 3
    assert [part["source"] for part in found.sources] == ["astronomy", "made_up", "virology"]


def test_the_model_is_read_in_the_precision_that_was_asked_for(tiny_llama: Path, tmp_path: Path) -> None:
    asked = Benchmark(mmlu(tmp_path / "mmlu"), shots=1)
    whole, half, named = (
        [row["log_likelihoods"] for row in benchmark(ModelConfig(name=str(tiny_llama), **more), asked).rows]
        for more in ({}, {"dtype": "bfloat16"}, {"dtype": "float32"})
    )
    assert whole == named != half
    for one, other in zip(whole, half, strict=True):
        assert one == pytest.approx(other, rel=2e-2)


def test_nothing_is_chosen_where_the_likelihoods_are_not_finite(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of four NaNs is the largest to argmax, and A the answer to a third of these questions."""
    folder, model = mmlu(tmp_path / "mmlu"), tiny_folder(tmp_path / "broken")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    out = [tmp_path / "whole.json", tmp_path / "broken.json"]
    for name, path in zip((tiny_llama, model), out, strict=True):
        arguments = ["evaluate", str(name), "--benchmark", str(folder), "--shots", "1", "--out", str(path)]
        assert main([*arguments, "--resamples", "20", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert found["metrics"]["accuracy"]["value"] == 0
    (remark,) = (one for one in found["remarks"] if "not finite" in one)
    assert remark.startswith("numbers of 9 rows are not finite") and remark in printed.err
    assert [json.loads(line)["predicted"] for line in rows_path(out[1]).read_text().splitlines()] == [None] * 9
    whole = json.loads(out[0].read_text())["metrics"]["accuracy"]["value"]
    (metric,) = compare(out, FEW, lambda line: None).metrics
    assert metric.pairs[0].difference == pytest.approx(-whole)


def test_a_model_partly_on_the_disk_finds_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    folder, model = mmlu(tmp_path / "mmlu"), ModelConfig(name=str(tiny_llama))
    here = benchmark(model, Benchmark(folder, shots=1, how=None))
    spread = Placement({"model.embed_tokens": "disk", "model.layers.1": "disk", "": "cpu"}, tmp_path / "off")
    there = benchmark(model, Benchmark(folder, shots=1, how=None, placement=spread))
    for row, expected in zip(there.rows, here.rows, strict=True):
        assert row["log_likelihoods"] == pytest.approx(expected["log_likelihoods"], abs=1e-5)


def test_common_beginnings_are_computed_once(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_at(tiny_llama)
    subject = load_benchmark(mmlu(tmp_path / "mmlu"), "test", 3, ["virology"])[0]
    examples = [encoded(subject, one, lambda text: tokenizer(text)["input_ids"], None)[0] for one in subject.questions]
    alone = sum(example.tokens for example in examples)
    assert len(pack(examples, share=True).input_ids_T) < alone / 5  # 12 sequences that begin with the same three shots


def test_the_prompt_is_mmlus_word_for_word() -> None:
    shot = Question("1 + 1?", ("1", "2"), 1, None)  # type: ignore[arg-type]
    asked = Question("2 + 2?", ("4", "5"), 0, None)  # type: ignore[arg-type]
    prompt, answers = prompt_of(Subject("basic_math", "", [asked], [shot]), asked, [shot])
    assert prompt == (
        "The following are multiple choice questions (with answers) about basic math.\n\n"
        "1 + 1?\nA. 1\nB. 2\nAnswer: B\n\n2 + 2?\nA. 4\nB. 5\nAnswer:"
    )
    assert answers == [" A", " B"]
    chinese = Question("二加二？", ("四", "五"), 0, None)  # type: ignore[arg-type]
    prompt, answers = prompt_of(Subject("初等数学", "", [chinese], []), chinese, [])
    assert prompt == "以下是中国关于初等数学考试的单项选择题，请选出其中的正确答案。\n\n二加二？\nA. 四\nB. 五\n答案："
    assert answers == ["A", "B"]


def test_layouts_of_ceval_and_cmmlu(tmp_path: Path) -> None:
    for split in ("dev", "val"):
        (tmp_path / "ceval" / split).mkdir(parents=True)
        text = "id,question,A,B,C,D,answer,explanation\n0,一加一？,一,二,三,四,B,因为\n"
        (tmp_path / "ceval" / split / f"accountant_{split}.csv").write_text(text, encoding="utf-8")
    (tmp_path / "ceval" / "subject_mapping.json").write_text('{"accountant": ["Accountant", "注册会计师", "Other"]}')
    (subject,) = load_benchmark(tmp_path / "ceval", "val", 5)
    assert (subject.name, subject.category, len(subject.shots)) == ("accountant", "Other", 1)
    assert subject.questions[0].choices == ("一", "二", "三", "四") and subject.questions[0].answer == 1
    for split in ("dev", "test"):
        (tmp_path / "cmmlu" / split).mkdir(parents=True)
        text = ",Question,A,B,C,D,Answer\n0,一加一？,一,二,三,四,B\n"
        (tmp_path / "cmmlu" / split / "agronomy.csv").write_text(text, encoding="utf-8-sig")
    (tmp_path / "cmmlu" / "mapping.json").write_text('{"agronomy": {"name": "农学", "category": "Other"}}')
    (subject,) = load_benchmark(tmp_path / "cmmlu", "test", 5)
    assert (subject.name, subject.category, subject.questions[0].answer) == ("agronomy", "Other", 1)


def test_shots_that_find_no_room_are_left_out_and_told(tiny_llama: Path, tmp_path: Path) -> None:
    folder = mmlu(tmp_path / "mmlu")
    (folder / "dev" / "virology_dev.csv").write_text(quoted(("word " * 80, "a", "b", "c", "d", "A")))
    found = benchmark(ModelConfig(name=str(tiny_llama)), Benchmark(folder, shots=2, subjects=("virology",)))
    assert found.remarks == [
        "3 questions had room for fewer examples than their subject has",
        "dev has fewer than 2 examples for 1 of 1 subjects, 1 the fewest",
    ]
    (folder / "test" / "virology_test.csv").write_text(quoted(("word " * 80, "a", "b", "c", "d", "A")))
    with pytest.raises(
        DataError, match=r"row 1 has .* tokens without any example, and the model knows positions up to 256"
    ):
        benchmark(ModelConfig(name=str(tiny_llama)), Benchmark(folder, subjects=("virology",)))


def test_the_verb_and_a_comparison(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mmlu(tmp_path / "mmlu")
    for shots in ("0", "1"):
        out = ["--shots", shots, "--out", str(tmp_path / f"{shots}.json"), "--resamples", "50"]
        assert main(["evaluate", str(tiny_llama), "--benchmark", str(folder), *out]) == 0
    printed = capsys.readouterr().out
    assert "1 shots" in printed and "astronomy" in printed and "STEM" in printed
    compared = ["evaluate", "--compare", str(tmp_path / "0.json"), str(tmp_path / "1.json"), "--json"]
    assert main(compared) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["metrics"]["accuracy"]["against_first"][0]["test"] == "mcnemar"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("a,b,c,d,e\n", r"row 1 has the answer 'e', which is none of A, B, C"),
        ("question,A,B,C,D\nx,1,2,3,4\n", "without answers or choices"),
        ("id,question,A,B,answer\n0,x,1,2,\n", "row 2 has the answer ''"),
        ("question,A,B,C,answer\nx,1,2,3,AB\n", "row 2 has the answer 'AB', which is none of A, B, C"),
        ("x,A\n", "row 1 has 2 columns, 4 are needed"),
        ("question,A,B,answer\nx,1\n", "row 2 has 2 columns, 4 are needed"),
        ("question,A,B,answer\n", "has no question"),
    ],
)
def test_files_that_are_no_questions(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.csv").write_text(text)
    with pytest.raises(DataError, match=problem):
        load_benchmark(tmp_path, "test", 0)


def test_folders_that_are_no_benchmark(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no folder 'test' \(found: none"):
        load_benchmark(tmp_path, "test", 0)
    folder = mmlu(tmp_path / "mmlu")
    with pytest.raises(DataError, match="a question would be shown with its answer"):
        load_benchmark(folder, "dev", 1)
    assert len(load_benchmark(folder, "dev", 0)) == 2
    with pytest.raises(DataError, match="no subject astrology"):
        load_benchmark(folder, "test", 0, ["astrology"])
    (folder / "mapping.json").write_text("[]")
    with pytest.raises(DataError, match="is no mapping of subjects"):
        load_benchmark(folder, "test", 0)


def test_the_harness_gets_the_model(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}
    precisions: list[torch.dtype] = []

    class Wrapper:
        def __init__(self, pretrained: Any, tokenizer: Any, batch_size: int) -> None:
            seen.update(model=type(pretrained).__name__, tokens=len(tokenizer), batch_size=batch_size)
            precisions.append(pretrained.dtype)

    def simple_evaluate(model: Any, tasks: list[str], num_fewshot: int | None, task_manager: Any) -> dict[str, Any]:
        if "arc_easy" not in tasks:
            raise ConnectionError("nobody answers")
        seen.update(tasks=tasks, shots=num_fewshot)
        return {
            "results": {tasks[0]: {"alias": tasks[0], "acc,none": 0.25, "f1,none": math.nan}},
            "versions": {tasks[0]: 1},
        }

    library, models, wrapper, tasks, evaluator = (
        types.ModuleType(f"lm_eval{end}") for end in ("", ".models", ".models.huggingface", ".tasks", ".evaluator")
    )
    wrapper.HFLM = Wrapper  # type: ignore[attr-defined]
    known = types.SimpleNamespace(all_tasks=["piqa", "arc_easy"])
    tasks.TaskManager = lambda include_path, include_defaults: known  # type: ignore[attr-defined]
    evaluator.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    library.__path__ = models.__path__ = []  # type: ignore[attr-defined]
    for module in (library, models, wrapper, tasks, evaluator):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    arguments = [
        "evaluate",
        str(tiny_llama),
        "--harness",
        "piqa,arc_easy",
        "--shots",
        "2",
        "--out",
        str(tmp_path / "h.json"),
    ]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["results"]["piqa"]["acc,none"] == 0.25 and said["results"]["piqa"]["f1,none"] is None
    assert json.loads((tmp_path / "h.json").read_text()) == said
    assert seen == {
        "model": "LlamaForCausalLM",
        "tokens": len(tokenizer_at(tiny_llama)),
        "batch_size": 8,
        "tasks": ["piqa", "arc_easy"],
        "shots": 2,
    }
    harness(ModelConfig(name=str(tiny_llama), dtype="bfloat16"), ["arc_easy"])
    assert precisions == [torch.float32, torch.bfloat16]
    assert main(["evaluate", str(tiny_llama), "--harness", "nothing"]) == 2
    assert "knows no task nothing" in capsys.readouterr().err
    assert main(["evaluate", str(tiny_llama), "--harness", "piqa"]) == 2
    assert "can't get the data of piqa: nobody answers" in capsys.readouterr().err


def test_the_harness_itself_runs_a_task_of_ones_own(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra harness)")
    rows = [{"question": "what is the", "choices": ["name", "brown fox"], "answer": number} for number in (0, 1)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = tmp_path / "two.yaml"
    task.write_text(
        f"task: two_questions\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: choices\n'
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    assert main(["evaluate", str(tiny_llama), "--harness", str(task), "--batch-size", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["results"]["two_questions"]["acc,none"] == 0.5  # the same answer to both, which is right once
    task.write_text("dataset_path: json\n")
    assert main(["evaluate", str(tiny_llama), "--harness", str(task)]) == 2
    assert "names no task" in capsys.readouterr().err


def test_the_harness_is_named_where_it_is_missing(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("lm_eval", *(name for name in sys.modules if name.startswith("lm_eval."))):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["evaluate", str(tiny_llama), "--harness", "piqa"]) == 2
    assert 'pip install "luthier[harness]"' in capsys.readouterr().err
    assert main(["evaluate", str(tiny_llama), "--harness", "piqa", "--subject", "x"]) == 2
    assert "--subject would have no effect with --harness" in capsys.readouterr().err
