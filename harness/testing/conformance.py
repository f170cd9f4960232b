"""What every method must pass.

Subclass ``MethodConformance`` in a test file and give it your method; ``FamilyConformance`` is the
short form that runs it on another family. Both run on miniature pipelines with random weights, so
they take seconds and need no download.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from harness.artifact.quantize import quantize
from harness.artifact.verify import verify
from harness.bits import IDENTITY_WIDTH, BitSpec
from harness.errors import CalibrationForbiddenError, UnsupportedError
from harness.method import Method, QuantContext, QuantReport
from harness.models.block_input import Sample
from harness.models.families import family_by_name
from harness.models.families.base import target_linears
from harness.models.trajectories import CalibrationPool, record_pool
from harness.spec import Prompt
from harness.testing.miniatures import GENS, MINIATURES, TINY_GEN
from harness.testing.texts import WORDS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    "MINIATURES",
    "PROMPTS",
    "TINY_GEN",
    "WORDS",
    "Bench",
    "FamilyConformance",
    "MethodConformance",
    "tiny_pipeline",
    "widths_of",
]

PROMPTS = (
    Prompt(id="c0", text="a red circle moving left on a white background"),
    Prompt(id="c1", text="a blue square grows"),
    Prompt(id="c2", text="the cross rotates"),
)
NARROW = ("w4a4", "w4a6", "w4a8", "w4a16", "w8a8", "w8a16")
WIDE = ("w8a8", "w8a16")


def tiny_pipeline(seed: int = 0, family: str = "cogvideox") -> DiffusionPipeline:
    """Build the random-weight miniature of a family."""
    return MINIATURES[family](seed)


def widths_of(method: Method, family: str) -> tuple[str, ...]:
    """Widths a method is tested at, the narrow one first.

    They are the method's own ``widths`` where it has any, else the narrowest and the widest of the
    usual ones that it supports on the family.
    """
    own: tuple[str, ...] = getattr(method, "widths", ())

    def supported(names: tuple[str, ...]) -> list[str]:
        return [n for n in names if method.supports(family, BitSpec.parse(n)) is None]

    if own:
        return tuple(supported(own))
    narrow, wide = supported(NARROW)[:1], supported(WIDE)[:1]
    return tuple(dict.fromkeys(narrow + wide))


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
        unsupported = method.supports(self.family, BitSpec.parse(bits))
        if unsupported is not None:
            pytest.skip(f"{method.name} {bits} on {self.family}: {unsupported.reason}")
        out = Path(tempfile.mkdtemp(prefix=f"{method.name}-{bits}-{name}-", dir=self.folder))
        copied = copy.copy(self.pipeline)
        copied.register_modules(transformer=copy.deepcopy(self.pipeline.transformer))
        try:
            report = quantize(
                copied, method, bits=BitSpec.parse(bits), options=options, family=self.family,
                gen=GENS[self.family], pool=self.pool.folder if method.needs_calibration else None,
                seed=0, out=out, progress=_silent,
            )  # fmt: skip
        except UnsupportedError as cause:  # the miniature's widths are no real model's
            pytest.skip(f"{method.name} {bits} on {self.family}: {cause.message}")
        return copied.transformer, out, report

    def verify(self, artifact: Path, bits: str) -> nn.Module:
        """Check an artifact against what was declared; return the denoiser it was loaded into."""
        fresh = copy.copy(self.pipeline)
        fresh.register_modules(transformer=copy.deepcopy(self.pipeline.transformer))
        verify(fresh, artifact, family=self.family, bits=BitSpec.parse(bits), fresh=True)
        loaded: nn.Module = fresh.transformer
        return loaded


def make_bench(family: str, folder: Path) -> Bench:
    """Record the trajectories of a family's miniature in an empty folder."""
    pipeline = tiny_pipeline(family=family)
    (folder / "pool").mkdir()
    pool = record_pool(
        pipeline, PROMPTS, GENS[family], seed=0, folder=folder / "pool", progress=_silent
    )
    return Bench(pipeline=pipeline, family=family, pool=pool, folder=folder)


