"""The text stage: every prompt of a model encoded once, with what its encoders did not read.

Importing this module needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.offload import NONE, loading_device, place_
from harness.models.tiling import before_decoding
from harness.store.keys import Keyed, digest, model_identity
from harness.store.sources import sources_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from harness.models.text import Conditioning
    from harness.spec import GenSpec, ModelSpec
    from harness.store.store import Store
    from harness.task import TextTask

EMPTY = ""
"""The text of what no prompt matters for: counting multiplications, timing, probing."""

EMBEDDINGS_FILE = "embeddings.safetensors"
FACTS_FILE = "text.json"
CUT = "cut"
"""In a text's facts and in those of its clips: what each encoder did not read of it."""

_SOURCES = ("harness.models.text", "harness.models.load", __name__)
_FAMILIES = "harness.models.families"
_READ = ("dtype", "max_text_tokens", "negative_prompt")


def text_keys(
    texts: Iterable[str], model: ModelSpec, gen: GenSpec, cohort: Mapping[str, Any]
) -> dict[str, Keyed]:
    """Key of each encoded text.

    Args:
        texts: The prompts.
        model: The model.
        gen: Settings: dtype, text length, negative prompt, and whether there is guidance.
        cohort: What two clips must share; embeddings must, too.
    """
    common = {
        "model": model_identity(model),
        "gen": {name: getattr(gen, name) for name in _READ} | {"guided": gen.guidance > 1},
        "cohort": dict(cohort),
        "sources": {
            "encoder": sources_digest(_SOURCES),
            "family": sources_digest([f"{_FAMILIES}.base", f"{_FAMILIES}.{model.family}"]),
        },
    }
    return {text: Keyed.of("text", {**common, "text": digest(text)}) for text in texts}


def encode_missing(
    task: TextTask,
    store: Store,
    device: str,
    progress: Callable[[float, str], None],
    *,
    offload: str = NONE,
) -> None:
    """Encode the texts that the store lacks; the encoders are loaded once, and nothing else is."""
    from safetensors.torch import save_file

    from harness.models.load import load_pipeline
    from harness.models.text import encode_and_count

    missing = {t: k for t, k in task.texts.items() if store.find("text", k.key) is None}
    if not missing:
        return
    gen = before_decoding(task.gen)
    start = loading_device(device, offload)
    pipeline = load_pipeline(task.model, device=start, dtype=gen.dtype, parts={"text"})
    if offload != NONE:
        place_(pipeline, device=device, offload=offload)
    for i, (text, wanted) in enumerate(missing.items()):
        progress(i / len(missing), f"text {i + 1}/{len(missing)}")
        with store.build("text", wanted.key, wanted.inputs, {"label": task.model.name}) as folder:
            made, cuts = encode_and_count(pipeline, text, gen)
            tensors = {name: value.cpu().contiguous() for name, value in made.items()}
            save_file(tensors, folder / EMBEDDINGS_FILE)
            facts = {"text": text, CUT: [asdict(cut) for cut in cuts]}
            (folder / FACTS_FILE).write_text(
                json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8"
            )


def read_text(store: Store, key: str) -> Conditioning:
    """What the encoders made of a text, on the CPU.

    Raises:
        HarnessError: The store does not have it.
    """
    from safetensors.torch import load_file

    entry = store.find("text", key)
    if entry is None:
        raise _gone()
    return load_file(entry.folder / EMBEDDINGS_FILE)


def read_cuts(store: Store, key: str) -> list[dict[str, Any]]:
    """What each encoder did not read of a text: ``tokenizer``, ``limit``, ``tokens``.

    Raises:
        HarnessError: The store does not have it.
    """
    entry = store.find("text", key)
    if entry is None:
        raise _gone()
    found: list[dict[str, Any]] = entry.json(FACTS_FILE)[CUT]
    return found


def _gone() -> HarnessError:
    return HarnessError("an encoded prompt is gone", "run the same command again")
