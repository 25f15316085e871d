"""The page of `data show --html`: what it holds, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from luthier.commands.data import show
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.records import Origin
from luthier.data.rows_page import PageHead, rows_page
from luthier.data.token_texts import decoder_of, token_texts

EVIL = "</script><script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\"><!-- &amp; __DATA__"
TEXTS = ["Hello, how are you?\n\tFine .", "谢谢你 🙂 naïve café", "  two  spaces ", "", "<|im_end|>", EVIL]
HEAD = PageHead("a <b> title", ["model"], [("1", "row")], [], [EVIL], (), True)


@pytest.fixture(params=["byte_tokenizer", "metaspace_tokenizer"])
def tokenizer(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here to open the page in (Debian: apt-get install chromium)")
    return found


def payload(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    value: dict[str, Any] = json.loads(found[1])
    return value


@pytest.mark.parametrize("text", TEXTS)
def test_token_texts_make_up_the_text(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    texts = token_texts(ids, decoder_of(tokenizer))
    assert len(texts) == len(ids)
    assert "".join(texts) == whole


def test_a_character_of_several_tokens_stands_at_its_last_one(byte_tokenizer) -> None:
    ids = byte_tokenizer("a🙂b", add_special_tokens=False)["input_ids"]
    assert token_texts(ids, decoder_of(byte_tokenizer)) == ["a", "", "", "", "🙂", "b"]
    # half a character at the end of a cut sequence is shown as what it decodes to
    assert token_texts(ids[:3], decoder_of(byte_tokenizer))[-1] == "\ufffd"


def test_the_page_holds_the_tokens_and_no_markup_of_theirs(byte_tokenizer) -> None:
    ids = byte_tokenizer(EVIL, add_special_tokens=False)["input_ids"]
    example = TokenizedExample((TokenSequence(tuple(ids), (0.0,) * (len(ids) - 1) + (0.5,)),), Origin("a", 3), len(ids))
    page = rows_page(HEAD, [example], byte_tokenizer)
    value = payload(page)
    assert value["left_out"] == [EVIL]
    row = value["rows"][0]
    assert "".join(row["sequences"][0]["texts"]) == EVIL
    assert (row["row"], row["sequences"][0]["weights"]) == (3, [[len(ids) - 1, 0.0], [1, 0.5]])
    assert "a &lt;b&gt; title" in page and "<b> title" not in page.split('id="data"')[0]
    assert page.count("<script") == 2 and "stolen'</script>" not in page


def test_nothing_is_fetched_from_anywhere(byte_tokenizer) -> None:
    page = rows_page(HEAD, [], byte_tokenizer)
    found: list[tuple[str, str]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend((tag, name) for name, value in attrs if name in ("src", "href", "srcset", "action"))

    Reader().feed(page)
    assert found == [] and "@import" not in page and "url(" not in page and "default-src 'none'" in page


@pytest.mark.parametrize(
    ("kept", "full", "ids", "cut"),
    [
        ([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [[3, 2]]),
        ([1, 2, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [[2, 3]]),
        ([4, 5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [[0, 3]]),
        ([1, 3, 5], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [[1, 1], [3, 1], [5, 1]]),
        ([1, 9], [1, 2, 3], [1, 2, 3, 9], [[1, 2]]),
    ],
)
def test_what_was_cut_stands_where_it_was(
    byte_tokenizer, kept: list[int], full: list[int], ids: list[int], cut: list[list[int]]
) -> None:
    def example(tokens: list[int]) -> TokenizedExample:
        weights = (0.0,) + (1.0,) * (len(tokens) - 1)
        return TokenizedExample((TokenSequence(tuple(tokens), weights),), Origin("a", 1), len(full) + 1)

    page = rows_page(HEAD, [example(kept)], byte_tokenizer, untruncated=[example(full)])
    sequence = payload(page)["rows"][0]["sequences"][0]
    assert (sequence["ids"], sequence["cut"]) == (ids, cut)
    weights = [weight for count, weight in sequence["weights"] for _ in range(count)]
    places = {start + step for start, count in cut for step in range(count)}
    # what was kept has its weight, what was cut none
    assert [weights[place] for place in range(len(ids)) if place not in places] == [0.0] + [1.0] * (len(kept) - 1)
    assert not any(weights[place] for place in places)


def test_of_a_long_cut_the_beginning_is_shown(byte_tokenizer) -> None:
    long = TokenSequence((5,) * 50_000, (0.0,) * 50_000)
    kept = TokenSequence((5,) * 10, (0.0,) * 10)
    examples = [TokenizedExample((sequence,), Origin("a", 1), 50_000) for sequence in (kept, long)]
    sequence = payload(rows_page(HEAD, examples[:1], byte_tokenizer, untruncated=examples[1:]))["rows"][0]["sequences"][
        0
    ]
    assert sequence["cut"] == [[10, 300]] and sequence["gaps"] == [[309, 49_690]]


def written(model_folder: Path, tmp_path: Path, rows: Path, **settings: Any) -> str:
    config = {
        "model": str(model_folder),
        "data": {"train": str(rows), "template": "chatml", **settings.pop("data", {})},
    }
    out = tmp_path / "page.html"
    with (tmp_path / "told").open("w") as told:
        show({**config, **settings}, page=out, console=Console(file=told))
    assert str(out) in (tmp_path / "told").read_text().replace("\n", "")
    return out.read_text(encoding="utf-8")


def test_a_page_of_a_config(tokenizer_folder: Path, tmp_path: Path, write) -> None:
    rows = write(
        "a.jsonl", [{"instruction": f"Question {number}?", "output": "Word " * number} for number in range(1, 9)]
    )
    page = payload(written(tokenizer_folder, tmp_path, rows, data={"cutoff_length": 48}))
    assert [row["row"] for row in page["rows"]] == list(range(1, 9))
    assert ["8", "rows of 8"] in page["figures"]
    last = page["rows"][-1]
    assert last["tokens"] <= 48 < last["tokens"] + last["cut"] and last["sequences"][0]["cut"]
    assert "Word Word Word" in "".join(last["sequences"][0]["texts"])


def dumped(chromium: str, page: Path) -> str:
    """The page's document after its scripts have run."""
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--virtual-time-budget=3000", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


