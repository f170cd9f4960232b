"""The generate stage: one clip, published the moment it exists; its key, and what is read of it.

Importing this module needs no torch.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.generate.text import CUT, read_cuts, read_text
from harness.spec import COST, KERNEL, Metric, Value
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

EXECUTION = "execution"
"""In a clip's facts: how the quantized layers computed, and why not by a kernel."""

STEPS_FORM = "steps_form_"
FORMS = 8  # more forms than any step policy has
_CODER = "harness.generate.video"

KERNEL_LINEARS = "kernel_linears"
"""Metric: linears of a row that a kernel computes; its detail says which."""

METRICS = (
    Metric(
        name=KERNEL_LINEARS, unit="linears", title="execution", block=COST, whole=True,
        measured=False,
    ),
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
    execution: str | Mapping[str, Any],
    gen: GenSpec,
    prompt: Prompt,
    seed: int,
    cohort: Mapping[str, Any],
    sampler: str,
) -> Keyed:
    """Key of a clip.

    Args:
        quant: Key of the artifact, or what stands for the unquantized model.
        execution: How the quantized layers compute: ``simulated``, by a choice of kernels
            (``harness.kernels.request``), a library's own code, or nothing for an unquantized row.
            Clips of one artifact that was run in two ways are two clips.
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


def row_execution(store: Store, clips: Iterable[ClipTask]) -> dict[str, Any] | None:
    """How a row's quantized layers computed, as its first clip says.

    Returns:
        Fields of ``harness.kernels.dispatch.Execution``; None without a clip, and of a row whose
        layers are not this package's.
    """
    for wanted in clips:
        clip = store.find("clip", wanted.clip.key)
        if clip is not None:
            told: dict[str, Any] | None = clip.json(FACTS_FILE).get(EXECUTION)
            return told
    return None


def execution_values(
    store: Store, clips: Sequence[ClipTask], execution: Mapping[str, Any] | None
) -> Iterator[Value]:
    """How many linears of a row a kernel computes.

    Args:
        store: Where the clips lie.
        clips: Those of the row.
        execution: What ``row_execution`` found.
    """
    clip = next((c for c in (store.find("clip", w.clip.key) for w in clips) if c), None)
    if clip is None or execution is None:
        return
    count = sum(n for how, n in execution["layers"].items() if how.startswith(KERNEL))
    yield Value(
        metric=KERNEL_LINEARS, value=float(count), key=clip.key, at=clip.manifest["at"],
        detail=execution["label"],
    )  # fmt: skip


def latents_key(clip: Keyed) -> Keyed:
    """Key of the final latents of a clip, which are kept until the clip is published."""
    return Keyed.of("latents", {"clip": clip.key})


def denoise_clip(pipeline: DiffusionPipeline, wanted: ClipTask, gen: GenSpec, store: Store) -> None:
    """Sample the latents of one clip and publish them.

    Args:
        pipeline: With its denoiser, quantized or not.
        wanted: The clip.
        gen: Generation settings.
        store: Has the encoded prompt.

    Raises:
        DivergedError: Latents are not finite after a step; nothing is published.
    """
    from safetensors.torch import save_file

    from harness.kernels.dispatch import execution_of
    from harness.models.sample import denoise
    from harness.quant.layers.policy import policies_of

    key = latents_key(wanted.clip)
    with store.build("latents", key.key, key.inputs) as folder:
        policies = policies_of(pipeline.transformer).values()
        for policy in policies:
            policy.begin()
        started = time.perf_counter()
        made = denoise(pipeline, read_text(store, wanted.text), gen, seed=wanted.noise_seed)
        facts: dict[str, Any] = {"seconds": time.perf_counter() - started}
        save_file({"latents": made.cpu().contiguous()}, folder / LATENTS_FILE)
        if (execution := execution_of(pipeline.transformer)).label:
            facts[EXECUTION] = asdict(execution)
        if policies:
            facts[STEPS_BY_CHOICE] = [form for policy in policies for form in policy.trace]
        (folder / FACTS_FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def decode_clip(
    pipeline: DiffusionPipeline, wanted: ClipTask, gen: GenSpec, store: Store, *, label: str
) -> float:
    """Decode the latents of one clip, publish the clip, and remove what was kept for it.

    Args:
        pipeline: With its decoder.
        wanted: The clip.
        gen: Generation settings.
        store: Has the latents and the encoded prompt.
        label: Of the row, for the journal.

    Returns:
        Seconds of denoising and decoding.

    Raises:
        DivergedError: The decoder's output is not finite; nothing is published.
        HarnessError: The latents are gone.
    """
    from safetensors.torch import load_file, save_file

    from harness.generate.video import MP4_CODEC, MP4_OPTIONS, MP4_PIXELS, write_lossless, write_mp4
    from harness.models.sample import decode

    kept = store.find("latents", latents_key(wanted.clip).key)
    if kept is None:
        raise HarnessError("the latents of a clip are gone", "run the same command again")
    started = time.perf_counter()
    latents = load_file(kept.folder / LATENTS_FILE)["latents"]
    conditioning = read_text(store, wanted.text)
    frames = decode(pipeline, latents, conditioning, gen, seed=wanted.noise_seed)
    told = kept.json(FACTS_FILE)
    told["seconds"] += time.perf_counter() - started
    about = {"label": label, "seconds": round(told["seconds"], 3)}
    with store.build("clip", wanted.clip.key, wanted.clip.inputs, about) as folder:
        write_mp4(folder / MP4_FILE, frames, fps=gen.fps)
        write_lossless(folder / LOSSLESS_FILE, frames, fps=gen.fps)
        save_file({"latents": latents.float()}, folder / LATENTS_FILE)
        facts = {
            "prompt": wanted.prompt.id,
            "text": wanted.prompt.text,
            "seed": wanted.seed,
            "noise_seed": wanted.noise_seed,
            ENCODER: {"codec": MP4_CODEC, "crf": MP4_OPTIONS["crf"], "pixels": MP4_PIXELS},
            CUT: read_cuts(store, wanted.text),
            **told,
        }
        (folder / FACTS_FILE).write_text(json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8")
    store.discard("latents", kept.key)
    return float(told["seconds"])


def cut_remarks(store: Store, clips: Sequence[ClipTask], model: str) -> list[str]:
    """What must be said of prompts that a text encoder does not read to their end.

    Args:
        store: Where the clips lie.
        clips: Those of a row that has all prompts.
        model: Name of the model.

    Returns:
        A line for each encoder that cut some.
    """
    cut: dict[str, dict[str, tuple[int, int]]] = {}
    for wanted in clips:
        clip = store.find("clip", wanted.clip.key)
        for one in () if clip is None else clip.json(FACTS_FILE).get(CUT, ()):
            prompts = cut.setdefault(str(one["tokenizer"]), {})
            prompts[wanted.prompt.id] = (int(one["limit"]), int(one["tokens"]))
    every = len({wanted.prompt.id for wanted in clips})
    return [
        f"{model}: {len(prompts)} of {every} prompts are cut at the {max(prompts.values())[0]} "
        f"tokens of its {name}, by up to {max(tokens for _, tokens in prompts.values())} tokens"
        for name, prompts in cut.items()
    ]
