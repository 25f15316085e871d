"""Words of Chinese text, and of others, as jieba cuts them."""

from __future__ import annotations

import logging
import warnings
from types import ModuleType

from luthier.foundation.errors import import_extra


def load() -> ModuleType:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source has escapes that newer Pythons warn of
        return import_extra("jieba", extra="evaluation", purpose="cutting Chinese text into words")


def cut(text: str) -> list[str]:
    """All of the text in pieces, spaces and line ends too."""
    jieba = load()
    jieba.setLogLevel(logging.WARNING)  # else it says on standard error how long its dictionary took
    return list(jieba.cut(text))
