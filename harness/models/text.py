"""Texts as a pipeline's encoders see them: encoded once, kept, and handed to the sampler."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.models.families import family_by_name, family_name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from diffusers import DiffusionPipeline

    from harness.models.families.base import Family
    from harness.spec import GenSpec

Conditioning = dict[str, Tensor]
"""What a pipeline takes in place of texts: tensors by the name of the call's argument."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A text that is longer than an encoder reads.

    Attributes:
        tokenizer: Name of the pipeline's component.
        limit: Tokens that the encoder reads, those that a template adds included.
        tokens: Tokens that were cut off.
    """

    tokenizer: str
    limit: int
    tokens: int


def family_of(pipeline: DiffusionPipeline) -> Family:
    """Facts about a pipeline's denoiser."""
    return family_by_name(family_name_of(type(pipeline.transformer).__name__))


def encode_text(pipeline: DiffusionPipeline, text: str, gen: GenSpec) -> Conditioning:
    """Encode a prompt, and the negative prompt where there is guidance, by the pipeline itself.

    Args:
        pipeline: A pipeline with its text encoders.
        text: The prompt.
        gen: Settings: guidance, negative prompt and text length count.

    Returns:
        Tensors on the pipeline's device.
    """
    with torch.no_grad():
        made = family_of(pipeline).encode_text(pipeline, text, gen)
    return {name: value for name, value in made.items() if value is not None}


def encode_and_count(
    pipeline: DiffusionPipeline, text: str, gen: GenSpec
) -> tuple[Conditioning, list[Cut]]:
    """Encode a prompt and count what its tokenizers cut off, after all cleaning and templates."""
    counted = copy.copy(pipeline)
    counters = [
        _Counter(name, getattr(pipeline, name))
        for name in ("tokenizer", "tokenizer_2")
        if getattr(pipeline, name, None) is not None
    ]
    for counter in counters:
        # past the pipeline's own __setattr__, which looks its components up in libraries
        counted.__dict__[counter.name] = counter
    made = encode_text(counted, text, gen)
    return made, [cut for counter in counters for cut in counter.cuts()]


class _Counter:
    """A tokenizer that remembers how long texts were before it cut them."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._seen: list[tuple[int, int]] = []

    def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
        if options.get("truncation") and options.get("max_length"):
            texts = [text] if isinstance(text, str) else text
            self._note(self._tokenizer(list(texts), verbose=False).input_ids, options)
        return self._tokenizer(text, *args, **options)

    def apply_chat_template(self, conversation: Any, *args: Any, **options: Any) -> Any:
        if options.get("truncation") and options.get("max_length"):
            whole = dict.fromkeys(("truncation", "padding", "max_length", "return_tensors"))
            plain = {k: v for k, v in options.items() if k not in whole}
            found = self._tokenizer.apply_chat_template(conversation, *args, **plain)
            self._note(found["input_ids"] if hasattr(found, "keys") else found, options)
        return self._tokenizer.apply_chat_template(conversation, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def _note(self, ids: Iterable[Any], options: dict[str, Any]) -> None:
        limit = int(options["max_length"])
        self._seen += [(len(one), limit) for one in ids]

    def cuts(self) -> Iterator[Cut]:
        """The text of which most was cut, where one was."""
        over = max(((length - limit, limit) for length, limit in self._seen), default=(0, 0))
        if over[0] > 0:
            yield Cut(tokenizer=self.name, limit=over[1], tokens=over[0])
