"""Every executor shortcut against plain hooks on a full forward pass of the untouched model."""

from __future__ import annotations

import functools
import random

import oracle
import pytest
import torch
from families import BIDIRECTIONAL, FAMILIES, VOCAB, make

from crosspatch.errors import InterventionError, ModelError
from crosspatch.graph.names import Site
from crosspatch.model import Edit, FromRun, Model, Readout, Row, check, load, record, replay
from crosspatch.model.check import relative_error

KINDS = (
    "input",
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_act",
    "neuron",
    "mlp_out",
    "resid_post",
)


@functools.cache
def model_of(family: str) -> Model:
    return load(make(family), name=family)


def prompts(seed: int, n: int = 3) -> tuple[list[list[int]], list[list[int]]]:
    """Clean and corrupt prompts of different lengths; each pair shares a prefix and some later tokens."""
    rng = random.Random(seed)
    clean, corrupt = [], []
    for i in range(n):
        length = 9 + 2 * i
        a = [rng.randrange(VOCAB) for _ in range(length)]
        b = list(a)
        for p in {3, rng.randrange(4, length)}:
            b[p] = (a[p] + 1 + rng.randrange(VOCAB - 1)) % VOCAB
        clean.append(a)
        corrupt.append(b)
    return clean, corrupt


def site_of(kind: str, layer: int, model: Model, rng: random.Random) -> Site | None:
    shape = model.shape
    if (kind == "resid_mid" and not shape.has_resid_mid) or (kind in ("mlp_act", "neuron") and not shape.has_neurons):
        return None
    if kind == "mlp_out" and not shape.has_mlp:
        return None
    if kind == "input":
        return Site("input")
    size = {
        "q": shape.n_heads,
        "z": shape.n_heads,
        "pattern": shape.n_heads,
        "k": shape.n_kv_heads,
        "v": shape.n_kv_heads,
        "neuron": shape.d_mlp,
    }.get(kind)
    index = None if size is None else rng.randrange(size)
    return Site(kind, layer, index, grouped=shape.grouped)


def run_rows(base, rows, **kwargs) -> torch.Tensor:
    out: dict[int, torch.Tensor] = {}

    def keep(readout: Readout) -> None:
        for row, logits in zip(readout.row.tolist(), readout.logits, strict=True):
            out[row] = torch.cat([out[row], logits[None]]) if row in out else logits[None]

    replay(base, rows, keep, **kwargs)
    return torch.stack([out[i] for i in range(len(rows))])


@functools.cache
def oracle_seen(family: str, prompt: tuple[int, ...]) -> dict:
    """What plain hooks see in an unedited run."""
    return oracle.forward(model_of(family), prompt)[1]


def width_of(model: Model, site: Site) -> int:
    shape = model.shape
    if site.kind in ("q", "k", "v", "z"):
        return shape.d_head
    return {"mlp_act": shape.d_mlp, "neuron": 1}.get(site.kind, shape.d_model)


def oracle_edits(model: Model, row: Row, sources: list[list[int]]) -> list[oracle.OracleEdit]:
    """The row's edits with their values taken from the oracle's own run of the source prompt."""
    out = []
    for edit in row.edits:
        value = edit.value
        if isinstance(value, FromRun):
            seen = oracle_seen(model.name, tuple(sources[value.example]))
            positions = value.positions or edit.positions
            value = oracle.value(seen, edit.site)[list(positions)]
        site = Site("resid_pre", 0) if edit.site.kind == "input" else edit.site
        out.append((site, edit.positions, value))
    return out


@pytest.mark.parametrize("family", [*FAMILIES, *BIDIRECTIONAL])
def test_check_passes(family: str) -> None:
    report = check(model_of(family))
    assert report.passed, str(report)
    assert {item.name for item in report.items} == {"logits", "resid", "sum", "heads"}


