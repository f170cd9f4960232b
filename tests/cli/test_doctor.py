"""``harness doctor`` and the report that it writes for others."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from harness.cli import doctor, doctor_report
from harness.cli.main import main
from harness.store import provenance
from harness.store.keys import digest
from harness.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_int8\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve\n"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of a user who is called zelda."""
    home = tmp_path / "people" / "zelda"
    home.mkdir(parents=True)
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "zelda")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HARNESS_HOME", str(home / "results"))
    monkeypatch.chdir(tmp_path)
    return home


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    return int(caught.value.code or 0)


def section(text: str, title: str) -> dict[str, str]:
    """Facts of a section of the report, by name."""
    lines = iter(text.splitlines())
    assert title in lines, text
    found = {}
    for line in lines:
        if not line.startswith("  "):
            break
        name, _, value = line.strip().partition("  ")
        found[name] = value.strip()
    return found


def test_a_report_has_every_part_and_each_check(capsys):
    assert call("--report") in (0, 4)
    text = capsys.readouterr().out
    titles = [line for line in text.splitlines() if not line.startswith(" ")]
    assert titles == [
        *("harness", "machine", "gpus", "packages", "vbench environment", "plug-ins"),
        *("environment variables", "store", "checks"),
    ]
    assert section(text, "harness")["version"] == provenance.package_version("vdit-quant-harness")
    assert section(text, "machine")["python"].startswith(sys.version.split()[0])
    assert "GiB" in section(text, "machine")["memory"]
    for name, _, _ in doctor.checked():
        assert f"  {name} " in text.partition("\nchecks\n")[2]


def test_neither_home_folder_nor_user_name_is_in_a_report(capsys, own_home, monkeypatch):
    monkeypatch.setenv("HARNESS_RUN_OUT", f"/elsewhere/zelda/runs:{own_home}")
    entry = SimpleNamespace(pw_name="gerda", pw_dir="/homes/of/gerda")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    monkeypatch.setenv("HARNESS_RUN_CONFIG", "/homes/of/gerda/x.toml by gerda")
    call("--report")
    text = capsys.readouterr().out
    assert "zelda" not in text
    assert "gerda" not in text
    told = section(text, "environment variables")
    assert told["HARNESS_RUN_OUT"] == "/elsewhere/<user>/runs:~"
    assert told["HARNESS_RUN_CONFIG"] == "~/x.toml by <user>"
    assert section(text, "store")["folder"] == "~/results/store"


def test_a_name_inside_a_word_is_no_name(monkeypatch):
    monkeypatch.setenv("USER", "vbe")
    assert doctor_report.without_owner("vbench of vbe") == "vbench of <user>"


