"""Published circuits: what their sources say, and that they are circuits of their models."""

from __future__ import annotations

import dataclasses

import pytest
from circuit_cases import GPT2

from crosspatch.circuits import reference
from crosspatch.circuits.references import NAMES
from crosspatch.errors import CircuitError


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_is_a_connected_circuit_with_its_sources(name):
    found = reference(name)
    assert found.circuit.is_connected and found.circuit.name == name
    parts = [part for names in found.classes.values() for part in names]
    assert len(parts) == len(set(parts)) and set(parts) <= set(found.circuit.nodes())
    assert set(found.labels) == set(parts)
    assert {"authors", "year", "title"} <= found.about["citation"].keys()
    assert all(fact["source"] and fact["sure"] for fact in found.about["facts"])
    assert found.circuit.origin["reference"] == name and str(found).startswith(found.about["title"])


def test_ioi_has_the_26_heads_of_the_paper():
    found = reference("ioi")
    assert {label: len(names) for label, names in found.classes.items()} == {
        "duplicate token": 3, "previous token": 2, "induction": 4, "s-inhibition": 4,
        "name mover": 3, "backup name mover": 8, "negative name mover": 2,
    }  # fmt: skip
    heads = [name for name in found.circuit.nodes() if ".h" in name]
    assert len(heads) == 26 and found.circuit.shape == GPT2
    assert "a8.h6->a9.h9.q" in found.circuit and "a8.h6->a9.h9.v" not in found.circuit
    assert "a8.h6->m8" in found.circuit and "m8->a9.h9.q" in found.circuit, "ways through MLPs"
    assert "a9.h9->m10" in found.circuit and "m7->a8.h6.q" in found.circuit
    assert "a2.h2->a8.h6.q" not in found.circuit and "m11->logits" in found.circuit
    assert "a9.h9->a10.h0.q" not in found.circuit


def test_greater_than_ends_in_mlps():
    found = reference("greater-than")
    reads = {sender for sender, receiver in found.circuit.edges() if receiver == "logits"}
    assert reads == {*found.classes["year heads"], *found.classes["late MLPs"]}
    assert "a9.h1->m9" in found.circuit and "m3->m8" not in found.circuit and "m8->m9" in found.circuit


def test_docstring_is_the_manual_graph_of_24_edges():
    found = reference("docstring")
    assert found.circuit.n_edges == 24 and found.circuit.n_nodes == 7
    into = {sender for sender, receiver in found.circuit.edges() if receiver == "a3.h6.k"}
    assert into == {"a1.h2", "a2.h0"}


def test_on_the_shape_of_the_users_model():
    padded = dataclasses.replace(GPT2, vocab=50304)
    assert reference("ioi", padded).circuit.shape == padded
    assert reference("ioi", padded).circuit.edge_names() == reference("ioi").circuit.edge_names()
    with pytest.raises(CircuitError, match="12 layers of 12 heads"):
        reference("ioi", dataclasses.replace(GPT2, n_layers=24))
    with pytest.raises(CircuitError, match="docstring, greater-than, ioi"):
        reference("copying")
