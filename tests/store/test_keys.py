from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.spec import GenSpec, Prompt, Status
from harness.store import keys

GEN = GenSpec(height=64, width=64, frames=17, fps=8, steps=20, guidance=4.0)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_a_key_survives_a_round_trip_through_json(value: object) -> None:
    if "inf" in str(value).lower():
        return  # infinity has no JSON
    assert keys.digest(json.loads(keys.canonical(value))) == keys.digest(value)


def test_a_key_does_not_depend_on_the_order_of_names() -> None:
    assert keys.digest({"a": 1, "b": (1, 2)}) == keys.digest({"b": [1, 2], "a": 1})


def test_what_has_no_canonical_form_is_refused() -> None:
    with pytest.raises(TypeError, match="no canonical form"):
        keys.digest({"x": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        keys.digest(math.nan)


def test_enums_and_paths_and_dataclasses_have_a_form() -> None:
    assert keys.plain(Status.OK) == "ok"
    assert keys.plain(Path("/x")) == "/x"
    assert keys.plain(GEN)["steps"] == 20


def test_a_key_names_its_kind_and_the_schema() -> None:
    made = keys.Keyed.of("clip", {"seed": 1, "gen": GEN})
    assert made.key == keys.digest(made.inputs)
    assert made.inputs["kind"] == "clip"
    assert made.inputs["schema"] == keys.SCHEMA
    assert made.inputs["gen"]["steps"] == 20
    assert keys.Keyed.of("pool", {"seed": 1, "gen": GEN}).key != made.key


def test_the_noise_is_the_same_for_every_method_and_differs_between_prompts_and_seeds() -> None:
    one, two = Prompt(id="a", text="x"), Prompt(id="b", text="y")
    assert keys.noise_seed(one, 0) == keys.noise_seed(dataclasses.replace(one, id="z"), 0)
    assert len({keys.noise_seed(p, s) for p in (one, two) for s in (0, 1)}) == 4


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert keys.file_digest(tmp_path / "f") == expected
