"""What every method must pass.

Subclass ``MethodConformance`` in a test file and give it your method. The battery runs on a
miniature pipeline with random weights, so it takes seconds and needs no download.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from harness.bits import IDENTITY_WIDTH, BitSpec
from harness.errors import CalibrationForbiddenError
from harness.method import Method, QuantContext, QuantReport
from harness.models.families import family as family_by_name
from harness.models.families.base import target_linears
from harness.quant.artifact import load_artifact_
from harness.quant.calibration import CalibrationPool, Sample, record_pool
from harness.spec import GenSpec, Prompt
from harness.stages.quantize import quantize
from harness.stages.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import DiffusionPipeline

WORDS = (
    *("a", "on", "the", "to", "background", "red", "green", "blue", "yellow", "circle", "square"),
    *("triangle", "cross", "white", "black", "striped", "checkered", "moves", "moving", "left"),
    *("right", "up", "down", "grows", "shrinks", "rotates", "stands", "still"),
)
TINY_GEN = GenSpec(height=32, width=32, frames=9, fps=8, steps=4, guidance=4.0, max_text_tokens=8)
PROMPTS = (
    Prompt(id="c0", text="a red circle moving left on a white background"),
    Prompt(id="c1", text="a blue square grows"),
    Prompt(id="c2", text="the cross rotates"),
)


def tiny_pipeline(seed: int = 0) -> DiffusionPipeline:
    """Build a random-weight miniature ``CogVideoXPipeline``.

    Two blocks of two heads of 16, clips of 9 frames of 32x32, latents [1, 3, 4, 8, 8].
    """
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(seed)
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(f"▁{word}", -1.0) for word in sorted(set(WORDS))]
    length = TINY_GEN.max_text_tokens
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(vocab), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        temporal_compression_ratio=4, sample_height=32, sample_width=32, scaling_factor=1.0,
    )  # fmt: skip
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=8, text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8,
        sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=length,
    )  # fmt: skip
    with torch.no_grad():
        # Fresh modulation and output layers are nearly zero: every clip would look alike.
        for name, value in transformer.named_parameters():
            if value.ndim == 2:
                value.normal_(0.0, value.shape[1] ** -0.5)
            elif name.endswith("bias"):
                value.normal_(0.0, 0.02)
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipeline = CogVideoXPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=transformer,
        scheduler=scheduler,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.eval().requires_grad_(False)
    return pipeline


def _silent(fraction: float, text: str) -> None:
    """Discard progress."""


@dataclasses.dataclass(kw_only=True)
class Bench:
    """A miniature with recorded trajectories, and what a method makes of it.

    Attributes:
        pipeline: Full-precision pipeline.
        family: Name of its family.
        pool: Recorded trajectories.
        folder: Where artifacts go.
    """

    pipeline: DiffusionPipeline
    family: str
    pool: CalibrationPool
    folder: Path

    def output(self, transformer: nn.Module) -> Tensor:
        """Denoiser output at one sample of the pool."""
        with torch.no_grad():
            out: Tensor = transformer(**self.pool.call(Sample(1, 2)).arguments)[0]
        return out

    def error(self, transformer: nn.Module) -> float:
        """Relative squared error of the denoiser output against full precision."""
        exact = self.output(self.pipeline.transformer).double()
        difference = self.output(transformer).double() - exact
        return float(difference.square().sum() / exact.square().sum())

    def quantize(
        self, method: Method, options: dict[str, Any], bits: str, name: str
    ) -> tuple[nn.Module, Path, QuantReport]:
        """Quantize a copy; return it with its artifact folder and report."""
        out = self.folder / f"{method.name}-{bits}-{name}"
        out.mkdir()
        copied = copy.copy(self.pipeline)
        copied.register_modules(transformer=copy.deepcopy(self.pipeline.transformer))
        report = quantize(
            copied, method, bits=BitSpec.parse(bits), options=options, family=self.family,
            gen=TINY_GEN, pool=self.pool.folder if method.needs_calibration else None,
            seed=0, out=out, progress=_silent,
        )  # fmt: skip
        return copied.transformer, out, report


class MethodConformance:
    """The battery. A subclass gives ``method`` as a fixture, and ``options`` to make it quick."""

    @pytest.fixture(scope="class")
    @classmethod
    def method(cls) -> Method:
        """The method under test.

        Raises:
            NotImplementedError: The subclass did not override it.
        """
        raise NotImplementedError("override the fixture `method`")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> dict[str, Any]:
        """Options that keep the battery quick."""
        return {}

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, tmp_path_factory: pytest.TempPathFactory) -> Bench:
        """The miniature."""
        pipeline, folder = tiny_pipeline(), tmp_path_factory.mktemp("conformance")
        (folder / "pool").mkdir()
        pool = record_pool(
            pipeline, PROMPTS, TINY_GEN, seed=0, folder=folder / "pool", progress=_silent
        )
        return Bench(pipeline=pipeline, family="cogvideox", pool=pool, folder=folder)

    @pytest.fixture(scope="class")
    @classmethod
    def made(
        cls, bench: Bench, method: Method, options: dict[str, Any]
    ) -> tuple[nn.Module, Path, QuantReport]:
        """The miniature at w4a4."""
        return bench.quantize(method, options, "w4a4", "made")

    def test_identity_quantizers_leave_the_model_as_it_was(
        self, bench: Bench, method: Method, options: dict[str, Any]
    ) -> None:
        """At w16a16 only the transforms run, and they cancel."""
        transformer, _, _ = bench.quantize(method, options, "w16a16", "identity")
        assert bench.error(transformer) < 1e-9

    def test_eight_bits_are_closer_than_four(
        self,
        bench: Bench,
        method: Method,
        options: dict[str, Any],
        made: tuple[nn.Module, Path, QuantReport],
    ) -> None:
        """The error falls with the width, and is there at all."""
        eight, _, _ = bench.quantize(method, options, "w8a8", "eight")
        assert 0 < bench.error(eight) < bench.error(made[0])

    def test_the_artifact_is_what_was_declared(
        self, bench: Bench, made: tuple[nn.Module, Path, QuantReport]
    ) -> None:
        """Every target once, declared widths, at most 2^b levels, stable codes."""
        fresh = copy.copy(bench.pipeline)
        fresh.register_modules(transformer=copy.deepcopy(bench.pipeline.transformer))
        verify(fresh, made[1], family=bench.family, bits=BitSpec.parse("w4a4"), fresh=True)

    def test_a_loaded_artifact_computes_the_same_bits(
        self, bench: Bench, made: tuple[nn.Module, Path, QuantReport]
    ) -> None:
        """Save, load, compare bit for bit."""
        loaded = copy.deepcopy(bench.pipeline.transformer)
        load_artifact_(loaded, made[1])
        assert torch.equal(bench.output(loaded), bench.output(made[0]))

    def test_the_same_seed_gives_the_same_artifact(
        self,
        bench: Bench,
        method: Method,
        options: dict[str, Any],
        made: tuple[nn.Module, Path, QuantReport],
    ) -> None:
        """Nothing but the seed decides."""
        _, again, _ = bench.quantize(method, options, "w4a4", "again")
        for name in ("weights.safetensors", "artifact.json"):
            digests = [
                hashlib.sha256((f / name).read_bytes()).hexdigest() for f in (made[1], again)
            ]
            assert digests[0] == digests[1], name

    def test_nothing_is_pickled(self, made: tuple[nn.Module, Path, QuantReport]) -> None:
        """Only JSON, safetensors and pictures."""
        kinds = {path.suffix for path in made[1].rglob("*") if path.is_file()}
        assert kinds <= {".json", ".safetensors", ".png"}

    def test_the_report_names_every_target_and_what_was_spent(
        self,
        bench: Bench,
        method: Method,
        made: tuple[nn.Module, Path, QuantReport],
    ) -> None:
        """Complete by itself."""
        report = made[2]
        targets = target_linears(family_by_name(bench.family), bench.pipeline.transformer)
        assert {layer.name for layer in report.layers} == set(targets)
        for layer in report.layers:
            assert layer.w_bits == 4
            assert layer.a_bits == (IDENTITY_WIDTH if targets[layer.name].modulation else 4)
        assert report.execution
        assert (report.calibration_samples > 0) == method.needs_calibration
        assert (report.calibration_forwards > 0) == method.needs_calibration

    def test_data_free_is_enforced(self, bench: Bench, method: Method) -> None:
        """Touching calibration data is an error for a method that says it needs none."""
        ctx = QuantContext(
            bits=BitSpec.parse("w4a4"), options=method.Options(), device=torch.device("cpu"),
            family=family_by_name(bench.family), pool=bench.pool,
            data_free=not method.needs_calibration,
        )  # fmt: skip
        if method.needs_calibration:
            assert ctx.calibration is bench.pool
        else:
            with pytest.raises(CalibrationForbiddenError):
                _ = ctx.calibration
