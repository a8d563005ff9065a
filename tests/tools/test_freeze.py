"""`freeze` and `unfreeze`: the round trip restores every bit, and a frozen model stays frozen."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

import batchnorm
from batchnorm.tools.report import LEFT_ALONE

sys.path.insert(0, str(Path(__file__).parents[1]))  # in the processes that are started here

from tools import same

WORLD = 2


class _Own(nn.BatchNorm2d):
    """A forward that nobody but its author knows."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


def network(make: Callable[..., nn.Module] = batchnorm.BatchNorm2d) -> nn.Sequential:
    shared = make(4, momentum=None)
    head = nn.Flatten(), nn.Linear(144, 2)
    return same.settle(
        nn.Sequential(make(3, momentum=0.3), nn.Conv2d(3, 4, 1), shared, nn.ReLU(), nn.Conv2d(4, 4, 1), shared, *head)
    )


def volumes() -> nn.Sequential:
    return same.settle(nn.Sequential(nn.BatchNorm1d(6), nn.Unflatten(1, (3, 2, 1, 1)), nn.BatchNorm3d(3)))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    assert list(model.state_dict()) == list(expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def inner(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("make", [nn.BatchNorm2d, batchnorm.BatchNorm2d])
@pytest.mark.parametrize("affine", [False, True])
def test_the_round_trip_restores_everything(make: Callable[..., nn.Module], affine: bool) -> None:
    model = network(make)
    model[0].weight.requires_grad_(False)
    if make is batchnorm.BatchNorm2d:
        model[0].statistics = batchnorm.Ghost(2)
    model(same.image())
    before, objects = state(model), list(model.modules())
    attributes = [(type(m), {**m.__dict__}) for m in objects]
    learning = {name: p.requires_grad for name, p in model.named_parameters()}
    batchnorm.freeze(model, affine=affine, inplace=True)
    for layer in inner(model):
        assert layer.statistics == batchnorm.Frozen() or repr(layer.statistics) == "Frozen()"
        assert any(p.requires_grad for p in layer.parameters()) != affine
    for _ in range(3):
        model.train()(same.image(seed=1)).sum().backward()
    assert_same_state(model, before)
    batchnorm.unfreeze(model, inplace=True)
    assert_same_state(model, before)
    assert list(model.modules()) == objects
    for module, (cls, former) in zip(objects, attributes, strict=True):
        assert type(module) is cls
        assert module.__dict__ == former
    assert {name: p.requires_grad for name, p in model.named_parameters()} == learning


@pytest.mark.parametrize("build", [network, lambda: network(nn.BatchNorm2d), volumes], ids=["ours", "torch", "ranks"])
def test_training_is_evaluation_with_gradients(build: Callable[[], nn.Module]) -> None:
    plain, x = build().eval(), same.image() if build is not volumes else torch.randn(5, 6).double()
    frozen = batchnorm.freeze(plain).train()
    assert frozen is not plain
    results = []
    for model in (plain, frozen):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        results.append((y, *torch.autograd.grad(y, (leaf, *model.parameters()), dy)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    naive = copy.deepcopy(plain).train()(x)
    assert (naive - results[0][0]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["train", "deepcopy", "pickle", "load_state_dict", "convert"])
def test_it_survives(name: str) -> None:
    x = same.image()
    model = network(nn.BatchNorm2d)
    survivors: dict[str, Callable[[nn.Module], nn.Module]] = {
        "train": lambda frozen: frozen.eval().train(),
        "deepcopy": copy.deepcopy,
        "pickle": lambda frozen: pickle.loads(pickle.dumps(frozen)),
        "load_state_dict": lambda frozen: (frozen.load_state_dict(model.state_dict()), frozen)[1],
        "convert": batchnorm.convert,
    }
    frozen = survivors[name](batchnorm.freeze(model))
    expected, before = model.eval()(x), state(frozen)
    torch.testing.assert_close(frozen.train()(x), expected, rtol=1e-12, atol=1e-12)
    assert_same_state(frozen, before)
    thawed = batchnorm.unfreeze(frozen)
    assert all(type(layer) is nn.BatchNorm2d for layer in inner(thawed))
    torch.testing.assert_close(thawed.train()(x), copy.deepcopy(model).train()(x), rtol=1e-12, atol=1e-12)


def test_a_model_that_learns_changes_everything_but_the_statistics() -> None:
    model = batchnorm.freeze(network(nn.BatchNorm2d)).train()
    before = state(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(same.image()).pow(2).sum().backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        kept = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        assert torch.equal(tensor, before[name]) == kept, name


REFUSED = {
    "synchronized": (lambda: nn.SyncBatchNorm(3), "SyncBatchNorm shares its statistics", True),
    "lazy": (lambda: nn.LazyBatchNorm2d(), "does not know its number of features", True),
    "a forward of its own": (lambda: _Own(3), "not exactly torch.nn's class", True),
    "no statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), "keeps no running statistics", False),
    "ours without": (lambda: batchnorm.BatchNorm2d(3, track_running_stats=False), "keeps no running", False),
    "instance": (lambda: nn.InstanceNorm2d(3), "not batch normalization", False),
    "frozen": (lambda: batchnorm.BatchNorm2d(3, statistics=batchnorm.Frozen()), "frozen already", False),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_frozen_is_reported_and_warned_about(name: str) -> None:
    build, reason, moves = REFUSED[name]

    def model() -> nn.Module:
        return nn.Sequential(build(), batchnorm.BatchNorm2d(3))

    frozen, report = batchnorm.freeze(model(), report=True, inplace=True)  # torch cannot copy a lazy layer
    assert report["0"].done == LEFT_ALONE
    assert reason in report["0"].reason
    assert report["1"].done == "frozen"
    if moves:
        with pytest.warns(UserWarning, match="left alone 1 of 2 layers") as caught:
            batchnorm.freeze(model(), inplace=True)
        assert reason in str(caught[0].message)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batchnorm.freeze(model(), inplace=True)
    _, report = batchnorm.unfreeze(frozen, report=True, inplace=True)
    assert [(row.done, row.reason) for row in report] == [(LEFT_ALONE, "freeze did not freeze it"), ("unfrozen", "")]


def test_report_names_shared_layers_once_with_all_names() -> None:
    _, report = batchnorm.freeze(network(nn.BatchNorm2d), report=True)
    assert [(row.name, row.aliases, row.done, row.reason) for row in report] == [
        ("0", (), "frozen", "exchanged for this package's layer"),
        ("2", ("5",), "frozen", "exchanged for this package's layer"),
    ]


def test_shared_parameters_learn_again() -> None:
    model = nn.Sequential(batchnorm.BatchNorm2d(3), batchnorm.BatchNorm2d(3))
    model[1].weight = model[0].weight
    thawed = batchnorm.unfreeze(batchnorm.freeze(model, affine=True))
    assert all(p.requires_grad for p in thawed.parameters())


def test_a_parametrized_layer_of_torch() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).double()
    parametrize.register_parametrization(model[0], "weight", nn.Softplus())
    x, before = same.image(), state(model)
    frozen = batchnorm.freeze(model, affine=True).train()
    assert not any(p.requires_grad for p in frozen.parameters())
    torch.testing.assert_close(frozen(x), copy.deepcopy(model).eval()(x))
    thawed = batchnorm.unfreeze(frozen)
    assert type(thawed[0]).__bases__ == (nn.BatchNorm2d,)
    assert_same_state(thawed, before)


@pytest.mark.parametrize("tool", [batchnorm.freeze, batchnorm.unfreeze])
def test_a_model_without_batch_normalization_and_no_model(tool: Callable) -> None:
    with pytest.raises(ValueError, match="needs a model with batch normalization; this Linear has none"):
        tool(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module"):
        tool(nn.BatchNorm1d(2).state_dict())


def test_an_activation_given_since_keeps_the_layer_ours() -> None:
    model = batchnorm.freeze(nn.Sequential(nn.BatchNorm2d(3)))
    model[0].activation = "relu"
    thawed, report = batchnorm.unfreeze(model, report=True)
    assert isinstance(thawed[0], batchnorm.BatchNorm2d)
    assert (report["0"].done, thawed[0].statistics) == ("unfrozen", batchnorm.functional.BATCH)
    assert "activation='relu'" in report["0"].reason


def test_recalibrate_leaves_frozen_layers_alone_and_revert_says_why_it_does() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    batchnorm.freeze(model[0], inplace=True)
    before = state(model[0])
    model, report = batchnorm.recalibrate(model, [torch.randn(4, 3, 2, 2)], report=True)
    assert [row.done for row in report] == [LEFT_ALONE, "recalibrated"]
    assert "frozen" in report["0"].reason
    assert_same_state(model[0], before)
    _, report = batchnorm.revert(model, report=True)
    assert report["0"].done == LEFT_ALONE
    assert "statistics=Frozen()" in report["0"].reason


def test_fused_paths_stay_fused() -> None:
    model = batchnorm.convert(same.settle(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())))
    x = same.image()
    frozen = batchnorm.freeze(model)
    assert same.runs_fused(frozen, x) == same.runs_fused(model, x) == 1
    assert torch.equal(frozen.train()(x), model.eval()(x))


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_per_sample_gradients_in_training_mode(rank: int) -> None:
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
    model = batchnorm.freeze(same.settle(nn.Sequential(layer(3)))).train()
    x = torch.randn(4, 3, *range(2, rank), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (sample.unsqueeze(0),)).sin().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(len(x)):
        alone = torch.autograd.grad(model(x[index : index + 1]).sin().sum(), list(model.parameters()))
        for name, gradient in zip(parameters, alone, strict=True):
            torch.testing.assert_close(each[name][index], gradient, rtol=1e-12, atol=1e-12)


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    model = DistributedDataParallel(batchnorm.freeze(network(nn.BatchNorm2d)).train())
    for step in range(2):
        model(same.image(seed=step)[2 * rank : 2 * rank + 2]).pow(2).mean().backward()
    torch.save((model.module.state_dict(), [p.grad for p in model.parameters()]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=WORLD)
    alone = network(nn.BatchNorm2d).eval()
    before = state(alone)
    for step in range(2):
        alone(same.image(seed=step)).pow(2).mean().backward()
    for rank in range(WORLD):
        found, gradients = torch.load(tmp_path / f"{rank}.pt")
        for name, tensor in before.items():
            assert torch.equal(found[name], tensor), name
        torch.testing.assert_close(gradients, [p.grad for p in alone.parameters()], rtol=1e-10, atol=1e-12)
