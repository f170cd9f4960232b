"""Which kernel computes a layer, and why none does."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from harness.bits import IDENTITY_WIDTH
from harness.kernels.layer import KernelLinear, SharedInput
from harness.kernels.registry import AUTO, OFF, BrokenKernelError, kernel_names, load_kernel
from harness.kernels.request import OFF_REASON
from harness.models.families.base import target_groups
from harness.models.families.parts import parts_of, prefix
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.grid import Affine, code_range
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import QuantLinear, WeightSpec
from harness.spec import DEQUANTIZE, KERNEL, SIMULATED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import nn

    from harness.kernels.contract import Kernel
    from harness.models.families.base import Family

_EXECUTION = "_harness_execution"


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How the quantized linears of a denoiser compute.

    Attributes:
        label: ``kernel:<name>``, ``dequantize`` where weights alone are rounded, ``simulated``, or
            empty where no linear is quantized here.
        layers: How many linears compute in each way.
        reasons: Why layers are simulated, and how many for each reason.
    """

    label: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


def choose(layer: QuantLinear, kernels: Iterable[Kernel]) -> tuple[Kernel | None, str]:
    """The first kernel that can compute a layer, else the reason.

    Args:
        layer: With rounded activations.
        kernels: In the order of preference; each can run on the device.
    """
    told = general_refusal(layer)
    if told:
        return None, told
    refusals: dict[str, None] = {}
    for kernel in kernels:
        why = kernel.refusal(layer)
        if why is None:
            return kernel, ""
        refusals[f"{kernel.name}: {why}"] = None
    return None, "; ".join(refusals)


def general_refusal(layer: QuantLinear) -> str:
    """Why no product of integers is what a layer computes; empty where one is."""
    if layer.activation_spec.axis == "channel":
        return "a step for each channel over the tokens cannot be taken out of a product"
    if layer.weight_spec.bits == IDENTITY_WIDTH:
        return "weights have 16 bits"
    return ""


def usable(setting: str, device: torch.device) -> tuple[list[Kernel], str]:
    """The kernels that a setting allows and a device can run, else the reasons.

    Args:
        setting: ``auto``, ``off`` or a name.
        device: Where the layers are.

    Raises:
        UsageError: The setting names no kernel.
    """
    if setting == OFF:
        return [], OFF_REASON
    found, refusals = [], []
    for name in kernel_names() if setting == AUTO else (setting,):
        kernel = load_kernel(name)
        why = kernel.missing(device) or inexact(name, str(device))
        if why:
            refusals.append(f"{name}: {why}")
        else:
            found.append(kernel)
    return found, "; ".join(refusals)


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelState:
    """What a kernel is on this machine.

    Attributes:
        name: What the user types.
        about: First line of its description.
        lanes: Width that it multiplies in.
        devices: Kinds of devices that run it here.
        missing: Why none does, empty where one does.
    """

    name: str
    about: str
    lanes: str
    devices: tuple[str, ...] = ()
    missing: str = ""


def kernel_states() -> list[KernelState]:
    """Every installed kernel in the order of preference, tried on the devices of this machine.

    One whose file cannot be imported is a kernel that is missing.
    """
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    return [_state(name, devices) for name in kernel_names()]


def _state(name: str, devices: list[torch.device]) -> KernelState:
    try:
        kernel = load_kernel(name)
    except BrokenKernelError as cause:
        return KernelState(name=name, about="", lanes="", missing=cause.message)
    found = {d.type: kernel.missing(d) or inexact(name, str(d)) for d in devices}
    runs = tuple(kind for kind, why in found.items() if why is None)
    told = "" if runs else "; ".join(dict.fromkeys(why for why in found.values() if why))
    about = (type(kernel).__doc__ or "").strip().splitlines()[:1]
    return KernelState(
        name=name, about="".join(about).rstrip("."), lanes=kernel.lanes, devices=runs, missing=told
    )


_TRIED_TOKENS, _TRIED_WIDTH, _TRIED_OUTPUTS, _TRIED_BITS = 33, 512, 40, (4, 8)


