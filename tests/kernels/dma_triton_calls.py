"""What the tests of dma/triton call, in their own process on a card or in a child's under Triton's interpreter.

Triton decides at import whether kernels are interpreted, for the whole process. So on a CPU a child runs this file with
TRITON_INTERPRET=1: it reads (name, arguments) from its standard input and writes what the function returns, pickled.
"""

import pickle
import sys
import traceback
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import torch
from triton.runtime import interpreter

from dmabench.kernels import Plan, Problem, dma_triton, dynamic_mask_attention, make_plan, registry
from dmabench.kernels.dma_triton import configs


@contextmanager
def _poisoned():
    """Whatever is allocated starts as NaN: an element that no kernel writes shows."""
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(make):
        def allocate(*args, **options):
            made = make(*args, **options)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return allocate

    with patch.object(torch, "empty", poisoned(empty)), patch.object(torch, "empty_like", poisoned(empty_like)):
        yield


@contextmanager
def _large_blocks():
    """Interpreted, every block costs the same: fp32 takes the larger ones of half precision."""
    with patch.object(configs, "_FLOAT", configs._HALF):
        yield


def attend(
    tensors, window, *, key_mask=None, scale=None, gathers=None, dout=None, shipped=False, blocks=None, device="cpu"
):
    """out and lse, then the gradients if there is a dout, and all their strides.

    Args:
        shipped: with the block sizes that fp32 has on a card, also where kernels are interpreted.
        blocks: the configuration of the forward, of queries and of keys, as tuples, in place of any table's.
    """
    q, k, v, delta = (x.to(device).requires_grad_(dout is not None) for x in tensors)
    key_mask = None if key_mask is None else key_mask.to(device)
    if blocks is not None:
        chosen = configs.forced(configs.Configs(*(configs.Config(*one) for one in blocks)))
    else:
        chosen = nullcontext() if shipped or device == "cuda" else _large_blocks()
    with chosen, _poisoned(), patch.object(Plan, "gathers", Plan.gathers if gathers is None else gathers):
        plan = make_plan(delta, window, key_mask=key_mask, query_len=q.shape[2])
        out, lse = dynamic_mask_attention(
            q, k, v, delta, window, scale=scale, plan=plan, backend="triton", return_lse=True
        )
        found = [out, lse]
        if dout is not None:
            found += torch.autograd.grad(out, (q, k, v, delta), dout.to(device))
    assert not lse.requires_grad
    return [x.detach().cpu() for x in found], [x.stride() for x in found]


def executed_pairs(delta, window, groups, gathers, head_dim, query_len, dtype, device="cpu"):
    with patch.object(Plan, "gathers", gathers):
        plan = make_plan(delta.to(device), window, query_len=query_len)
        B, G, T = delta.shape
        problem = Problem(device, dtype, B, G * groups, G, query_len, T, head_dim, window, backward=False)
        return registry.get("dma/triton").executed_pairs(plan=plan, problem=problem)


def refusals(device="cpu"):
    """For fp32, fp16, bf16 and float64 at head dimension 64, then fp32 at 257."""
    backend = registry.get("dma/triton")
    asked = [(x, 64) for x in (torch.float32, torch.float16, torch.bfloat16, torch.float64)] + [(torch.float32, 257)]
    return [backend.refusal(Problem(device, dtype, 1, 2, 1, 32, 32, D, 4, True)) for dtype, D in asked]


def _arguments(gathers, device):
    """Of the operator, with what a backward needs."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 70, 16, generator=generator).to(device) for heads in (2, 1, 1))
    delta = torch.randn(1, 1, 70, generator=generator).to(device)
    plan = make_plan(delta, 20)
    leaves = [x.requires_grad_() for x in (q, k, v, delta)]
    with patch.object(Plan, "gathers", gathers):
        return (*leaves, *dma_triton.structures(plan, delta, True, 16, q.dtype, 2), 0.25)


def opcheck(gathers, device="cpu"):
    arguments = _arguments(gathers, device)
    torch.library.opcheck(torch.ops.dmabench.dma_triton_forward.default, arguments)
    out, _, relative_lse = dma_triton.ops.forward(*arguments)
    saved = [x.detach() if isinstance(x, torch.Tensor) else x for x in (out, *arguments[:-1], out, relative_lse)]
    torch.library.opcheck(torch.ops.dmabench.dma_triton_backward.default, (*saved, arguments[-1]))


def compiled(gathers, blocks, device="cpu"):
    """The largest difference that torch.compile makes to the outputs and gradients of a call, which it sees whole."""
    leaves = _arguments(gathers, device)[:4]
    plan = make_plan(leaves[3].detach(), 20)

    def function(q, k, v, delta):
        return dma_triton.attend(q, k, v, delta=delta, plan=plan, scale=0.25)

    torch.compiler.reset()  # how tiles are shared is a constant of what was compiled
    results, chosen = [], configs.Configs(*(configs.Config(*one) for one in blocks))
    with configs.forced(chosen), patch.object(Plan, "gathers", gathers):
        problem = Problem(device, torch.float32, 1, 2, 1, 70, 70, 16, 20, backward=True)
        dma_triton.prepare(plan=plan, delta=leaves[3], problem=problem)
        for call in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
            out, lse = call(*leaves)
            results.append([out, lse, *torch.autograd.grad(out.square().sum(), leaves)])
    return max(float((a - b).detach().abs().max()) for a, b in zip(*results, strict=True))


def _replace_once():
    """The interpreter replaces the functions of triton.language anew at each call of a device function, which takes
    half of its time. Here nothing is compiled, so that they need not be put back."""
    replace, done = interpreter._patch_lang, set()

    def replace_once(function):
        if function not in done:
            replace(function)
            done.add(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = replace_once


if __name__ == "__main__":
    _replace_once()
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            name, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        try:
            answer = (globals()[name](*args, **kwargs), None)
        except BaseException:
            answer = (None, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()
