"""A run folder made by code: known effects, one failed row, simulated rows, a kernel row."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.spec import Record, Status
from harness.store.records import CellOutcome, Run, write_run

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = tuple(f"shapes-eval-{i:03d}" for i in range(16))
TEXTS = {
    p: f"a red square moves left on a striped background, number {i}" for i, p in enumerate(PROMPTS)
}
# label, method, bits, mean PSNR: the gaps are far larger than the spread, except rtn against
# rtn-gptq
ROWS = (
    ("fp", "fp", "fp", None),
    ("control", "control", "fp", 100.0),
    ("rtn", "rtn", "w4a6", 22.0),
    ("rtn-gptq", "rtn-gptq", "w4a6", 22.0),
    ("ptq4dit", "ptq4dit", "w4a6", 27.0),
    ("s2q", "s2q", "w4a6", 33.0),
    ("rtn", "rtn", "w4a4", 11.0),
    ("s2q", "s2q", "w4a4", 21.0),
)
KERNEL = "kernel:cpu-int8, int8 lanes"


def cell_id(label: str, bits: str, model: str = "shapes") -> str:
    return f"{model}--{label}--{bits}"


def make_run(
    folder: Path,
    *,
    prompts: tuple[str, ...] = PROMPTS,
    seeds: tuple[int, ...] = (0,),
    kernel_row: str = "",
    failed_row: str = "",
    models: tuple[str, ...] = ("shapes",),
    offset: float = 0.0,
    **changes: Any,
) -> Run:
    """Write a run folder and return the run."""
    folder.mkdir(parents=True, exist_ok=True)
    cells, records = [], []
    for model in models:
        for index, (label, method, bits, psnr) in enumerate(ROWS):
            name = cell_id(label, bits, model)
            plain = method in ("fp", "control")
            execution = "" if plain else KERNEL if name == kernel_row else "simulated"
            failed = name == failed_row
            cells.append(
                CellOutcome(
                    id=name,
                    model=model,
                    method=method,
                    label=label,
                    bits=bits,
                    suite="shapes-eval",
                    status=Status.OOM if failed else Status.OK,
                    detail="worker used more than 24 GiB" if failed else "",
                    unquantized=plain,
                    execution=execution,
                )
            )
            if not failed:
                made = _Rows(cells[-1], np.random.default_rng(index), folder.name)
                records += made.clips(prompts, seeds, None if psnr is None else psnr + offset)
                records += made.whole(execution)
    run = Run(
        id=folder.name,
        folder=folder,
        experiment={"methods": ["s2q"], "seeds": list(seeds)},
        suites={
            "shapes-eval": {
                "version": 1,
                "digest": "sha256:0123456789abcdef0123",
                "role": "eval",
                "prompts": len(prompts),
                "texts": {p: TEXTS.get(p, p) for p in prompts},
            },
            "shapes-calib": {
                "version": 1,
                "digest": "sha256:fedcba9876543210fedc",
                "role": "calibration",
                "prompts": 10,
            },
        },
        cohort={"device": "cpu", "torch": "2.13.0", "diffusers": "0.42.1", "dtype": "float32"},
        provenance={"harness": "0.1.0", "at": "2026-11-20T23:59:00+00:00"},
        cells=tuple(cells),
        records=tuple(records),
    )
    run = dataclasses.replace(run, **changes)
    write_run(run)
    return run


class _Rows:
    """Makes the records of one row."""

    def __init__(self, cell: CellOutcome, rng: np.random.Generator, run: str) -> None:
        self.cell, self.rng, self.run = cell, rng, run

    def one(self, metric: str, value: float | None, **more: Any) -> Record:
        c = self.cell
        facts = {"prompt": "", "seed": -1, "unit": "", "better": "none"} | more
        return Record(
            run=self.run,
            cell=c.id,
            model=c.model,
            method=c.method,
            bits=c.bits,
            suite=c.suite,
            metric=metric,
            value=value,
            **facts,
        )

    def clips(
        self, prompts: tuple[str, ...], seeds: tuple[int, ...], psnr: float | None
    ) -> list[Record]:
        found = []
        lost = 0.0 if psnr is None else max(0.0, (40.0 - psnr) / 40.0)
        for i, prompt in enumerate(prompts):
            for seed in seeds:
                place = {"prompt": prompt, "seed": seed}
                jitter = float(self.rng.normal(0.0, 0.4))
                found += self._fidelity(psnr, jitter, place)
                for aspect in ("colour", "shape", "background", "motion", "all"):
                    right = (i * 7 % 16) / 16 >= 0.8 * lost
                    found.append(
                        self.one(f"oracle_{aspect}", float(right), better="higher", **place)
                    )
                    margin = 0.8 - lost + 0.02 * jitter
                    found.append(self.one(f"margin_{aspect}", margin, better="higher", **place))
        return found

    def _fidelity(self, psnr: float | None, jitter: float, place: dict[str, Any]) -> list[Record]:
        found = []
        noise = None if psnr is None else 10 ** (-psnr / 10)
        values = {
            "psnr_db": (
                None if psnr is None else min(100.0, psnr + (psnr < 100) * jitter),
                "higher",
            ),
            "ssim": (None if noise is None else 1 - 4 * noise, "higher"),
            "latent_cosine": (None if noise is None else 1 - noise, "higher"),
            "latent_error": (None if noise is None else noise * (2 + 0.1 * jitter), "lower"),
        }
        for metric, (value, better) in values.items():
            off = {} if value is not None else {"status": Status.SKIPPED, "detail": "reference"}
            found.append(self.one(metric, value, better=better, **place, **off))
        reason = {"status": Status.SKIPPED, "detail": "AlexNet weights are not on disk"}
        return [*found, self.one("lpips", None, better="lower", **place, **reason)]

    def whole(self, execution: str) -> list[Record]:
        plain = self.cell.unquantized
        detail = {"detail": "simulated"} if execution == "simulated" else {}
        fast = 0.5 if execution.startswith("kernel") else 1.0
        values = {
            "avg_w_bits": 16.0 if plain else 4.31,
            "avg_a_bits": 16.0 if plain else 6.75,
            "artifact_bytes": 14.7e6 if plain else 4.1e6,
            "compression": 1.0 if plain else 3.58,
        }
        if not plain:
            values |= {
                "layers_quantized": 60.0,
                "layers_target": 60.0,
                "weights_quantized": 1.0,
                "calibration_s": 44.25,
                "calibration_forwards": 320.0,
                "calibration_samples": 40.0,
            }
        found = [self.one(m, v) for m, v in values.items()]
        measured = {
            "step_latency_s": 0.0421 * fast,
            "step_latency_iqr_s": 0.0008,
            "clip_latency_s": 1.512 * fast,
            "clip_latency_iqr_s": 0.021,
            "peak_bytes": 812e6,
        }
        if fast < 1:
            measured["step_speedup"] = 1 / fast
        return found + [self.one(m, v, **detail) for m, v in measured.items()]


def write_clips(run: Run) -> None:
    """Write one small clip for each row and prompt."""
    from harness.generate.video import write_mp4

    seeds = {r.seed for r in run.records if r.prompt}
    prompts = {r.prompt for r in run.records if r.prompt}
    for index, cell in enumerate(run.cells):
        folder = run.folder / "clips" / cell.id
        folder.mkdir(parents=True, exist_ok=True)
        for prompt in prompts:
            frames = np.full((5, 32, 32, 3), 240, dtype=np.uint8)
            for t in range(5):
                frames[t, 8:20, 4 * t : 4 * t + 12] = (220, 20 * index, 40)
            for seed in seeds:
                write_mp4(folder / f"{prompt}-s{seed}.mp4", frames, fps=8)
