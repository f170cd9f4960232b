"""Write docs/real-models.md: what published models take at real size, from their configs alone.

    python tools/real_models.py [--check] [--time]

Configs stand in ``tools/real_models.toml``, each with its source. Parameters are counted by
building the classes on the meta device, which takes no memory; peaks are those of
``harness.plan.memory``.
``--time`` times a block at real width on this machine first and keeps what it found in
``tools/real_models_timed.json``, from which the hours are scaled; ``--check`` writes nothing and
exits with 1 where the page is another.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from harness.models.families import family_by_name  # noqa: E402
from harness.models.inventory import Inventory, inventory  # noqa: E402
from harness.models.offload import OFFLOADS  # noqa: E402
from harness.models.parts import Part  # noqa: E402
from harness.plan.memory import (  # noqa: E402
    DENOISER,
    HESSIANS,
    KINDS,
    LAYERS,
    TRAINING,
    Sizes,
    peaks,
    sizes_of,
)
from harness.plan.memory_facts import MARGIN  # noqa: E402
from harness.plan.size_sheet import GIB, GROUPS, PUBLISHED, WIDTHS, away  # noqa: E402
from harness.plan.stage_time import HALF_FLOPS, SINGLE_FLOPS  # noqa: E402
from harness.plan.storage import EVERY, TOKENS, Scheme, storage  # noqa: E402
from harness.spec import GenSpec  # noqa: E402

CONFIGS = ROOT / "tools/real_models.toml"
TIMED = ROOT / "tools/real_models_timed.json"
PAGE = ROOT / "docs/real-models.md"

DENOISERS = {
    "cogvideox": ("CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX"),
    "hunyuanvideo": ("HunyuanVideoTransformer3DModel", "AutoencoderKLHunyuanVideo"),
    "hunyuanvideo15": ("HunyuanVideo15Transformer3DModel", "AutoencoderKLHunyuanVideo15"),
    "wan": ("WanTransformer3DModel", "AutoencoderKLWan"),
    "ltx": ("LTXVideoTransformer3DModel", "AutoencoderKLLTXVideo"),
}
DEVICES_GB = (24, 48, 80)

PROMPTS, SAMPLES, STEPS = 10, 40, 600
"""The common calibration budget: recorded prompts, samples, and training steps a block."""
PASSES = {"rtn": (0, 0), "gptq": (3, 0), "s2q, flatquant": (3, STEPS), "ptq4dit": (4, STEPS)}
"""By method: passes of the samples through every block, and training steps of a block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RealModel:
    """One published model.

    Attributes:
        published: Parameters of a denoiser that its name or paper gives, in billions.
        sizes: What the peaks are computed from.
        counted: What the denoisers store.
        sources: Where each config is from.
    """

    name: str
    published: float
    sizes: Sizes
    counted: Inventory
    sources: tuple[str, ...]


def real_models() -> list[RealModel]:
    """Every model of the configs, its parameters counted."""
    held = tomllib.loads(CONFIGS.read_text(encoding="utf-8"))
    return [_model(entry, held["encoder"]) for entry in held["model"]]


def _model(entry: dict[str, Any], encoders: dict[str, Any]) -> RealModel:
    family = entry["family"]
    denoiser, decoder = DENOISERS[family]
    config = entry.get("transformer", {})
    settings = json.dumps(config, sort_keys=True)
    parts = [_component("transformer", denoiser, settings), _component("vae", decoder, "{}")]
    if entry.get("denoisers") == 2:
        parts.append(_component("transformer_2", denoiser, settings))
    sources = [f"{entry['name']}: {entry['source']}"]
    for i, name in enumerate(entry["encoders"]):
        about = encoders[name]
        slot = "text_encoder" if i == 0 else f"text_encoder_{i + 1}"
        parts.append(_component(slot, about["kind"], json.dumps(about["config"], sort_keys=True)))
        sources.append(f"{name}: {about['source']}")
    single = family_by_name(family).single_precision
    sizes = sizes_of(family, GenSpec(fps=1, **entry["gen"]), parts, single)
    if sizes is None:
        raise SystemExit(f"{entry['name']}: no estimate can be made of family '{family}'")
    return RealModel(
        name=entry["name"],
        published=entry["published"],
        sizes=sizes,
        counted=inventory(
            denoiser, *[config] * entry.get("denoisers", 1), dtype=entry["gen"]["dtype"]
        ),
        sources=tuple(sources),
    )


@cache
def _component(name: str, kind: str, settings: str) -> Part:
    """Build a component on the meta device and count its parameters."""
    module = on_meta(kind, json.loads(settings))
    config = module.config
    config = dict(config) if not hasattr(config, "to_dict") else config.to_dict()
    count = sum(p.numel() for p in module.parameters())
    return Part(name=name, kind=kind, parameters=count, config=config)


