"""The oracle of the bundled model: what a clip shows, measured from its pixels alone.

The world of `shapes` is synthetic, so a clip can be judged without a learned judge. The object is
what is coloured (backgrounds are grey); its hue, its outline, its path, its size and its
orientation over time are compared with what the world can show. Every attribute gets a margin in
[-1, 1]: positive means that the asked value is nearer than every other value *and* near enough to
count at all, so noise and empty clips are wrong and not merely undecided.

It was frozen before the denoiser was trained; the training record keeps `digest()`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from harness.models.shapes import HEIGHT, WIDTH
from harness.models.shapes.world import (
    BACKGROUNDS,
    COLOUR_RGB,
    COLOURS,
    MOTIONS,
    SHAPES,
    Attributes,
    background_levels,
    signed_distance,
)

Array = NDArray[np.float64]

VERSION = 1
NOTHING = "nothing"

MIN_CHROMA = 50.0  # weaker colour than this (of 255) is grey
MIN_AREA_PX, MAX_AREA_PX = 60, 2000  # the world's objects cover 180 to 1100 pixels
NOISE_PX = 0.5  # width of the smoothing of colours
HALO, FULL = 0.4, 0.95  # a decoder bleeds colour: less than HALO of the peak is none, FULL is all
MIN_SEEN = 0.8  # share of the frames in which one object must be found
HUE_LIMIT_RAD = math.radians(28)  # the nearest two hues of the world are 25 degrees apart
LEVEL_LIMIT = 30.0  # mean grey-level error of a background that still counts
SHAPE_LIMIT = 0.85  # correlation with a shape's outline that counts at all
SHAPE_UNIT = 0.06  # gap of correlations that is a full margin: that between clean outlines
MOTION_LIMIT = 0.75
TRAVEL_PX, GROWTH_LOG_AREA, TURN_RAD = 22.0, 2 * math.log(2.0), math.pi / 2
JITTER_PX = 6.0

PATCH_SIDE, PATCH_RADII = 32, 1.75
ORIENTATIONS = 18
TEMPLATE_BLURS = (0.0, 2.0)  # patch pixels: a sharp and a soft version of every outline
SYMMETRY = {"circle": 0, "square": 4, "triangle": 3, "cross": 4}

# The features of each motion: path right, path down, growth of the area, turn; jitter comes fifth.
MOTION_FEATURES: dict[str, tuple[float, float, float, float, float]] = {
    "moving left": (-1, 0, 0, 0, 0),
    "moving right": (1, 0, 0, 0, 0),
    "moving up": (0, -1, 0, 0, 0),
    "moving down": (0, 1, 0, 0, 0),
    "growing": (0, 0, 1, 0, 0),
    "shrinking": (0, 0, -1, 0, 0),
    "rotating": (0, 0, 0, 1, 0),
    "standing still": (0, 0, 0, 0, 0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One attribute: what was asked, what was seen, how clearly (margin in [-1, 1])."""

    asked: str
    seen: str
    margin: float

    @property
    def right(self) -> bool:
        """Say whether the clip shows what was asked."""
        return self.margin > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the oracle says about one clip."""

    shape: Finding
    colour: Finding
    background: Finding
    motion: Finding

    def margins(self) -> dict[str, float]:
        """Return the margin of every attribute and of their conjunction (the least of them)."""
        each = {
            "shape": self.shape.margin,
            "colour": self.colour.margin,
            "background": self.background.margin,
            "motion": self.motion.margin,
        }
        return each | {"conjunction": min(each.values())}

    def right(self) -> dict[str, bool]:
        """Return yes or no for every attribute and for their conjunction."""
        return {name: margin > 0 for name, margin in self.margins().items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """The object in the frames that show one.

    `times` [n] frame numbers, `cover` [n, height, width] in [0, 1], `centres` [n, 2] (x, y) and
    `radii` [n] (of the disc of equal area) in pixels, `rgb` [3] the mean colour.
    """

    times: Array
    cover: Array
    centres: Array
    radii: Array
    rgb: Array


def digest() -> str:
    """Return the SHA-256 of this source file: which oracle judged."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def judge(frames: NDArray[np.uint8], asked: Attributes) -> Verdict:
    """Judge one clip.

    Args:
        frames: RGB frames, uint8 [frames, height, width, 3]. Anything else, also an empty array,
            shows nothing and is wrong in every attribute.
        asked: What the prompt asks for.

    Returns:
        The verdict; it never raises on account of the pixels.
    """
    sighting = _sight(np.asarray(frames))
    if sighting is None:
        wrong = {k: Finding(asked=v, seen=NOTHING, margin=-1.0) for k, v in asked.as_dict().items()}
        return Verdict(**wrong)
    outline = _outline_scores(sighting)
    shape = _most(outline)
    hue = _hue_distances(sighting.rgb)
    ground = _background_distances(np.asarray(frames), sighting)
    path = _motion_distances(sighting, shape)
    gap = outline[asked.shape] - max(v for k, v in outline.items() if k != asked.shape)
    enough = (outline[asked.shape] - SHAPE_LIMIT) / (1 - SHAPE_LIMIT)
    other_path = min(v for k, v in path.items() if k != asked.motion)
    near = (MOTION_LIMIT - path[asked.motion]) / MOTION_LIMIT
    return Verdict(
        shape=_finding(asked.shape, shape, min(gap / SHAPE_UNIT, enough)),
        colour=_nearest(asked.colour, hue, HUE_LIMIT_RAD),
        background=_nearest(asked.background, ground, LEVEL_LIMIT),
        motion=_finding(asked.motion, _least(path), min(other_path - path[asked.motion], near)),
    )


