"""Judge: clips scored by the official VBench package, in an interpreter of its own.

The worker there knows nothing of the store: it is given files and the keys of the scores that are
missing, and what it answers is published here at once, so that a kill loses one value at most.
Importing this module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.generate.generate import MP4_FILE
from harness.score.scorer import SCORE_FILE
from harness.score.vbench_judge import OFFICIAL, PREFIX
from harness.spec import Status
from harness.store.keys import Keyed, canonical
from harness.task import JudgeTask
from harness.vbench.suites import auxiliary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.score.vbench_judge import VBenchJudge
    from harness.spec import Prompt
    from harness.store.store import Entry, Store
    from harness.task import Ended

JOB_SCHEMA = 1
TASK = "judge--"  # ids of the workers' tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """A clip with the values of it that are missing.

    Attributes:
        place: Which of the clips of its prompt it is, from 0, as official file names count.
    """

    clip: Entry
    prompt: Prompt
    place: int
    wants: tuple[tuple[str, Keyed], ...]


@dataclass(kw_only=True)
class Docket:
    """What the judges were given and what came of it.

    Attributes:
        wanted: Dimension and key of each value asked for, by the key's digest.
        tasks: Which worker was asked for it.
        troubles: Status and detail of values that were not made, which the next run tries again.
        counts: What the workers counted: files decoded, models loaded, pairs of frames.
    """

    judge: VBenchJudge
    store: Store
    wanted: dict[str, tuple[str, Keyed]] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    troubles: dict[str, tuple[Status, str]] = field(default_factory=dict)
    counts: list[Mapping[str, Any]] = field(default_factory=list)

    def heard(self, event: str, facts: Mapping[str, Any], *, seconds: float) -> None:
        """Take one event of a worker; values are published before this returns."""
        if event in ("score", "unscorable"):
            self._publish(facts, seconds)
        elif event == "trouble":
            told = (Status(facts["status"]), str(facts["detail"]))
            self.troubles |= dict.fromkeys(facts["keys"], told)
        elif event == "counts":
            self.counts.append(facts)

    def close(
        self, endings: Mapping[str, Ended]
    ) -> tuple[dict[str, tuple[Status, str]], list[str]]:
        """Say what became of the values that are not stored, when all workers have ended.

        Args:
            endings: How each worker ended.

        Returns:
            Status and reason by key, and in one line each what a reader must be told.
        """
        failures = [
            f"judging: {ended.status}: {ended.detail} (log: {ended.log})"
            for ended in endings.values()
            if ended.status is not Status.OK
        ]
        for key, task in self.tasks.items():
            if key in self.troubles or self.store.find("score", key) is not None:
                continue
            ended = endings[task]
            unheard = ended.status is Status.OK
            self.troubles[key] = (
                (Status.ERROR, "the judge gave no answer")
                if unheard
                else (ended.status, f"the judge ended before: {ended.detail}")
            )
        groups: dict[tuple[str, Status, str], int] = {}
        for key, (status, detail) in self.troubles.items():
            alive = endings[self.tasks[key]].status is Status.OK
            if status not in (Status.SKIPPED, Status.UNSUPPORTED) and alive:
                told = (self.wanted[key][0], status, detail)
                groups[told] = groups.get(told, 0) + 1
        failures += [
            f"{dimension}: {status} for {count} clips: {detail}"
            for (dimension, status, detail), count in groups.items()
        ]
        return self.troubles, failures

    def _publish(self, facts: Mapping[str, Any], seconds: float) -> None:
        dimension, keyed = self.wanted[facts["key"]]
        if self.store.find("score", keyed.key) is not None:  # another run made it meanwhile
            return
        failed = str(facts.get("reason", ""))
        text = canonical(
            {
                "values": {} if failed else {dimension: facts["value"]},
                "failed": failed,
                "valid": bool(facts.get("valid", not failed)),
                "weight": facts.get("weight", 1.0),
                "facts": facts.get("facts", {}),
                "scorer": self.judge.line(dimension),
            }
        )
        mode = "official-" if self.judge.scorer == OFFICIAL else ""
        about = {"label": f"{mode}{PREFIX}{dimension}", "seconds": round(seconds, 3)}
        with self.store.build("score", keyed.key, keyed.inputs, about) as folder:
            (folder / SCORE_FILE).write_text(text + "\n", encoding="utf-8")


def judge_tasks(
    docket: Docket, missing: Sequence[Missing], *, shards: int, scratch: Path
) -> list[JudgeTask]:
    """Spread the clips over workers and note in the docket what is asked of them.

    A value is asked for once, however many rows have the same clip.
    """
    clips = []
    for one in missing:
        wants = []
        for dimension, keyed in one.wants:
            if keyed.key in docket.wanted:
                continue
            docket.wanted[keyed.key] = (dimension, keyed)
            told = auxiliary(one.prompt, dimension)
            wants.append({"dimension": dimension, "key": keyed.key, "auxiliary": told})
        if wants:
            clips.append(
                {
                    "id": f"{one.prompt.id}-{one.place}-{one.clip.key[:16]}",
                    "path": str(one.clip.folder / MP4_FILE),
                    "prompt": one.prompt.text,
                    "index": one.place,
                    "wants": wants,
                }
            )
    count = max(1, min(shards, len(clips)))
    tasks = [_task(docket.judge, i, clips[i::count], scratch) for i in range(count) if clips]
    for task in tasks:
        keys = [want["key"] for clip in task.job["clips"] for want in clip["wants"]]
        docket.tasks |= dict.fromkeys(keys, task.id)
    return tasks


def _task(
    judge: VBenchJudge, shard: int, clips: Sequence[Mapping[str, Any]], scratch: Path
) -> JudgeTask:
    name = f"{TASK}{shard + 1}"
    return JudgeTask(
        id=name,
        python=judge.python,
        folder=judge.weights,
        job={
            "schema": JOB_SCHEMA,
            "scorer": judge.scorer,
            # The official code compares devices, and "cuda" is not "cuda:0" to it.
            "device": "cuda:0" if judge.device.id == "cuda" else judge.device.id,
            "precision": judge.precision,
            "batch": judge.batch,
            "weights": str(judge.weights),
            "scratch": str(scratch / name),
            "clips": list(clips),
        },
    )
