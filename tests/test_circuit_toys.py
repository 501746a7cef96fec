"""Exact patching shows the true effects of the networks that break approximations."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from circuit_toys import TOYS
from ground_truth import through

from crosspatch.graph import Site, edge_table, parse_site
from crosspatch.model import Edit, FromRun, Model, Row, Run, check, record, replay
from crosspatch.paths import evaluate, task_pairs
from crosspatch.tasks.tokenize import TokenizedTask


@lru_cache
def parts(name: str) -> tuple[Model, TokenizedTask]:
    model = TOYS[name].build()
    return model, TOYS[name].task(4).tokenize(model.tokenizer)


def logit_diff(model: Model, logits: torch.Tensor) -> np.ndarray:
    yes, no = (model.tokenizer(word)["input_ids"][0] for word in ("yes", "no"))
    return (logits[:, yes] - logits[:, no]).double().numpy()


def effects(name: str, base: Run, source: Run, groups: list[tuple[Site, ...]]) -> np.ndarray:
    """Change of the logit difference when some sites take the other run's values, `[group, example]`."""
    model = parts(name)[0]
    rows = [
        Row(i, tuple(Edit(site, tuple(range(len(ids))), FromRun(source, i)) for site in group))
        for group in groups
        for i, ids in enumerate(base.tokens)
    ]
    out = np.zeros(len(rows))

    def keep(readout) -> None:
        out[readout.row.numpy()] = logit_diff(model, readout.logits)

    replay(base, rows, keep)
    return out.reshape(len(groups), -1) - logit_diff(model, base.logits())


def node_sites(model: Model) -> list[Site]:
    """Every node and every head's input."""
    table = edge_table(model.shape)
    return [*table.senders, *(site for site in table.receivers if site.kind in ("q", "k", "v"))]


@pytest.mark.parametrize("name", TOYS)
def test_the_network_answers(name: str) -> None:
    model, task = parts(name)
    assert check(model).passed
    clean, corrupt = (logit_diff(model, record(model, task.ids(side)).logits()) for side in ("clean", "corrupt"))
    np.testing.assert_allclose(clean, 3, atol=1e-5)
    np.testing.assert_allclose(corrupt, -3, atol=1e-5)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("name", TOYS)
def test_exact_node_effects(name: str, direction: str) -> None:
    """Of every node and every head's input, in every example; what is not listed has none."""
    model, task = parts(name)
    toy, sites = TOYS[name], node_sites(model)
    clean, corrupt = record(model, task.clean), record(model, task.corrupt)
    if direction == "noise":
        found = -effects(name, clean, corrupt, [(site,) for site in sites])
    else:
        found = effects(name, corrupt, clean, [(site,) for site in sites])
    listed = getattr(toy, direction)
    assert set(listed) <= {str(site) for site in sites}
    for site, values in zip(sites, found, strict=True):
        np.testing.assert_allclose(values, listed.get(str(site), 0), atol=1e-4, err_msg=str(site))


@pytest.mark.parametrize("name", TOYS)
def test_exact_edge_effects(name: str) -> None:
    model, task = parts(name)
    names = edge_table(model.shape).names()
    found: dict[int, np.ndarray] = {}

    def keep(readout) -> None:
        found[readout.number] = logit_diff(model, model.unembed(readout.hidden))

    evaluate(model, [~through(edge) for edge in names], task_pairs(task), keep)
    assert set(TOYS[name].edges) <= set(names)
    for number, edge in enumerate(names):
        np.testing.assert_allclose(found[-1] - found[number], TOYS[name].edges.get(edge, 0), atol=1e-4, err_msg=edge)


@pytest.mark.parametrize("name", [name for name, toy in TOYS.items() if toy.together])
def test_several_nodes_at_once(name: str) -> None:
    model, task = parts(name)
    clean, corrupt = record(model, task.clean), record(model, task.corrupt)
    groups = TOYS[name].together
    found = -effects(name, clean, corrupt, [tuple(map(parse_site, group)) for group in groups])
    for group, values in zip(groups, found, strict=True):
        np.testing.assert_allclose(values, groups[group], atol=1e-4)


def gradients(name: str) -> dict[str, np.ndarray]:
    """AtP of head outputs, by hooks: gradient of the clean logit difference times what the corrupt run changes."""
    model, task = parts(name)
    z: dict[str, dict[int, torch.Tensor]] = {"clean": {}, "corrupt": {}}
    hooks = []
    side = "clean"
    for layer, block in enumerate(model.anatomy.blocks):

        def keep(module, args, layer=layer) -> None:
            args[0].requires_grad_(True).retain_grad()
            z[side][layer] = args[0]

        hooks.append(block.o_proj.register_forward_pre_hook(keep))
    try:
        side = "corrupt"
        model.hf(torch.tensor(task.corrupt))
        side = "clean"
        logits = model.hf(torch.tensor(task.clean)).logits[:, -1]
    finally:
        for hook in hooks:
            hook.remove()
    yes, no = (model.tokenizer(word)["input_ids"][0] for word in ("yes", "no"))
    (logits[:, yes] - logits[:, no]).sum().backward()
    out = {}
    for layer, clean in z["clean"].items():
        part = (clean.grad * (clean - z["corrupt"][layer])).sum(1).unflatten(-1, (model.shape.n_heads, -1)).sum(-1)
        out |= {f"a{layer}.h{head}": part[:, head].detach().numpy() for head in range(model.shape.n_heads)}
    model.hf.zero_grad()
    return out


@pytest.mark.parametrize(("name", "node", "atp"), [("saturated", "a0.h0", 0), ("cancelling", "a0.h0", 0),
                                                   ("or", "a0.h0", 0), ("or", "a0.h1", 0)])  # fmt: skip
def test_a_gradient_misses_them(name: str, node: str, atp: float) -> None:
    """What makes them worth having: first-order scores at the clean run are zero."""
    np.testing.assert_allclose(gradients(name)[node], atp, atol=1e-6)
    assert TOYS[name].noise.get(node, TOYS[name].denoise[node]) == 6
