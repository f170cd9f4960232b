"""The quantized linear layer, the one form in which every method leaves its result."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from harness.bits import IDENTITY_WIDTH
from harness.method import LayerReport
from harness.quant.layers import transform as known_transforms
from harness.quant.layers.activation import (
    ActivationSpec,
    in_chunks,
    quantize_activation,
    round_activation,
)
from harness.quant.layers.expansion import EXPANDED, expand_codes
from harness.quant.layers.grid import Affine, code_range, encode, expand, storable, weight_grid
from harness.quant.layers.layers import QuantizedLayer, compact, dtype_name, under
from harness.quant.layers.low_rank import LowRank
from harness.quant.layers.pack import PackedCodes, pack, packed_bytes, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from harness.quant.layers.transform import Transform


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSpec:
    """How a weight is rounded.

    Attributes:
        bits: Width; 16 keeps the weight in the model's dtype.
        symmetric: Grid without zero point.
        group: Input channels that share a step; 0 for one step for each output channel.
    """

    bits: int
    symmetric: bool = True
    group: int = 0


class QuantLinear(QuantizedLayer):
    """``y = Q_a(T(x)) W_q^T + bias`` with W_q on an integer grid, plus a low-rank branch if any.

    The forward pass here is simulated: values sit on the grid, arithmetic is floating point. Codes
    are held packed and the weight is expanded for each call (``expansion.py``).

    Args:
        weight: WeightSpec of the stored codes.
        codes: Integer codes ``[out_features, in_features]`` (any dtype), packed or not, or the
            weight itself at width 16.
        grid: Step and zero point ``[out_features, groups]``; None at width 16.
        bias: ``[out_features]`` or None.
        transforms: Applied to the input in order.
        activation: How the transformed input is rounded.
        low_rank: Branch beside the rounded weight, or None.
    """

    kind = "linear"
    packed: Tensor
    scale: Tensor | None
    zero: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        *,
        weight: WeightSpec,
        codes: Tensor | PackedCodes,
        grid: Affine | None,
        bias: Tensor | None,
        transforms: Sequence[nn.Module],
        activation: ActivationSpec,
        low_rank: LowRank | None = None,
    ) -> None:
        super().__init__()
        if (grid is None) != (weight.bits == IDENTITY_WIDTH):
            raise ValueError("a grid is needed below 16 bits and only there")
        self.weight_spec = weight
        self.activation_spec = activation
        self.transforms = nn.ModuleList(transforms)
        self.out_features, self.in_features = codes.shape
        self.register_buffer("packed", _held(codes, weight.bits, grid))
        scale = None if grid is None else compact(grid.scale.detach().float()).clone()
        self.register_buffer("scale", scale)
        zero = (
            None
            if grid is None or grid.zero is None
            else grid.zero.detach().to(torch.uint8).clone()
        )
        self.register_buffer("zero", zero)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.low_rank = low_rank

    @property
    def grid(self) -> Affine | None:
        """Step and zero point as floats, None at width 16."""
        if self.scale is None:
            return None
        return Affine(self.scale.float(), None if self.zero is None else self.zero.float())

    @property
    def codes(self) -> Tensor:
        """Codes ``[out, in]``, unpacked anew: int8 (symmetric) or uint8; the weight at width 16."""
        if self.scale is None:
            return self.packed
        bits, signed = self.weight_spec.bits, self.zero is None
        return unpack(self.packed, bits, (self.out_features, self.in_features), signed=signed)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight on its grid, in the transformed basis, ``[out, in]``; as it is at width 16."""
        if self.scale is None:
            return self.packed
        shape = self.out_features, self.in_features
        return expand_codes(
            self.packed, self.weight_spec.bits, shape, Affine(self.scale, self.zero),
            group=self.weight_spec.group, dtype=dtype,
        )  # fmt: skip

    def transform(self, x: Tensor) -> Tensor:
        """Apply the input transforms."""
        for transform in self.transforms:
            x = transform(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer, simulated; ``[..., in_features]`` to ``[..., out_features]``.

        Without a gradient the input is transformed and rounded some tokens at a time.
        """
        weight = self._expanded(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        branch = self.low_rank
        if (torch.is_grad_enabled() and x.requires_grad) or torch.compiler.is_compiling():
            exact = self.transform(x)
            rounded = quantize_activation(exact, self.activation_spec)
        else:
            exact = in_chunks(x, self.transform) if len(self.transforms) else x
            own = exact is not x and (branch is None or branch.rounded)
            rounded = round_activation(exact, self.activation_spec, inplace=own)
        y = nn.functional.linear(rounded, weight, bias)
        if branch is None:
            return y
        beside: Tensor = branch(rounded if branch.rounded else exact)
        return y + beside if y.requires_grad or beside.requires_grad else y.add_(beside)

    def _expanded(self, dtype: torch.dtype) -> Tensor:
        """The weight in the dtype of the product, kept if there is room for it."""
        if self.scale is None and self.packed.dtype == dtype:
            return self.packed

        def make() -> Tensor:
            return self.dequantized(dtype).to(dtype)

        if torch.compiler.is_compiling():
            return make()
        with torch.inference_mode(False), torch.no_grad():  # a later call may need a gradient
            return EXPANDED.get(self, dtype, make)

    def describe(self) -> dict[str, Any]:
        """Widths, grids, transforms, branch."""
        facts: dict[str, Any] = {
            "shape": [self.out_features, self.in_features],
            "weight": dataclasses.asdict(self.weight_spec),
            "activation": dataclasses.asdict(self.activation_spec),
            "transforms": [t.kind for t in self._steps],
            "bias": None if self.bias is None else dtype_name(self.bias),
            "dtype": dtype_name(self.packed) if self.scale is None else None,
        }
        if self.low_rank is not None:
            facts["low_rank"] = {
                "rank": self.low_rank.rank,
                "rounded": self.low_rank.rounded,
                "text_tokens": self.low_rank.text_tokens,
            }
        return facts

    def stored(self) -> dict[str, Tensor]:
        """Packed codes, steps, transforms, bias, branch."""
        found = {"codes": compact(self.packed)}
        for i, step in enumerate(self._steps):
            found |= {f"transforms.{i}.{k}": compact(v) for k, v in step.tensors().items()}
        for key in ("scale", "zero", "bias"):
            value = getattr(self, key)
            if value is not None:
                found[key] = compact(value)
        if self.low_rank is not None:
            found |= {f"low_rank.{k}": compact(v) for k, v in self.low_rank.named_buffers()}
        return found

    @classmethod
    def rebuild(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantLinear:
        """Rebuild from what ``describe`` and ``stored`` gave."""
        weight = WeightSpec(**facts["weight"])
        grid, codes = None, tensors["codes"]
        if "scale" in tensors:
            grid = Affine(tensors["scale"], tensors.get("zero"))
            rows, columns = facts["shape"]
            held: Tensor | PackedCodes = PackedCodes(codes, (rows, columns))
        else:
            held = codes.to(getattr(torch, facts["dtype"]))
        low_rank = None
        if "low_rank" in facts:
            parts = under("low_rank.", tensors)
            about = facts["low_rank"]
            low_rank = LowRank(
                parts["down"], parts["up"], gain=parts.get("gain"),
                rounded=about["rounded"], text_tokens=about["text_tokens"],
            )  # fmt: skip
        return cls(
            weight=weight,
            codes=held,
            grid=grid,
            bias=tensors["bias"].to(getattr(torch, facts["bias"])) if facts["bias"] else None,
            transforms=[
                known_transforms.build(kind, under(f"transforms.{i}.", tensors))
                for i, kind in enumerate(facts["transforms"])
            ],
            activation=ActivationSpec(**facts["activation"]),
            low_rank=low_rank,
        )

    def report(self, name: str) -> LayerReport:
        """Widths, grid and transforms; a branch is named last, ``lowrank-32``."""
        labels = [str(t.label) for t in self._steps]
        if self.low_rank is not None:
            labels.append(f"lowrank-{self.low_rank.rank}")
        return LayerReport(
            name=name,
            w_bits=self.weight_spec.bits,
            a_bits=self.activation_spec.bits,
            group=self.weight_spec.group,
            symmetric=self.weight_spec.symmetric,
            transform="+".join(labels) or "none",
            parameters=self.in_features * self.out_features,
        )

    @property
    def _steps(self) -> Iterable[Transform]:
        return cast("Iterable[Transform]", self.transforms)

    def extra_repr(self) -> str:
        """Name the widths in ``print(model)``."""
        return (
            f"{self.in_features}, {self.out_features}, w{self.weight_spec.bits}"
            f"a{self.activation_spec.bits}, group={self.weight_spec.group}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        """Drop the expanded weight when the module moves to another device or dtype."""
        EXPANDED.drop(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _held(codes: Tensor | PackedCodes, bits: int, grid: Affine | None) -> Tensor:
    """Codes as a layer holds them.

    Raises:
        ValueError: A code lies outside the grid, and packed would be another one; or packed codes
            are not so many.
    """
    if isinstance(codes, PackedCodes):
        size = packed_bytes(codes.shape[0] * codes.shape[1], bits)
        if codes.data.dtype != torch.uint8 or codes.data.shape != (size,):
            raise ValueError(f"{list(codes.data.shape)} bytes of codes, {size} are needed")
        return codes.data.detach()
    if grid is None:
        return codes.detach().clone()
    low, high = code_range(bits, grid.zero is None)
    least, most = codes.detach().aminmax()
    if not low <= float(least) <= float(most) <= high:
        raise ValueError(f"codes {float(least):g}..{float(most):g} lie outside {low}..{high}")
    return pack(codes.detach(), bits)


def transformed_weight(weight: Tensor, transforms: Sequence[nn.Module]) -> Tensor:
    """Map a weight into the basis that the input transforms create."""
    for transform in cast("Sequence[Transform]", transforms):
        weight = transform.weight(weight)
    return weight


def quantize_linear(
    linear: nn.Linear,
    weight: WeightSpec,
    activation: ActivationSpec,
    *,
    transforms: Sequence[nn.Module] = (),
    clip: Tensor | float = 1.0,
    clip_low: Tensor | float | None = None,
    grid: Affine | None = None,
    codes: Tensor | None = None,
    mapped: Tensor | None = None,
    low_rank: LowRank | None = None,
) -> QuantLinear:
    """Round a linear to nearest, or wrap codes that another rounding found.

    Args:
        linear: The layer to replace; it is not changed.
        weight: How the weight is rounded.
        activation: How the input is rounded.
        transforms: Input transforms; the weight is mapped accordingly.
        clip: Factor on the range (its maximum where ``clip_low`` is given), number or
            ``[out, groups]``.
        clip_low: Factor on the minimum.
        grid: Grid to use instead of one fitted to the range, ``[out, groups]``.
        codes: Codes ``[out, in]`` on ``grid``, from GPTQ or AdaRound; None rounds to nearest.
        mapped: Weight ``[out, in]`` in the transformed basis, where what is rounded is not the
            linear's own (the residual beside a low-rank branch).
        low_rank: Branch beside the rounded weight.
    """
    if mapped is None:
        mapped = transformed_weight(linear.weight.detach().float(), transforms)
    bias = None if linear.bias is None else linear.bias.detach()
    if weight.bits == IDENTITY_WIDTH:
        return QuantLinear(
            weight=weight, codes=mapped.to(linear.weight.dtype), grid=None, bias=bias,
            transforms=transforms, activation=activation, low_rank=low_rank,
        )  # fmt: skip
    if grid is None:
        grid = stored_grid(
            weight_grid(
                mapped, weight.bits, symmetric=weight.symmetric, group=weight.group,
                clip=clip, clip_low=clip_low,
            )
        )  # fmt: skip
    if codes is None:
        codes = encode(mapped, expand(grid, weight.group), weight.bits)
    return QuantLinear(
        weight=weight,
        codes=codes,
        grid=grid,
        bias=bias,
        transforms=transforms,
        activation=activation,
        low_rank=low_rank,
    )


def stored_grid(grid: Affine) -> Affine:
    """The grid as the artifact will hold it: steps in storage precision."""
    return Affine(storable(grid.scale), grid.zero)
