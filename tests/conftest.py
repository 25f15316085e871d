"""Fixtures shared by all rooms' tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The default model's folder, fetched once per machine (LUTHIER_HOME). Mark the test `@pytest.mark.network`."""
    from luthier.config.schema import ModelConfig
    from luthier.model.resolving import resolve

    return resolve(ModelConfig(name="smollm2-135m"))