@pytest.mark.parametrize("family", [*FAMILIES, *BIDIRECTIONAL])
def test_every_site_kind_equals_plain_hooks(family: str) -> None:
    """One row for every kind and layer, at one position and at several, all in one replay."""
    model, rng = model_of(family), random.Random(1)
    clean, corrupt = prompts(5)
    base, source = record(model, corrupt), record(model, clean)
    rows = []
    for kind in KINDS:
        for layer in range(1 if kind == "input" else model.shape.n_layers):
            site = site_of(kind, layer, model, rng)
            if site is None:
                continue
            example = rng.randrange(len(clean))
            length = len(clean[example])
            where = ((rng.randrange(3, length),), tuple(range(3, length)))
            rows += [Row(example, (Edit(site, positions, FromRun(source, example)),)) for positions in where]
    got = run_rows(base, rows)[:, 0]
    for row, logits in zip(rows, got, strict=True):
        want, _ = oracle.forward(model, corrupt[row.example], oracle_edits(model, row, clean))
        assert relative_error(logits, want[-1]) < 1e-5, (family, row)


@pytest.mark.parametrize("family", [*FAMILIES, *BIDIRECTIONAL])
def test_several_edits_in_one_row_equal_plain_hooks(family: str) -> None:
    """Windows and mixed sets: other runs, tensors, zeros; rows that begin anywhere and change again later."""
    model, rng = model_of(family), random.Random(2)
    clean, corrupt = prompts(6)
    base, source = record(model, clean), record(model, corrupt)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(20):
        example, edits, spots = rng.randrange(len(clean)), [], set()
        for _ in range(rng.randrange(2, 5)):
            site = site_of(rng.choice(KINDS), rng.randrange(model.shape.n_layers), model, rng)
            if site is None:
                continue
            spot = {"input": "r", "resid_pre": "r", "resid_post": "r", "neuron": "m"}.get(site.kind, site.kind[0])
            if spot in spots:  # the same place may be edited once only (r1.post is r2, a neuron is part of m1.act)
                continue
            spots.add(spot)
            positions = tuple(sorted(rng.sample(range(len(clean[example])), rng.randrange(1, 4))))
            if rng.random() < 0.5 or site.kind == "pattern":
                edits.append(Edit(site, positions, FromRun(source, example)))
            else:
                width = width_of(model, site)
                edits.append(Edit(site, positions, torch.randn(len(positions), width, generator=generator)))
        rows.append(Row(example, tuple(edits)))
    got = run_rows(base, rows)[:, 0]
    for row, logits in zip(rows, got, strict=True):
        want, _ = oracle.forward(model, clean[row.example], oracle_edits(model, row, corrupt))
        assert relative_error(logits, want[-1]) < 1e-5, (family, row)


@pytest.mark.parametrize("family", [*FAMILIES, *BIDIRECTIONAL])
def test_recorded_values_equal_plain_hooks(family: str) -> None:
    model, rng = model_of(family), random.Random(3)
    clean, _ = prompts(7)
    run = record(model, clean)  # keeps nothing: every site is recorded when it is first asked for
    for kind in KINDS:
        for layer in range(model.shape.n_layers):
            site = site_of(kind, layer, model, rng)
            if site is None:
                continue
            for i, prompt in enumerate(clean):
                seen = oracle_seen(family, tuple(prompt))
                assert relative_error(run.value(site, i), oracle.value(seen, site)) < 1e-5, (family, str(site))


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gpt_neox", "gemma2"])
def test_padded_batches_of_the_model_give_the_same_logits(family: str) -> None:
    """What the packed run gives for prompts of different lengths is what a left-padded batch of the model gives."""
    model = model_of(family)
    clean, _ = prompts(8)
    longest = max(map(len, clean))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in clean])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in clean])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        want = model.hf(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    assert relative_error(record(model, clean).logits(), want) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "olmo2"])
