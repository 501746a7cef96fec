"""The circuit: how it is made, its algebra, what pruning keeps, and its files."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from circuit_cases import GPT2, PLAIN, QUICK, SHAPES, random_circuit, seeds, shapes
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.circuits import Circuit, Neurons
from crosspatch.errors import AddressError, CircuitError, CrosspatchError
from crosspatch.graph import ModelShape, edge_table
from crosspatch.paths import count, equal, listed

SPANS = ("S1", "END")


# -- making it ------------------------------------------------------------------------------------------------------


def test_from_edges_keeps_just_the_named_edges():
    names = ["input->a0.h1.q", "a0.h1->m1", "m1->logits"]
    circuit = Circuit.from_edges(PLAIN, names, name="three")
    assert sorted(circuit.edge_names()) == sorted(names)
    assert circuit.n_edges == 3 and circuit.nodes() == ["input", "a0.h1", "m1"] and circuit.n_nodes == 3
    assert "a0.h1->m1" in circuit and "a0.h1->logits" not in circuit
    assert circuit.edges() == [("input", "a0.h1.q"), ("a0.h1", "m1"), ("m1", "logits")]
    assert str(circuit) == "three: 3 of 46 edges, 3 of 7 nodes"


@given(shapes, seeds)
@QUICK
def test_masks_by_number_matrices_and_names_are_the_same_circuit(shape, seed):
    circuit = random_circuit(shape, seed)
    assert Circuit.from_mask(shape, circuit.keep) == circuit
    assert Circuit.from_mask(shape, circuit.flat) == circuit
    assert Circuit.from_edges(shape, circuit.edge_names()) == circuit
    spanned = random_circuit(shape, seed, spans=SPANS)
    assert Circuit.from_mask(shape, spanned.flat, spans=SPANS) == spanned
    assert Circuit.from_edges(shape, spanned.edge_names(), spans=SPANS) == spanned


def test_from_nodes_keeps_every_edge_between_them_the_input_and_the_logits():
    circuit = Circuit.from_nodes(PLAIN, ["a0.h0", "m1"])
    wanted = [f"input->a0.h0.{port}" for port in "qkv"] + ["input->m1", "a0.h0->m1"]
    wanted += ["input->logits", "a0.h0->logits", "m1->logits"]
    assert sorted(circuit.edge_names()) == sorted(wanted)
    grouped = Circuit.from_nodes(SHAPES["grouped"], ["a1.h3"])
    assert set(grouped.edge_names()) == {
        "input->a1.h3.q", "input->a1.kv1.k", "input->a1.kv1.v", "input->logits", "a1.h3->logits"
    }  # fmt: skip


def test_full_and_empty():
    for shape in SHAPES.values():
        full, empty = Circuit.full(shape), Circuit.empty(shape)
        assert full.n_edges == len(edge_table(shape)) and full.n_nodes == len(edge_table(shape).senders)
        assert empty.n_edges == 0 and empty.nodes() == [] and ~full == empty
        assert full.is_connected and empty.is_connected
        assert Circuit.full(shape, spans=SPANS).n_edges == 2 * full.n_edges


def test_a_circuit_cannot_be_changed():
    mask = np.zeros_like(edge_table(PLAIN).exists)
    circuit = Circuit(PLAIN, mask, origin={"seeds": (1, 2)})
    mask[0, 0] = True
    assert circuit.n_edges == 0
    with pytest.raises(ValueError):
        circuit.keep[0, 0] = True
    with pytest.raises(AttributeError):
        circuit.name = "other"
    with pytest.raises(TypeError):
        circuit.origin["seeds"] = 3
    assert circuit.origin["seeds"] == [1, 2], "as JSON would give it back"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Circuit(PLAIN, np.ones((3, 4), bool)), "shape (3, 4)"),
        (lambda: Circuit(PLAIN, np.ones_like(edge_table(PLAIN).exists)), "does not come before"),
        (lambda: Circuit.empty(PLAIN, spans=("a", "a")), "a span twice"),
        (lambda: Circuit.empty(PLAIN, spans=("a b",)), "is not a position"),
        (lambda: Circuit.empty(PLAIN, origin={"x": object()}), "cannot be written as JSON"),
        (lambda: Circuit.empty(PLAIN, origin={"x": float("nan")}), "cannot be written as JSON"),
        (lambda: Circuit.from_edges(PLAIN, ["m1->a0.h0.q"]), "comes before"),
        (lambda: Circuit.from_edges(PLAIN, ["m0"]), "is no edge"),
        (lambda: Circuit.from_edges(PLAIN, ["m0->m1@X"], spans=("Y",)), "not listed"),
        (lambda: Circuit.from_edges(PLAIN, ["m0->m1@X", "m0->logits"]), "does not"),
        (lambda: Circuit.from_nodes(PLAIN, ["r0"]), "is no node"),
        (lambda: Circuit.empty(PLAIN, neurons={"m0": Neurons((3, 1))}), "not ascending"),
        (lambda: Circuit.empty(PLAIN, neurons={"m0": Neurons((8,))}), "below 8"),
        (lambda: Circuit.empty(PLAIN, neurons={"logits": Neurons((0,))}), "no node"),
    ],
)
def test_what_is_refused_and_why(make, says):
    with pytest.raises((CircuitError, AddressError)) as error:
        make()
    assert says in str(error.value)


# -- algebra ----------------------------------------------------------------------------------------------------------


@given(shapes, seeds, seeds, st.sampled_from([(), SPANS]))
@QUICK
def test_the_algebra_is_that_of_sets_of_edges(shape, one, other, spans):
    a, b = random_circuit(shape, one, spans=spans), random_circuit(shape, other, spans=spans)
    names, others = set(a.edge_names()), set(b.edge_names())
    every = set(Circuit.full(shape, spans=spans).edge_names())
    assert set((a | b).edge_names()) == names | others
    assert set((a & b).edge_names()) == names & others
    assert set((a - b).edge_names()) == names - others
    assert set((~a).edge_names()) == every - names
    assert (a <= b) == (names <= others)
    assert a - b == a & ~b and ~(a | b) == ~a & ~b and ~~a == a
    assert (a == b) == (names == others)
    assert a | b == b | a and hash(a | b) == hash(b | a)


def test_equality_is_about_edges_not_names():
    a = Circuit.from_edges(PLAIN, ["m0->m1"], name="a", origin={"method": "x"})
    b = Circuit.from_edges(PLAIN, ["m0->m1"])
    assert a == b and len({a, b}) == 1
    assert a != Circuit.from_edges(PLAIN, ["m0->logits"])
    assert a != Circuit.from_edges(SHAPES["deep"], ["m0->m1"])
    assert a != a.with_(neurons={"m0": Neurons((0,))})
    assert a != a.restrict(["END"]) and a != "m0->m1"


def test_circuits_that_do_not_fit_each_other_are_refused():
    a = Circuit.full(PLAIN)
    with pytest.raises(CircuitError, match="different models"):
        a | Circuit.full(SHAPES["deep"])
    with pytest.raises(CircuitError, match="different spans"):
        a & a.restrict(["END"])
    with pytest.raises(CircuitError, match="part of a node"):
        a - a.with_(neurons={"m0": Neurons((0,))})


# -- pruning ----------------------------------------------------------------------------------------------------------


def walked(circuit: Circuit) -> set[str]:
    """The edges that some path uses, by walking every path from the input one step at a time, in names only."""
    spans = circuit.spans or ("*",)
    kept = {tuple(name.split("@")) if circuit.spans else (name, "*") for name in circuit.edge_names()}
    shape, used = circuit.shape, set()

    def heads(receiver: str) -> list[str]:
        if receiver == "logits" or receiver[0] == "m":
            return [receiver]
        head = receiver.rsplit(".", 1)[0]
        if ".kv" in head:
            layer, group = head.split(".kv")
            return [f"{layer}.h{h}" for h in shape.heads_of(int(group))]
        return [head]

    def meet(a: str, b: str) -> bool:
        return a == b or "*" in (a, b)

    def walk(at: str, span: str | None, before: frozenset) -> None:
        for name, where in kept:
            sender, receiver = name.split("->")
            if sender != at or not (span is None or meet(span, where)):
                continue
            path = before | {(name, where)}
            if receiver == "logits":
                used.update(path)
                continue
            moves = receiver.endswith((".k", ".v"))
            for node, to in product(heads(receiver), spans if moves else [where]):
                walk(node, to, path)

    walk("input", None, frozenset())
    return {f"{name}@{span}" if circuit.spans else name for name, span in used}


@given(shapes, seeds, st.floats(0.1, 0.6))
@QUICK
def test_pruning_keeps_what_some_path_uses(shape, seed, share):
    circuit = random_circuit(shape, seed, share if shape.n_layers == 2 else 0.25)
    assert set(circuit.pruned().edge_names()) == walked(circuit)


@given(seeds, st.sampled_from([("S1", "END"), ("S1", "*"), ("*",)]), st.sampled_from(["plain", "one kv", "parallel"]))
@QUICK
def test_pruning_by_span_keeps_what_some_path_uses(seed, spans, kind):
    circuit = random_circuit(SHAPES[kind], seed, 0.2, spans=spans)
    assert set(circuit.pruned().edge_names()) == walked(circuit)


@given(shapes, seeds)
@QUICK
def test_pruning_is_what_dropping_unfed_and_unused_nodes_until_nothing_changes_gives(shape, seed):
    """The loop that EAP-IG's graph runs: a head is fed if any of its inputs is."""
    circuit = random_circuit(shape, seed)
    table, keep = edge_table(shape), circuit.keep.copy()
    while True:
        into = np.zeros(len(table.senders), dtype=bool)
        into[0] = True
        for v, nodes in enumerate(table.node_of_receiver):
            into[list(nodes)] |= keep[:, v].any()
        alive = into & keep.any(1)
        ports = np.array([not nodes or alive[list(nodes)].any() for nodes in table.node_of_receiver])
        after = keep & alive[:, None] & ports
        if (after == keep).all():
            break
        keep = after
    assert circuit.pruned() == Circuit(shape, keep)


