"""What must hold in two processes, run by tests/test_parallel.py in both of them.

Each check compares with the oracle on the whole batch, in one process and in float64.
The two parts of the batch have different sizes.

    python parallel_checks.py RANK RENDEZVOUS_FILE RESULT_FILE [CHECK...]
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import oracle
import torch
import torch.distributed as dist
import torch.nn.functional as F
from nets import images, small_conv
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import fastjac
from fastjac import checkpoint as files

WORLD = 2
SIZES = (5, 2)
Check = Callable[[int], None]
CHECKS: dict[str, Check] = {}
REDUCED = ("frobenius", "sum", "mean")
KINDS = ("jacobian", "graph", "cross-lipschitz", "input-gradient")


def check(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a check, once for each name in brackets, which it gets."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        title = function.__name__
        for name in names or ("",):
            label = f"{title}[{name}]" if name else title
            extra = (name,) if name else ()
            CHECKS[label] = lambda rank, extra=extra: function(rank, *extra)
        return function

    return register


def whole() -> tuple[Tensor, Tensor]:
    return images(sum(SIZES)), torch.arange(sum(SIZES)) % 4


def part(rank: int) -> tuple[Tensor, Tensor]:
    x, y = whole()
    start = sum(SIZES[:rank])
    return x[start : start + SIZES[rank]], y[start : start + SIZES[rank]]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return small_conv().double()


def penalty(kind: str, model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
    """(penalty, logits) by fastjac."""
    if kind == "graph":
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        return fastjac.penalty_from_graph(logits, leaf, **options), logits
    if kind == "jacobian":
        return fastjac.jacobian_penalty(model, x, return_logits=True, **options)
    if kind == "cross-lipschitz":
        return fastjac.cross_lipschitz_penalty(model, x, return_logits=True, **options)
    return fastjac.input_gradient_penalty(model, x, y, return_logits=True, **options)


def expected(kind: str, model: nn.Module, x: Tensor, y: Tensor, reduction: str) -> Any:
    """(penalty, logits) by the oracle."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    if kind == "cross-lipschitz":
        squares = oracle.cross_lipschitz_squares(logits, leaf)
    elif kind == "input-gradient":
        squares = oracle.input_gradient_squares(logits, leaf, y)
    else:
        squares = oracle.jacobian_squares(logits, leaf)
    return oracle.reduce(squares, reduction), logits


def truth(kind: str, reduction: str) -> tuple[Tensor, list[Tensor], nn.Module]:
    model = network()
    value, _ = expected(kind, model, *whole(), reduction)
    return value, oracle.gradients(value, model.parameters()), model


def assert_close(got: Tensor, wanted: Tensor, what: str, limit: float = 1e-10) -> None:
    error = oracle.error(got, wanted)
    assert error <= limit, f"{what}: error {error:.1e}"


def assert_gradients(
    model: nn.Module, wanted: Sequence[Tensor | None], limit: float = 1e-10
) -> None:
    """Parameters and FSDP's parts of them have these gradients; None is zero."""
    for (name, p), g in zip(model.named_parameters(), wanted, strict=True):
        got = p.grad
        if hasattr(got, "full_tensor"):
            got = got.full_tensor()
        if got is None:
            assert g is None or not g.any(), f"no gradient of {name}"
            continue
        assert_close(got, torch.zeros_like(got) if g is None else g, name, limit)


@check(*(f"{kind} {reduction}" for kind in KINDS for reduction in REDUCED))
def ddp_value_and_gradients_are_those_of_the_whole_batch(rank: int, name: str) -> None:
    kind, reduction = name.split()
    value, gradients, _ = truth(kind, reduction)
    model = DDP(network())
    for _ in range(2):
        model.zero_grad()
        got, _ = penalty(
            kind, model, *part(rank), reduction=reduction, process_group="world"
        )
        assert_close(got, value, "value")
        got.backward()
        assert_gradients(model, gradients)


@check(*KINDS)
def ddp_none_stays_with_the_samples_of_the_process(rank: int, kind: str) -> None:
    model = DDP(network())
    x, y = part(rank)
    got, _ = penalty(kind, model, x, y, reduction="none", process_group="world")
    wanted, _ = expected(kind, network(), x, y, "none")
    assert_close(got, wanted, "values")
    got.sum().backward()
    _, gradients, _ = truth(kind, "sum")
    assert_gradients(model, [g / WORLD for g in gradients])


