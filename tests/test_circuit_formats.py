"""Files of other programs: round trips, files as these programs write them, and what is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from circuit_cases import GPT2, PLAIN, QUICK, SHAPES, random_circuit, random_scores, seeds
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.circuits import Circuit, Neurons, read_circuit, reference, write_circuit
from crosspatch.circuits.formats import (
    AttributionGraph,
    GraphNode,
    Link,
    MibEntry,
    circuits_by_size,
    component_circuit,
    component_graph,
    read_attribution_graph,
    read_eap,
    read_graphml,
    read_mib,
    to_dot,
    to_eap,
    write_attribution_graph,
    write_dot,
    write_eap,
    write_graphml,
    write_mib,
)
from crosspatch.circuits.formats.attribution_graph import cantor, uncantor
from crosspatch.circuits.formats.attribution_graph import to_json as graph_to_json
from crosspatch.circuits.formats.eap_files import receiver_name
from crosspatch.circuits.mib import GRID
from crosspatch.errors import CircuitError, CrosspatchError
from crosspatch.graph import edge_table

WITH_MLPS = [name for name, shape in SHAPES.items() if shape.has_mlp]
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("formats")


def same_scores(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=0)


# -- EAP-IG -----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(WITH_MLPS), seeds, st.sampled_from([".json", ".pt"]))
@QUICK
def test_eap_round_trip_with_scores(folder, kind, seed, suffix):
    shape = SHAPES[kind]
    circuit = random_circuit(shape, seed).with_(name="found", origin={"method": "eap"})
    scores, nodes = random_scores(shape, seed), np.random.default_rng(seed).standard_normal(len(circuit.table.senders))
    path = folder / f"graph{suffix}"
    write_eap(path, to_eap(circuit, scores, nodes))
    graph = read_eap(path)
    assert graph.circuit() == circuit == graph.circuit(shape) and dict(graph.circuit().origin) == {"method": "eap"}
    same_scores(graph.edge_scores(), scores)
    same_scores(graph.node_scores, nodes)
    assert (graph.node_in_graph == circuit.node_mask).all()


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_eap_round_trip_with_neurons(tmp_path, suffix):
    neurons = {"a0.h0": Neurons((0, 3)), "a0.h1": Neurons(()), "m1": Neurons(tuple(range(7)))}
    circuit = Circuit.full(PLAIN, neurons=neurons)
    write_eap(tmp_path / f"g{suffix}", to_eap(circuit))
    graph = read_eap(tmp_path / f"g{suffix}")
    assert graph.circuit() == circuit
    assert graph.circuit().weighted_edge_count == pytest.approx(circuit.weighted_edge_count)


def test_eap_files_have_their_layout(tmp_path):
    """Names and index arithmetic of EAP-IG's graph, as its source has them."""
    shape = SHAPES["deep"]
    circuit, scores = random_circuit(shape, 0), random_scores(shape, 0)
    write_eap(tmp_path / "g.json", to_eap(circuit, scores))
    write_eap(tmp_path / "g.pt", to_eap(circuit, scores))
    data = json.loads((tmp_path / "g.json").read_text())
    tensors = torch.load(tmp_path / "g.pt", weights_only=True)
    cfg = {"n_layers": 3, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    assert data["cfg"] == tensors["cfg"] == cfg
    assert set(data["nodes"]) == {*tensors["src_nodes"], "logits"}
    n_src, n_dst = 1 + 3 * (2 + 1), 3 * (3 * 2 + 1) + 1
    assert tensors["edges_scores"].shape == tensors["edges_in_graph"].shape == (n_src, n_dst)
    assert tensors["edges_in_graph"].dtype == torch.bool and tensors["nodes_in_graph"].shape == (n_src,)
    assert len(data["edges"]) == len(edge_table(shape))

    def source(name: str) -> int:
        if name == "input":
            return 0
        layer = int(name[1])
        return 1 + layer * 3 + (2 if name[0] == "m" else int(name[4]))

    def destination(name: str) -> int:
        if name == "logits":
            return n_dst - 1
        layer = int(name[1])
        return layer * 7 + (6 if name[0] == "m" else 2 * "qkv".index(name[6]) + int(name[4]))

    for name, info in data["edges"].items():
        u, v = name.split("->")
        assert tensors["src_nodes"][source(u)] == u and tensors["dst_nodes"][destination(v)] == v
        assert tensors["edges_in_graph"][source(u), destination(v)].item() == info["in_graph"]
        assert tensors["edges_scores"][source(u), destination(v)].item() == info["score"]
    assert int(tensors["edges_in_graph"].sum()) == circuit.n_edges


def eap_json(n_layers: int = 1, n_heads: int = 2, d_model: int = 3) -> dict:
    """A file with node and neuron scores, as EAP-IG's own writer makes it: rows of all heads repeated, NaN written."""
    heads = [[True] * d_model, [False] + [True] * (d_model - 1)]
    nodes = {"input": {"in_graph": True, "score": math.nan, "neurons": [True] * d_model}}
    for layer in range(n_layers):
        for head in range(n_heads):
            nodes[f"a{layer}.h{head}"] = {"in_graph": head == 0, "score": 0.5, "neurons": heads}
        nodes[f"m{layer}"] = {"in_graph": True, "score": -1.0, "neurons": [True] * d_model}
    nodes["logits"] = {"in_graph": True}
    edges = {"input->a0.h0<q>": {"score": 0.25, "in_graph": True}, "a0.h0->logits": {"in_graph": 1}}
    cfg = {"n_layers": n_layers, "n_heads": n_heads, "parallel_attn_mlp": False, "d_model": d_model, "act_fn": "gelu"}
    return {"cfg": cfg, "nodes": nodes, "edges": edges}


def test_a_file_as_eap_ig_writes_it(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps(eap_json()))
    graph = read_eap(path)
    circuit = graph.circuit()
    assert circuit.edge_names() == ["input->a0.h0.q", "a0.h0->logits"]
    assert dict(circuit.neurons) == {"a0.h1": Neurons((1, 2))}
    assert np.isnan(graph.node_scores[0]) and graph.node_scores[1:].tolist() == [0.5, 0.5, -1]
    scores = graph.edge_scores()
    assert scores[0] == 0.25 and np.isnan(scores[1:]).all(), "edges that the file lacks have no score"
    assert graph.shape.n_layers == 1 and graph.about == {}


def test_grouped_models_are_ungrouped_and_back():
    """One key edge becomes one for each head, a score is shared out and adds up again."""
    shape = SHAPES["grouped"]
    circuit = Circuit.from_edges(shape, ["input->a0.kv1.k", "input->a0.h0.q"])
    scores = random_scores(shape, 1)
    graph = to_eap(circuit, scores)
    table = edge_table(graph.shape)
    names = [f"{table.senders[u]}->{receiver_name(table.receivers[v])}" for u, v in np.argwhere(graph.in_graph)]
    assert names == ["input->a0.h0<q>", "input->a0.h2<k>", "input->a0.h3<k>"]
    assert graph.scores[0, table.receiver_number[table.receivers[4 + 2]]] == pytest.approx(
        scores[edge_table(shape).number(*edge_table(shape).parse("input->a0.kv1.k"))] / 2
    )
    assert graph.circuit() == circuit
    same_scores(graph.edge_scores(), scores)


def test_an_edge_for_some_heads_of_a_group_is_refused_unless_told():
    shape = SHAPES["grouped"]
    graph = to_eap(Circuit.full(shape))
    third = [str(site) for site in edge_table(graph.shape).receivers].index("a0.h3.v")
    graph.in_graph[0, third] = False
    with pytest.raises(CircuitError, match=re.escape("input->a0.kv1.v: is kept for some")):
        graph.circuit()
    assert graph.circuit(mixed="any") == Circuit.full(shape)
    missing = Circuit.full(shape) - Circuit.from_edges(shape, ["input->a0.kv1.v"])
    assert graph.circuit(mixed="all") == missing


def test_a_graph_of_another_model_is_refused():
    graph = to_eap(Circuit.full(PLAIN))
    for other in (SHAPES["deep"], SHAPES["parallel"], GPT2):
        with pytest.raises(CircuitError, match="the file is of a model with"):
            graph.circuit(other)


@pytest.mark.parametrize(
    ("circuit", "says"),
    [
        (Circuit.full(PLAIN).restrict(["END"]), "edges by span"),
        (Circuit.full(PLAIN, neurons={"m0": Neurons((1,), "hidden")}), "hidden neurons"),
        (Circuit.full(SHAPES["attention only"]), "without an MLP"),
    ],
)
def test_what_eap_ig_cannot_hold_is_refused(circuit, says):
    with pytest.raises(CircuitError, match=says):
        to_eap(circuit)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("cfg"), "'cfg' is missing"),
        (lambda d: d["cfg"].update(n_layers=10**7), "more than this reads"),
        (lambda d: d["cfg"].update(n_heads=0), "at least 1"),
        (lambda d: d["cfg"].update(parallel_attn_mlp="no"), "is not a truth value"),
        (lambda d: d["edges"].update({"m0->a0.h0<q>": {"in_graph": True}}), "no edge of a model"),
        (lambda d: d["edges"].update({"a0.h0": {"in_graph": True}}), "no edge of a model"),
        (lambda d: d["edges"]["a0.h0->logits"].update(in_graph="yes"), "does not say"),
        (lambda d: d["edges"]["a0.h0->logits"].update(score="1"), "is not a number"),
        (lambda d: d["edges"]["a0.h0->logits"].update(score=math.inf), "is not a number"),
        (lambda d: d["nodes"].update({"m9": {"in_graph": True}}), "no node of a model"),
        (lambda d: d["nodes"]["m0"].update(neurons=[True]), "1 values, expected 3"),
        (lambda d: d["nodes"]["m0"].update(neurons=[2, 0, 0]), "does not say"),
    ],
)
def test_a_bad_eap_file_is_refused_with_the_place(tmp_path, change, says):
    data = eap_json()
    change(data)
    path = tmp_path / "g.json"
    path.write_text(json.dumps(data))
    with pytest.raises(CircuitError) as error:
        read_eap(path)
    assert says in str(error.value) and str(path) in str(error.value)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_tensor_files_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"cfg": Evil()}, "evil.pt")
    with pytest.raises(CircuitError, match=r"evil.pt: is no file of tensors"):
        read_eap("evil.pt")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("edges_in_graph"), "is missing"),
        (lambda d: d.update(edges_scores=torch.zeros(3)), "expected real numbers of shape"),
        (lambda d: d.update(edges_scores=[1.0]), "a list"),
        (lambda d: d.update(edges_scores=torch.full_like(d["edges_scores"], torch.inf)), "infinite"),
        (lambda d: d.update(nodes_scores=torch.zeros(7, dtype=torch.complex64)), "real numbers"),
        (lambda d: d["src_nodes"].reverse(), "in order"),
        (lambda d: d.update(cfg=None), "is not an object"),
    ],
)
def test_a_bad_tensor_file_is_refused(tmp_path, change, says):
    write_eap(tmp_path / "g.pt", to_eap(Circuit.full(PLAIN), random_scores(PLAIN, 0)))
    data = torch.load(tmp_path / "g.pt", weights_only=True)
    change(data)
    torch.save(data, tmp_path / "g.pt")
    with pytest.raises(CircuitError) as error:
        read_eap(tmp_path / "g.pt")
    assert says in str(error.value)


