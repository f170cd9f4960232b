from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.spec import GenSpec, ModelSpec, Prompt, Status
from harness.store import keys

GEN = GenSpec(height=64, width=64, frames=17, fps=8, steps=20, guidance=4.0)
MODEL = ModelSpec(name="m", repo="/a", family="cogvideox", gen=GEN, revision="r1")
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


def _quant(**changes: object) -> str:
    base: dict[str, object] = {
        "model": MODEL,
        "gen": GEN,
        "method": "s2q",
        "version": 1,
        "options": {"n": 40},
        "bits": "w4a6",
        "calibration": {"suite": "d", "prompts": 10},
        "seed": 0,
    }
    return keys.digest(keys.quant_inputs(**{**base, **changes}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"model": dataclasses.replace(MODEL, revision="r2")},
        {"model": dataclasses.replace(MODEL, variant="outliers")},
        {"gen": dataclasses.replace(GEN, steps=10)},
        {"method": "rtn"},
        {"version": 2},
        {"options": {"n": 41}},
        {"bits": "w4a4"},
        {"calibration": {"suite": "e", "prompts": 10}},
        {"calibration": {"suite": "d", "prompts": 11}},
        {"seed": 1},
    ],
)
def test_every_declared_input_changes_the_artifact_key(change: dict[str, object]) -> None:
    assert _quant(**change) != _quant()


def test_name_and_folder_of_a_model_change_no_key() -> None:
    moved = dataclasses.replace(MODEL, name="other", repo="/b")
    assert _quant(model=moved) == _quant()


def test_the_noise_is_the_same_for_every_method_and_differs_between_prompts_and_seeds() -> None:
    one, two = Prompt(id="a", text="x"), Prompt(id="b", text="y")
    assert keys.noise_seed(one, 0) == keys.noise_seed(dataclasses.replace(one, id="z"), 0)
    assert len({keys.noise_seed(p, s) for p in (one, two) for s in (0, 1)}) == 4


def test_a_clip_key_depends_on_the_cohort() -> None:
    prompt = Prompt(id="a", text="x")
    made = [
        keys.digest(
            keys.clip_inputs(
                quant_key="q", gen=GEN, prompt=prompt, seed=0, cohort={"threads": threads}
            )
        )
        for threads in (1, 2)
    ]
    assert made[0] != made[1]


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert keys.file_digest(tmp_path / "f") == expected
