"""The parts of a tokenizer's pipeline, by the names that `luthier tokenizer train` takes. Names are read without `tokenizers`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import UserError
from luthier.foundation.registry import nearest

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from tokenizers.processors import PostProcessor

NONE = "none"
NORMALIZERS = ("nfc", "nfd", "nfkc", "nfkd", "nmt", "lowercase", "strip-accents", "strip", "bert")
PRE_TOKENIZERS = (
    "byte-level",
    "metaspace",
    "whitespace",
    "whitespace-split",
    "bert",
    "digits",
    "punctuation",
    "unicode-scripts",
    "characters",
)
DECODERS = ("byte-level", "metaspace", "wordpiece", "fuse")
POST_PROCESSORS = ("bert", "template")
DECOMPOSING = ("nfd", "nfkd")


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError for the first name that is not known, with the nearest that are."""
    for name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise UserError(f"there is no {kind} named {name!r}.", f"{hint}Known: {', '.join((*known, NONE))}.")


def make_normalizer(names: Sequence[str]) -> Normalizer | None:
    """The named steps in order. `strip-accents` sees an accent only where NFD has split it off, so NFD goes before it."""
    from tokenizers import normalizers

    makers: Mapping[str, Callable[[], Any]] = {
        "nfc": normalizers.NFC,
        "nfd": normalizers.NFD,
        "nfkc": normalizers.NFKC,
        "nfkd": normalizers.NFKD,
        "nmt": normalizers.Nmt,
        "lowercase": normalizers.Lowercase,
        "strip-accents": normalizers.StripAccents,
        "strip": normalizers.Strip,
        "bert": lambda: normalizers.BertNormalizer(lowercase=True),
    }
    check_names("normalizer", names, NORMALIZERS)
    steps = []
    for index, name in enumerate(names):
        if name == "strip-accents" and not set(names[:index]) & set(DECOMPOSING):
            steps.append(normalizers.NFD())
        steps.append(makers[name]())
    if len(steps) > 1:
        return normalizers.Sequence(steps)
    return steps[0] if steps else None


def make_pre_tokenizer(names: Sequence[str]) -> PreTokenizer | None:
    """The named steps in order; byte-level must be the last, for what follows it would cut characters into bytes."""
    from tokenizers import Regex, pre_tokenizers

    makers: Mapping[str, Callable[[], Any]] = {
        "byte-level": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
        "metaspace": pre_tokenizers.Metaspace,
        "whitespace": pre_tokenizers.Whitespace,
        "whitespace-split": pre_tokenizers.WhitespaceSplit,
        "bert": pre_tokenizers.BertPreTokenizer,
        "digits": lambda: pre_tokenizers.Digits(individual_digits=True),
        "punctuation": pre_tokenizers.Punctuation,
        "unicode-scripts": pre_tokenizers.UnicodeScripts,
        "characters": lambda: pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
    }
    check_names("pre-tokenizer", names, PRE_TOKENIZERS)
    if "byte-level" in names[:-1]:
        raise UserError(
            f"--pre-tokenizer {','.join(names)}: byte-level must be the last, for it turns characters into bytes.",
            f"Write --pre-tokenizer {','.join([*(n for n in names if n != 'byte-level'), 'byte-level'])}.",
        )
    steps = [makers[name]() for name in names]
    if len(steps) > 1:
        return pre_tokenizers.Sequence(steps)
    return steps[0] if steps else None


def make_decoder(name: str) -> Decoder | None:
    """The named decoder; `none` joins tokens with spaces."""
    from tokenizers import decoders

    if name == NONE:
        return None
    check_names("decoder", [name], DECODERS)
    makers: Mapping[str, Callable[[], Any]] = {
        "byte-level": decoders.ByteLevel,
        "metaspace": decoders.Metaspace,
        "wordpiece": decoders.WordPiece,
        "fuse": decoders.Fuse,
    }
    decoder: Decoder = makers[name]()
    return decoder


def make_post_processor(
    name: str, single: str | None, pair: str | None, ids: Mapping[str, int], roles: Mapping[str, str]
) -> PostProcessor | None:
    """What puts special tokens around one text or two.

    Args:
        name: none, bert (`[CLS] A [SEP]`, `[CLS] A [SEP] B [SEP]` with type id 1 from B on), or template.
        single: template for one text, such as `<s> $A </s>`.
        pair: for two, such as `<s> $A </s> $B:1 </s>:1`; None: the single one twice, the second time with type id 1.
        ids: ids of the special tokens.
        roles: the special tokens by role.

    Raises:
        UserError: no such post-processor, no template, or one that can't be used.
    """
    from tokenizers import processors

    if name == NONE:
        return None
    check_names("post-processor", [name], POST_PROCESSORS)
    if name == "bert":
        cls, sep = roles["cls"], roles["sep"]
        single, pair = f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1"
    if single is None:
        raise UserError("--post-processor template has no template.", "Add one, such as --single '<s> $A </s>'.")
    check_places("--single", single, ("$A",))
    pair = f"{single} {second_text(single)}" if pair is None else pair
    check_places("--pair", pair, ("$A", "$B"))
    used = {part.rpartition(":")[0] if has_type(part) else part for part in f"{single} {pair}".split()}
    unknown = sorted(part for part in used if not part.startswith("$") and part not in ids)
    if unknown:
        one = len(unknown) == 1
        raise UserError(
            f"the template names {', '.join(unknown)}, which {'is no special token' if one else 'are no special tokens'} here "
            f"({', '.join(ids)}).",
            f"Add {'it' if one else 'them'}: --special-tokens {shlex.quote(','.join(unknown))}",
        )
    tokens = [(token, ids[token]) for token in sorted(used) if token in ids]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


def check_places(option: str, template: str, needed: Sequence[str]) -> None:
    """Raise UserError for a template without the places where the texts go."""
    found = {part.partition(":")[0] for part in template.split()}
    if missing := [place for place in needed if place not in found]:
        place = f"That is where the {'text goes' if len(missing) == 1 else 'texts go'}."
        expanded = (
            f" Between double quotes a shell expands {missing[0]}: use single ones." if "$" not in template else ""
        )
        raise UserError(f"{option} {template!r} has no {' and '.join(missing)}.", place + expanded)


def has_type(part: str) -> bool:
    """Whether a template's part ends in a type id (`$B:1`)."""
    name, _, number = part.rpartition(":")
    return bool(name) and number.isdigit()


def second_text(single: str) -> str:
    """A single template for the second text: `<s> $A </s>` -> `<s>:1 $B:1 </s>:1`."""
    bare = [part.rpartition(":")[0] if has_type(part) else part for part in single.split()]
    return " ".join(f"{'$B' if part == '$A' else part}:1" for part in bare)
