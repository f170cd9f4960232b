"""Measure the bundled model: `python -m harness.models.shapes.evaluate --weights DIR --prompts 64`.

It generates the held-out evaluation prompts with the shipped settings, lets the oracle judge, and
prints the share of right clips with its 95 % interval, the autoencoder's round trip, the seconds a
clip takes and the machine they were measured on.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats

from harness.models.shapes import (
    FRAMES,
    GUIDANCE,
    HEIGHT,
    MAX_TEXT_TOKENS,
    STEPS,
    WIDTH,
    oracle,
    weights_dir,
)
from harness.models.shapes.prompts import evaluation_attributes
from harness.models.shapes.train_vae import to_pixels
from harness.models.shapes.world import (
    Attributes,
    caption,
    held_out_combinations,
    render,
    sample_scene,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ROUND_TRIP_CLIPS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """Generated clips, uint8 [clips, frames, height, width, 3], and the seconds they took."""

    frames: NDArray[np.uint8]
    seconds: float


def load_pipeline(folder: Path) -> Any:
    """Load the pipeline in single precision, quiet."""
    from diffusers import CogVideoXPipeline

    pipeline = CogVideoXPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: Any, texts: Sequence[str], *, seed: int, steps: int, guidance: float, batch: int = 4
) -> Generated:
    """Generate one clip a text; the noise of clip i comes from a generator seeded `seed + i`."""
    clips, begun_s = [], time.monotonic()
    for first in range(0, len(texts), batch):
        part = list(texts[first : first + batch])
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        out = pipeline(
            part,
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=MAX_TEXT_TOKENS,
            generator=generators,
            output_type="np",
        )
        clips.append(np.rint(out.frames * 255).astype(np.uint8))
    return Generated(frames=np.concatenate(clips), seconds=time.monotonic() - begun_s)


def judge_all(
    frames: NDArray[np.uint8], asked: Sequence[Attributes]
) -> tuple[dict[str, dict[str, Any]], list[oracle.Verdict]]:
    """Return the accuracy and mean margin of every attribute, with n and a 95 % interval."""
    verdicts = [oracle.judge(clip, a) for clip, a in zip(frames, asked, strict=True)]
    table: dict[str, dict[str, Any]] = {}
    for name in ("colour", "background", "shape", "motion", "conjunction"):
        right = [v.right()[name] for v in verdicts]
        interval = stats.binomtest(sum(right), len(right)).proportion_ci(method="wilson")
        table[name] = {
            "right": round(sum(right) / len(right), 4),
            "n": len(right),
            "ci95": [round(float(interval.low), 4), round(float(interval.high), 4)],
            "margin": round(float(np.mean([v.margins()[name] for v in verdicts])), 4),
        }
    return table, verdicts


@torch.no_grad()
def round_trip(vae: Any, count: int = ROUND_TRIP_CLIPS, seed: int = 1) -> dict[str, Any]:
    """Encode and decode fresh clips of held-out combinations.

    Returns:
        The mean PSNR over clips in dB (of 8-bit frames) and the oracle's accuracies afterwards.
    """
    rng, known = np.random.default_rng(seed), held_out_combinations()
    asked = [known[i] for i in rng.integers(len(known), size=count)]
    decibels, decoded = [], []
    for attributes in asked:
        frames = render(sample_scene(attributes, rng))
        latents = vae.encode(to_pixels(frames)[None]).latent_dist.mean
        pixels = ((vae.decode(latents).sample[0] + 1) * 127.5).clamp(0, 255).round()
        decoded.append(pixels.movedim(0, -1).to(torch.uint8).numpy())
        error = decoded[-1].astype(np.float64) - frames
        decibels.append(10 * np.log10(255.0**2 / np.square(error).mean()))
    table, _ = judge_all(np.stack(decoded), asked)
    return {
        "psnr_db": round(float(np.mean(decibels)), 2),
        "psnr_db_min": round(float(np.min(decibels)), 2),
        "n": count,
        "oracle": {name: row["right"] for name, row in table.items()},
    }


def contact_sheet(
    frames: NDArray[np.uint8], path: Path, shown: Sequence[int] = (0, 4, 8, 12, 16)
) -> None:
    """Write a PNG with one row a clip (two columns of clips) and some of its frames."""
    from PIL import Image

    rows = [np.concatenate([clip[i] for i in shown], axis=1) for clip in frames]
    rows = [np.pad(row, ((1, 1), (1, 7), (0, 0)), constant_values=128) for row in rows]
    half = (len(rows) + 1) // 2
    rows += [np.zeros_like(rows[0])] * (2 * half - len(rows))
    sheet = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], axis=1)
    Image.fromarray(sheet).save(path)


def machine() -> str:
    """Name the processor, the threads and the library that the times belong to."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [x for x in information.read_text().splitlines() if x.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def evaluate(
    folder: Path, *, prompts: int, seed: int, steps: int, guidance: float, sheet: Path | None
) -> dict[str, Any]:
    """Measure a pipeline folder; see the module's docstring."""
    pipeline = load_pipeline(folder)
    asked = evaluation_attributes(prompts)
    texts = [caption(a) for a in asked]
    generate(pipeline, texts[:1], seed=seed, steps=2, guidance=guidance)
    single = generate(pipeline, texts[:3], seed=seed, steps=steps, guidance=guidance, batch=1)
    made = generate(pipeline, texts, seed=seed, steps=steps, guidance=guidance)
    table, verdicts = judge_all(made.frames, asked)
    if sheet is not None:
        contact_sheet(made.frames, sheet)
    wrong = [
        {"text": text}
        | {k: getattr(v, k).seen for k, ok in v.right().items() if k in a.as_dict() and not ok}
        for text, a, v in zip(texts, asked, verdicts, strict=True)
        if not v.right()["conjunction"]
    ]
    return {
        "oracle": table,
        "oracle_digest": oracle.digest(),
        "settings": {"steps": steps, "guidance": guidance, "seed": seed},
        "seconds_per_clip": round(single.seconds / min(3, prompts), 3),
        "seconds_per_clip_in_batches_of_4": round(made.seconds / prompts, 3),
        "round_trip": round_trip(pipeline.vae),
        "machine": machine(),
        "wrong": wrong,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the measurement as JSON."""
    parser = argparse.ArgumentParser(prog="python -m harness.models.shapes.evaluate")
    parser.add_argument("--weights", type=Path, default=weights_dir())
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice otherwise")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet PNG here")
    args = parser.parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    measured = evaluate(
        args.weights,
        prompts=args.prompts,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        sheet=args.sheet,
    )
    print(json.dumps(measured, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
