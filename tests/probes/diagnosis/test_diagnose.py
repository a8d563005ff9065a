"""Diagnosis of injected causes and healthy networks (some of the matrix), of what it leaves, of what it refuses."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

import batchnorm
from batchnorm.probes.diagnosis import CAUSES, Diagnosis
from probes.diagnosis import healthy, injections_after, injections_before, pairs
from probes.diagnosis.networks import Case, case, norms, problem, trained, training_step

INJECTIONS = (*injections_before.INJECTIONS, *injections_after.INJECTIONS)
#: Their training takes long; the whole matrix (make diagnose-matrix) has them.
SLOW = {"few_values"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


def diagnosed(given: Case) -> Diagnosis:
    return batchnorm.diagnose(given.model, given.loader, **given.options)


def state_of(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [t.data_ptr() for t in tensors],
        [t.detach().clone() for t in tensors],
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [(name, m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for name, m in model.named_modules()],
        torch.get_rng_state(),
    ]


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_injected_causes_are_named_first_and_the_layer_at_fault() -> None:
    """A third of the matrix's cells with one seed; at least 90 % right, as in the whole."""
    wrong, misplaced, number, located = [], [], 0, 0
    for inject in INJECTIONS:
        for name in ("mlp", "speech"):
            given = None if inject.__name__ in SLOW else inject(name, 1)
            if given is None:
                continue
            before = state_of(given.model)
            found = diagnosed(given)
            assert_same(before, state_of(given.model))
            number += 1
            if not found.causes or found.causes[0].cause != given.cause:
                wrong.append((given.cause, name, [cause.cause for cause in found.causes]))
            elif given.layer is not None:
                located += 1
                if found.causes[0].layers[:1] != (given.layer,):
                    misplaced.append((given.cause, name, given.layer, found.causes[0].layers))
    assert len(wrong) <= 0.1 * number, wrong
    assert len(misplaced) <= 0.1 * located, misplaced


@pytest.mark.parametrize("name", [n for n in healthy.HEALTHY if n.startswith(("mlp", "speech"))][::2])
def test_healthy_networks_have_no_cause(name: str) -> None:
    found = diagnosed(healthy.HEALTHY[name]())
    assert found.causes == ()
    assert found.verdict == "not batch normalization"


def test_two_causes_are_among_the_first_three() -> None:
    missed = []
    for causes, make in pairs.PAIRS.items():
        found = [cause.cause for cause in diagnosed(make("mlp", 1)).causes[:3]]
        missed += [] if set(causes) <= set(found) else [(causes, found)]
    assert len(missed) <= 0.2 * len(pairs.PAIRS), missed


def test_shares_sum_to_the_gap_and_agree_with_an_exchange_by_hand() -> None:
    given = injections_after.buffers_lost("mlp", 0)
    found = diagnosed(given)
    assert math.isclose(sum(row.share for row in found.layers), 1, rel_tol=0.05)
    by_name = {row.name: row for row in found.layers}
    assert by_name[given.layer].share == max(row.share for row in found.layers) > 0.9
    # By hand, on all data: recalibrate that layer alone.
    model = batchnorm.recalibrate(given.model, given.loader)
    with torch.no_grad():
        mixed = copy.deepcopy(given.model)
        mixed.get_submodule(given.layer).load_state_dict(model.get_submodule(given.layer).state_dict())
        losses = [_loss(m, given.loader) for m in (given.model, mixed, model)]
    alone = (losses[0] - losses[1]) / (losses[0] - losses[2])
    assert math.isclose(by_name[given.layer].alone, alone, abs_tol=0.05)


def _loss(model: nn.Module, loader: Any) -> float:
    return sum(float(problem("mlp").loss(model, batch)) for batch in loader) / len(loader)


def test_four_passes_at_most_where_the_data_are_many() -> None:
    what = problem("mlp")
    given = injections_before.other_preprocessing("mlp", 0)
    many = given.loader * 8
    found = batchnorm.diagnose(given.model, many, **what.options)
    assert found.causes[0].cause == "other-preprocessing"
    assert found.cost <= 4