@given(shapes, seeds, seeds)
@QUICK
def test_pruning_twice_is_pruning_once_and_grows_with_the_circuit(shape, one, other):
    a, b = random_circuit(shape, one), random_circuit(shape, other)
    assert a.pruned().pruned() == a.pruned() and a.pruned().is_connected
    assert a.pruned() <= (a | b).pruned()
    assert a.is_connected == (a.pruned() == a)


def test_a_head_fed_by_its_query_alone_is_fed():
    circuit = Circuit.from_edges(PLAIN, ["input->a0.h1.q", "a0.h1->logits"])
    assert circuit.is_connected
    assert not Circuit.from_edges(PLAIN, ["input->a0.h1.q", "a0.h0->logits"]).pruned().n_edges


def test_a_key_is_read_at_another_span_than_the_query():
    by_key = Circuit.from_edges(PLAIN, ["input->a0.h1.k@S1", "a0.h1->logits@END"])
    by_query = Circuit.from_edges(PLAIN, ["input->a0.h1.q@S1", "a0.h1->logits@END"])
    assert by_key.is_connected and not by_query.pruned().n_edges


# -- spans, neurons, paths --------------------------------------------------------------------------------------------


def test_restricting_to_spans_and_back():
    circuit = random_circuit(PLAIN, 3)
    both = circuit.restrict(SPANS)
    assert both.n_edges == 2 * circuit.n_edges and both.any_span() == circuit
    assert both.restrict(["END"]).spans == ("END",) and both.restrict(["END"]).any_span() == circuit
    with pytest.raises(CircuitError, match="no span 'S2'"):
        both.restrict(["S2"])
    with pytest.raises(CircuitError, match="no span 'S2'"):
        _ = "m0->m1@S2" in both
    assert "m0->m1@END" in Circuit.from_edges(PLAIN, ["m0->m1@END"], spans=SPANS)
    assert "m0->m1@S1" not in Circuit.from_edges(PLAIN, ["m0->m1@END"], spans=SPANS)


