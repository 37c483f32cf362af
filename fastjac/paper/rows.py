"""The experiments as data: each row of the tables, ablations and comparisons.

A row says what the post-processing phase adds to the cross-entropy; a group says which
table or figure its rows stand in. Weights and sizes come from a `Recipe`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastjac.paper.recipes import Recipe


@dataclass(frozen=True)
class Row:
    """One line of a table: a defence, and how it is trained.

    Attributes:
        key: short name, unique among the rows of a recipe.
        title: the name in tables and legends.
        group: the table or figure it belongs to.
        penalty: a name in `fastjac.paper.defences.PENALTIES`, or None.
        lam: weight of the penalty.
        share: share of each batch that FGSM perturbs, 0 to 1.
        steps: steps of the phase, 0 for the regularly trained network as it is.
        fresh: train from fresh weights, penalty included, instead of after the regular
            phase.
    """

    key: str
    title: str
    group: str
    penalty: str | None = None
    lam: float = 0.0
    share: float = 0.0
    steps: int = 0
    fresh: bool = False


GROUPS = {
    "main": "Tables 1, 3 and 4, Figures 1 and 2: all defences",
    "regular": "Table 2: the penalty in regular training or in post-processing",
    "lambda": "Accuracy and robustness over lambda",
    "share": "Share of adversarial inputs in a batch",
    "layers": "The Jacobian of earlier layers",
    "beyond": "Beyond the paper: controls and other penalties",
}
"""What each group of rows is for, in the order of the report."""


def rows(recipe: Recipe) -> tuple[Row, ...]:
    """All rows that the recipe asks for, the main ones first.

    Example:
        >>> from fastjac.paper.presets import RECIPES
        >>> [row.key for row in rows(RECIPES["mnist", "full"])][:3]
        ['none', 'adversarial', 'input-gradient']
    """
    makers = {
        "main": _main,
        "regular": _regular,
        "lambda": _lambda,
        "share": _share,
        "layers": _layers,
        "beyond": _beyond,
    }
    return tuple(row for group in recipe.groups for row in makers[group](recipe))


TITLES = {
    "input-gradient": "Input gradient regularization",
    "cross-lipschitz": "Cross-Lipschitz regularization",
    "jacobian": "Jacobian regularization",
}


def _main(recipe: Recipe) -> list[Row]:
    steps, share = recipe.harden.steps, recipe.share
    found = [
        Row("none", "No defence", "main"),
        Row("adversarial", "Adversarial training", "main", share=share, steps=steps),
    ]
    for name, title in TITLES.items():
        alone = Row(name, title, "main", name, recipe.lams[name], 0.0, steps)
        key = f"{name}+adversarial"
        both = replace(
            alone,
            key=key,
            title=f"{title} & adversarial training",
            lam=recipe.lams.get(key, alone.lam),
            share=share,
        )
        found += [alone, both]
    return found


def _regular(recipe: Recipe) -> list[Row]:
    """The same number of steps altogether, the penalty from the first one on."""
    lam = recipe.lams["jacobian"]
    steps = recipe.train.steps + recipe.harden.steps
    title = "Jacobian regularization in regular training"
    return [
        Row("regular", title, "regular", "jacobian", lam, steps=steps, fresh=True),
    ]


def _lambda(recipe: Recipe) -> list[Row]:
    steps = recipe.harden.steps
    return [
        Row(
            f"lambda={lam:g}",
            f"Jacobian regularization, lambda {lam:g}",
            "lambda",
            "jacobian",
            lam,
            steps=steps,
        )
        for lam in recipe.lambda_sweep
    ]


def _share(recipe: Recipe) -> list[Row]:
    steps = recipe.harden.steps
    return [
        Row(
            f"share={share:g}",
            f"Adversarial training, {share:.0%} of the inputs",
            "share",
            share=share,
            steps=steps,
        )
        for share in recipe.share_sweep
    ]


def _layers(recipe: Recipe) -> list[Row]:
    names = {
        "layer-1": "Jacobian of layer L-1 (10 random projections)",
        "layer-2": "Jacobian of layer L-2 (10 random projections)",
    }
    return [_other(recipe, key, title, "layers") for key, title in names.items()]


def _beyond(recipe: Recipe) -> list[Row]:
    steps = recipe.harden.steps
    control = Row("control", "No penalty, trained on as long", "beyond", steps=steps)
    titles = {
        "first-sample": "First sample of the batch only (released code)",
        "projection": "One random projection (Hoffman et al.), equal cost",
        "spectral": "Spectral norm of the Jacobian",
    }
    others = [_other(recipe, key, title, "beyond") for key, title in titles.items()]
    return [control, *others]


def _other(recipe: Recipe, key: str, title: str, group: str) -> Row:
    """A row with the Jacobian penalty's weight, unless the recipe has one for it."""
    lam = recipe.lams.get(key, recipe.lams["jacobian"])
    steps = round(recipe.harden.steps * recipe.equal_cost.get(key, 1.0))
    return Row(key, title, group, key, lam, steps=steps)
