"""Layers against formulas written out here, token by token, in float64."""

import math

import pytest
import torch

from dmabench.kernels import registry
from dmabench.workload import layers
from dmabench.workload.attentions import Attention
from dmabench.workload.cells import Cell, Shape
from dmabench.workload.inputs import Inputs
from dmabench.workload.levels import Layer, level_of

T, WINDOW = 24, 7
SHAPE = Shape("fwd", "layer", T, 2, 4, 2, 16, "fp32", 0, "cpu")


def _layer(function: str, backend: str, window: int | None) -> Layer:
    cell = Cell(function, backend, SHAPE, window, "iid" if function == "dma" else None)
    layer = level_of(Attention(registry.get(f"{function}/{backend}"), cell), Inputs(SHAPE))
    assert isinstance(layer, Layer)
    return layer


def _rotated(x, position):
    """x [dims] turned by the angles of one position, pair by pair (i, i + dims / 2)."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = position * 10000.0 ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def _attended(queries, keys, values, bias, live, scale):
    """One head: [T, V] from lists of vectors; live(i, j) and bias[j]."""
    rows = []
    for i, q in enumerate(queries):
        chosen = [j for j in range(i + 1) if live(i, j)]
        weights = torch.stack([q @ keys[j] * scale + bias[j] for j in chosen]).softmax(0)
        rows.append(sum(weight * values[j] for weight, j in zip(weights, chosen, strict=True)))
    return torch.stack(rows)


def _of_keys_and_values(weights, hidden, bias_GT, live):
    """The layer of one row of the batch with query heads in pairs: hidden [T, C] -> [T, C]."""
    D, heads = 16, []
    for h in range(4):
        part, shared = slice(16 * h, 16 * h + 16), slice(16 * (h // 2), 16 * (h // 2) + 16)
        queries = [_rotated(weights["wq"][part] @ x, t) for t, x in enumerate(hidden)]
        keys = [_rotated(weights["wk"][shared] @ x, t) for t, x in enumerate(hidden)]
        values = [weights["wv"][shared] @ x for x in hidden]
        heads.append(_attended(queries, keys, values, bias_GT[h // 2], lambda i, j, g=h // 2: live(g, i, j), D**-0.5))
    return torch.stack([weights["wo"] @ torch.cat([head[t] for head in heads]) for t in range(T)])


def _computed(layer: Layer, plan=None):
    with torch.no_grad():
        return layer.forward(layer.leaves, plan)


def test_a_dense_layer_is_its_formula():
    layer = _layer("dense", "sdpa-math", None)
    weights = {name: x.double() for name, x in layer.leaves.items()}
    expected = _of_keys_and_values(weights, weights["hidden"][1], torch.zeros(2, T), lambda g, i, j: True)
    torch.testing.assert_close(_computed(layer)[1].double(), expected, rtol=0, atol=1e-5)


def test_a_dma_layer_attends_to_the_best_of_the_named_delta_with_it_as_bias():
    layer = _layer("dma", "reference", WINDOW)
    weights = {name: x.double() for name, x in layer.leaves.items()}
    delta = layer.inputs.delta("iid", WINDOW)[1].double()

    def live(g, i, j):
        return sum((delta[g, n], n) >= (delta[g, j], j) for n in range(i + 1)) <= WINDOW

    expected = _of_keys_and_values(weights, weights["hidden"][1], delta, live)
    found = _computed(layer, layer.inputs.plan("iid", WINDOW))[1]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_a_latent_layer_is_its_formula():
    layer = _layer("mla", "expanded", None)
    weights = {name: x.double() for name, x in layer.leaves.items()}
    hidden, dims = weights["hidden"][1], layer.attention.dims
    both = [weights["wkv"] @ x for x in hidden]
    latents = [x[: dims.latent] / (x[: dims.latent].square().mean() + 1e-6).sqrt() for x in both]
    shared = [_rotated(x[dims.latent :], t) for t, x in enumerate(both)]
    heads, N, R = [], dims.nope, dims.rope
    for h in range(4):
        asked = [weights["wq"][h * (N + R) : (h + 1) * (N + R)] @ x for x in hidden]
        queries = [torch.cat([q[:N], _rotated(q[N:], t)]) for t, q in enumerate(asked)]
        up = weights["up"][h * (N + dims.value) : (h + 1) * (N + dims.value)]
        keys = [torch.cat([up[:N] @ c, r]) for c, r in zip(latents, shared, strict=True)]
        values = [up[N:] @ c for c in latents]
        heads.append(_attended(queries, keys, values, [0.0] * T, lambda i, j: True, (N + R) ** -0.5))
    expected = torch.stack([weights["wo"] @ torch.cat([head[t] for head in heads]) for t in range(T)])
    torch.testing.assert_close(_computed(layer)[1].double(), expected, rtol=0, atol=1e-5)


def test_gates_are_a_sigmoid_of_the_hidden_states_three_a_head():
    layer = _layer("nsa", "reference", 48)
    weights = layer.leaves
    made = layers.project("nsa", weights, weights["hidden"], layer.all_tables, layer.attention.dims)
    expected = torch.sigmoid(weights["hidden"][1, 5] @ weights["wg"].T)
    torch.testing.assert_close(made["gates"][1, :, 5].flatten(), expected)


def test_the_importance_of_a_layer_is_computed_and_gets_the_gradient():
    """The named delta decides and weighs; what it would have changed reaches the weights of the computed one."""
    layer = _layer("dma", "reference", WINDOW)
    leaves = {name: x.detach().requires_grad_() for name, x in layer.leaves.items()}
    out = layer.forward(leaves, layer.inputs.plan("iid", WINDOW))
    grads = torch.autograd.grad(out, [leaves["weight"], leaves["gate"]], torch.randn_like(out))
    assert all(bool(grad.abs().sum() > 0) for grad in grads)


@pytest.mark.parametrize("dims", [8, 16])
def test_rotary_scores_depend_on_the_distance_alone(dims):
    q, k = torch.randn(2, dims, dtype=torch.float64)
    cos, sin = layers.rotary(torch.tensor([3, 10, 1003, 1010]), dims, torch.float64)
    turned = [layers.rotate(x, cos, sin) for x in (q, k)]
    near, far = turned[0][1] @ turned[1][0], turned[0][3] @ turned[1][2]
    torch.testing.assert_close(near, far)
    assert not torch.isclose(near, q @ k)


def test_every_layer_has_the_same_width_and_its_own_weights():
    for function, backend, window in (
        ("dense", "sdpa-math", None),
        ("nsa", "reference", 48),
        ("mla", "expanded", None),
    ):
        layer = _layer(function, backend, window)
        assert layer.leaves["hidden"].shape == (2, T, 64) and layer.out_shape == (2, T, 64)
        shapes = layers.weight_shapes(function, SHAPE, layer.attention.dims)
        assert {name: tuple(x.shape) for name, x in layer.weights.items()} == shapes
