"""Stage `record`: measure the exported pipeline; write down how it was made beside it."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from harness.models.shapes import DECODER_STAGES, GUIDANCE, STEPS, checkpoint
from harness.models.shapes.evaluate import evaluate, machine
from harness.models.shapes.world import SPLIT_SALT, held_out_combinations, training_combinations

if TYPE_CHECKING:
    from pathlib import Path

TRAINED = ("vae", "text", *DECODER_STAGES, "denoiser")
LAST_LINES = 10
EVALUATION_SEED = 1000


def _stage(folder: Path, stage: str) -> dict[str, Any]:
    """Return the steps, the seconds and the last losses of a stage."""
    state = checkpoint.read(folder / f"{stage}.pt") or {}
    lines = (folder / f"{stage}.log.jsonl").read_text(encoding="utf-8").splitlines()
    last = [json.loads(line) for line in lines[-LAST_LINES:]]
    return {
        "steps": int(state["step"]),
        "finished": bool(state["finished"]),
        "seconds": round(float(state["seconds"]), 1),
        "loss": round(sum(row["loss"] for row in last) / len(last), 5),
    }


def _notes(folder: Path) -> list[str]:
    """Return what a person wrote into `notes.txt` about the run, one note a line."""
    path = folder / "notes.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def write_record(folder: Path, pipeline: Path, *, seed: int, prompts: int) -> dict[str, Any]:
    """Measure `pipeline` and write `TRAINING.json` and `TRAINING.md` into it."""
    measured = evaluate(
        pipeline,
        prompts=prompts,
        seed=EVALUATION_SEED,
        steps=STEPS,
        guidance=GUIDANCE,
        sheet=folder / "sheet.png",
    )
    record = {
        "seed": seed,
        "command": f"python -m harness.models.shapes.train --out DIR --seed {seed}",
        "machine": machine(),
        "packages": {n: version(n) for n in ("torch", "diffusers", "transformers", "numpy")},
        "stages": {stage: _stage(folder, stage) for stage in TRAINED},
        "latents": {"shards": len(list((folder / "latents").glob("*.safetensors")))},
        "split": {
            "rule": SPLIT_SALT,
            "training": len(training_combinations()),
            "held_out": len(held_out_combinations()),
        },
        "notes": _notes(folder),
        "measured": measured,
        "files": {
            str(path.relative_to(pipeline)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(pipeline.rglob("*.safetensors"))
        },
    }
    checkpoint.publish_json(pipeline / "TRAINING.json", record)
    (pipeline / "TRAINING.md").write_text(markdown(record), encoding="utf-8")
    return record


def markdown(record: dict[str, Any]) -> str:
    """Return the record for people to read; `TRAINING.json` beside it has every number."""
    measured = record["measured"]
    trip, settings = measured["round_trip"], measured["settings"]
    stages = "\n".join(
        f"| {name} | {s['steps']} | {s['seconds'] / 60:.1f} | {s['loss']:.4f} |"
        for name, s in record["stages"].items()
    )
    rows = "\n".join(
        f"| {name} | {row['right']:.1%} | {row['ci95'][0]:.1%} to {row['ci95'][1]:.1%} "
        f"| {row['n']} | {row['margin']:.2f} |"
        for name, row in measured["oracle"].items()
    )
    notes = "".join(f"- {note}\n" for note in record["notes"])
    return f"""# How `shapes` was made

A real CogVideoX pipeline, trained from random weights on clips that
`harness/models/shapes/world.py` renders. `{record["command"]}` repeats it (seed {record["seed"]};
the arithmetic of another machine, thread count or library version gives other weights of the same
kind). Of the combinations of attributes, {record["split"]["training"]} were seen in training and
{record["split"]["held_out"]} were held out (rule `{record["split"]["rule"]}`).

## Training

Made on: {record["machine"]}.

| stage | steps | minutes | last loss |
| --- | ---: | ---: | ---: |
{stages}

{notes}
## Measured

Held-out prompts, {settings["steps"]} steps, guidance {settings["guidance"]}, seeds from
{settings["seed"]}, judged by the oracle with SHA-256 `{measured["oracle_digest"]}`:

| attribute | right | 95 % interval | n | mean margin |
| --- | ---: | ---: | ---: | ---: |
{rows}

Autoencoder round trip: {trip["psnr_db"]} dB (least {trip["psnr_db_min"]} dB, n = {trip["n"]}); the
oracle then finds {trip["oracle"]["conjunction"]:.1%} of the clips right. A clip takes
{measured["seconds_per_clip"]} s ({measured["machine"]}).
"""
