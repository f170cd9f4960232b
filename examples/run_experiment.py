"""Run a comparison as `harness run` does, and read its records as a DataFrame.

Takes a minute and a half on two cores. What is made is kept: a second call takes seconds, and one
with more prompts, widths or methods makes only what is new.
"""

import harness

# The content of an experiment file; the path of one does as well.
EXPERIMENT = {
    "gen": {"steps": 10},  # half of what the bundled model is normally run with
    "execution": {"measure": False},  # no latency and memory
}


def main() -> None:
    """Compare two widths of round-to-nearest."""
    run = harness.run_experiment(
        EXPERIMENT, methods=["rtn"], bits=["w8a8", "w4a4"], limit=2, baselines=False
    )
    failed = [f"{cell.id}: {cell.detail}" for cell in run.cells if cell.status != "ok"]
    print("\n".join(failed) or "every row is there")

    frame = run.frame()  # a line for each value, with prompt, seed, unit and where it comes from
    wanted = frame[frame.metric.isin(["psnr_db", "ssim", "oracle_margin", "artifact_bytes"])]
    print(wanted.pivot_table(values="value", index=["method", "bits"], columns="metric"))
    print(f"the printed table and the clips are in {run.folder}")


if __name__ == "__main__":
    main()
