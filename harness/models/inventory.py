"""What a denoiser stores, tensor by tensor, from its config alone: no weight is read or made."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.components import quiet
from harness.models.families import family_by_name, family_name_of
from harness.models.families.base import linear_at, target_linears
from harness.models.load import IMPORT_NOISE
from harness.models.skeleton import empty_denoiser

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_HALF, _SINGLE = 2, 4  # bytes of a value


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A tensor of the denoiser as it is stored where it is not quantized.

    Attributes:
        values: Number of its values.
        width: Bytes of a value. Four only where the checkpoint and the model both hold float32; an
            artifact stores such a tensor in two if that loses nothing, which no config tells.
    """

    values: int
    width: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.values * self.width


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedLinear:
    """A linear of the denoiser.

    Attributes:
        weight: Name of its weight among the tensors.
        out_features: Width of the output.
        in_features: Width of the input.
        target: In a block, and named by the family as one that a method has to quantize.
        modulation: A target that makes shift, scale and gate of a block.
    """

    weight: str
    out_features: int
    in_features: int
    target: bool = False
    modulation: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What one denoiser, or all experts of one, stores.

    Attributes:
        tensors: Every parameter, and every buffer of the checkpoint, by name.
        linears: Every linear.
    """

    tensors: Mapping[str, Kept]
    linears: tuple[CountedLinear, ...]

    @property
    def values(self) -> int:
        """Numbers of all tensors: parameters, as the headers of weight files count them."""
        return sum(kept.values for kept in self.tensors.values())


def inventory(
    class_name: str, *configs: Mapping[str, Any], dtype: str = "bfloat16", stored: str = ""
) -> Inventory:
    """Count a denoiser.

    Its class of diffusers is built on the meta device, so that every number is what loading
    would make; what the config leaves out is the default of the class.

    Args:
        class_name: Class of diffusers.
        configs: What it is built with; one for each of the experts that take turns.
        dtype: What the model runs in: ``float32``, ``bfloat16`` or ``float16``.
        stored: The same of its checkpoint; empty for the one that it runs in.

    Raises:
        HarnessError: The class belongs to no supported family, or does not take the config.
    """
    import torch

    tensors: dict[str, Kept] = {}
    linears: list[CountedLinear] = []
    for i, config in enumerate(configs):
        try:
            # unexpected entries of a config are said where the model is loaded
            with quiet((*IMPORT_NOISE, "diffusers"), logging.ERROR), torch.device("meta"):
                transformer = empty_denoiser(class_name, config, torch.float32)
            place = f"{i}." if len(configs) > 1 else ""
            tensors |= _tensors(transformer, place, dtype, stored or dtype)
            linears += _linears(transformer, place)
        except (RuntimeError, ArithmeticError, LookupError) as cause:
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise _uncounted(class_name, reason) from cause
    if not any(linear.target for linear in linears):
        raise _uncounted(class_name, "it has no linear to quantize")
    return Inventory(tensors=tensors, linears=tuple(linears))


def _tensors(transformer: nn.Module, place: str, dtype: str, stored: str) -> dict[str, Kept]:
    single = _single_modules(transformer)
    found = {}
    for name, value in transformer.state_dict().items():
        floats = value.is_floating_point()
        width = _width(name, dtype, stored, single) if floats else value.element_size()
        found[f"{place}{name}"] = Kept(values=math.prod(value.shape), width=width)
    return found


def _linears(transformer: nn.Module, place: str) -> list[CountedLinear]:
    from torch import nn

    family = family_by_name(family_name_of(type(transformer).__name__))
    targets = target_linears(family, transformer)
    others = [name for name, m in transformer.named_modules() if isinstance(m, nn.Linear)]
    found = []
    for name in dict.fromkeys([*targets, *others]):
        rows, columns = linear_at(transformer, name).weight.shape
        found.append(
            CountedLinear(
                weight=f"{place}{name}.weight",
                out_features=rows,
                in_features=columns,
                target=name in targets,
                modulation=name in targets and targets[name].modulation,
            )
        )
    return found


def _single_modules(transformer: nn.Module) -> frozenset[str]:
    """Names of modules whose parameters diffusers loads in float32 whatever the others run in."""
    held = [getattr(m, "_keep_in_fp32_modules", None) for m in transformer.modules()]
    return frozenset(name for names in held for name in names or ())


def _width(name: str, dtype: str, stored: str, single: frozenset[str]) -> int:
    runs = dtype == "float32" or not single.isdisjoint(name.split("."))
    return _SINGLE if runs and stored in ("float32", "float64") else _HALF


def _uncounted(class_name: str, why: str) -> HarnessError:
    return HarnessError(
        f"no {class_name} can be counted from its config: {why}",
        "download the model again, or correct the config",
    )
