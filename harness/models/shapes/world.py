"""The world of the bundled model: one coloured shape that moves on a grey background.

A `Scene` is four attributes (what the caption says) and a few nuisance values (what it does not
say). Everything is a pure function of the scene, so a clip can be rendered again at any time. Only
numpy is used: the oracle, the prompts and the tests need no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import HarnessError
from harness.models.shapes import FRAMES, HEIGHT, WIDTH

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("white", "black", "striped", "checkered")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "growing",
    "shrinking",
    "rotating",
    "standing still",
)

COLOUR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 25),
    "orange": (250, 135, 10),
    "yellow": (235, 225, 20),
    "green": (25, 170, 40),
    "cyan": (20, 205, 215),
    "blue": (25, 60, 225),
    "purple": (125, 35, 195),
    "pink": (250, 90, 190),
}

# Grey levels only, so that a saturated pixel always belongs to the object. The textures lie on a
# grid of 8 pixels (two latent cells), so that a small autoencoder holds them.
WHITE_LEVEL, BLACK_LEVEL, DARK_LEVEL, LIGHT_LEVEL = 235, 20, 80, 150
STRIPE_PX, CHECKER_PX = 8, 16

HELD_OUT_ONE_IN = 5
SPLIT_SALT = "shapes-split-1"

# Extent of each shape per unit of size: the areas of all four are close to that of the circle, so
# that size does not give the shape away.
SQUARE_HALF_SIDE = math.sqrt(math.pi) / 2
TRIANGLE_CIRCUMRADIUS = 1.45
CROSS_HALF_LENGTH, CROSS_HALF_WIDTH = 1.25, 0.38


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Attributes:
    """What a caption says about a clip.

    Raises:
        HarnessError: a value is not of this world, or the combination cannot be seen.
    """

    shape: str
    colour: str
    background: str
    motion: str

    def __post_init__(self) -> None:
        """Refuse values and combinations that are not in the world."""
        known = {
            "shape": SHAPES,
            "colour": COLOURS,
            "background": BACKGROUNDS,
            "motion": MOTIONS,
        }
        for field, values in known.items():
            value = getattr(self, field)
            if value not in values:
                raise HarnessError(
                    f"{field} {value!r} is not in the world of `shapes`",
                    f"known: {', '.join(values)}",
                )
        if self.shape == "circle" and self.motion == "rotating":
            raise HarnessError(
                "a rotating circle cannot be told from one that stands still",
                "ask for a square, a triangle or a cross, or for another motion",
            )

    def as_dict(self) -> dict[str, str]:
        """Return the attributes as a plain dictionary, in a fixed order."""
        return {
            "shape": self.shape,
            "colour": self.colour,
            "background": self.background,
            "motion": self.motion,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A clip before it is rendered: attributes and nuisance, lengths in pixels, angles in radians.

    `centre_x` and `centre_y` are the middle of the path; `travel` is its whole length; `growth` is
    the ratio of the larger to the smaller size; `turn` is the whole rotation, clockwise.
    """

    attributes: Attributes
    centre_x: float = WIDTH / 2
    centre_y: float = HEIGHT / 2
    size: float = 13.0
    travel: float = 22.0
    growth: float = 2.0
    turn: float = math.pi / 2


@cache
def combinations() -> tuple[Attributes, ...]:
    """Return every combination of attributes of the world, in a fixed order."""
    found = []
    for shape, colour, background, motion in itertools.product(
        SHAPES, COLOURS, BACKGROUNDS, MOTIONS
    ):
        if not (shape == "circle" and motion == "rotating"):
            found.append(
                Attributes(shape=shape, colour=colour, background=background, motion=motion)
            )
    return tuple(found)


def is_held_out(attributes: Attributes) -> bool:
    """Say whether a combination is kept from training (about one in `HELD_OUT_ONE_IN`)."""
    text = ":".join((SPLIT_SALT, *attributes.as_dict().values()))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return number % HELD_OUT_ONE_IN == 0


@cache
def training_combinations() -> tuple[Attributes, ...]:
    """Return the combinations that the model is trained on."""
    return tuple(a for a in combinations() if not is_held_out(a))


@cache
def held_out_combinations() -> tuple[Attributes, ...]:
    """Return the combinations that the model never sees in training."""
    return tuple(a for a in combinations() if is_held_out(a))


