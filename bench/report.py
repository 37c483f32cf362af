"""Runs the whole comparison and writes bench/results/<device>.md with its figures.

python bench/report.py                     # everything, about half an hour
python bench/report.py --only times memory
python bench/report.py --quick             # small sizes, to see that it runs
"""

from __future__ import annotations

import argparse
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import density
import sections
import torch

import fastjac

#: title -> what measures it; a new question is one line here.
SECTIONS: dict[str, tuple[str, Callable[[Path, bool], str]]] = {
    "times": ("Time of a whole step", sections.times),
    "memory": ("Peak memory", sections.memory),
    "scaling": ("Scaling in K, N and threads", sections.scaling),
    "kernels": ("Kernel efficiency", sections.efficiency),
    "density": ("Trained weights", density.trained),
}


def device() -> str:
    """Name of the processor, as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    named = re.search(r"model name\s*:\s*(.+)", text)
    return named.group(1).strip() if named else platform.machine()


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def introduction() -> str:
    """What was measured, on what, and how."""
    threads = torch.get_num_threads()
    return (
        f"# fastjac on {device()}, {threads} threads\n\n"
        f"{time.strftime('%Y-%m-%d')}, float32. A step is forward, cross-entropy, "
        "penalty and backward. Times are medians of interleaved runs in one process; "
        "errors are relative to float64 (gradient: all parameters, l2), and every "
        "contestant was checked for equal value and gradient before it was timed.\n\n"
        f"```\n{fastjac.build_info()}\n```\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--out", type=Path, help="folder of the report")
    options = parser.parse_args()
    results = options.out or Path(__file__).parent / "results"
    name = slug(f"{device()} {torch.get_num_threads()} threads")
    figures = results / name
    figures.mkdir(parents=True, exist_ok=True)
    parts = [introduction()]
    for key in options.only:
        title, measure = SECTIONS[key]
        print(f"{title} ...", flush=True)
        text = measure(figures, options.quick).replace("](", f"]({name}/")
        parts.append(f"## {title}\n\n{text}\n")
        (results / f"{name}.md").write_text("\n".join(parts))
    print(f"written: {results / name}.md")


if __name__ == "__main__":
    main()
