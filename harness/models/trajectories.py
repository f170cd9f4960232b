"""Recorded trajectories: every denoiser input of some prompts, on disk, from which methods choose.

The pool is the same for every method; what a method does with it (which samples, how many) is the
method's. Each denoising step is one file, so memory does not grow with the number of prompts. All
guidance branches of a step are one call, the conditional one last: where the sampler evaluates them
one after the other, they are stacked here. A prompt whose trajectory is whole is marked so, and is
not recorded again where the recording was ended and goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.errors import HarnessError
from harness.models.block_input import Sample
from harness.models.sample import denoise
from harness.models.text import family_of
from harness.store.durable import fsync_path, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from diffusers import DiffusionPipeline
    from torch import nn

    from harness.models.families.base import Family
    from harness.models.text import Conditioning
    from harness.spec import GenSpec, Prompt

POOL_INDEX = "pool.json"
PROMPT_INDEX = "prompt.json"
"""What a prompt's calls have beside their tensors; written last: a folder that has it is whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserCall:
    """The arguments of one denoiser call.

    Attributes:
        arguments: Keyword arguments as the pipeline passes them; tensors have the batch of all
            branches.
        branches: Number of guidance branches stacked in the batch.
    """

    arguments: dict[str, Any]
    branches: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationPool:
    """Trajectories of the calibration prompts.

    Attributes:
        folder: Where the calls lie.
        prompts: Ids of the prompts.
        timesteps: Value of the timestep at each step, in sampling order.
        branches: Guidance branches in a call.
        forwards: Denoiser evaluations spent on recording, each branch counted.
        seconds: Wall time of recording.
        channels: Channels of the denoiser's input, from the first, that are the latent; None: all.
        parts: Of a denoiser of several networks, the name of the one that served each step.
        first: Step of the recorded trajectories at which these begin.
    """

    folder: Path
    prompts: tuple[str, ...]
    timesteps: tuple[float, ...]
    branches: int
    forwards: int
    seconds: float
    channels: int | None = None
    parts: tuple[str, ...] = ()
    first: int = 0

    @classmethod
    def open(cls, folder: Path) -> CalibrationPool:
        """Open a recorded pool."""
        facts = json.loads((folder / POOL_INDEX).read_text())
        return cls(
            folder=folder,
            prompts=tuple(facts["prompts"]),
            timesteps=tuple(facts["timesteps"]),
            branches=facts["branches"],
            forwards=facts["forwards"],
            seconds=facts["seconds"],
            channels=facts["channels"],
            parts=tuple(facts.get("parts", ())),
        )

    @property
    def steps(self) -> int:
        """Denoising steps of a trajectory."""
        return len(self.timesteps)

    def of_part(self, part: str) -> CalibrationPool:
        """The steps that one network of a denoiser served, as if there were no others.

        Networks take turns once, so that these are steps in a row. The latent behind the last of
        them is what the next network gets.

        Args:
            part: Name of the network; empty for a denoiser of one.

        Raises:
            HarnessError: It served no step of these trajectories.
        """
        if not part:
            return self
        if part not in self.parts:
            raise HarnessError(
                f"the denoiser '{part}' serves none of the {self.steps} steps: nothing can be "
                "calibrated on it",
                "set more steps in [gen]",
            )
        start, count = self.parts.index(part), self.parts.count(part)
        return replace(
            self,
            timesteps=self.timesteps[start : start + count],
            forwards=self.forwards * count // self.steps,
            seconds=self.seconds * count / self.steps,
            parts=(),
            first=self.first + start,
        )

    def samples(self) -> Iterator[Sample]:
        """Every candidate, prompt by prompt in sampling order."""
        for prompt in range(len(self.prompts)):
            for step in range(self.steps):
                yield Sample(prompt, step)

    def latent(self, sample: Sample) -> Tensor:
        """Latent ``[1, ...]`` that enters the denoiser at a step; the final one at ``steps``."""
        path = self._call_path(sample)
        if sample.step == self.steps and not path.is_file():  # else the next network goes on there
            return load_file(_final_path(self.folder, sample.prompt))["latent"]
        given = load_file(path)["hidden_states"][:1]
        return given if self.channels is None else given[:, : self.channels]

    def call(self, sample: Sample, device: torch.device | None = None) -> DenoiserCall:
        """Arguments of the denoiser at a candidate."""
        index = json.loads((self.folder / POOL_INDEX).read_text())
        tensors = load_file(self._call_path(sample))
        tensors |= load_file(self.folder / f"p{sample.prompt:04d}" / "fixed.safetensors")
        arguments: dict[str, Any] = dict(index["constants"])
        for name, count in index["tuples"].items():
            arguments[name] = tuple(tensors.pop(f"{name}.{i}").to(device) for i in range(count))
        arguments |= {name: value.to(device) for name, value in tensors.items()}
        return DenoiserCall(arguments=arguments, branches=self.branches)

    def _call_path(self, sample: Sample) -> Path:
        return _call_path(self.folder, Sample(sample.prompt, self.first + sample.step))


