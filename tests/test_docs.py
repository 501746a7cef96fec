"""The documentation's code runs, its links lead somewhere, and what it says of families is what is tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from families import FAMILIES

import crosspatch

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), flags=re.M | re.S)


def test_the_tutorial_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(blocks(ROOT / "docs" / "tutorial.md", "python"))
    exec(compile(code, "docs/tutorial.md", "exec"), {"__name__": "tutorial"})
    said = capsys.readouterr().out
    assert "of a full forward pass was not needed" in said
    assert "differ" in said  # the refused comparison names the fields


def test_the_circuits_page_runs(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(ROOT / "docs" / "circuits.md", "python"))
    exec(compile(code, "docs/circuits.md", "exec"), {"__name__": "circuits"})
    said = capsys.readouterr().out
    assert "verdict" in said
    assert "strongest edges" in said
    assert {"circuit.graphml", "circuit.svg"} <= {path.name for path in tmp_path.iterdir()}


def test_the_page_of_path_patching_runs(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(ROOT / "docs" / "paths.md", "python"))
    exec(compile(code, "docs/paths.md", "exec"), {"__name__": "paths_page"})
    said = capsys.readouterr().out
    assert "last heads: explained" in said
    assert "AUE changes by" in said
    assert "interaction" in said
    assert "<script>" in (tmp_path / "claims.html").read_text("utf-8")


def test_the_feature_circuits_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(blocks(ROOT / "docs" / "feature-circuits.md", "python"))
    exec(compile(code, "docs/feature-circuits.md", "exec"), {"__name__": "feature_circuits"})
    said = capsys.readouterr().out
    assert "logits" in said
    assert "replacement from block 1 on" in said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_docs_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_tested_family_is_in_the_table() -> None:
    table = (ROOT / "docs" / "models.md").read_text("utf-8")
    for family, make in FAMILIES.items():
        assert f"`{make()[0].__name__}`" in table, family


def test_every_public_name_exists() -> None:
    for name in crosspatch.__all__:
        assert getattr(crosspatch, name) is not None
    assert set(crosspatch.__all__) <= set(dir(crosspatch))