@lru_cache(maxsize=32)
def inexact(name: str, device: str) -> str | None:
    """What a trial of the largest codes finds wrong with a kernel; None where nothing is.

    Some processors add pairs of products in 16 bits, which overflows there and nowhere else.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        kernel = load_kernel(name)
        for bits in _TRIED_BITS:
            x, layer = _trial(bits, generator)
            layer = layer.to(device)
            out = torch.full((_TRIED_TOKENS, _TRIED_OUTPUTS), torch.nan, device=device)
            kernel.product(layer)(kernel.reader([layer])(x.to(device)).codes, out)
            # below 2 ** 24, so that single precision holds every sum
            exact = x.double() @ layer.codes.cpu().double().t()
            if not torch.equal(out.double().cpu(), exact):
                return "its sums of products are not exact"
    except Exception as cause:  # whatever it is, a kernel that fails on a trial is none
        first = next(iter(str(cause).splitlines()), "")
        return f"it fails on a trial: {type(cause).__name__}: {first}"
    return None


def _trial(bits: int, generator: torch.Generator) -> tuple[torch.Tensor, QuantLinear]:
    """An input of the smallest and largest 8-bit codes, and a layer of those of a width."""

    def ends(rows: int, width: int) -> torch.Tensor:
        # rows of one sign make the largest sums, mixed ones those of every size
        drawn = torch.randint(2, (rows, _TRIED_WIDTH), generator=generator)
        drawn[::2] = 1
        bottom, top = code_range(width, True)
        return torch.where(drawn == 1, top, bottom)

    top = float(code_range(8, True).high)
    layer = QuantLinear(
        weight=WeightSpec(bits=bits), codes=ends(_TRIED_OUTPUTS, bits),
        grid=Affine(torch.ones(_TRIED_OUTPUTS, 1), None), bias=None, transforms=(),
        activation=ActivationSpec(bits=8, static_low=-top, static_high=top),
    )  # fmt: skip
    return ends(_TRIED_TOKENS, 8).float(), layer


def install_kernels_(
    denoiser: nn.Module,
    family: Family,
    *,
    setting: str,
    device: torch.device,
    moved: bool = False,
) -> Execution:
    """Let the quantized linears of a denoiser compute on kernels, in place, all or none of them.

    Linears whose weights alone are rounded stay as they are: they expand the weight and multiply in
    floating point, which is what they do anywhere.

    Args:
        denoiser: On its device.
        family: Facts, for the linears that read one input.
        setting: ``auto``, ``off`` or the name of a kernel.
        device: Where it computes.
        moved: Weights travel between devices while it runs; no kernel's layout does.

    Returns:
        What was decided; ``execution_of`` finds it again.

    Raises:
        UsageError: The setting names no kernel.
    """
    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, QuantLinear)}
    rounded = {n: m for n, m in layers.items() if m.activation_spec.bits != IDENTITY_WIDTH}
    kernels, none = ([], "weights are offloaded") if moved else usable(setting, device)
    chosen = {n: choose(m, kernels) if kernels else (None, none) for n, m in rounded.items()}
    reasons = Counter(why for kernel, why in chosen.values() if kernel is None)
    by_weight = len(layers) - len(rounded)
    if not layers:
        return _note(denoiser, Execution())
    if reasons:
        counts = {SIMULATED: len(rounded), DEQUANTIZE: by_weight}
        return _note(denoiser, _execution(SIMULATED, counts, reasons))
    takes = {name: kernel for name, (kernel, _) in chosen.items() if kernel is not None}
    shared = dict(_shared_inputs(denoiser, family, rounded, takes))
    for name, kernel in takes.items():
        replace_module_(denoiser, name, KernelLinear(rounded[name], kernel, shared[name]))
    used = list(takes.values())
    label = KERNEL + "+".join(sorted({one.name for one in used})) if used else DEQUANTIZE
    counts = Counter(f"{KERNEL}{one.name}, {one.lanes} lanes" for one in used)
    return _note(denoiser, _execution(label, {**counts, DEQUANTIZE: by_weight}, {}))


def execution_of(denoiser: nn.Module) -> Execution:
    """How a denoiser computes, as ``install_kernels_`` decided; undecided, it is simulated."""
    noted: Execution | None = getattr(denoiser, _EXECUTION, None)
    if noted is not None:
        return noted
    layers = [m for m in denoiser.modules() if isinstance(m, QuantLinear)]
    return Execution(label=SIMULATED, layers={SIMULATED: len(layers)}) if layers else Execution()


def _note(denoiser: nn.Module, execution: Execution) -> Execution:
    object.__setattr__(denoiser, _EXECUTION, execution)
    return execution


def _execution(label: str, layers: Mapping[str, int], reasons: Mapping[str, int]) -> Execution:
    return Execution(
        label=label, layers={k: v for k, v in layers.items() if v}, reasons=dict(reasons)
    )


def _shared_inputs(
    denoiser: nn.Module,
    family: Family,
    layers: Mapping[str, QuantLinear],
    kernels: Mapping[str, Kernel],
) -> Iterator[tuple[str, SharedInput]]:
    """An input for every layer, one for those that read and treat one tensor alike."""

    def alike(a: str, b: str) -> bool:
        kernel = kernels[a]
        same = kernel is kernels[b] and kernel.layout(layers[a]) == kernel.layout(layers[b])
        return same and _alike(layers[a], layers[b])

    def one_of(names: list[str]) -> SharedInput:
        return SharedInput(kernels[names[0]].reader([layers[n] for n in names]), len(names))

    left = dict(layers)
    for names in _readers(denoiser, family, layers):
        while names:
            together = [name for name in names if name == names[0] or alike(names[0], name)]
            shared = one_of(together)
            for name in together:
                left.pop(name)
                yield name, shared
            names = [name for name in names if name not in together]
    for name in left:
        yield name, one_of([name])


def _readers(
    denoiser: nn.Module, family: Family, layers: Mapping[str, QuantLinear]
) -> Iterator[list[str]]:
    """Names of layers that read one tensor; of a linear in several forms, form by form."""
    for part, network in parts_of(denoiser).items():
        for name, block in family.blocks(network):
            for group in target_groups(family, block):
                if group.split:  # its linears read different tokens
                    continue
                forms: dict[str, list[str]] = {}
                for linear in group.linears:
                    whole = f"{prefix(part)}{name}.{linear}"
                    for found in (n for n in layers if n == whole or n.startswith(f"{whole}.")):
                        forms.setdefault(found.removeprefix(whole), []).append(found)
                yield from forms.values()


def _alike(a: QuantLinear, b: QuantLinear) -> bool:
    """Whether two layers transform and round their input in the same way."""
    if a.activation_spec != b.activation_spec or len(a.transforms) != len(b.transforms):
        return False
    return all(
        type(x) is type(y) and _equal(x, y) for x, y in zip(a.transforms, b.transforms, strict=True)
    )


def _equal(a: Any, b: Any) -> bool:
    mine, other = a.tensors(), b.tensors()
    return (
        a.kind == b.kind
        and mine.keys() == other.keys()
        and all(torch.equal(mine[key], other[key]) for key in mine)
    )
