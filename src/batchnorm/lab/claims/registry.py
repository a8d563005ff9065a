"""The claims: what each says, where it comes from, what decides. Reads quickly; the experiments are imported late."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from batchnorm.lab.claims.config import RunClaims

if TYPE_CHECKING:
    from batchnorm.lab.claims.findings import Arrays, Findings, Measurement, Record


class Experiment(Protocol):
    """What the module of a claim offers."""

    #: From the command line to everything that the experiment depends on, as JSON can hold it.
    settings: Callable[[RunClaims], dict[str, Any]]
    #: How many measurements there will be.
    total: Callable[[Mapping[str, Any]], int]
    #: The measurements, one by one.
    measure: Callable[[Mapping[str, Any]], Iterator["Measurement"]]
    #: From what was recorded to tables, figures and the answer.
    find: Callable[[Mapping[str, Any], "Sequence[Record]", "Arrays"], "Findings"]


@dataclass(frozen=True)
class Claim:
    """A sentence with an experiment.

    Attributes
    ----------
    name : str
        As on the command line.
    sentence : str
        What is claimed.
    source : str
        Where it comes from.
    rule : str
        When it holds.
    module : str
        Where its experiment is.
    """

    name: str
    sentence: str
    source: str
    rule: str
    module: str

    def experiment(self) -> Experiment:
        """Import the experiment."""
        return cast(Experiment, importlib.import_module(f"batchnorm.lab.claims.{self.module}"))


_LISTED = (
    Claim(
        "activation-statistics",
        "With small Gaussian weights the activations of a deep network collapse, with large ones they saturate or "
        "explode; batch normalization keeps their size, whatever the initializer.",
        "EECS 498 course notes on weight initialization; Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852; "
        "Ioffe and Szegedy 2015, arXiv 1502.03167",
        "standard deviation and saturated share of the last layer against the first, for every seed",
        "activations",
    ),
    Claim(
        "optimizers",
        "Momentum and the adaptive rules need fewer steps than plain gradient descent where directions are steep and "
        "flat, near saddle points, and under noise.",
        "EECS 498 course notes on optimization; Polyak 1964; Sutskever et al. 2013; Duchi, Hazan and Singer 2011; "
        "Tieleman and Hinton 2012; Kingma and Ba 2015, arXiv 1412.6980",
        "fewer steps than SGD from the same start, each at its best learning rate of one grid",
        "races",
    ),
    Claim(
        "whitening",
        "Whitening conditions the inputs better than batch normalization, and costs a factor that grows with the "
        "number of features.",
        "Ioffe and Szegedy 2015, arXiv 1502.03167, sections 2 and 3; Huang et al. 2018, arXiv 1804.08450",
        "covariance, steps of gradient descent, operations and seconds, for every seed",
        "whitening",
    ),
    Claim(
        "regularizers",
        "On two noisy classes in the plane an L2 penalty and dropout narrow the gap between training and test "
        "accuracy, and raise the test accuracy.",
        "deeplearning.ai course notes on regularization; Srivastava et al. 2014, JMLR 15",
        "gap and test accuracy against the same network without a regularizer, for every seed",
        "regularizers",
    ),
)

CLAIMS = {claim.name: claim for claim in _LISTED}
