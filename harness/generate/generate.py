"""The generate stage: one clip, published the moment it exists; its key, and what is read of it.

Importing this module needs no torch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.spec import COST, Metric, Value
from harness.store.keys import Keyed, digest
from harness.store.sources import sources_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from diffusers import DiffusionPipeline

    from harness.spec import GenSpec, Prompt
    from harness.store.store import Store
    from harness.task import ClipTask

MP4_FILE = "clip.mp4"
LOSSLESS_FILE = "frames.mkv"
LATENTS_FILE = "latents.safetensors"
FACTS_FILE = "clip.json"
ENCODER = "encoder"
"""In a clip's facts: codec and settings of the file that VBench reads."""

STEPS_BY_CHOICE = "steps_by_choice"
"""In a clip's facts: the form that its step policy chose at each step, in order."""

STEPS_FORM = "steps_form_"
FORMS = 8  # more forms than any step policy has
_CODER = "harness.generate.video"

METRICS = (
    Metric(name="clip_a_bits", unit="bits", title="A bits\na clip", block=COST, shown=False),
    *(
        Metric(
            name=f"{STEPS_FORM}{i}", unit="steps", title=f"steps\nform {i}", block=COST,
            shown=False,
        )
        for i in range(FORMS)
    ),
)  # fmt: skip


def clip_key(
    *,
    quant: str,
    execution: str,
    gen: GenSpec,
    prompt: Prompt,
    seed: int,
    cohort: Mapping[str, Any],
    sampler: str,
) -> Keyed:
    """Key of a clip.

    Args:
        quant: Key of the artifact, or what stands for the unquantized model.
        execution: How the quantized layers compute: ``simulated``, ``kernel:<name>``, a library's
            own code, or nothing for an unquantized row. Clips of one artifact that was run in two
            ways are two clips.
        gen: Generation settings.
        prompt: What is asked for.
        seed: Seed of the initial noise, beside the prompt.
        cohort: What clips must share to be compared frame by frame.
        sampler: Digest of the sources that open the pipeline and sample it.
    """
    return Keyed.of(
        "clip",
        {
            "quant": quant,
            "execution": execution,
            "gen": gen,
            "prompt": digest(prompt.text),
            "seed": seed,
            "cohort": cohort,
            "sources": {"sampler": sampler, "coder": sources_digest([__name__, _CODER])},
        },
    )


def clip_values(
    store: Store, clips: Iterable[ClipTask], widths: Sequence[float]
) -> Iterator[Value]:
    """Steps by form and the true activation bits of every clip of a row with a step policy.

    Args:
        store: Where the clips lie.
        clips: Those of the row.
        widths: Mean activation bits of each form; empty without a step policy.
    """
    for wanted in clips if widths else ():
        clip = store.find("clip", wanted.clip.key)
        trace = [] if clip is None else clip.json(FACTS_FILE).get(STEPS_BY_CHOICE, [])
        if clip is None or not trace:
            continue
        found = {f"{STEPS_FORM}{form}": trace.count(form) for form in range(len(widths))}
        found["clip_a_bits"] = sum(widths[form] for form in trace) / len(trace)
        for metric, value in found.items():
            yield Value(
                metric=metric, value=float(value), prompt=wanted.prompt.id, seed=wanted.seed,
                key=clip.key, at=clip.manifest["at"],
            )  # fmt: skip


def generate(
    pipeline: DiffusionPipeline, wanted: ClipTask, gen: GenSpec, store: Store, *, label: str
) -> float:
    """Sample one clip and publish it.

    Returns:
        Seconds of sampling.
    """
    from safetensors.torch import save_file

    from harness.generate.video import MP4_CODEC, MP4_OPTIONS, MP4_PIXELS, write_lossless, write_mp4
    from harness.models.sample import sample_clip
    from harness.quant.layers.policy import policy_of

    with store.build("clip", wanted.clip.key, wanted.clip.inputs, {"label": label}) as folder:
        policy = policy_of(pipeline.transformer)
        if policy is not None:
            policy.begin()
        made = sample_clip(pipeline, wanted.prompt.text, gen, seed=wanted.noise_seed)
        write_mp4(folder / MP4_FILE, made.frames, fps=gen.fps)
        write_lossless(folder / LOSSLESS_FILE, made.frames, fps=gen.fps)
        save_file({"latents": made.latents.contiguous()}, folder / LATENTS_FILE)
        facts: dict[str, Any] = {
            "prompt": wanted.prompt.id,
            "text": wanted.prompt.text,
            "seed": wanted.seed,
            "noise_seed": wanted.noise_seed,
            "seconds": made.seconds,
            ENCODER: {"codec": MP4_CODEC, "crf": MP4_OPTIONS["crf"], "pixels": MP4_PIXELS},
        }
        if policy is not None:
            facts[STEPS_BY_CHOICE] = list(policy.trace)
        (folder / FACTS_FILE).write_text(json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8")
    return made.seconds
