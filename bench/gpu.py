"""What fastjac does on a GPU: steps, kernels, memory, launches, errors, thresholds.

python bench/gpu.py                          # on a GPU, about five minutes
python bench/gpu.py --device cpu --quick     # small sizes on a CPU, to see that it runs

Writes bench/results/<device>.md after every part; a part that fails says why in the
report and the next one runs.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import clock
import kernels
import report
import targets
import thresholds
import torch
from contestants import LAMBDA, ON_GPU, Contestant
from measure import check, stepper
from nets import NETS
from sections import markdown
from targets import Case, Measured, Row
from torch import Tensor, nn

import fastjac
from fastjac import native


@dataclass(frozen=True)
class Setting:
    """Where and how much to measure."""

    device: str
    quick: bool
    seconds: float  # for one contestant
    measured: Measured
    until: float  # time.monotonic() from which slow contestants are left out


#: The share of the time in which contestants that take long may begin.
FOR_STEPS = 0.4
#: The vectorised routes hold K graphs at once and do not fit where K is large.
FEW = ("plain step", "fused", "autograd loop", "one projection", "is_grads_batched")
ALL = tuple(ON_GPU)
CASES = {
    targets.MNIST: ALL,
    targets.CIFAR: ALL,
    targets.CIFAR_100: FEW,
    targets.RESNET: FEW,
}
QUICK = {Case("digits", 8, 10): ALL}


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Strict float32, or TF32 allowed for products and convolutions."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def batch(case: Case, setting: Setting) -> tuple[nn.Module, Tensor, Tensor]:
    model = NETS[case.net].build(case.classes).to(setting.device)
    x, y = NETS[case.net].batch(case.samples, case.classes)
    return model, x.to(setting.device), y.to(setting.device)


def errors(contestant: Contestant, model: nn.Module, x: Tensor) -> list[float]:
    """Larger error of value and gradient, strict and with TF32."""
    found = []
    for tf32, limit in ((False, 1e-3), (True, 0.1)):
        with precision(tf32):
            error = check(contestant, model, x, limit)
        found.append(max(error.value, error.gradient))
    return found


def peak(step: Callable[[], object], device: str) -> float:
    """MiB that a step takes at its peak above what was there before it."""
    if device != "cuda":
        return float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def launches(step: Callable[[], object], device: str) -> int:
    """Kernels, copies and fills that one step starts on the GPU."""
    if device != "cuda":
        return 0
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == on_gpu for event in profile.events())


def row(name: str, case: Case, setting: Setting) -> Row:
    """What is measured of a contestant's step."""
    model, x, y = batch(case, setting)
    contestant = ON_GPU[name]
    strict, tf32 = errors(contestant, model, x)
    step = stepper(contestant.total, model, x, y)
    # As torch is set by default: convolutions may use TF32, products may not.
    ms = 1000 * clock.seconds(step, setting.device, 30, setting.seconds)
    used, count = peak(step, setting.device), launches(step, setting.device)
    return Row(ms, strict, tf32, used, count)


def steps(setting: Setting) -> str:
    """Whole steps of all contestants, by case; ratios are to the fused step."""
    header = ["contestant", "ms a step", "time / fused", "strict error", "TF32 error"]
    header += ["peak MiB", "launches"]
    cases = QUICK if setting.quick else CASES
    failures: dict[Case, dict[str, str]] = {case: {} for case in cases}
    # What the targets need most comes first, and what takes minutes to compile last.
    turns = [(case, name) for case, names in cases.items() for name in names]
    for case, name in sorted(turns, key=lambda turn: turn[1] not in FEW):
        found = setting.measured.steps.setdefault(case, {})
        if name not in FEW and time.monotonic() > setting.until:
            failures[case][name] = "left out: no time left"
            continue
        try:
            found[name] = row(name, case, setting)
        except Exception as error:
            failures[case][name] = f"failed: {type(error).__name__}: {error}"[:120]
        if setting.device == "cuda":
            torch.cuda.empty_cache()
    parts = []
    for case, failed in failures.items():
        found = setting.measured.steps.get(case, {})
        fused = found.get("fused")
        lines = [[name, *each.line(fused)] for name, each in found.items()]
        blank = [""] * (len(header) - 2)
        lines += [[name, reason, *blank] for name, reason in failed.items()]
        title = f"### {case.net}, N = {case.samples}, K = {case.classes}\n"
        parts += [title, markdown(header, lines) + "\n"]
    return "\n".join(parts)


