"""The extension points, by name. Listing or loading a plug-in's options imports neither torch nor transformers."""

from __future__ import annotations

from luthier.foundation.registry import Registry

HUBS = Registry("model source", "luthier.model.hubs")
METHODS = Registry("method", "luthier.model.methods")
STAGES = Registry("stage", "luthier.training.stages")
ENGINES = Registry("engine", "luthier.training.engines")
OPTIMIZERS = Registry("optimizer", "luthier.training.optimizers")
SOURCES = Registry("file type", "luthier.data.sources")
FORMATS = Registry("data format", "luthier.data.formats")
ENCODERS = Registry("encoder", "luthier.data.encoders")
EXPORTERS = Registry("export format", "luthier.exporting.exporters")
METRICS = Registry("metric", "luthier.metrics")
SQL_LAYOUTS = Registry("text-to-SQL layout", "luthier.text2sql.layouts")
GENERATION_ENGINES = Registry("generation engine", "luthier.evaluation.engines")
PROMPT_STYLES = Registry("prompt style", "luthier.text2sql.styles")

ALL = (
    HUBS,
    METHODS,
    STAGES,
    ENGINES,
    OPTIMIZERS,
    SOURCES,
    FORMATS,
    ENCODERS,
    EXPORTERS,
    METRICS,
    GENERATION_ENGINES,
    SQL_LAYOUTS,
    PROMPT_STYLES,
)
