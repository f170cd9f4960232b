"""Full precision once more: the noise floor of everything that is paired with ``fp``."""

from __future__ import annotations

from baselines.fp import FP
from harness.api import Reproduction


class Control(FP):
    """Repeat the reference row; on a deterministic device its difference to ``fp`` is zero."""

    name = "control"
    reproduction = Reproduction(
        title="Full precision, repeated", source="the model's own release", code="diffusers"
    )
