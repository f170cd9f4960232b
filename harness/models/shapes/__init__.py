"""The bundled model `shapes`: its default generation settings and where its weights lie.

This module imports nothing heavy: the command line reads the settings without importing torch.
"""

from __future__ import annotations

from pathlib import Path

NAME = "shapes"
HEIGHT = 64
WIDTH = 64
FRAMES = 17
FPS = 8
STEPS = 20
GUIDANCE = 2.0
MAX_TEXT_TOKENS = 24
DECODER_STAGES = ("decoder", "refine", "sharpen", "polish")
"""The steps in which the decoder of the VAE is trained, in order."""


def weights_dir() -> Path:
    """Return the folder of the shipped weights, in diffusers format."""
    return Path(__file__).parent / "weights"
