"""Every family's rendered text and trained spans (between ⟦ and ⟧), against public fixtures, never our own code.

The conversation is that of llama.cpp's tests/test-chat-template.cpp. Each template file's `source:` names where its strings
come from: the expected output of that test (with this tokenizer's BOS) for phi4, phi3, command-r, deepseek2, gemma3, chatglm3,
glm4, mistral and mixtral, cut short for one and two turns; the text of the family's own or the named template for the rest.
What differs from the source is what a model must be taught in order to stop:

- chatglm3, glm4: the token that opens the next question ends an answer; the last answer gets it too.
- baichuan2: the same, but EOS ends the last answer.
- falcon: EOS is written before the line break that ends an answer.
- deepseek-r1: the family's own template drops the thought of the last answer as well; ours keeps it, to train it.

Families that the tests of LLaMA-Factory render with their own tokenizers are compared with those in PUBLIC.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import jinja2
import pytest

from luthier.data.records import Message, RowError
from luthier.data.rendering import Renderer
from luthier.data.template_files import load_template, template_list, template_names
from luthier.foundation.errors import DataError

SYSTEM = Message("system", "You are a helpful assistant")
TURNS = [
    Message("user", "Hello"),
    Message("assistant", "Hi there"),
    Message("user", "Who are you"),
    Message("assistant", "   I am an assistant   "),
]
QUESTION = Message("user", "Another question")
ELSEWHERE = {"alpaca", "chatml", "llama2", "llama3"}  # in test_template_spans
WITHOUT_SYSTEM = {"falcon", "gemma"}
WITH_TOOLS = {"llama3.1", "llama4", "mistral", "qwen2.5", "qwen3", "qwen3-nothink"}


@dataclass(frozen=True)
class Expected:
    """One turn; a system prompt (where the family has one) and two turns; the same with another question, as a prompt."""

    one: str
    two: str
    prompt: str


FAMILIES: dict[str, Expected] = {
    "baichuan2": Expected(
        one="<reserved_106>Hello<reserved_107>⟦Hi there</s>⟧",
        two=(
            "You are a helpful assistant<reserved_106>Hello<reserved_107>⟦Hi there<reserved_106>⟧"
            "Who are you<reserved_107>⟦   I am an assistant   </s>⟧"
        ),
        prompt=(
            "You are a helpful assistant<reserved_106>Hello<reserved_107>Hi there<reserved_106>Who are you<reserved_107>   I am an assistant   <reserved_106>Another question<reserved_107>"
        ),
    ),
    "chatglm3": Expected(
        one="[gMASK]sop<|user|>\n Hello<|assistant|>⟦\n Hi there<|user|>⟧",
        two=(
            "[gMASK]sop<|system|>\n You are a helpful assistant<|user|>\n Hello<|assistant|>⟦\n Hi there<|user|>⟧\n"
            " Who are you<|assistant|>⟦\n    I am an assistant   <|user|>⟧"
        ),
        prompt=(
            "[gMASK]sop<|system|>\n You are a helpful assistant<|user|>\n Hello<|assistant|>\n Hi there<|user|>\n"
            " Who are you<|assistant|>\n    I am an assistant   <|user|>\n Another question<|assistant|>"
        ),
    ),
    "command-r": Expected(
        one=(
            "<s><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
            "<|CHATBOT_TOKEN|>⟦Hi there<|END_OF_TURN_TOKEN|>⟧"
        ),
        two=(
            "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>You are a helpful assistant<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
            "⟦Hi there<|END_OF_TURN_TOKEN|>⟧<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who are you<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦I am an assistant<|END_OF_TURN_TOKEN|>⟧"
        ),
        prompt=(
            "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>You are a helpful assistant<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
            "Hi there<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who are you<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>I am an assistant<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
            "<|USER_TOKEN|>Another question<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        ),
    ),
    "deepseek-r1": Expected(
        one="<s><｜User｜>Hello<｜Assistant｜><think>\n⟦\n</think>\n\nHi there<｜end▁of▁sentence｜>⟧",
        two=(
            "<s>You are a helpful assistant<｜User｜>Hello<｜Assistant｜>⟦Hi there<｜end▁of▁sentence｜>⟧"
            "<｜User｜>Who are you<｜Assistant｜><think>\n⟦\n</think>\n\n   I am an assistant   <｜end▁of▁sentence｜>⟧"
        ),
        prompt=(
            "<s>You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there<｜end▁of▁sentence｜>"
            "<｜User｜>Who are you<｜Assistant｜>   I am an assistant   <｜end▁of▁sentence｜>"
            "<｜User｜>Another question<｜Assistant｜><think>\n"
        ),
    ),
    "deepseek2": Expected(
        one="<s>User: Hello\n\nAssistant:⟦ Hi there</s>⟧",
        two=(
            "<s>You are a helpful assistant\n\nUser: Hello\n\nAssistant:⟦ Hi there</s>⟧User: Who are you\n\n"
            "Assistant:⟦    I am an assistant   </s>⟧"
        ),
        prompt=(
            "<s>You are a helpful assistant\n\nUser: Hello\n\nAssistant: Hi there</s>User: Who are you\n\n"
            "Assistant:    I am an assistant   </s>User: Another question\n\nAssistant:"
        ),
    ),
    "deepseek3": Expected(
        one="<s><｜User｜>Hello<｜Assistant｜>⟦Hi there<｜end▁of▁sentence｜>⟧",
        two=(
            "<s>You are a helpful assistant<｜User｜>Hello<｜Assistant｜>⟦Hi there<｜end▁of▁sentence｜>⟧"
            "<｜User｜>Who are you<｜Assistant｜>⟦   I am an assistant   <｜end▁of▁sentence｜>⟧"
        ),
        prompt=(
            "<s>You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there<｜end▁of▁sentence｜>"
            "<｜User｜>Who are you<｜Assistant｜>   I am an assistant   <｜end▁of▁sentence｜>"
            "<｜User｜>Another question<｜Assistant｜>"
        ),
    ),
    "default": Expected(
        one="Human: Hello</s>\nAssistant:⟦Hi there</s>⟧\n",
        two=(
            "System: You are a helpful assistant</s>\nHuman: Hello</s>\nAssistant:⟦Hi there</s>⟧\n"
            "Human: Who are you</s>\nAssistant:⟦   I am an assistant   </s>⟧\n"
        ),
        prompt=(
            "System: You are a helpful assistant</s>\nHuman: Hello</s>\nAssistant:Hi there</s>\n"
            "Human: Who are you</s>\nAssistant:   I am an assistant   </s>\nHuman: Another question</s>\nAssistant:"
        ),
    ),
    "falcon": Expected(
        one="<s>User: Hello\nAssistant:⟦ Hi there</s>⟧",
        two="<s>User: Hello\nAssistant:⟦ Hi there</s>⟧\nUser: Who are you\nAssistant:⟦    I am an assistant   </s>⟧",
        prompt=(
            "<s>User: Hello\nAssistant: Hi there</s>\nUser: Who are you\nAssistant:    I am an assistant   </s>\n"
            "User: Another question\nAssistant:"
        ),
    ),
    "gemma": Expected(
        one="<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n⟦Hi there<end_of_turn>⟧\n",
        two=(
            "<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n⟦Hi there<end_of_turn>⟧\n"
            "<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\n⟦I am an assistant<end_of_turn>⟧\n"
        ),
        prompt=(
            "<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi there<end_of_turn>\n"
            "<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\nI am an assistant<end_of_turn>\n"
            "<start_of_turn>user\nAnother question<end_of_turn>\n<start_of_turn>model\n"
        ),
    ),
    "gemma3": Expected(
        one="<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n⟦Hi there<end_of_turn>⟧\n",
        two=(
            "<s><start_of_turn>user\nYou are a helpful assistant\n\nHello<end_of_turn>\n<start_of_turn>model\n"
            "⟦Hi there<end_of_turn>⟧\n<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\n"
            "⟦I am an assistant<end_of_turn>⟧\n"
        ),
        prompt=(
            "<s><start_of_turn>user\nYou are a helpful assistant\n\nHello<end_of_turn>\n<start_of_turn>model\n"
            "Hi there<end_of_turn>\n<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\n"
            "I am an assistant<end_of_turn>\n<start_of_turn>user\nAnother question<end_of_turn>\n"
            "<start_of_turn>model\n"
        ),
    ),
    "glm4": Expected(
        one="[gMASK]<sop><|user|>\nHello<|assistant|>\n⟦Hi there<|user|>⟧",
        two=(
            "[gMASK]<sop><|system|>\nYou are a helpful assistant<|user|>\nHello<|assistant|>\n⟦Hi there<|user|>⟧\n"
            "Who are you<|assistant|>\n⟦   I am an assistant   <|user|>⟧"
        ),
        prompt=(
            "[gMASK]<sop><|system|>\nYou are a helpful assistant<|user|>\nHello<|assistant|>\nHi there<|user|>\n"
            "Who are you<|assistant|>\n   I am an assistant   <|user|>\nAnother question<|assistant|>\n"
        ),
    ),
    "internlm2": Expected(
        one="<s><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n</s>",
        two=(
            "<s><|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n⟦   I am an assistant   <|im_end|>⟧\n</s>"
        ),
        prompt=(
            "<s><|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>"
            "assistant\n"
        ),
    ),
    "llama3.1": Expected(
        one=(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
        ),
        two=(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            "Today Date: 26 Jul 2024\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user<|end_header_id|>"
            "\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
            "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|><|start_header_id|>"
            "assistant<|end_header_id|>\n\n⟦I am an assistant<|eot_id|>⟧"
        ),
        prompt=(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            "Today Date: 26 Jul 2024\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user<|end_header_id|>"
            "\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|><|start_header_id|>"
            "assistant<|end_header_id|>\n\nI am an assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "Another question<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    ),
    "llama4": Expected(
        one=(
            "<s><|header_start|>user<|header_end|>\n\nHello<|eot|><|header_start|>assistant<|header_end|>\n\n"
            "⟦Hi there<|eot|>⟧"
        ),
        two=(
            "<s><|header_start|>system<|header_end|>\n\nYou are a helpful assistant<|eot|><|header_start|>"
            "user<|header_end|>\n\nHello<|eot|><|header_start|>assistant<|header_end|>\n\n⟦Hi there<|eot|>⟧"
            "<|header_start|>user<|header_end|>\n\nWho are you<|eot|><|header_start|>assistant<|header_end|>\n\n"
            "⟦   I am an assistant   <|eot|>⟧"
        ),
        prompt=(
            "<s><|header_start|>system<|header_end|>\n\nYou are a helpful assistant<|eot|><|header_start|>"
            "user<|header_end|>\n\nHello<|eot|><|header_start|>assistant<|header_end|>\n\nHi there<|eot|>"
            "<|header_start|>user<|header_end|>\n\nWho are you<|eot|><|header_start|>assistant<|header_end|>\n\n"
            "   I am an assistant   <|eot|><|header_start|>user<|header_end|>\n\nAnother question<|eot|>"
            "<|header_start|>assistant<|header_end|>\n\n"
        ),
    ),
    "mistral": Expected(
        one="<s>[INST] Hello[/INST]⟦ Hi there</s>⟧",
        two=(
            "<s>[INST] You are a helpful assistant\n\nHello[/INST]⟦ Hi there</s>⟧"
            "[INST] Who are you[/INST]⟦ I am an assistant</s>⟧"
        ),
        prompt=(
            "<s>[INST] You are a helpful assistant\n\nHello[/INST] Hi there</s>"
            "[INST] Who are you[/INST] I am an assistant</s>[INST] Another question[/INST]"
        ),
    ),
    "mixtral": Expected(
        one="<s> [INST] Hello [/INST]⟦ Hi there</s>⟧",
        two=(
            "<s> [INST] You are a helpful assistant\n\nHello [/INST]⟦ Hi there</s>⟧"
            " [INST] Who are you [/INST]⟦    I am an assistant   </s>⟧"
        ),
        prompt=(
            "<s> [INST] You are a helpful assistant\n\nHello [/INST] Hi there</s>"
            " [INST] Who are you [/INST]    I am an assistant   </s> [INST] Another question [/INST]"
        ),
    ),
    "phi3": Expected(
        one="<|user|>\nHello<|end|>\n<|assistant|>\n⟦Hi there<|end|>⟧\n",
        two=(
            "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n⟦Hi there<|end|>⟧"
            "\n<|user|>\nWho are you<|end|>\n<|assistant|>\n⟦   I am an assistant   <|end|>⟧\n"
        ),
        prompt=(
            "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n"
            "<|user|>\nWho are you<|end|>\n<|assistant|>\n   I am an assistant   <|end|>\n<|user|>\n"
            "Another question<|end|>\n<|assistant|>\n"
        ),
    ),
    "phi4": Expected(
        one="<|im_start|>user<|im_sep|>Hello<|im_end|><|im_start|>assistant<|im_sep|>⟦Hi there<|im_end|>⟧",
        two=(
            "<|im_start|>system<|im_sep|>You are a helpful assistant<|im_end|><|im_start|>user<|im_sep|>"
            "Hello<|im_end|><|im_start|>assistant<|im_sep|>⟦Hi there<|im_end|>⟧<|im_start|>user<|im_sep|>"
            "Who are you<|im_end|><|im_start|>assistant<|im_sep|>⟦   I am an assistant   <|im_end|>⟧"
        ),
        prompt=(
            "<|im_start|>system<|im_sep|>You are a helpful assistant<|im_end|><|im_start|>user<|im_sep|>"
            "Hello<|im_end|><|im_start|>assistant<|im_sep|>Hi there<|im_end|><|im_start|>user<|im_sep|>"
            "Who are you<|im_end|><|im_start|>assistant<|im_sep|>   I am an assistant   <|im_end|><|im_start|>"
            "user<|im_sep|>Another question<|im_end|><|im_start|>assistant<|im_sep|>"
        ),
    ),
    "qwen2.5": Expected(
        one=(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n"
        ),
        two=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n⟦   I am an assistant   <|im_end|>⟧\n"
        ),
        prompt=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>"
            "assistant\n"
        ),
    ),
    "qwen3": Expected(
        one=("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nHi there<|im_end|>⟧\n"),
        two=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n⟦<think>\n\n</think>\n\n   I am an assistant   <|im_end|>⟧\n"
        ),
        prompt=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>"
            "assistant\n"
        ),
    ),
    "qwen3-nothink": Expected(
        one=("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦Hi there<|im_end|>⟧\n"),
        two=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n<think>\n\n</think>\n\n⟦   I am an assistant   <|im_end|>⟧\n"
        ),
        prompt=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>"
            "assistant\n<think>\n\n</think>\n\n"
        ),
    ),
    "smollm2": Expected(
        one=(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n"
        ),
        two=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n⟦   I am an assistant   <|im_end|>⟧\n"
        ),
        prompt=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>"
            "assistant\n"
        ),
    ),
    "vicuna": Expected(
        one=(
            "<s>A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
            "USER: Hello ASSISTANT:⟦ Hi there</s>⟧"
        ),
        two=(
            "<s>You are a helpful assistant USER: Hello ASSISTANT:⟦ Hi there</s>⟧"
            "USER: Who are you ASSISTANT:⟦    I am an assistant   </s>⟧"
        ),
        prompt=(
            "<s>You are a helpful assistant USER: Hello ASSISTANT: Hi there</s>"
            "USER: Who are you ASSISTANT:    I am an assistant   </s>USER: Another question ASSISTANT:"
        ),
    ),
    "xverse": Expected(
        one="Human: Hello\n\nAssistant: ⟦Hi there</s>⟧",
        two=(
            "You are a helpful assistant\n\nHuman: Hello\n\nAssistant: ⟦Hi there</s>⟧Human: Who are you\n\n"
            "Assistant: ⟦   I am an assistant   </s>⟧"
        ),
        prompt=(
            "You are a helpful assistant\n\nHuman: Hello\n\nAssistant: Hi there</s>Human: Who are you\n\n"
            "Assistant:    I am an assistant   </s>Human: Another question\n\nAssistant: "
        ),
    ),
    "yi": Expected(
        one="<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n",
        two=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n⟦   I am an assistant   <|im_end|>⟧\n"
        ),
        prompt=(
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>"
            "assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>"
            "assistant\n"
        ),
    ),
    "zephyr": Expected(
        one="<|user|>\nHello</s>\n<|assistant|>\n⟦Hi there</s>⟧\n",
        two=(
            "<|system|>\nYou are a helpful assistant</s>\n<|user|>\nHello</s>\n<|assistant|>\n⟦Hi there</s>⟧\n"
            "<|user|>\nWho are you</s>\n<|assistant|>\n⟦   I am an assistant   </s>⟧\n"
        ),
        prompt=(
            "<|system|>\nYou are a helpful assistant</s>\n<|user|>\nHello</s>\n<|assistant|>\nHi there</s>\n<|user|>"
            "\nWho are you</s>\n<|assistant|>\n   I am an assistant   </s>\n<|user|>\nAnother question</s>\n"
            "<|assistant|>\n"
        ),
    ),
}


def marked(renderer: Renderer, messages: list[Message]) -> str:
    return "".join(f"⟦{piece.text}⟧" if piece.trained else piece.text for piece in renderer.pieces(messages))


def unmarked(text: str) -> str:
    return text.replace("⟦", "").replace("⟧", "")


def with_system(name: str, *messages: Message) -> list[Message]:
    return [*messages] if name in WITHOUT_SYSTEM else [SYSTEM, *messages]


def as_dicts(messages: list[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def by_transformers(tokenizer: Any, name: str, messages: list[dict[str, Any]], **settings: Any) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = load_template(name).text
    return changed.apply_chat_template(messages, **{"tokenize": False, **settings})


def test_every_template_has_expectations() -> None:
    assert set(template_names()) == set(FAMILIES) | ELSEWHERE


@pytest.mark.parametrize("name", FAMILIES)
def test_text_and_trained_spans(byte_tokenizer, name: str) -> None:
    renderer, expected = Renderer(byte_tokenizer, name), FAMILIES[name]
    assert marked(renderer, TURNS[:2]) == expected.one
    assert marked(renderer, with_system(name, *TURNS)) == expected.two
    assert renderer.prompt_text(with_system(name, *TURNS, QUESTION)) == expected.prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_renders_the_same(byte_tokenizer, name: str) -> None:
    messages, expected = as_dicts(with_system(name, *TURNS, QUESTION)), FAMILIES[name]
    assert by_transformers(byte_tokenizer, name, messages[:-1]) == unmarked(expected.two)
    assert by_transformers(byte_tokenizer, name, messages, add_generation_prompt=True) == expected.prompt


@pytest.mark.parametrize("name", sorted(WITHOUT_SYSTEM))
def test_families_without_system_prompt(byte_tokenizer, name: str) -> None:
    with pytest.raises(RowError, match=rf"\({name}\) refuses this conversation: .* knows no system prompt"):
        Renderer(byte_tokenizer, name).pieces([SYSTEM, *TURNS])


@pytest.mark.parametrize("name", ["baichuan2", "command-r", "gemma", "gemma3", "mistral", "mixtral", "vicuna"])
def test_families_whose_turns_alternate(byte_tokenizer, name: str) -> None:
    with pytest.raises(RowError, match="turns must alternate"):
        Renderer(byte_tokenizer, name).pieces([TURNS[0], TURNS[0], TURNS[1]])


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - WITH_TOOLS))
@pytest.mark.parametrize("what", ["tools", "call", "result"])
def test_families_without_tools_refuse_them(byte_tokenizer, name: str, what: str) -> None:
    """Rather than leave out in silence what the row holds."""
    messages = as_dicts(TURNS[:2])
    if what == "call":
        messages[1]["tool_calls"] = [CALL]
    if what == "result":
        messages.append({"role": "tool", "content": "7"})
    with pytest.raises(jinja2.TemplateError, match="this template has no tools"):
        by_transformers(byte_tokenizer, name, messages, tools=[TOOL] if what == "tools" else None)


def test_unverified_templates_are_marked() -> None:
    assert [name for name in template_names() if not load_template(name).verified] == ["falcon", "xverse"]
    assert template_list().endswith("smollm2, vicuna, xverse (unverified), yi, zephyr")
    with pytest.raises(DataError, match=r"xverse \(unverified\)"):
        load_template("unheard-of")
    assert all(load_template(name).source for name in template_names())


# hiyouga/LlamaFactory, tests/data/test_template.py: its MESSAGES, and prompt_str and answer_str of the tests named below
LF_MESSAGES = [
    Message("user", "How are you"),
    Message("assistant", "I am fine!"),
    Message("user", "你好"),
    Message("assistant", "很高兴认识你！"),
]
LF_THOUGHTS = [
    LF_MESSAGES[0],
    Message("assistant", "<think>\nModel thought here\n</think>\n\nI am fine!"),
    LF_MESSAGES[2],
    Message("assistant", "<think>\n模型思考内容\n</think>\n\n很高兴认识你！"),
]
QWEN = (
    "<|im_start|>user\nHow are you<|im_end|>\n<|im_start|>assistant\nI am fine!<|im_end|>\n"
    "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
)
NO_THOUGHT = "<think>\n\n</think>\n\n"
GEMMA = (
    "<s><start_of_turn>user\nHow are you<end_of_turn>\n<start_of_turn>model\nI am fine!<end_of_turn>\n"
    "<start_of_turn>user\n你好<end_of_turn>\n<start_of_turn>model\n"
)
PUBLIC = {
    # test_llama4_template, with this tokenizer's BOS
    "llama4": (
        LF_MESSAGES,
        "<s><|header_start|>user<|header_end|>\n\nHow are you<|eot|><|header_start|>assistant<|header_end|>\n\n"
        "I am fine!<|eot|><|header_start|>user<|header_end|>\n\n你好<|eot|><|header_start|>assistant<|header_end|>\n\n",
        "很高兴认识你！<|eot|>",
    ),
    # test_phi4_template
    "phi4": (
        LF_MESSAGES,
        "<|im_start|>user<|im_sep|>How are you<|im_end|><|im_start|>assistant<|im_sep|>I am fine!<|im_end|>"
        "<|im_start|>user<|im_sep|>你好<|im_end|><|im_start|>assistant<|im_sep|>",
        "很高兴认识你！<|im_end|>",
    ),
    # test_gemma2_template and test_gemma_template, with this tokenizer's BOS
    "gemma": (LF_MESSAGES, GEMMA, "很高兴认识你！<end_of_turn>"),
    "gemma3": (LF_MESSAGES, GEMMA, "很高兴认识你！<end_of_turn>"),
    # test_qwen2_5_template
    "qwen2.5": (
        LF_MESSAGES,
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n" + QWEN,
        "很高兴认识你！<|im_end|>",
    ),
    # test_qwen3_template, cot_messages False and True
    "qwen3": (LF_MESSAGES, QWEN, NO_THOUGHT + "很高兴认识你！<|im_end|>"),
    "qwen3 with thoughts": (LF_THOUGHTS, QWEN, "<think>\n模型思考内容\n</think>\n\n很高兴认识你！<|im_end|>"),
    # test_reasoning_encode_oneturn, enable_thinking False
    "qwen3-nothink": (LF_MESSAGES, QWEN + NO_THOUGHT, "很高兴认识你！<|im_end|>"),
    "qwen3-nothink with thoughts": (LF_THOUGHTS, QWEN + NO_THOUGHT, "很高兴认识你！<|im_end|>"),
}


@pytest.mark.parametrize("case", PUBLIC)
def test_prompt_and_answer_of_the_public_fixture(byte_tokenizer, case: str) -> None:
    renderer = Renderer(byte_tokenizer, case.split()[0])
    messages, prompt, answer = PUBLIC[case]
    pieces = renderer.pieces(messages)
    last = max(index for index, piece in enumerate(pieces) if piece.trained)
    assert "".join(piece.text for piece in pieces[:last]) == prompt == renderer.prompt_text(messages[:3])
    assert pieces[last].text == answer


def test_vicuna_of_the_public_fixture(byte_tokenizer) -> None:
    """deployradiant/pychatml, tests/test_vicuna_v1_1.py, EXPECTED_PROMPT, after this tokenizer's BOS."""
    answers = (
        "ChatGPT is an advanced language model developed by OpenAI. It's designed to understand and generate natural language, "
        "so it can converse with users, answer questions, and even assist with various tasks.",
        "Yes, but it can engage in broader conversations and more complex reasoning.",
    )
    messages = [
        Message("user", "What is ChatGPT?"),
        Message("assistant", answers[0]),
        Message("user", "So, it's like a super-advanced chatbot?"),
        Message("assistant", answers[1]),
    ]
    assert marked(Renderer(byte_tokenizer, "vicuna"), messages) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        f"polite answers to the user's questions. USER: What is ChatGPT? ASSISTANT:⟦ {answers[0]}</s>⟧"
        f"USER: So, it's like a super-advanced chatbot? ASSISTANT:⟦ {answers[1]}</s>⟧"
    )


