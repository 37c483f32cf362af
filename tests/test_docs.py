"""The examples in docs/ run, with the libraries that they are about."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from nets import images, small_conv

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "loops.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
NEEDS = {"Lightning": "lightning", "accelerate": "accelerate", "torch.compile": None}
COMMON = "import torch\nimport torch.nn.functional as F\nimport fastjac\n"


@pytest.mark.parametrize("title", NEEDS)
def test_the_example_runs_and_trains(title: str) -> None:
    if NEEDS[title]:
        pytest.importorskip(NEEDS[title], reason=f"{NEEDS[title]} is not installed")
    torch.manual_seed(0)
    model, x = small_conv(), images(16, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    data = torch.utils.data.TensorDataset(x, torch.arange(16) % 4)
    space = {
        "model": model,
        "loader": torch.utils.data.DataLoader(data, batch_size=4),
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-4),
    }
    blocks = re.findall(r"^```python\n(.*?)^```$", SECTIONS[title], re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(COMMON + block, f"loops.md, {title}", "exec"), space)
    assert any(not torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_every_section_with_an_example_is_run() -> None:
    assert {t for t, text in SECTIONS.items() if "```python" in text} == set(NEEDS)
