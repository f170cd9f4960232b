"""human_action: the official function makes its model at every call; here it gets a kept one."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vbench_worker.decode import reading
from vbench_worker.judges import Score, UnscorableError
from vbench_worker.precision import Autocast
from vbench_worker.protocol import BFLOAT16
from vbench_worker.substitute import paths, replaced, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vbench_worker.clips import Clip
    from vbench_worker.judges import Settings, Shelf
    from vbench_worker.protocol import Want

UMT = "umt-l16"


class _LoadedError(Exception):
    """The official function has loaded its model and turns to the clips."""


@dataclass(kw_only=True)
class _Kept:
    """The model that the official function of human_action makes, kept from call to call."""

    model: Any = None

    @contextmanager
    def making(self, official: Any) -> Iterator[None]:
        """Let the official function make its model, read its file, and stop before the clips.

        Raises:
            ValueError: If the file holds no tensor of the model: the official code would go on with
                random weights, since it loads them with ``strict=False``.
        """
        make, states = official.create_model, []

        def made(*args: Any, **options: Any) -> Any:
            self.model = make(*args, **options)
            return self.model

        def read(*args: Any, **options: Any) -> Any:
            states.append(torch.load(*args, **options))
            return states[-1]

        def stop(*_: Any, **__: Any) -> Any:
            raise _LoadedError

        substitutes = {"create_model": made, "torch": _Torch(read), "tqdm": stop}
        with replaced(official, **substitutes):
            try:
                yield
            except _LoadedError:
                if not states[0].keys() & self.model.state_dict().keys():
                    raise ValueError("the file of UMT holds no tensor of the model") from None

    @contextmanager
    def using(self, official: Any) -> Iterator[None]:
        """Let the official function get the model that is already there."""
        substitutes = {
            "create_model": lambda *_, **__: self.model,
            # An empty state, loaded with strict=False, leaves the model as it is.
            "torch": _Torch(lambda *_, **__: {}),
            "tqdm": silent,
        }
        with replaced(official, **substitutes):
            yield


class _Staying(Autocast):
    """A model that stays under autocast when the official function moves it to the device."""

    def to(self, *_: Any) -> _Staying:
        return self


class _Torch:
    """``torch`` for one module, with another ``load``."""

    def __init__(self, load: Callable[..., Any]) -> None:
        self.load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@dataclass(frozen=True, kw_only=True, slots=True)
class HumanAction:
    """Whether one of UMT's five best Kinetics-400 classes (at least 0.85) is the prompt's action.

    The official function takes the action from the file name, up to the first hyphen, and so does
    this: for a prompt with a hyphen the official answer is kept, right or wrong.
    """

    name: str = "human_action"
    models: tuple[str, ...] = (UMT,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip.

        Raises:
            UnscorableError: If the prompt cannot be a file name, where the official code looks for
                the action.
        """
        from vbench import human_action as official

        if not clip.named:
            raise UnscorableError(
                "the official code takes the action from the file name, which this prompt cannot be"
            )
        kept = shelf.get(UMT)
        with reading(clip), kept.using(official):
            _, (row,) = official.human_action("", [str(clip.link)], shelf.settings.device)
        return Score(
            value=float(row["video_results"]), facts={"official": bool(row["video_results"])}
        )


def load_umt(settings: Settings) -> _Kept:
    """UMT ViT-L/16, made and filled by the official function, which would do so for every call."""
    from vbench import human_action as official

    kept = _Kept()
    with kept.making(official):
        official.human_action(paths("human_action")[0], [], settings.device)
    if settings.precision == BFLOAT16:
        kept.model = _Staying(kept.model, settings.device.type)
    return kept
