"""Words of Chinese text, and of others, as jieba cuts them."""

from __future__ import annotations

import logging
import warnings

from luthier.foundation.errors import import_extra


def cut(text: str) -> list[str]:
    """All of the text in pieces, spaces and line ends too.

    Raises:
        MissingExtraError: jieba is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source has escapes that newer Pythons warn of
        jieba = import_extra("jieba", extra="evaluation", purpose="cutting Chinese text into words")
    jieba.setLogLevel(logging.WARNING)  # else it says on standard error how long its dictionary took
    return list(jieba.cut(text))
