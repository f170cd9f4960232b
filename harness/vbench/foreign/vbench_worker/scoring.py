"""Score the clips of a job: all that is asked of a clip while it is decoded, failures apart."""

from __future__ import annotations

import math
import shutil
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vbench_worker.clips import Clip, open_clip
from vbench_worker.decode import Readers
from vbench_worker.judges import (
    Judge,
    MissingFileError,
    ModelError,
    Score,
    Shelf,
    UnscorableError,
    UnsupportedError,
    refusal,
)
from vbench_worker.official import score_dimension
from vbench_worker.protocol import OFFICIAL, is_oom, one_line

if TYPE_CHECKING:
    from vbench_worker.protocol import ClipJob, Events, Job, Want


OOM = "oom"


class NotANumberError(Exception):
    """The official code returned infinity or no number."""


def status_of(error: BaseException) -> tuple[str, str]:
    """Status and one line for something that is not stored."""
    cause = error.__cause__ if isinstance(error, ModelError) and error.__cause__ else error
    if isinstance(cause, MissingFileError):
        return "skipped", str(cause)
    if isinstance(cause, UnsupportedError):
        return "unsupported", str(cause)
    detail = one_line(cause)
    if isinstance(error, ModelError):
        detail = f"model {error} does not load: {detail}"
    return (OOM if is_oom(cause) else "error"), detail


# A cause that lies in the environment or the weights, not in the clip: every clip has it.
_LASTING = (ModelError, UnsupportedError, MissingFileError, ImportError)


@dataclass(kw_only=True)
class Scoring:
    """One job.

    Attributes:
        lost: Dimensions that this environment cannot score, found out at their first clip.
        done: Values that are settled, one way or the other.
    """

    job: Job
    events: Events
    shelf: Shelf
    judges: dict[str, Judge]
    readers: Readers = field(default_factory=Readers)
    lost: set[str] = field(default_factory=set)
    done: int = 0

    def run(self) -> None:
        """Score all clips and say how much work it was."""
        self._refuse_unknown()
        if self.job.scorer == OFFICIAL:
            self._official()
        else:
            for clip in self.job.clips:
                self._clip(clip)
        self.events.send(
            "counts",
            **self.readers.counts(),
            models=dict(sorted(self.shelf.loads.items())),
            pairs={"run": self.shelf.pairs["run"], "of": self.shelf.pairs["of"]},
        )

    def _refuse_unknown(self) -> None:
        wanted = {w.dimension for c in self.job.clips for w in c.wants}
        for dimension in sorted(wanted - self.judges.keys()):
            error = UnsupportedError(f"this worker has no dimension '{dimension}'")
            self._lose(dimension, error)

    def _clip(self, job: ClipJob) -> None:
        wants = [w for w in job.wants if w.dimension not in self.lost]
        clip = self._open(job, wants)
        for want in wants if clip is not None else ():
            if want.dimension in self.lost:
                continue
            self._progress(job.id, want.dimension)
            status = None
            try:
                score = self.judges[want.dimension].score(clip, want, self.shelf)
                self._send(want, score)
            except UnscorableError as error:
                self._unscorable(want, str(error))
            except Exception as error:
                status = self._trouble(want, error)
            if status == OOM:  # only now are the frames of the failed attempt gone
                _give_back()
        shutil.rmtree(self.job.scratch / job.id, ignore_errors=True)

    def _open(self, job: ClipJob, wants: list[Want]) -> Clip | None:
        """Decode a clip; takes out of ``wants`` what has no value for it."""
        if not wants:
            return None
        self._progress(job.id, "decoding")
        try:
            clip = open_clip(job, self.job.scratch, self.readers)
            shape = clip.shape
        except UnscorableError as error:
            for want in wants:
                self._unscorable(want, str(error))
            return None
        except Exception as error:
            traceback.print_exc()
            status, detail = status_of(error)
            for want in wants:
                self._send_trouble(want.dimension, status, detail, [want.key])
            return None
        for want in list(wants):
            if (reason := refusal(want.dimension, shape)) is not None:
                wants.remove(want)
                self._unscorable(want, reason)
        return clip

    def _official(self) -> None:
        asked: dict[str, list[tuple[Clip, Want]]] = {}
        for job in self.job.clips:
            wants = [w for w in job.wants if w.dimension not in self.lost]
            clip = self._open(job, wants)
            for want in wants if clip is not None else ():
                asked.setdefault(want.dimension, []).append((clip, want))
            if clip is not None:
                clip.forget()  # the official functions read the files themselves
        for dimension, pairs in asked.items():
            self._progress("all clips", dimension)
            try:
                scores, aggregate = score_dimension(dimension, pairs, self.shelf, self.job.scratch)
            except Exception as error:
                traceback.print_exc()
                status, detail = status_of(error)
                self._send_trouble(dimension, status, detail, [w.key for _, w in pairs])
                continue
            for _, want in pairs:
                try:
                    self._send(want, scores[want.key])
                except NotANumberError as error:
                    self._trouble(want, error)
            if aggregate is not None and math.isfinite(aggregate):
                self.events.send("official", dimension=dimension, aggregate=aggregate)
        for job in self.job.clips:
            shutil.rmtree(self.job.scratch / job.id, ignore_errors=True)

    def _send(self, want: Want, score: Score) -> None:
        if not (math.isfinite(score.value) and math.isfinite(score.weight)):
            raise NotANumberError(f"the official code returned {score.value}")
        self.done += 1
        self.events.send(
            "score",
            key=want.key,
            dimension=want.dimension,
            value=float(score.value),
            valid=score.valid,
            weight=float(score.weight),
            facts=score.facts,
        )

    def _unscorable(self, want: Want, reason: str) -> None:
        self.done += 1
        self.events.send("unscorable", key=want.key, dimension=want.dimension, reason=reason)

    def _trouble(self, want: Want, error: Exception) -> str:
        """Report what went wrong for one value, or for all that are left of the dimension."""
        traceback.print_exc()
        status, detail = status_of(error)
        if isinstance(error, _LASTING):
            self._lose(want.dimension, error, since=want.key)
        else:
            self._send_trouble(want.dimension, status, detail, [want.key])
        return status

    def _lose(self, dimension: str, error: Exception, since: str | None = None) -> None:
        """Give a dimension up: one event for all its values, from ``since`` on."""
        self.lost.add(dimension)
        keys = [w.key for c in self.job.clips for w in c.wants if w.dimension == dimension]
        keys = keys[keys.index(since) :] if since is not None else keys
        self._send_trouble(dimension, *status_of(error), keys)

    def _send_trouble(self, dimension: str, status: str, detail: str, keys: list[str]) -> None:
        self.done += len(keys)
        self.events.send("trouble", dimension=dimension, status=status, detail=detail, keys=keys)

    def _progress(self, clip: str, what: str) -> None:
        self.events.progress(min(self.done / max(self.job.wants, 1), 0.999), f"{clip}: {what}")


def _give_back() -> None:
    """Let the device have back what a failed attempt held."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
