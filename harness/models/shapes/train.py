"""The training command of the bundled model: `python -m harness.models.shapes.train --out DIR`.

The stages run in order and each leaves its result in DIR; the same command goes on where the last
call stopped, whether it was finished, out of minutes or killed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness.models.shapes import DECODER_STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

STAGES = ("vae", "text", "latents", *DECODER_STAGES, "denoiser", "export", "record")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m harness.models.shapes.train")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--stage", choices=STAGES, help="run one stage only")
    parser.add_argument("--minutes", type=float, help="stop this call after so many minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of the one stage, not its default")
    parser.add_argument("--cooldown", type=int, help="last steps, on which the rate falls to zero")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clips", type=int, help="clips that stage latents encodes")
    parser.add_argument("--prompts", type=int, default=64, help="prompts that stage record judges")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages that are not finished; return 0 when all are, 3 when minutes ran out."""
    args = _arguments(argv)
    import torch

    from harness.models.shapes.stages import run_stage

    torch.set_num_threads(args.threads)
    begun_s = time.monotonic()
    for stage in (args.stage,) if args.stage else STAGES:
        left = None
        if args.minutes is not None:
            left = args.minutes - (time.monotonic() - begun_s) / 60
        if not run_stage(stage, args, left):
            print(f"{stage}: not finished; the same command goes on")
            return 3
        print(f"{stage}: finished", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