@given(seeds)
@QUICK
def test_damaged_files_are_read_or_refused(folder, seed):
    """Bytes changed or cut anywhere: an error of ours, or a circuit, never another error."""
    rng = np.random.default_rng(seed)
    circuit = random_circuit(PLAIN, 1)
    for name in ("d.pt", "d.json", "d.graphml"):
        path = folder / name
        if name == "d.json":
            circuit.save(path)
        else:
            write_circuit(path, circuit, random_scores(PLAIN, 1))
        data = bytearray(path.read_bytes())
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data))
        try:
            read_circuit(path)
        except CrosspatchError as error:
            assert str(path) in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(seeds, json_values)
@QUICK
def test_any_value_anywhere_is_read_or_refused(folder, seed, value):
    """One entry of a JSON file, as deep as it may be, is replaced by something else."""
    rng = np.random.default_rng(seed)
    parts = component_graph(random_circuit(PLAIN, 1), prompt_tokens=["a"], output="b")
    for data in (eap_json(), graph_to_json(parts), feature_graph("0_2_1")):
        at = data
        while True:
            key = list(at)[rng.integers(len(at))] if isinstance(at, dict) else int(rng.integers(len(at)))
            if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.3:
                break
            at = at[key]
        at[key] = value
        path = folder / "any.json"
        path.write_text(json.dumps(data))
        for read in (read_circuit, read_attribution_graph if "links" in data else read_eap):
            try:
                read(path)
            except CrosspatchError as error:
                assert str(path) in str(error)