def test_small_budget_and_columns_change_nothing(family: str) -> None:
    model = model_of(family)
    clean, corrupt = prompts(9)
    base, source = record(model, corrupt), record(model, clean)
    rows = [
        Row(i, (Edit(Site("resid_pre", layer), (p,), FromRun(source, i)),))
        for i in range(3)
        for layer in range(3)
        for p in range(9)
    ]
    whole = run_rows(base, rows)
    assert torch.allclose(run_rows(base, rows, budget_mib=0.02), whole, rtol=1e-5, atol=1e-5)
    columns = [5, 2, 90]
    assert torch.allclose(run_rows(base, rows, columns=columns), whole[..., columns], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_several_read_positions(family: str) -> None:
    """Reads before the first changed position are the base run's, the others are recomputed."""
    model = model_of(family)
    clean, corrupt = prompts(10)
    read = [tuple(range(len(p))) for p in clean]
    base, source = record(model, corrupt, read=read), record(model, clean)
    for site, p in ((Site("resid_pre", 2), 5), (Site("z", 2, 1), 4), (Site("mlp_out", 1), 6)):
        row = Row(1, (Edit(site, (p,), FromRun(source, 1)),))
        want, _ = oracle.forward(model, corrupt[1], oracle_edits(model, row, clean))
        assert relative_error(run_rows(base, [row])[0], want) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "mixtral"])
def test_patch_everything_is_the_source_and_patch_nothing_is_the_base(family: str) -> None:
    model = model_of(family)
    clean, corrupt = prompts(11)
    base, source = record(model, corrupt), record(model, clean)
    everything = [Row(i, (Edit(Site("input"), tuple(range(len(p))), FromRun(source, i)),)) for i, p in enumerate(clean)]
    assert torch.allclose(run_rows(base, everything)[:, 0], source.logits(), rtol=1e-5, atol=1e-5)
    nothing = [Row(i, ()) for i in range(3)]
    assert torch.equal(run_rows(base, nothing)[:, 0], base.logits())
    itself = [Row(i, (Edit(Site("resid_pre", 1), (4,), FromRun(base, i)),)) for i in range(3)]
    assert torch.equal(run_rows(base, itself)[:, 0], base.logits())


def test_no_work_for_patches_that_change_nothing() -> None:
    model = model_of("gpt2")
    clean, corrupt = prompts(12)
    base, source = record(model, corrupt), record(model, clean)
    rows = [Row(0, (Edit(Site("resid_pre", 1), (p,), FromRun(source, 0)),)) for p in range(9)]
    cost = replay(base, rows, lambda readout: None)
    assert cost.unchanged_rows == 3  # the shared prefix: positions 0, 1, 2
    layers = model.shape.n_layers
    want = sum(9 - p for p in range(3, 9)) * (layers - 2) + 6  # blocks 1 .. L-2 in full, one token in the last
    assert cost.token_layers == want
    last = Edit(Site("mlp_out", layers - 1), (4,), FromRun(source, 0))  # not read, nothing after it attends
    assert replay(base, [Row(0, (last,))], lambda readout: None).unchanged_rows == 1


