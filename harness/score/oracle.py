"""What a clip of the bundled model shows, as the oracle measures it from the pixels.

Colour, shape, background and motion, each as a yes or no and as a margin that moves before a yes
turns into a no; ``all`` wants the four at once. The measuring is ``harness.models.shapes.oracle``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.score.scorer import TAGS, Clip, Scorer
from harness.spec import QUALITY, Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.spec import ModelSpec, Prompt

ASPECTS = ("colour", "shape", "background", "motion")
CONJUNCTION = "all"
_TITLES = {"background": "backgr."}


class Oracle(Scorer):
    """Does the clip show what was asked?"""

    name = "oracle"
    about = "what is seen in the clip, bundled models, always"
    metrics = (
        Metric(
            name=f"oracle_{CONJUNCTION}", unit="bool", better="higher", title="all right\n%",
            block=QUALITY, digits=1, interval_digits=0, scale=100, interval=True,
            difference="vs fp\npoints", headline=True,
        ),
        Metric(
            name=f"margin_{CONJUNCTION}", unit="margin", better="higher", title="margin",
            block=QUALITY, digits=3, difference="vs fp\nmargin", headline=True,
        ),
        *(
            Metric(
                name=f"oracle_{aspect}", unit="bool", better="higher",
                title=f"{_TITLES.get(aspect, aspect)}\n%", block=QUALITY, digits=1, scale=100,
            )
            for aspect in ASPECTS
        ),
        *(
            Metric(
                name=f"margin_{aspect}", unit="margin", better="higher",
                title=f"margin\n{aspect}", block=QUALITY, digits=3, shown=False,
            )
            for aspect in ASPECTS
        ),
    )  # fmt: skip
    always = True
    asks = TAGS
    packages = ("numpy", "scipy")
    sources = ("harness.models.shapes.oracle", "harness.models.shapes.world")

    def refusal(self, model: ModelSpec, prompts: Sequence[Prompt], clips: int) -> str:
        """It knows the world of the bundled models, and prompts that say in tags what they show."""
        del clips
        if model.judge != self.name:
            return "the oracle knows the bundled models only"
        if not all(set(ASPECTS) <= dict(prompt.tags).keys() for prompt in prompts):
            return "the prompts do not say in tags what they show"
        return ""

    def score(self, clip: Clip, reference: Clip | None) -> dict[str, float]:
        """Measure what the exact frames show."""
        from harness.models.shapes.oracle import judge
        from harness.models.shapes.world import Attributes

        del reference
        tags = dict(clip.prompt.tags)
        asked = Attributes(**{aspect: tags[aspect] for aspect in ASPECTS})
        verdict = judge(clip.frames(), asked)
        names = {aspect: aspect for aspect in ASPECTS} | {"conjunction": CONJUNCTION}
        found = {f"oracle_{names[k]}": float(right) for k, right in verdict.right().items()}
        return found | {f"margin_{names[k]}": margin for k, margin in verdict.margins().items()}
