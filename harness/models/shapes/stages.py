"""What each training stage does, with the budgets that made the shipped weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.models.shapes.loop import Progress, Run

if TYPE_CHECKING:
    import argparse

STEPS = {
    "vae": 1500,
    "text": 1000,
    "decoder": 900,
    "refine": 850,
    "sharpen": 640,
    "polish": 480,
    "denoiser": 3350,
}
COOLDOWN = {
    "vae": 900,
    "text": 400,
    "decoder": 600,
    "refine": 600,
    "sharpen": 620,
    "polish": 450,
    "denoiser": 950,
}
# The autoencoder's rate does not fall to zero: its decoder is trained further in stage `decoder`.
FLOOR = {"vae": 4 / 13}


def _run(stage: str, args: argparse.Namespace, minutes: float | None) -> Run:
    steps = args.steps if args.steps is not None else STEPS[stage]
    cooldown = args.cooldown if args.cooldown is not None else min(COOLDOWN[stage], steps)
    return Run(
        folder=args.out,
        stage=stage,
        steps=steps,
        cooldown=cooldown,
        floor=FLOOR.get(stage, 0.0),
        seed=args.seed,
        minutes=minutes,
    )


def run_stage(stage: str, args: argparse.Namespace, minutes: float | None) -> bool:
    """Run one stage; return whether it is finished.

    Each stage imports its own modules, so that one that needs no transformer library loads none.
    """
    progress: Progress
    if stage == "vae":
        from harness.models.shapes.train_vae import train_vae

        progress = train_vae(_run(stage, args, minutes))
    elif stage == "decoder":
        from harness.models.shapes.train_vae import train_decoder

        progress = train_decoder(_run(stage, args, minutes))
    elif stage == "refine":
        from harness.models.shapes.train_vae import train_decoder

        progress = train_decoder(_run(stage, args, minutes), after="decoder")
    elif stage == "sharpen":
        from harness.models.shapes.train_vae import train_decoder

        progress = train_decoder(_run(stage, args, minutes), after="refine", muon=True)
    elif stage == "polish":
        from harness.models.shapes.train_vae import train_decoder

        progress = train_decoder(_run(stage, args, minutes), after="sharpen", muon=True, plain=True)
    elif stage == "text":
        from harness.models.shapes.train_text import train_text

        progress = train_text(_run(stage, args, minutes))
    elif stage == "latents":
        from harness.models.shapes.latents import encode_clips

        return encode_clips(args.out, seed=args.seed, minutes=minutes, count=args.clips)
    elif stage == "denoiser":
        from harness.models.shapes.train_denoiser import train_denoiser

        progress = train_denoiser(_run(stage, args, minutes))
    elif stage == "export":
        from harness.models.shapes.export import export

        export(args.out, args.out / "pipeline")
        return True
    else:
        from harness.models.shapes.record import write_record

        write_record(args.out, args.out / "pipeline", seed=args.seed, prompts=args.prompts)
        return True
    return progress.finished