def test_at_tokens_lays_spans_over_a_prompt():
    circuit = Circuit.from_edges(PLAIN, ["m0->m1@S1", "m0->logits@END", "m1->logits@*"], spans=("S1", "END", "*"))
    at = circuit.at_tokens({"S1": (1, 3), "END": (4, 5), "else": (0, 1)}, 5)
    table = edge_table(PLAIN)
    assert at[table.parse("m0->m1")].tolist() == [False, True, True, False, False]
    assert at[table.parse("m0->logits")].tolist() == [False, False, False, False, True]
    assert at[table.parse("m1->logits")].all() and at.sum() == 8
    assert Circuit.full(PLAIN).at_tokens({}, 3).all(-1)[table.exists].all()
    for spans, says in (({"END": (4, 5)}, "no span 'S1'"), ({"S1": (1, 9), "END": (4, 5)}, "is (1, 9)")):
        with pytest.raises(CircuitError) as error:
            circuit.at_tokens(spans, 5)
        assert says in str(error.value)


def test_neurons_weigh_the_edges_of_their_sender():
    circuit = Circuit.from_edges(PLAIN, ["input->m0", "m0->m1", "m0->logits", "m1->logits"])
    assert circuit.weighted_edge_count == 4
    some = circuit.with_(neurons={"m0": Neurons((0, 5)), "m1": Neurons((1, 2, 3, 4), "hidden")})
    assert some.weighted_edge_count == 1 + 2 * 2 / 8 + 4 / 8
    assert some.shares.tolist() == [1, 1, 1, 0.25, 1, 1, 0.5]
    assert Neurons((0,), "hidden").width(edge_table(PLAIN).senders[1], PLAIN) == PLAIN.d_head