def _finding(asked: str, seen: str, margin: float) -> Finding:
    return Finding(asked=asked, seen=seen, margin=float(np.clip(margin, -1.0, 1.0)))


def _most(scores: dict[str, float]) -> str:
    return max(scores, key=lambda name: scores[name])


def _least(scores: dict[str, float]) -> str:
    return min(scores, key=lambda name: scores[name])


def _nearest(asked: str, distances: dict[str, float], limit: float) -> Finding:
    """Compare the asked value's distance with the nearest other value's and with the limit."""
    own = distances[asked]
    other = min(v for k, v in distances.items() if k != asked)
    margin = min((other - own) / (other + own + 1e-9), (limit - own) / limit)
    return _finding(asked, _least(distances), margin)


def _chroma(frames: NDArray[np.uint8]) -> Array:
    """Return how coloured each pixel is, [frames, height, width], smoothed against noise."""
    smooth = ndimage.gaussian_filter(frames.astype(np.float64), (0, NOISE_PX, NOISE_PX, 0))
    return np.asarray(smooth.max(-1) - smooth.min(-1))


def _sight(frames: NDArray[np.uint8]) -> Sighting | None:
    """Find the object, or return None where the clip shows none or is no clip."""
    if frames.ndim != 4 or frames.shape[1:] != (HEIGHT, WIDTH, 3) or frames.dtype != np.uint8:
        return None
    if len(frames) < 2:
        return None
    chroma = _chroma(frames)
    strongest = np.sort(chroma.reshape(len(frames), -1), axis=1)[:, -MIN_AREA_PX:]
    peak = float(np.median(strongest))
    if peak < MIN_CHROMA:
        return None
    cover = np.clip((chroma / peak - HALO) / (FULL - HALO), 0.0, 1.0)
    times, covers, centres, radii = [], [], [], []
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    for time, amount in enumerate(cover):
        own = _largest_part(amount > 0.5)
        if own is None:
            continue
        # A margin of two pixels keeps the soft edge and drops specks elsewhere.
        soft = np.where(ndimage.binary_dilation(own, iterations=2), amount, 0.0)
        mass = soft.sum()
        times.append(time)
        covers.append(soft)
        centres.append((float((soft * x).sum() / mass), float((soft * y).sum() / mass)))
        radii.append(math.sqrt(float(mass) / math.pi))
    if len(times) < max(2.0, MIN_SEEN * len(frames)):
        return None
    stacked = np.stack(covers)
    inside = stacked > 0.85
    if not inside.any():
        return None
    return Sighting(
        times=np.asarray(times, np.float64),
        cover=stacked,
        centres=np.asarray(centres),
        radii=np.asarray(radii),
        rgb=frames[times][inside].astype(np.float64).mean(0),
    )


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return the one connected part that can be the object, or None."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return None
    areas = np.bincount(parts.ravel())[1:]
    best = int(areas.argmax())
    if not MIN_AREA_PX <= areas[best] <= MAX_AREA_PX or areas[best] < 0.6 * areas.sum():
        return None
    return np.asarray(parts == best + 1)


def _hue(rgb: Array) -> Array:
    """Return the direction of a colour in the plane across the grey axis, unit length [2]."""
    red, green, blue = rgb
    plane = np.array([(2 * red - green - blue) / math.sqrt(6), (green - blue) / math.sqrt(2)])
    return np.asarray(plane / (np.linalg.norm(plane) + 1e-9))


def _hue_distances(rgb: Array) -> dict[str, float]:
    """Return the angle between the seen hue and every colour's, radians."""
    seen = _hue(rgb)
    known = {name: _hue(np.asarray(COLOUR_RGB[name], np.float64)) for name in COLOURS}
    return {k: float(np.arccos(np.clip(seen @ v, -1.0, 1.0))) for k, v in known.items()}


