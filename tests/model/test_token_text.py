"""Text that grows by tokens: characters of several tokens, stop strings across token boundaries."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.model.token_text import TokenText
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def told(text: str, stops: list[str]) -> tuple[str, str, int]:
    """What is told piece by piece, the whole at the end, and how many tokens were taken."""
    ids = TOKENIZER(text)["input_ids"]
    growing = TokenText(TOKENIZER, stops)
    pieces = []
    for token in ids:
        stopped = growing.push(token)
        pieces.append(growing.news())
        if stopped:
            break
    pieces.append(growing.news(final=True))
    return "".join(pieces), growing.finish(), len(growing.token_ids)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("the quick#;\n 你好🙂é"), max_size=30), st.lists(st.text(st.sampled_from("#;\n好k "), min_size=1, max_size=3), max_size=2))  # fmt: skip
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    wanted = text[: min(places)] if places else text
    pieces, whole, _ = told(text, stops)
    assert pieces == whole
    # one stop string may be complete before another that begins earlier
    if len(stops) < 2:
        assert whole == wanted


def test_no_token_is_taken_after_the_stop_string() -> None:
    text = "the quick###the quick"
    _, whole, taken = told(text, ["###"])
    assert whole == "the quick"
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"][:taken]).endswith("###")
    assert not TOKENIZER.decode(TOKENIZER(text)["input_ids"][: taken - 1]).endswith("###")


def test_nothing_of_a_stop_string_is_told_before_it_is_known() -> None:
    growing = TokenText(TOKENIZER, ["##x"])
    for token in TOKENIZER("ab##")["input_ids"]:
        growing.push(token)
    assert growing.news() == "ab"
    assert growing.news(final=True) == "##"
