"""Sender to receiver as path sets, against the plain three-pass procedure made of hooks (tests/oracle.py).

Wang et al. 2022: (A) both prompts; (B) the reference prompt with the sender's counterfactual value and all other heads
(and MLPs, where they are frozen) held, recording what the receivers make of it; (C) the reference prompt with the
receivers set to that, everything else running.
"""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from path_toys import SMALL, linear_model, random_pairs, small

from crosspatch.errors import AddressError, MetricError, PathError
from crosspatch.graph import Site, nodes, parse_address
from crosspatch.paths import Pairs, evaluate, mediation, path_patch, paths, sender_paths, task_pairs
from crosspatch.paths.sender import SenderEffects

PAIRS = random_pairs(1, seed=3)
LENGTH = 5
SPANS = {"S": [1, 2], "END": [4], "*": list(range(LENGTH))}


def places(position: int | str) -> list[int]:
    return SPANS[position] if isinstance(position, str) else [position % LENGTH]


def three_passes(model, sender: str, receivers: list[str], mlps: str) -> torch.Tensor:
    """Logits of the last token after steps A, B and C, one hooked forward pass each."""
    reference, counter = PAIRS.reference[0], PAIRS.counterfactual[0]
    _, on_reference = oracle.forward(model, reference)
    _, on_counter = oracle.forward(model, counter)
    source = parse_address(sender)
    changed = oracle.value(on_reference, source.site).clone()
    changed[places(source.position)] = oracle.value(on_counter, source.site)[places(source.position)]
    site = Site("resid_pre", 0) if sender.startswith("input") else source.site

    def step_b(receiver: Site) -> tuple[torch.Tensor, dict]:
        frozen = [s for s in nodes(model.shape)[1:] if s.kind == "z" or mlps == "frozen"]
        held = [(s, range(LENGTH), oracle.value(on_reference, s)) for s in frozen if s not in (source.site, receiver)]
        return oracle.forward(model, reference, [*held, (site, range(LENGTH), changed)])

    if receivers == ["logits"]:
        return step_b(Site("logits"))[0][-1]
    edits = []
    for to in map(parse_address, receivers):
        passed_on = oracle.value(step_b(to.site)[1], to.site)
        edits.append((to.site, places(to.position), passed_on[places(to.position)]))
    return oracle.forward(model, reference, edits)[0][-1]


def by_paths(model, sender: str, receivers: list[str], mlps: str, semantics: str = "last") -> torch.Tensor:
    patched = sender_paths(model.shape, sender, receivers, mlps=mlps, semantics=semantics)
    found = {}
    evaluate(model, [~patched], PAIRS, lambda r: found.setdefault(r.number, model.unembed(r.hidden)[0]))
    return found[0]


def keys(family: str, layer: int) -> str:
    return f"a{layer}.kv0" if small(family).shape.grouped else f"a{layer}.h0"


def close(family: str, found: torch.Tensor, expected: torch.Tensor) -> bool:
    # RMS norms of transformers compute in float32 whatever the model's dtype is.
    tolerance = 1e-9 if family in ("gpt2", "gpt_neox") else 3e-5
    return bool(torch.allclose(found, expected, rtol=tolerance, atol=tolerance))


def single(family: str) -> list[tuple[str, str]]:
    early = "m0" if family == "gpt_neox" else "a0.h1"
    return [
        ("a0.h1", "a2.h0.q"), ("a0.h0", f"{keys(family, 1)}.k"), ("input", f"{keys(family, 2)}.v"), ("m0", "a1.h1.q"),
        ("a0.h1", "m1"), ("a1.h0", "logits"), ("m1", "m2"), (early, "m0" if early != "m0" else "m1"),
        ("a0.h0@S", f"{keys(family, 1)}.v@S"), ("a0.h1@END", "a2.h1.q@END"), ("a0.h0@-1", "m1@END"),
        ("input@S", f"{keys(family, 2)}.k@1"), ("a0.h0@END", "logits"),
    ]  # fmt: skip


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("mlps", ["direct", "frozen"])
def test_one_receiver_is_the_three_pass_procedure(family, mlps):
    model = small(family)
    told_apart = 0
    for sender, receiver in single(family):
        found = by_paths(model, sender, [receiver], mlps)
        assert close(family, found, three_passes(model, sender, [receiver], mlps)), (sender, receiver)
        other = three_passes(model, sender, [receiver], "frozen" if mlps == "direct" else "direct")
        told_apart += not torch.allclose(found, other, atol=1e-3)
    assert told_apart > 3, "MLPs direct and frozen must be different hypotheses here"


