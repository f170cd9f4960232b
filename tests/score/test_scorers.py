from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.errors import InfraError
from harness.generate.generate import LATENTS_FILE, LOSSLESS_FILE, MP4_FILE
from harness.models.shapes import world
from harness.score.registry import choose_scorers, load_scorer
from harness.score.scorer import Unscored
from harness.spec import GenSpec, ModelSpec, Prompt
from harness.store.keys import digest
from harness.store.store import Entry, Store

if TYPE_CHECKING:
    from pathlib import Path

TAGS = {"shape": "square", "colour": "red", "background": "white", "motion": "moving left"}
PROMPT = Prompt(id="p", text="a red square", tags=tuple(sorted(TAGS.items())))


def frames() -> np.ndarray:
    attributes = world.Attributes(**TAGS)
    return world.render(world.sample_scene(attributes, np.random.default_rng(0)))


def publish(store: Store, name: str, shown: np.ndarray, latents: object) -> Entry:
    import torch
    from safetensors.torch import save_file

    from harness.generate.video import write_lossless, write_mp4

    key = digest({"name": name})
    with store.build("clip", key, {"name": name}) as folder:
        write_lossless(folder / LOSSLESS_FILE, shown, fps=8)
        save_file({"latents": torch.as_tensor(latents)}, folder / LATENTS_FILE)
        write_mp4(folder / MP4_FILE, shown, fps=8)
    entry = store.find("clip", key)
    assert entry is not None
    return entry


def test_the_oracle_judges_what_the_tags_ask_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    clip = publish(store, "right", frames(), [1.0])
    other = Prompt(id="q", text="x", tags=tuple(sorted({**TAGS, "colour": "blue"}.items())))
    scorer = load_scorer("oracle")
    for prompt in (PROMPT, other):
        scorer.make(store, prompt, clip, None)
    right = scorer.find(store, PROMPT, clip, None)
    wrong = scorer.find(store, other, clip, None)
    assert right is not None
    assert wrong is not None
    assert set(right.values) == {metric.name for metric in scorer.metrics}
    assert right.values["oracle_all"] == 1.0
    assert right.values["margin_all"] > 0
    assert (wrong.values["oracle_colour"], wrong.values["oracle_shape"]) == (0.0, 1.0)
    assert wrong.values["oracle_all"] == 0.0


def test_fidelity_is_of_the_lossless_frames_and_the_latents(tmp_path: Path) -> None:
    store = Store(tmp_path)
    reference = publish(store, "reference", frames(), [3.0, 4.0])
    clip = publish(store, "clip", np.roll(frames(), 3, axis=2), [3.0, 5.0])
    scorer = load_scorer("fidelity")
    scorer.make(store, PROMPT, clip, reference)
    found = scorer.find(store, PROMPT, clip, reference)
    assert found is not None
    assert found.values["latent_error"] == pytest.approx(1 / 25)
    assert 5 < found.values["psnr_db"] < 40


def test_a_score_is_computed_once_and_again_when_the_clip_is_another(tmp_path: Path) -> None:
    store = Store(tmp_path)
    reference = publish(store, "reference", frames(), [1.0])
    same = publish(store, "same content, other key", frames(), [1.0])
    scorer = load_scorer("fidelity")
    for clip in (reference, same, reference):
        scorer.make(store, PROMPT, clip, reference)
    scores = [row for row in store.journal() if row["kind"] == "score"]
    assert len(scores) == 1, "content decides, not how the clip came about"
    other = publish(store, "other", frames()[::-1].copy(), [1.0])
    assert scorer.key(PROMPT, other, reference).key != scorer.key(PROMPT, same, reference).key


def test_a_diverged_clip_has_a_failed_score_with_its_reason(tmp_path: Path) -> None:
    store = Store(tmp_path)
    reference = publish(store, "reference", frames(), [1.0])
    clip = publish(store, "diverged", frames(), [float("nan")])
    load_scorer("fidelity").make(store, PROMPT, clip, reference)
    found = load_scorer("fidelity").find(store, PROMPT, clip, reference)
    assert found is not None
    assert found.values == {}
    assert "not finite" in found.failed


