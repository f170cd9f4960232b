"""Config and experiment file together: what is typed becomes an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.errors import UsageError
from harness.models.table import SHAPES_GEN
from harness.plan.experiment import Experiment, Flags, resolve
from harness.plan.experiment_file import ExperimentFile, load_file, read_table
from harness.score.vbench_plan import JudgeSettings
from harness.vbench.dimensions import EIGHT

if TYPE_CHECKING:
    from pathlib import Path


def experiment(text: str = "", **flags: object) -> Experiment:
    import tomllib

    return resolve(ExperimentFile.model_validate(tomllib.loads(text)), Flags(**flags))  # type: ignore[arg-type]


def labels(found: Experiment) -> list[str]:
    return [row.method.label for row in found.rows]


def test_with_nothing_given_the_documented_defaults_hold() -> None:
    found = experiment()
    assert found.models == ("shapes",)
    assert labels(found) == ["fp", "control", "rtn", "s2q", "ptq4dit"]
    assert {row.bits for row in found.rows} == {("w4a6",)}
    assert (found.suite, found.limit, found.seeds) == ("shapes-eval", 16, (0,))
    assert (found.calibration_suite, found.calibration_prompts) == ("shapes-calib", 10)


def test_the_prompts_fit_the_models() -> None:
    others = experiment(models=("cogvideox-2b", "/a/folder"))
    assert (others.suite, others.calibration_suite) == ("eval-general", "calib-general")
    assert experiment(models=("shapes", "shapes-outliers")).calibration_suite == "shapes-calib"
    with pytest.raises(UsageError, match="different prompts"):
        experiment(models=("shapes", "latte"))
    suites = '[run]\nsuite = "ours.txt"\n[calibration]\nsuite = "mine.txt"'
    chosen = experiment(suites, models=("shapes", "latte"))
    assert (chosen.suite, chosen.calibration_suite) == ("ours.txt", "mine.txt")


def test_a_suite_of_vbench_is_run_whole_with_the_seeds_it_asks_for() -> None:
    found = experiment(models=("latte",), suite="vbench-full")
    assert (found.limit, found.seeds, found.metrics) == (None, (), None)
    chosen = experiment('[run]\nmetrics = ["vbench-8", "flow_score"]', seeds=(3,), limit=2)
    assert chosen.metrics == (*EIGHT, "flow_score")
    assert (chosen.limit, chosen.seeds) == (2, (3,))
    assert experiment('[run]\nmetrics = ["scene"]', metrics=("none",)).metrics == ()


def test_the_judge_is_described_in_the_file() -> None:
    text = '[envs.vbench]\npython = "/p"\n[vbench]\nscorer = "official"\nshards = 3'
    assert experiment(text).judge == JudgeSettings(python="/p", scorer="official", shards=3)
    assert experiment().judge == JudgeSettings()


def test_flags_override_the_file() -> None:
    text = '[run]\nmodels = ["a"]\nmethods = ["rtn"]\nbits = ["w8a8"]\nlimit = 2\nseeds = [5]'
    found = experiment(text, models=("b",), methods=("s2q",), bits=("w4a4",), limit=3, seeds=(1, 2))
    assert found.models == ("b",)
    assert labels(found) == ["fp", "control", "rtn", "s2q"]
    assert found.rows[-1].bits == ("w4a4",)
    assert (found.limit, found.seeds) == (3, (1, 2))


def test_without_baselines_only_the_reference_is_added() -> None:
    assert labels(experiment(methods=("s2q",), baselines=False)) == ["fp", "s2q"]
    assert labels(experiment('[run]\nmethods = ["s2q"]\nbaselines = false')) == ["fp", "s2q"]


def test_a_baseline_that_was_asked_for_is_not_added_twice() -> None:
    assert labels(experiment(methods=("rtn", "fp", "s2q"))) == ["fp", "control", "rtn", "s2q"]


ABLATION = """
[run]
bits = ["w4a4"]
[[method]]
name = "s2q"
calibration_seeds = [0, 1, 2]
[[method]]
name = "s2q"
label = "s2q-nosds"
options = { selection = "rtfp", count = 40, blocks = [1, 2] }
calibration_seeds = [0, 1]
[[method]]
name = "rtn-gptq"
bits = ["w4a4", "w8a8"]
"""


def test_an_ablation_has_a_row_for_each_variant_and_seed() -> None:
    found = experiment(ABLATION)
    assert labels(found)[3:] == [
        "s2q#0",
        "s2q#1",
        "s2q#2",
        "s2q-nosds#0",
        "s2q-nosds#1",
        "rtn-gptq",
    ]
    variant = found.rows[7].method
    assert variant.calibration_seed == 1
    assert dict(variant.options) == {"selection": "rtfp", "count": 40, "blocks": (1, 2)}
    assert found.rows[-1].bits == ("w4a4", "w8a8")
    # Baselines appear at every width that some row has.
    assert found.rows[2].bits == ("w4a4", "w8a8")


def test_the_methods_flag_chooses_among_the_rows_of_the_file() -> None:
    chosen = experiment(ABLATION, methods=("s2q-nosds", "ptq4dit"), baselines=False)
    assert labels(chosen) == ["fp", "s2q-nosds#0", "s2q-nosds#1", "ptq4dit"]
    assert len(labels(experiment(ABLATION, methods=("s2q",), baselines=False))) == 6


@pytest.mark.parametrize("flags", [{"methods": ("all",)}, {}])
def test_all_takes_the_rows_of_the_file_where_it_has_some(flags: dict[str, object]) -> None:
    text = '[run]\nmethods = ["all"]\n[[method]]\nname = "rtn"\nbits = ["w4a16"]'
    found = experiment(text, baselines=False, **flags)
    rows = {row.method.label: row.bits for row in found.rows}
    assert {"s2q", "ptq4dit", "rtn-gptq"} <= rows.keys()
    assert rows["rtn"] == ("w4a16",)
    assert rows["s2q"] == ("w4a6",)
    assert "control" not in rows


def test_a_method_that_is_named_itself_is_held_to_its_name_and_a_group_is_not() -> None:
    found = experiment(methods=("baselines", "s2q", "rtn"), baselines=False)
    assert "rtn-gptq" in found.lenient
    assert not {"s2q", "rtn"} & set(found.lenient)


def test_two_rows_of_one_name_are_refused() -> None:
    text = '[[method]]\nname = "s2q"\n[[method]]\nname = "s2q"\noptions = {count = 1}'
    with pytest.raises(UsageError, match="two rows are called 's2q'"):
        experiment(text)


def test_a_label_that_cannot_be_a_folder_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot name a folder"):
        experiment('[[method]]\nname = "s2q"\nlabel = "a/b"')


@pytest.mark.parametrize("bits", ["w4", "a6w4", "w0a4", "w4a99", "", "fp"])
def test_widths_that_cannot_be_read_are_refused(bits: str) -> None:
    with pytest.raises(UsageError, match="bits"):
        experiment(bits=(bits,))


def test_generation_overrides_change_only_what_they_name() -> None:
    found = experiment("[gen]\nsteps = 4\nguidance = 2").gen_for(SHAPES_GEN)
    assert (found.steps, found.guidance, found.height) == (4, 2.0, SHAPES_GEN.height)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[run]\nmethod = ['s2q']", "key 'run.method' is unknown", "did you mean methods?"),
        ("[runn]\nlimit = 1", "key 'runn' is unknown", "did you mean run?"),
        ("[vbench]\nbatches = 2", "key 'vbench.batches' is unknown", "did you mean batch?"),
        ("[envs.vbench]\npythn = 'p'", "key 'envs.vbench.pythn' is unknown", "python"),
        ("[vbench]\nprecision = 'int8'", "vbench.precision", "harness run --help"),
        ("[[method]]\nname='a'\nlabels='b'", "key 'method.0.labels' is unknown", "label"),
        ("[run]\nlimit = '3'", "run.limit = '3'", "see"),
        ("[run]\nlimit = 0", "run.limit = 0", "see"),
        ("[gen]\ndtype = 'int8'", "gen.dtype = 'int8'", "see"),
        ("[run\n", "is not TOML", "see"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_remedy(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_file(tmp_path / "e.toml")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.toml"):
        load_file(tmp_path / "absent.toml")


def test_the_time_limit_of_earlier_versions_is_refused_with_what_replaces_it() -> None:
    with pytest.raises(UsageError) as caught:
        read_table({"execution": {"timeout_s": 7200}}, "'x.toml'")
    assert "timeout_s' is gone" in caught.value.message
    assert "stall_s" in caught.value.hint
    assert resolve(ExperimentFile(), Flags()).execution.stall_s == 1800
    chosen = read_table({"execution": {"stall_s": 60}}, "'x.toml'")
    assert resolve(chosen, Flags()).execution.stall_s == 60
