"""What does not fit is refused before anything is started, and the setting that would is named."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.errors import InfraError
from harness.models.offload import BLOCKS, COMPONENTS, NONE
from harness.plan import capacity, fit
from harness.plan.fit import Budget, Setting
from harness.plan.memory import DENOISER, HESSIANS, TRAINING
from harness.plan.memory_facts import MARGIN
from harness.plan.registry import MethodFacts
from harness.store.provenance import Device
from tests.doubles import write_model_folder
from tests.plan.test_memory import cogvideox

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GB = 10**9


def budget(
    device: int,
    *,
    on_cpu: bool = False,
    kinds: tuple[str, ...] = (HESSIANS,),
    host: int = 200 * GB,
    setting: Setting | None = None,
) -> Budget:
    return Budget(
        model="m", sizes=cogvideox(), kinds=kinds, w_bits=None, on_cpu=on_cpu, device=device,
        host=host, setting=setting or Setting(),
    )  # fmt: skip


def test_what_fits_is_not_refused_nor_is_what_is_above_by_less_than_the_margin():
    needed = max(peak.device for peak in budget(0).peaks())
    assert budget(needed).too_large() is None
    assert budget(int(needed / (1 + MARGIN)) + 1).too_large() is None
    largest = budget(int(needed / (1 + MARGIN)) - 1).too_large()
    assert largest is not None
    assert largest.device == needed


def test_the_least_change_that_fits_is_named():
    # untiled decoding takes 16.3 GB, second moments beside the whole denoiser 14.9
    assert budget(16 * GB).advice() == "set [gen] vae_tiling = true"
    assert budget(12 * GB).advice() == "set --offload blocks and [gen] vae_tiling = true"
    trained = max(peak.device for peak in budget(0, kinds=(TRAINING,)).peaks())
    assert budget(trained - 1, kinds=(TRAINING,)).advice() == "set --offload blocks"
    assert budget(10**6).advice().startswith("no setting fits: at least ")


def test_components_come_before_blocks():
    order = [setting.offload for setting, _ in budget(GB)._changes()]
    assert order.index(COMPONENTS) < order.index(BLOCKS)
    started = [s.offload for s, _ in budget(GB, setting=Setting(offload=BLOCKS))._changes()]
    assert set(started) == {BLOCKS}


def test_on_a_processor_fewer_workers_are_advised_and_no_offload():
    several = budget(30 * GB, on_cpu=True, setting=Setting(workers=4))
    assert several.too_large() is not None
    assert several.advice() == "set --jobs 1"
    assert all("offload" not in text for _, text in several._changes())


def test_the_hosts_memory_is_held_too():
    blocks = Setting(offload=BLOCKS)
    assert budget(80 * GB, setting=blocks).too_large() is None
    over = budget(80 * GB, host=8 * GB, setting=blocks).too_large()
    assert over is not None
    assert over.host > 8 * GB


def facts(**changes: object) -> MethodFacts:
    held = {"name": "m", "version": 1, "needs_calibration": True, "unquantized": False}
    return MethodFacts(**{**held, "options": {}, "unsupported": {}, **changes})


def test_methods_are_told_apart_by_what_they_do():
    assert fit.kind_of(facts(work={"w4a6": {"steps": 600}})) == TRAINING
    assert fit.kind_of(facts(work={"w4a6": {"steps": 0}}, options={"epochs": 15})) == HESSIANS
    assert fit.kind_of(facts(options={"epochs": 15})) == TRAINING
    assert fit.kind_of(facts(work={"w4a6": {"steps": 0, "denoiser_steps": 9}})) == DENOISER
    assert fit.kind_of(facts(options={"iterations": 0})) == HESSIANS
    assert fit.kind_of(facts(needs_calibration=False)) == fit.LAYERS


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that planning takes for a model with the networks of CogVideoX-5B."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    write_model_folder(tmp_path / "model")
    monkeypatch.setattr(fit, "parts", lambda spec, cache: cogvideox().parts)
    (tmp_path / "p.txt").write_text("one\n")
    return tmp_path


def run(place: Path, *flags: str) -> tuple[int, str]:
    arguments = [
        "run", "--model", str(place / "model"), "--suite", str(place / "p.txt"),
        "--methods", "rtn", "--no-baselines", "--out", str(place / "out"), *flags,
    ]  # fmt: skip
    done = CliRunner().invoke(cli, arguments)
    return done.exit_code, done.output + str(done.exception or "")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretend that the machine has other memory."""

    def pretend(device: int, host: int) -> None:
        monkeypatch.setattr(capacity, "device_bytes", lambda _: device)
        monkeypatch.setattr(capacity, "host_bytes", lambda: host)

    return pretend


