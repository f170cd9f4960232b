"""The contract between the harness and a quantization method.

A method is an object found through the entry point group ``harness.methods``. It sees this contract
and the toolkit in ``harness.quant``, never the harness around it.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from harness.errors import CalibrationForbiddenError
from harness.options import NoOptions, build_options
from harness.spec import SIMULATED as SIMULATED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import nn

    from harness.bits import BitSpec
    from harness.models.families.base import Family
    from harness.models.trajectories import CalibrationPool
    from harness.store.kept import Kept

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsupported:
    """Why a method cannot run on a family, a width or this device; one line, shown in the table."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """One place where the implementation is not the paper's text.

    Attributes:
        kind: ``deviation`` (the paper says otherwise), ``reconstructed`` (the paper is silent or
            contradicts itself) or ``adaptation`` (the paper treats another kind of model).
        what: What is done here, and what the paper has.
        why: The reason.
    """

    kind: str
    what: str
    why: str


SAME_TARGETS = Deviation(
    kind="adaptation",
    what="every linear inside the blocks is quantized; modulation linears keep 16-bit activations "
    "and have no input transform; linears outside the blocks and attention products stay in high "
    "precision",
    why="the same target set for every method",
)
"""What a method differs in from its paper for being compared with others on the same layers."""

SAME_BUDGET = Deviation(
    kind="adaptation",
    what="calibrated on 40 (prompt, timestep) samples: 10 equally spaced timesteps x 4 prompts, "
    "one guidance branch each, in turn within a timestep, text and video tokens alike",
    why="the same calibration budget for every method",
)
"""What a method differs in from its paper for being fitted on what the others are fitted on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reproduction:
    """Where a method comes from and how far this implementation can be held against it.

    Attributes:
        title: Title of the paper.
        source: arXiv number or venue.
        code: Whether and where the authors released code.
        rows: Published rows one would hold ours against, each as a printed line with its table.
        deviations: Every known difference.
    """

    title: str
    source: str
    code: str
    rows: tuple[str, ...] = ()
    deviations: tuple[Deviation, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """What became of one linear.

    Attributes:
        name: Qualified module name.
        w_bits: Weight bits, averaged over the sampling steps where a step policy changes them.
        a_bits: Activation bits, averaged likewise.
        group: Input-channel group size of the weight grid, 0 for per output channel.
        symmetric: Whether the weight grid is symmetric.
        transform: ``none``, ``scale``, ``hadamard-128``, ``kronecker-16x16``, ... joined by ``+``.
        parameters: Number of weights.
        error: Relative output error ||y_q - y||^2 / ||y||^2 that the rounding of the weight causes
            on calibration inputs, None if not measured.
    """

    name: str
    w_bits: float
    a_bits: float
    group: int
    symmetric: bool
    transform: str
    parameters: int
    error: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantReport:
    """What a method did; everything in it is shown or stored with the artifact.

    Attributes:
        execution: ``simulated``, ``kernel:<name>`` (low-bit products), or ``dequantize:<library>``
            (few bits stored, products in floating point).
        layers: One entry for each quantized linear.
        calibration_clips: Prompts whose trajectories were recorded.
        calibration_forwards: Denoiser evaluations spent, each guidance branch counted: the pool,
            the passes that gather statistics, and the training steps.
        calibration_samples: (prompt, timestep) samples the method was fitted on.
        seconds: Wall time of the calibration.
        peak_bytes: Peak resident or device memory of the calibration.
        notes: Anything a reader of the table must know, one line each.
        curves: Named series (loss curves, token mass, chosen timesteps) kept with the artifact.
        mixed: Why layers or steps differ from the nominal widths, one line under the table; empty
            where every layer has them. Verification holds each layer to the label unless this is
            set, and to the report always.
        parts: Seconds by part of the calibration (``QuantContext.part``), with the rest as
            ``other``; of a calibration that was ended and went on, those since then.
    """

    execution: str
    layers: tuple[LayerReport, ...]
    calibration_clips: int = 0
    calibration_forwards: int = 0
    calibration_samples: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    notes: tuple[str, ...] = ()
    curves: dict[str, list[float]] = field(default_factory=dict)
    mixed: str = ""
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a calibration computes besides the trajectories, counted before it starts.

    Attributes:
        samples: (prompt, timestep) samples, one guidance branch each unless ``branches`` is both.
        passes: Passes of the samples through every block, forward alone, the walk's own counted in.
        steps: Training steps of every block, one sample each, forward and backward.
        denoiser_passes: Evaluations of the whole denoiser, forward alone.
        denoiser_steps: Evaluations of the whole denoiser with the way back.
        searches: Whether a search over roundings adds time that does not grow with the tokens.
    """

    samples: int = 0
    passes: int = 0
    steps: int = 0
    denoiser_passes: int = 0
    denoiser_steps: int = 0
    searches: bool = False


def _silent(fraction: float, text: str) -> None:
    """Discard progress."""


@dataclass(kw_only=True)
class QuantContext:
    """All that a method may use besides the transformer itself.

    Attributes:
        bits: Nominal widths of the row.
        options: Instance of the method's ``Options``.
        family: Facts about the model family: blocks, shared inputs, folds.
        device: Where the transformer lives.
        seed: Seed of everything random in the method.
        figures: Folder for plots the method leaves behind, None to leave none.
        progress: ``progress(fraction, text)``, shown to the user with the time left.
        pool: Recorded trajectories; reach it through ``calibration``.
        data_free: Set by the harness from the method; touching ``calibration`` is then an error.
        scratch: Folder for files that need not outlive the calibration; None for the system's.
        sampler: Runs the model's sampler on the empty prompt; reach it through ``probe``.
        kept: What an attempt that was ended has left, None where nothing is kept; methods reach it
            through ``keep`` and through a walk's ``state``.
        seconds: Time by part, as ``part`` counts it.
    """

    bits: BitSpec
    options: Any
    family: Family
    device: torch.device
    seed: int = 0
    figures: Path | None = None
    progress: Callable[[float, str], None] = _silent
    pool: CalibrationPool | None = None
    data_free: bool = False
    scratch: Path | None = None
    sampler: Callable[[int], list[torch.Tensor]] | None = None
    kept: Kept | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time spent inside to a part of the calibration.

        Within another part, it counts to the inner one alone.

        Args:
            name: ``statistics``, ``training``, ``rounding``, ...
        """
        started, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - before
            spent = time.perf_counter() - started - inner
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    @property
    def calibration(self) -> CalibrationPool:
        """The recorded trajectories of the calibration prompts.

        Raises:
            CalibrationForbiddenError: The method is declared data-free, or no pool was recorded.
        """
        if self.data_free or self.pool is None:
            raise CalibrationForbiddenError(
                "calibration data was asked for by a method that declares "
                "needs_calibration = False",
                "set needs_calibration = True, or do not touch ctx.calibration",
            )
        return self.pool

    def probe(self) -> list[torch.Tensor]:
        """Sample one trajectory of the *empty* prompt with the transformer as it is now.

        No data is involved: the noise is drawn from the calibration seed.

        Returns:
            The denoiser's output at every step, conditional branch, float32 on the CPU.

        Raises:
            CalibrationForbiddenError: There is no pipeline around the transformer to sample with.
        """
        if self.sampler is None:
            raise CalibrationForbiddenError(
                "a trajectory was asked for where there is no pipeline to sample it with",
                "quantize through `harness run`, or set QuantContext.sampler",
            )
        return self.sampler(self.seed)

    def timesteps(self) -> tuple[float, ...]:
        """Timesteps of the sampler in order, as the calibration trajectories have them."""
        return self.calibration.timesteps

    def keep(self, name: str, make: Callable[[], _T]) -> _T:
        """Make something that takes long once, also where the calibration is ended and goes on.

        Args:
            name: What it is called, one name for each thing of a calibration.
            make: Makes it: tensors, numbers, text, and lists, tuples and dicts of those. It must
                depend on nothing but the inputs of the calibration and the seed.

        Returns:
            What ``make`` returns, or what it returned before the calibration was ended.

        Raises:
            TypeError: It holds something that cannot be kept.
        """
        if self.kept is None:
            return make()
        found: _T | None = self.kept.load(name, self.device)
        if found is None:
            found = make()
            self.kept.save(name, found)
        return found

    def generator(self, salt: int = 0) -> torch.Generator:
        """A CPU generator seeded by the calibration seed and ``salt``."""
        import torch

        return torch.Generator().manual_seed(self.seed * 1_000_003 + salt)


class Method:
    """A quantization method: a subclass gives its name, its options and ``quantize_``.

    Attributes:
        name: What the user types.
        version: Raised when the same options and sources give another artifact, say because a
            library changed; part of the artifact's key, as the method's sources are.
        Options: The method's knobs with the paper's defaults, made by ``harness.options.options``.
        needs_calibration: Whether trajectories are recorded for it; False forbids touching them.
        unquantized: A reference row (``fp``, ``control``): one row, whatever widths were asked for.
        reproduction: Source and known deviations.
        quick: Options that keep its calibration near two minutes on a bundled model; they hold
            there unless the row sets the option or ``[calibration] budget`` is ``full``.
        libraries: Distributions whose own code quantizes and runs the layers; their versions are
            part of the artifact's key. Empty for a method that leaves this package's layers.
        quick_s: Guessed seconds of quantizing a bundled model so on one core; only for the estimate
            of the first run, after which the store's journal knows.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Options: ClassVar[type] = NoOptions
    needs_calibration: ClassVar[bool] = False
    unquantized: ClassVar[bool] = False
    reproduction: ClassVar[Reproduction] = Reproduction(title="", source="", code="")
    quick: ClassVar[Mapping[str, Any]] = {}
    libraries: ClassVar[tuple[str, ...]] = ()
    quick_s: ClassVar[float] = 10.0

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Say why this row cannot be made; None, for every family and width, unless overridden."""
        del family, bits
        return None

    def work(self, options: Any, bits: BitSpec) -> Work | None:
        """Say what the calibration will compute, from its options alone.

        Args:
            options: Instance of ``Options``.
            bits: Widths of the row.

        Returns:
            The work; None, unless overridden, where it cannot be told.
        """
        del options, bits
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Replace the target linears of ``transformer`` by quantized ones, in place."""
        raise NotImplementedError(f"method '{self.name}' does not say how it quantizes")


def resolve_options(method: Method, chosen: Mapping[str, Any]) -> Any:
    """An instance of a method's ``Options`` from chosen values, every default filled in.

    Raises:
        UsageError: An option is unknown, has another type, or lies out of its bounds.
    """
    return build_options(method.Options, chosen, owner=f"method '{method.name}'")
