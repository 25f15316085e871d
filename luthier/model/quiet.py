"""What transformers and peft say that tells nobody anything."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# bitsandbytes, which peft imports in any run, speaks of compiled kernels that are not used (see quantization.settle), and
# says once for every layer and call that 8-bit products round activations to float16
NOISE = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
    "accelerate.big_modeling": "Some parameters are on the meta device",  # which was asked for
    # an encoder is looked at as a language model once, to find out that it is none
    "transformers.models.bert.modeling_bert": "If you want to use `BertLMHeadModel` as a standalone",
    "transformers.models.roberta.modeling_roberta": "If you want to use `RobertaLMHeadModel` as a standalone",
}


class _Without(logging.Filter):
    """Drops the messages that begin so."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.start)


for _name, _start in NOISE.items():
    logging.getLogger(_name).addFilter(_Without(_start))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warnings that no user can mend: about transformers' renamed attributes that peft still asks for, norms of a
    family's own class, which it wraps all the same, block sizes that it fits to a layer's width (method oft says so), and
    positions, which it leaves to the model where virtual tokens shift them, and memory that EVA could save."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type '.*Norm.*' encountered", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Invalid `oft_block_size`", category=UserWarning)
        warnings.filterwarnings("ignore", message="lora with eva initialization used", category=UserWarning)
        # GPT-2's layers are transposed in the base, and not in a quantized one; peft sets the flag right
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        warnings.filterwarnings("ignore", message="Position ids are not supported", category=UserWarning)
        # a mixture's experts lie in one weight, whose rank and alpha peft sets by a pattern, and obeys
        pattern = r"The following (rank|alpha)_pattern keys did not match any targeted module and were ignored: \['\.\*\\\\.gate_up_proj'\]"
        warnings.filterwarnings("ignore", message=pattern, category=RuntimeWarning)
        yield


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' report on weights that are missing, or that nothing takes: a new head is missing on purpose."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Without transformers' progress bars: a checkpoint amid the training display, a load that takes a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def quiet_offload() -> Iterator[None]:
    """Without transformers' warning that a shard of what lies on the disk must fit into memory: --max-shard-size is for that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded", category=UserWarning)
        yield