def feeding(family: str) -> list[tuple[str, list[str]]]:
    return [
        ("a0.h1", [f"{keys(family, 1)}.v", "a2.h0.q"]),
        ("input", ["a1.h1.q", "a2.h1.q", f"{keys(family, 2)}.k"]),
        ("m0", ["a1.h0.q", "m2"]),
        ("a0.h0@S", [f"{keys(family, 1)}.k@S", f"{keys(family, 2)}.v@S"]),
    ]


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("mlps", ["direct", "frozen"])
def test_receivers_that_feed_each_other_are_the_last_receiver_set_and_not_the_union(family, mlps):
    model = small(family)
    for sender, receivers in feeding(family):
        expected = three_passes(model, sender, receivers, mlps)
        assert close(family, by_paths(model, sender, receivers, mlps), expected), (sender, receivers)
        union = by_paths(model, sender, receivers, mlps, "union")
        assert (union - expected).abs().max() > 1e-4, (sender, receivers)


def test_receivers_that_do_not_feed_each_other_have_one_reading():
    model = small("gpt2")
    receivers = ["a1.h0.q", "a1.h1.v"]
    last, union = (by_paths(model, "a0.h0", receivers, "direct", how) for how in ("last", "union"))
    assert torch.equal(last, union)
    assert close("gpt2", last, three_passes(model, "a0.h0", receivers, "direct"))


def test_a_pattern_of_receivers_stands_for_each_of_them():
    for family in ("gpt2", "llama"):
        model = small(family)
        q = [f"a{layer}.h{h}.q" for layer in (1, 2) for h in range(model.shape.n_heads)]
        found = by_paths(model, "a0.h0", ["a[1-2].*.q"], "direct")
        assert close(family, found, three_passes(model, "a0.h0", q, "direct"))
    assert close("llama", by_paths(small("llama"), "m0", ["a1.kv1.k"], "frozen"),
                 by_paths(small("llama"), "m0", ["a1.h2.k", "a1.h3.k"], "frozen"))  # fmt: skip


# -- the call -------------------------------------------------------------------------------------------------------


def test_a_sweep_measures_each_sender_alone():
    model, pairs = small("gpt2"), random_pairs(6, seed=1)
    swept = path_patch(model, pairs, "a*.h*, m*", "a2.h1.q", mlps="frozen")
    assert swept.senders == [str(n) for n in nodes(model.shape)[1:] if n.layer < 2]  # layer 2 comes too late
    assert swept.about["semantics"] == "one receiver"
    for name in ("a0.h1", "m1"):
        alone = path_patch(model, pairs, name, "a2.h1.q", mlps="frozen")
        np.testing.assert_allclose(swept.effect[swept.senders.index(name)], alone.effect[0], atol=1e-9)
        assert np.abs(alone.effect).max() > 1e-3


def test_the_effect_is_the_signed_change_of_the_quantity():
    model, pairs = small("gpt2"), PAIRS
    found = path_patch(model, pairs, "a0.h1", "a2.h0.q")
    logits = three_passes(model, "a0.h1", ["a2.h0.q"], "direct")
    base = oracle.forward(model, pairs.reference[0])[0][-1]
    right, wrong = pairs.answers[0][0], pairs.wrong[0][0]
    expected = (logits[wrong] - logits[right]) - (base[wrong] - base[right])
    assert found.effect[0, 0] == pytest.approx(float(expected), abs=1e-9)
    loss = path_patch(model, pairs, "a0.h1", "a2.h0.q", dissimilarity="abs_loss")
    expected = base.log_softmax(-1)[right] - logits.log_softmax(-1)[right]
    assert loss.effect[0, 0] == pytest.approx(float(expected), abs=1e-9)