def caption(subject: Scene | Attributes) -> str:
    """Return the caption of a scene; `parse_caption` is its exact inverse."""
    a = subject.attributes if isinstance(subject, Scene) else subject
    return f"a {a.colour} {a.shape} {a.motion} on a {a.background} background"


_CAPTION = re.compile(
    rf"a (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)}) "
    rf"(?P<motion>{'|'.join(MOTIONS)}) on a (?P<background>{'|'.join(BACKGROUNDS)}) background"
)


def parse_caption(text: str) -> Attributes:
    """Read the attributes back from a caption.

    Raises:
        HarnessError: the text is not a caption of this world.
    """
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise HarnessError(
            f"{text!r} is not a caption of the world of `shapes`",
            "captions read: a red square moving left on a striped background",
        )
    return Attributes(**match.groupdict())


def sample_scene(attributes: Attributes, rng: np.random.Generator) -> Scene:
    """Draw the nuisance of a scene: modest, so that a small model learns the world quickly."""
    return Scene(
        attributes=attributes,
        centre_x=WIDTH / 2 + rng.uniform(-2.0, 2.0),
        centre_y=HEIGHT / 2 + rng.uniform(-2.0, 2.0),
        size=rng.uniform(12.2, 13.8),
        travel=rng.uniform(20.0, 24.0),
        growth=rng.uniform(1.9, 2.2),
        turn=math.pi / 2 * rng.uniform(0.9, 1.1),
    )


@cache
def background_levels(background: str) -> NDArray[np.float32]:
    """Return the grey levels of a background, [height, width], 0 to 255."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    if background == "striped":
        dark = (y // STRIPE_PX) % 2 == 0
    elif background == "checkered":
        dark = (y // CHECKER_PX + x // CHECKER_PX) % 2 == 0
    else:
        level = WHITE_LEVEL if background == "white" else BLACK_LEVEL
        return np.full((HEIGHT, WIDTH), level, np.float32)
    return np.where(dark, DARK_LEVEL, LIGHT_LEVEL).astype(np.float32)


def signed_distance(
    shape: str, x: NDArray[np.float32], y: NDArray[np.float32], size: NDArray[np.float32] | float
) -> NDArray[np.float32]:
    """Return about the distance to the outline in pixels, negative inside; y points down."""
    if shape == "circle":
        distance = np.hypot(x, y) - size
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - SQUARE_HALF_SIDE * size
    elif shape == "triangle":
        inradius = TRIANGLE_CIRCUMRADIUS * size / 2
        slope = np.abs(x) * (math.sqrt(3) / 2) - y / 2
        distance = np.maximum(y, slope) - inradius
    else:
        along, across = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        distance = np.maximum(along - CROSS_HALF_LENGTH * size, across - CROSS_HALF_WIDTH * size)
    return np.asarray(distance, np.float32)


def object_masks(scene: Scene) -> NDArray[np.float32]:
    """Return how much of each pixel the object covers, [frames, height, width], 0 to 1."""
    motion = scene.attributes.motion
    phase = np.linspace(-0.5, 0.5, FRAMES, dtype=np.float32)[:, None, None]
    across = {"moving left": -1, "moving right": 1}.get(motion, 0)
    down = {"moving up": -1, "moving down": 1}.get(motion, 0)
    grow = {"growing": 1, "shrinking": -1}.get(motion, 0)
    turn = (phase + 0.5) * scene.turn if motion == "rotating" else np.zeros_like(phase)
    size = scene.size * (1.0 + grow * phase * 2 * (scene.growth - 1) / (scene.growth + 1))
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    x = x[None] + 0.5 - (scene.centre_x + across * scene.travel * phase)
    y = y[None] + 0.5 - (scene.centre_y + down * scene.travel * phase)
    cos, sin = np.cos(turn), np.sin(turn)
    distance = signed_distance(scene.attributes.shape, cos * x + sin * y, cos * y - sin * x, size)
    # A linear ramp of one pixel is the coverage of an edge that is locally straight.
    return np.asarray(np.clip(0.5 - distance, 0.0, 1.0), np.float32)


def render(scene: Scene) -> NDArray[np.uint8]:
    """Render a scene: uint8 RGB frames, [frames, height, width, 3]."""
    cover = object_masks(scene)[..., None]
    colour = np.asarray(COLOUR_RGB[scene.attributes.colour], np.float32)
    grey = background_levels(scene.attributes.background)[None, :, :, None]
    return np.rint(cover * colour + (1.0 - cover) * grey).astype(np.uint8)
