"""A scorer: everything that is known of a metric, or of several that are computed together.

A subclass gives its name, its metrics and ``score``. What is stored of a clip, how it is read back
and what becomes of clips that were not scored is the same for all. Importing this module needs no
torch: planning asks scorers which scores exist.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import HarnessError, InfraError
from harness.generate.generate import LATENTS_FILE, LOSSLESS_FILE, MP4_FILE
from harness.spec import Metric, Status, Value
from harness.store.keys import Keyed, digest
from harness.store.provenance import package_version
from harness.store.sources import reach, sources_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch

    from harness.spec import ModelSpec, Prompt
    from harness.store.store import Entry, Store
    from harness.task import CellTask, ClipTask

SCORE_FILE = "score.json"
READING = "harness.generate.video"
"""Decides which frames a scorer is given; its source is part of every score's key."""

FRAMES, FILE = "frames", "file"
TEXT, TAGS, NOTHING = "text", "tags", ""
REFERENCE = "reference"
"""Detail of the paired records that the reference itself has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip as a scorer is given it.

    Attributes:
        prompt: What was asked for.
        folder: Where its files lie.
    """

    prompt: Prompt
    folder: Path

    @property
    def file(self) -> Path:
        """The coded clip, H.264: what people watch and VBench reads."""
        return self.folder / MP4_FILE

    def frames(self) -> np.ndarray:
        """The exact frames, before lossy coding: uint8 ``[frames, height, width, 3]``, RGB."""
        from harness.generate.video import read

        return read(self.folder / LOSSLESS_FILE)

    def coded_frames(self) -> np.ndarray:
        """The frames of the coded clip: uint8 ``[frames, height, width, 3]``, RGB."""
        from harness.generate.video import read

        return read(self.file)

    def latents(self) -> torch.Tensor:
        """The final latents, as the sampler left them."""
        from safetensors.torch import load_file

        return load_file(self.folder / LATENTS_FILE)["latents"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredScore:
    """What is stored of one clip.

    Attributes:
        values: By metric; empty where scoring failed.
        failed: Why there is no value; empty where there is.
        at: UTC time when it was made.
        facts: What else its scorer keeps.
    """

    key: str
    values: Mapping[str, Any]
    failed: str
    at: str
    facts: Mapping[str, Any]


class Scorer:
    """One metric, or several computed together.

    Attributes:
        name: What ``--metrics`` takes.
        about: What it is, in a few words, for ``harness list metrics``.
        metrics: Its metrics, in the order of their columns.
        always: Computed where it applies, also unasked.
        paired: Whether it compares with the unquantized clip of the same prompt and seed.
        reads: ``frames`` for exact frames and latents, ``file`` for the coded clip, as published
            numbers do; the digest of what it reads is part of every score's key.
        asks: What of a prompt its value depends on: its ``text``, its ``tags`` or nothing.
        packages: Distributions it computes with; their versions are part of every score's key.
        sources: Modules that decide its value beside the one it stands in; their sources, and that
            one's, are part of every score's key.
        kept: What ``score`` returns beside its metrics, to be kept of a clip and not shown.
        outside: Judged in an environment of its own, not by the worker that made the clips.
        asked_as: By what name a worker finds it again: its own, or ``module:attribute``.
    """

    name: str
    about: ClassVar[str] = ""
    metrics: tuple[Metric, ...] = ()
    always: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    reads: ClassVar[str] = FRAMES
    asks: ClassVar[str] = NOTHING
    packages: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[tuple[str, ...]] = ()
    kept: ClassVar[tuple[str, ...]] = ()
    outside: ClassVar[bool] = False
    asked_as: str = ""

    def missing(self) -> str:
        """Why it cannot be computed on this machine, in one line; empty where it can."""
        return ""

    def refusal(self, model: ModelSpec, prompts: Sequence[Prompt], clips: int) -> str:
        """Why it cannot judge these rows; empty where it can.

        Args:
            model: The model.
            prompts: The evaluation prompts.
            clips: Clips of a row.
        """
        del model, prompts, clips
        return ""

    def weights(self) -> str:
        """Digest of the weights it computes with, part of every score's key; empty without."""
        return ""

    def score(self, clip: Clip, reference: Clip | None) -> Mapping[str, float]:
        """Judge a clip.

        Args:
            clip: The clip.
            reference: The unquantized clip of the same prompt and seed, for a paired scorer.

        Returns:
            Values by metric.

        Raises:
            HarnessError: This clip has no such value (it diverged, it is too short).
            InfraError: The machine lacks something; says nothing of the clip and is not kept.
        """
        raise NotImplementedError(f"scorer '{self.name}' does not say how it scores")

    def key(self, prompt: Prompt, clip: Entry, reference: Entry | None) -> Keyed:
        """Key of one score, from the content of the clips rather than from how they were made."""
        environment = {name: package_version(name) for name in self.packages}
        if held := self.weights():
            environment["weights"] = held
        told = {TAGS: dict(prompt.tags), TEXT: {"text": prompt.text}}
        paired = self.paired and reference is not None
        return score_key(
            clip=self._content(clip),
            reference=self._content(reference) if paired and reference is not None else "",
            scorer=self.name,
            version=sources_digest([*self._own_sources(), *self.sources, READING]),
            asked=told.get(self.asks, {}),
            environment=environment,
        )

    def find(
        self, store: Store, prompt: Prompt, clip: Entry, reference: Entry | None
    ) -> StoredScore | None:
        """What is stored of a clip, None where it has to be made."""
        return find_score(store, self.key(prompt, clip, reference).key)

    def make(self, store: Store, prompt: Prompt, clip: Entry, reference: Entry | None) -> None:
        """Compute and publish one score, unless the store has it.

        A value that cannot be computed is published as failed with its reason: it is a property of
        the clip, not of this run.
        """
        wanted = self.key(prompt, clip, reference)
        if store.find("score", wanted.key) is not None:
            return
        other = None
        if self.paired and reference is not None:
            other = Clip(prompt=prompt, folder=reference.folder)
        values: dict[str, Any] = {}
        failed = ""
        try:
            found = self.score(Clip(prompt=prompt, folder=clip.folder), other)
            values, failed = self._checked(found)
        except InfraError:
            raise  # weights that are gone say nothing of the clip
        except HarnessError as cause:
            failed = cause.message
        text = json.dumps({"values": values, "failed": failed}, sort_keys=True, allow_nan=False)
        with store.build("score", wanted.key, wanted.inputs, {"label": self.name}) as folder:
            (folder / SCORE_FILE).write_text(text + "\n", encoding="utf-8")

    def open(self, store: Store, task: CellTask) -> int:
        """Scores of a row that have to be made, of those whose clips exist."""
        count = 0
        for wanted, clip, reference in clips_of(store, task):
            if clip is None or (self.paired and not wanted.reference):
                continue
            known = reference is not None or not self.paired
            if not known or self.find(store, wanted.prompt, clip, reference) is None:
                count += 1
        return count

    def values(
        self, store: Store, task: CellTask, troubles: Mapping[str, tuple[Status, str]]
    ) -> Iterator[Value]:
        """Every value of a row, and why others are not there.

        Args:
            store: Where scores lie.
            task: The row.
            troubles: Status and reason of scores that this run tried and could not make, by key.
        """
        del troubles
        for wanted, clip, reference in clips_of(store, task):
            if clip is not None:  # the row's own status says why a clip is missing
                yield from self._clip_values(store, wanted, clip, reference)

    def _clip_values(
        self, store: Store, wanted: ClipTask, clip: Entry, reference: Entry | None
    ) -> Iterator[Value]:
        place = _place(wanted)
        found, detail, status = None, "", Status.SKIPPED
        if self.paired and not wanted.reference:
            detail = REFERENCE
        elif self.paired and reference is None:
            detail = "its reference clip is missing"
        else:
            found = self.find(store, wanted.prompt, clip, reference)
            detail = "not scored yet" if found is None else found.failed
            status = Status.SKIPPED if found is None else Status.ERROR
        for metric in self.metrics:
            if metric.whole:
                continue
            if found is not None and metric.name in found.values:
                value = float(found.values[metric.name])
                yield Value(metric=metric.name, value=value, key=found.key, at=found.at, **place)
            else:
                yield Value(metric=metric.name, status=status, detail=detail, **place)

    def _own_sources(self) -> tuple[str, ...]:
        """The module that it stands in; of a plug-in, what that imports of its package too."""
        own = type(self).__module__
        top = own.partition(".")[0]
        return (own,) if top == __name__.partition(".")[0] else reach([own], (top,))

    def _checked(self, found: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """What ``score`` gave, or why it is no value of the clip.

        Raises:
            TypeError: It gave other metrics than it declares, or something that is no number.
        """
        declared = {metric.name for metric in self.metrics if not metric.whole} | {*self.kept}
        if set(found) != declared:
            raise TypeError(
                f"scorer '{self.name}' gave {', '.join(sorted(found)) or 'nothing'} and declares "
                f"{', '.join(sorted(declared))}"
            )
        values = {name: found[name] for name in self.kept}
        for name in declared - {*self.kept}:
            values[name] = float(found[name])
            if not math.isfinite(values[name]):
                return {}, f"{name} of this clip is not a finite number"
        return values, ""

    def _content(self, clip: Entry) -> str:
        if self.reads == FILE:
            return clip.file_sha256(MP4_FILE)
        return digest([clip.file_sha256(LOSSLESS_FILE), clip.file_sha256(LATENTS_FILE)])


class Unscored(Scorer):
    """A scorer that cannot score here: in place of its values the reason.

    Args:
        scorer: Whose metrics they would be.
        status: ``skipped`` where something is still to be fetched, ``unsupported``, ``error``.
        why: One line.
        needs_clip: Whether a row without any clip is silent about it.
    """

    outside = True

    def __init__(
        self, scorer: Scorer, status: Status, why: str, *, needs_clip: bool = False
    ) -> None:
        self.name = scorer.name
        self.metrics = scorer.metrics
        self.status, self.why = status, why
        self._needs_clip = needs_clip
        self._paired_only = scorer.paired

    def open(self, store: Store, task: CellTask) -> int:
        """Nothing can be made."""
        del store, task
        return 0

    def values(
        self, store: Store, task: CellTask, troubles: Mapping[str, tuple[Status, str]]
    ) -> Iterator[Value]:
        """The reason, once for each metric; the reference has no paired value to miss."""
        del troubles
        if self._paired_only and not any(wanted.reference for wanted in task.clips):
            return
        if self._needs_clip and all(clip is None for _, clip, _ in clips_of(store, task)):
            return
        for metric in self.metrics:
            yield Value(metric=metric.name, status=self.status, detail=self.why)


def _place(wanted: ClipTask) -> dict[str, Any]:
    """Where a value of a clip stands."""
    return {"prompt": wanted.prompt.id, "seed": wanted.seed}


def score_key(
    *,
    clip: str,
    reference: str,
    scorer: str,
    version: str,
    asked: Mapping[str, str],
    environment: Mapping[str, str],
) -> Keyed:
    """Key of a score, whoever made it.

    Args:
        clip: Digest of the content that was judged.
        reference: That of the clip it was compared with, empty for an unpaired scorer.
        scorer: Name of the scorer.
        version: Digest of the sources that decide the value.
        asked: What of the prompt the value depends on.
        environment: Versions of libraries, digests of weights, and what else decides.
    """
    return Keyed.of(
        "score",
        {
            "clip": clip,
            "reference": reference,
            "scorer": scorer,
            "version": version,
            "asked": dict(asked),
            "environment": dict(environment),
        },
    )


def find_score(store: Store, key: str) -> StoredScore | None:
    """A published score, None if it is not there."""
    entry = store.find("score", key)
    if entry is None:
        return None
    found = entry.json(SCORE_FILE)
    return StoredScore(
        key=key,
        values=found.pop("values"),
        failed=found.pop("failed"),
        at=str(entry.manifest["at"]),
        facts=found,
    )


def clips_of(store: Store, task: CellTask) -> Iterator[tuple[ClipTask, Entry | None, Entry | None]]:
    """Each clip of a row with what the store has of it and of its reference."""
    for wanted in task.clips:
        clip = store.find("clip", wanted.clip.key)
        reference = store.find("clip", wanted.reference) if wanted.reference else None
        yield wanted, clip, reference