def test_what_is_printed_names_the_choices():
    found = path_patch(small("gpt2"), random_pairs(6), "a0.h*", ["a1.h0.q", "m2"], mlps="direct", semantics="union")
    text = str(found)
    for word in ("MLPs on the way: direct", "receivers: union", "a1.h0.q, m2", "logit difference", "6 pairs", "logits"):
        assert word in text
    frame = found.frame()
    assert list(frame["sender"]) == ["a0.h0", "a0.h1"]
    assert (frame["low"] <= frame["effect"]).all() and (frame["effect"] <= frame["high"]).all()
    assert list(found.top(1)["sender"]) == [frame.loc[frame["effect"].abs().idxmax(), "sender"]]


def test_a_pattern_of_receivers_with_several_nodes_prints_its_semantics():
    assert path_patch(small("gpt2"), random_pairs(2), "a0.h0", "a[1-2].h0.q").about["semantics"] == "last"


def test_senders_into_the_logits_need_no_pass_but_the_two_runs():
    for family in ("gpt2", "llama", "gpt_neox"):
        found = path_patch(small(family), random_pairs(2), "a*.h*, m*, input", "logits", mlps="frozen")
        assert found.about["node_evaluations"] == 0
        assert len(found.senders) == len(nodes(small(family).shape))


def test_a_sender_that_is_written_where_nothing_is_read_is_refused():
    """The logits are read at the last token; what is written at S reaches them by attention alone."""
    model, pairs = small("gpt2"), random_pairs(4)
    with pytest.raises(PathError, match=r"no path leads from a0\.h0@S straight into logits"):
        path_patch(model, pairs, "a0.h0@S", "logits")
    assert path_patch(model, pairs, "a2.h*@S, a2.h*@END", "logits").senders == ["a2.h0@END", "a2.h1@END"]


def test_a_quantity_has_its_own_name_and_unit():
    """The signed quantity of a squared loss change is the loss, in nats."""
    model, pairs = small("gpt2"), random_pairs(4)
    plain, squared = (path_patch(model, pairs, "a2.h*", dissimilarity=d) for d in ("abs_loss", "sq_loss"))
    np.testing.assert_array_equal(plain.effect, squared.effect)
    for found in (plain, squared, path_patch(model, pairs, "a2.h*", dissimilarity="kl")):
        assert (found.about["quantity"], found.about["unit"]) == ("loss", "nats")
    about = path_patch(model, pairs, "a2.h*").about
    assert (about["quantity"], about["unit"]) == ("logit difference, wrong less right", "logits")


def test_a_task_stands_for_its_pairs():
    import toys

    model, task = toys.and_network(), toys.gate_task()
    pairs = task_pairs(task.tokenize(model.tokenizer))
    np.testing.assert_array_equal(path_patch(model, task, "a0.h0").effect, path_patch(model, pairs, "a0.h0").effect)
    np.testing.assert_array_equal(mediation(model, task, "a0.h0").total, mediation(model, pairs, "a0.h0").total)
    with pytest.raises(PathError, match="str is neither a task nor pairs"):
        path_patch(model, "ioi", "a0.h0")


def test_senders_at_spans():
    model, pairs = small("gpt2"), random_pairs(4)
    found = path_patch(model, pairs, "a0.h[0,1]@S, a0.h0@END", "a1.h0.k@S")
    assert found.senders == ["a0.h0@S", "a0.h1@S"]  # what is written at END is not read at S
    both = path_patch(model, pairs, ["a0.h0@S"], "a1.h0.k@S").effect
    whole = path_patch(model, pairs, ["a0.h0"], "a1.h0.k@S").effect
    np.testing.assert_allclose(both, whole, atol=1e-9)


