"""Compiled transformers: what the graph, the executor and path sets give against the stored exact effects."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ground_truth import (
    FOLDER,
    PROGRAMS,
    SHARE_EDGES,
    compiled,
    masked_output,
    needs_ground_truth,
    resample_pairs,
    through,
    weights_of,
    write_share,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from crosspatch.compiled import CompiledConfig, CompiledForCausalLM, KnownCircuit, load_compiled, read_known_circuit
from crosspatch.errors import ModelError
from crosspatch.graph import Site, edge_table, parse_site
from crosspatch.model import Edit, Model, Row, Run, check, record, replay
from crosspatch.paths import (
    Dissimilarity,
    PathSet,
    equal,
    evaluate,
    everything,
    from_edges,
    has_path,
    nothing,
    test_paths,
)

SHIFTS = (1, 7, 23)  # the pairings of the stored effects


def output_of(model: Model, tokens: Sequence[Sequence[int]]) -> np.ndarray:
    """`[example, position after BOS, column]`"""
    run = record(model, tokens, read=[range(1, len(ids)) for ids in tokens])
    return run.logits().view(len(tokens), -1, model.shape.vocab).numpy()


def path_changes(model: Model, sets: list[PathSet], known: KnownCircuit, shift: int) -> np.ndarray:
    """Output under each path set less the clean one, `[set, example, position, column]`."""
    pairs = resample_pairs(known, shift)
    found = np.zeros((len(sets), *output_of(model, known.tokens()).shape))
    clean: dict[tuple[int, ...], torch.Tensor] = {}

    def keep(readout) -> None:
        logits = model.unembed(readout.hidden).view(len(readout.pairs), -1, model.shape.vocab)
        if readout.number == -1:
            clean[tuple(readout.pairs)] = logits
        elif readout.number >= 0:
            found[readout.number][readout.pairs] = (logits - clean[tuple(readout.pairs)]).numpy()

    evaluate(model, sets, pairs, keep)
    return found


def node_changes(base: Run, site: Site, values: torch.Tensor) -> np.ndarray:
    """Output with `values [example, position, width]` at one site, less the clean one."""
    rows = [Row(i, (Edit(site, tuple(range(len(ids))), values[i]),)) for i, ids in enumerate(base.tokens)]
    clean = base.logits().view(len(base), -1, base.model.shape.vocab).numpy()
    out = np.zeros_like(clean)

    def keep(readout) -> None:
        for row, position, logits in zip(readout.row.tolist(), readout.position.tolist(), readout.logits, strict=True):
            out[row, position - 1] = logits.numpy()

    replay(base, rows, keep)
    return out - clean


@pytest.fixture(scope="module")
def share(tmp_path_factory) -> tuple[Model, KnownCircuit]:
    folder = write_share(tmp_path_factory.mktemp("share"))
    return load_compiled(folder), read_known_circuit(folder)


# -- the model ----------------------------------------------------------------------------------------------------


def agrees(model: Model, known: KnownCircuit) -> int:
    """How many examples were checked: the answers, the outputs, and the tokenizer."""
    examples = (*known.examples, *known.short_examples)
    for one in examples:
        output = record(model, [one.ids], read=[range(len(one.ids))]).logits().numpy()
        np.testing.assert_allclose(output, one.output, atol=1e-4)
        found = known.program.decode(output)
        assert found == list(one.target) or np.allclose(np.array(found, float), np.array(one.target, float), atol=1e-4)
        text = " ".join(str(known.program.vocab[i]) for i in one.ids)
        assert model.tokenizer(text)["input_ids"] == list(one.ids)
    return len(examples)


@needs_ground_truth
def test_all_examples_decode_right() -> None:
    assert sum(agrees(*compiled(program)) for program in PROGRAMS) == 312


@needs_ground_truth
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_graph_is_the_compiled_model(program: str) -> None:
    model, known = compiled(program)
    report = check(model)
    assert report.passed, str(report)
    assert model.shape == known.program.shape
    assert not model.shape.causal


def test_a_program_by_hand(share) -> None:
    model, known = share
    assert agrees(model, known) == 5
    assert check(model).passed
    edges = {"input->a0.h0.v", "a0.h0->m0", "m0->logits"}
    assert known.minimal("resample") == known.necessary("zero_any_length") == edges
    assert known.mask(known.minimal("zero")).sum() == 3
    table = edge_table(model.shape)
    for name, effect in zip(table.names(), known.effects("resample_mean_abs"), strict=True):
        assert effect == (0.375 if name in edges else 0), name  # shares 2/4, 1/4, 0, 3/4


def test_causal_and_saved_as_any_other_model(tmp_path) -> None:
    config = CompiledConfig(vocab_size=9, output_size=4, num_hidden_layers=2, num_attention_heads=2, is_causal=True,
                            initializer_range=0.5)  # fmt: skip
    hf = CompiledForCausalLM(config).eval()
    hf.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(hf(ids).logits, again(ids).logits)
        other = hf(torch.tensor([[1, 2, 3, 5]])).logits
        assert torch.allclose(hf(ids).logits[:, :3], other[:, :3])
    assert other.shape == (1, 4, 4)
    with pytest.raises(ValueError, match="head_dim is 0"):
        CompiledConfig(head_dim=0)


# -- exact effects ------------------------------------------------------------------------------------------------


@needs_ground_truth
@pytest.mark.parametrize("program", PROGRAMS)
def test_stored_node_effects_are_reproduced(program: str) -> None:
    """Resample, zero and mean ablation of every node, by activation patching."""
    model, known = compiled(program)
    tokens = known.tokens()
    n, length = len(tokens), len(tokens[0])
    run = record(model, tokens, read=[range(1, length)] * n)
    places = model.hf.model.embed_positions.weight[:length].detach()
    for name, node in known.nodes.items():
        site = Site("input") if name.endswith("_embed") else parse_site(name)
        site = Site("mlp_out", site.layer) if name[0] == "m" else site
        values = torch.stack([run.value(site, i) for i in range(n)])
        rest = torch.zeros_like(values)  # of the input, which is two nodes there
        if name.endswith("_embed"):
            rest = places.expand_as(values) if name == "tok_embed" else values - places
        own = values - rest
        shifted = [node_changes(run, site, rest + own.roll(-shift, 0)) for shift in SHIFTS]
        zero = node_changes(run, site, rest)
        mean = node_changes(run, site, rest + own.mean(0))
        found = {"resample_mean_abs": abs(shifted[0]).mean(), "resample_mean": shifted[0].mean(),
                 "resample_max_abs": max(abs(x).max() for x in shifted), "zero_mean_abs": abs(zero).mean(),
                 "zero_max_abs": abs(zero).max(), "mean_mean_abs": abs(mean).mean(),
                 "mean_max_abs": abs(mean).max()}  # fmt: skip
        assert found == pytest.approx(node.effects, abs=1e-4), name


def cut_effects(model: Model, known: KnownCircuit, edges: list[str]) -> dict[str, np.ndarray]:
    """Effects of cutting edges one at a time, by resampling."""
    sets = [~through(edge) for edge in edges]
    shifted = [path_changes(model, sets, known, shift) for shift in SHIFTS]
    return {"resample_mean_abs": abs(shifted[0]).mean((1, 2, 3)), "resample_mean": shifted[0].mean((1, 2, 3)),
            "resample_max_abs": np.max([abs(x).max((1, 2, 3)) for x in shifted], 0)}  # fmt: skip


@needs_ground_truth
@pytest.mark.parametrize("program", PROGRAMS)
def test_cutting_one_edge_has_the_stored_effect(program: str) -> None:
    """Every edge of the small programs; of `shuffle-dyck2` the wired ones and some others."""
    model, known = compiled(program)
    edges = edge_table(model.shape).names()
    if len(edges) > 500:
        rest = random.Random(0).sample(sorted(set(edges) - set(known.edges)), 12)
        edges = [*known.edges, *rest]
    for measure, found in cut_effects(model, known, edges).items():
        stored = dict(zip(edge_table(model.shape).names(), known.effects(measure), strict=True))
        np.testing.assert_allclose(found, [stored[edge] for edge in edges], atol=1e-4, err_msg=measure)
    above = {edge for edge, largest in zip(edges, found, strict=True) if largest > known.threshold}
    assert measure == "resample_max_abs"
    assert above == known.necessary("resample")


def stand_ins(program: str, known: KnownCircuit, ablation: str) -> dict[str, torch.Tensor]:
    """What a cut edge carries, by sender."""
    _, wrote = masked_output(weights_of(program), known.tokens(), (), {})
    made = {"resample": lambda x: x.roll(-1, 0), "zero": torch.zeros_like, "mean": lambda x: x.mean(0)}[ablation]
    return {node: made(x) for node, x in wrote.items()}


def zero_cut(weights: dict[str, torch.Tensor], tokens: list[tuple[int, ...]], edge: str) -> float:
    """Largest change of an output when an edge carries nothing."""
    clean, wrote = masked_output(weights, tokens, (), {})
    moved = masked_output(weights, tokens, {edge}, {node: torch.zeros_like(x) for node, x in wrote.items()})[0] - clean
    return float(moved[:, 1:].abs().max())


@needs_ground_truth
@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_read_of_the_circuit_is_what_the_weights_do(program: str, ablation: str) -> None:
    """Names, effects and the joined input edges, on a forward pass that shares nothing with the package."""
    known = compiled(program)[1]
    weights, tokens, instead = weights_of(program), known.tokens(), stand_ins(program, known, ablation)
    clean = masked_output(weights, tokens, (), {})[0][:, 1:]
    lengths = sorted({len(one.ids) for one in known.short_examples})
    short = [[one.ids for one in known.short_examples if len(one.ids) == length] for length in lengths]
    for number, (name, edge) in enumerate(known.edges.items()):
        moved = (masked_output(weights, tokens, {name}, instead)[0][:, 1:] - clean).abs()
        assert float(moved.mean()) == pytest.approx(edge.effects[f"{ablation}_mean_abs"], abs=1e-4), name
        if ablation != "resample":  # for which `necessary` goes by further pairings, as tested above
            assert bool(moved.max() > known.threshold) == edge.necessary[ablation], name
        if ablation == "zero" and (program != "shuffle-dyck2" or number % 4 == 0):  # ten of its 40 edges
            largest = max(float(moved.max()), *(zero_cut(weights, ids, name) for ids in short))
            assert largest == pytest.approx(edge.effects["zero_any_length_max_abs"], abs=1e-4), name
            assert (largest > known.threshold) == edge.necessary["zero_any_length"], name
    everything_else = set(edge_table(known.program.shape).names()) - known.minimal(ablation)
    moved = masked_output(weights, tokens, everything_else, instead)[0][:, 1:] - clean
    assert moved.abs().max() < known.threshold


@needs_ground_truth
@pytest.mark.parametrize("program", PROGRAMS)
def test_random_edge_sets_equal_the_forward_pass_written_out(program: str) -> None:
    """Path sets of edges, among them many unwired ones, against cutting all others at once."""
    model, known = compiled(program)
    rng, edges = random.Random(0), edge_table(model.shape).names()
    instead = stand_ins(program, known, "resample")
    clean = masked_output(weights_of(program), known.tokens(), (), {})[0]
    kept = [{e for e in edges if rng.random() < (0.8 if e in known.edges else 0.5)} for _ in range(6)]
    found = path_changes(model, [from_edges(e.split("->") for e in some) for some in kept], known, 1)
    assert abs(found).max() > 0.01
    for one, some in zip(found, kept, strict=True):
        want = masked_output(weights_of(program), known.tokens(), set(edges) - some, instead)[0] - clean
        np.testing.assert_allclose(one, want[:, 1:].numpy(), atol=1e-4)


def test_effects_of_the_program_by_hand(share) -> None:
    model, known = share
    edges = edge_table(model.shape).names()
    found = path_changes(model, [~through(edge) for edge in edges], known, 1)
    np.testing.assert_allclose(abs(found).mean((1, 2, 3)), known.effects("resample_mean_abs"), atol=1e-6)
    run = record(model, known.tokens(), read=[range(1, 4)] * 4)
    zeroed = node_changes(run, Site("z", 0, 0), torch.zeros(4, 4, 2))
    assert abs(zeroed).mean() == pytest.approx(known.nodes["a0.h0"].effects["zero_mean_abs"])
    unused = node_changes(run, Site("z", 0, 1), torch.zeros(4, 4, 2))
    assert (unused == 0).all()


# -- the known circuit as a set of paths ----------------------------------------------------------------------------

CHANGE = Dissimilarity(
    "largest change of an output",
    lambda reference, patched, reads: (reference - patched).abs().amax(-1).double(),
    lambda logits, reads: logits.abs().amax(-1).double(),
    "output",
)


def explains_everything_and_no_less(model: Model, known: KnownCircuit) -> None:
    """The paths along the known edges are sufficient; without any one edge, all others kept or not, they are not."""
    edges = sorted(tuple(name.split("->")) for name in known.minimal("resample"))
    claims: dict[str, PathSet] = {"circuit": from_edges(edges)}
    for edge in edges:
        rest = set(edges) - {edge}
        left = from_edges(rest) if rest else nothing()
        claims["without " + "->".join(edge)] = left if has_path(left, model.shape) else nothing()
        claims["all but " + "->".join(edge)] = ~through("->".join(edge))
    found = test_paths(model, claims, resample_pairs(known), dissimilarity=CHANGE)
    explained = found.frame().set_index("hypothesis").explained
    assert np.nanmean(found.total) > 0.1
    assert np.nanmax(found.floor) < 1e-4
    assert np.nanmax(found.unexplained[0]) < known.threshold
    assert explained["circuit"] == pytest.approx(1, abs=1e-4)
    assert (np.nanmax(found.unexplained[1:], 1) > known.threshold).all()
    assert (explained.iloc[1:] < 0.99).all(), explained
    whole = from_edges(tuple(name.split("->")) for name in edge_table(model.shape).names())
    assert equal(whole, everything(), model.shape)
    assert not equal(claims["circuit"], whole, model.shape)


@needs_ground_truth
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_known_circuit_is_the_ground_truth_path_set(program: str) -> None:
    explains_everything_and_no_less(*compiled(program))


def test_the_circuit_by_hand_is_the_ground_truth_path_set(share) -> None:
    explains_everything_and_no_less(*share)


# -- files that are not what they should be ---------------------------------------------------------------------------


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


BROKEN_CONFIG = [
    ({"d_head": 0}, "d_head is 0"),
    ({"n_layers": True}, "n_layers is True"),
    ({"n_heads": "2"}, "n_heads is '2'"),
    ({"layer_norm": True}, "layer_norm is True"),
    ({"activation": "gelu"}, "activation is 'gelu'"),
    ({"causal": None}, "causal is None"),
    ({"output_kind": "tree"}, "output_kind is 'tree'"),
    ({"output_kind": "categorical"}, "output_values does not hold 1"),
    ({"vocab": ["BOS", "a", "a"]}, "vocab does not hold 3"),
    ({"vocab": ["BOS", "a", "b c"]}, "'b c' is no single word"),
    ({"residual_labels": []}, "residual_labels does not hold 4"),
    ({"d_mlp": 10**9}, r"'blocks.0.mlp.W_in' has shape \[4, 3\]"),
    ({"n_layers": 2}, "'blocks.1.attn.W_K' is missing"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN_CONFIG)
def test_a_broken_config_is_refused(tmp_path, values, message) -> None:
    folder = write_share(tmp_path / "share")
    changed(folder / "config.json", **values)
    with pytest.raises(ModelError, match=message):
        load_compiled(folder)


def test_broken_weights_are_refused(tmp_path) -> None:
    folder = write_share(tmp_path / "share")
    path = folder / "model.safetensors"
    state = load_file(path)
    for broken, message in (
        (state | {"extra": torch.zeros(1)}, "'extra' has shape"),
        (state | {"embed.W_E": torch.full((3, 4), float("nan"))}, "'embed.W_E' holds something"),
        (state | {"embed.W_E": torch.zeros(3, 4, dtype=torch.int64)}, "'embed.W_E' holds something"),
        ({k: v for k, v in state.items() if k != "unembed.W_U"}, "'unembed.W_U' is missing"),
    ):
        save_file(broken, path)
        with pytest.raises(ModelError, match=message):
            load_compiled(folder)
    path.write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load_compiled(folder)
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_compiled(folder)
    with pytest.raises(ModelError, match=r"config\.json.*cannot be read|cannot be read"):
        load_compiled(tmp_path / "nowhere")


def test_a_broken_circuit_is_refused(tmp_path) -> None:
    folder = write_share(tmp_path / "share")
    path = folder / "circuit.json"
    circuit = json.loads(path.read_text())
    first = circuit["edges"][0]
    for broken, message in (
        ({"edges": [first | {"name": "tok_embed->a7.h0<v>"}]}, "is no edge of this model"),
        ({"edges": [first | {"name": "m0->a0.h0<v>"}]}, "is no edge of this model"),
        ({"edges": [first | {"effects": {"x": float("nan")}}]}, "no finite number"),
        ({"edges": [{"name": SHARE_EDGES[0]}]}, "cannot be read"),
        ({"edges": [7]}, "cannot be read"),
        ({"edges": "all"}, "edges is no list"),
        ({"edges": [first | {"name": "tok_embed->m0"}]}, "lacks 'input->m0'"),
        ({"threshold": "small"}, "no finite number"),
    ):
        path.write_text(json.dumps(circuit | broken))
        with pytest.raises(ModelError, match=message):
            read_known_circuit(folder)
    path.write_text(json.dumps(circuit))
    (folder / "examples.json").write_text(
        json.dumps({"examples": [{"token_ids": [0, 9], "target": [1], "output": [[0.0], [0.0]]}], "short_examples": []})
    )
    with pytest.raises(ModelError, match="do not fit each other"):
        read_known_circuit(folder)
    (folder / "examples.json").write_text("[" * 10**5)
    with pytest.raises(ModelError, match="is not JSON"):
        read_known_circuit(folder)


@needs_ground_truth
def test_every_folder_is_tested() -> None:
    assert sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) == sorted(PROGRAMS)