# -- MIB --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_mib_folders_round_trip(tmp_path, suffix):
    scores = random_scores(PLAIN, 2)
    by_size = {k: to_eap(random_circuit(PLAIN, i, k)) for i, k in enumerate(GRID[:-1])}
    entries = [
        MibEntry("ioi", "gpt2", to_eap(Circuit.full(PLAIN), scores)),
        MibEntry("arithmetic-addition", "llama3", None, circuits_by_size(by_size)),
    ]
    written = write_mib(tmp_path / "eap_patching_edge", entries, suffix)
    assert [path.relative_to(tmp_path / "eap_patching_edge").as_posix() for path in written][:2] == [
        f"ioi_gpt2/importances{suffix}", f"arithmetic-addition_llama3/k0.001{suffix}"
    ]  # fmt: skip
    found = {one.folder: one for one in read_mib(tmp_path / "eap_patching_edge")}
    assert set(found) == {"ioi_gpt2", "arithmetic-addition_llama3"}
    same_scores(found["ioi_gpt2"].importances.edge_scores(), scores)
    several = found["arithmetic-addition_llama3"]
    assert several.importances is None and len(several.circuits) == 9
    sizes = [graph.in_graph.sum() for graph in several.circuits.values()]
    assert sizes == sorted(sizes), "in the order of size, as the benchmark takes them"
    assert {graph.circuit() for graph in several.circuits.values()} == {graph.circuit() for graph in by_size.values()}
    assert [one.folder for one in read_mib(tmp_path / "eap_patching_edge" / "ioi_gpt2")] == ["ioi_gpt2"]


