"""A metric of one's own, in one file: how much a clip flickers, beside the unquantized one.

Takes a minute on two cores. From the command line it is named by module and class:

    PYTHONPATH=examples harness run --methods rtn --metrics my_metric:Flicker
"""

import numpy as np

import harness
from harness.api import Clip, HarnessError, Metric, Scorer


class Flicker(Scorer):
    """Mean change from one frame to the next."""

    name = "flicker"
    about = "mean change from frame to frame, and what quantization adds to it"
    metrics = (
        Metric(name="flicker", unit="levels", better="none", block="quality", interval=True),
        Metric(name="flicker_added", unit="levels", better="lower", block="fidelity to fp"),
    )
    paired = True  # `score` is given the unquantized clip of the same prompt and noise too
    packages = ("numpy",)  # another version makes the scores again

    def score(self, clip: Clip, reference: Clip) -> dict[str, float]:
        """Judge a clip; what has no such value says why."""
        if len(clip.frames()) < 2:
            raise HarnessError("a single frame cannot flicker", "generate more frames")
        own, exact = flicker(clip.frames()), flicker(reference.frames())
        return {"flicker": own, "flicker_added": own - exact}


def flicker(frames: np.ndarray) -> float:
    """Of uint8 frames ``[frames, height, width, 3]``, in levels of 255."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def main() -> None:
    """Show it beside the metrics that are always there."""
    run = harness.run_experiment(
        {"gen": {"steps": 10}, "execution": {"measure": False}},
        methods="rtn", bits="w4a4", limit=2, metrics="my_metric:Flicker", baselines=False,
    )  # fmt: skip
    frame = run.frame()
    mine = frame[frame.metric.isin(["flicker", "flicker_added", "psnr_db"])]
    print(mine.pivot_table(values="value", index=["method", "prompt"], columns="metric"))


if __name__ == "__main__":
    main()
