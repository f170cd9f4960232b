"""What an artifact, a pool and a clip are made from: every input changes the key, names do not."""

from __future__ import annotations

import dataclasses

import pytest

from harness.artifact.stage import artifact_key, artifact_sources, pool_key
from harness.generate.generate import clip_key
from harness.spec import GenSpec, ModelSpec, Prompt, PromptSuite

GEN = GenSpec(height=64, width=64, frames=17, fps=8, steps=20, guidance=4.0)
MODEL = ModelSpec(name="m", repo="/a", family="cogvideox", gen=GEN, revision="r1")
SUITE = PromptSuite(
    name="calib", version=1, role="calibration", prompts=(Prompt(id="a", text="x"),), digest="d"
)


def artifact(**changes: object) -> str:
    base: dict[str, object] = {
        "model": MODEL,
        "gen": GEN,
        "method": "s2q",
        "module": "methods.s2q.method",
        "version": 1,
        "options": {"n": 40},
        "libraries": (),
        "bits": "w4a6",
        "calibration": SUITE,
        "seed": 0,
    }
    return artifact_key(**{**base, **changes}).key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"model": dataclasses.replace(MODEL, revision="r2")},
        {"model": dataclasses.replace(MODEL, variant="outliers")},
        {"model": dataclasses.replace(MODEL, family="wan")},
        {"gen": dataclasses.replace(GEN, steps=10)},
        {"method": "rtn"},
        {"module": "baselines.rtn"},
        {"version": 2},
        {"options": {"n": 41}},
        {"libraries": ("torch",)},
        {"bits": "w4a4"},
        {"calibration": dataclasses.replace(SUITE, digest="e")},
        {"calibration": dataclasses.replace(SUITE, prompts=SUITE.prompts * 2)},
        {"calibration": None},
        {"seed": 1},
    ],
    ids=str,
)
def test_every_declared_input_changes_the_artifact_key(change: dict[str, object]) -> None:
    assert artifact(**change) != artifact()


def test_name_and_folder_of_a_model_change_no_key() -> None:
    moved = dataclasses.replace(MODEL, name="other", repo="/b")
    assert artifact(model=moved) == artifact()


def test_another_version_of_a_back_end_is_another_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    before = artifact(libraries=("torch",))
    monkeypatch.setattr("harness.artifact.stage.package_version", lambda name: "99")
    assert artifact(libraries=("torch",)) != before
    assert artifact() == artifact(libraries=())


def test_only_what_is_calibrated_names_the_recorder() -> None:
    assert "recorder" in artifact_sources("methods.s2q.method", "cogvideox", calibrated=True)
    assert "recorder" not in artifact_sources("baselines.rtn", "cogvideox", calibrated=False)


def clip(**changes: object) -> str:
    base: dict[str, object] = {
        "quant": "q",
        "execution": "simulated",
        "gen": GEN,
        "prompt": Prompt(id="a", text="x"),
        "seed": 0,
        "cohort": {"threads": 1},
        "sampler": "s",
    }
    return clip_key(**{**base, **changes}).key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"quant": "r"},
        {"execution": "kernel:int8"},
        {"gen": dataclasses.replace(GEN, guidance=1.0)},
        {"prompt": Prompt(id="a", text="y")},
        {"seed": 1},
        {"cohort": {"threads": 2}},
        {"sampler": "t"},
    ],
    ids=str,
)
def test_every_declared_input_changes_the_clip_key(change: dict[str, object]) -> None:
    assert clip(**change) != clip()


def test_the_id_of_a_prompt_changes_no_clip() -> None:
    assert clip(prompt=Prompt(id="b", text="x")) == clip()


def test_a_pool_is_of_a_cohort_a_seed_and_a_suite() -> None:
    def pool(**changes: object) -> str:
        base = {"model": MODEL, "gen": GEN, "suite": SUITE, "seed": 0, "cohort": {"threads": 1}}
        return pool_key(**{**base, **changes}).key  # type: ignore[arg-type]

    other = dataclasses.replace(SUITE, digest="e")
    assert len({pool(), pool(seed=1), pool(suite=other), pool(cohort={"threads": 2})}) == 4