def test_mib_folders_that_are_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    for call, says in (
        (lambda: read_mib(tmp_path / "none"), "is no folder"),
        (lambda: read_mib(tmp_path / "nothing"), "holds no graph files"),
        (lambda: MibEntry("../x", "gpt2"), "no name of a task"),
        (lambda: write_mib(tmp_path, [MibEntry("ioi", "gpt2")]), "nothing to write"),
        (
            lambda: write_mib(tmp_path, [MibEntry("ioi", "gpt2", None, {"../x": to_eap(Circuit.full(PLAIN))})]),
            "no name of",
        ),
        (lambda: write_mib(tmp_path, [], ".pkl"), "suffix"),
        (lambda: circuits_by_size({0.1: to_eap(Circuit.full(PLAIN))}), "one for each"),
    ):
        with pytest.raises(CircuitError, match=says):
            call()
    (tmp_path / "unnamed").mkdir()
    write_eap(tmp_path / "unnamed" / "importances.json", to_eap(Circuit.full(PLAIN)))
    with pytest.raises(CircuitError, match="is not named task_model"):
        read_mib(tmp_path)


# -- attribution graphs -----------------------------------------------------------------------------------------------


@given(st.integers(0, 10**12), st.integers(0, 10**12))
@QUICK
def test_cantor_pairing_is_undone(x, y):
    assert uncantor(cantor(x, y)) == (x, y)


def test_cantor_numbers_are_those_of_the_format():
    assert [cantor(*pair) for pair in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))] == [0, 1, 2, 3, 4, 5]
    assert cantor(25, 16383) == 16408 * 16409 // 2 + 16383
    with pytest.raises(CircuitError):
        uncantor(-1)