@check("autograd", "fused")
def ddp_without_a_group_averages_the_processes_own_penalties(
    rank: int, backend: str
) -> None:
    model, bare = DDP(network()), network()
    got, _ = penalty("jacobian", model, *part(rank), backend=backend)
    got.backward()
    values = [expected("jacobian", bare, *part(r), "frobenius")[0] for r in range(2)]
    assert_close(got, values[rank], "value")
    mean = oracle.gradients(sum(values) / 2, bare.parameters())
    assert_gradients(model, mean)


@check("jacobian", "graph")
def ddp_with_cross_entropy_trains_as_one_process(rank: int, kind: str) -> None:
    bare = network()
    model = DDP(copy.deepcopy(bare))
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, bare)
    ]
    x, y = part(rank)
    share = WORLD * len(x) / sum(SIZES)
    for _ in range(10):
        got, logits = penalty(kind, model, x, y, process_group="world")
        loss = share * F.cross_entropy(logits, y) + 0.3 * got
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        value, logits = expected(kind, bare, *whole(), "frobenius")
        optimizers[1].zero_grad()
        (F.cross_entropy(logits, whole()[1]) + 0.3 * value).backward()
        optimizers[1].step()
        assert_close(got, value, "value", 1e-8)
    for got, wanted in zip(model.parameters(), bare.parameters(), strict=True):
        assert_close(got, wanted, "weight", 1e-8)


@check()
def ddp_accumulates_without_exchange_in_no_sync(rank: int) -> None:
    bare, model = network(), DDP(network())
    shift = torch.linspace(0, 1, 2)
    for step, factor in enumerate(shift.tolist()):
        x, y = part(rank)
        with model.no_sync() if step == 0 else nullcontext():
            got, _ = penalty("jacobian", model, x + factor, y, process_group="world")
            got.backward()
        x, y = whole()
        value, _ = expected("jacobian", bare, x + factor, y, "frobenius")
        assert_close(got, value, "value")
        value.backward()
    assert_gradients(model, [p.grad for p in bare.parameters()])


@check("find_unused_parameters", "static_graph", "gradient_as_bucket_view")
def ddp_options(rank: int, option: str) -> None:
    value, gradients, _ = truth("jacobian", "frobenius")
    model = DDP(network(), **{option: True})
    for _ in range(3):
        model.zero_grad()
        for kind in (
            ("jacobian",) if option == "static_graph" else ("jacobian", "graph")
        ):
            model.zero_grad()
            got, _ = penalty(
                kind, model, *part(rank), process_group="world", backend="fused"
            )
            got.backward()
            assert_close(got, value, "value")
            assert_gradients(model, gradients)


@check("inside", "outside")
def ddp_of_a_compiled_model(rank: int, where: str) -> None:
    value, gradients, _ = truth("jacobian", "frobenius")
    model: Any = network()
    if where == "inside":
        model = DDP(torch.compile(model, backend="aot_eager"))
    else:
        model = torch.compile(DDP(model), backend="aot_eager")
    got, _ = penalty(
        "jacobian", model, *part(rank), process_group="world", backend="fused"
    )
    assert_close(got, value, "value")
    got.backward()
    assert_gradients(model, gradients)


