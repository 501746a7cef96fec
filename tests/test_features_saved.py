"""Effects and circuits of features survive being written and read; broken files are refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from feature_cases import bases, family

from crosspatch.errors import ResultError
from crosspatch.features import feature_edges, feature_effects, load_circuit, load_effects, save_circuit, save_effects


@pytest.fixture(scope="module")
def found():
    setup = family("gpt2")
    every = bases(setup, ["m0", "r0.post", "m1", "r1.post"])
    effects = feature_effects(setup, every, spans=("first", "rest"), keep=5)
    nodes = effects.top(12)
    return effects, nodes, feature_edges(setup, every, nodes)


def test_effects_are_read_as_written(found, tmp_path: Path) -> None:
    effects = found[0]
    read = load_effects(save_effects(effects, tmp_path / "a"))
    for name in ("places", "has_error", "blocks", "spans", "clusters", "pairs", "origin"):
        assert getattr(read, name) == getattr(effects, name), name
    np.testing.assert_array_equal(read.clean, effects.clean)
    for place in effects.places:
        np.testing.assert_array_equal(read.mean[place], effects.mean[place])
    for name in ("example", "place", "span", "node", "value", "dropped", "dropped_abs"):
        np.testing.assert_array_equal(getattr(read.kept, name), getattr(effects.kept, name))
    assert effects.kept.dropped_abs.max() > 0
    assert list(read.top(12)) == list(effects.top(12))


@pytest.mark.parametrize("with_edges", [True, False])
def test_circuits_are_read_as_written(found, tmp_path: Path, with_edges: bool) -> None:
    _, nodes, edges = found
    read, read_edges = load_circuit(save_circuit(tmp_path, nodes, edges if with_edges else None))
    assert list(read) == list(nodes) and read.name == nodes.name
    for place in nodes.keep:
        np.testing.assert_array_equal(read.keep[place], nodes.keep[place])
    assert (read_edges is not None) == with_edges
    if read_edges is not None:
        assert len(edges) > 5 and list(read_edges) == list(edges) and read_edges.origin == edges.origin
        np.testing.assert_array_equal(read_edges.values, edges.values)


def test_tables_that_no_file_names_any_more_go(found, tmp_path: Path) -> None:
    effects, nodes, edges = found
    mine = tmp_path / "edges-mine.parquet"
    mine.write_text("x")
    save_circuit(tmp_path, nodes, edges)
    save_effects(effects, tmp_path)
    fewer = dataclasses.replace(edges, values=edges.values * 2)
    load_circuit(save_circuit(tmp_path, nodes, fewer))
    names = sorted(path.name.partition("-")[0] for path in tmp_path.glob("*.parquet"))
    assert names == ["dropped", "edges", "edges", "kept", "mean"]
    save_circuit(tmp_path, nodes)
    assert list(tmp_path.glob("edges-*")) == [mine]
    load_effects(tmp_path)


def test_broken_files_are_refused(found, tmp_path: Path) -> None:
    _, nodes, edges = found
    save_circuit(tmp_path, nodes, edges)
    file = tmp_path / "feature-circuit.json"
    good = file.read_text()
    for change in (
        {"format": "other"},
        {"places": {"m0": {"nodes": 3, "error": True, "kept": [[0, 99]]}}},
        {"places": {"m0": {"nodes": 3, "error": True, "kept": [[-1, 0]]}}},
        {"places": []},
        {"places": {}},
    ):
        file.write_text(json.dumps({**json.loads(good), **change}))
        with pytest.raises(ResultError):
            load_circuit(tmp_path)
    file.write_text(good)
    table = next(tmp_path.glob("edges-*.parquet"))
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(ResultError, match="checksum"):
        load_circuit(tmp_path)
    with pytest.raises(ResultError, match="other nodes"):
        save_circuit(tmp_path, nodes.emptied(), edges)
    with pytest.raises(ResultError):
        load_effects(tmp_path)


def test_looking_at_what_was_found_needs_no_torch(found, tmp_path: Path) -> None:
    save_effects(found[0], tmp_path)
    code = f"import sys; from crosspatch.features import load_effects; load_effects({str(tmp_path)!r}).frame(3); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