def feature_graph(error_id: str, feature_id: str = "3_17_1") -> dict:
    """A small file with the fields that circuit-tracer writes, and one that only Neuronpedia does."""
    common = {"token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0}
    nodes = [
        {"node_id": "E_464_0", "feature": 0, "layer": "E", "ctx_idx": 0, "feature_type": "embedding",
         "jsNodeId": "E_464-0", "clerp": "", "influence": 0.9, "activation": None, **common},
        {"node_id": feature_id, "feature": cantor(3, 17), "layer": "3", "ctx_idx": 1,
         "feature_type": "cross layer transcoder", "jsNodeId": "3_17-0", "clerp": "", "influence": 0.5,
         "activation": 2.5, "vis_link": "https://example.org", **common},
        {"node_id": error_id, "feature": -1, "layer": "2", "ctx_idx": 1, "feature_type": "mlp reconstruction error",
         "jsNodeId": "2_1-0", "clerp": "", "influence": 0.1, "activation": None, **common},
        {"node_id": "13_318_1", "feature": 318, "layer": "13", "ctx_idx": 1, "feature_type": "logit",
         "jsNodeId": "L_318-1", "clerp": 'Output " is" (p=0.412)', "influence": None, "activation": None,
         **{**common, "token_prob": 0.412, "is_target_logit": True}},
    ]  # fmt: skip
    ends = (("E_464_0", feature_id, 1.5), (feature_id, "13_318_1", -2.0), (error_id, "13_318_1", 0.25))
    links = [{"source": source, "target": target, "weight": weight} for source, target, weight in ends]
    metadata = {"slug": "s", "scan": "gemma-2-2b", "transcoder_list": [], "prompt_tokens": ["The", " sky"],
                "prompt": "The sky", "node_threshold": 0.8, "schema_version": 1, "info": {"by": "x"}}  # fmt: skip
    q_params = {"pinnedIds": [], "supernodes": [["sky", feature_id]], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": q_params, "nodes": nodes, "links": links, "more": 1}


def test_a_graph_of_features_is_kept_without_loss(tmp_path):
    data = feature_graph("2_-1_1")
    (tmp_path / "in.json").write_text(json.dumps(data))
    graph = read_attribution_graph(tmp_path / "in.json")
    assert [node.kind for node in graph.nodes] == ["token", "feature", "error", "logit"]
    assert graph.notes == () and uncantor(graph.nodes[1].feature) == (3, 17)
    write_attribution_graph(tmp_path / "out.json", graph)
    assert json.loads((tmp_path / "out.json").read_text()) == data
    assert read_attribution_graph(tmp_path / "out.json") == graph


def test_old_identifiers_of_error_nodes_become_new_ones(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(feature_graph("0_2_1")))
    (tmp_path / "new.json").write_text(json.dumps(feature_graph("2_-1_1")))
    assert read_attribution_graph(tmp_path / "old.json") == read_attribution_graph(tmp_path / "new.json")


def test_an_old_identifier_that_a_feature_has_too_is_said(tmp_path):
    data = feature_graph("0_2_1", feature_id="0_2_1")
    (tmp_path / "g.json").write_text(json.dumps(data))
    graph = read_attribution_graph(tmp_path / "g.json")
    assert {node.node_id for node in graph.nodes} == {"E_464_0", "0_2_1", "2_-1_1", "13_318_1"}
    assert [link.source for link in graph.links] == ["E_464_0", "0_2_1", "0_2_1"]
    assert len(graph.notes) == 1 and "0_2_1 names a feature and an error node" in graph.notes[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("links"), "'links' is missing"),
        (lambda d: d["nodes"][0].pop("layer"), "'layer' is missing"),
        (lambda d: d["nodes"][0].update(ctx_idx="0"), "ctx_idx: '0' is not an integer"),
        (lambda d: d["nodes"].append(d["nodes"][0]), "2 nodes named"),
        (lambda d: d["links"].append({"source": "x", "target": "13_318_1", "weight": 1}), "no node 'x'"),
        (lambda d: d["links"][0].update(weight=None), "is not a number"),
        (lambda d: d["nodes"].append(3), "is not an object"),
    ],
)
def test_a_bad_graph_is_refused_with_the_place(tmp_path, change, says):
    data = feature_graph("2_-1_1")
    change(data)
    path = tmp_path / "g.json"
    path.write_text(json.dumps(data))
    with pytest.raises(CircuitError) as error:
        read_attribution_graph(path)
    assert says in str(error.value) and str(path) in str(error.value)


def test_graphs_are_listed_once_for_the_page(tmp_path):
    nodes = (GraphNode("E_0_0", "E", 0, "embedding"), GraphNode("13_1_0", "13", 0, "logit"))
    for slug, weight in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        graph = AttributionGraph({"slug": slug, "n": weight}, nodes, (Link("E_0_0", "13_1_0", weight),))
        write_attribution_graph(tmp_path / f"{slug}.json", graph, listed=True)
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())
    assert listed == {"graphs": [{"slug": "b", "n": 2.0}, {"slug": "a", "n": 3.0}]}
    with pytest.raises(CircuitError, match=r"name the file a.json"):
        write_attribution_graph(tmp_path / "c.json", graph, listed=True)