@pytest.mark.parametrize(
    ("senders", "receivers", "what", "caret"),
    [("a2.h0", "a1.h0.q", "cannot feed", "a1.h0.q"), ("a1.h0", "a1.h1.q", "cannot feed", "a1.h1.q"),
     ("a0.h9", "logits", "no node matches", "a0.h9"), ("a0.h0", "a7.h0.q", "no node matches", "a7.h0.q"),
     ("a*.h*", "a7.h0.q", "no node matches", "a7.h0.q"), ("a*.h*", "m1.q", "an MLP has no q", "m1.q"),
     ("a1.h0", ["a2.h0.q", "a0.h0.q"], "cannot feed", "a0.h0.q"), ("head 3", "logits", "two nodes", "head 3"),
     ("b0", "logits", "no node", "b0")],
)  # fmt: skip
def test_impossible_senders_and_receivers_are_pointed_at(senders, receivers, what, caret):
    with pytest.raises(PathError, match=what) as caught:
        path_patch(small("gpt2"), random_pairs(2), senders, receivers)
    lines = str(caught.value).split("\n")
    at = next(i for i, line in enumerate(lines) if set(line.strip()) == {"^"})
    assert lines[at - 1][lines[at].index("^") : len(lines[at])] == caret


def test_other_refusals():
    model, pairs = small("gpt2"), random_pairs(2)
    with pytest.raises(PathError, match=r"no path leads from a2\.h\* straight into"):
        path_patch(model, pairs, "a2.h*", "a1.h0.q")
    with pytest.raises(PathError, match=r"no path leads from a0\.h0@END straight into a1\.h0\.k@S"):
        path_patch(model, pairs, "a0.h0@END", "a1.h0.k@S")
    with pytest.raises(AddressError, match="nothing matches"):
        path_patch(model, pairs, "a0.h[7-9]", "logits")
    with pytest.raises(AddressError, match="no span 'T'"):
        path_patch(model, pairs, "a0.h0@T", "logits")
    with pytest.raises(PathError, match="'live' is no choice"):
        path_patch(model, pairs, "a0.h0", "logits", mlps="live")
    with pytest.raises(PathError, match="'first' is no choice"):
        path_patch(model, pairs, "a0.h0", "logits", semantics="first")
    with pytest.raises(PathError, match="no receivers"):
        path_patch(model, pairs, "a0.h0", [])
    with pytest.raises(MetricError, match="is no dissimilarity"):
        path_patch(model, pairs, "a0.h0", "logits", dissimilarity="logits")
    unanswered = Pairs(**{**vars(pairs), "wrong": [[], []]})
    with pytest.raises(MetricError, match="right and a wrong answer"):
        path_patch(model, unanswered, "a0.h0", "logits")


# -- linear networks ------------------------------------------------------------------------------------------------


def test_direct_and_mediated_add_up_to_the_total_in_a_linear_network():
    model, pairs = linear_model(), random_pairs(5, seed=2)
    for sender in ("a0.h1", "m0", "input", "a1.h2@S"):
        found = mediation(model, pairs, sender)
        assert np.abs(found.total).min() > 1e-3
        np.testing.assert_allclose(found.direct + found.mediated, found.total, rtol=1e-9)
        np.testing.assert_allclose(found.mediators.effect.sum(0), found.mediated, rtol=1e-9, atol=1e-12)
        direct = mediation(model, pairs, sender, mlps="direct")  # routes through MLPs alone are not mediated twice
        np.testing.assert_allclose(direct.direct + direct.mediated, direct.total, rtol=1e-9)
        np.testing.assert_allclose(direct.mediators.effect.sum(0), direct.mediated, rtol=1e-9, atol=1e-12)
        assert "m2" in found.mediators.senders and "m2" not in direct.mediators.senders
    everything = mediation(model, pairs, "input")
    np.testing.assert_allclose(everything.total, everything.mediators.total, rtol=1e-9)