class Checkpointed(nn.Module):
    """The network with its first part under a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net[3:](checkpoint(self.net[:3], x, use_reentrant=False))


@check()
def ddp_with_checkpoints(rank: int) -> None:
    value, gradients, _ = truth("jacobian", "frobenius")
    model = DDP(Checkpointed())
    got, _ = penalty(
        "jacobian", model, *part(rank), process_group="world", backend="fused"
    )
    assert_close(got, value, "value")
    got.backward()
    assert_gradients(model, gradients)


@check()
def a_group_of_one_process_is_that_process(rank: int) -> None:
    groups = [dist.new_group([r]) for r in range(WORLD)]
    wanted, _ = expected("jacobian", network(), *part(rank), "mean")
    got = fastjac.jacobian_penalty(
        network(), part(rank)[0], reduction="mean", process_group=groups[rank]
    )
    assert_close(got, wanted, "value")
    try:
        fastjac.jacobian_penalty(
            network(), part(rank)[0], process_group=groups[1 - rank]
        )
    except ValueError as error:
        assert "does not include this process" in str(error)
    else:
        raise AssertionError("a group without this process was taken")


@check()
def evaluation_in_one_process_sends_nothing(rank: int) -> None:
    model = DDP(network().append(nn.BatchNorm1d(4)).double().eval())
    if rank == 0:  # DDP's own forward would broadcast the statistics to rank 1
        fastjac.jacobian_norm(model, part(0)[0])
        fastjac.explain(model, part(0)[0])
        fastjac.attacks.deepfool(model, part(0)[0])
        with torch.no_grad():
            fastjac.jacobian_penalty(model, part(0)[0])


LAYERS = (nn.Conv2d, nn.Linear)


def sharded(
    model: nn.Module, alone: tuple[type, ...] = LAYERS, **options: Any
) -> nn.Module:
    """The model sharded by FSDP2, with layers of these types gathered alone."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in [m for m in model.modules() if isinstance(m, alone)]:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def has_fsdp() -> bool:
    """Whether fully_shard runs on a CPU, where its first releases missed a stream."""
    import torch.distributed.fsdp as fsdp

    return hasattr(fsdp, "fully_shard") and hasattr(torch.cpu.Stream, "record_event")


@check(
    *(f"{kind} {r}" for kind in KINDS if kind != "graph" for r in REDUCED),
    "jacobian none",
)
def fsdp_value_and_gradients_are_those_of_the_whole_batch(rank: int, name: str) -> None:
    kind, reduction = name.split()
    value, gradients, _ = truth(kind, "sum" if reduction == "none" else reduction)
    model = sharded(network())
    for _ in range(2):
        model.zero_grad()
        got, _ = penalty(
            kind,
            model,
            *part(rank),
            reduction=reduction,
            process_group="world",
            backend="fused",
        )
        if reduction == "none":
            both = torch.zeros((), dtype=torch.float64) + got.sum().detach()
            dist.all_reduce(both)
            assert_close(both, value, "sum of values")
            got = WORLD * got.sum()
        else:
            assert_close(got, value, "value")
        got.backward()
        assert_gradients(model, gradients)


@check()
def fsdp_with_cross_entropy_trains_as_one_process(rank: int) -> None:
    bare, model = network(), sharded(network())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, bare)]
    x, y = part(rank)
    share = WORLD * len(x) / sum(SIZES)
    for _ in range(5):
        got, logits = penalty("jacobian", model, x, y, process_group="world")
        (share * F.cross_entropy(logits, y) + 0.3 * got).backward()
        value, logits = expected("jacobian", bare, *whole(), "frobenius")
        (F.cross_entropy(logits, whole()[1]) + 0.3 * value).backward()
        assert_close(got, value, "value", 1e-8)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for got, wanted in zip(model.parameters(), bare.parameters(), strict=True):
        assert_close(got.full_tensor(), wanted, "weight", 1e-8)


@check()
def fsdp_accumulates_without_exchange(rank: int) -> None:
    bare, model = network(), sharded(network())
    for step, factor in enumerate((0.0, 1.0)):
        model.set_requires_gradient_sync(step == 1)
        x, y = part(rank)
        got, _ = penalty("jacobian", model, x + factor, y, process_group="world")
        got.backward()
        x, y = whole()
        expected("jacobian", bare, x + factor, y, "frobenius")[0].backward()
    assert_gradients(model, [p.grad for p in bare.parameters()])


@check()
def fsdp_from_graph(rank: int) -> None:
    value, gradients, _ = truth("jacobian", "frobenius")
    try:
        penalty("graph", sharded(network()), *part(rank), process_group="world")
    except RuntimeError as error:
        assert "jacobian_penalty(model, x" in str(error)
    else:
        raise AssertionError("freed weights were read")
    model = sharded(network(), reshard_after_forward=False)
    got, _ = penalty("graph", model, *part(rank), process_group="world")
    assert_close(got, value, "value")
    got.backward()
    assert_gradients(model, gradients)