def test_thoughts_of_deepseek_r1(byte_tokenizer) -> None:
    """The prompt opens the thought, so the answer goes on within it; earlier ones are dropped, as in the family's own."""
    assert marked(Renderer(byte_tokenizer, "deepseek-r1"), LF_THOUGHTS) == (
        "<s><｜User｜>How are you<｜Assistant｜>⟦\n\nI am fine!<｜end▁of▁sentence｜>⟧<｜User｜>你好<｜Assistant｜><think>\n"
        "⟦模型思考内容\n</think>\n\n很高兴认识你！<｜end▁of▁sentence｜>⟧"
    )


TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 4}}}
TOOL_TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "3 + 4?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": "7"},
    {"role": "assistant", "content": "Seven."},
]
QWEN_TALK = (
    "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "add", "description": "Adds", "parameters": '
    '{"type": "object", "properties": {}}}}\n</tools>\n\nFor each function call, return a json object with function name and '
    "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n3 + 4?<|im_end|>\n<|im_start|>assistant\n"
    '⟦<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>⟧\n'
    "<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)
LLAMA_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best answers "
    'the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its '
    'value}.Do not use variables.\n\n{\n    "type": "function",\n    "function": {\n        "name": "add",\n'
    '        "description": "Adds",\n        "parameters": {\n            "type": "object",\n            "properties": {}\n'
    "        }\n    }\n}\n\n"
)
LLAMA_CALL = '{"name": "add", "parameters": {"a": 3, "b": 4}}'
# what the templates that `source:` names make of this conversation
TOOL_TEXTS = {
    "qwen2.5": QWEN_TALK + "⟦Seven.<|im_end|>⟧\n",
    "qwen3": QWEN_TALK + "⟦<think>\n\n</think>\n\nSeven.<|im_end|>⟧\n",
    "qwen3-nothink": QWEN_TALK + "<think>\n\n</think>\n\n⟦Seven.<|im_end|>⟧\n",
    "llama3.1": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{LLAMA_TOOLS}3 + 4?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦{LLAMA_CALL}<|eot_id|>⟧"
        '<|start_header_id|>ipython<|end_header_id|>\n\n"7"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
        "⟦Seven.<|eot_id|>⟧"
    ),
    "llama4": (
        "<s><|header_start|>system<|header_end|>\n\nEnvironment: ipython\nBe brief.<|eot|>"
        f"<|header_start|>user<|header_end|>\n\n{LLAMA_TOOLS}3 + 4?<|eot|><|header_start|>assistant<|header_end|>\n\n"
        f'⟦{LLAMA_CALL}<|eot|>⟧<|header_start|>ipython<|header_end|>\n\n"7"<|eom|>'
        "<|header_start|>assistant<|header_end|>\n\n⟦Seven.<|eot|>⟧"
    ),
    "mistral": (
        '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "add", "description": "Adds", "parameters": '
        '{"type": "object", "properties": {}}}}][/AVAILABLE_TOOLS][INST] Be brief.\n\n3 + 4?[/INST]'
        '⟦[TOOL_CALLS] [{"name": "add", "arguments": {"a": 3, "b": 4}, "id": "call00001"}]</s>⟧'
        '[TOOL_RESULTS] {"content": 7, "call_id": "call00001"}[/TOOL_RESULTS]⟦ Seven.</s>⟧'
    ),
}


