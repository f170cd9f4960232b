"""Colourfulness of a clip (Hasler and Suesstrunk, SPIE 2003) and its change against fp."""

from harness.api import Clip, Metric, Scorer


class Colourfulness(Scorer):
    name = "colourfulness"
    about = "how vivid the colours are, and the change against full precision"
    metrics = (
        Metric(
            name="colourfulness", unit="levels", title="colour-\nfulness", block="quality",
            digits=1, difference="vs fp", headline=True,
        ),
        Metric(name="colour_shift", unit="levels", better="lower", block="fidelity to fp"),
    )  # fmt: skip
    paired = True  # `score` is given the unquantized clip of the same prompt and seed too
    packages = ("numpy",)  # another version makes the scores again

    def score(self, clip: Clip, reference: Clip | None) -> dict[str, float]:
        own, exact = colourfulness(clip.frames()), colourfulness(reference.frames())
        return {"colourfulness": own, "colour_shift": abs(own - exact)}


def colourfulness(frames) -> float:
    """Of uint8 frames ``[frames, height, width, 3]``."""
    red, green, blue = (frames[..., i].astype(float) for i in range(3))
    opponents = (red - green, (red + green) / 2 - blue)
    spread = sum(o.var() for o in opponents) ** 0.5
    return float(spread + 0.3 * sum(o.mean() ** 2 for o in opponents) ** 0.5)