GEN = GenSpec(height=64, width=64, frames=17, fps=8, steps=2, guidance=1.0)
SHAPES = ModelSpec(name="shapes", repo="/x", family="cogvideox", gen=GEN, judge="oracle")
OTHER = ModelSpec(name="other", repo="/y", family="cogvideox", gen=GEN)


def chosen(model: ModelSpec, prompts: list[Prompt], *asked: str, clips: int = 2) -> dict[str, str]:
    """Names of the scorers, with the reason where one cannot score."""
    found = choose_scorers(asked, model, prompts, clips=clips)
    return {one.name: one.why if isinstance(one, Unscored) else "" for one in found}


def test_the_oracle_is_asked_only_where_the_prompts_say_what_they_show() -> None:
    plain = Prompt(id="x", text="a cat")
    assert "oracle" in chosen(SHAPES, [PROMPT])
    assert "oracle" not in chosen(SHAPES, [PROMPT, plain])
    assert "oracle" not in chosen(OTHER, [PROMPT])


def test_what_is_scored_on_demand_needs_to_be_asked_for_and_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.score.clip.clip_missing", lambda: "")
    monkeypatch.setattr("harness.score.fvd.fvd_missing", lambda: "")
    assert "clip" not in chosen(OTHER, [PROMPT])
    assert chosen(OTHER, [PROMPT], "clip", "scene")["clip"] == ""
    assert chosen(OTHER, [PROMPT], "fvd", clips=1000)["fvd"] == ""
    assert chosen(OTHER, [PROMPT], "fvd", clips=999)["fvd"] == "needs 1 000 clips, has 999"
    monkeypatch.setattr("harness.score.clip.clip_missing", lambda: "no weights")
    assert chosen(OTHER, [PROMPT], "clip")["clip"] == "no weights"


def test_the_text_score_is_of_the_coded_file_the_text_and_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.score.clip.clip_identity", lambda: "0123")
    store = Store(tmp_path)
    clip = publish(store, "clip", frames(), [1.0])
    inputs = load_scorer("clip").key(PROMPT, clip, None).inputs
    assert inputs["clip"] == clip.file_sha256(MP4_FILE)
    assert inputs["asked"] == {"text": "a red square"}
    assert inputs["environment"]["weights"] == "0123"
    assert load_scorer("fvd").key(PROMPT, clip, None).inputs["asked"] == {}


def test_weights_that_are_gone_are_no_property_of_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    clip = publish(store, "clip", frames(), [1.0])

    def gone(shown: np.ndarray, text: str) -> dict[str, float]:
        raise InfraError("the weights are gone", "fetch them")

    monkeypatch.setattr("harness.score.clip.clip_scores", gone)
    with pytest.raises(InfraError):
        load_scorer("clip").make(store, PROMPT, clip, None)
    assert load_scorer("clip").find(store, PROMPT, clip, None) is None


def test_text_and_motion_scores_are_published_with_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    clip = publish(store, "clip", frames(), [1.0])
    made = {metric.name: 0.5 for metric in load_scorer("clip").metrics}
    monkeypatch.setattr("harness.score.clip.clip_scores", lambda shown, text: made)
    monkeypatch.setattr("harness.score.fvd.features", lambda shown: [float(len(shown))])
    for name in ("clip", "fvd"):
        load_scorer(name).make(store, PROMPT, clip, None)
    clip_score = load_scorer("clip").find(store, PROMPT, clip, None)
    fvd_score = load_scorer("fvd").find(store, PROMPT, clip, None)
    assert clip_score is not None
    assert fvd_score is not None
    assert clip_score.values == made
    assert fvd_score.values == {"features": [float(len(frames()))]}
