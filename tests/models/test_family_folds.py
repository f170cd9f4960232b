"""Every fold of every family leaves the block's function alone, in double precision."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from harness.models.families import family_by_name
from harness.models.families.base import linear_at
from harness.models.families.fold import (
    fold_scale_,
    restore_modulation_scales_,
    scale_columns_,
)
from harness.models.families.fold_targets import TableFold, ValueFold

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, TEXT = 32, 5


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def hunyuan_dual() -> tuple[nn.Module, dict[str, Any]]:
    from diffusers.models.transformers.transformer_hunyuan_video import (
        HunyuanVideoTransformerBlock,
    )

    return HunyuanVideoTransformerBlock(2, 16, 2.0), hunyuan_arguments()


def hunyuan_single() -> tuple[nn.Module, dict[str, Any]]:
    from diffusers.models.transformers.transformer_hunyuan_video import (
        HunyuanVideoSingleTransformerBlock,
    )

    return HunyuanVideoSingleTransformerBlock(2, 16, 2.0), hunyuan_arguments()


def hunyuan15() -> tuple[nn.Module, dict[str, Any]]:
    from diffusers.models.transformers.transformer_hunyuan_video15 import (
        HunyuanVideo15TransformerBlock,
    )

    mask = torch.ones(2, TEXT, dtype=torch.bool)
    mask[0, -2:] = False
    return HunyuanVideo15TransformerBlock(2, 16, 2.0), {
        **hunyuan_arguments(),
        "attention_mask": mask,
    }


def hunyuan_arguments() -> dict[str, Any]:
    mask = torch.ones(2, 1, 1, 7 + TEXT, dtype=torch.bool)
    mask[..., -2:] = False
    return {
        "hidden_states": draw(2, 7, WIDTH),
        "encoder_hidden_states": draw(2, TEXT, WIDTH),
        "temb": draw(2, WIDTH),
        "attention_mask": mask,
    }


def wan() -> tuple[nn.Module, dict[str, Any]]:
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    return WanTransformerBlock(WIDTH, 48, 2, cross_attn_norm=True), {
        "hidden_states": draw(2, 7, WIDTH),
        "encoder_hidden_states": draw(2, TEXT, WIDTH),
        "temb": draw(2, 6, WIDTH),
        "rotary_emb": (torch.ones(1, 7, 1, 16).double(), torch.zeros(1, 7, 1, 16).double()),
    }


def wan_with_a_timestep_a_token() -> tuple[nn.Module, dict[str, Any]]:
    block, arguments = wan()
    return block, {**arguments, "temb": draw(2, 7, 6, WIDTH)}


def ltx() -> tuple[nn.Module, dict[str, Any]]:
    from diffusers.models.transformers.transformer_ltx import LTXVideoTransformerBlock

    return LTXVideoTransformerBlock(WIDTH, 2, 16, WIDTH), {
        "hidden_states": draw(2, 7, WIDTH),
        "encoder_hidden_states": draw(2, TEXT, WIDTH),
        "temb": draw(2, 1, 6 * WIDTH),
    }


def latte_spatial() -> tuple[nn.Module, dict[str, Any]]:
    return latte_block(WIDTH), {
        "hidden_states": draw(6, 7, WIDTH),
        "encoder_hidden_states": draw(6, TEXT, WIDTH),
        "timestep": draw(6, 6 * WIDTH),
    }


def latte_temporal() -> tuple[nn.Module, dict[str, Any]]:
    return latte_block(None), {
        "hidden_states": draw(14, 3, WIDTH),
        "timestep": draw(14, 6 * WIDTH),
    }


def latte_block(cross: int | None) -> nn.Module:
    from diffusers.models.attention import BasicTransformerBlock

    return BasicTransformerBlock(
        WIDTH, 2, 16, cross_attention_dim=cross, activation_fn="gelu-approximate",
        attention_bias=True, norm_type="ada_norm_single", norm_elementwise_affine=False,
    )  # fmt: skip


BLOCKS: dict[str, tuple[str, Callable[[], tuple[nn.Module, dict[str, Any]]], float]] = {
    "hunyuan dual": ("hunyuanvideo", hunyuan_dual, 1e-10),
    "hunyuan single": ("hunyuanvideo", hunyuan_single, 1e-10),
    "hunyuan 1.5": ("hunyuanvideo15", hunyuan15, 1e-10),
    "wan": ("wan", wan, 1e-6),  # its norms and modulation run in single precision
    "wan, a timestep a token": ("wan", wan_with_a_timestep_a_token, 1e-6),
    "ltx": ("ltx", ltx, 1e-10),
    "latte spatial": ("latte", latte_spatial, 1e-10),
    "latte temporal": ("latte", latte_temporal, 1e-10),
}


def build(name: str) -> tuple[Any, nn.Module, dict[str, Any], float]:
    facts, make, tolerance = BLOCKS[name]
    torch.manual_seed(0)
    block, arguments = make()
    block = block.double().eval().requires_grad_(False)
    for value in block.parameters():
        nn.init.normal_(value, std=0.2)
    return family_by_name(facts), block, arguments, tolerance


@torch.no_grad()
def run(block: nn.Module, arguments: dict[str, Any]) -> Tensor:
    out = block(**arguments)
    return torch.cat(out, 1) if isinstance(out, tuple) else out


def inputs_of(block: nn.Module, names: tuple[str, ...], arguments: dict[str, Any]) -> list[Tensor]:
    seen: list[Tensor] = []
    handles = [
        block.get_submodule(n).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        for n in names
    ]
    run(block, arguments)
    for handle in handles:
        handle.remove()
    return seen


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


CASES = [
    (name, group.name)
    for name in BLOCKS
    for facts, block, _, _ in [build(name)]
    for group in facts.groups(block)
    if group.fold is not None
]


@pytest.mark.parametrize(("name", "which"), CASES)
def test_a_fold_divides_the_input_and_keeps_the_function(name: str, which: str) -> None:
    facts, block, arguments, tolerance = build(name)
    group = next(g for g in facts.groups(block) if g.name == which)
    width = linear_at(block, group.linears[0]).in_features
    scale = draw(width, seed=5).abs() * 4 + 0.1
    before, seen = run(block, arguments), inputs_of(block, group.linears, arguments)
    rest = fold_scale_(block, group, scale)
    assert relative(run(block, arguments), before) < tolerance
    folded = torch.ones_like(scale) if rest is None else rest
    for new, old in zip(inputs_of(block, group.linears, arguments), seen, strict=True):
        assert relative(new, old / (scale / folded)) < max(tolerance, 1e-6)


@pytest.mark.parametrize("name", BLOCKS)
def test_all_folds_together_keep_the_function(name: str) -> None:
    facts, block, arguments, tolerance = build(name)
    before = run(block, arguments)
    for i, group in enumerate(facts.groups(block)):
        if group.fold is not None:
            width = linear_at(block, group.linears[0]).in_features
            fold_scale_(block, group, draw(width, seed=i).abs() * 4 + 0.1)
    assert relative(run(block, arguments), before) < tolerance


def test_only_the_attention_half_of_the_single_output_is_folded() -> None:
    facts, block, arguments, _ = build("hunyuan single")
    group = next(g for g in facts.groups(block) if g.name == "attn_ff_out")
    assert isinstance(group.fold, ValueFold)
    scale = draw(3 * WIDTH).abs() + 0.5
    before, weight = run(block, arguments), linear_at(block, "proj_out").weight.clone()
    rest = fold_scale_(block, group, scale)
    assert rest is not None
    assert bool((rest[:WIDTH] == 1).all())
    assert torch.equal(rest[WIDTH:], scale[WIDTH:])
    assert torch.equal(linear_at(block, "proj_out").weight[:, WIDTH:], weight[:, WIDTH:])
    # what is left goes in front of the linear, as a method puts it there
    scale_columns_(linear_at(block, "proj_out"), rest)
    handle = block.get_submodule("proj_out").register_forward_pre_hook(lambda m, a: a[0] / rest)
    assert relative(run(block, arguments), before) < 1e-10
    handle.remove()


def test_every_linear_of_a_block_is_named_once() -> None:
    for name in BLOCKS:
        facts, block, _, _ = build(name)
        named = [linear for group in facts.groups(block) for linear in group.linears]
        actual = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
        assert sorted(named) == sorted(actual), name


def test_a_table_alone_could_not_take_the_scale() -> None:
    """Folding into the block's table without the shared part is wrong: why the hook is there."""
    facts, block, arguments, _ = build("wan")
    before = run(block, arguments)
    group = next(g for g in facts.groups(block) if g.name == "attn_in")
    fold_scale_(block, group, torch.full((WIDTH,), 3.0))
    block._forward_pre_hooks.clear()
    assert relative(run(block, arguments), before) > 1e-2