def test_with_frozen_norms_they_add_up_in_a_network_that_is_linear_but_for_its_norms():
    model, pairs = linear_model(norms=True), random_pairs(5, seed=2)
    for sender in ("a0.h1", "m0", "a1.h2"):
        found = mediation(model, pairs, sender, norms="frozen")
        np.testing.assert_allclose(found.direct + found.mediated, found.total, rtol=1e-9)
        np.testing.assert_allclose(found.mediators.effect.sum(0), found.mediated, rtol=1e-9, atol=1e-12)
        recomputed = mediation(model, pairs, sender)
        assert np.abs(recomputed.direct + recomputed.mediated - recomputed.total).max() > 1e-3
    assert found.mediators.about["norms"] == "frozen"
    assert "frozen at the scale of the reference run" in found.mediators.about["method"]


def test_frozen_direct_effects_into_the_logits_are_linear_in_what_the_sender_writes():
    """Senders into the logits add up exactly once the final norm keeps its scale (direct logit attribution)."""
    model, pairs = small("gpt2"), random_pairs(4, seed=6)
    single = path_patch(model, pairs, ["a1.h0", "a2.h1", "m2"], mlps="frozen", norms="frozen").effect
    claims = ["** -> a1.h0 -> logits", "** -> a2.h1 -> logits", "** -> m2 -> logits"]
    found: dict[int, torch.Tensor] = {}
    evaluate(model, [~paths(*claims)], pairs, lambda r: found.setdefault(r.number, model.unembed(r.hidden)),
             norms="frozen")  # fmt: skip
    change = found[0] - found[-1]
    expected = [float(row[w[0]] - row[a[0]]) for row, a, w in zip(change, pairs.answers, pairs.wrong, strict=True)]
    np.testing.assert_allclose(single.sum(0), expected, rtol=1e-9)
    with pytest.raises(PathError, match="'thawed' is no choice"):
        path_patch(model, pairs, "a0.h0", "logits", norms="thawed")


def test_they_do_not_elsewhere():
    found = mediation(small("gpt2"), random_pairs(5, seed=2), "a0.h1")
    assert np.abs(found.direct + found.mediated - found.total).max() > 1e-3


def test_what_is_printed_of_a_mediation_has_intervals():
    text = str(mediation(small("gpt2"), random_pairs(6), "a1.h0"))
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(lines) == 8 and all("[" in line for line in lines)
    alone = str(mediation(small("gpt2"), random_pairs(1), "a1.h0"))
    assert "(no interval)" in alone and "nan" not in alone


def test_mediators_are_the_parts_after_the_sender():
    model = small("gpt2")
    found = mediation(model, random_pairs(3), "a1.h0")
    assert isinstance(found.mediators, SenderEffects)
    assert found.mediators.senders == ["m1", "a2.h0", "a2.h1", "m2"]
    assert "first part after the sender" in str(found.mediators)
    with pytest.raises(PathError, match="no node matches"):
        mediation(model, random_pairs(3), "a1.h7")


def test_effects_of_disjoint_sets_add_up_in_a_linear_network():
    model, pairs = linear_model(seed=4), random_pairs(4, seed=5)
    parts = [
        paths("input -> a0.* -> ** -> logits"),
        paths("input ~> logits"),
        paths("input@S -> a1.h0.v -> ** -> logits"),
    ]
    found: dict[int, torch.Tensor] = {}
    sets = [*(~one for one in parts), ~(parts[0] | parts[1] | parts[2])]
    evaluate(model, sets, pairs, lambda r: found.setdefault(r.number, model.unembed(r.hidden)))
    changes = {number: logits - found[-1] for number, logits in found.items()}
    assert all(change.abs().max() > 1e-3 for number, change in changes.items() if number != -1)
    torch.testing.assert_close(changes[0] + changes[1] + changes[2], changes[3], rtol=1e-9, atol=1e-9)