@check()
def fsdp_jacobians_and_norms(rank: int) -> None:
    model, bare = sharded(network()), network()
    x, _ = part(rank)
    assert_close(fastjac.jacobian_norm(model, x), fastjac.jacobian_norm(bare, x), "F")
    top = fastjac.spectral_norm(model, x)
    assert_close(top, fastjac.spectral_norm(bare, x), "spectral norm")
    fastjac.jacobian(model, x).square().sum().backward()
    _, gradients, _ = truth("jacobian", "sum")
    assert_gradients(model, [g / WORLD for g in gradients])
    assert fastjac.explain(model, x).backend == "fused"


class Unruly(nn.Module):
    """An operation without a fused rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x.logcumsumexp(1)


@check("auto", "autograd")
def fsdp_refuses_to_fall_back(rank: int, backend: str) -> None:
    model = sharded(network().append(Unruly()))
    try:
        penalty("jacobian", model, *part(rank), backend=backend)
    except NotImplementedError as error:
        assert "FSDP frees weights" in str(error)
    else:
        raise AssertionError("autograd ran on freed weights")


@check()
def fsdp_around_checkpoints(rank: int) -> None:
    value, gradients, _ = truth("jacobian", "frobenius")
    model = sharded(Checkpointed(), (nn.Linear,))
    got, _ = penalty(
        "jacobian", model, *part(rank), process_group="world", backend="fused"
    )
    assert_close(got, value, "value")
    got.backward()
    assert_gradients(model, gradients)


@check()
def fsdp_inside_checkpoints_is_an_error(rank: int) -> None:
    try:
        penalty("jacobian", sharded(Checkpointed()), *part(rank))
    except RuntimeError as error:
        assert "shard the module that does the checkpoint" in str(error)
    else:
        raise AssertionError("weights that the recomputation freed were read")


class Watched(Dataset):
    """Inputs and labels; notes which samples were asked for."""

    def __init__(self, samples: int) -> None:
        self.x, self.y = images(samples), torch.arange(samples) % 4
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.asked.append(index)
        return self.x[index], self.y[index]


class Stop(Exception):
    """Ends a run in the middle."""


def everywhere(values: list[Any]) -> list[Any]:
    """The values of both processes, in order."""
    found: list[Any] = [None] * WORLD
    dist.all_gather_object(found, values)
    return sorted(value for values in found for value in values)


def hardened(
    model: nn.Module,
    data: Any,
    folder: Path | None = None,
    stop_at: int = -1,
    group: Any = "world",
    trained: list[float] | None = None,
    **options: Any,
) -> Any:
    """A run of `harden` on shuffled batches, ended by `Stop` before a step.

    The first pixel of each sample that took part in a step goes to ``trained``.
    """
    steps = iter(range(1000))

    def penalty(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if next(steps) == stop_at:
            raise Stop
        if trained is not None:
            trained.extend(x[:, 0, 0, 0].tolist())
        return fastjac.jacobian_penalty(model, x, return_logits=True, reduction="mean")

    loader = data
    if isinstance(data, Dataset):
        loader = DataLoader(data, batch_size=4, shuffle=True)
    return fastjac.harden(
        model,
        loader,
        penalty=penalty if folder else "jacobian",
        seed=3,
        lr=1e-2,
        checkpoint=folder and folder / "run.ckpt",
        checkpoint_every=1,
        resume="auto" if folder else False,
        progress=False,
        process_group=group,
        **options,
    )


@check("0.0", "0.5")
def harden_does_the_steps_of_one_process(rank: int, adversarial: str) -> None:
    """Batches of five, four and one sample, which has no two parts."""
    x, y = images(10), torch.arange(10) % 4
    batches = list(zip(x.split([5, 4, 1]), y.split([5, 4, 1]), strict=True))
    options = {"epochs": 2, "lam": 0.3}
    if float(adversarial):  # all, since which inputs are chosen is random
        options |= {"adversarial": 1.0, "eps": 0.05}
    model, bare = network(), network()
    got = hardened(model, batches, **options)
    wanted = hardened(bare, batches, group=None, **options)
    for a, b in zip(model.parameters(), bare.parameters(), strict=True):
        assert_close(a, b, "weight", 1e-8)
    for a, b in zip(got.history, wanted.history, strict=True):
        assert abs(a.loss - b.loss) < 1e-8 and abs(a.penalty - b.penalty) < 1e-8
        assert (a.steps, a.accuracy) == (b.steps, b.accuracy)


@check("all", "ddp", "sampler")
def harden_takes_each_sample_once_an_epoch(rank: int, how: str) -> None:
    data, model, group = Watched(14), network(), "world"
    loader: Any = data
    if how == "ddp":
        model, group = DDP(model), None
    if how == "sampler":
        sampler = DistributedSampler(data)
        loader = DataLoader(data, batch_size=2, sampler=sampler)
    result = hardened(model, loader, epochs=2, group=group)
    assert everywhere(data.asked) == sorted(2 * list(range(14)))
    assert result.steps == 8
    assert all(r.steps == 4 for r in result.history)


@check("two, one", "one, two", "two, two")
def harden_resumes_in_another_number_of_processes(rank: int, numbers: str) -> None:
    """Stopped in the second epoch: every sample once in it, by one run or the other."""
    first, second = ("world" if n == "two" else None for n in numbers.split(", "))
    folder: list[Any] = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder)
    path = Path(folder[0])
    data, trained = Watched(14), []
    if first or rank == 0:
        with suppress(Stop):
            hardened(network(), data, path, 6, first, trained, epochs=3)
    assert len(everywhere(trained)) == 14 + 2 * 4
    saved = files.load(path / "run.ckpt", "checkpoint")
    assert (saved["position"]["epoch"], saved["position"]["batch"]) == (1, 2)
    dist.barrier()
    if second or rank == 0:
        result = hardened(
            network(), data, path, group=second, trained=trained, epochs=3
        )
        assert result.steps == 12 and len(result.history) == 3
    assert everywhere(trained) == sorted(3 * data.x[:, 0, 0, 0].tolist())
    dist.barrier()
    if rank == 0:
        shutil.rmtree(path)


@check()
def harden_resumes_bit_for_bit_in_as_many_processes(rank: int) -> None:
    folder: list[Any] = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder)

    def run(name: str, stop_at: int = -1) -> nn.Module:
        torch.manual_seed(3)
        model = small_conv(dropout=0.4).double()
        hardened(model, Watched(14), Path(folder[0]) / name, stop_at, epochs=3)
        return model

    whole_run = run("whole")
    with suppress(Stop):
        run("parts", stop_at=6)
    resumed = run("parts")
    for a, b in zip(whole_run.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder[0])


@check()
def harden_gives_processes_dropout_of_their_own(rank: int) -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 4)).double()
    model[1].register_forward_hook(lambda m, i, out: seen.append(out != 0))
    x, y = torch.ones(4, 2, 8, 8, dtype=torch.float64), torch.arange(4)
    hardened(model, [(x, y), (x, y)], epochs=1)
    masks: list[Any] = [None] * WORLD
    dist.all_gather_object(masks, seen[1])
    assert masks[0].shape == masks[1].shape and not torch.equal(masks[0], masks[1])


@check()
def harden_refuses_loaders_that_differ(rank: int) -> None:
    x, y = images(4), torch.arange(4)
    try:
        hardened(network(), [(x.roll(rank, 0), y.roll(rank, 0))], epochs=1)
    except ValueError as error:
        assert "the same seed in every process" in str(error)
    else:
        raise AssertionError("different batches were taken for one")


@check()
def harden_refuses_sharded_models(rank: int) -> None:
    if not has_fsdp():
        return
    try:
        hardened(sharded(network()), Watched(4), epochs=1)
    except TypeError as error:
        assert "model is sharded by fully_shard" in str(error)
    else:
        raise AssertionError("a sharded model was trained")


def selected() -> Iterator[tuple[str, Check]]:
    for name, run in CHECKS.items():
        asked = not sys.argv[4:] or any(word in name for word in sys.argv[4:])
        if asked and (not name.startswith("fsdp") or has_fsdp()):
            yield name, run


def main() -> None:
    rank, store, result = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(minutes=10),
    )
    outcomes: dict[str, str] = {}
    for name, run in selected():
        torch.manual_seed(0)
        try:
            run(rank)
        except BaseException:
            # The other process waits for this one: it is told by the closed connection.
            outcomes[name] = traceback.format_exc()
            result.write_text(json.dumps(outcomes))
            os._exit(1)
        outcomes[name] = ""
        dist.barrier()
    result.write_text(json.dumps(outcomes))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
