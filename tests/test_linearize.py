"""The linearisation: rows for any seeds, errors that name the node, one warning."""

from __future__ import annotations

import subprocess
import sys
import warnings

import oracle
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from checks import assert_close, assert_same, leaf_and_logits
from nets import images, small_conv
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastjac
from fastjac import checks, native, reference, workspace
from fastjac.rules.gated import GatedLayer
from fastjac.rules.outputs import Reader

DOUBLE = torch.float64


def test_rows_for_shared_seeds_are_combinations_of_the_jacobian(path: str) -> None:
    model = small_conv().double()
    leaf, logits = leaf_and_logits(model, images())
    seeds = torch.randn(3, 4, dtype=DOUBLE)
    jacobian = torch.stack(oracle.rows(logits, leaf), 1)
    expected = torch.einsum("rk,nk...->nr...", seeds, jacobian)
    got = fastjac.pull(fastjac.linearize(logits, leaf), seeds)
    assert_same((got * got).sum(), (expected * expected).sum(), model)
    assert_close(got, expected, DOUBLE, "rows")


def test_rows_for_seeds_of_each_sample(path: str) -> None:
    model = small_conv().double()
    leaf, logits = leaf_and_logits(model, images())
    seeds = torch.randn(5, 3, 4, dtype=DOUBLE)
    jacobian = torch.stack(oracle.rows(logits, leaf), 1)
    expected = torch.einsum("nrk,nk...->nr...", seeds, jacobian)
    got = fastjac.pull(fastjac.linearize(logits, leaf), seeds)
    assert_close(got, expected, DOUBLE, "rows")
    assert_close(reference.pull(logits, leaf, seeds), expected, DOUBLE, "reference")


@pytest.mark.parametrize("shape", [(3, 4), (5, 3, 4)], ids=["shared", "per sample"])
def test_seeds_receive_their_gradient(shape: tuple[int, ...], path: str) -> None:
    model = small_conv().double()
    leaf, logits = leaf_and_logits(model, images())
    seeds = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    jacobian = torch.stack(oracle.rows(logits, leaf), 1)
    expanded = seeds.expand(5, 3, 4)
    expected = torch.einsum("nrk,nk...->nr...", expanded, jacobian)
    weighting = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad((weighting * expected).sum(), seeds)
    got = fastjac.pull(fastjac.linearize(logits, leaf), seeds)
    (found,) = torch.autograd.grad((weighting * got).sum(), seeds)
    assert_close(found, wanted, DOUBLE, "gradient of the seeds")


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return u * u

    @staticmethod
    def backward(ctx, upstream: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return 2 * u * upstream


class Layer(nn.Module):
    """A layer from a function, with one parameter of 6 entries, `gamma`."""

    def __init__(self, function) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(6) + 0.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.gamma)


def scaled_slice(x: Tensor, gamma: Tensor) -> Tensor:
    out = x * 1.0
    out[:, :3] *= gamma[:3]
    return out


def tanh_on_slice(x: Tensor, gamma: Tensor) -> Tensor:
    out = x * gamma
    out[:, :3].tanh_()
    return out


def attention(x: Tensor, gamma: Tensor) -> Tensor:
    tokens = (x * gamma).unflatten(1, (3, 2))
    with sdpa_kernel(SDPBackend.MATH):  # which autograd differentiates twice everywhere
        return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