_BENCHES: dict[str, Bench] = {}


class FamilyConformance:
    """The short battery. A subclass gives ``method`` and ``family``, and ``options`` to be quick.

    Three things are made: the identity, the narrow and the wide width of ``widths_of``.
    """

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
    def family(cls) -> str:
        """The family it runs on."""
        return "cogvideox"

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, family: str, tmp_path_factory: pytest.TempPathFactory) -> Bench:
        """The miniature; its trajectories are recorded once for all methods."""
        if family not in _BENCHES:
            _BENCHES[family] = make_bench(family, tmp_path_factory.mktemp(family))
        return _BENCHES[family]

    @pytest.fixture(scope="class")
    @classmethod
    def widths(cls, method: Method, family: str) -> tuple[str, ...]:
        """Widths, the narrow one first; a method that supports none has nothing to pass."""
        found = widths_of(method, family)
        if not found:
            refused = method.supports(family, BitSpec.parse("w4a4"))
            pytest.skip(f"{method.name} on {family}: {refused.reason if refused else 'no width'}")
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def made(
        cls, bench: Bench, method: Method, options: dict[str, Any], widths: tuple[str, ...]
    ) -> tuple[nn.Module, Path, QuantReport]:
        """The miniature at the narrow width."""
        return bench.quantize(method, options, widths[0], "made")

    def test_identity_quantizers_leave_the_model_as_it_was(
        self, bench: Bench, method: Method, options: dict[str, Any]
    ) -> None:
        """At w16a16 only the transforms run, and they cancel."""
        transformer, _, _ = bench.quantize(method, options, "w16a16", "identity")
        assert bench.error(transformer) < 1e-9

    def test_more_bits_are_closer(
        self,
        bench: Bench,
        method: Method,
        options: dict[str, Any],
        made: tuple[nn.Module, Path, QuantReport],
        widths: tuple[str, ...],
    ) -> None:
        """The error falls with the width, and is there at all."""
        assert bench.error(made[0]) > 0
        if len(widths) == 1:
            pytest.skip(f"{method.name} has one width, {widths[0]}")
        wide, _, _ = bench.quantize(method, options, widths[1], "wide")
        assert 0 < bench.error(wide) < bench.error(made[0])

    def test_the_artifact_is_what_was_declared_and_loads_to_the_same_bits(
        self, bench: Bench, made: tuple[nn.Module, Path, QuantReport], widths: tuple[str, ...]
    ) -> None:
        """Every target once, declared widths, at most 2^b levels; then compared bit for bit."""
        loaded = bench.verify(made[1], widths[0])
        assert torch.equal(bench.output(loaded), bench.output(made[0]))


class MethodConformance(FamilyConformance):
    """The whole battery. A subclass gives ``method``, and ``options`` to make it quick."""

    def test_the_same_seed_gives_the_same_artifact(
        self,
        bench: Bench,
        method: Method,
        options: dict[str, Any],
        made: tuple[nn.Module, Path, QuantReport],
        widths: tuple[str, ...],
    ) -> None:
        """Nothing but the seed decides."""
        _, again, _ = bench.quantize(method, options, widths[0], "again")
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
        widths: tuple[str, ...],
    ) -> None:
        """Complete by itself; widths other than the nominal ones are explained."""
        report, bits = made[2], BitSpec.parse(widths[0])
        targets = target_linears(family_by_name(bench.family), bench.pipeline.transformer)
        assert {layer.name for layer in report.layers} == set(targets)
        for layer in report.layers:
            nominal = IDENTITY_WIDTH if targets[layer.name].modulation else bits.a
            assert report.mixed or (layer.w_bits, layer.a_bits) == (bits.w, nominal)
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