def test_a_run_that_cannot_fit_is_two_lines_and_starts_no_worker(
    large: Path, machine: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
):
    import harness.run.run as running

    def started(*_: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(running, "local_executor", started)
    monkeypatch.setattr(running.execute, "__defaults__", (started,))
    machine(4 * GB, 4 * GB)
    done = CliRunner().invoke(
        cli, ["run", "--model", str(large / "model"), "--suite", str(large / "p.txt"),
              "--methods", "rtn", "--no-baselines", "--out", str(large / "out"),
              "--jobs", "1", "--device", "cpu"],
    )  # fmt: skip
    error = done.exception
    assert isinstance(error, InfraError)
    assert error.exit_code == 4
    assert error.message.startswith("'model' needs about ")
    assert error.message.endswith("has 4.0 GB")
    assert error.hint.startswith("no setting fits: at least ")
    assert not (large / "out/jobs").exists()


def test_a_dry_run_prints_the_peak_of_every_stage(large: Path, machine: Callable[[int, int], None]):
    machine(12 * GB, 12 * GB)
    code, text = run(large, "--dry-run", "--device", "cpu", "--jobs", "1")
    assert code == 0
    for stage in (
        "encode text",
        "denoise",
        "denoise, quantized",
        "quantize (layers)",
        "decode",
    ):
        assert len(re.findall(rf"^  {re.escape(stage)}  ", text, re.MULTILINE)) == 1
    assert "above what the device has" in text
    assert "(estimate; cpu has 12.0 GB)" in text


def test_the_memory_of_a_processor_is_a_containers_limit_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    total = capacity.psutil.virtual_memory().total
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(capacity, "_LIMITS", (tmp_path / "absent", limit))
    assert capacity.host_bytes() == total
    limit.write_text("max\n")
    assert capacity.host_bytes() == total
    limit.write_text("1000000\n")
    assert capacity.device_bytes(Device(id="cpu", name="")) == 1_000_000


def test_offload_is_read_from_file_and_flag_and_makes_no_other_run(tmp_path: Path):
    from harness.errors import UsageError
    from harness.plan.experiment import Flags, resolve
    from harness.plan.experiment_file import ExperimentFile, read_table

    file = read_table({"execution": {"offload": "components"}}, "file")
    assert resolve(file, Flags()).execution.offload == COMPONENTS
    assert resolve(file, Flags(offload=BLOCKS)).execution.offload == BLOCKS
    assert resolve(ExperimentFile(), Flags()).execution.offload == NONE
    with pytest.raises(UsageError, match=r"execution\.offload"):
        read_table({"execution": {"offload": "disk"}}, "file")


@pytest.mark.parametrize(
    ("kernels", "offload", "bits"), [(True, NONE, 8), (False, NONE, 4), (True, BLOCKS, 4)]
)
def test_a_row_that_a_kernel_may_compute_holds_a_byte_a_weight(
    kernels: bool, offload: str, bits: int
):
    setting = Setting(offload=offload, kernels=kernels)
    assert setting.held(4) == bits
    packed = replace(setting, packed=True)  # as a kernel takes them that widens them on the way
    assert (packed.held(4), packed.held(3)) == (4, 4 if bits == 8 else 3)
    assert packed.held(6) == (8 if bits == 8 else 6)
    assert setting.held(None) is None
    assert Setting(kernels=True).held(16) == 16


def test_simulation_is_advised_where_a_byte_a_weight_is_too_much():
    own = Setting(kernels=True, tiled=True)
    rows = replace(budget(0, kinds=(), setting=own), w_bits=4)

    def needed(setting: Setting) -> int:
        return max(p.device for p in rows.peaks(setting) if p.stage == "denoise, quantized")

    by_kernel, simulated = needed(own), needed(replace(own, kernels=False))
    assert by_kernel - simulated == pytest.approx(cogvideox().shape.all_block_weights / 2, rel=0.01)
    texts = [how for setting, how in rows._changes() if not setting.kernels]
    assert texts[0] == "--kernels off"
    assert not any(setting.kernels for setting, _ in replace(rows, setting=Setting())._changes())