ACTS = """
<script>
const told = {title: document.title, cards: document.querySelectorAll("article").length};
const first = document.querySelector("article");
fill(first, cards[0].row);
const inner = first.querySelector(".tokens");
told.text = [...inner.querySelectorAll("span")].map(span => span.textContent).join("");
told.marked = [...inner.querySelectorAll("span.t")].map(span => span.textContent).join("");
told.special = inner.querySelectorAll("span.s").length;
told.markup = inner.querySelectorAll("img, script").length;
document.getElementById("search").value = "NEEDLE";
show();
told.found = [...document.querySelectorAll("article h2")].map(title => title.textContent);
fill(document.querySelector("article"), cards[2].row);
told.hits = [...document.querySelectorAll("span.hit")].map(span => span.textContent).join("");
document.getElementById("search").value = "";
document.getElementById("order").value = "long";
show();
told.longest = document.querySelector("article h2").textContent;
document.getElementById("jump").value = "2";
jump();
told.target = document.querySelector("article.target h2").textContent;
document.getElementById("filter").value = "untrained";
show();
told.untrained = [...document.querySelectorAll("article h2")].map(title => title.textContent);
document.body.append(Object.assign(document.createElement("pre"), {id: "told", textContent: JSON.stringify(told)}));
</script>
"""


def test_in_a_browser(chromium: str, tokenizer_folder: Path, tmp_path: Path, write) -> None:
    turns = [
        ("Who?", EVIL),
        ("Second?", "Two  words.\n"),
        ("The needle?", "Here: a Needle in hay."),
        ("No?", "Nothing."),
    ]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in turns
    ]
    rows[3]["messages"][1]["weight"] = 0  # type: ignore[assignment]
    page = tmp_path / "acts.html"
    page.write_text(written(tokenizer_folder, tmp_path, write("a.json", rows)).replace("</body>", f"{ACTS}</body>"))
    found = re.search(r'<pre id="told">(.*?)</pre>', dumped(chromium, page), re.DOTALL)
    assert found is not None
    told = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert told["title"] == "a.json, as the model sees it" and told["cards"] == 4 and told["markup"] == 0
    assert told["text"].replace("◌", "") == f"<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n{EVIL}<|im_end|>"
    assert told["marked"].replace("◌", "") == f"{EVIL}<|im_end|>" and told["special"] == 4
    assert [title.split()[:2] for title in told["found"]] == [["row", "3"]]
    assert "needle" in told["hits"].lower()
    assert told["longest"].startswith("row 1 ") and told["target"].startswith("row 2 ")
    assert [title.split()[:2] for title in told["untrained"]] == [["row", "4"]]


def test_a_pair_stands_side_by_side(chromium: str, tokenizer_folder: Path, tmp_path: Path, write) -> None:
    rows = write(
        "p.json", [{"instruction": "Which?", "input": "", "chosen": "The good one.", "rejected": "A bad one."}]
    )
    page = tmp_path / "pair.html"
    # cards fill when they come into view; whether a headless window tells of that before it ends is chance
    opened = "<script>fill(document.querySelector('article'), cards[0].row);</script></body>"
    page.write_text(written(tokenizer_folder, tmp_path, rows, stage="dpo").replace("</body>", opened))
    document = dumped(chromium, page)
    assert re.findall(r"<h3>(\w+)</h3>", document) == ["prompt", "chosen", "rejected"]
    assert document.count('class="sides"') == 1 and "in the longest, both answers" in document
