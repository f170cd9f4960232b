"""A linear in several forms, of which the transformer's step policy chooses one at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from harness.method import LayerReport
from harness.quant.layers.layers import QuantizedLayer, under
from harness.quant.layers.linear import QuantLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class SwitchedLinear(QuantizedLayer):
    """Several quantized forms of one linear.

    What the forms have in common (codes, steps, transforms) is held and stored once.

    Args:
        choices: The forms, at least two.
    """

    kind = "switched"

    def __init__(self, choices: Sequence[QuantLinear]) -> None:
        super().__init__()
        if len(choices) < 2:
            raise ValueError("a switched linear needs two forms or more")
        self.choices = nn.ModuleList(choices)
        self.in_features, self.out_features = choices[0].in_features, choices[0].out_features
        self.active = 0
        self._tie_()

    @property
    def forms(self) -> list[QuantLinear]:
        """The forms, in the order of the policy's indices."""
        return cast("list[QuantLinear]", list(self.choices))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the form that is active; ``[..., in_features]`` to ``[..., out_features]``."""
        out: Tensor = self.choices[self.active](x)
        return out

    def describe(self) -> dict[str, Any]:
        """Facts of every form, and which tensors a form has from an earlier one."""
        return {
            "shape": [self.out_features, self.in_features],
            "choices": [form.describe() for form in self.forms],
            "shared": self._shared(),
        }

    def stored(self) -> dict[str, Tensor]:
        """Tensors of every form, each once."""
        shared = self._shared()
        return {
            f"choices.{i}.{key}": value
            for i, form in enumerate(self.forms)
            for key, value in form.stored().items()
            if f"choices.{i}.{key}" not in shared
        }

    @classmethod
    def rebuild(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SwitchedLinear:
        """Rebuild every form."""
        every = dict(tensors) | {key: tensors[first] for key, first in facts["shared"].items()}
        return cls(
            [
                QuantLinear.rebuild(form, under(f"choices.{i}.", every))
                for i, form in enumerate(facts["choices"])
            ]
        )

    def report(self, name: str) -> LayerReport:
        """Widths averaged over the forms; a method that knows the schedule replaces them."""
        reports = [form.report(name) for form in self.forms]
        return LayerReport(
            name=name,
            w_bits=sum(r.w_bits for r in reports) / len(reports),
            a_bits=sum(r.a_bits for r in reports) / len(reports),
            group=reports[0].group,
            symmetric=reports[0].symmetric,
            transform=reports[0].transform,
            parameters=reports[0].parameters,
        )

    def _shared(self) -> dict[str, str]:
        """Stored tensors that equal the same tensor of an earlier form: its name by theirs."""
        seen: list[dict[str, Tensor]] = []
        shared: dict[str, str] = {}
        for i, form in enumerate(self.forms):
            mine = form.stored()
            for key, value in mine.items():
                for j, earlier in enumerate(seen):
                    if key in earlier and _same(earlier[key], value):
                        shared[f"choices.{i}.{key}"] = f"choices.{j}.{key}"
                        break
            seen.append(mine)
        return shared

    def _tie_(self) -> None:
        """Let forms with equal buffers hold one tensor."""
        first, *others = self.choices
        held = dict(first.named_buffers())
        for other in others:
            for name, value in list(other.named_buffers()):
                if name in held and _same(held[name], value):
                    owner, _, leaf = name.rpartition(".")
                    setattr(other.get_submodule(owner), leaf, held[name])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SwitchedLinear:
        """Keep one tensor for what forms have in common when the module moves."""
        moved: dict[int, tuple[Tensor, Tensor]] = {}

        def once(value: Tensor) -> Tensor:
            if id(value) not in moved:
                moved[id(value)] = value, fn(value)  # the key is valid while the value lives
            return moved[id(value)][1]

        super()._apply(once, recurse)  # type: ignore[no-untyped-call]
        return self


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all()))