# What need not have a rule: whether it runs fused or falls back, it must be right.
ANYTHING = {
    "square": lambda x, g: (g * x) ** 2,
    "x times x": lambda x, g: g * x * x,
    "quotient": lambda x, g: x / (1 + (g * x).abs()),
    "sin": lambda x, g: torch.sin(g * x),
    "log of exp": lambda x, g: torch.logsumexp(g * x, 1, keepdim=True) + x,
    "norm": lambda x, g: F.normalize(g * x, dim=1),
    "softmax": lambda x, g: F.softmax(g * x, dim=1),
    "log softmax": lambda x, g: F.log_softmax(g * x, dim=1),
    "layer norm": lambda x, g: F.layer_norm(x, (6,), g),
    "group norm": lambda x, g: F.group_norm(x, 2, g),
    "glu": lambda x, g: torch.cat([F.glu(g * x), F.glu(x)], 1),
    "attention": attention,
    "custom function": lambda x, g: Square.apply(g * x),
    "learnt factor on a slice": scaled_slice,
    "smooth activation in place on a slice": tanh_on_slice,
    "learnt matrix times outer product": lambda x, g: torch.bmm(
        x.unsqueeze(2), g.expand(len(x), 1, 6)
    ).sum(1),
    "product with a tensor that is computed from x": lambda x, g: (
        x * torch.sigmoid(g * x)
    ),
    "product": lambda x, g: (g * x).cumprod(1),
    "sort": lambda x, g: (g * x).sort(1).values,
    "top k": lambda x, g: (g * x).topk(6, 1).values,
    "cumulative sum": lambda x, g: (g * x).cumsum(1),
    "median": lambda x, g: x - (g * x).median(1, keepdim=True).values,
    "checkpointed": lambda x, g: torch.utils.checkpoint.checkpoint(
        lambda u: (g * u).relu(), x, use_reentrant=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("reduction", ["frobenius", "none"])
@pytest.mark.parametrize("name", ANYTHING)
@pytest.mark.filterwarnings("ignore:fastjac has no fused rule")
def test_what_has_no_rule_is_never_wrong(name: str, reduction: str) -> None:
    model = nn.Sequential(
        nn.Linear(5, 6), Layer(ANYTHING[name]), nn.Linear(6, 6), nn.ReLU(),
        nn.Linear(6, 3),
    ).double()  # fmt: skip
    x = torch.randn(4, 5, dtype=DOUBLE)
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.reduce(oracle.jacobian_squares(logits, leaf), reduction)
    got = fastjac.jacobian_penalty(model, x, reduction=reduction)
    assert_same(got, expected, model)


class Cumprod(nn.Module):
    """An operation without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumprod(1)


def without_rule() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), Cumprod(), nn.Linear(6, 3)).double()


def test_a_fallback_warns_once_and_names_node_and_line() -> None:
    """In a process of its own, because the warning comes once a process."""
    program = (
        "import torch, warnings, fastjac\n"
        "class Odd(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.cumprod(x, 1)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(5, 6), Odd())\n"
        "warnings.simplefilter('always')\n"
        "for _ in range(3):\n"
        "    fastjac.jacobian_penalty(model, torch.randn(4, 5))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no fused rule") == 1, done.stderr
    assert "CumprodBackward" in done.stderr
    assert "line 4" in done.stderr


def test_fused_refuses_what_has_no_rule_and_names_it() -> None:
    with pytest.raises(NotImplementedError, match=r"CumprodBackward.*test_linearize"):
        fastjac.jacobian_penalty(
            nn.Sequential(nn.Linear(5, 6), Layer(lambda x, g: x.cumprod(1))),
            torch.randn(4, 5),
            backend="fused",
        )


def test_the_autograd_backend_never_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastjac.jacobian_penalty(
            without_rule(), torch.randn(4, 5, dtype=DOUBLE), backend="autograd"
        )


def test_no_rule_warns_when_all_layers_have_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastjac.jacobian_penalty(small_conv(), images(dtype=torch.float32))


def test_explain_says_how_each_layer_runs() -> None:
    text = str(fastjac.explain(small_conv(), images(dtype=torch.float32)))
    for word in ("Conv", "MaxPool", "Linear", "fused"):
        assert word.lower() in text.lower()


class Residual(nn.Module):
    """A block whose ReLU stands behind the sum with its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        block = F.relu(self.first(x))
        return self.head(F.relu(block + self.second(block)).flatten(1))


def test_the_gate_behind_a_sum_is_joined_with_the_layer_before_it(path: str) -> None:
    model = Residual().double()
    x = torch.randn(3, 2, 6, 6, dtype=DOUBLE)
    if fastjac.native.available():
        layers = [s.rule for s in fastjac.explain(model, x).steps if s.weights]
        assert layers[:2] == ["Convolution + Gate"] * 2
    leaf, logits = leaf_and_logits(model, x)
    expected = sum((row * row).sum() for row in oracle.rows(logits, leaf))
    got = fastjac.jacobian_penalty(model, x, reduction="sum", backend="fused")
    assert_same(got, expected, model)


def test_pixels_in_no_window_of_an_average_pool_are_dead(path: str) -> None:
    """Whatever lent memory holds: a list has to say so of every pixel."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(3 * 4, 4),
    ).double()
    x = torch.randn(3, 1, 5, 5, dtype=DOUBLE)
    leaf, logits = leaf_and_logits(model, x)
    expected = sum((row * row).sum() for row in oracle.rows(logits, leaf))
    for _ in range(2):  # the second time in memory that the first one leaves
        got = fastjac.jacobian_penalty(model, x, reduction="sum", backend="fused")
        assert_same(got, expected, model)
        for block in workspace.lists.free:
            block.zero_()


def test_explain_names_what_falls_back_and_why() -> None:
    model = without_rule()
    text = str(fastjac.explain(model, torch.randn(4, 5, dtype=DOUBLE)))
    assert "Cumprod" in text
    assert "autograd" in text


def test_a_fallback_names_the_module_the_line_and_the_caller() -> None:
    inner = nn.Sequential(nn.Linear(5, 4), Cumprod())
    model = nn.Sequential(inner, nn.Linear(4, 3))
    x = torch.randn(2, 5)
    with pytest.raises(NotImplementedError) as caught:
        fastjac.jacobian_penalty(model, x, backend="fused")
    assert "CumprodBackward0" in str(caught.value)
    assert "in module 0.1 (Cumprod)" in str(caught.value)
    assert f'computed at File "{__file__}"' in str(caught.value)
    assert not model[0][1]._forward_hooks and not model[0][1]._forward_pre_hooks
    checks._said.clear()
    with pytest.warns(UserWarning, match=r"module 0\.1 \(Cumprod\)") as record:
        fastjac.jacobian_penalty(model, x)
    assert record[0].filename == __file__


class Shortcut(nn.Module):
    """Rows of one activation are read by a convolution and by the sum around it."""

    def __init__(self, shortcut_first: bool) -> None:
        super().__init__()
        self.shortcut_first = shortcut_first
        self.before = nn.Conv2d(1, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.before(x))
        b = self.outer(F.relu(self.inner(a)))
        joined = a + b if self.shortcut_first else b + a
        return self.head(F.relu(joined).flatten(1))


@pytest.mark.skipif(not native.available(), reason="needs the native kernels")
@pytest.mark.parametrize("shortcut_first", [False, True])
def test_tangents_are_laid_out_for_the_gated_layer_beside_a_shortcut(
    shortcut_first: bool,
) -> None:
    torch.manual_seed(1)  # few enough gates open that the sum's are moved
    model = Shortcut(shortcut_first)
    leaf, logits = leaf_and_logits(model, torch.randn(2, 1, 6, 6))
    (before,) = (
        rule
        for rule in fastjac.linearize(logits, leaf).rules
        if isinstance(rule, GatedLayer) and rule.weights[0] is model.before.weight
    )
    assert before.reader is Reader.GATED