def record_pool(
    pipeline: DiffusionPipeline,
    prompts: Sequence[Prompt],
    gen: GenSpec,
    *,
    seed: int,
    folder: Path,
    progress: Callable[[float, str], None],
    texts: Callable[[str], Conditioning] | None = None,
) -> CalibrationPool:
    """Run the full-precision sampler and keep every denoiser input.

    Args:
        pipeline: Full-precision pipeline.
        prompts: Calibration prompts.
        gen: Settings, the same as for the evaluation.
        seed: The noise of prompt i has seed ``1_000_000 + 1000 * seed + i``, apart from evaluation
            seeds.
        folder: Existing folder; prompts that an attempt before this one has finished there stay.
        progress: Progress callback, called at every step.
        texts: Gives what was made of a prompt before; None for a pipeline with its text encoders.
    """
    recorder = _Recorder(folder, family_of(pipeline))
    handle = pipeline.transformer.register_forward_pre_hook(recorder, with_kwargs=True)
    last: list[Tensor] = []

    def keep(step: int, latents: Tensor) -> None:
        recorder.end_step()
        last[:] = [latents]
        text = f"trajectory {i + 1}/{len(prompts)}, step {step + 1}"
        progress((i + min(1.0, (step + 1) / gen.steps)) / len(prompts), text)

    try:
        for i, prompt in enumerate(prompts):
            if (folder / f"p{i:04d}" / PROMPT_INDEX).is_file():
                continue
            started = time.perf_counter()
            recorder.begin(i)
            told = prompt.text if texts is None else texts(prompt.text)
            denoise(pipeline, told, gen, seed=1_000_000 + 1000 * seed + i, on_step=keep)
            save_file({"latent": last.pop().cpu().contiguous()}, _final_path(folder, i))
            recorder.end(seconds=time.perf_counter() - started)
    finally:
        handle.remove()
    _write_index(folder, prompts)
    return CalibrationPool.open(folder)


def _write_index(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Write what the pool is, from what its prompts are."""
    told = [
        json.loads((folder / f"p{i:04d}" / PROMPT_INDEX).read_text()) for i in range(len(prompts))
    ]
    facts = {
        "prompts": [p.id for p in prompts],
        "timesteps": told[0]["timesteps"],
        "branches": told[0]["branches"],
        "channels": told[0]["channels"],
        "parts": told[0].get("parts", []),
        "forwards": sum(len(one["timesteps"]) * one["branches"] for one in told),
        "seconds": sum(one["seconds"] for one in told),
        "constants": told[0]["constants"],
        "tuples": told[0]["tuples"],
    }
    replace_file(folder / POOL_INDEX, json.dumps(facts, indent=1))


_CHANGING = ("hidden_states", "timestep")


class _Recorder:
    """Forward pre-hook that keeps the arguments of the denoiser calls of a step.

    Args:
        folder: Where steps are written.
        family: Facts about the denoiser: where a step is two calls, the conditional comes first.
    """

    def __init__(self, folder: Path, family: Family) -> None:
        self.folder = folder
        self.branches = 0
        self.channels: int | None = None
        self.timesteps: list[float] = []
        self.parts: list[str] = []
        self.constants: dict[str, Any] = {}
        self.tuples: dict[str, int] = {}
        self._family = family
        self._calls: list[dict[str, Any]] = []
        self._serving: Callable[[Tensor], str] | None = None
        self._prompt = 0
        self._step = 0

    def begin(self, prompt: int) -> None:
        """Start the trajectory of a prompt."""
        self._prompt, self._step, self._calls = prompt, 0, []
        self.timesteps, self.parts = [], []
        place = self.folder / f"p{prompt:04d}"
        shutil.rmtree(place, ignore_errors=True)  # a part that an ended attempt left
        place.mkdir()

    def end(self, seconds: float) -> None:
        """Mark the trajectory of the prompt as whole."""
        place = self.folder / f"p{self._prompt:04d}"
        for path in place.iterdir():
            fsync_path(path)
        facts = {
            "timesteps": self.timesteps,
            "branches": self.branches,
            "channels": self.channels,
            "parts": self.parts,
            "constants": self.constants,
            "tuples": self.tuples,
            "seconds": seconds,
        }
        replace_file(place / PROMPT_INDEX, json.dumps(facts, indent=1))

    def __call__(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            raise TypeError("the pipeline passes positional arguments to its denoiser")
        self._calls.append(kwargs)
        self.channels = self._family.latent_channels(denoiser)
        self._serving = getattr(denoiser, "serving", None)

    def end_step(self) -> None:
        """Write the calls made since the last step as one."""
        calls = self._calls[::-1] if self._family.guidance == "calls" else self._calls
        stacked = {name: _stacked([call[name] for call in calls]) for name in calls[0]}
        kwargs = self._family.trimmed(stacked)
        self._calls = []
        tensors: dict[str, Tensor] = {}
        fixed: dict[str, Tensor] = {}
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                (tensors if name in _CHANGING else fixed)[name] = value.detach().cpu().contiguous()
            elif isinstance(value, tuple) and all(isinstance(v, Tensor) for v in value):
                fixed |= {f"{name}.{i}": v.detach().cpu().contiguous() for i, v in enumerate(value)}
                self.tuples[name] = len(value)
            else:
                self.constants[name] = value
        save_file(tensors, _call_path(self.folder, Sample(self._prompt, self._step)))
        if self._step == 0:
            save_file(fixed, self.folder / f"p{self._prompt:04d}" / "fixed.safetensors")
        self.timesteps.append(float(kwargs["timestep"].flatten()[0]))
        if self._serving is not None:
            self.parts.append(self._serving(kwargs["timestep"]))
        self.branches = kwargs["hidden_states"].shape[0]
        self._step += 1


def _stacked(values: list[Any]) -> Any:
    """One argument of several branches: tensors along the batch, the rest from the first."""
    if len(values) > 1 and isinstance(values[0], Tensor):
        return torch.cat(values)
    return values[0]


def _call_path(folder: Path, sample: Sample) -> Path:
    return folder / f"p{sample.prompt:04d}" / f"s{sample.step:04d}.safetensors"


def _final_path(folder: Path, prompt: int) -> Path:
    return folder / f"p{prompt:04d}" / "final.safetensors"
