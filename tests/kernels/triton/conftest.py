"""Where the kernels run: interpreted on the CPU, or with ``-m gpu`` compiled on a CUDA device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Device of the tensors that a test gives to kernels."""
    from tests.kernels.triton.parts import INTERPRETED

    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        if INTERPRETED:
            pytest.skip("kernels are interpreted in this process; run it with -m gpu")
    elif not INTERPRETED:
        pytest.skip("kernels are compiled in this process; run it without -m gpu")
    return str(request.param)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Have ``torch.empty`` give NaN and the largest integers, so that a place left out is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn_only)
