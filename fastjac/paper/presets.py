"""The recipes by data set and preset."""

from __future__ import annotations

from dataclasses import replace

from fastjac.paper.recipes import Measure, Phase, Recipe

FGSM = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)

_MNIST_MEASURE = Measure(
    images=1000,
    slow_images=200,
    fgsm_eps=FGSM,
    jsma_eps=(0.0, 0.25, 0.5, 0.75, 1.0),
    jsma_steps=80,
    pgd_linf=(0.1, 0.2),
    pgd_l2=(1.0, 2.0),
    auto_linf=0.1,
)

_MNIST = Recipe(
    network="mnist",
    train=Phase(1200, 100, 1e-3, weight_decay=1e-3, final=0.1),
    harden=Phase(500, 100, 1e-3, weight_decay=1e-3, final=0.1),
    lams={"jacobian": 0.02, "cross-lipschitz": 1e-3, "input-gradient": 0.1},
    share=0.5,
    eps=0.1,
    measure=_MNIST_MEASURE,
    seeds=3,
    lambda_sweep=(0.005, 0.01, 0.02, 0.04),
    share_sweep=(0.25, 0.5, 0.75, 1.0),
    equal_cost={"projection": 1.5},
    cost_batch=100,
    groups=("main", "regular", "lambda", "share", "layers", "beyond"),
)

_MNIST_QUICK = replace(
    _MNIST,
    train=replace(_MNIST.train, steps=600),
    harden=replace(_MNIST.harden, steps=200),
    measure=replace(
        _MNIST_MEASURE,
        images=200,
        slow_images=50,
        jsma_eps=(0.0, 0.5, 1.0),
        pgd_linf=(0.1,),
        pgd_l2=(),
        auto_linf=0.0,
    ),
    seeds=1,
    cost_batch=32,
    groups=("main",),
)

_CIFAR = Recipe(
    network="cifar",
    train=Phase(20_000, 128, 1e-3, "rmsprop", final=0.01),
    harden=Phase(2_000, 128, 1e-4, "rmsprop", final=0.1),
    lams={"jacobian": 0.5, "cross-lipschitz": 1e-3, "input-gradient": 0.1},
    share=0.5,
    eps=0.01,
    measure=Measure(
        images=1000,
        slow_images=200,
        fgsm_eps=(0.0, 0.002, 0.005, 0.01, 0.02, 0.03),
        jsma_eps=(0.0, 0.05, 0.1, 0.2),
        jsma_steps=200,
        pgd_linf=(2 / 255,),
        pgd_l2=(0.25,),
        auto_linf=2 / 255,
    ),
    seeds=3,
    lambda_sweep=(0.1, 0.5, 1.0),
    share_sweep=(0.25, 0.5, 0.75, 1.0),
    equal_cost={"projection": 1.5},
    cost_batch=128,
    groups=("main", "regular", "lambda", "share", "layers", "beyond"),
)

RECIPES: dict[tuple[str, str], Recipe] = {
    ("mnist", "full"): _MNIST,
    ("mnist", "quick"): _MNIST_QUICK,
    ("fashion-mnist", "full"): _MNIST,
    ("fashion-mnist", "quick"): _MNIST_QUICK,
    ("cifar-10", "full"): _CIFAR,
}
"""By data set and preset."""
