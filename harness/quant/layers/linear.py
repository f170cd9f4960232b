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
from harness.quant.layers.activation import ActivationSpec, quantize_activation
from harness.quant.layers.grid import Affine, decode, encode, expand, storable, weight_grid
from harness.quant.layers.layers import QuantizedLayer, compact, dtype_name, under
from harness.quant.layers.low_rank import LowRank
from harness.quant.layers.pack import pack, unpack

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

    The forward pass here is simulated: values sit on the grid, arithmetic is floating point.

    Args:
        weight: WeightSpec of the stored codes.
        codes: Integer codes ``[out_features, in_features]`` (any dtype), or the weight itself at
            width 16.
        grid: Step and zero point ``[out_features, groups]``; None at width 16.
        bias: ``[out_features]`` or None.
        transforms: Applied to the input in order.
        activation: How the transformed input is rounded.
        low_rank: Branch beside the rounded weight, or None.
    """

    kind = "linear"
    codes: Tensor
    scale: Tensor | None
    zero: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        *,
        weight: WeightSpec,
        codes: Tensor,
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
        stored = (
            codes
            if grid is None
            else codes.to(torch.uint8 if grid.zero is not None else torch.int8)
        )
        self.register_buffer("codes", stored.detach().clone())
        self.register_buffer("scale", None if grid is None else grid.scale.detach().float().clone())
        zero = (
            None
            if grid is None or grid.zero is None
            else grid.zero.detach().to(torch.uint8).clone()
        )
        self.register_buffer("zero", zero)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.low_rank = low_rank
        self._dequantized: Tensor | None = None

    @property
    def grid(self) -> Affine | None:
        """Step and zero point as floats, None at width 16."""
        if self.scale is None:
            return None
        return Affine(self.scale, None if self.zero is None else self.zero.float())

    def dequantized(self) -> Tensor:
        """The weight on its grid, in the transformed basis, float32 ``[out, in]``."""
        if self.grid is None:
            return self.codes
        return decode(self.codes.float(), expand(self.grid, self.weight_spec.group))

    def transform(self, x: Tensor) -> Tensor:
        """Apply the input transforms."""
        for transform in self.transforms:
            x = transform(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer, simulated; ``[..., in_features]`` to ``[..., out_features]``."""
        if self._dequantized is None or self._dequantized.dtype != x.dtype:
            self._dequantized = self.dequantized().to(x.dtype)
        exact = self.transform(x)
        x = quantize_activation(exact, self.activation_spec)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = nn.functional.linear(x, self._dequantized, bias)
        if self.low_rank is None:
            return y
        return y + self.low_rank(x if self.low_rank.rounded else exact)

    def describe(self) -> dict[str, Any]:
        """Widths, grids, transforms, branch."""
        facts: dict[str, Any] = {
            "shape": [self.out_features, self.in_features],
            "weight": dataclasses.asdict(self.weight_spec),
            "activation": dataclasses.asdict(self.activation_spec),
            "transforms": [t.kind for t in self._steps],
            "bias": None if self.bias is None else dtype_name(self.bias),
            "dtype": dtype_name(self.codes) if self.scale is None else None,
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
        identity = self.weight_spec.bits == IDENTITY_WIDTH
        codes = compact(self.codes) if identity else pack(self.codes, self.weight_spec.bits)
        found = {"codes": codes}
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
        grid = None
        if "scale" in tensors:
            zero = tensors["zero"].float() if "zero" in tensors else None
            grid = Affine(tensors["scale"].float(), zero)
            shape = tuple(facts["shape"])
            codes = unpack(tensors["codes"], weight.bits, shape, signed=weight.symmetric)
        else:
            codes = tensors["codes"].to(getattr(torch, facts["dtype"]))
        low_rank = None
        if "low_rank" in facts:
            parts = {k: v.float() for k, v in under("low_rank.", tensors).items()}
            about = facts["low_rank"]
            low_rank = LowRank(
                parts["down"], parts["up"], gain=parts.get("gain"),
                rounded=about["rounded"], text_tokens=about["text_tokens"],
            )  # fmt: skip
        return cls(
            weight=weight,
            codes=codes,
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
        """Drop the cached weight when the module moves to another device or dtype."""
        self._dequantized = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


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
