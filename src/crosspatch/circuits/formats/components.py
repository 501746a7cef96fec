"""A circuit of heads and MLPs as an attribution graph, so that the public pages for feature graphs show it.

Every part is a feature node of its layer: heads are features 0, 1, ..., the MLP the one after. All stand in the column
of the last token, because a circuit without spans says nothing about positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.formats.attribution_graph import (
    FEATURE,
    LOGIT,
    TOKEN,
    AttributionGraph,
    GraphNode,
    Link,
    cantor,
)
from crosspatch.circuits.ranking import checked_scores
from crosspatch.circuits.reading import EDITED, expect
from crosspatch.errors import AddressError, CircuitError

ABOUT = "crosspatch"
"""Key of what our own files say beyond the format's."""


def component_graph(
    circuit: Circuit,
    scores: Float[np.ndarray, " edge"] | None = None,
    *,
    prompt_tokens: Sequence[str],
    output: str,
    output_id: int = 0,
    probability: float = 0.0,
    labels: Mapping[str, str] | None = None,
    slug: str = "circuit",
) -> AttributionGraph:
    """A circuit as an attribution graph.

    The edges between two parts, into query, key and value, are one link whose weight is their sum; `ports` in it keeps
    them apart.

    Args:
        scores: of all edges, by number: the weights; 1 for each edge when None.
        prompt_tokens: the prompt, for the page.
        output, output_id, probability: the token that the logits node stands for.
        labels: name of a part -> what it does (`a9.h9` -> "name mover").

    Raises:
        CircuitError: a circuit with spans, an empty prompt, or a kept edge without a score.
    """
    if circuit.spans:
        raise CircuitError("parts by span have no one column", where=circuit.name or "circuit", fix="use any_span()")
    if not prompt_tokens:
        raise CircuitError("the prompt is empty", where="prompt_tokens", fix="give its tokens as text")
    table, last = circuit.table, len(prompt_tokens) - 1
    values = np.ones(len(table)) if scores is None else checked_scores(scores, circuit.shape)
    weight = table.matrix(values, np.nan)
    keep = circuit.keep
    if np.isnan(weight[keep]).any():
        raise CircuitError("a kept edge has no score", where=circuit.name or "circuit", fix="score every kept edge")
    name_of, top = _node_ids(circuit, last, output_id), str(circuit.shape.n_layers + 1)
    ports: dict[tuple[str, str], dict[str, float]] = {}
    for v, u in np.argwhere(keep.T):
        for target in circuit.readers(int(v)):
            key = (name_of[str(table.senders[u])], name_of[target])
            ports.setdefault(key, {})[str(table.receivers[v])] = float(weight[u, v])
    shown = {end for link in ports for end in link}
    nodes = []
    for site in table.senders:
        name = str(site)
        if name_of[name] not in shown:
            continue
        label = (labels or {}).get(name, "")
        clerp = f"{name}: {label}" if label else name
        if site.kind == "input":
            nodes.append(GraphNode(name_of[name], "E", last, TOKEN, last, f"E_0-{last}", clerp))
        else:
            layer, index = site.layer or 0, _index(name, circuit)
            nodes.append(GraphNode(name_of[name], str(layer), last, FEATURE, cantor(layer, index),
                                   f"{layer}_{index}-0", clerp))  # fmt: skip
    clerp = f'Output "{output}" (p={probability:.3f})'
    nodes.append(GraphNode(name_of["logits"], top, last, LOGIT, output_id, f"L_{output_id}-{last}", clerp,
                           float(probability), True))  # fmt: skip
    links = [Link(*ends, sum(found.values()), {"ports": found}) for ends, found in ports.items()]
    metadata = {"slug": slug, "scan": ABOUT, "transcoder_list": [], "prompt_tokens": list(prompt_tokens),
                "prompt": "".join(prompt_tokens), "node_threshold": None, "schema_version": 1,
                ABOUT: {**circuit.with_(keep=np.zeros_like(keep)).to_json(), "scored": scores is not None}}  # fmt: skip
    q_params = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return AttributionGraph(metadata, tuple(nodes), tuple(links), q_params)


def component_circuit(
    graph: AttributionGraph, where: str = "graph"
) -> tuple[Circuit, Float[np.ndarray, " edge"] | None]:
    """The circuit that `component_graph` wrote, and its scores (NaN for edges that are not in it), if it had any.

    Raises:
        CircuitError: a graph of features, or an edited one; names the place.
    """
    about, logits = graph.metadata.get(ABOUT), [node for node in graph.nodes if node.kind == "logit"]
    if not isinstance(about, dict) or len(logits) != 1:
        what = "has no parts of a model: its nodes are features"
        raise CircuitError(what, where=where, fix="only graphs made by component_graph are circuits of parts")
    bare = {key: value for key, value in about.items() if key != "scored"}
    circuit = Circuit.from_json(bare, f"{where}, metadata, {ABOUT}")
    ids = _node_ids(circuit, logits[0].ctx_idx, logits[0].feature or 0)
    name_of = {node: name for name, node in ids.items()}
    table, keep = circuit.table, circuit.cube[..., 0].copy()
    weight = np.full(keep.shape, np.nan)
    for i, link in enumerate(graph.links):
        here = f"{where}, links, {i}"
        for port, value in expect(link.extra.get("ports"), dict, here).items():
            try:
                u, v = table.parse(f"{name_of.get(link.source, link.source)}->{port}")
            except AddressError as error:
                raise CircuitError(f"is no edge of this model ({error.what})", where=here, fix=EDITED) from error
            keep[u, v], weight[u, v] = True, expect(value, float, here)
    scored = expect(about.get("scored", False), bool, f"{where}, metadata, {ABOUT}, scored")
    if circuit.spans:
        raise CircuitError("a circuit with spans", where=where, fix=EDITED)
    return circuit.with_(keep=keep), table.flat(weight) if scored else None


def _index(name: str, circuit: Circuit) -> int:
    """The feature number of a part in its layer."""
    return circuit.shape.n_heads if name[0] == "m" else int(name.partition(".h")[2])


def _node_ids(circuit: Circuit, last: int, output_id: int) -> dict[str, str]:
    """Node identifiers by the name of a part."""
    found = {"input": f"E_0_{last}", "logits": f"{circuit.shape.n_layers + 1}_{output_id}_{last}"}
    for site in circuit.table.senders[1:]:
        found[str(site)] = f"{site.layer}_{_index(str(site), circuit)}_{last}"
    return found
