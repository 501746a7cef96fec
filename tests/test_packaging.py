"""What a fresh machine installs: declared dependencies, pins, package data, the two commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in (
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
}
INDIRECT = {"accelerate"}  # transformers imports it where device_map or GGUF is asked for


def declared(*extras: str) -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    found.pop("crosspatch", None)
    return found


def imported() -> dict[str, str]:
    """Top-level modules that the package imports, with a file that does."""
    found: dict[str, str] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.append(node.module)
            found |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "crosspatch"}}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    homes = packages_distributions()
    used = {canonicalize_name(homes[name][0]): path for name, path in imported().items() if name in homes}
    undeclared = {name: path for name, path in used.items() if name not in declared("datasets", "gguf")}
    assert not undeclared, f"imported and not declared: {undeclared}"
    assert set(declared()) - set(used) - INDIRECT == set(), "declared and never imported"


def test_every_declared_dependency_is_pinned_inside_its_range():
    for name, requirement in declared("datasets", "gguf", "dev", "docs").items():
        assert name in PINS, f"{name} has no pin in constraints.txt"
        assert requirement.specifier.contains(PINS[name]), f"{name} is pinned to {PINS[name]}, outside {requirement}"


def test_torch_is_pinned_so_that_the_cpu_build_serves():
    assert PINS["torch"] == "2.13.0", "no local version: 2.13.0+cpu satisfies it, and so does the default build"


def test_wheel_holds_the_typed_marker_the_embedded_model_and_the_report(tmp_path):
    pytest.importorskip("hatchling", reason="builds the wheel; part of the dev extra")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names, scripts = archive.namelist(), archive.read(f"{wheel.stem.rsplit('-py3')[0]}.dist-info/entry_points.txt")
    package = ROOT / "src" / "crosspatch"
    shipped = {
        f"crosspatch/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != ".DS_Store"
    }
    assert shipped <= set(names)
    assert {"crosspatch/py.typed", "crosspatch/report/templates/report.html.j2"} <= shipped
    assert any(re.match(r"crosspatch/embedded/weights/.*\.safetensors$", name) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert b"crosspatch = crosspatch.cli:main" in scripts
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "crosspatch/out"))]


def test_an_old_python_is_told_what_is_needed(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "sys.version_info, sys.version = (3, 9, 1), '3.9.1 (main)'\n"
        "assert sys.argv[1] == '-c'\n"
        "exec(sys.argv[2])\n"
    )
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Crosspatch needs Python 3.11 or newer" in done.stderr
    assert "is 3.9.1. Fix: make PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "must be executable"
    assert script.read_text().rstrip().endswith("make test")