def on_meta(kind: str, settings: dict[str, Any]) -> Any:
    """A component of diffusers or transformers on the meta device.

    Args:
        kind: Its class.
        settings: Its config, where it is not the class' default.
    """
    import torch

    with torch.device("meta"):
        if kind.startswith(("CogVideoX", "Hunyuan", "Wan", "LTX", "Autoencoder")):
            import diffusers

            return getattr(diffusers, kind)(**settings).eval()
        import transformers

        cls = getattr(transformers, kind)
        return cls(cls.config_class(**settings)).eval()


def page() -> str:
    """The whole page."""
    models = real_models()
    return "\n".join([_HEAD, *_sizes(models), *_weights(models), *_accounting(models),
                      *_peaks(models), *_fits(models), *_hours(models),
                      *_sources(models)]) + "\n"  # fmt: skip


_HEAD = """# Real models at real size

Written by `python tools/real_models.py`; a test holds the page to what the command writes. Every
number is an **estimate**: parameters are counted on the meta device from configs that are named
below, peaks follow from the formulas of `harness/plan/memory.py`. No GPU was used.

What was held against something measured:

- **A pass of the denoiser**: within 10 % of a trace of every tensor at real width and tokens, two
  blocks deep (HunyuanVideo-1.5: one block, whose two masks of tokens by tokens and their copy in
  the dtype of the queries are counted), and one block of CogVideoX-2B at 1024 tokens within 20 % of
  a measured peak on a CPU.
- **Untiled decoding**: within 10 % of a trace of every tensor, of smaller clips.

Nothing else was. Calibration is computed with constants that `python tools/memory_bench.py` printed
for **one** model, a block of CogVideoX-2B, and carried over to the others by width and tokens;
tiled decoding, simulated rows, text encoders, offloading and the host's memory are computed from
the code. Training through the whole denoiser (Q-VDiT) is a lower bound. Work space of kernels and
the fragmentation of an allocator come on top; a run is refused only where the estimate is more than
20 % above what the device has.

GB are 10^9 bytes. `none`, `components` and `blocks` are the values of `[execution] offload`."""