@given(st.sampled_from(sorted(SHAPES)), seeds, st.booleans())
@QUICK
def test_circuits_of_parts_as_graphs_and_back(folder, kind, seed, weighted):
    shape = SHAPES[kind]
    circuit = random_circuit(shape, seed).with_(name="found", origin={"n": 1})
    scores = random_scores(shape, seed) if weighted else None
    graph = component_graph(circuit, scores, prompt_tokens=["a", " b"], output=" c", output_id=7, probability=0.25)
    write_attribution_graph(folder / "parts.json", graph)
    again, read = component_circuit(read_attribution_graph(folder / "parts.json"))
    assert again == circuit and dict(again.origin) == {"n": 1}
    if weighted:
        same_scores(read[circuit.flat], scores[circuit.flat])
        assert np.isnan(read[~circuit.flat]).all()
    else:
        assert read is None


def test_parts_are_feature_nodes_that_the_page_can_draw():
    found = reference("ioi")
    graph = component_graph(
        found.circuit, prompt_tokens=["When", " Mary"], output=" Mary", output_id=5335, probability=0.612,
        labels=found.labels, slug="ioi",
    )  # fmt: skip
    by_id = {node.node_id: node for node in graph.nodes}
    assert len(by_id) == len(graph.nodes)
    mover = by_id["9_9_1"]
    assert mover.clerp == "a9.h9: name mover" and mover.kind == "feature" and uncantor(mover.feature) == (9, 9)
    logit = by_id["13_5335_1"]
    assert logit.kind == "logit" and logit.is_target_logit and logit.layer == "13"
    assert re.fullmatch(r'Output "(.*)" \(p=(.*)\)', logit.clerp).groups() == (" Mary", "0.612")
    assert not any("error" in node.feature_type for node in graph.nodes)
    assert {end for link in graph.links for end in (link.source, link.target)} <= set(by_id)
    pairs = [(link.source, link.target) for link in graph.links]
    assert len(pairs) == len(set(pairs)), "one link for query, key and value together"
    weights = {(link.source, link.target): link.weight for link in graph.links}
    assert weights["E_0_1", "9_9_1"] == 2 and by_id["E_0_1"].kind == "token"


def test_parts_that_are_refused():
    circuit = Circuit.full(PLAIN)
    missing = random_scores(PLAIN, 0, 0.5)
    for call, says in (
        (lambda: component_graph(circuit.restrict(["END"]), prompt_tokens=["a"], output="b"), "by span"),
        (lambda: component_graph(circuit, prompt_tokens=[], output="b"), "prompt is empty"),
        (lambda: component_graph(circuit, missing, prompt_tokens=["a"], output="b"), "has no score"),
        (lambda: component_circuit(AttributionGraph({}, (), ())), "nodes are features"),
    ):
        with pytest.raises(CircuitError, match=says):
            call()


# -- GraphML and DOT --------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(SHAPES)), seeds, st.sampled_from([(), ("S1", "END")]), st.booleans())
@QUICK
def test_graphml_round_trip(folder, kind, seed, spans, weighted):
    shape = SHAPES[kind]
    circuit = random_circuit(shape, seed, spans=spans).with_(name='a "b" <&>', neurons={"input": Neurons((1,))})
    scores = random_scores(shape, seed, 0.2) if weighted else None
    write_graphml(folder / "c.graphml", circuit, scores)
    again, read = read_graphml(folder / "c.graphml")
    assert again == circuit and again.name == circuit.name
    if weighted:
        kept = circuit.any_span().flat
        same_scores(read[kept], scores[kept])
    else:
        assert read is None


def test_graphml_is_what_other_programs_read(tmp_path):
    networkx = pytest.importorskip("networkx")
    circuit = Circuit.from_edges(PLAIN, ["input->a0.h1.q", "input->a0.h1.v", "a0.h1->logits"])
    write_graphml(tmp_path / "c.graphml", circuit, np.arange(46.0))
    graph = networkx.read_graphml(tmp_path / "c.graphml")
    assert set(graph.nodes) == {"input", "a0.h1", "logits"} and graph.number_of_edges() == 3
    assert graph.nodes["a0.h1"] == {"kind": "head", "layer": 0, "index": 1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: "<!DOCTYPE x [<!ENTITY a 'b'>]>" + t, "document type"),
        (lambda t: t.encode("utf-16").decode("latin-1"), "not UTF-8"),
        (lambda t: t.replace("</graph>", ""), "is not XML"),
        (lambda t: t.replace("graphdrawing", "x"), "no circuit in GraphML"),
        (lambda t: t.replace("a0.h1.q", "a0.h9.q"), "no edge of this model"),
        (lambda t: t.replace('key="score">', 'key="score">x'), "no edge of this model"),
        (lambda t: re.sub(r'key="score">[^<]*', 'key="score">inf', t), "infinite"),
        (lambda t: t.replace('{"schema"', '["schema"'), "is not JSON"),
        (lambda t: t.replace("crosspatch.circuit", "other"), "schema"),
    ],
)
def test_bad_graphml_is_refused(tmp_path, change, says):
    path = tmp_path / "c.graphml"
    write_graphml(path, Circuit.from_edges(PLAIN, ["input->a0.h1.q"]), np.ones(46))
    text = change(path.read_text())
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CircuitError) as error:
        read_graphml(path)
    assert says in str(error.value) and str(path) in str(error.value)