def test_losses_are_those_of_eval_of_training_mode_and_of_recalibrate() -> None:
    model, what = trained("mlp", 0), problem("mlp")
    loader = what.batches(what.validation, 32, 5)
    metric = lambda output, target: (output.argmax(1) == target).float().mean()  # noqa: E731
    found = batchnorm.diagnose(model, loader, metric)
    recalibrated = batchnorm.recalibrate(model, loader)
    training = copy.deepcopy(model).train()
    with torch.no_grad():
        expected = [_loss(m, loader) for m in (model, training, recalibrated)]
        accuracy = sum(float(metric(model(x), y)) for x, y in loader) / len(loader)
    assert list(found.losses) == ["as loaded", "batch statistics", "recalibrated"]
    torch.testing.assert_close(torch.tensor(list(found.losses.values())), torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert math.isclose(found.metrics["as loaded"], accuracy, rel_tol=1e-6)


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and detectron2's: everything is a buffer."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


def _exchanged(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for name, layer in norms(model).items():
        model.set_submodule(name, make(layer))
    return model


@pytest.mark.parametrize("kind", ["torch", "ours", "fused", "sync", "frozen class", "Frozen()"])
def test_layers_of_every_make(kind: str) -> None:
    """The same numbers for all of them, and the cause of data from elsewhere."""
    what, model = problem("resnet20"), trained("resnet20", 0)
    loader = [((x + 0.3) * 16, y) for x, y in what.batches(what.validation[:128], 32, 5)]
    expected = batchnorm.diagnose(trained("resnet20", 0), loader)
    model = {
        "torch": lambda m: m,
        "ours": lambda m: _exchanged(m, lambda layer: batchnorm.convert(layer)),
        "fused": batchnorm.convert,
        "sync": nn.SyncBatchNorm.convert_sync_batchnorm,
        "frozen class": lambda m: _exchanged(m, FrozenBatchNorm2d),
        "Frozen()": batchnorm.freeze,
    }[kind](model)
    found = batchnorm.diagnose(model, loader)
    frozen = "rozen" in kind
    assert found.causes[0].cause == ("frozen-on-other-domain" if frozen else "other-preprocessing")
    assert found.causes[0].layers[0] == "bn1"
    for name, loss in expected.losses.items():
        assert math.isclose(found.losses[name], loss, rel_tol=1e-2), name


class BoomError(Exception):
    pass


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["forward", "loader", "metric", "step", "evaluation"])
def test_the_model_is_as_it_was_whatever_is_raised(where: str, error: type[BaseException]) -> None:
    what, model = problem("mlp"), trained("mlp", 0).train()
    drawn = what.batches(what.validation[:128], 32)
    model(drawn[0][0]).sum().backward()  # gradients, and other buffers
    model.bn2.eval()
    before = state_of(model)
    calls = 0

    def now_and_then(*_: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return 0.0

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            for batch in drawn:
                if where == "loader":
                    now_and_then()
                yield batch

    def forward(m: nn.Module, batch: Any) -> Tensor:
        if where == "forward":
            now_and_then()
        return m(batch[0])

    def step(m: nn.Module, batch: Any) -> None:
        training_step("mlp")(m, batch)
        if where == "step":
            raise error

    def evaluation(m: nn.Module) -> None:
        m.train()(drawn[0][0])
        if where == "evaluation":
            raise error

    metric = now_and_then if where == "metric" else None
    with pytest.raises(error):
        batchnorm.diagnose(model, Loader(), metric, step, evaluation=evaluation, forward=forward)
    assert_same(before, state_of(model))


def test_a_model_that_cannot_be_copied_is_restored() -> None:
    model = trained("mlp", 0).train()
    model.lock = threading.Lock()
    with pytest.raises(TypeError):
        copy.deepcopy(model)
    before = state_of(model)
    found = batchnorm.diagnose(model, injections_before.other_preprocessing("mlp", 0).loader)
    assert found.causes[0].cause == "other-preprocessing"
    assert_same(before, state_of(model))


def test_a_training_step_is_undone_with_its_optimizer() -> None:
    what, model = problem("mlp"), trained("mlp", 0).train()
    batches = what.batches(what.train[:256], 64)
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, twin)]

    def one(m: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        what.loss(m, batch).backward()
        optimizer.step()

    one(model, batches[0], optimizers[0])
    batchnorm.diagnose(model, batches, training_step=lambda m, batch: one(m, batch, optimizers[0]))
    for batch in batches[1:]:
        one(model, batch, optimizers[0])
    for batch in batches:
        one(twin, batch, optimizers[1])
    assert_same(list(model.state_dict().values()), list(twin.state_dict().values()))


def test_without_a_loader_it_says_what_it_cannot_see() -> None:
    model = trained("mlp", 0)
    found = batchnorm.diagnose(model)
    assert (found.verdict, found.causes, found.losses) == ("undecided", (), {})
    assert any("loader" in sentence for sentence in found.unseen)
    assert batchnorm.diagnose(injections_before.never_written("mlp", 0).model).causes[0].cause == "never-written"


def test_checkpointing_that_updates_twice() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = trained("mlp", 0)

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    found = diagnosed(case("several-updates", "mlp", Checkpointed().train(), training_step=training_step("mlp")))
    assert found.causes[0].cause == "several-updates"
    assert "recomputations" in found.causes[0].evidence[0]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    same = batchnorm.diagnose(model, group=distributed.group.WORLD)
    if rank == 1:
        model[3].running_mean += 1
    other = batchnorm.diagnose(model, group=distributed.group.WORLD)
    found = [[(cause.cause, cause.evidence[0]) for cause in d.causes] for d in (same, other)]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def test_ranks_that_differ(tmp_path: Path) -> None:
    multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        same, other = json.loads((tmp_path / f"{rank}.json").read_text())
        assert same == []
        assert [name for name, _ in other] == ["ranks-differ"]
        assert "(3)" in other[0][1]


def test_the_result_as_data_as_a_table_and_as_json(tmp_path: Path) -> None:
    found = diagnosed(injections_after.buffers_lost("mlp", 0))
    carried = json.loads(found.save(tmp_path / "d.json").read_text())
    assert carried == json.loads(json.dumps(found.to_dict()))
    assert carried["causes"][0]["fix"] in str(found)
    assert str(found).startswith(found.headline)
    assert {len(row["channels"]["mean"]) for row in carried["layers"]} == {32}
    json.dumps(diagnosed(injections_before.nonfinite_batch("mlp", 0)).to_dict(), allow_nan=False)


def test_every_cause_is_whole() -> None:
    assert len({cause.name for cause in CAUSES}) == len(CAUSES) == 33
    for cause in CAUSES:
        assert all((cause.title.endswith("."), cause.signature, cause.fix, cause.confirm))


def _bad(model: Any = None, loader: Any = None, **options: Any) -> Callable[[], object]:
    model = trained("mlp", 0) if model is None else model
    return lambda: batchnorm.diagnose(model, loader, **options)


def _raising(*_: Any) -> float:
    raise ZeroDivisionError("of the metric")


X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (_bad(nn.Linear(2, 2)), ValueError, "has none, so batch normalization is not the cause"),
        (_bad("model"), TypeError, "diagnose takes a torch.nn.Module; got str"),
        (_bad(loader=[]), ValueError, "needs at least one batch"),
        (_bad(loader=3), TypeError, "iterable of batches; got a int"),
        (_bad(loader=["text"]), ValueError, "batch 1 of the loader, a str"),
        (_bad(loader=[{"x": X}]), TypeError, "Pass forward=lambda model, batch"),
        (_bad(loader=iter([X, X])), ValueError, "reads the loader twice; it gave 2 batches the first time and 0"),
        (_bad(loader=[X], metric=_raising), ZeroDivisionError, "of the metric"),
        (_bad(loader=[X], loss=lambda output, batch: output), TypeError, "loss must return one number"),
        (_bad(trained("speech", 0), [X]), TypeError, "more arguments than the first element"),
        (_bad(loader=[X], forward=lambda model, batch: batch), ValueError, "must call the model that it is given"),
        (_bad(loader=[X], batches=0), ValueError, "batches must be a positive integer"),
    ],
)
def test_bad_input_is_one_message(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert words in "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])


def test_unlabelled_data_are_judged_by_the_outputs() -> None:
    given = injections_after.buffers_lost("mlp", 0)
    found = batchnorm.diagnose(given.model, [x for x, _ in given.loader])
    assert found.causes[0].cause == "buffers-lost"
    assert found.measure == "distance to the output with batch statistics"
    assert diagnosed(case("", "mlp", trained("mlp", 0), [x for x, _ in given.loader])).causes == ()
