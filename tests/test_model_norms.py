"""Norms held at a reference's scale."""

from __future__ import annotations

import families
import pytest
import torch
from torch import nn

import crosspatch as cp
from crosspatch.errors import ModelError
from crosspatch.model.norms import frozen_norm


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 16, generator=draw, dtype=torch.float64) * 3 + 1
    return x.to(dtype), torch.randn(2, 3, 16, generator=draw, dtype=torch.float64).to(dtype)


def layer_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(16).double()
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(1))
        norm.bias.normal_(generator=torch.Generator().manual_seed(2))
    return norm


@torch.no_grad()
def test_layer_norm_keeps_the_scale_of_the_reference_and_the_mean_of_the_input():
    norm, (ref, x) = layer_norm(), inputs()
    scale = (ref.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
    expected = (x - x.mean(-1, keepdim=True)) * scale * norm.weight + norm.bias
    torch.testing.assert_close(frozen_norm(norm, ref)(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(frozen_norm(norm, ref)(ref), norm(ref), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2", "qwen3", "gpt_neox"])
@torch.no_grad()
def test_norms_of_real_families_are_affine_once_frozen(family):
    cls, config = families.FAMILIES[family]()
    torch.manual_seed(0)
    model = cp.load(cls(config).double().eval(), name=family)
    for name, parameter in model.hf.named_parameters():
        if parameter.dim() == 1:
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    draw = torch.Generator().manual_seed(3)
    ref, x, y = (torch.randn(4, model.shape.d_model, generator=draw, dtype=torch.float64) for _ in range(3))
    block = model.anatomy.blocks[0]
    for norm in (block.norm_attn_in, block.norm_mlp_in, block.norm_attn_out, block.norm_mlp_out,
                 model.anatomy.final_norm):  # fmt: skip
        frozen = frozen_norm(norm, ref)
        torch.testing.assert_close(frozen(ref), norm(ref), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(frozen(x) + frozen(y) - frozen(ref), frozen(x + y - ref), rtol=1e-9, atol=1e-9)


def test_gradients_pass_the_map_and_not_the_scale():
    norm, (ref, x) = layer_norm(), inputs()
    frozen = frozen_norm(norm, ref)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(frozen(x)[0, 0, 3], x)
    expected = frozen(x.detach() + torch.eye(16).double()[5] * 1e-3)[0, 0, 3] - frozen(x.detach())[0, 0, 3]
    assert float(grad[0, 0, 5]) == pytest.approx(float(expected) / 1e-3, rel=1e-6)


@torch.no_grad()
def test_half_precision_and_zero_inputs():
    ref, x = inputs(torch.bfloat16)
    norm = nn.RMSNorm(16, eps=1e-6).bfloat16()
    exact = x.float() / ref.float().pow(2).mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(frozen_norm(norm, ref)(x).float(), exact, rtol=0.03, atol=0.03)
    assert frozen_norm(norm, torch.zeros_like(ref))(x).isfinite().all()


@pytest.mark.parametrize("other", [nn.Tanh(), nn.Softmax(-1), lambda x: x.flip(-1)])
def test_what_is_no_norm_is_refused(other):
    with pytest.raises(ModelError, match="no norm of each token"):
        frozen_norm(other, inputs()[0])
