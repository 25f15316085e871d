"""The page of wrong queries: what it holds, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from luthier.sandbox.sandbox import Outcome
from luthier.text2sql.evaluation.evaluating import Item
from luthier.text2sql.evaluation.files import GoldQuery, Prediction
from luthier.text2sql.evaluation.judging import Verdict
from luthier.text2sql.evaluation.page import queries_page
from luthier.text2sql.evaluation.summary import summarize
from tests.data.test_rows_page import EVIL, dumped, payload

CELLS = (None, 7, 2.5, "text", b"\x00\xff", float("inf"), 2**60, "x" * 500, EVIL)


def items() -> list[Item]:
    gold_result = Outcome(("a", EVIL), ((1, EVIL),))
    wide = Outcome(tuple(f"c{place}" for place in range(len(CELLS))), (CELLS,) * 20, cut=True)
    verdicts = [
        Verdict("easy", 1, 1, ""),
        Verdict("easy", 0, 0, EVIL, {}, gold_result, Outcome(kind="sql", error=f"near {EVIL}")),
        Verdict("hard", 0, 1, "other than the gold query in where", {}, gold_result, wide),
        Verdict("hard", 1, 0, "the rows differ", {}, gold_result, Outcome(("n",))),
        Verdict("hard", 0, 0, "there is no database", {}),
    ]
    gold = [GoldQuery(f"SELECT a, '{EVIL}' FROM t", f"db_{place % 2}", 0, 1, EVIL) for place in range(len(verdicts))]
    predictions = [
        Prediction("SELECT count(*) FROM t -- NEEDLE"),
        *[Prediction(EVIL)] * 2,
        Prediction(""),
        Prediction("x" * 9_000),
    ]
    return [Item(place, *parts) for place, parts in enumerate(zip(gold, predictions, verdicts, strict=True))]


def page() -> str:
    made = items()
    summary = summarize(made, "spider", False)
    return queries_page(summary, made, gold=Path("gold.sql"), predicted=Path("<b>.sql"), notes=[EVIL])


def test_it_holds_what_is_wrong_and_no_markup_of_it() -> None:
    value = payload(page())
    assert [item["index"] for item in value["items"]] == [1, 2, 3, 4] and value["notes"] == [EVIL]
    assert value["about"] == ["5 queries", "4 with something wrong", "benchmark spider"]
    shown = value["items"][1]["result"]["rows"][0]
    assert shown[:7] == [None, 7, 2.5, "text", "X'00ff'", "inf", str(2**60)]
    assert shown[7].endswith("(500 characters)") and shown[8] == EVIL
    assert value["items"][3]["predicted"].endswith("(9,000 characters)") and value["items"][3]["result"] is None
    made = page()
    assert "&lt;b&gt;.sql beside gold.sql" in made and "stolen'</script>" not in made and made.count("<script") == 2


def test_nothing_is_fetched_from_anywhere() -> None:
    found: list[tuple[str, str]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend((tag, name) for name, _ in attrs if name in ("src", "href", "srcset", "action"))

    made = page()
    Reader().feed(made)
    assert found == [] and "@import" not in made and "url(" not in made and "default-src 'none'" in made


ACTS = """
<script>
const told = {title: document.title, cards: document.querySelectorAll("article").length, levels: $("levels").innerText};
const all = [...document.querySelectorAll("article")];
all.forEach((card, place) => fill(card, cards[place].item));
told.markup = document.querySelectorAll("main img, main script").length;
told.queries = [...all[0].querySelectorAll("pre")].map(part => part.textContent);
told.words = [...all[1].querySelectorAll("section:first-child pre b")].map(part => part.textContent);
told.reasons = [...all[0].querySelectorAll(".reason")].map(part => part.textContent);
told.counts = all.map(card => [...card.querySelectorAll(".more")].map(part => part.textContent));
told.nulls = all[1].querySelectorAll("td.null").length;
const choose = (id, value) => { $(id).value = value; show(); return [...document.querySelectorAll("article h2")].map(part => part.textContent); };
told.matched = choose("filter", "matched");
told.only = choose("filter", "exact");
told.hard = choose("filter", "all") && choose("level", "hard");
told.database = choose("level", "") && choose("database", "db_1");
choose("database", "");
told.found = choose("search", "no database");
told.nothing = choose("search", "needle") && document.querySelector(".empty").textContent;
document.body.append(Object.assign(document.createElement("pre"), {id: "told", textContent: JSON.stringify(told)}));
</script>
"""


def test_in_a_browser(tmp_path: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium here to open the page in (Debian: apt-get install chromium)")
    path = tmp_path / "page.html"
    path.write_text(page().replace("</body>", f"{ACTS}</body>"))
    found = re.search(r'<pre id="told">(.*?)</pre>', dumped(chromium, path), re.DOTALL)
    assert found is not None
    told: dict[str, Any] = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert told["title"] == "<b>.sql beside gold.sql" and told["cards"] == 4 and told["markup"] == 0
    shares = "0.500 0.000 0.333 0.000 0.400"
    assert (
        " ".join(told["levels"].split())
        == f"easy medium hard extra all count 2 0 3 0 5 exact {shares} execution {shares}"
    )
    assert told["queries"] == [f"SELECT a, '{EVIL}' FROM t", EVIL] and told["words"][:1] == ["SELECT"]
    assert told["reasons"] == [EVIL, f"near {EVIL}"]
    assert told["counts"] == [["1 row"], ["1 row", "the first 20 rows"], ["1 row", "no rows"], ["not run", "not run"]]
    assert told["nulls"] == 20
    assert told["matched"] == ["#3 db_1"] and told["only"] == ["#2 db_0"]
    assert told["hard"] == ["#2 db_0", "#3 db_1", "#4 db_0"] and told["database"] == ["#1 db_1", "#3 db_1"]
    assert told["found"] == ["#4 db_0"] and told["nothing"] == "No query is like that."
