"""The tokenizer that a config's rows are read with. Verbs that only look at data need no more of a model, and no torch."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from luthier.config.data_section import DataConfig
from luthier.config.plugins import ENCODERS
from luthier.data.rendering import AUTO, Renderer
from luthier.data.template_files import load_template
from luthier.model import loading
from luthier.model.tokenizers.repair import Repair, repair, repair_padding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def open_tokenizer(
    data: DataConfig,
    source: loading.ModelSource,
    model_config: PreTrainedConfig,
    *,
    encoder: str,
    trust_remote_code: bool = False,
    day: date | None = None,
) -> tuple[PreTrainedTokenizerBase, Repair, Renderer | None]:
    """The tokenizer, mended for the config's template, which is written into it, and the renderer of that template; an
    encoder that needs no template gets none.

    Args:
        day: that a template which writes the date is told of every row; None: the day on which it is opened.
    """
    tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
    module = ENCODERS.load(encoder)
    if not module.NEEDS_TEMPLATE:
        if not getattr(module, "TRAINS_TOKENS", True):
            return tokenizer, repair_padding(tokenizer), None
        return tokenizer, repair(tokenizer, model_config), None
    named = None if data.template == AUTO else load_template(data.template)
    mended = repair(tokenizer, model_config, named.special_tokens if named else (), named.stop_tokens if named else ())
    renderer = Renderer(tokenizer, data.template, day or date.today())
    tokenizer.chat_template = renderer.chat_template
    stops = tuple(dict.fromkeys([*mended.stop_token_ids, *renderer.stop_token_ids]))
    return tokenizer, Repair(mended.changes, mended.new_token_ids, stops), renderer
