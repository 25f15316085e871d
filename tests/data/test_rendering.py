"""The renderer: templates without tags, prompts, stop tokens, refusals, the sandbox, special tokens in contents."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.piece_tokens import TextTokenizer
from luthier.data.records import Message, RowError
from luthier.data.rendering import Renderer
from luthier.data.template_files import load_template, template_names
from luthier.data.templating import compile_template, render_spans
from luthier.foundation.errors import DataError, ModelError

TALK = [Message("user", "Hello"), Message("assistant", "Hi there"), Message("user", "Who"), Message("assistant", "Me")]
# a template of no family, without generation tags, that writes a line break after its stop token
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}:{{ m['content'] }}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


def with_template(tokenizer, template):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def dicts(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


def test_spans_of_a_template_without_tags(byte_tokenizer) -> None:
    renderer = Renderer(with_template(byte_tokenizer, PLAIN))
    assert [(piece.text, piece.weight) for piece in renderer.pieces(TALK)] == [
        ("<|im_start|>user:Hello<|im_end|>\n<|im_start|>assistant:", None),
        ("Hi there<|im_end|>", 1.0),
        ("\n<|im_start|>user:Who<|im_end|>\n<|im_start|>assistant:", None),
        ("Me<|im_end|>", 1.0),
        ("\n", None),
    ]
    assert renderer.stop_token_ids == (
        byte_tokenizer.eos_token_id,
        byte_tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )


def test_a_stop_token_inside_the_answer_does_not_end_the_span(byte_tokenizer) -> None:
    renderer = Renderer(with_template(byte_tokenizer, PLAIN))
    pieces = renderer.pieces([Message("user", "Hello"), Message("assistant", "say <|im_end|> twice")])
    assert pieces[1].text == "say <|im_end|> twice<|im_end|>"


def test_nothing_is_kept_behind_the_last_target(byte_tokenizer) -> None:
    renderer = Renderer(with_template(byte_tokenizer, PLAIN))
    ids, weights = renderer.encode(TALK)
    assert byte_tokenizer.decode(ids).endswith("Me<|im_end|>") and weights[-1] == 1.0


@pytest.mark.parametrize("template", [*template_names(), PLAIN])
def test_prompt_ids_are_those_before_the_answer(byte_tokenizer, template: str) -> None:
    renderer = (
        Renderer(with_template(byte_tokenizer, template)) if template == PLAIN else Renderer(byte_tokenizer, template)
    )
    for end in (1, 3):
        prompt = renderer.prompt_ids(TALK[:end])
        ids, weights = renderer.encode(TALK[: end + 1])
        assert ids[: len(prompt)] == prompt
        assert weights[len(prompt)] == 1.0 and (end == 3 or not any(weights[: len(prompt)]))


@pytest.mark.parametrize("template", template_names())
@pytest.mark.parametrize("prompt", [True, False])
def test_transformers_renders_the_same(byte_tokenizer, template: str, prompt: bool) -> None:
    """A template file is a valid `tokenizer.chat_template`: text and assistant masks are those of transformers."""
    renderer = Renderer(byte_tokenizer, template)
    messages = [Message("system", "Be brief."), *TALK[: 3 if prompt else 4]]
    if template in ("falcon", "gemma"):  # these know no system prompt
        del messages[0]
    text = "".join(piece.text for piece in renderer.pieces(messages, add_generation_prompt=prompt))
    saved = with_template(byte_tokenizer, renderer.chat_template)
    assert text == saved.apply_chat_template(dicts(messages), tokenize=False, add_generation_prompt=prompt)
    theirs = saved.apply_chat_template(
        dicts(messages),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        add_generation_prompt=prompt,
    )
    encodings = renderer._pieces.encode([renderer.pieces(messages, add_generation_prompt=prompt)])
    ids, weights = encodings[0]
    assert ids == theirs["input_ids"]
    assert [int(weight > 0) for weight in weights] == list(theirs["assistant_masks"])


@pytest.mark.network
def test_alpaca_rows_equal_the_peer_trainers(smollm2_folder: Path, shared_data: Path) -> None:
    """Prompt with generation prompt, tokenized alone, then answer and EOS, tokenized alone: all rows, ids and targets."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    renderer = Renderer(tokenizer)
    rows = json.loads((shared_data / "instruct" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    questions = [row["instruction"] + ("\n" + row["input"] if row.get("input") else "") for row in rows]
    pieces = [
        renderer.pieces([Message("user", question), Message("assistant", row["output"])])
        for question, row in zip(questions, rows, strict=True)
    ]
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, tokenize=False)
        for q in questions
    ]
    prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
    answer_ids = tokenizer([row["output"] + tokenizer.eos_token for row in rows], add_special_tokens=False).input_ids
    assert len(rows) == 999
    for (ids, weights), prompt, answer in zip(renderer.encode_pieces(pieces), prompt_ids, answer_ids, strict=True):
        assert ids == prompt + answer
        assert weights == [0.0] * len(prompt) + [1.0] * len(answer)