def _background_distances(frames: NDArray[np.uint8], sighting: Sighting) -> dict[str, float]:
    """Return the mean grey-level error against every background where no object is near."""
    times = sighting.times.astype(int)
    free = ~ndimage.binary_dilation(sighting.cover > 0.2, np.ones((1, 5, 5), bool))
    grey = ndimage.uniform_filter(frames[times].astype(np.float64).mean(-1), (1, 3, 3))
    distances = {}
    for name in BACKGROUNDS:
        level = ndimage.uniform_filter(background_levels(name).astype(np.float64), 3)
        error = np.abs(grey - level)[free]
        distances[name] = float(error.mean()) if error.size else math.inf
    return distances if free.mean() > 0.1 else dict.fromkeys(BACKGROUNDS, 255.0)


def _normal(patch: Array) -> Array:
    """Return a patch as a vector of mean 0 and length 1, so that a product is a correlation."""
    flat = patch.ravel() - patch.mean()
    return np.asarray(flat / (np.linalg.norm(flat) + 1e-9))


@cache
def _templates() -> dict[str, Array]:
    """Return the outline of every shape at several orientations and blurs, [rows, patch pixels]."""
    step = 2 * PATCH_RADII / PATCH_SIDE
    y, x = (np.mgrid[0:PATCH_SIDE, 0:PATCH_SIDE] + 0.5) * step - PATCH_RADII
    templates = {}
    for shape in SHAPES:
        order = SYMMETRY[shape]
        turns = np.arange(ORIENTATIONS if order else 1) * math.tau / max(order, 1) / ORIENTATIONS
        # The size whose area is that of the unit disc, by counting a fine raster.
        fine = np.mgrid[-2:2:400j, -2:2:400j].astype(np.float32)
        area = float((signed_distance(shape, fine[1], fine[0], 1.0) < 0).mean()) * 16
        size = math.sqrt(math.pi / area)
        rows = []
        for turn in turns:
            cos, sin = math.cos(turn), math.sin(turn)
            u, v = (cos * x + sin * y).astype(np.float32), (cos * y - sin * x).astype(np.float32)
            soft = 0.5 - signed_distance(shape, u, v, size) / (2 * step)
            outline = np.clip(soft, 0.0, 1.0).astype(np.float64)
            rows += [_normal(ndimage.gaussian_filter(outline, blur)) for blur in TEMPLATE_BLURS]
        templates[shape] = np.asarray(rows, np.float64)
    return templates


def _outline_scores(sighting: Sighting) -> dict[str, float]:
    """Return for every shape the median over frames of its best correlation with the object."""
    step = 2 * PATCH_RADII / PATCH_SIDE
    offsets = (np.arange(PATCH_SIDE) + 0.5) * step - PATCH_RADII
    scores: dict[str, list[float]] = {name: [] for name in SHAPES}
    for cover, (x, y), radius in zip(sighting.cover, sighting.centres, sighting.radii, strict=True):
        rows = y - 0.5 + offsets * radius
        columns = x - 0.5 + offsets * radius
        grid = np.meshgrid(rows, columns, indexing="ij")
        patch = ndimage.map_coordinates(cover, grid, order=1, mode="constant")
        for name, rows_of in _templates().items():
            scores[name].append(float((rows_of @ _normal(patch)).max()))
    return {name: float(np.median(values)) for name, values in scores.items()}


def _turn(sighting: Sighting, order: int, last: float) -> float:
    """Return the size of the whole rotation in radians, from the phase of the outline's moment."""
    if order == 0:
        return 0.0
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    phases = []
    for cover, (cx, cy) in zip(sighting.cover, sighting.centres, strict=True):
        z = ((x - cx) + 1j * (y - cy)) / 10.0
        moment = (cover * z**order).sum()
        phases.append(moment / (abs(moment) + 1e-9))
    totals = np.linspace(-math.pi, math.pi, 361)
    rates = order * totals[:, None] * (sighting.times / last)
    strength = np.abs((np.asarray(phases) * np.exp(-1j * rates)).mean(1))
    best = int(strength.argmax())
    # An orientation that follows no steady rotation counts in proportion to how steady it is.
    return abs(float(totals[best])) * float(strength[best])


def _motion_distances(sighting: Sighting, shape: str) -> dict[str, float]:
    """Return the distance of the clip's motion features from those of every motion."""
    times = sighting.times
    last = float(times[-1]) if times[-1] > 0 else 1.0
    area = 2 * np.log(sighting.radii)
    slopes = [stats.theilslopes(v, times) for v in (*sighting.centres.T, area)]
    path = np.stack([s.intercept + s.slope * times for s in slopes[:2]], axis=1)
    jitter = float(np.sqrt(np.square(sighting.centres - path).sum(1).mean()))
    seen = np.array(
        [
            slopes[0].slope * last / TRAVEL_PX,
            slopes[1].slope * last / TRAVEL_PX,
            slopes[2].slope * last / GROWTH_LOG_AREA,
            _turn(sighting, SYMMETRY[shape], last) / TURN_RAD,
            jitter / JITTER_PX,
        ]
    )
    return {k: float(np.linalg.norm(seen - np.asarray(MOTION_FEATURES[k]))) for k in MOTIONS}
