"""Linears that another quantization library made: stored, loaded and run without its method.

The library itself must be there, in the version that made the layer: its tensors are laid out as
its kernels want them. What it computes is whatever it computes; ``library_linears_`` looks at the
operators that really run before it calls a row a low-bit kernel.
"""

from __future__ import annotations

import dataclasses
import math
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.bits import IDENTITY_WIDTH
from harness.errors import HarnessError
from harness.method import LayerReport, QuantContext, QuantReport, Unsupported
from harness.quant.layers.apply import quantize_linears_
from harness.quant.layers.layers import QuantizedLayer, compact, dtype_name, quantized_layers
from harness.quant.layers.library_parts import parts_of
from harness.spec import DEQUANTIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.models.families.base import InputGroup

EXTRAS = {"torchao": "torchao", "optimum-quanto": "quanto", "bitsandbytes": "bnb"}
"""Distribution by name, and the extra of this package that brings it."""

LOW_BIT_PRODUCTS = {"aten::_int_mm", "aten::_scaled_mm", "mslk::f8f8bf16_rowwise"}
"""Operators that multiply 8-bit operands on 8-bit units."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LibraryScheme:
    """What a library rounds.

    Attributes:
        library: Name of its distribution.
        w_bits: Width of the weight codes.
        a_bits: Width of the rounded activations; 16 where they are left alone.
        group: Weights that share a step, along the input channels; 0 for per output channel.
        symmetric: Whether the weight grid has no zero point.
        tile: Output and input channels that its layout fills up to whole tiles.
    """

    library: str
    w_bits: int
    a_bits: int
    group: int = 0
    symmetric: bool = True
    tile: tuple[int, int] = (1, 1)


class LibraryLinear(QuantizedLayer):
    """A linear of a quantization library in the place of a plain one.

    Args:
        inner: The library's linear.
        scheme: What it rounds.
        shape: ``(out_features, in_features)``.
        dtype: Of the inputs and outputs.
    """

    kind = "library"

    def __init__(
        self, inner: nn.Module, scheme: LibraryScheme, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.inner = inner
        self.scheme = scheme
        self.dtype = dtype
        self.out_features, self.in_features = shape

    def forward(self, x: Tensor) -> Tensor:
        """Let the library compute; ``[..., in_features]`` to ``[..., out_features]``."""
        out: Tensor = self.inner(x)
        return out

    def describe(self) -> dict[str, Any]:
        """Library with its version, what it rounds, and how its tensors fit together."""
        facts, tensors = parts_of(self.scheme.library).take_apart(self.inner)
        return {
            "shape": [self.out_features, self.in_features],
            "version": installed_version(self.scheme.library),
            "scheme": dataclasses.asdict(self.scheme),
            "dtype": str(self.dtype).removeprefix("torch."),
            "parts": facts,
            "dtypes": {name: dtype_name(value) for name, value in tensors.items()},
        }

    def stored(self) -> dict[str, Tensor]:
        """The library's tensors: codes as it packs them, scales, zero points, bias."""
        _, tensors = parts_of(self.scheme.library).take_apart(self.inner)
        return {name: compact(value) for name, value in tensors.items()}

    @classmethod
    def rebuild(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LibraryLinear:
        """Hand the tensors back to the library.

        Raises:
            HarnessError: The library is not installed, or in another version.
        """
        scheme = LibraryScheme(**facts["scheme"])
        require(scheme.library, facts["version"])
        whole = {k: v.to(getattr(torch, facts["dtypes"][k])) for k, v in tensors.items()}
        shape = (int(facts["shape"][0]), int(facts["shape"][1]))
        inner = parts_of(scheme.library).put_together(facts["parts"], whole, shape)
        return cls(inner, scheme, shape, getattr(torch, facts["dtype"]))

    def report(self, name: str) -> LayerReport:
        """Widths and grid as the library has them."""
        return LayerReport(
            name=name,
            w_bits=self.scheme.w_bits,
            a_bits=self.scheme.a_bits,
            group=self.scheme.group,
            symmetric=self.scheme.symmetric,
            transform="none",
            parameters=self.in_features * self.out_features,
        )

    def problems(self) -> list[str]:
        """What a look at the stored tensors finds wrong: width of the codes, values not finite."""
        _, tensors = parts_of(self.scheme.library).take_apart(self.inner)
        names = parts_of(self.scheme.library).codes
        codes = next((tensors[name] for name in names if name in tensors), None)
        if codes is None:
            return [f"no weight codes among {sorted(tensors)}"]
        rows, columns = (
            math.ceil(width / tile) * tile
            for width, tile in zip(
                (self.out_features, self.in_features), self.scheme.tile, strict=True
            )
        )
        found = []
        if codes.nbytes * 8 != rows * columns * self.scheme.w_bits:
            found.append(f"{codes.nbytes} bytes of codes for {rows} x {columns} weights")
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
                found.append(f"{name} is not finite")
        return found

    def extra_repr(self) -> str:
        """Name library and widths in ``print(model)``."""
        return f"{self.scheme.library}, w{self.scheme.w_bits}a{self.scheme.a_bits}"

    def __deepcopy__(self, memo: dict[int, Any]) -> LibraryLinear:
        """Copy by the stored tensors: not every library's weights can be copied otherwise."""
        device = next(iter(self.stored().values())).device
        tensors = {name: value.detach().clone() for name, value in self.stored().items()}
        copied = self.rebuild(self.describe(), tensors).to(device)
        memo[id(self)] = copied
        return copied.train(self.training)


def installed_version(library: str) -> str:
    """Version of an installed distribution without its build label; empty where there is none."""
    try:
        return metadata.version(library).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def not_installed(library: str) -> Unsupported | None:
    """Why a row of this library cannot be made: it is not installed."""
    if installed_version(library):
        return None
    extra = f"pip install 'vdit-quant-harness[{EXTRAS[library]}]'"
    return Unsupported(reason=f"{library} is not installed: {extra}")


def only_at(bits: str, known: tuple[str, ...], why: str) -> Unsupported | None:
    """Why a row of these widths would not be what its label says."""
    if bits in known:
        return None
    return Unsupported(reason=f"{why}: it appears as {' or '.join(known)}, never as {bits}")


def require(library: str, version: str) -> None:
    """Insist on the version that made an artifact.

    Raises:
        HarnessError: Another version, or none, is installed.
    """
    found = installed_version(library)
    if found == version:
        return
    raise HarnessError(
        f"the artifact holds layers of {library} {version}; "
        + (f"version {found} is installed" if found else "it is not installed"),
        f"pip install '{library}=={version}'" + (", or quantize again" if found else ""),
    )


def cuda_capability() -> tuple[int, int] | None:
    """Compute capability of the CUDA device, None where there is none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def library_linears_(
    transformer: nn.Module,
    ctx: QuantContext,
    name: str,
    make: Callable[[nn.Linear, InputGroup], LibraryLinear],
) -> QuantReport:
    """Let a library replace every target linear, in place, and say how the result computes.

    Args:
        transformer: The denoiser.
        ctx: What the method was given.
        name: Name of the method, for the label of a kernel.
        make: Hands one linear to the library.
    """
    report = quantize_linears_(transformer, ctx, make)
    layers = [x for x in quantized_layers(transformer).values() if isinstance(x, LibraryLinear)]
    scheme = layers[0].scheme
    version = f"{scheme.library} {installed_version(scheme.library)}"
    rounded = [layer for layer in layers if layer.scheme.a_bits < IDENTITY_WIDTH]
    products = {low_bit_product(layer, ctx.device) for layer in _one_of_each(rounded)}
    if rounded and "" not in products:
        ran = ", ".join(sorted(products))
        notes = [
            f"{version}: {ran} in {len(rounded)} of {len(layers)} linears; the others (modulation) "
            "are weight-only, dequantized before each product"
            if len(rounded) < len(layers)
            else f"{version}: {ran} in every linear"
        ]
        return dataclasses.replace(report, execution=f"kernel:{name}", notes=tuple(notes))
    note = (
        f"{version}: weights are stored in {scheme.w_bits} bits and multiplied in floating point; "
        "latency is the library's on this device, not that of low-bit arithmetic"
    )
    return dataclasses.replace(report, execution=f"{DEQUANTIZE}:{scheme.library}", notes=(note,))


def low_bit_product(layer: LibraryLinear, device: torch.device) -> str:
    """The low-bit matrix product that a layer runs, found by running it; empty for none.

    Args:
        layer: Where it will run.
        device: There.
    """
    seen = _Products()
    # 32 rows: CUDA's int8 product refuses 16 and fewer.
    x = torch.zeros(32, layer.in_features, dtype=layer.dtype, device=device)
    with torch.no_grad(), seen:
        layer(x)
    return ", ".join(sorted(seen.names))


class _Products(TorchDispatchMode):
    """Notes the low-bit matrix products among the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func.name()).partition(".")[0]
        if name in LOW_BIT_PRODUCTS:
            self.names.add(name.partition("::")[2])
        return func(*args, **(kwargs or {}))


def _one_of_each(layers: list[LibraryLinear]) -> list[LibraryLinear]:
    """One layer of each shape: the shape decides which product a library takes."""
    return list({(layer.in_features, layer.out_features): layer for layer in layers}.values())
