"""Classification of a text, or of two: by a head on the model, or by label words that a language model answers.

With a head the loss is the cross-entropy of the classes (several labels: the binary one of each class); without, it is the
next-token loss on the right answer, and classes are told apart by the log-likelihood of their words after the prompt.

Shapes: E examples, K classes, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.config.sections import PluginOptions
from luthier.config.stage_encoders import encoder_of
from luthier.foundation.errors import DataError
from luthier.training.labelling import Labelling, check_metrics
from luthier.training.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.batch import Batch
    from luthier.data.examples import TokenizedExample
    from luthier.data.preparing import PreparedData
    from luthier.metrics._metric import Array
    from luthier.model.heads import SequenceHead
    from luthier.scoring.readouts import Readout, Scores

# settings that act with one kind of head only, and the kind
OF_HEAD = {
    "multi_label": "classifier",
    "label_smoothing": "classifier",
    "prompt": "generative",
    "label_words": "generative",
}


class Options(PluginOptions):
    """Classes, and how they are told apart."""

    name: str = "classification"
    head: Literal["classifier", "generative"] = Field(
        "classifier",
        description="classifier: a new head gives each class a number; generative: the language model answers with the "
        "class's words, and the likeliest answer counts.",
    )
    labels: list[str] | None = Field(
        None,
        description="Names of the classes, in the order of their numbers; unset: those of the training files, sorted.",
    )
    multi_label: bool = Field(False, description="Whether a text may have several classes, or none.")
    class_weights: dict[str, float] | Literal["balanced"] | None = Field(
        None,
        description="How much rows of each class count, by its name, 1 where it has none; balanced: classes count alike "
        "(rows / (classes x rows of the class), of classes with training rows).",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target that is spread over all classes (torch's cross_entropy)."
    )
    prompt: str | None = Field(
        None,
        description="What a generative head asks; {text}, {text_pair} and {labels} are put in. Unset: which label fits.",
    )
    label_words: dict[str, str] = Field(
        default_factory=dict, description="What a generative head answers for a class; unset: its name."
    )
    metrics: list[str] | None = Field(
        None, description="What an evaluation gives beside the loss; unset: accuracy, F1 and, of one label, matthews."
    )

    @field_validator("labels", "class_weights", "label_words", mode="before")
    @classmethod
    def _numbers_as_names(cls, value: Any) -> Any:
        """Rows labelled 0 and 1 have the classes "0" and "1", and YAML reads `[0, 1]` and `{0: 1.0}` as numbers."""
        if isinstance(value, dict):
            return {_name(key): item for key, item in value.items()}
        return [_name(item) for item in value] if isinstance(value, list) else value

    @field_validator("labels")
    @classmethod
    def _told_apart(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (len(set(value)) < len(value) or len(value) < 2):
            raise ValueError(f"must name at least two classes, each once, found {value}")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Options:
        for name, head in OF_HEAD.items():
            if self.head != head and getattr(self, name) != type(self).model_fields[name].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"{name} has no effect with head: {self.head}; it is a setting of head: {head}")
        if self.class_weights == "balanced" and self.multi_label:
            raise ValueError("class_weights: balanced is for one label a row; give numbers with multi_label")
        if isinstance(self.class_weights, dict):
            wrong = [name for name, weight in self.class_weights.items() if weight <= 0]
            if wrong:
                raise ValueError(
                    f"class_weights must be above 0, found {self.class_weights[wrong[0]]:g} for {wrong[0]}"
                )
        check_metrics(self.metrics, "multi_label" if self.multi_label else "single_label")
        return self


def _name(value: Any) -> Any:
    """A whole number as the text that it is as a class's name."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Classification(Stage):
    """What both kinds of head share."""

    def __init__(self, options: Options) -> None:
        rows = encoder_of(options)
        self.encoder, self.encoder_options = rows.encoder, rows.encoder_options
        self.options = options
        self.labelling = Labelling("multi_label" if options.multi_label else "single_label", options.metrics)
        self.metrics = self.labelling.metrics
        self._weights: list[float] = []

    def meet(self, data: PreparedData) -> SequenceHead | None:
        """Take names, counts and weights of the classes; a language model answers."""
        counts = self.labelling.meet(data)
        chosen = self.options.class_weights or {}
        if chosen == "balanced":
            # a class without a training row, all of which are held out, counts once where it is measured
            self._weights = [float(sum(counts) / (sum(counts > 0) * count)) if count else 1.0 for count in counts]
        else:
            unknown = sorted(set(chosen) - set(self.labelling.labels))
            if unknown:
                raise DataError(
                    f"stage.class_weights names {', '.join(unknown)}, which is none of the classes.",
                    f"The classes are: {', '.join(self.labelling.labels)}.",
                )
            self._weights = [float(chosen.get(name, 1.0)) for name in self.labelling.labels]
        return None

    def know(self, labels: Sequence[str]) -> None:
        """Take the classes."""
        self.labelling.labels = tuple(labels)
        self._weights = [1.0] * len(labels)

    def weights_K(self, like: Tensor) -> Tensor:
        """The classes' weights, on the device of another tensor."""
        import torch

        return torch.tensor(self._weights, dtype=torch.float32, device=like.device)

    def measure(self, outcomes_EC: Array) -> dict[str, float]:
        """The metrics."""
        return self.labelling.measure(outcomes_EC)

    def prediction(self, outcome_C: Array) -> dict[str, Any]:
        """The label, what was predicted, and each class's probability."""
        return self.labelling.prediction(outcome_C)