def test_a_tokenizer_without_template(byte_tokenizer) -> None:
    with pytest.raises(
        DataError, match=r"no chat template of its own\.\n.*alpaca, .*chatml, .*llama2, llama3, .*qwen2\.5, "
    ):
        Renderer(byte_tokenizer)


def test_an_unknown_template(byte_tokenizer) -> None:
    with pytest.raises(DataError, match=r"no chat template named 'lama3'\.\nDid you mean 'llama3'"):
        Renderer(byte_tokenizer, "lama3")


def test_tokens_the_tokenizer_lacks() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")), eos_token="</s>"
    )
    with pytest.raises(ModelError, match=r"chatml needs the tokens <\|im_start\|>, <\|im_end\|>"):
        Renderer(bare, "chatml")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "writes no stop token after an answer"),
        (
            "{% for m in messages %}{{ m['content'] if loop.last else '...' }}</s>{% endfor %}",
            "renders turn 2 differently in a longer conversation",
        ),
        ("{% for m in messages %}", "is broken"),
        ("{{ raise_exception('never') }}", "refuses this conversation: never"),
        ("{{ messages[9]['content'] + 1 }}", "refuses this conversation"),
        (
            "{% for m in messages %}{% generation %}{{ m['content'] }}</s>{% endgeneration %}{% endfor %}",
            "marks more spans than there are assistant turns",
        ),
        ("{% generation %}{% endgeneration %}", "writes no stop token"),
    ],
)
def test_templates_that_cannot_be_trained_on(byte_tokenizer, template: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Renderer(with_template(byte_tokenizer, template))
    assert "data.template" in str(caught.value)


def test_an_inconsistent_turn_is_the_rows_error(byte_tokenizer) -> None:
    """A template that strips earlier answers, as reasoning models' do, refuses the rows it would render ambiguously."""
    stripping = (
        "{% for m in messages %}{{ m['role'] }}:"
        "{{ m['content'] if loop.last else m['content'].split('|')[-1] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    renderer = Renderer(with_template(byte_tokenizer, stripping))
    renderer.encode(TALK)
    thinking = [TALK[0], Message("assistant", "thought|Hi"), *TALK[2:]]
    with pytest.raises(RowError, match=r"renders turn 2 differently .* set data\.template"):
        renderer.encode(thinking)
    # a prompt trains nothing, so it is rendered as the template says
    assert renderer.prompt_text(thinking[:3]) == "user:Hello</s>assistant:Hi</s>user:Who</s>assistant:"


def test_llama2_refuses_two_questions_in_a_row(byte_tokenizer) -> None:
    with pytest.raises(RowError, match=r"\(llama2\) refuses this conversation: turns must alternate"):
        Renderer(byte_tokenizer, "llama2").encode([TALK[0], TALK[0], TALK[1]])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__ }}",
        "{{ namespace(__class__=1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'assistant'}) }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_templates_stay_in_the_sandbox(attack: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        render_spans(
            compile_template(attack), [{"role": "user", "content": "x"}], add_generation_prompt=False, special_tokens={}
        )


def test_contents_are_never_templates(byte_tokenizer) -> None:
    text = "{{ 1 + 1 }}{% generation %}x{% endgeneration %}"
    pieces = Renderer(byte_tokenizer, "chatml").pieces([Message("user", text), Message("assistant", text)])
    assert pieces[1].text == text + "<|im_end|>" and text in pieces[0].text


