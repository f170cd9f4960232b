"""Values that no method could mean are refused when the options are built."""

from __future__ import annotations

import math

import pytest

from harness.errors import UsageError
from harness.method import resolve_options
from harness.plan import registry

REFUSED = [
    *[("rtn", o) for o in ({"group": -1}, {"modulation": "w4"})],
    *[("rtn-gptq", o) for o in ({"selection": "uniform"}, {"samples": 0}, {"branches": "uncond"})],
    *[
        ("s2q", o)
        for o in (
            {"selection": "sdss"}, {"norm": "l2"}, {"text_tokens": "text"}, {"rotation": "hadamrd"},
            {"branches": "all"}, {"inputs": "quantised"}, {"rounding": "adaround"},
            {"modulation": "bf16"}, {"samples": 0}, {"epochs": -1}, {"lambda_min": 1.5},
            {"smoothing": -0.1}, {"lr_clip": math.nan}, {"lr_transform": math.inf},
        )
    ],
    *[
        ("ptq4dit", o)
        for o in (
            {"selection": "random"}, {"samples": 0}, {"timesteps": 0}, {"iterations": -1},
            {"warmup": 2.0}, {"lambda_min": -1.0}, {"beta_stop": 0.0}, {"branches": ""},
            {"modulation": "W"},
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), REFUSED, ids=str)
def test_a_value_that_cannot_be_meant_is_refused_with_its_option(
    name: str, options: dict[str, object]
) -> None:
    method = registry.load_method(name)
    (option,) = options
    with pytest.raises(UsageError, match=f"option '{option}'") as caught:
        resolve_options(method, options)
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["rtn", "rtn-gptq", "s2q", "ptq4dit"])
def test_the_defaults_are_allowed(name: str) -> None:
    method = registry.load_method(name)
    assert resolve_options(method, {}) == method.Options()


def test_the_nearest_word_is_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_options(registry.load_method("s2q"), {"norm": "spectrl"})
    assert "did you mean spectral?" in caught.value.hint


def test_the_ends_of_a_range_belong_to_it() -> None:
    method = registry.load_method("s2q")
    assert resolve_options(method, {"lambda_min": 0}).lambda_min == 0
    assert resolve_options(method, {"lambda_min": 1}).lambda_min == 1
    with pytest.raises(UsageError, match="out of range"):
        resolve_options(method, {"lambda_min": 1.0001})


def test_of_numbers_the_known_ones_are_named() -> None:
    method = registry.load_method("torchao-int4wo")
    with pytest.raises(UsageError, match="'48'") as caught:
        resolve_options(method, {"group": 48})
    assert all(str(size) in caught.value.hint for size in (32, 64, 128, 256))
    assert resolve_options(method, {"group": 64}).group == 64


def test_an_empty_list_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(UsageError, match="option 'sizes'"):
        resolve_options(registry.load_method("qdit"), {"sizes": []})
    assert resolve_options(registry.load_method("qdit"), {"sizes": [16, 8]}).sizes == (16, 8)