def test_dot_shows_ports_signs_and_sizes(tmp_path):
    circuit = Circuit.from_edges(PLAIN, ["input->a0.h1.q@S1", "a0.h1->m1@END", "m1->logits@END"], name='the "best"')
    scores = np.full(46, np.nan)
    for name, value in (("input->a0.h1.q", -2.0), ("a0.h1->m1", 1.0)):
        scores[edge_table(PLAIN).number(*edge_table(PLAIN).parse(name))] = value
    text = to_dot(circuit, scores)
    lines = text.splitlines()
    assert lines[0] == 'digraph "the \\"best\\"" {' and lines[-1] == "}"
    edges = [line for line in lines if "->" in line.split("[")[0]]
    assert len(edges) == 3
    assert 'label="q@S1", style=dashed, penwidth=4.00' in edges[0] and 'tooltip="input->a0.h1.q: -2"' in edges[0]
    assert 'label="@END", style=solid, penwidth=2.25' in edges[1]
    assert "penwidth=0.50" in edges[2] and 'tooltip="m1->logits"' in edges[2]
    assert '  { rank=same; "a0.h1"; }' in lines
    assert text.count('"') % 2 == 0
    write_dot(tmp_path / "c.dot", circuit)
    assert (tmp_path / "c.dot").read_text().startswith("digraph")


# -- one call for all -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("c.json", None), ("c.json", "eap"), ("c.pt", None), ("c.graphml", None)])
def test_any_format_by_the_name_of_the_file(tmp_path, name, kind):
    shape = SHAPES["grouped"]
    circuit, scores = random_circuit(shape, 5), random_scores(shape, 5)
    write_circuit(tmp_path / name, circuit, scores, kind)
    found, read = read_circuit(tmp_path / name, shape)
    assert found == circuit
    if (name, kind) == ("c.json", None):
        assert read is None, "our own file of a circuit has no scores"
    else:
        same_scores(read[circuit.flat], scores[circuit.flat])
    with pytest.raises(CircuitError):
        read_circuit(tmp_path / name, PLAIN)


def test_a_graph_of_parts_is_read_as_a_circuit(tmp_path):
    circuit = random_circuit(PLAIN, 5)
    graph = component_graph(circuit, prompt_tokens=["a"], output="b")
    write_attribution_graph(tmp_path / "g.json", graph)
    assert read_circuit(tmp_path / "g.json") == (circuit, None)


def test_unknown_formats(tmp_path):
    (tmp_path / "c.json").write_text("{}")
    for call, says in (
        (lambda: read_circuit(tmp_path / "c.json"), "of no known format"),
        (lambda: write_circuit(tmp_path / "c.svg", Circuit.full(PLAIN)), "no format"),
        (lambda: write_circuit(tmp_path / "c.json", Circuit.full(PLAIN), kind="dot"), "no format dot"),
        (lambda: read_circuit(tmp_path / "none.pt"), "cannot be read"),
    ):
        with pytest.raises(CircuitError, match=says):
            call()


def test_files_of_the_tools_own_making():
    """Any graph of EAP-IG, MIB or circuit-tracer that lies with the shared data is read."""
    found = []
    for path in sorted(SHARED.rglob("*.json")) if SHARED.is_dir() else []:
        if path.stat().st_size < 2**24:
            keys = set(re.findall(rb'^\s*[{]?\s*"(\w+)":', path.read_bytes()[:2000], re.MULTILINE))
            if {b"cfg", b"nodes"} <= keys or b"qParams" in keys:
                found.append(path)
    if not found:
        pytest.skip("no graph file of another tool in ../shared")
    for path in found:
        data = json.loads(path.read_text())
        assert (read_attribution_graph if "links" in data else read_eap)(path) is not None
