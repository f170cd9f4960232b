"""The tokenizer of the bundled model reads every caption and survives every other text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from harness.models.shapes import MAX_TEXT_TOKENS
from harness.models.shapes.train_text import (
    TEMPLATES,
    VALUES,
    new_tokenizer,
    sentence,
    tokenize,
    training_texts,
)
from harness.models.shapes.world import caption, combinations

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN, END, PADDING = 2, 1, 0


def test_every_caption_and_paraphrase_has_no_unknown_word_and_fits() -> None:
    tokenizer = new_tokenizer()
    texts = [text for a in combinations()[::29] for text in training_texts(a)]
    tokens = tokenize(tokenizer, texts)
    assert tokens.shape == (len(texts), MAX_TEXT_TOKENS)
    assert not (tokens == UNKNOWN).any()
    assert ((tokens == END).sum(1) == 1).all()


def test_different_captions_have_different_tokens() -> None:
    tokens = tokenize(new_tokenizer(), [caption(a) for a in combinations()])
    assert len(torch.unique(tokens, dim=0)) == len(combinations())


@pytest.mark.parametrize("text", ["", "   ", "Ein Hund läuft", "🙂", "red " * 100, "a\x00b\n"])
def test_any_text_becomes_tokens(text: str) -> None:
    tokens = tokenize(new_tokenizer(), [text])
    assert tokens.shape == (1, MAX_TEXT_TOKENS)
    assert (tokens >= 0).all()
    assert (tokens < len(new_tokenizer())).all()


def test_the_tokenizer_is_the_same_after_saving(tmp_path: Path) -> None:
    from transformers import T5Tokenizer

    tokenizer = new_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    texts = ["a red square growing on a white background", "a zebra", ""]
    loaded = T5Tokenizer.from_pretrained(tmp_path)
    assert torch.equal(tokenize(loaded, texts), tokenize(tokenizer, texts))


def test_what_a_sentence_does_not_say_has_the_class_of_the_unsaid() -> None:
    rng = np.random.default_rng(0)
    unsaid = 0
    for _ in range(200):
        text, classes = sentence(combinations()[5], rng)
        for (name, values), number in zip(VALUES.items(), classes, strict=True):
            said = combinations()[5].as_dict()[name]
            if number == len(values):
                unsaid += 1
                assert said not in text
            else:
                assert values[number] == said
                assert said in text
    assert 0 < unsaid < 200
    assert len(TEMPLATES) > 1
