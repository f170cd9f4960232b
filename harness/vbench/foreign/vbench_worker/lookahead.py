"""Batches without touching the official loops.

The official loops ask their models for one frame after the other. A stand-in is told beforehand
what will be asked, computes the answers a batch at a time, and hands out one per call; it checks
that what is asked is what it was told.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vbench_worker.substitute import replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Compute = Callable[..., list[Any]]


class OutOfStepError(Exception):
    """The official loop asked for something else than it was expected to ask."""


class Ahead:
    """Answers to a known sequence of questions, computed a batch at a time.

    Args:
        batch: Questions per batch.
        compute: Takes the questions of a batch, each a tuple of tensors of shape [1, ...], and the
            keyword arguments of the call; returns one answer per question.
    """

    def __init__(self, batch: int, compute: Compute) -> None:
        self._batch = batch
        self._compute = compute
        self._questions: Sequence[tuple[torch.Tensor, ...]] = ()
        self._answers: list[Any] = []

    def expect(self, questions: Sequence[tuple[torch.Tensor, ...]]) -> None:
        """Say what will be asked, in order."""
        self._questions, self._answers = questions, []
        self._next = 0

    def ask(self, question: tuple[torch.Tensor, ...], **options: Any) -> Any:
        """The answer to the next question.

        Raises:
            OutOfStepError: If it is not the expected one.
        """
        i = self._next
        if i >= len(self._questions) or not _equal(question, self._questions[i]):
            raise OutOfStepError(f"call {i} of the official loop is not the expected one")
        if i == len(self._answers):
            self._answers += self._compute(self._questions[i : i + self._batch], **options)
        self._next += 1
        answer, self._answers[i] = self._answers[i], None
        return answer


def _equal(asked: tuple[torch.Tensor, ...], known: tuple[torch.Tensor, ...]) -> bool:
    return all(
        a.shape == k.shape and torch.equal(a, k.to(a.device))
        for a, k in zip(asked, known, strict=True)
    )


class _Images:
    """Stands for a model that takes one image [1, 3, height, width] per call."""

    def __init__(self, model: Any, device: torch.device, batch: int) -> None:
        self._model, self._device = model, device
        self._ahead = Ahead(batch, self._rows)

    def _rows(self, questions: Sequence[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
        answers = self._model(torch.cat([image for (image,) in questions]).to(self._device))
        return list(answers.split(1))

    def watch(self, transform: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """A transform whose result is what the model will be asked, image by image."""

        def watched(*args: Any) -> torch.Tensor:
            images = transform(*args)
            self._ahead.expect([(image,) for image in images.split(1)])
            return images

        return watched

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return self._ahead.ask((image,))


@contextmanager
def subject_frames(module: Any, model: Any, device: torch.device, batch: int) -> Iterator[Any]:
    """DINO for ``module.subject_consistency``, ``batch`` frames per forward pass."""
    ahead, make = _Images(model, device, batch), module.dino_transform
    with replaced(module, dino_transform=lambda size: ahead.watch(make(size))):
        yield ahead


@contextmanager
def quality_frames(module: Any, model: Any, device: torch.device, batch: int) -> Iterator[Any]:
    """MUSIQ for ``module.technical_quality``, ``batch`` frames per forward pass."""
    ahead = _Images(model, device, batch)
    with replaced(module, transform=ahead.watch(module.transform)):
        yield ahead


@contextmanager
def interpolated_pairs(module: Any, motion: Any, batch: int) -> Iterator[None]:
    """AMT for ``motion.motion_score``, ``batch`` pairs of frames per forward pass."""
    model, padder = motion.model, module.InputPadder

    def rows(
        questions: Sequence[tuple[torch.Tensor, ...]], *, embt: torch.Tensor, **options: Any
    ) -> list[dict[str, torch.Tensor]]:
        first, second = (torch.cat(side) for side in zip(*questions, strict=True))
        time = embt.expand(len(questions), -1, -1, -1)
        frames = model(first, second, time, **options)["imgt_pred"]
        return [{"imgt_pred": frame} for frame in frames.split(1)]

    ahead = Ahead(batch, rows)

    class Padder(padder):  # type: ignore[misc]
        def pad(self, *inputs: torch.Tensor) -> Any:
            padded = super().pad(*inputs)
            ahead.expect(list(pairwise(padded)))
            return padded

    def ask(first: torch.Tensor, second: torch.Tensor, embt: torch.Tensor, **options: Any) -> Any:
        return ahead.ask((first, second), embt=embt, **options)

    with replaced(module, InputPadder=Padder), replaced(motion, model=ask):
        yield


@contextmanager
def styled_frames(
    module: Any, model: Any, frames: np.ndarray, device: torch.device, batch: int
) -> Iterator[Any]:
    """CLIP for ``module.appearance_style``, ``batch`` frames per forward pass.

    The official loop transforms each frame just before it asks the model, so the transform too
    looks ahead: at its first call it transforms all frames.

    Args:
        module: ``vbench.appearance_style``.
        model: CLIP.
        frames: The frames of the clip, shape [frames, height, width, 3].
        device: Of the model.
        batch: Frames per forward pass.
    """
    make = module.clip_transform_Image

    def rows(questions: Sequence[tuple[torch.Tensor, ...]], *, text: torch.Tensor) -> list[Any]:
        images = torch.cat([image for (image,) in questions]).to(device)
        per_image, per_text = model(images, text)
        return list(zip(per_image.split(1), per_text.split(1, dim=1), strict=True))

    ahead = Ahead(batch, rows)

    def watched(size: int) -> Callable[[Any], torch.Tensor]:
        transform, done = make(size), iter(())
        seen: list[torch.Tensor] = []

        def transformed(image: Any) -> torch.Tensor:
            nonlocal done
            if not seen:
                seen.extend(transform(module.Image.fromarray(frame)) for frame in frames)
                ahead.expect([(frame.unsqueeze(0),) for frame in seen])
                done = iter(zip(seen, frames, strict=True))
            ready, frame = next(done)
            if not np.array_equal(np.asarray(image), frame):
                raise OutOfStepError("the official loop transforms another frame than expected")
            return ready

        return transformed

    with replaced(module, clip_transform_Image=watched):
        yield lambda image, text: ahead.ask((image,), text=text)