def test_an_edited_run_serves_as_base_and_as_source() -> None:
    """Causal tracing: noise on the input makes the corrupt run, clean states are put back into it."""
    model = model_of("llama")
    clean, _ = prompts(13)
    noise = [torch.randn(2, model.shape.d_model, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    edits = [(Edit(Site("input"), (3, 4), lambda x, n=n: x + n),) for n in noise]
    source = record(model, clean)
    base = record(model, clean, edits=edits)
    row = Row(1, (Edit(Site("resid_pre", 1), (4,), FromRun(source, 1)),))
    _, seen = oracle.forward(model, clean[1])
    noised = (Site("resid_pre", 0), (3, 4), seen["resid_pre"][0][[3, 4]] + noise[1])
    restored = (Site("resid_pre", 1), (4,), seen["resid_pre"][1][[4]])
    want, _ = oracle.forward(model, clean[1], [noised, restored])
    assert relative_error(run_rows(base, [row])[0], want[-1:]) < 1e-5
    back = run_rows(source, [Row(1, (Edit(Site("input"), (3, 4), FromRun(base, 1)),))])
    assert torch.allclose(back[0], base.logits()[1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *BIDIRECTIONAL])
def test_a_run_that_begins_like_another_equals_one_of_its_own(family: str) -> None:
    """Only tokens from some place on are computed; reads before the first difference are the other run's."""
    model = model_of(family)
    clean, corrupt = prompts(7)
    corrupt[1] = clean[1]
    layers = range(model.shape.n_layers)
    keys = {(layer, kind) for layer in layers for kind in ("resid_pre", "k", "v", "z")}
    read = [[1, len(ids) - 1] for ids in clean]
    base = record(model, clean, read=read, keys=keys)
    own = record(model, corrupt, read=read, keys=keys | {(0, "q")})
    shared = record(model, corrupt, read=read, keys=keys | {(0, "q")}, prefix=base, begin=3)
    assert relative_error(shared.hidden, own.hidden) < 1e-5
    for key in keys:
        assert relative_error(shared.packed(key), own.packed(key)) < 1e-5
    q = shared.packed((0, "q"))
    missing = q.flatten(1).isnan().any(1)
    torch.testing.assert_close(q[~missing], own.packed((0, "q"))[~missing], rtol=1e-4, atol=1e-5)
    if model.shape.causal:  # not kept by the run that they begin like
        assert missing.tolist() == [p < 3 for ids in clean for p in range(len(ids))]
        same = [0, 2, 3, 4]  # of one prompt both reads
        assert torch.equal(shared.hidden[same], base.hidden[same])
    else:
        assert not missing.any()
    with pytest.raises(InterventionError, match="other lengths"):
        record(model, corrupt, read=read, prefix=base, begin=4)


def test_the_model_is_left_as_it_was() -> None:
    hf = make("gptj")
    before = {k: v.clone() for k, v in hf.state_dict().items()}
    implementation = hf.config._attn_implementation
    model = load(hf)
    record(model, prompts(0)[0], ["a1.h0.pattern", "m1.act"])
    assert hf.config._attn_implementation == implementation
    assert all(torch.equal(v, before[k]) for k, v in hf.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())
    assert "_attn" not in vars(model.anatomy.blocks[0].attn)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bfloat16_and_float64(family: str) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model = load(make(family, dtype=dtype))
        assert check(model).passed


def test_bad_input_names_the_site_the_shapes_and_the_fix() -> None:
    model = model_of("gpt2")
    clean, corrupt = prompts(1)
    base, source = record(model, clean), record(model, corrupt)

    def fails(edit: Edit, *words: str) -> None:
        with pytest.raises(InterventionError) as error:
            replay(base, [Row(0, (edit,))], lambda readout: None)
        assert all(word in str(error.value) for word in words), str(error.value)

    fails(Edit(Site("resid_pre", 1), (20,), FromRun(source, 0)), "r1", "position 20", "9 tokens")
    fails(Edit(Site("resid_pre", 1), (2,), torch.zeros(3, 7)), "r1", "[3, 7]", "[1 positions, 64]")
    fails(Edit(Site("resid_pre", 1), (2,), FromRun(source, 9)), "no example 9", "3 examples")
    fails(Edit(Site("resid_pre", 1), (2, 3), FromRun(source, 0, (2,))), "r1", "2 positions", "1")
    fails(Edit(Site("pattern", 1, 0), (2,), FromRun(source, 1)), "a1.h0.pattern", "11", "9")
    fails(Edit(Site("resid_pre", 1), (2,), lambda x: None), "r1", "NoneType", "[1, 64]")
    fails(Edit(Site("resid_pre", 1), (2,), "zero"), "r1", "str")  # type: ignore[arg-type]
    fails(Edit(Site("logits"), (2,), FromRun(source, 0)), "logits")
    with pytest.raises(InterventionError, match="example 0: token ids"):
        record(model, [[1, VOCAB]])
    with pytest.raises(ModelError, match="context is 128"):
        record(model, [[1] * 129])
    model.hf.train()
    try:
        with pytest.raises(ModelError, match="training mode"):
            record(model, clean)
    finally:
        model.hf.eval()
