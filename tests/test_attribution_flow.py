"""Blocked attention against the model's own masks, and information flow against the stream itself."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from attribution_setups import family_setup
from circuit_toys import TOYS

from crosspatch.attribution.ablation import sender_keys
from crosspatch.attribution.ifr import _importance, _written, flow_scores
from crosspatch.attribution.knockout import knockout, windows_of
from crosspatch.attribution.setup import setup_of
from crosspatch.errors import InterventionError, MetricError
from crosspatch.graph import Site, edge_table
from crosspatch.model import Blocked, Edit, Row, replay


def by_mask(setup, example, source, target, layers):
    """The metric of one example with the mask that the model's attention modules are given in some layers changed."""
    ids, spans = setup.clean[example], setup.spans[example]
    n = len(ids)
    mask = torch.zeros(n, n, dtype=torch.float64).masked_fill(torch.ones(n, n).triu(1) > 0, -torch.inf)
    for query in range(*spans[target]):
        for key in range(*spans[source]):
            if key != query:
                mask[query, key] = -torch.inf

    def hide(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask[None, None]}

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            module = setup.model.anatomy.blocks[layer].attn
            stack.callback(module.register_forward_pre_hook(hide, with_kwargs=True).remove)
        logits = setup.model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    answer, wrong = int(setup.targets.answers[example, 0]), int(setup.targets.wrong[example, 0])
    return float(logits[answer] - logits[wrong])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "olmo2"])
@pytest.mark.parametrize(
    ("source", "target", "window"), [("first", "END", 1), ("first", "rest", 2), ("rest", "rest", 9)]
)
def test_blocked_attention_is_that_of_a_changed_mask(family, source, target, window):
    setup = family_setup(family)
    found = knockout(setup, source, target, window=window)
    plain = [by_mask(setup, i, source, target, []) for i in range(len(setup))]
    np.testing.assert_allclose(found.clean, plain, rtol=1e-9)
    for w, (first, last) in enumerate(found.windows):
        wanted = [by_mask(setup, i, source, target, range(first, last)) for i in range(len(setup))]
        np.testing.assert_allclose(found.effects[:, w], np.array(plain) - wanted, rtol=1e-7, atol=1e-9)
    assert np.abs(found.mean).max() > 1e-3


def test_soft_caps_and_windows_are_kept():
    """Gemma 2 sees four tokens back in even layers: blocking what is further away does nothing there."""
    setup = family_setup("gemma2").select([0, 1, 3])
    found = knockout(setup, 0, "END")
    assert np.abs(found.effects[:, [0, 2]]).max() < 1e-12
    assert np.abs(found.effects[:, 1]).min() > 0


def test_saturated_attention_finds_its_second_choice():
    """x1 is hidden from the head that looks at nothing else: it turns to what is left, and reads a zero there."""
    toy = TOYS["cancelling"]
    setup = setup_of(toy.build(), toy.task(4))
    found = knockout(setup, "x", "END", heads=[(0, 0)])
    np.testing.assert_allclose(found.effects, np.tile([6.0, 0.0], (4, 1)), atol=1e-4)
    np.testing.assert_allclose(knockout(setup, "y", "END").effects, 0, atol=1e-4)


def test_a_query_without_keys_gives_nothing():
    setup = family_setup("gpt2")
    base = setup.record_clean()
    length = len(setup.clean[0])
    blind = Edit(Site("pattern", 1, 2), (length - 1,), Blocked(tuple(range(length))))
    zero = Edit(Site("z", 1, 2), (length - 1,), torch.zeros(16, dtype=torch.float64))
    seen: dict[int, torch.Tensor] = {}
    replay(base, [Row(0, (blind,)), Row(0, (zero,))], lambda out: seen.update(zip(out.row.tolist(), out.logits)))  # noqa: B905
    torch.testing.assert_close(seen[0], seen[1])
    assert not torch.equal(seen[0], base.logits()[0])
    with pytest.raises(InterventionError, match="pattern"):
        replay(base, [Row(0, (Edit(Site("z", 1, 2), (0,), Blocked((0,))),))], lambda out: None)


def test_effects_depend_neither_on_order_nor_on_batches():
    setup = family_setup("llama")
    plain = knockout(setup, "*", "END", window=2).effects
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(knockout(setup.select(order), "*", "END", window=2).effects, plain[order], atol=1e-9)
    np.testing.assert_allclose(knockout(setup, "*", "END", window=2, budget_mib=0.01).effects, plain, atol=1e-9)


def test_windows_and_what_is_refused():
    setup = family_setup("gpt2")
    assert windows_of(setup.model.shape, 2) == ((0, 2), (1, 3), (2, 3))
    assert windows_of(setup.model.shape, 3, [1]) == ((0, 3),)
    with pytest.raises(InterventionError, match="layer 5"):
        knockout(setup, "first", layers=[5])
    with pytest.raises(InterventionError, match="no token"):
        knockout(setup, "END", "first")
    with pytest.raises(InterventionError, match="head"):
        knockout(setup, "first", heads=[(0, 9)])
    with pytest.raises(MetricError, match="no span"):
        knockout(setup, "verb")


def test_importance_by_hand():
    x = torch.tensor([[3.0, 1.0], [2.0, 0.0]])
    parts = torch.tensor([[[3.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, -1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # |x| = 4: without the parts 1, 3, 4 are left. |x| = 2: without the parts (1, -1) -> 2, (1, 1) -> 2 and 2 are left.
    torch.testing.assert_close(_importance(x, parts), torch.tensor([[0.75, 0.0], [0.25, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_parts_of_senders_add_up_to_the_stream(family):
    setup = family_setup(family)
    shape = setup.model.shape
    last = (shape.n_layers - 1, "resid_post")
    run = setup.record_clean([*sender_keys(shape), last])
    parts = _written(setup.model, {key: run.packed(key) for key in [*sender_keys(shape), last]})
    torch.testing.assert_close(parts.sum(0), run.packed(last), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "shortformer"])
def test_flow_into_each_receiver_adds_up_to_one(family):
    setup = family_setup(family)
    table = edge_table(setup.model.shape)
    found = flow_scores(setup, spans=["first", "END"])
    assert found.min() >= 0
    np.testing.assert_allclose(table.matrix(found).sum(-2), 1.0, atol=1e-9)
    apart = flow_scores(setup.select([3, 1]), spans=["END"], budget_mib=0.01)
    np.testing.assert_allclose(apart[:, 0], found[[3, 1], 1], atol=1e-12)
