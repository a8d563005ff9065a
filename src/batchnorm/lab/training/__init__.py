"""Training one network: config, loop, checkpoints, evaluation; one process or many, the same code.

``from batchnorm.lab.training import TrainConfig, train``. The config alone loads no torch: what trains is imported when
it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from batchnorm.lab.training.config import TrainConfig as TrainConfig

if TYPE_CHECKING:
    from batchnorm.lab.training.run import Interrupted as Interrupted
    from batchnorm.lab.training.run import Outcome as Outcome
    from batchnorm.lab.training.run import train as train


def __getattr__(name: str) -> Any:
    if name in {"Interrupted", "Outcome", "train"}:
        from batchnorm.lab.training import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
