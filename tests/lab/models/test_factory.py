"""One's own networks: ``package.module:factory``, what it is called with, and what is said when it does not work."""

import itertools
import re
import sys
import textwrap

import pytest
import torch
from torch import nn

from batchnorm.lab.errors import LabError
from batchnorm.lab.models import Normalization, build, describe_network, takes_normalization

SOURCE = """
    import torch
    from torch import nn

    CALLS = []
    NUMBER = 3

    def plain():
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 10))

    def normalized(normalization, input_shape, classes, activation="relu", *, seed=None, dropout=0.5):
        CALLS.append((normalization, input_shape, classes, activation, seed, dropout))
        return nn.Sequential(
            nn.Conv2d(input_shape[0], 4, 3, bias=normalization.bias), *normalization.spatial(4), nn.ReLU(),
            nn.Dropout(dropout), nn.Flatten(), nn.LazyLinear(classes),
        )

    def anything(**options):
        CALLS.append(options)
        return plain()

    def needs_more(classes, vocabulary, /, depth):
        return plain()

    def without_defaults(dropout, activation, hidden):
        CALLS.append((dropout, activation, hidden))
        return plain()

    def stubborn(normalization):
        raise KeyError("missing weights")

    def nothing():
        plain()

    def wrong_shape(classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(48, classes + 1))

    def wrong_input():
        return nn.Linear(7, 10)

    class Pair(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.body = plain()

        def forward(self, x):
            return self.body(x), x

    class Holder:
        make = staticmethod(plain)
"""
NUMBERS = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module with a name of its own into the current directory, and import nothing."""

    def write(source=SOURCE):
        name = f"networks_of_mine_{next(NUMBERS)}"  # what was imported once is not read again
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if name.startswith(("networks_of_mine", "my_package")):
            del sys.modules[name]


def make(model, norm="batch", **options):
    normalization = norm if isinstance(norm, Normalization) else Normalization(norm)
    return build(model, normalization, **{"input_shape": (3, 4, 4), "classes": 10, **options})


def refused(model, *said, **options):
    with pytest.raises(LabError) as error:
        make(model, **options)
    message = str(error.value)
    assert "\n" not in message
    for words in said:
        assert words in message, message
    return message


def test_a_module_of_the_current_directory_is_found(module):
    network = make(f"{module()}:plain")
    assert network.training
    assert network(torch.zeros(2, 3, 4, 4)).shape == (2, 10)
    assert describe_network(network) == "Sequential; 490 parameters"
    assert make(f"{module()}:Holder.make")(torch.zeros(2, 3, 4, 4)).shape == (2, 10)


def test_it_is_called_with_the_arguments_that_it_takes(module):
    name = module()
    arm = Normalization("group", groups=2)
    network = make(f"{name}:normalized", arm, seed=5)
    calls = sys.modules[name].CALLS
    # What was not asked for keeps the default of the factory: its dropout is 0.5.
    assert calls.pop() == (arm, (3, 4, 4), 10, "relu", 5, 0.5)
    assert [type(part) for part in network][:3] == [nn.Conv2d, nn.GroupNorm, nn.ReLU]
    assert not any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters())
    make(f"{name}:normalized", arm, activation="gelu", dropout=0.25)
    assert calls.pop() == (arm, (3, 4, 4), 10, "gelu", 0, 0.25)
    make(f"{name}:anything", arm, width=2.0, initializer="orthogonal")
    assert calls.pop() == {
        "normalization": arm, "input_shape": (3, 4, 4), "classes": 10, "seed": 0,
        "width": 2.0, "initializer": "orthogonal",
    }  # fmt: skip
    make(f"{name}:without_defaults")
    assert calls.pop() == (0.0, "relu", None)


def test_the_seed_fixes_its_weights_and_the_random_numbers_of_the_process_stay(module):
    name = module()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make(f"{name}:plain", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = make(f"{name}:plain", seed=3), make(f"{name}:plain", seed=4)
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)


def test_the_check_leaves_running_statistics_as_they_were(module):
    network = make(f"{module()}:normalized", "batch")
    assert int(network[1].num_batches_tracked) == 0
    assert not network[1].running_mean.any()


def test_there_is_no_such_module(module):
    said = refused("networks_of_nobody:make", "there is no module 'networks_of_nobody'", "Start from the directory")
    assert "networks_of_nobody:make" in said
    refused("torch.no_such_part:make", "there is no module 'torch.no_such_part'")
    refused(f"{module()}.inner:make", "there is no module")


def test_a_module_that_lacks_another_is_not_taken_for_missing(module):
    name = module("import a_package_that_nobody_has\n")
    refused(
        f"{name}:make", f"importing {name}", "ModuleNotFoundError", "a_package_that_nobody_has", f"{name}.py, line 1"
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\ny = x.nothing\n", ("AttributeError", "line 2")),
        ("def make(:\n", ("SyntaxError", "line 1")),
        ("from torch import nothing_at_all\n", ("ImportError", "nothing_at_all")),
    ],
)
def test_what_importing_raises_is_said_with_its_place(module, source, said):
    name = module(source)
    refused(f"{name}:make", f"importing {name}", f"{name}.py", *said)


def test_there_is_no_such_factory(module):
    name = module()
    said = refused(f"{name}:mkae", f"{name} has no 'mkae'", "what can be called there: plain, normalized, anything")
    assert "CALLS" not in said
    refused(f"{name}:NUMBER", "must be a function or class that makes a network; it is of type int")
    refused(f"{name}:", "model must be package.module:factory", "Try my_networks:make")
    refused(":make", "model must be package.module:factory")


def test_a_factory_that_raises_or_makes_no_module(module):
    name = module()
    refused(f"{name}:stubborn", "raised KeyError: 'missing weights'", f"{name}.py", "called with normalization")
    refused(f"{name}:nothing", "must return a torch.nn.Module; it returned None")


def test_a_network_that_cannot_classify_the_examples(module):
    name = module()
    refused(f"{name}:wrong_shape", "one score for each class, shape (2, 10)", "got shape (2, 11)", "dense layer of 10")
    refused(f"{name}:Pair", "got an object of type tuple")
    refused(f"{name}:wrong_input", "cannot classify examples of shape (3, 4, 4)", "RuntimeError")


def test_arguments_that_do_not_fit(module):
    name = module()
    refused(
        f"{name}:needs_more", "needs classes, vocabulary, depth; ", "what the lab gives, by name, is normalization, "
    )
    refused(f"{name}:plain", "takes no dropout, width", dropout=0.5, width=2.0)
    refused("builtins:dict", "the arguments of builtins:dict cannot be read", "wrap it in a function")


@pytest.mark.parametrize("arm", [Normalization("none"), Normalization("group"), Normalization("batch", eps=1e-3)])
def test_a_normalization_that_the_factory_would_ignore_is_refused(module, arm):
    # Two arms of the same network would look like a result.
    message = refused(f"{module()}:plain", "takes no normalization", "would do nothing", norm=arm)
    assert re.search(rf"norm {arm.norm} with eps {arm.eps:g}", message)


def test_who_takes_a_normalization(module):
    name = module()
    assert takes_normalization("resnet20")
    assert takes_normalization(f"{name}:normalized")
    assert takes_normalization(f"{name}:anything")
    assert not takes_normalization(f"{name}:plain")


def test_networks_of_a_package(module, tmp_path):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "nets.py").write_text(textwrap.dedent(SOURCE), encoding="utf-8")
    assert make("my_package.nets:plain")(torch.zeros(1, 3, 4, 4)).shape == (1, 10)
