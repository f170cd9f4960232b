"""The embedding of UMT5 is the one of the file, however the checkpoint and its config name it.

5.0.0, 5.1.0 and 5.2.0 of transformers load another where only ``shared.weight`` is stored and the
config says ``tie_word_embeddings=false``; these cases were run with 5.1.0 to 5.5.0 and 5.24.0.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from harness.errors import HarnessError
from harness.models.components import Component, load_component
from harness.testing.miniatures import MINIATURES
from tests.models.real_folders import change_weights

if TYPE_CHECKING:
    from pathlib import Path

SHARED, EMBEDDED = "shared.weight", "encoder.embed_tokens.weight"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    MINIATURES["wan"]().text_encoder.save_pretrained(folder / "text_encoder")
    return folder


def stored(folder: Path, tie: bool | None, **tables: torch.Tensor) -> Component:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in (SHARED, EMBEDDED):
            tensors.pop(name, None)
        tensors.update({{"shared": SHARED, "embedded": EMBEDDED}[k]: v for k, v in tables.items()})

    own = folder / "text_encoder"
    config = json.loads((own / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    config |= {} if tie is None else {"tie_word_embeddings": tie}
    (own / "config.json").write_text(json.dumps(config))
    change_weights(own / "model.safetensors", change)
    return Component(
        folder=folder, name="text_encoder", library="transformers", class_name="UMT5EncoderModel"
    )


@pytest.mark.parametrize("tie", [None, True, False])
def test_the_embedding_is_the_one_that_is_stored(encoder: Path, tie: bool | None) -> None:
    config = json.loads((encoder / "text_encoder" / "config.json").read_text())
    shape = (config["vocab_size"], config["d_model"])
    one, two = torch.randn(shape), torch.randn(shape)
    for tables, expected in (
        ({"shared": one}, one),
        ({"embedded": two}, two),
        ({"shared": one, "embedded": one.clone()}, one),
        ({"shared": one, "embedded": two}, two),
    ):
        module = load_component(stored(encoder, tie, **tables), device="cpu", dtype="float32")
        assert torch.equal(module.encoder.embed_tokens.weight, expected)
    with pytest.raises(HarnessError, match=r"'text_encoder' lacks 'encoder.embed_tokens.weight'"):
        load_component(stored(encoder, tie), device="cpu", dtype="float32")
