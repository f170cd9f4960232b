"""What is known of a model before anything runs: its settings, their sources, its size.

``harness show model`` and ``harness run --dry-run`` print the same sections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.models.admission import admit
from harness.models.description import SECOND_DENOISER, component_weights
from harness.models.families import family_by_name
from harness.models.files import has_weights
from harness.models.geometry import factors
from harness.models.hub_files import HubFiles
from harness.models.scheduler import shift_text
from harness.models.table import files_of, open_model
from harness.models.tiling import tiles

if TYPE_CHECKING:
    from collections.abc import Collection

    from harness.models.description import Description
    from harness.models.model_files import ModelFiles
    from harness.models.settings import Settled
    from harness.spec import GenSpec, ModelSpec

GIVEN = "[gen]"
_NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the sheet.

    Attributes:
        title: Its head.
        rows: Name, value, and where the value comes from or what it means.
    """

    title: str
    rows: tuple[tuple[str, str, str], ...]


def model_sheet(spec: ModelSpec, gen: GenSpec, given: Collection[str] = ()) -> list[Section]:
    """Everything that is known of a model before it is loaded.

    Args:
        spec: The model.
        gen: The settings that it is run with.
        given: Names of the settings that the user gave.

    Raises:
        HarnessError: Its files cannot be read.
    """
    files = files_of(spec)
    description, settled = open_model(files, spec.name)
    return [
        _identity(spec, description),
        _settings(description, gen, settled, given),
        _call(description, gen),
        _components(files, description),
    ]


def lines(sections: list[Section]) -> list[str]:
    """The sections as aligned text."""
    found: list[str] = []
    for section in sections:
        wide = [max((len(row[i]) for row in section.rows), default=0) for i in (0, 1)]
        wide[1] = min(wide[1], 40)
        found += ["", section.title] if found else [section.title]
        found += [
            f"  {name:<{wide[0]}}  {value:<{wide[1]}}  {note}".rstrip()
            for name, value, note in section.rows
        ]
    return found


def _identity(spec: ModelSpec, description: Description) -> Section:
    place = "folder" if files_of(spec).place.startswith("/") else "hub"
    revision = spec.locked if spec.locked else "digest of its files"
    return Section(
        title=f"model {spec.name}",
        rows=(
            ("pipeline", description.pipeline, ""),
            ("family", spec.family, ""),
            (place, spec.repo, ""),
            ("revision", spec.revision[:40], revision),
        ),
    )


def _settings(
    description: Description, gen: GenSpec, settled: Settled, given: Collection[str]
) -> Section:
    def source(name: str) -> str:
        if name in given:
            return GIVEN
        if name == "negative_prompt" and not gen.negative_prompt and settled.gen.negative_prompt:
            return "guidance runs one branch"
        return settled.sources.get(name, "")

    scheduler = description.components["scheduler"]
    tiled = tiles(gen, family_by_name(admit(description)))
    shift, why = shift_text(scheduler.kind, scheduler.config, gen.flow_shift)
    sizes = dict.fromkeys([source("height"), source("width")])
    second = []
    if SECOND_DENOISER in description.components:
        scale = gen.guidance if gen.guidance_2 is None else gen.guidance_2
        taken = f"below {description.boundary:g} of the timesteps; {source('guidance_2')}"
        second = [("guidance, second denoiser", f"{scale:g}", taken)]
    return Section(
        title=f"settings{f', known as {settled.model}' if settled.model else ''}",
        rows=(
            ("size", f"{gen.height} x {gen.width} pixels", ", ".join(sizes)),
            ("frames", str(gen.frames), source("frames")),
            ("fps", str(gen.fps), source("fps")),
            ("steps", str(gen.steps), source("steps")),
            ("guidance", f"{gen.guidance:g}", source("guidance")),
            *second,
            ("scheduler", scheduler.kind, "scheduler/scheduler_config.json"),
            ("flow shift", shift, why or source("flow_shift")),
            ("dtype", gen.dtype, source("dtype")),
            ("text tokens", str(gen.max_text_tokens), source("max_text_tokens")),
            ("VAE tiling", "yes" if tiled else "no", source("vae_tiling")),
            ("negative prompt", gen.negative_prompt or _NONE, source("negative_prompt")),
        ),
    )


def _call(description: Description, gen: GenSpec) -> Section:
    guidance = family_by_name(admit(description)).guidance
    branches = 2 if gen.guidance > 1 and guidance != "embedded" else 1
    how = {"stacked": "in one batch", "calls": "in two calls", "embedded": ""}[guidance]
    known = factors(description)
    return Section(
        title="one denoiser call",
        rows=(
            ("video tokens", str(known.video_tokens(gen)), "of one guidance branch"),
            ("text tokens", str(gen.max_text_tokens), "of one guidance branch"),
            ("branches", str(branches), how if branches == 2 else ""),
        ),
    )


def _components(files: ModelFiles, description: Description) -> Section:
    rows = []
    for part, component in description.components.items():
        if not has_weights(part):
            continue
        try:
            weights = component_weights(files, description, part)
        except HarnessError as cause:
            # the plan needs the denoiser only; what else the hub did not tell is said, not refused
            if not isinstance(files, HubFiles):
                raise
            rows.append((part, "not known", cause.message))
            continue
        size = f"{weights.count:,} parameters, {weights.size / 1e9:.3g} GB"
        rows.append((part, size, f"{component.kind}, stored in {weights.dtype}"))
    return Section(title="components", rows=tuple(rows))
