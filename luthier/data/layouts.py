"""How a turn is written: the keys of role and content, and what the roles are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import Field, model_validator

from luthier.data.columns import FormatOptions
from luthier.data.records import Role
from luthier.foundation.registry import nearest


@dataclass(frozen=True, slots=True)
class Layout:
    """Keys and role names of turns.

    Args:
        roles: what a role is called in the file, and what it is.
        call_roles: roles whose content is a call, as JSON; the assistant's.
    """

    role_key: str
    content_key: str
    roles: Mapping[str, Role]
    call_roles: frozenset[str] = frozenset()


SHAREGPT = Layout(
    "from",
    "value",
    {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "chatgpt": "assistant",
        "model": "assistant",
        "system": "system",
        "observation": "tool",
        "function": "tool",
        "tool": "tool",
    },
    frozenset({"function_call"}),
)
OPENAI = Layout(
    "role",
    "content",
    {
        "user": "user",
        "assistant": "assistant",
        "system": "system",
        "developer": "system",
        "tool": "tool",
        "function": "tool",
    },
)

_ROLE_TAGS: Mapping[str, Role] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
}
# the names LLaMA-Factory's dataset_info.json has for them
TAGS = ("role_tag", "content_tag", *_ROLE_TAGS, "function_tag")


class TurnOptions(FormatOptions):
    """Base of the options of formats with lists of turns."""

    LAYOUT: ClassVar[Layout] = OPENAI

    tags: dict[str, str] = Field(
        default_factory=dict,
        description=f"What a turn's keys and roles are called, by {', '.join(TAGS)}; a name given replaces the usual ones.",
    )

    @model_validator(mode="after")
    def _known_tags(self) -> TurnOptions:
        for tag in self.tags:
            if tag not in TAGS:
                close = nearest(tag, TAGS)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise ValueError(f"tags: there is no {tag!r}{hint}; known: {', '.join(TAGS)}")
        names = [self.tags[tag] for tag in (*_ROLE_TAGS, "function_tag") if tag in self.tags]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"tags: two roles are called {twice!r}")
        return self

    def layout(self) -> Layout:
        """The format's usual layout with the tags in place."""
        usual, tags = self.LAYOUT, self.tags
        renamed = {role for tag, role in _ROLE_TAGS.items() if tag in tags}
        roles = {name: role for name, role in usual.roles.items() if role not in renamed}
        roles |= {tags[tag]: role for tag, role in _ROLE_TAGS.items() if tag in tags}
        calls = frozenset({tags["function_tag"]}) if "function_tag" in tags else usual.call_roles - set(roles)
        return replace(
            usual,
            role_key=tags.get("role_tag", usual.role_key),
            content_key=tags.get("content_tag", usual.content_key),
            roles={name: role for name, role in roles.items() if name not in calls},
            call_roles=calls,
        )