def test_a_node_without_neurons_sends_nothing():
    circuit = Circuit.from_edges(PLAIN, ["input->m0", "m0->m1", "m1->logits", "input->logits"])
    cut = circuit.with_(neurons={"m0": Neurons(()), "m1": Neurons((1,))})
    assert cut.pruned().edge_names() == ["input->logits"] and not cut.pruned().neurons and not cut.is_connected
    part = circuit.with_(neurons={"m0": Neurons((2,))})
    assert part.pruned() == part and part.is_connected


@given(st.sampled_from(["plain", "grouped", "one kv", "parallel", "attention only"]), seeds)
@QUICK
def test_as_a_set_of_paths_it_holds_the_paths_along_its_edges(kind, seed):
    shape = SHAPES[kind]
    circuit = random_circuit(shape, seed, 0.3)
    paths = circuit.to_paths()
    assert equal(paths, circuit.pruned().to_paths(), shape), "edges on no path change nothing"
    found = listed(paths, shape, 10**6)
    assert len(found) == count(paths, shape)
    assert bool(found) == bool(circuit.pruned().n_edges)


def test_spans_and_parts_of_nodes_are_no_set_of_edges():
    for circuit in (Circuit.full(PLAIN).restrict(["END"]), Circuit.full(PLAIN, neurons={"m0": Neurons(())})):
        with pytest.raises(CircuitError, match="no set of edges"):
            circuit.to_paths()


# -- text and files ---------------------------------------------------------------------------------------------------


def test_described_layer_by_layer():
    names = ["input->a0.h1.k@S1", "a0.h1->m1@END", "m1->logits@END", "input->a1.h0.q@S1"]
    text = Circuit.from_edges(PLAIN, names, name="small", neurons={"m1": Neurons((1, 2))}).describe()
    assert text.splitlines() == [
        "small: 4 of 92 edges at S1, END, 4 of 7 nodes (! = on no path from the input to the logits)",
        "layer 0",
        "  a0.h1.k@S1 <- input",
        "layer 1",
        "  a1.h0.q@S1 (!) <- input",
        "  m1@END <- a0.h1",
        "logits",
        "  logits@END <- m1",
        "  of m1 2 output neurons",
    ]
    wide = ModelShape(3, 8, 8, 64, 8, 64, 50)
    assert "  logits <- input, a0.h*, a1.h*, a2.h*, m[0-2]" in Circuit.full(wide).describe()


