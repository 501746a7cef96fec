"""The benchmark's floor against a count that walks the graph of dependencies one value at a time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.floor import SWEEPS, Sizes, question_flops, record_flops, sweep_flops

GPT2 = Sizes(n_layers=12, n_heads=12, n_kv_heads=12, d_model=768, d_head=64, d_mlp=3072)


def counted(s: Sizes, kind: str, layer: int, place: int, first: int, length: int) -> int:
    """Propagate "changed" forwards, "needed" backwards, and add up what is both. Nothing is summed in closed form."""
    last, at = s.n_layers - 1, length - 1
    shared = s.n_heads // s.n_kv_heads
    heads = {"z": 1, "q": 1, "k": shared, "v": shared}.get(kind, s.n_heads)
    total = 0
    stream = {place} if (kind, layer) == ("resid_pre", 0) else set()
    if kind in ("resid_pre", "mlp_out") and place < first:
        return 0
    for la in range(s.n_layers):
        if kind == "resid_pre" and la == layer:
            stream = {place}
        wanted = {at} if la == last else set(range(length))
        q, k, v = set(stream), set(stream), set(stream)
        total += len(q & wanted) * s.q + len(stream) * s.kv
        own = kind in ("z", "q", "k", "v") and la == layer
        if own:
            # the values themselves are given: they cost nothing to have
            (q if kind == "q" else k if kind == "k" else v if kind == "v" else set()).update(range(first, length))
        z = set(range(first, length)) if own and kind == "z" else set()
        for t in wanted:
            for key in range(t + 1):
                score = t in q or key in k
                value = score or key in v
                if score or value:
                    z.add(t)
                    each = 4 if score else 2
                    total += each * (heads if own else s.n_heads) * s.d_head
        z &= wanted
        total += len(z) * (2 * (heads if own else s.n_heads) * s.d_head * s.d_model)
        middle = z | (stream & wanted)
        total += len(middle) * s.mlp
        stream = middle | (stream & wanted)
        if kind == "mlp_out" and la == layer:
            stream = {place} & wanted
    return total + 2 * 2 * s.d_model if at in stream else 0


@st.composite
def questions(draw):
    kv = draw(st.integers(1, 3))
    s = Sizes(
        n_layers=draw(st.integers(1, 4)),
        n_heads=kv * draw(st.integers(1, 3)),
        n_kv_heads=kv,
        d_model=draw(st.integers(1, 9)),
        d_head=draw(st.integers(1, 5)),
        d_mlp=draw(st.integers(1, 20)),
        mlp_matrices=draw(st.sampled_from([2, 3])),
    )
    length = draw(st.integers(1, 7))
    first = draw(st.integers(0, length - 1))
    return s, draw(st.integers(0, s.n_layers - 1)), draw(st.integers(0, length - 1)), first, length


@given(questions(), st.sampled_from(SWEEPS))
@settings(max_examples=300, deadline=None)
def test_floor_equals_what_is_changed_and_needed(question, kind):
    s, layer, place, first, length = question
    assert question_flops(s, kind, layer, place, first, length) == counted(s, kind, layer, place, first, length)


def test_floor_by_hand_on_one_layer_and_two_tokens():
    s = Sizes(n_layers=1, n_heads=1, n_kv_heads=1, d_model=2, d_head=2, d_mlp=3)
    # q 8, k and v 16, o 8, mlp 24, a pair 8, two logits 8
    assert question_flops(s, "resid_pre", 0, 0, 0, 2) == 16 + 8 + 8 + 24 + 8
    assert question_flops(s, "resid_pre", 0, 1, 0, 2) == 8 + 16 + 2 * 8 + 8 + 24 + 8
    assert question_flops(s, "z", 0, 0, 0, 2) == 8 + 24 + 8
    assert question_flops(s, "mlp_out", 0, 0, 0, 2) == 0
    assert question_flops(s, "mlp_out", 0, 1, 0, 2) == 8
    assert record_flops(s, 1, 2) == (2 * 16 + 8 + 2 * 8 + 8 + 24) + (16 + 8 + 2 * 8 + 8 + 24)


def test_positions_before_the_first_difference_cost_nothing():
    assert all(question_flops(GPT2, "resid_pre", la, p, 6, 24) == 0 for la in range(12) for p in range(6))
    assert question_flops(GPT2, "resid_pre", 0, 6, 6, 24) > 0


def test_floor_of_the_published_sweep_is_far_below_full_forward_passes():
    full = 12 * 24 * 8 * 24 * 12 * (GPT2.q + GPT2.kv + GPT2.o + GPT2.mlp)
    assert 0.1 < sweep_flops(GPT2, "resid_pre", [(6, 24)] * 8) / full < 0.25


def test_unknown_sweep_is_refused():
    with pytest.raises(ValueError, match="one of resid_pre"):
        question_flops(GPT2, "pattern", 0, 0, 0, 4)
