"""Fused attention, of which autograd has no second derivative, equals its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import assert_same, leaf_and_logits
from oracle import jacobian_squares
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastjac

DOUBLE = torch.float64
KEYS = torch.randn(3, 2, 5, 4, dtype=DOUBLE, generator=torch.manual_seed(5))
BIAS = torch.randn(5, 5, dtype=DOUBLE, generator=torch.manual_seed(6))
LOWER = torch.ones(5, 5, dtype=torch.bool).tril()

# Of queries, keys and values (3 samples, 2 heads, 5 tokens, 4 features), all from x.
FORMS = {
    "self": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "with a scale": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "with a mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, LOWER),
    "with a bias": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, BIAS),
    "one tensor thrice": lambda q, k, v: F.scaled_dot_product_attention(v, v, v),
    "fewer queries": lambda q, k, v: F.scaled_dot_product_attention(q[:, :, :2], k, v),
    "constant keys": lambda q, k, v: F.scaled_dot_product_attention(q, KEYS, v),
    "constant queries": lambda q, k, v: F.scaled_dot_product_attention(KEYS, k, v),
    "constant values": lambda q, k, v: F.scaled_dot_product_attention(q, k, KEYS),
    "only values vary": lambda q, k, v: F.scaled_dot_product_attention(KEYS, KEYS, v),
}


class Attention(nn.Module):
    """Attention of 2 heads over 5 tokens, between linear layers."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.before = nn.Linear(6, 3 * 2 * 5 * 4)
        self.behind = nn.Linear(2 * 5 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.tanh(self.before(x)).view(len(x), 3, 2, 5, 4).unbind(1)
        out = FORMS[self.form](*tokens)
        return self.behind(
            F.pad(out.flatten(2), (0, 20 - out[0, 0].numel())).flatten(1)
        )


def expected_penalty(model: nn.Module, x: Tensor) -> Tensor:
    """The oracle, with attention made of operations that autograd differentiates."""
    with sdpa_kernel(SDPBackend.MATH):
        leaf, logits = leaf_and_logits(model, x)
    return jacobian_squares(logits, leaf).sum()


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("form", FORMS)
def test_fused_attention_equals_its_formula(form: str, chunk: int | None) -> None:
    model = Attention(form).to(DOUBLE)
    x = torch.randn(3, 6, dtype=DOUBLE)
    leaf, logits = leaf_and_logits(model, x)
    assert any("FlashAttentionForCpu" in name for name in node_names(logits))
    got = fastjac.penalty_from_graph(
        logits, leaf, reduction="sum", backend="fused", chunk=chunk
    )
    assert_same(got, expected_penalty(model, x), model)


@pytest.mark.parametrize("form", FORMS)
def test_attention_from_its_parts_equals_its_formula(form: str) -> None:
    model = Attention(form).to(DOUBLE)
    x = torch.randn(3, 6, dtype=DOUBLE)
    with sdpa_kernel(SDPBackend.MATH):
        got = fastjac.jacobian_penalty(model, x, reduction="sum", backend="fused")
    assert_same(got, expected_penalty(model, x), model)


class Encoder(nn.Module):
    """torch's own transformer layer over 5 tokens, and the mean of its tokens."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.before = nn.Linear(6, 8)
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, activation="gelu", batch_first=batch_first
        )
        self.behind = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.before(x)
        if self.batch_first:
            return self.behind(self.layer(tokens).mean(1))
        return self.behind(self.layer(tokens.transpose(0, 1)).mean(0))


@pytest.mark.parametrize("batch_first", [True, False])
def test_transformer_layer_of_torch(batch_first: bool) -> None:
    model = Encoder(batch_first).to(DOUBLE)
    x = torch.randn(4, 5, 6, dtype=DOUBLE)
    expected = expected_penalty(model, x)
    for chunk in (None, 1, 6):
        got = fastjac.jacobian_penalty(
            model, x, reduction="sum", backend="fused", chunk=chunk
        )
        assert_same(got, expected, model)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_of_torch(need_weights: bool) -> None:
    attention = nn.MultiheadAttention(6, 2, batch_first=True).to(DOUBLE)
    head = nn.Linear(6, 3).to(DOUBLE)
    model = nn.ModuleList([attention, head])
    x = torch.randn(4, 5, 6, dtype=DOUBLE)

    def forward(x: Tensor) -> Tensor:
        out, _ = attention(x, x.tanh(), x, need_weights=need_weights)
        return head(out.mean(1))

    with sdpa_kernel(SDPBackend.MATH):
        leaf = x.clone().requires_grad_()
        expected = jacobian_squares(forward(leaf), leaf).sum()
    got = fastjac.jacobian_penalty(forward, x, reduction="sum", backend="fused")
    assert_same(got, expected, model)


def test_dropout_inside_of_attention() -> None:
    """On a CPU torch makes it from its parts; on a GPU its mask is not saved."""
    x = torch.randn(3, 2, 5, 4, dtype=DOUBLE)

    def forward(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        out = F.scaled_dot_product_attention(x, x, x, dropout_p=0.4)
        return out.flatten(1)[:, :4]

    leaf = x.clone().requires_grad_()
    expected = jacobian_squares(forward(leaf), leaf).sum()
    got = fastjac.jacobian_penalty(forward, x, reduction="sum", backend="fused")
    assert torch.allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("reduction", ["frobenius", "none"])
def test_gradients_are_finite_differences_through_attention_norms_and_gelu(
    reduction: str,
) -> None:
    """No autograd graph is asked here: gradcheck perturbs the weights."""
    model = nn.Sequential(
        nn.LayerNorm(6), Attention("self"), nn.GELU(), nn.Softmax(1)
    ).to(DOUBLE)  # fmt: skip
    x = torch.randn(2, 6, dtype=DOUBLE)
    names = ["0.weight", "1.before.bias", "1.behind.weight", "1.behind.bias"]
    weights = [dict(model.named_parameters())[name] for name in names]

    def penalty(*values: Tensor) -> Tensor:
        def forward(x: Tensor) -> Tensor:
            return torch.func.functional_call(
                model, dict(zip(names, values, strict=True)), (x,)
            )

        return fastjac.jacobian_penalty(
            forward, x, reduction=reduction, backend="fused"
        )

    start = [weight.detach().clone().requires_grad_() for weight in weights]
    assert torch.autograd.gradcheck(penalty, start, fast_mode=True)


def node_names(logits: Tensor) -> set[str]:
    names, stack = set(), [logits.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in names:
            names.add(node.name())
            stack += [parent for parent, _ in node.next_functions]
    return names
