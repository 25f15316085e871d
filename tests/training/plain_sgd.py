"""An optimizer of one's own, named by its dotted path."""

from typing import Any

from luthier.config.sections import OptimizerOptions


class Options(OptimizerOptions):
    name: str = "tests.training.plain_sgd"


def build(training: Any, groups: list[dict[str, Any]], learning_rate: float) -> Any:
    from torch.optim import SGD

    return SGD(groups, lr=learning_rate, momentum=0.9)
