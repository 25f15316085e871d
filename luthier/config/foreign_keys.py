"""Keys of transformers' own configs that people type out of habit, with luthier's name for each (used in error messages)."""

from __future__ import annotations

TRANSFORMERS = {
    "quantization_config": "model.quantization",
    "load_in_4bit": "model.quantization: nf4",
    "load_in_8bit": "model.quantization: int8",
    "bnb_4bit_quant_type": "model.quantization.type",
    "bnb_4bit_use_double_quant": "model.quantization.double",
    "bnb_4bit_compute_dtype": "model.quantization.compute_dtype",
    "llm_int8_threshold": "model.quantization.int8_threshold",
}