class HeadClassification(_Classification):
    """Cross-entropy of a head's outputs."""

    def meet(self, data: PreparedData) -> SequenceHead | None:
        """Take names, counts and weights of the classes."""
        from luthier.model.heads import SequenceHead

        super().meet(data)
        several = self.options.multi_label
        problem: Any = "multi_label_classification" if several else "single_label_classification"
        return SequenceHead(problem, self.labelling.labels)

    @property
    def readout(self) -> Readout:
        """The head at the end of each sequence."""
        from luthier.scoring.readouts import HeadAt

        return HeadAt()

    def denominator(self, batch: Batch) -> float:
        """Of one label: the weights of the rows' classes; of several: rows times classes."""
        if self.options.multi_label:
            return float(_truth(batch).numel())
        truth_E = _truth(batch)
        return float(self.weights_K(truth_E)[truth_E.long()].double().sum())

    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """Cross-entropy, summed; divided by the denominator it is torch's weighted mean."""
        import torch.nn.functional as F

        logits_EK, truth = scores[self.readout], _truth(batch)
        weights_K, smoothing = self.weights_K(logits_EK), self.options.label_smoothing
        if not self.options.multi_label:
            return F.cross_entropy(
                logits_EK, truth.long(), weight=weights_K, label_smoothing=smoothing, reduction="sum"
            )
        softened = truth * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits_EK, softened, weight=weights_K, reduction="sum")

    def outcomes(self, scores: Scores, batch: Batch) -> Tensor:
        """Probabilities, then what is true."""
        import torch

        logits_EK, truth = scores[self.readout], _truth(batch)
        if self.options.multi_label:
            return torch.cat([logits_EK.sigmoid(), truth], dim=1)
        return torch.cat([logits_EK.softmax(dim=1), truth[:, None]], dim=1)


class GenerativeClassification(_Classification):
    """Next-token loss on the right answer; the classes' answers are compared by their log-likelihood."""

    def learnt(self, example: TokenizedExample) -> TokenizedExample:
        """The right answer alone: the others are told apart from it, and have no part in the loss."""
        right = int(example.extras["label"])
        return replace(example, sequences=example.sequences[right : right + 1])

    def _right_N(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which targets are of the right answer, and which example each is of; the K answers stand in order, or it alone."""
        count = len(batch.leaves) // len(_truth(batch))
        example_N, answer_N = batch.sequence_of_source_N // count, batch.sequence_of_source_N % count
        return (answer_N == _truth(batch).long()[example_N]) | (count == 1), example_N

    def _weights_N(self, batch: Batch) -> Tensor:
        """The weight of each target in the loss: that of its row's class, nothing outside of the right answer."""
        right_N, example_N = self._right_N(batch)
        truth_E = _truth(batch)
        return batch.weights_N * right_N * self.weights_K(truth_E)[truth_E.long()][example_N]

    def denominator(self, batch: Batch) -> float:
        """Sum of the weights of the right answers' tokens."""
        return float(self._weights_N(batch).double().sum())

    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """Weighted negative log-likelihood of the right answers, summed."""
        return -(scores.logp_N * self._weights_N(batch)).sum()

    def outcomes(self, scores: Scores, batch: Batch) -> Tensor:
        """The answers' probabilities among each other, then the right one's number."""
        import torch

        count, examples = len(self.labelling.labels), len(_truth(batch))
        sums = scores.logp_N.new_zeros(examples * count)
        sums = sums.index_add(0, batch.sequence_of_source_N, scores.logp_N).view(examples, count)
        return torch.cat([sums.softmax(dim=1), _truth(batch)[:, None]], dim=1)


def _truth(batch: Batch) -> Tensor:
    """The labels: numbers of classes [E], or 0 and 1 [E, K]."""
    import torch

    if "label" in batch.extras:
        return batch.extras["label"]
    return torch.stack([value for name, value in batch.extras.items() if name.startswith("label.")], dim=1)


def build(options: Options) -> Stage:
    """The stage for these options."""
    return HeadClassification(options) if options.head == "classifier" else GenerativeClassification(options)
