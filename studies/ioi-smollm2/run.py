"""Indirect objects in SmolLM2-135M: run the main job, then write the table and the picture of this page.

    python studies/ioi-smollm2/run.py            # the project's own prompts; about 4 minutes on two CPU cores
    python studies/ioi-smollm2/run.py --public   # 16 pairs of the EAP-IG authors' file, if it is there

The second writes numbers only: the prompts are other people's, and stay where they are.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from crosspatch.patching import Localization
from crosspatch.report import heat_maps

HERE = Path(__file__).parent
LEVELS = ("residual", "block", "head", "qkv")
COLUMNS = [
    "address",
    "granularity",
    "denoise_effect",
    "denoise_low",
    "denoise_high",
    "noise_effect",
    "noise_low",
    "noise_high",
    "denoise_norm",
    "noise_norm",
    "int",
    "gate",
]


def command(task: str, out: Path) -> list[str]:
    """What is run, as one would type it."""
    levels = [word for level in LEVELS for word in ("--level", level)]
    fixed = ["crosspatch", "localize", "--model", "smollm2-135m", "--task", task, "--n", "16", "--threads", "2"]
    return [*fixed, *levels, "--out", str(out), "--overwrite"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--public", action="store_true", help="the public prompts instead of the project's own")
    public = parser.parse_args().public
    name = "public" if public else "own"
    out = Path("out") / f"ioi-smollm2-{name}"
    program = Path(sys.executable).with_name("crosspatch")
    subprocess.run([str(program), *command("public:ioi/eap_ig" if public else "ioi", out)[1:]], check=True)
    write(out, name)


def write(out: Path, name: str) -> None:
    """The top rows of every level as CSV; for the project's own prompts also the report and the picture."""
    found = Localization.load(out)
    tops = [found.top(12, level)[COLUMNS] for level in LEVELS]
    with (HERE / f"top-{name}.csv").open("w", encoding="utf-8") as file:
        for i, top in enumerate(tops):
            top.to_csv(file, index=False, header=not i, float_format="%.4f")
    if name == "own":
        shutil.copy(out / "report.html", HERE / "report.html")
        figures = heat_maps(found.drill.levels["residual"])
        next(iter(figures.values())).save(HERE / "residual.svg")


if __name__ == "__main__":
    main()
