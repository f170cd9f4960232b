"""Folding leaves the block's function alone and does to the shared input what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.models.families import family_by_name
from harness.models.families.fold import fold_scale_
from harness.models.outliers import FRACTION, plant_outliers_

FAMILY = family_by_name("cogvideox")


@pytest.fixture
def block() -> nn.Module:
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    torch.manual_seed(0)
    block = CogVideoXBlock(32, 2, 16, 24, attention_bias=True).double()
    for value in block.parameters():
        nn.init.normal_(value, std=0.2)
    return block.eval()


def run(block: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        video, text = block(draw(2, 10, 32), draw(2, 4, 32), draw(2, 24))
    return torch.cat([text, video], 1)


def inputs_of(block: nn.Module, name: str) -> Tensor:
    seen = []
    handle = block.get_submodule(name).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    run(block)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["attn_in", "attn_out", "ff_in"])
def test_a_fold_divides_the_input_and_keeps_the_function(block: nn.Module, name: str) -> None:
    group = next(g for g in FAMILY.groups(block) if g.name == name)
    before, seen = run(block), inputs_of(block, group.linears[0])
    scale = (
        torch.rand(32, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 9 + 0.1
    )
    fold_scale_(block, group, scale)
    torch.testing.assert_close(run(block), before, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(inputs_of(block, group.linears[0]), seen / scale)


def test_an_input_without_producer_is_refused(block: nn.Module) -> None:
    group = next(g for g in FAMILY.groups(block) if g.name == "ff_out")
    with pytest.raises(ValueError, match="no fold target"):
        fold_scale_(block, group, torch.ones(128))


def test_every_linear_of_a_block_is_named_once(block: nn.Module) -> None:
    named = [linear for group in FAMILY.groups(block) for linear in group.linears]
    actual = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    assert sorted(named) == sorted(actual)


def test_planted_outliers_keep_the_function_and_stand_out(block: nn.Module) -> None:
    model = nn.Module()
    model.transformer_blocks = nn.ModuleList([block])
    before = run(block)
    peaks = {n: inputs_of(block, n).abs().amax((0, 1)) for n in ("attn1.to_q", "ff.net.0.proj")}
    plant_outliers_(model, FAMILY)
    torch.testing.assert_close(run(block), before, rtol=1e-7, atol=1e-9)
    for name, peak in peaks.items():
        ratio = inputs_of(block, name).abs().amax((0, 1)) / peak
        planted = int((ratio > 14).sum())
        assert planted == max(1, round(FRACTION * 32))
        assert bool((ratio[ratio <= 14] < 1.001).all())


def test_a_latent_is_cut_into_the_patches_the_model_embeds() -> None:
    from types import SimpleNamespace

    latent = torch.arange(2 * 3 * 4 * 6).reshape(1, 2, 3, 4, 6)
    model = SimpleNamespace(config=SimpleNamespace(patch_size=2, patch_size_t=None))
    tokens = FAMILY.tokens(model, latent)
    assert tokens.shape == (2 * 2 * 3, 3 * 2 * 2)
    assert sorted(tokens[0].tolist()) == sorted(latent[0, 0, :, :2, :2].flatten().tolist())
