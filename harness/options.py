"""Options: what can be set of a method or a metric, declared with type, bounds and default.

    @options
    class MyOptions(TargetOptions):
        group: Whole = 0
        rounding: Literal["gptq", "rtn"] = "gptq"

A value out of its bounds is refused, in two lines that name the option, before any work starts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass, is_pydantic_dataclass

from harness.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")
_LITERALS = re.compile(r"'([^']*)'|(\d+)")  # in pydantic's list of what a value may be
_CONFIG = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Branches = Literal["both", "alternate", "cond"]
Modulation = Literal["w", "fp"]
Prefix = Literal["fp", "quantized"]
Rounding = Literal["gptq", "rtn"]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def options(cls: type[_T]) -> type[_T]:
    """Make a frozen dataclass whose values are held to their declared types and bounds.

    Built directly it raises pydantic's ``ValidationError``; ``build_options`` turns that into the
    two lines a user sees.
    """
    made: Any = dataclass(cls, frozen=True, kw_only=True, slots=True, config=_CONFIG)
    return cast("type[_T]", made)


@options
class NoOptions:
    """Nothing can be set."""


@options
class TargetOptions:
    """What every quantizing method lets one choose.

    Attributes:
        modulation: ``w`` quantizes the weights of modulation linears, ``fp`` leaves them out.
    """

    modulation: Modulation = "w"


@options
class SampleOptions(TargetOptions):
    """What a calibrated method lets one choose besides.

    Attributes:
        samples: (prompt, timestep) samples it is fitted on.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
    """

    samples: Count = 40  # S2Q-VDiT sec. 4.4 and App. A; the same budget for every method
    branches: Branches = "alternate"


@options
class SpacedOptions(SampleOptions):
    """What a method lets one choose whose samples lie at equally spaced timesteps.

    Attributes:
        timesteps: Equally spaced timesteps of the samples.
    """

    timesteps: Count = 10  # PTQ4DiT, experimental setup at 512 x 512


def build_options(kind: type[_T], chosen: Mapping[str, Any], *, owner: str) -> _T:
    """Build options from chosen values, every default filled in.

    Args:
        kind: The options class: made by ``options``, or a plain dataclass, whose values then must
            have the type of their default.
        chosen: Values by name, as TOML or JSON holds them.
        owner: Who has these options, for the message: ``method 's2q'``.

    Raises:
        UsageError: An option is unknown, has another type, or lies out of its bounds.
    """
    if not dataclasses.is_dataclass(kind):
        raise UsageError(f"the options of {owner} are no dataclass", "docs/adding-a-method.md")
    fields = {f.name for f in dataclasses.fields(kind)}
    for name in chosen:
        if name not in fields:
            raise unknown_name(f"option of {owner}", name, fields)
    if not is_pydantic_dataclass(kind):
        return _plain(kind, chosen, owner)
    try:
        # By way of JSON, in which a list may stand for a tuple and 1 for 1.0, and nothing else.
        return cast("_T", TypeAdapter(kind).validate_json(json.dumps(dict(chosen))))
    except ValidationError as cause:
        raise _explain(cause.errors()[0], owner) from None


def _plain(kind: type[_T], chosen: Mapping[str, Any], owner: str) -> _T:
    """Options of a plug-in that declares a plain dataclass."""
    defaults = kind()
    values: dict[str, Any] = {}
    for name, value in chosen.items():
        default = getattr(defaults, name)
        if isinstance(default, tuple) and isinstance(value, (list, tuple)):
            values[name] = tuple(value)
        elif isinstance(default, float) and type(value) is int:
            values[name] = float(value)
        elif default is None or value is None or type(value) is type(default):
            values[name] = value
        else:
            raise UsageError(
                f"option '{name}' of {owner} is {value!r}, a {type(value).__name__}",
                f"give a {type(default).__name__}; the default is {default!r}",
            )
    return kind(**values)


def _explain(error: Any, owner: str) -> UsageError:
    """What pydantic found wrong with one value, as the two lines."""
    option, value = str(error["loc"][0]), error["input"]
    bounds = error.get("ctx", {})
    if error["type"] == "literal_error":
        known = [word or number for word, number in _LITERALS.findall(bounds["expected"])]
        return unknown_name(f"option '{option}': value", str(value), known)
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = [f"{text} {bounds[key]:g}" for key, text in words.items() if key in bounds]
    if limits or error["type"] == "finite_number":
        give = f"give {' and '.join(limits)}" if limits else "give a finite number"
        return UsageError(f"option '{option}': value {value} is out of range", give)
    message = str(error["msg"]).removeprefix("Value error, ")
    return UsageError(
        f"option '{option}' of {owner} is {value!r}: {message[:1].lower()}{message[1:]}",
        f"`harness show {owner.replace(chr(39), '')}` lists the options with their defaults",
    )


_OFF = ("none", "float32")


def spelled(chosen: Any) -> dict[str, Any]:
    """The options that a key names: all but those that are off.

    An option that is off (False, 0, None, empty, ``none``, or ``float32``, in which everything is
    computed that does not say otherwise) takes no part in what is made, so a method that gains one
    keeps its artifacts. A value that is on stands in the key also where it is
    the default, so that a changed default is another artifact.
    """
    values = dataclasses.asdict(chosen)
    return {name: value for name, value in values.items() if value and value not in _OFF}