def replayed(setting: Setting) -> str:
    """The fused step as a CUDA graph: what is left when the host is out of the way."""
    if setting.device != "cuda":
        return "Not on a CPU."
    lines = []
    for case in CASES:
        model, x, y = batch(case, setting)
        step = stepper(ON_GPU["fused"].total, model, x, y)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        ms = 1000 * clock.seconds(graph.replay, "cuda", 30, setting.seconds)
        lines.append([case.net, case.samples, case.classes, f"{ms:.3f}"])
    return markdown(["net", "N", "K", "ms a replay"], lines)


def efficiency(setting: Setting) -> str:
    """Useful GFLOP/s of the gated kernels beside what dense products reach."""
    size, samples = (512, 4) if setting.quick else (8192, 500)
    rounds = {}
    for tf32 in (False, True):
        with precision(tf32):
            rounds[tf32] = kernels.sgemm(size, setting.device)
    lines = [["dense product, strict float32", f"{rounds[False]:.0f}", "1.00"]]
    lines += [["dense product, TF32", f"{rounds[True]:.0f}", ""]]
    for direction in ("pull", "push", "weight"):
        reached = kernels.conv2(direction, samples, setting.device)
        setting.measured.kernels[direction] = reached
        share = reached / rounds[False]
        lines.append([f"gated conv2 {direction}", f"{reached:.0f}", f"{share:.2f}"])
    lines.append(["copy, GB/s read and written", f"{copy_rate(setting):.0f}", ""])
    return markdown(["kernel", "useful GFLOP/s", "of the dense product"], lines)


def copy_rate(setting: Setting) -> float:
    """GB/s of a large copy, counting bytes read and bytes written."""
    count = 1 << (20 if setting.quick else 29)
    source = torch.rand(count, device=setting.device)
    target = torch.empty_like(source)
    return 8 * count / clock.seconds(lambda: target.copy_(source), setting.device) / 1e9


def table(setting: Setting) -> str:
    """Gated over dense by live share, what fastjac/thresholds.py is made from."""
    shares = (0.5,) if setting.quick else (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
    text = "\n".join(thresholds.lines(setting.device, shares))
    torch.set_default_device("cpu")
    return f"```\n{text}\n```"


PARTS: dict[str, Callable[[Setting], str]] = {
    "Whole steps": steps,
    "Replayed": replayed,
    "Kernels": efficiency,
    "Gated or dense": table,
}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else report.device()


def introduction(setting: Setting) -> str:
    reason = native.cuda_why_not()
    kernels_run = "run" if reason is None else f"do not run: {reason}"
    return (
        f"# fastjac on {device_name(setting.device)}\n\n"
        f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}, kernels {kernels_run}. A step is forward, "
        f"cross-entropy, penalty times {LAMBDA} and backward, in torch's default "
        "precision; medians by CUDA events. "
        "Errors are relative to float64 (the larger of value and gradient), strict and "
        "with TF32 allowed everywhere. Peak memory is what the allocator held above "
        "the model and the batch.\n\n"
        f"```\n{fastjac.build_info()}\n```\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--seconds", type=float, default=3.0, help="for a contestant")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--limit", type=float, default=300.0, help="seconds that all may take"
    )
    parser.add_argument("--ncu", type=Path, help="what ncu said, for the report")
    parser.add_argument("--name", help="of the report, default: the device's")
    options = parser.parse_args()
    until = time.monotonic() + FOR_STEPS * options.limit
    setting = Setting(options.device, options.quick, options.seconds, Measured(), until)
    name = options.name or report.slug(device_name(setting.device))
    options.out.mkdir(parents=True, exist_ok=True)
    parts = [introduction(setting)]
    if options.ncu is not None and options.ncu.exists():
        parts.append(f"## Profiler\n\n```\n{options.ncu.read_text()}```\n")
    for title, measure in PARTS.items():
        print(f"{title} ...", flush=True)
        try:
            text = measure(setting)
        except Exception:
            text = f"Failed:\n\n```\n{traceback.format_exc()}```"
        parts.append(f"## {title}\n\n{text}\n")
        verdicts = targets.verdicts(setting.measured, setting.device)
        ending = f"## Targets\n\n{verdicts}\n"
        (options.out / f"{name}.md").write_text("\n".join([*parts, ending]))
    print((options.out / f"{name}.md").read_text())


if __name__ == "__main__":
    main()