@given(shapes, seeds, st.sampled_from([(), SPANS]))
@QUICK
def test_json_round_trip(shape, seed, spans):
    neurons = {"input": Neurons((0, 3)), "a1.h0": Neurons((1,), "hidden")}
    circuit = random_circuit(shape, seed, spans=spans).with_(name="found", origin={"n": [1, 2]}, neurons=neurons)
    read = Circuit.from_json(json.loads(json.dumps(circuit.to_json())))
    assert read == circuit and read.name == "found" and dict(read.origin) == dict(circuit.origin)


def test_saved_and_loaded(tmp_path):
    circuit = random_circuit(SHAPES["grouped"], 1).with_(name="one", origin={"seed": 1})
    circuit.save(tmp_path / "deep" / "c.json")
    again = Circuit.load(tmp_path / "deep" / "c.json")
    assert again == circuit and again.origin == circuit.origin
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c.json"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(CircuitError, match="cannot be written"):
        circuit.save(tmp_path / "file" / "c.json")


def test_the_file_of_a_large_circuit_stays_below_a_megabyte(tmp_path):
    circuit = Circuit.full(GPT2)
    circuit.save(tmp_path / "c.json")
    assert (tmp_path / "c.json").stat().st_size < 1e6
    assert Circuit.load(tmp_path / "c.json") == circuit


def test_files_from_before_a_field_with_a_default_are_read():
    data = Circuit.full(PLAIN).to_json()
    del data["shape"]["causal"]
    assert Circuit.from_json(data) == Circuit.full(PLAIN)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("schema"), "schema None"),
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d.update(version="1"), "is not an integer"),
        (lambda d: d.pop("edges"), "'edges' is missing"),
        (lambda d: d["edges"].update({"m7": ["input"]}), "edges, m7"),
        (lambda d: d["edges"].update({"m1": ["m1"]}), "does not come before"),
        (lambda d: d["edges"].update({"m1": ["x" * 1000]}), "nothing named"),
        (lambda d: d["edges"].update({"m1": [["input"]]}), "nothing named"),
        (lambda d: d["edges"].update({"m1": "input"}), "is not a list"),
        (lambda d: d.update(spans=["S1"]), "just the spans"),
        (lambda d: d["shape"].update(n_layers=True), "is not an integer"),
        (lambda d: d["shape"].update(n_layers=10**9), "more than this reads"),
        (lambda d: d["shape"].update(n_layers=-3), "at least 1"),
        (lambda d: d["shape"].update(more=1), "unknown field"),
        (lambda d: d.update(neurons={"m0": {"basis": "other", "kept": []}}), "other"),
        (lambda d: d.update(neurons={"m0": {"basis": "output", "kept": [0.5]}}), "is not an integer"),
        (lambda d: d.update(name=3), "is not text"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path, change, says):
    data = random_circuit(PLAIN, 1).to_json()
    change(data)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(data))
    with pytest.raises(CircuitError) as error:
        Circuit.load(path)
    assert says in str(error.value) and str(path) in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(json_values, st.sampled_from(["schema", "version", "name", "shape", "spans", "edges", "neurons", "origin"]))
@QUICK
def test_any_value_anywhere_is_read_or_refused(value, key):
    data = random_circuit(PLAIN, 1).to_json() | {key: value}
    try:
        circuit = Circuit.from_json(data)
    except CrosspatchError:
        return
    assert circuit.to_json()[key] == value


def test_files_that_are_no_circuit(tmp_path, monkeypatch):
    for name, content in (("a", b"{"), ("b", b"[1]"), ("c", b"[" * 100_000), ("d", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CircuitError, match=str(tmp_path / name)):
            Circuit.load(tmp_path / name)
    with pytest.raises(CircuitError, match="cannot be read"):
        Circuit.load(tmp_path / "none")
    monkeypatch.setattr("crosspatch.circuits.reading.LARGEST", 3)
    with pytest.raises(CircuitError, match="MiB large"):
        Circuit.load(tmp_path / "c")


def test_no_torch_is_needed():
    names = "c.Circuit, c.top_n, c.read_circuit, c.reference('ioi')"
    code = f"import sys, crosspatch.circuits as c; {names}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
