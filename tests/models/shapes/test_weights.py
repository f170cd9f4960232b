"""The shipped weights are whole, small, loadable by plain diffusers, and what their record says."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import torch

from harness.models.shapes import FRAMES, MAX_TEXT_TOKENS, oracle, weights_dir
from harness.models.shapes.evaluate import generate, load_pipeline
from harness.models.shapes.train_text import new_tokenizer, tokenize
from harness.models.shapes.world import parse_caption

MAX_BYTES = 40 * 10**6


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(weights_dir())


def record() -> dict[str, Any]:
    return dict(json.loads((weights_dir() / "TRAINING.json").read_text(encoding="utf-8")))


def test_the_weights_take_at_most_forty_megabytes_and_hold_no_pickle() -> None:
    files = [path for path in weights_dir().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}


def test_the_weights_are_the_ones_that_were_measured() -> None:
    for name, digest in record()["files"].items():
        assert hashlib.sha256((weights_dir() / name).read_bytes()).hexdigest() == digest


def test_the_oracle_is_the_one_that_was_frozen() -> None:
    assert oracle.digest() == record()["measured"]["oracle_digest"]


def test_the_record_says_what_the_readme_may_claim() -> None:
    measured = record()["measured"]["oracle"]
    for attribute, least in {
        "colour": 0.95,
        "background": 0.95,
        "shape": 0.9,
        "motion": 0.9,
        "conjunction": 0.8,
    }.items():
        assert measured[attribute]["n"] == 64
        assert measured[attribute]["right"] >= least


def test_the_transformer_has_the_promised_form(pipeline: Any) -> None:
    config = pipeline.transformer.config
    parameters = sum(p.numel() for p in pipeline.transformer.parameters())
    assert 5e6 <= parameters <= 15e6
    assert config.num_layers >= 6
    assert config.num_attention_heads >= 4
    assert config.max_text_seq_length == MAX_TEXT_TOKENS
    side, frames = config.sample_width // config.patch_size, (FRAMES - 1) // 4 + 1
    assert side * side * frames >= 320


def test_the_shipped_tokenizer_is_the_one_that_the_source_builds(pipeline: Any) -> None:
    texts = ["a red square growing on a white background", "a zebra", ""]
    assert torch.equal(tokenize(pipeline.tokenizer, texts), tokenize(new_tokenizer(), texts))


def test_a_generated_clip_shows_what_was_asked(pipeline: Any) -> None:
    text = "a yellow circle moving left on a black background"
    made = generate(pipeline, [text], seed=1000, steps=8, guidance=2.0)
    assert made.frames.shape == (1, FRAMES, 64, 64, 3)
    verdict = oracle.judge(made.frames[0], parse_caption(text))
    assert all(verdict.right().values()), verdict
    other = oracle.judge(made.frames[0], parse_caption(text.replace("left", "right")))
    assert not other.motion.right


def test_the_prompt_steers_the_clip_from_the_same_noise(pipeline: Any) -> None:
    texts = [f"a {colour} square growing on a white background" for colour in ("red", "blue")]
    one, other = (generate(pipeline, [t], seed=3, steps=4, guidance=2.0).frames for t in texts)
    assert np.abs(one.astype(int) - other).mean() > 3