def test_of_tokens_a_report_says_only_whether_they_are_set(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HARNESS_API_KEY", "k-12345")
    monkeypatch.setenv("OTHER_VARIABLE", "nobody asked")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    call("--report")
    text = capsys.readouterr().out
    for value in ("hf_abcdef", "k-12345", "nobody asked"):
        assert value not in text
    told = section(text, "environment variables")
    assert told["HF_TOKEN"] == told["HARNESS_API_KEY"] == "is set"
    assert told["HUGGING_FACE_HUB_TOKEN"] == "is not set"
    assert told["OMP_NUM_THREADS"] == "1"


def test_a_report_is_written_where_torch_cannot_be_imported():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from harness.cli.main import main; main(['doctor', '--report'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 4), done.stderr
    told = section(done.stdout, "packages")
    assert told["torch"].startswith(provenance.package_version("torch"))
    assert "cannot be found out" not in done.stdout


def test_a_report_names_the_build_of_torch():
    import torch

    told = dict(doctor_report._packages())["torch"]
    assert told.startswith(torch.__version__)
    assert f"cuda {torch.version.cuda}, " in told
    assert f"git_version {torch.version.git_version}" in told


def test_every_library_of_a_cohort_is_in_a_report():
    assert set(provenance.PACKAGES) <= set(doctor_report.PACKAGES)


def test_plug_ins_of_other_distributions_are_named_with_their_versions(tmp_path, monkeypatch):
    place = tmp_path / "site" / "turned-0.3.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: turned\nVersion: 0.3\n")
    (place / "entry_points.txt").write_text(
        "[harness.methods]\nturned = turned:Turned\n[harness.metrics]\nsharp = turned:Sharp\n"
    )
    assert doctor_report._plug_ins() == [("none", "")]
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert doctor_report._plug_ins() == [
        ("harness.methods turned", "turned:Turned, turned 0.3"),
        ("harness.metrics sharp", "turned:Sharp, turned 0.3"),
    ]


def test_entries_of_the_store_are_counted_by_kind():
    assert dict(doctor_report._store())["entries"] == "none"
    store = Store()
    for kind, count in (("artifact", 1), ("clip", 2)):
        for n in range(count):
            with store.build(kind, digest({"n": n}), {"n": n}) as folder:
                (folder / "f").write_text("x")
    facts = dict(doctor_report._store())
    assert facts["entries"] == "artifact 1, clip 2"
    assert facts["free"].endswith(" GB")


@pytest.mark.parametrize(
    ("told", "wanted"),
    [(X86, "avx2 avx512f avx512_vnni amx_int8"), (ARM, "asimddp i8mm sve")],
    ids=["x86", "arm"],
)
def test_instruction_sets_are_those_that_the_system_lists(tmp_path, monkeypatch, told, wanted):
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(doctor_report, "_CPUINFO", tmp_path / "cpuinfo")
    assert dict(doctor_report._machine())["instructions"] == wanted


def test_a_system_without_cpuinfo_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_report, "_CPUINFO", tmp_path / "nothing")
    assert dict(doctor_report._machine())["instructions"].startswith("not told")


def test_gpus_are_named_with_driver_memory_and_capability(monkeypatch):
    driver = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetCudaDriverVersion_v2=lambda: 12040,
        nvmlSystemGetDriverVersion=lambda: "550.54",
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA H200",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=141 * 2**30),
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0),
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert doctor_report._gpus() == [
        ("driver", "550.54"),
        ("cuda of the driver", "12.4"),
        ("gpu 0", "NVIDIA H200, 141.0 GiB, capability 9.0"),
    ]


def test_a_part_that_cannot_be_found_out_is_said_and_the_rest_is_there(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    call("--report")
    text = capsys.readouterr().out
    assert "ModuleNotFoundError" in section(text, "gpus")["cannot be found out"]
    assert section(text, "store")["entries"] == "none"


def test_a_check_that_cannot_be_made_is_a_failed_row(capsys, monkeypatch):
    def broken():
        raise OSError("codecs are gone\nsecond line")

    broken.__name__ = "_codecs"
    monkeypatch.setattr(doctor, "_codecs", broken)
    assert call() == 4
    [line] = [s for s in capsys.readouterr().out.splitlines() if "codecs" in s]
    assert line.split() == ["FAIL", "codecs", "OSError:", "codecs", "are", "gone"]


def test_a_report_of_a_machine_that_lacks_something_exits_4(capsys, monkeypatch):
    found = provenance.package_version
    monkeypatch.setattr(provenance, "package_version", lambda n: "" if n == "scipy" else found(n))
    assert call("--report") == 4
    assert "FAIL  scipy " in capsys.readouterr().out


def test_a_report_and_the_check_of_vbench_are_not_asked_together(capsys):
    assert call("--report", "--vbench") == 2
    assert "--report and --vbench" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not provenance.cuda_names(), reason="there is no CUDA device")
def test_the_gpus_of_this_machine_are_those_that_torch_sees():
    import torch

    names = [value for name, value in doctor_report._gpus() if name.startswith("gpu ")]
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        assert len(names) == torch.cuda.device_count()
    assert any(value.startswith(torch.cuda.get_device_name(0)) for value in names)
