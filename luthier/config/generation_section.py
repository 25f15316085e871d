"""How answers are generated. Names are those of transformers' `GenerationConfig`, wherever it has one."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from luthier.config.sections import Section, one_to_list

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
OF_BEAMS = ("length_penalty", "early_stopping")


class GenerationSettings(Section):
    """How tokens are chosen, and where an answer ends. A setting that would have no effect is refused."""

    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    max_length: int | None = Field(
        None,
        ge=1,
        description="Longest prompt and answer together, in tokens; unset: what the model knows positions for.",
    )
    do_sample: bool = Field(False, description="Draw each token by its probability; false: take the likeliest.")
    temperature: float = Field(1.0, gt=0, description="Logits are divided by it before a token is drawn.")
    top_k: int = Field(0, ge=0, description="Draw from this many of the likeliest tokens; 0: from all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the likeliest tokens that together have this probability."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Draw from tokens at least this probable, as a share of the likeliest one's."
    )
    seed: int = Field(0, ge=0, description="Seed of the sampling; every row draws numbers of its own from it.")
    num_return_sequences: int = Field(
        1, ge=1, description="Answers to each prompt; beam search gives as many as it has beams at most."
    )
    num_beams: int = Field(1, ge=1, description="Beam search over this many; 1: none.")
    length_penalty: float = Field(
        1.0,
        description="Beams: a sum of log-probabilities is divided by length to this power; above 0 favours long ones.",
    )
    early_stopping: bool = Field(False, description="Beams: end as soon as num_beams answers are complete.")
    repetition_penalty: float = Field(
        1.0, gt=0, description="Above 1: tokens of the prompt and of the answer so far become less likely."
    )
    no_repeat_ngram_size: int = Field(0, ge=0, description="No run of this many tokens comes twice; 0: any may.")
    stop_strings: Annotated[
        list[Annotated[str, Field(min_length=1)]], BeforeValidator(one_to_list, json_schema_input_type=str | list[str])
    ] = Field(default_factory=list, description="An answer ends before the first of these.")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> GenerationSettings:
        problems = []
        idle = [] if self.do_sample else self._changed(SAMPLING)
        if idle:  # the option of predict that draws sets both
            problems.append(
                f"{' and '.join(idle)} would have no effect without do_sample: true (luthier predict: --temperature above 0)"
            )
        idle = [] if self.num_beams > 1 else self._changed(OF_BEAMS)
        if idle:
            problems.append(f"{' and '.join(idle)} would have no effect without beams: set num_beams to 2 or more")
        if 1 < self.num_beams < self.num_return_sequences:
            problems.append(
                f"num_return_sequences is {self.num_return_sequences}, but beam search over {self.num_beams} gives "
                f"{self.num_beams} answers at most: set as many beams, or do_sample without beams"
            )
        if self.num_return_sequences > 1 and self.num_beams == 1 and not self.do_sample:
            problems.append(
                f"num_return_sequences is {self.num_return_sequences}, but without do_sample all of them would be the same: "
                "set do_sample, or as many beams"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _changed(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]

    @property
    def needs_transformers(self) -> str:
        """What only transformers' own `generate` does; empty where nothing is."""
        return "beam search" if self.num_beams > 1 else ""
