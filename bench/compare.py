"""Times contestants side by side: interleaved medians, ratios, error against float64.

python bench/compare.py mnist cifar --samples 64 --rounds 9
python bench/compare.py mnist --group cross-lipschitz
python bench/compare.py mnist --only "one projection" fused --threads 1
"""

from __future__ import annotations

import argparse

import torch
from contestants import GROUPS
from measure import Error, check, interleaved, medians, stepper
from nets import NETS


def compare(
    net: str,
    samples: int,
    classes: int = 10,
    *,
    group: str = "jacobian",
    only: list[str] | None = None,
    rounds: int = 7,
    seconds: float = 60.0,
) -> dict[str, tuple[float, Error]]:
    """Median seconds a step and errors, by contestant, checked before timed."""
    chosen = {
        name: contestant
        for name, contestant in GROUPS[group].items()
        if only is None or name in only
    }
    model = NETS[net].build(classes)
    x, y = NETS[net].batch(samples, classes)
    errors = {name: check(each, model, x) for name, each in chosen.items()}
    steps = {name: stepper(each.total, model, x, y) for name, each in chosen.items()}
    times = medians(interleaved(steps, rounds, seconds))
    return {name: (times[name], errors[name]) for name in chosen}


def table(results: dict[str, tuple[float, Error]]) -> list[list[str]]:
    """Rows of contestant, ms, ratios to fastjac's, error of value and of gradient."""
    return [
        [
            name,
            f"{1000 * seconds:.2f}",
            *(
                f"{seconds / results[ours][0]:.2f}x" if ours in results else ""
                for ours in OURS
            ),
            f"{error.value:.1e}",
            f"{error.gradient:.1e}",
        ]
        for name, (seconds, error) in results.items()
    ]


OURS = ["fused", "fused with loss"]
HEADER = [
    "contestant",
    "ms a step",
    *(f"/ {ours}" for ours in OURS),
    "value error",
    "gradient error",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nets", nargs="+", choices=NETS)
    parser.add_argument("--samples", type=int, help="default: the net's own sizes")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--group", choices=GROUPS, default="jacobian")
    parser.add_argument("--only", nargs="+", help="names of contestants")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for net in options.nets:
        sizes = (options.samples,) if options.samples else NETS[net].samples
        for samples in sizes:
            print(
                f"\n{net}, N = {samples}, K = {options.classes}, {options.group}, "
                f"{torch.get_num_threads()} threads"
            )
            results = compare(
                net,
                samples,
                options.classes,
                group=options.group,
                only=options.only,
                rounds=options.rounds,
            )
            for row in [HEADER, *table(results)]:
                print("  {:<18}{:>12}{:>10}{:>18}{:>14}{:>16}".format(*row))


if __name__ == "__main__":
    main()
