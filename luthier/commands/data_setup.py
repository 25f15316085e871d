"""What the verbs that look at data do first: the config of any stage, its tokenizer and its encoder; no weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.commands.opening import open_tokenizer
from luthier.config import loading
from luthier.config.schema import ModelConfig, RunConfig
from luthier.config.stage_encoders import ChosenStage, encoder_of
from luthier.model.loading import ModelSource, config_at, config_of, find

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class OpenedData:
    """A config as the data verbs meet it.

    Args:
        stage: the encoder of the config's stage, with its options.
        notes: what was mended in the tokenizer.
        renderer: of the config's template; None where the stage needs none.
    """

    config: RunConfig
    stage: ChosenStage
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...]
    renderer: Renderer | None


def open_data(
    source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = (), *, trust_remote_code: bool = False
) -> OpenedData:
    """Load a config, of a stage that can't be trained yet too, and its tokenizer. A folder with a tokenizer alone will do.

    Raises:
        UserError: the config, model or template can't be used.
    """
    config = loading.load(source, overrides, for_training=False)
    stage = encoder_of(config.stage)
    place, model_config = _tokenizer_place(config.model, trust_remote_code)
    tokenizer, mended, renderer = open_tokenizer(
        config.data,
        place,
        model_config,
        encoder=stage.encoder,
        trust_remote_code=trust_remote_code,
    )
    return OpenedData(config, stage, tokenizer, mended.changes, renderer)


def _tokenizer_place(model: ModelConfig, trust_remote_code: bool) -> tuple[ModelSource, PreTrainedConfig]:
    if model.from_scratch:
        place = find(model)
        return place, config_of(place, trust_remote_code=trust_remote_code)
    folder = Path(model.name).expanduser()
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    if not has_tokenizer or any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        place = find(model)
        return place, config_at(place.base, trust_remote_code=trust_remote_code)
    from transformers import PreTrainedConfig

    place = ModelSource(folder, None, str(folder.absolute()), None, "")
    if (folder / "config.json").is_file():
        return place, config_at(folder, trust_remote_code=trust_remote_code)
    return place, PreTrainedConfig()