@pytest.mark.parametrize("name", ["wan", "ltx", "latte spatial"])
def test_a_copied_block_scales_by_its_own_copy(name: str) -> None:
    facts, block, arguments, tolerance = build(name)
    before = run(block, arguments)
    group = next(g for g in facts.groups(block) if isinstance(g.fold, TableFold))
    fold_scale_(block, group, draw(WIDTH).abs() + 0.5)
    copied = copy.deepcopy(block)
    block.get_submodule("modulation_scale").factor.fill_(7.0)
    assert relative(run(copied, arguments), before) < tolerance
    positional = list(arguments.values())
    if name == "ltx":  # whose arguments stand in the order of its signature
        with torch.no_grad():
            assert relative(copied(*positional), before) < tolerance


def test_a_saved_modulation_scale_is_put_back_and_does_not_add_hooks() -> None:
    from harness.testing.conformance import MINIATURES

    built = MINIATURES["wan"]().transformer
    fresh = copy.deepcopy(built)
    for _, block in family_by_name("wan").blocks(built):
        for group in family_by_name("wan").groups(block):
            if isinstance(group.fold, TableFold):
                width = linear_at(block, group.linears[0]).in_features
                fold_scale_(block, group, draw(width).abs().float() + 0.5)
    saved = built.state_dict()
    restore_modulation_scales_(fresh, saved)
    restore_modulation_scales_(fresh, saved)
    assert set(fresh.state_dict()) == set(saved)
    fresh.load_state_dict(saved)
    arguments = {
        "hidden_states": draw(1, 4, 3, 4, 4).float(),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": draw(1, 8, 16).float(),
        "return_dict": False,
    }
    with torch.no_grad():
        assert torch.equal(fresh(**arguments)[0], built(**arguments)[0])