@pytest.mark.parametrize("name", sorted(WITH_TOOLS))
def test_tool_calls_and_results(byte_tokenizer, name: str) -> None:
    """The text, and that calls are trained and results are not."""
    expected = TOOL_TEXTS[name]
    text = by_transformers(byte_tokenizer, name, TOOL_TALK, tools=[TOOL])
    assert text == unmarked(expected)
    encoded = by_transformers(
        byte_tokenizer,
        name,
        TOOL_TALK,
        tools=[TOOL],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    trained = [i for i, on in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if on]
    spans = "".join(part.split("⟧")[0] for part in expected.split("⟦")[1:])
    assert byte_tokenizer.decode(trained, clean_up_tokenization_spaces=False) == spans
    # arguments that come as JSON text are written as they are
    as_text = copy.deepcopy(TOOL_TALK)
    as_text[2]["tool_calls"][0]["function"]["arguments"] = '{"a": 3, "b": 4}'
    assert by_transformers(byte_tokenizer, name, as_text, tools=[TOOL]) == text


def test_llama_makes_one_call_at_a_time(byte_tokenizer) -> None:
    talk = copy.deepcopy(TOOL_TALK)
    talk[2]["tool_calls"].append(CALL)
    with pytest.raises(jinja2.TemplateError, match="one tool call at a time"):
        by_transformers(byte_tokenizer, "llama3.1", talk, tools=[TOOL])


@pytest.mark.parametrize(("turn", "key"), [(2, "id"), (3, "tool_call_id")])
def test_mistral_wants_ids_of_nine_characters(byte_tokenizer, turn: int, key: str) -> None:
    talk = copy.deepcopy(TOOL_TALK)
    (talk[turn]["tool_calls"][0] if key == "id" else talk[turn])[key] = "call_1"
    with pytest.raises(jinja2.TemplateError, match="of 9 characters"):
        by_transformers(byte_tokenizer, "mistral", talk, tools=[TOOL])
