"""What the command line changes in a preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from fastjac.paper.recipes import Recipe
from fastjac.paper.rows import GROUPS, rows


@dataclass(frozen=True)
class Changes:
    """Values instead of a preset's; None leaves its own.

    Attributes:
        steps: of post-processing, at least 1.
        lam: weight of the Jacobian penalty, above 0.
        share: of a batch that FGSM perturbs in rows with adversarial training, above 0
            and at most 1.
        attacked: test images that all attacks see, at least 1.
        auto_attack: l_inf size of AutoAttack, above 0; needs torchattacks.
    """

    steps: int | None = None
    lam: float | None = None
    share: float | None = None
    attacked: int | None = None
    auto_attack: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "attacked"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} (={count}) must be at least 1")
        if self.lam is not None and not self.lam > 0:
            raise ValueError(f"lam (={self.lam}) must be positive")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share (={self.share}) must be above 0 and at most 1")
        if self.auto_attack is not None and not self.auto_attack > 0:
            raise ValueError(f"auto_attack (={self.auto_attack}) must be positive")
        if self.auto_attack is not None and find_spec("torchattacks") is None:
            raise ValueError(
                f"auto_attack (={self.auto_attack}) needs torchattacks, which is not"
                " installed; run `pip install torchattacks`"
            )

    def applied(self, recipe: Recipe) -> Recipe:
        """Return the recipe with these values.

        Example:
            >>> from fastjac.paper.presets import RECIPES
            >>> Changes(steps=3).applied(RECIPES["mnist", "full"]).harden.steps
            3
        """
        if self.steps is not None:
            recipe = replace(recipe, harden=replace(recipe.harden, steps=self.steps))
        if self.lam is not None:
            others = {
                name: lam
                for name, lam in recipe.lams.items()
                if not name.startswith("jacobian")
            }
            recipe = replace(recipe, lams={**others, "jacobian": self.lam})
        if self.share is not None:
            recipe = replace(recipe, share=self.share)
        if self.attacked is not None:
            measure = replace(
                recipe.measure, images=self.attacked, slow_images=self.attacked
            )
            recipe = replace(recipe, measure=measure)
        if self.auto_attack is not None:
            measure = replace(recipe.measure, auto_linf=self.auto_attack)
            recipe = replace(recipe, measure=measure)
        return recipe

    @property
    def words(self) -> tuple[str, ...]:
        """The options of the command line that say so."""
        words: list[str] = []
        for name, value in vars(self).items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        return tuple(words)


def with_groups(recipe: Recipe, only: Sequence[str]) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with groups that ``only`` asks for besides its own, and those.

    Args:
        recipe: of a preset.
        only: keys of rows, or names of groups.
    """
    every = rows(replace(recipe, groups=tuple(GROUPS)))
    asked = {row.group for row in every if {row.key, row.group} & set(only)}
    more = tuple(g for g in GROUPS if g in asked and g not in recipe.groups)
    return replace(recipe, groups=(*recipe.groups, *more)), more