def _sizes(models: list[RealModel]) -> list[str]:
    rows = [
        "", "## Sizes", "",
        "| model | frames x height x width | video tokens | text tokens | denoiser | text encoders "
        "| decoder | denoiser, GB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for model in models:
        sizes, gen, shape = model.sizes, model.sizes.gen, model.sizes.shape
        denoisers = " + ".join(_billions(part.parameters) for part in sizes.denoisers)
        text = " + ".join(_billions(part.parameters) for part in sizes.text)
        rows.append(
            f"| {model.name} | {gen.frames} x {gen.height} x {gen.width} | {shape.video_tokens:,} "
            f"| {shape.text_tokens} | {denoisers} | {text} "
            f"| {sizes.decoder.parameters / 1e6:.0f} M "
            f"| {_gb(sum(sizes.bytes_of(p) for p in sizes.denoisers))} |"
        )
    return rows


def _weights(models: list[RealModel]) -> list[str]:
    schemes = [Scheme(bits=bits, group=group) for bits in WIDTHS for group in GROUPS]
    rows = [
        "", "## Weights on disk, GiB", "",
        "The denoiser's weights as an artifact of `rtn` holds them, and how many times smaller "
        "that is than 16 bits: codes of every linear of the blocks, modulation counted in, a "
        "float16 step for each output channel or group of input channels, and all else, biases "
        "too, in 16 bits. GiB are 2^30 bytes. Tests hold the count to the tensors of an artifact "
        "of every family's miniature, to the byte, and to those of `shapes`. Headers, manifest, "
        "and what a method adds (transforms, branches) come on top. A linear one of whose steps is "
        "below 2^-14, as that of a row of zeros is, has all of its steps in float32 (two linears "
        "of `shapes`), and tensors that both the checkpoint and diffusers keep in float32 (some of "
        "Wan's) take up to twice what is counted here.", "",
        f"| model | 16 bits | {' | '.join(scheme.label for scheme in schemes)} |",
        f"|---|--:|{'--:|' * len(schemes)}",
    ]  # fmt: skip
    for model in models:
        found = [storage(model.counted, scheme) for scheme in schemes]
        cells = " | ".join(f"{size.total / GIB:.3f} ({size.ratio:.2f}x)" for size in found)
        rows.append(f"| {model.name} | {found[0].plain / GIB:.3f} | {cells} |")
    return rows


ACCOUNTINGS = {
    "linears of the blocks, float16 steps: that of the artifacts": Scheme(bits=4),
    "linears of the blocks, float32 steps": Scheme(bits=4, step_bytes=4),
    "linears of the blocks, no steps": Scheme(bits=4, step_bytes=0),
    "linears of the blocks in groups of 128, float16 steps": Scheme(bits=4, group=128),
    "linears of the blocks without modulation, float16 steps": Scheme(bits=4, linears=TOKENS),
    "every linear of the denoiser, float16 steps": Scheme(bits=4, linears=EVERY),
}
"""What could have been counted: by what is rounded to 4 bits, one step an output channel."""


def _accounting(models: list[RealModel]) -> list[str]:
    known = {model.name: model for model in models if model.name in PUBLISHED}
    source = ", ".join(dict.fromkeys(PUBLISHED[name].source for name in known))
    columns = " | ".join(f"{name}: GiB | away" for name in known)
    rows = [
        "", "## Weights on disk as published", "",
        f"{source} prints the storage of two models at w4a6, in GB that are GiB: the 16-bit sizes "
        "are the parameters' only so. It does not say which linears are at 4 bits. Counted here, "
        "with nothing fitted, and how far from what is printed:", "",
        f"| rounded to 4 bits | {columns} |", f"|---|{'--:|' * 2 * len(known)}",
    ]  # fmt: skip
    printed = " | ".join(f"{PUBLISHED[name].quantized:.3f} | " for name in known)
    rows.append(f"| as published | {printed}|")
    for what, scheme in ACCOUNTINGS.items():
        cells = []
        for name, model in known.items():
            total = storage(model.counted, scheme).total
            cells.append(f"{total / GIB:.3f} | {away(total, PUBLISHED[name].quantized):+.2f} %")
        rows.append(f"| {what} | {' | '.join(cells)} |")
    plain = {name: storage(model.counted, Scheme(bits=16)).plain for name, model in known.items()}
    cells = [
        f"{plain[name] / GIB:.3f} | {away(plain[name], PUBLISHED[name].plain):+.2f} %"
        for name in known
    ]
    rows.append(f"| nothing: 16 bits, {_printed(known)} printed | {' | '.join(cells)} |")
    return [
        *rows, "",
        "Of these, only the linears of the blocks, modulation among them, give both models within "
        "0.5 %: HunyuanVideo's token refiner stays. How steps are stored, and whether a small "
        "linear outside the blocks is rounded too, moves less than that and cannot be told. The "
        "first line is what `harness show model` prints.",
    ]  # fmt: skip


def _printed(known: dict[str, RealModel]) -> str:
    return " and ".join(f"{PUBLISHED[name].plain:.3f}" for name in known)


def _peaks(models: list[RealModel]) -> list[str]:
    rows = [
        "", "## Peak of each stage on the device, GB", "",
        "`denoise` holds all guidance branches of a step that are computed together; quantized "
        "rows are simulated at 4 bits, a row that a kernel computes holds a byte a weight. `host` "
        "is what the process keeps in the host's memory with "
        "`blocks`.", "",
        f"| model | stage | {' | '.join(OFFLOADS)} | host |", "|---|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for model in models:
        found = [_all_peaks(model.sizes, offload) for offload in OFFLOADS]
        for stage in found[0]:
            held = " | ".join(_gb(every[stage][0]) for every in found)
            rows.append(f"| {model.name} | {stage} | {held} | {_gb(found[-1][stage][1])} |")
    return rows


def _all_peaks(sizes: Sizes, offload: str) -> dict[str, tuple[int, int]]:
    found = [
        *peaks(sizes, offload=offload, kinds=KINDS, w_bits=4, tiled=False),
        *peaks(sizes, offload=offload, tiled=True)[-1:],
    ]
    return {peak.stage: (peak.device, peak.host) for peak in found}


def _fits(models: list[RealModel]) -> list[str]:
    rows = [
        "", "## What fits one device", "",
        "The first of `none`, `components`, `blocks` with which every stage of the work is at most "
        "the device's memory; `tiled` where the decoder needs tiling besides. A cell with a "
        f"question mark is above it by at most {MARGIN:.0%}, which is not refused.", "",
        f"| model | work | {' | '.join(f'{size} GB' for size in DEVICES_GB)} |",
        "|---|---|--|--|--|",
    ]  # fmt: skip
    for model in models:
        for work, kind in (("sample", None), ("rtn", LAYERS), ("gptq", HESSIANS),
                           ("s2q, flatquant, ptq4dit", TRAINING),
                           ("qvdit, at least", DENOISER)):  # fmt: skip
            cells = [_setting(model.sizes, kind, size * 10**9) for size in DEVICES_GB]
            rows.append(f"| {model.name} | {work} | {' | '.join(cells)} |")
    return rows


def _setting(sizes: Sizes, kind: str | None, capacity: int) -> str:
    for limit, mark in ((capacity, ""), (capacity * (1 + MARGIN), "?")):
        for offload in OFFLOADS:
            found = peaks(
                sizes, offload=offload, kinds=[kind] if kind else (), tiled=True,
                w_bits=4 if kind else None,
            )  # fmt: skip
            if all(peak.device <= limit for peak in found):
                whole = peaks(sizes, offload=offload, tiled=False)[-1].device <= limit
                return f"{offload}{'' if whole else ', tiled'}{mark}"
    return "no"


def _hours(models: list[RealModel]) -> list[str]:
    timed = json.loads(TIMED.read_text(encoding="utf-8"))
    ratio = timed["step_s"] / timed["forward_s"]
    rate = timed["forward_flops"] / timed["forward_s"]
    rows = [
        "", "## Hours of calibration", "",
        f"Scaled by the number of operations from one timed block: {timed['what']}, "
        f"{timed['tokens']} tokens, float32, {timed['threads']} thread of {timed['processor']}: "
        f"{timed['forward_s']:.2f} s a pass, {timed['step_s']:.2f} s a training step "
        f"({ratio:.1f} passes), {rate / 1e9:.0f} GFLOP/s sustained in the pass. The first column "
        "of hours is that rate, on that one thread. The second is **not measured**: it assumes "
        f"{HALF_FLOPS / 1e12:.0f} TFLOP/s in 16-bit passes and {SINGLE_FLOPS / 1e12:.0f} in "
        "float32 training steps (40 % and 70 % of an A100's dense peaks) and the timed ratio of a "
        "step to a pass. "
        f"Budget: {PROMPTS} recorded prompts, {SAMPLES} samples of one guidance branch, "
        f"{STEPS} training steps a block. Loading, rounding and the disk are left out.", "",
        "| model | part | PFLOP | hours, timed thread | hours, assumed GPU |",
        "|---|---|--:|--:|--:|",
    ]  # fmt: skip
    for model in models:
        shape, gen = model.sizes.shape, model.sizes.gen
        branches = shape.rows * shape.calls
        record = PROMPTS * gen.steps * branches * shape.row_flops
        work = {"record the pool": (record, 0.0)}
        for name, (passes, steps) in PASSES.items():
            forward = passes * SAMPLES * shape.row_flops
            work[name] = (forward, steps * ratio * shape.row_flops)
        for part, (forward, training) in work.items():
            thread = (forward + training) / rate / 3600
            gpu = (forward / HALF_FLOPS + training / SINGLE_FLOPS) / 3600
            rows.append(
                f"| {model.name} | {part} | {(forward + training) / 1e15:,.0f} | {thread:,.0f} "
                f"| {gpu:,.1f} |"
            )
    return rows


def _sources(models: list[RealModel]) -> list[str]:
    every = dict.fromkeys(line for model in models for line in model.sources)
    rows = ["", "## Where the configs are from", ""]
    rows += [f"- {line}." for line in every]
    return [*rows, "", "`tools/real_models.toml` holds them."]


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f}"


def time_block(tokens: int = 1024) -> dict[str, Any]:
    """Time a pass and a training step of a CogVideoX-2B block on this machine."""
    import memory_probe as probe
    import torch

    from harness.store.provenance import cpu_name

    torch.set_num_threads(1)
    block, given = probe.real_block(), probe.inputs(tokens)
    taken = []
    with torch.no_grad():
        for _ in range(3):
            started = time.process_time()
            block(**given)
            taken.append(time.process_time() - started)
    # statistics and preparation are the same in both
    once, thrice = (_cpu_seconds(lambda n=n: probe.train(block, tokens, steps=n)) for n in (1, 3))
    return {
        "what": f"CogVideoX-2B (width {probe.WIDTH})",
        "tokens": tokens,
        "threads": 1,
        "processor": cpu_name(),
        "forward_s": round(min(taken), 3),
        "step_s": round((thrice - once) / 2, 3),
        "forward_flops": 24.0 * probe.WIDTH**2 * tokens + 4.0 * tokens**2 * probe.WIDTH,
    }


def _cpu_seconds(call: Any) -> float:
    """Processor time of this process: what others do beside it does not count."""
    started = time.process_time()
    call()
    return time.process_time() - started


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--time", action="store_true", help="time the block first")
    arguments = parser.parse_args()
    if arguments.time:
        TIMED.write_text(json.dumps(time_block(), indent=1) + "\n", encoding="utf-8")
    text = page()
    if arguments.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE.name} is {'up to date' if same else 'another: run this command'}")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