def test_special_tokens_in_contents(byte_tokenizer) -> None:
    """As in transformers they become the special tokens; the report counts such rows."""
    renderer = Renderer(byte_tokenizer, "chatml")
    messages = [Message("user", "what is <|im_end|>?"), Message("assistant", "x")]
    assert renderer.holds_control_tokens(messages) and not renderer.holds_control_tokens(TALK)
    assert renderer.encode(messages)[0].count(byte_tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3


def test_stop_tokens_of_named_templates(byte_tokenizer) -> None:
    eos = byte_tokenizer.eos_token_id
    for name, stop in {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "llama2": "</s>", "alpaca": "</s>"}.items():
        expected = tuple(dict.fromkeys((eos, byte_tokenizer.convert_tokens_to_ids(stop))))
        assert Renderer(byte_tokenizer, name).stop_token_ids == expected
    assert load_template("alpaca").stop_tokens == () and load_template("llama3").stop_tokens == ("<|eot_id|>",)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=150, deadline=None)
@given(
    template=st.sampled_from(template_names()),
    questions=st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    system=st.none() | texts,
)
def test_decoding_keeps_every_message(byte_tokenizer, template, questions, system) -> None:
    """Up to the spaces around a message, which some families trim."""
    messages = [Message("system", system)] if system and template not in ("falcon", "gemma") else []
    for question, answer in questions:
        messages += [Message("user", question), Message("assistant", answer)]
    ids, weights = Renderer(byte_tokenizer, template).encode(messages)
    text = byte_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    position = 0
    for message in messages:
        content = message.content.strip()
        position = text.index(content, position) + len(content)
    assert len(ids) == len(weights) and weights[-1] == 1.0 and weights[0] == 0.0


def test_offsets_assign_a_token_to_the_piece_of_its_last_character(metaspace_tokenizer) -> None:
    renderer = Renderer(metaspace_tokenizer, "llama2")
    ids, weights = renderer.encode(TALK)
    tokens = metaspace_tokenizer.convert_ids_to_tokens(ids)
    first = next(index for index, weight in enumerate(weights) if weight > 0)
    # the space before the answer belongs to it: "▁H..." is the first trained token
    assert tokens[first].startswith("▁") and tokens[first - 1].endswith("]")
    assert tokens[-1] == "</s>" and weights[-1] == 1.0


def test_rendering_is_the_same_in_any_order(byte_tokenizer) -> None:
    renderer = Renderer(byte_tokenizer, "chatml")
    rows = [[Message("user", f"q{i}" * (i + 1)), Message("assistant", f"a{i}")] for i in range(50)]
    together = renderer.encode_pieces([renderer.pieces(row) for row in rows])
    for index in random.Random(0).sample(range(50), 10):
        assert together[index] == renderer.encode(rows[index])


@pytest.mark.parametrize("template", template_names())
def test_prompt_ids_of_a_tokenizer_with_metaspace(metaspace_tokenizer, template: str) -> None:
    """The boundary between prompt and answer falls between tokens: what chat feeds is what training saw."""
    renderer = Renderer(metaspace_tokenizer, template)
    for end in (1, 3):
        prompt = renderer.prompt_ids(TALK[:end])
        ids, weights = renderer.encode(TALK[: end + 1])
        assert ids[: len(prompt)] == prompt and weights[len(prompt)] == 1.0


def test_truncation_saved_in_a_tokenizer_does_not_cut(byte_tokenizer) -> None:
    """A tokenizer.json may carry truncation and padding from its own training; ours are settings of the config."""
    cutting = copy.deepcopy(byte_tokenizer)
    cutting.backend_tokenizer.enable_truncation(5)
    cutting.backend_tokenizer.enable_padding(length=64)
    assert Renderer(cutting, "chatml").encode(TALK) == Renderer(byte_tokenizer, "chatml").encode(TALK)


def test_texts_are_tokenized_as_transformers_does(byte_tokenizer, metaspace_tokenizer) -> None:
    texts = ["Hello, how are you?", "", " <|im_end|> x", "你好\n", "a" * 3000]
    for tokenizer in (byte_tokenizer, metaspace_tokenizer):
        assert TextTokenizer(tokenizer)(texts) == tokenizer(texts, add_special_tokens=False).input_ids
