"""What the command line changes in a preset of the paper's experiments."""

from dataclasses import replace

import pytest
from tiny_paper import TINY, reproduce

from fastjac.paper import changes, experiment


def test_options_change_the_recipe_and_are_in_the_commands(tiny_data, tmp_path):
    values = {"steps": 3, "lam": 0.25, "share": 0.3, "attacked": 7}
    outcome = reproduce(tiny_data, tmp_path, **values, report_only=True)
    assert (outcome.finished, outcome.planned) == (0, 28)
    text = (tmp_path / "report.md").read_text()
    said = " ".join(f"--{name} {value}" for name, value in values.items())
    assert f"{said} --out REPORT --only jacobian`" in text
    assert "Post-processing: 3 steps of 20 images" in text
    assert "| Jacobian regularization | not run | 98.44 |" in text
    with pytest.raises(ValueError, match="steps .=0. must be at least 1"):
        reproduce(tiny_data, tmp_path, steps=0)
    with pytest.raises(ValueError, match="attacked .=0. must be at least 1"):
        reproduce(tiny_data, tmp_path, attacked=0)
    with pytest.raises(ValueError, match="auto_attack .=-0.1. must be positive"):
        reproduce(tiny_data, tmp_path, auto_attack=-0.1)
    with pytest.raises(ValueError, match="one of full, quick for cifar-10"):
        experiment.reproduce(tiny_data, "cifar-10", tmp_path, preset="medium")
    with pytest.raises(ValueError, match="share .=2. must be above 0 and at most 1"):
        reproduce(tiny_data, tmp_path, share=2)


def test_groups_that_a_preset_leaves_out_can_be_asked_for(tiny_data, tmp_path):
    recipe = replace(TINY, groups=("main",), seeds=1)
    first = f"lambda={TINY.lambda_sweep[0]:g}"
    for only in ("lambda", first):
        outcome = reproduce(
            tiny_data, tmp_path, recipe=recipe, only=[only], report_only=True
        )
        assert outcome.planned == 10 + len(TINY.lambda_sweep)
        text = (tmp_path / "report.md").read_text()
        assert "--out REPORT --only cost,main,lambda`" in text
        assert f"--out REPORT --only {first}`" in text


def test_auto_attack_is_asked_for_by_its_size(monkeypatch):
    monkeypatch.setattr(changes, "find_spec", lambda name: object())
    asked = changes.Changes(auto_attack=0.1)
    assert asked.applied(TINY).measure.auto_linf == 0.1
    assert asked.words == ("--auto-attack", "0.1")
    monkeypatch.setattr(changes, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install torchattacks"):
        changes.Changes(auto_attack=0.1)
