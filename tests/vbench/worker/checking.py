"""What the checks share; the command line is that of ``inside.py``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from vbench_worker.protocol import ClipJob

WEIGHTS, CLIP = (Path(argument).resolve() for argument in sys.argv[1:3])


def raises(kind: type[BaseException], action: Any, *args: Any, **options: Any) -> str:
    """The message of the exception that an action must raise."""
    try:
        action(*args, **options)
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def opened(prompt: str = "a prompt", folder: str = "clip") -> Any:
    from vbench_worker.clips import open_clip
    from vbench_worker.decode import Readers

    job = ClipJob(id=folder, path=CLIP, prompt=prompt, index=0, wants=())
    return open_clip(job, Path(tempfile.mkdtemp()), Readers())


def shelf(batch: int = 1, precision: str = "float32") -> Any:
    import torch
    from vbench_worker.judges import Settings, Shelf, all_loaders

    settings = Settings(
        device=torch.device("cpu"), precision=precision, weights=WEIGHTS, batch=batch
    )
    return Shelf(settings=settings, loaders=all_loaders())
