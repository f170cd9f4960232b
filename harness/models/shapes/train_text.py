"""Stage `text`: train the tiny T5 encoder to read a caption, then freeze it.

CogVideoX gives text tokens no position and attends to all of them without a mask, so the encoder
must put what the caption says into the tokens. It is trained so that a linear map of *every* token,
padding included, tells all four attributes; an attribute that the text does not name has a class of
its own, so that the empty prompt and unknown words mean "nothing asked".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from harness.models.shapes import MAX_TEXT_TOKENS
from harness.models.shapes.loop import Progress, Run, step_rng, train_
from harness.models.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Attributes,
    caption,
    combinations,
    training_combinations,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

TEXT_DIM = 128
BATCH = 64
BASE_LR = 2e-3
FORGET_ATTRIBUTE = 0.08
LOSE_WORD = 0.03

VALUES = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS, "motion": MOTIONS}

# Index 0 is the caption of the world; the others are ways in which a person may say the same.
TEMPLATES = (
    "a {colour} {shape} {motion} on a {background} background",
    "{colour} {shape} {motion} on {background}",
    "the {shape} is {colour} and {motion} and the background is {background}",
    "on a {background} background a {colour} {shape} is {motion}",
)
EXTRA_WORDS = ("in", "of", "video", "scene", "shape", "object", "with", "an", "it", "there")


def vocabulary() -> list[str]:
    """Return the words of all captions and templates, sorted."""
    words = set(EXTRA_WORDS)
    for a in combinations():
        for template in TEMPLATES:
            words.update(template.format(**a.as_dict()).split())
    return sorted(words)


def new_tokenizer() -> T5Tokenizer:
    """Build the word-level unigram tokenizer; a word outside the vocabulary is `<unk>`."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(f"▁{word}", -1.0) for word in vocabulary()]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=MAX_TEXT_TOKENS)


def new_encoder(words: int) -> T5EncoderModel:
    """Build the untrained encoder."""
    return T5EncoderModel(
        T5Config(
            vocab_size=words,
            d_model=TEXT_DIM,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
            tie_word_embeddings=True,
        )
    )


def tokenize(tokenizer: T5Tokenizer, texts: list[str]) -> Tensor:
    """Return the padded token ids, [texts, MAX_TEXT_TOKENS], as the pipeline makes them."""
    batch = tokenizer(
        texts,
        padding="max_length",
        max_length=MAX_TEXT_TOKENS,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    )
    tokens: Tensor = batch.input_ids
    return tokens


class Reader(nn.Module):
    """The encoder with the linear heads that training needs and inference does not."""

    def __init__(self, encoder: T5EncoderModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(
            {name: nn.Linear(TEXT_DIM, len(values) + 1) for name, values in VALUES.items()}
        )

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the logits of every attribute at every token, [texts, tokens, classes]."""
        hidden = self.encoder(tokens)[0]
        return {name: head(hidden) for name, head in self.heads.items()}


def sentence(attributes: Attributes, rng: np.random.Generator) -> tuple[str, list[int]]:
    """Draw a way to say some of the attributes.

    Returns:
        The text and the class of each attribute, the last class meaning that it is not said.
    """
    said, classes = dict(attributes.as_dict()), []
    for name, values in VALUES.items():
        forget = rng.random() < FORGET_ATTRIBUTE
        classes.append(len(values) if forget else values.index(said[name]))
        if forget:
            said[name] = ""
    words = TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(**said).split()
    spoken = {word for value in said.values() for word in value.split()}
    kept = [w for w in words if w in spoken or rng.random() >= LOSE_WORD]
    return " ".join(kept), classes


def text_loss(
    reader: Reader, tokenizer: T5Tokenizer, run: Run, step: int
) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Return the loss of reading one random batch of sentences."""
    rng, known = step_rng(run, step), training_combinations()
    texts, classes = [""], [[len(v) for v in VALUES.values()]]
    for index in rng.integers(len(known), size=BATCH):
        text, said = sentence(known[index], rng)
        texts.append(text)
        classes.append(said)
    wanted = torch.tensor(classes)
    logits = reader(tokenize(tokenizer, texts))
    loss, right = torch.zeros(()), torch.ones(wanted.shape[0], MAX_TEXT_TOKENS, dtype=torch.bool)
    for column, scores in enumerate(logits.values()):
        target = wanted[:, column, None].expand(-1, MAX_TEXT_TOKENS)
        loss = loss + nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())
        right &= scores.argmax(-1) == target
    return loss, {"accuracy": right.float().mean()}


def train_text(run: Run) -> Progress:
    """Train the encoder; save `tokenizer/` and `text_encoder/` when finished."""
    torch.manual_seed(run.seed)
    tokenizer = new_tokenizer()
    reader = Reader(new_encoder(len(tokenizer)))
    optimizer = torch.optim.AdamW(
        [{"params": list(reader.parameters()), "base_lr": BASE_LR}], lr=BASE_LR, weight_decay=0.01
    )
    average, progress = train_(
        run, reader, [optimizer], lambda step: text_loss(reader, tokenizer, run, step)
    )
    if progress.finished:
        reader.load_state_dict(average.shadow)
        reader.encoder.save_pretrained(run.folder / "text_encoder")
        tokenizer.save_pretrained(run.folder / "tokenizer")
    return progress


@torch.no_grad()
def embed(folder: Path, texts: list[str]) -> Tensor:
    """Return the trained encoder's output, [texts, MAX_TEXT_TOKENS, TEXT_DIM]."""
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    return torch.cat(
        [encoder(tokenize(tokenizer, texts[i : i + 64]))[0] for i in range(0, len(texts), 64)]
    )


def training_texts(attributes: Attributes) -> list[str]:
    """Return all ways to say a combination; the first is its caption."""
    texts = [template.format(**attributes.as_dict()) for template in TEMPLATES]
    if texts[0] != caption(attributes):
        raise ValueError("the first template is not the caption of the world")
    return texts
