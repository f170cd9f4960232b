"""`harness show model` and `--dry-run`: everything that is known of a model before it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from harness.cli.main import main
from harness.cli.show import show
from harness.testing.miniatures import MINIATURES
from tests.models.small_folders import KNOWN, write_known

if TYPE_CHECKING:
    from pathlib import Path

VIDEO_TOKENS = {
    "cogvideox-2b": 13 * 30 * 45,
    "cogvideox-5b": 13 * 30 * 45,
    "cogvideox1.5-5b": 11 * 48 * 85,
    "hunyuanvideo": 33 * 45 * 80,
    "hunyuanvideo-1.5-480p": 31 * 30 * 53,
    "hunyuanvideo-1.5-720p": 31 * 45 * 80,
    "wan2.1-1.3b": 21 * 30 * 52,
    "wan2.1-14b": 21 * 45 * 80,
    "wan2.2-a14b": 21 * 45 * 80,
    "wan2.2-ti2v-5b": 31 * 22 * 40,
    "ltx-video": 21 * 16 * 22,
    "latte": 16 * 32 * 32,
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(text: str) -> dict[str, str]:
    """The printed rows by their first words; what a section repeats is kept once."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("  "):
            name, _, rest = line.strip().partition("  ")
            found.setdefault(name, rest.strip())
    return found


