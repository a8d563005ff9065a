"""Documentation is checked like code: docstrings are whole, their examples run, links in pages lead somewhere."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
from numpydoc.validate import validate

import batchnorm

ROOT = Path(__file__).parents[1]

#: What numpydoc asks for and we do not, with the reason.
IGNORED = {
    "ES01",  # an extended summary where one sentence says it all would be padding
    "SA01",  # "See Also" everywhere says nothing; the text links where it helps
    "EX01",  # examples where they teach something; those that are there run (below)
    "RT02",  # a named pair is clearer than its type alone
    "RT03",  # a type whose name says it needs no second sentence
    "RT04",  # a value may be described by a symbol, in lower case
}
#: Records list their fields under Attributes; numpydoc looks for the same names under Parameters.
IGNORED_IN_RECORDS = {"PR01"}
#: A piece inside the package may say all in one sentence. What a user calls (SURFACE) may not, and a docstring that
#: has sections must have them whole.
IGNORED_IN_ONE_SENTENCE = {"PR01", "RT01"}
SURFACE = {
    "batchnorm.allocator.limit_kept_memory",
    "batchnorm.allocator.memory",
    "batchnorm.allocator.release_memory",
    "batchnorm.checker.check",
    "batchnorm.functional.batch_norm",
    "batchnorm.kernels.registry.explain",
    "batchnorm.kernels.registry.use_backend",
    "batchnorm.nn.batch_norm.BatchNorm1d",
    "batchnorm.nn.batch_norm.BatchNorm2d",
    "batchnorm.nn.batch_norm.BatchNorm3d",
    "batchnorm.probes.activations.Activations",
    "batchnorm.probes.choose.make_probes",
    "batchnorm.probes.diagnosis.diagnose.diagnose",
    "batchnorm.probes.diagnosis.result.Diagnosis",
    "batchnorm.probes.diagnosis.watching.watch",
    "batchnorm.probes.gradients.Gradients",
    "batchnorm.probes.input_shift.InputShift",
    "batchnorm.probes.landscape.Landscape",
    "batchnorm.probes.probe.Reading",
    "batchnorm.probes.probe.Step",
    "batchnorm.probes.running.Running",
    "batchnorm.probes.shift.Shift",
    "batchnorm.probes.surface.LossSurface",
    "batchnorm.probes.surface.Surface",
    "batchnorm.probes.surface.filter_normalized",
    "batchnorm.reference.augmentation.cutout",
    "batchnorm.reference.augmentation.linear_survival",
    "batchnorm.reference.augmentation.mixup",
    "batchnorm.reference.augmentation.stochastic_depth_forward",
    "batchnorm.reference.averages.debiased_factor",
    "batchnorm.reference.averages.half_life_of_momentum",
    "batchnorm.reference.averages.momentum_of_half_life",
    "batchnorm.reference.batch_norm.backward",
    "batchnorm.reference.batch_norm.forward_test",
    "batchnorm.reference.batch_norm.forward_train",
    "batchnorm.reference.convolution.conv2d_backward",
    "batchnorm.reference.convolution.conv2d_forward",
    "batchnorm.reference.convolution.max_pool2d_backward",
    "batchnorm.reference.convolution.max_pool2d_forward",
    "batchnorm.reference.descent.convexity_gap",
    "batchnorm.reference.descent.descend",
    "batchnorm.reference.descent.jensen_gap",
    "batchnorm.reference.descent.least_squares",
    "batchnorm.reference.descent.quadratic",
    "batchnorm.reference.descent.stochastic_descend",
    "batchnorm.reference.dropout.backward",
    "batchnorm.reference.dropout.draw_mask",
    "batchnorm.reference.dropout.forward",
    "batchnorm.reference.dropout.original_forward",
    "batchnorm.reference.folding.fold",
    "batchnorm.reference.folding.fold_transposed",
    "batchnorm.reference.folding.scale_shift",
    "batchnorm.reference.initializers.fan",
    "batchnorm.reference.initializers.gain",
    "batchnorm.reference.initializers.kaiming_normal",
    "batchnorm.reference.initializers.kaiming_uniform",
    "batchnorm.reference.initializers.small_gaussian",
    "batchnorm.reference.initializers.xavier_normal",
    "batchnorm.reference.initializers.xavier_uniform",
    "batchnorm.reference.layers.activation_backward",
    "batchnorm.reference.layers.activation_forward",
    "batchnorm.reference.layers.flatten_backward",
    "batchnorm.reference.layers.flatten_forward",
    "batchnorm.reference.layers.linear_backward",
    "batchnorm.reference.layers.linear_forward",
    "batchnorm.reference.layers.relu_backward",
    "batchnorm.reference.layers.relu_forward",
    "batchnorm.reference.layers.sigmoid_backward",
    "batchnorm.reference.layers.sigmoid_forward",
    "batchnorm.reference.layers.tanh_backward",
    "batchnorm.reference.layers.tanh_forward",
    "batchnorm.reference.losses.sigmoid_cross_entropy",
    "batchnorm.reference.losses.softmax",
    "batchnorm.reference.losses.softmax_cross_entropy",
    "batchnorm.reference.networks.Network",
    "batchnorm.reference.networks.conv_net",
    "batchnorm.reference.networks.fully_connected",
    "batchnorm.reference.optimizers.adagrad",
    "batchnorm.reference.optimizers.adam",
    "batchnorm.reference.optimizers.momentum",
    "batchnorm.reference.optimizers.nesterov",
    "batchnorm.reference.optimizers.rmsprop",
    "batchnorm.reference.optimizers.sgd",
    "batchnorm.reference.penalties.l1_penalty",
    "batchnorm.reference.penalties.l2_factor",
    "batchnorm.reference.penalties.l2_penalty",
    "batchnorm.reference.policies.backward",
    "batchnorm.reference.policies.forward_test",
    "batchnorm.reference.policies.forward_train",
    "batchnorm.reference.policies.ghost_groups",
    "batchnorm.reference.policies.update_in_turn",
    "batchnorm.reference.policies.update_per_key",
    "batchnorm.reference.policies.valid_mask",
    "batchnorm.reference.ranks.backward",
    "batchnorm.reference.ranks.forward_train",
    "batchnorm.reference.renorm.bounds",
    "batchnorm.reference.renorm.correction",
    "batchnorm.reference.renorm.forward_train",
    "batchnorm.reference.renorm.update_sigma",
    "batchnorm.reference.sandwiches.conv_bn_relu_backward",
    "batchnorm.reference.sandwiches.conv_bn_relu_forward",
    "batchnorm.reference.sandwiches.conv_relu_backward",
    "batchnorm.reference.sandwiches.conv_relu_forward",
    "batchnorm.reference.sandwiches.conv_relu_pool_backward",
    "batchnorm.reference.sandwiches.conv_relu_pool_forward",
    "batchnorm.reference.sandwiches.linear_bn_relu_backward",
    "batchnorm.reference.sandwiches.linear_bn_relu_forward",
    "batchnorm.reference.sandwiches.linear_relu_backward",
    "batchnorm.reference.sandwiches.linear_relu_forward",
    "batchnorm.reference.schedules.cosine_decay",
    "batchnorm.reference.schedules.exponential_decay",
    "batchnorm.reference.schedules.polynomial_decay",
    "batchnorm.reference.schedules.step_decay",
    "batchnorm.reference.schedules.warm_up",
    "batchnorm.reference.statistics.averaging_factor",
    "batchnorm.reference.statistics.batch_statistics",
    "batchnorm.reference.statistics.blend",
    "batchnorm.reference.statistics.exact_population",
    "batchnorm.reference.statistics.half_widths",
    "batchnorm.reference.statistics.merge",
    "batchnorm.reference.statistics.population_statistics",
    "batchnorm.reference.statistics.update_running",
    "batchnorm.reference.training.accuracy",
    "batchnorm.reference.training.train",
    "batchnorm.reference.whitening.apply",
    "batchnorm.reference.whitening.backward",
    "batchnorm.reference.whitening.cost",
    "batchnorm.reference.whitening.forward",
    "batchnorm.statistics.keys.key",
    "batchnorm.statistics.policies.Batch",
    "batchnorm.statistics.policies.Cumulative",
    "batchnorm.statistics.policies.Debiased",
    "batchnorm.statistics.policies.Exponential",
    "batchnorm.statistics.policies.Frozen",
    "batchnorm.statistics.policies.Ghost",
    "batchnorm.statistics.policies.Keyed",
    "batchnorm.statistics.policies.Renorm",
    "batchnorm.tools.convert.convert",
    "batchnorm.tools.convert.revert",
    "batchnorm.tools.freeze.freeze",
    "batchnorm.tools.freeze.unfreeze",
    "batchnorm.tools.masked.masked",
    "batchnorm.tools.merge.merge_statistics",
    "batchnorm.tools.recalibrate.recalibrate",
}


def _modules() -> list[ModuleType]:
    names = [m.name for m in pkgutil.walk_packages(batchnorm.__path__, "batchnorm.") if not m.name.endswith("__main__")]
    return [batchnorm, *map(importlib.import_module, names)]


def _public_objects() -> dict[str, object]:
    return {
        f"{module.__name__}.{name}": value
        for module in _modules()
        for name, value in sorted(vars(module).items())
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isfunction(value) or inspect.isclass(value))
    }


PUBLIC = _public_objects()


def test_the_surface_exists() -> None:
    assert set(PUBLIC) >= SURFACE


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring(name: str) -> None:
    value = PUBLIC[name]
    ignored = set(IGNORED)
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        ignored |= IGNORED_IN_RECORDS
    docstring = value.__doc__ or ""
    if name not in SURFACE and "\n    ---" not in docstring:
        ignored |= IGNORED_IN_ONE_SENTENCE
    errors = [f"{code}: {message}" for code, message in validate(name)["errors"] if code not in ignored]
    raises = inspect.isfunction(value) and re.search(r"^\s+raise \w", inspect.getsource(value), re.MULTILINE)
    if raises and "Raise" not in docstring and "raise" not in docstring:
        errors.append("it raises, and does not say what")
    assert not errors, "\n".join([name, *errors])


@pytest.mark.parametrize("module", _modules(), ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, optionflags=flags, extraglobs=vars(module)).failed == 0


@pytest.mark.parametrize("page", ["README.md", "docs/guides/policies.md", "docs/guides/probes.md"])
def test_python_in_pages_runs(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def _pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")]


@pytest.mark.parametrize("page", _pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [
        t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http", "#", "mailto"))
    ]
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing, f"{page}: {missing}"
