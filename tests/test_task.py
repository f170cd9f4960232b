from __future__ import annotations

from pathlib import Path

from harness.spec import GenSpec, MethodSpec, ModelSpec, Prompt
from harness.store.keys import Keyed
from harness.task import (
    CellTask,
    ClipTask,
    Job,
    JudgeTask,
    MeasuredRow,
    MeasureTask,
    PoolTask,
    Task,
    TextTask,
)

GEN = GenSpec(height=64, width=64, frames=17, fps=8, steps=20, guidance=4.0)
MODEL = ModelSpec(name="m", repo="/m", family="cogvideox", gen=GEN, revision="r")
PROMPT = Prompt(id="p", text="a cat", tags=(("colour", "red"),))
KEYED = Keyed(key="k", inputs={"a": 1})


def job(task: Task) -> Job:
    return Job(task=task, store=Path("/s"), device="cpu", threads=2, parent=7)


def test_every_task_survives_the_trip_to_a_worker() -> None:
    clip = ClipTask(prompt=PROMPT, seed=0, noise_seed=5, clip=KEYED, reference="r")
    method = MethodSpec(name="s2q", label="s2q#1", options=(("n", 4),), calibration_seed=1)
    tasks: list[Task] = [
        TextTask(id="text", model=MODEL, gen=GEN, texts={"": KEYED, "a cat": KEYED}),
        PoolTask(
            id="pool",
            model=MODEL,
            gen=GEN,
            prompts=(PROMPT,),
            seed=1,
            pool=KEYED,
            texts={"a cat": "k"},
        ),
        CellTask(
            id="cell",
            model=MODEL,
            gen=GEN,
            method=method,
            bits="w4a6",
            pool="",
            artifact=KEYED,
            clips=(clip,),
            scorers=("fidelity",),
        ),
        CellTask(
            id="fp",
            model=MODEL,
            gen=GEN,
            method=method,
            bits="fp",
            pool="",
            artifact=None,
            clips=(),
            scorers=(),
        ),
        MeasureTask(
            id="measure",
            model=MODEL,
            gen=GEN,
            rows=(MeasuredRow(cell="c", artifact=""),),
            measure=KEYED,
            turns=3,
            steps=3,
            text="t",
        ),
        JudgeTask(id="judge", python=Path("/p"), folder=Path("/w"), job={"clips": [{"id": "c"}]}),
    ]
    for task in tasks:
        assert Job.from_json(job(task).to_json()) == job(task)