def shown(model: Path | str) -> str:
    done = CliRunner().invoke(show, ["model", str(model)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", KNOWN)
def test_tokens_are_those_of_the_model_at_its_size(place: Path, name: str) -> None:
    assert rows(shown(write_known(place / name, name)))["video tokens"].split()[0] == str(
        VIDEO_TOKENS[name]
    )


def test_every_setting_is_printed_with_its_source(place: Path) -> None:
    text = shown(write_known(place / "mine", "wan2.1-14b"))
    found = rows(text)
    assert text.startswith("model mine\n")
    assert "settings, known as Wan2.1-T2V-14B\n" in text
    assert found["pipeline"] == "WanPipeline"
    assert found["family"] == "wan"
    assert found["folder"] == str(place / "mine")
    assert found["revision"].endswith("digest of its files")
    for name, value, source in (
        ("size", "720 x 1280 pixels", "example of diffusers' WanPipeline"),
        ("frames", "81", "example of diffusers' WanPipeline"),
        ("fps", "16", "example of diffusers' WanPipeline"),
        ("steps", "50", "WanPipeline.__call__"),
        ("guidance", "5", "WanPipeline.__call__"),
        ("scheduler", "UniPCMultistepScheduler", "scheduler/scheduler_config.json"),
        ("flow shift", "5", "5.0 for 720p, 3.0 for 480p"),
        ("dtype", "bfloat16", "example of diffusers' WanPipeline"),
        ("text tokens", "512", "WanPipeline.__call__"),
        ("negative prompt", "Bright tones", "example of diffusers' WanPipeline"),
        ("branches", "2", "in two calls"),
        ("transformer", "24 parameters", "WanTransformer3DModel, stored in float32"),
        ("vae", "24 parameters", "AutoencoderKLWan, stored in float32"),
        ("text_encoder", "24 parameters", "T5EncoderModel, stored in bfloat16"),
    ):
        assert found[name].startswith(value), name
        assert found[name].endswith(source), name


def test_a_model_that_is_guided_by_an_input_has_one_branch_and_its_own_shift(place: Path) -> None:
    found = rows(shown(write_known(place / "mine", "hunyuanvideo")))
    assert found["branches"] == "1"
    assert found["flow shift"].split() == ["7", "the", "scheduler's", "own"]
    assert found["negative prompt"].split("  ")[0] == "none"


def test_a_scheduler_without_a_shift_is_said_to_have_none(place: Path) -> None:
    assert rows(shown(write_known(place / "a", "ltx-video")))["flow shift"].startswith("none")
    assert rows(shown(write_known(place / "b", "latte")))["flow shift"].endswith("it has none")


def test_memory_is_shown_for_every_offload_and_time_for_every_calibration(place: Path) -> None:
    text = shown(write_known(place / "mine", "hunyuanvideo-1.5-720p"))
    found = rows(text)
    assert found["[execution] offload"].split() == ["none", "components", "blocks"]
    amounts = [float(n) for n in found["denoise"].split(" GB")[:3]]
    assert all(amount > 51.6 for amount in amounts)  # masks alone
    assert "decode, tiled" in found
    assert found["denoise a clip"].endswith("by assumption")
    assert found["decode a clip"].startswith("unknown")
    assert " h " in found["quantize s2q w4a6"]
    assert "training step as" in found["quantize qvdit w4a6"]


def test_a_family_without_estimate_is_said_to_have_none(place: Path) -> None:
    found = rows(shown(write_known(place / "mine", "latte")))
    assert found["every stage"].endswith("no estimate for this family (latte)")
    assert found["denoise a clip"].startswith("unknown")


def test_a_config_without_its_keys_has_no_estimate(place: Path) -> None:
    found = rows(shown(write_known(place / "mine", "hunyuanvideo")))
    assert found["every stage"].endswith("no estimate from the configs of this model")


def test_a_dry_run_shows_what_the_experiment_changes(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "e.toml").write_text("[gen]\nframes = 41\nflow_shift = 4\nguidance = 1\n")
    model = str(write_known(place / "mine", "wan2.1-14b"))
    with pytest.raises(SystemExit) as caught:
        main(["run", "--model", model, "--methods", "rtn", "--config", "e.toml", "--dry-run"])
    assert not caught.value.code
    found = rows(capsys.readouterr().out)
    assert found["frames"].split() == ["41", "[gen]"]
    assert found["flow shift"].split() == ["4", "[gen]"]
    assert found["guidance"].split() == ["1", "[gen]"]
    assert found["branches"] == "1"
    assert found["negative prompt"].split("  ")[-1].strip() == "guidance runs one branch"
    assert found["video tokens"].split()[0] == str(11 * 45 * 80)
    assert found["steps"].endswith("WanPipeline.__call__")


def test_a_model_that_cannot_be_run_is_refused_as_by_a_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["show", "model", str(place / "modle")])
    assert caught.value.code == 2
    assert "is not there" in capsys.readouterr().err


def test_the_size_of_the_weights_stands_beside_what_was_published(place: Path) -> None:
    text = shown(write_known(place / "mine", "cogvideox-5b"))
    found = rows(text)
    assert "\nsize of the denoiser's weights, counted from its config\n" in text
    for name, start in (
        ("16 bits", "10.375 GiB"),
        ("w8 per channel", "5.213 GiB, 1.99x"),
        ("w6 per channel", "3.921 GiB, 2.65x"),
        ("w4 per channel", "2.629 GiB, 3.95x"),
        ("w4 group 64", "2.785 GiB, 3.73x"),
        ("w4 group 128", "2.704 GiB, 3.84x"),
        ("published, 16 bits", "10.375 GiB"),
        ("published, w4", "2.633 GiB"),
        ("published, ratio", "3.94x"),
    ):
        assert found[name].startswith(start), name
    assert found["w4 per channel"].endswith("codes 2.584 GiB, steps 5.168 MiB, kept 40.472 MiB")
    assert found["published, w4"].endswith(
        "here 2.629, -0.17 %; S2Q-VDiT (arXiv 2508.04016), table 5"
    )
    assert found["published, ratio"].endswith("the paper does not say which linears it rounds")
    for word in ("GiB", "rounded", "kept", "not counted"):
        assert found[word], word


def test_weight_files_that_hold_something_else_are_said(place: Path) -> None:
    found = rows(shown(write_known(place / "mine", "hunyuanvideo")))
    assert found["16 bits"].endswith("12,821,012,544 parameters, the weight files hold 24")
    assert found["published, w4"].startswith("6.494 GiB")
    assert rows(shown("shapes"))["16 bits"].endswith("7,284,000 parameters")


def test_what_no_paper_printed_has_no_published_row(place: Path) -> None:
    for name in ("cogvideox-2b", "cogvideox1.5-5b", "wan2.1-1.3b"):
        text = shown(write_known(place / name, name))
        assert "w4 per channel" in text
        assert "published," not in text


def test_both_experts_count_for_the_size(place: Path) -> None:
    one = rows(shown(write_known(place / "one", "wan2.1-14b")))["16 bits"]
    both = rows(shown(write_known(place / "both", "wan2.2-a14b")))["16 bits"]
    assert one.split()[2] == "14,288,491,584"
    assert both.split()[2] == "28,576,983,168"


def test_a_group_that_does_not_fit_is_said_beside_the_others(place: Path) -> None:
    MINIATURES["ltx"]().save_pretrained(place / "mine")  # widths of 32
    found = rows(shown(place / "mine"))
    assert "MiB" in found["w4 per channel"]
    assert found["w4 group 64"].startswith("none")
    assert "groups of 64 do not divide" in found["w4 group 64"]


def test_a_config_that_cannot_be_counted_is_said_to_have_no_size(place: Path) -> None:
    text = shown(write_known(place / "mine", "latte"))  # a config without the width of the text
    found = rows(text)
    assert found["every width"].startswith("unknown")
    assert "no LatteTransformer3DModel can be built from its config" in found["every width"]
    assert "GiB" not in text
