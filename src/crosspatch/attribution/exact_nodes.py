"""What replacing nodes does, exactly: one patched forward pass a row, by the executor. The truth for node scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.ablation import Ablation, Store
from crosspatch.attribution.points import Progress
from crosspatch.attribution.setup import Setup
from crosspatch.errors import MetricError
from crosspatch.graph import ALL, Address, Site, parse_address, validate
from crosspatch.metrics import evaluate
from crosspatch.model import Edit, Row, Run, replay
from crosspatch.model.run import Key, Readout, store_key

_PAIRS = 64  # pairs whose replacements are held at once


def node_effects(
    setup: Setup,
    ablation: Ablation,
    sets: Sequence[Sequence[Address | Site | str]],
    *,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "example set"]:
    """`metric(clean) - metric(every node of a set replaced at once)`, exactly.

    Args:
        sets: addresses, for example `["a5.h1", "m3@subject"]`; a site without a position means all tokens. No two of
            a set may hold the same activation at the same token.

    Raises:
        AddressError: a site that the model does not have.
        MetricError: a position that a prompt does not have.
        InterventionError: nodes of one set that overlap.
    """
    rows = [(i, nodes) for nodes in [as_addresses(setup, each) for each in sets] for i in range(len(setup))]
    found = measure_replaced(setup, ablation, rows, budget_mib=budget_mib, progress=progress)
    return found.reshape(len(sets), len(setup)).T


def as_addresses(setup: Setup, nodes: Sequence[Address | Site | str]) -> tuple[Address, ...]:
    """Sites, addresses and names of either as addresses of this model.

    Raises:
        AddressError: one that cannot be read or does not exist.
    """
    made = [parse_address(node) if isinstance(node, str) else node for node in nodes]
    return tuple(validate(Address(a) if isinstance(a, Site) else a, setup.model.shape) for a in made)


def measure_replaced(
    setup: Setup,
    ablation: Ablation,
    rows: Sequence[tuple[int, Sequence[Address]]],
    *,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, " row"]:
    """`metric(clean) - metric(replaced)` of rows: an example, and what is replaced in it.

    Raises:
        As `node_effects`.
    """
    shape = setup.model.shape
    keys: list[Key] = list(
        dict.fromkeys(store_key(address.site, shape.n_layers) for _, nodes in rows for address in nodes)
    )
    of: dict[int, list[int]] = {}
    for number, (example, _) in enumerate(rows):
        of.setdefault(example, []).append(number)
    out = np.zeros(len(rows))
    examples, done = list(of), 0
    for lo in range(0, len(examples), _PAIRS):
        chunk = examples[lo : lo + _PAIRS]
        part = setup.select(chunk)
        base = part.record_clean(keys, budget_mib)
        replaced = ablation.store(setup, chunk, {key: base.packed(key) for key in keys})
        numbers = [number for example in chunk for number in of[example]]
        local = {example: i for i, example in enumerate(chunk)}
        edits = [Row(local[rows[n][0]], _edits(part, base, replaced, local[rows[n][0]], rows[n][1])) for n in numbers]
        clean = part.measure(base.hidden).double()
        values = _values(part, base, edits, budget_mib, done, len(rows), progress)
        out[numbers] = (clean[[row.example for row in edits]] - values).cpu().numpy()
        done += len(numbers)
    return out


def _values(
    part: Setup,
    base: Run,
    rows: list[Row],
    budget_mib: float | None,
    done: int,
    of: int,
    progress: Progress | None,
) -> Float[Tensor, " row"]:
    values = torch.zeros(len(rows), dtype=torch.float64)

    def on_read(readout: Readout) -> None:
        numbers, found = evaluate([part.metric], readout, part.targets)
        values[numbers] = found[part.metric.name].double().cpu()

    def report(work: float, total: float) -> None:
        if progress is not None:
            progress(done + len(rows) * work / total, of)

    replay(base, rows, on_read, columns=part.columns, budget_mib=budget_mib, progress=report)
    return values


def _edits(part: Setup, base: Run, replaced: Store, example: int, nodes: Sequence[Address]) -> tuple[Edit, ...]:
    """The edits of one row. Neurons of one layer are one edit, whatever their positions."""
    edits = []
    neurons: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for address in nodes:
        site, at = address.site, positions_of(part, example, address.position)
        if site.kind == "neuron":
            assert site.layer is not None
            assert site.index is not None
            neurons.setdefault(site.layer, []).append((site.index, at))
            continue
        value = replaced[store_key(site, part.model.shape.n_layers)][[base.offset[example] + p for p in at]]
        edits.append(Edit(site, at, value if site.index is None else value[:, site.index]))
    for layer, members in neurons.items():
        kept = _that_matter(part, example, layer)
        spots = [(p, index) for index, at in members for p in at if p in kept]
        if not spots:
            continue
        positions = tuple(sorted({p for p, _ in spots}))
        value = replaced[(layer, "mlp_act")][[base.offset[example] + p for p in positions]]
        edits.append(Edit(Site("mlp_act", layer), positions, _put_neurons(spots, positions, value)))
    return tuple(edits)


def _that_matter(part: Setup, example: int, layer: int) -> set[int]:
    """Tokens whose MLP in this layer a read depends on. The executor leaves out edits at others, and a function of the
    present value cannot tell which rows it was given."""
    read, shape = part.read[example], part.model.shape
    if layer == shape.n_layers - 1:
        return set(read)
    return set(range(max(read) + 1 if shape.causal else len(part.clean[example])))


def _put_neurons(
    spots: list[tuple[int, int]], positions: tuple[int, ...], value: Float[Tensor, "position d_mlp"]
) -> Callable[[Tensor], Tensor]:
    """A function that gives some neurons, each at some positions, their replacement."""
    row = {p: i for i, p in enumerate(positions)}
    rows, columns = [row[p] for p, _ in spots], [index for _, index in spots]

    def put(present: Tensor) -> Tensor:
        assert len(present) == len(positions)
        present[rows, columns] = value[rows, columns].to(present)
        return present

    return put


def positions_of(setup: Setup, example: int, position: int | str) -> tuple[int, ...]:
    """Tokens of one clean prompt that a position names.

    Raises:
        MetricError: the prompt has no such span or token.
    """
    length, spans = len(setup.clean[example]), setup.spans[example]
    if position == ALL:
        return tuple(range(length))
    if isinstance(position, str) and position in spans:
        return tuple(range(*spans[position]))
    if isinstance(position, int) and -length <= position < length:
        return (position % length,)
    raise MetricError(
        f"example {example} has no {'token' if isinstance(position, int) else 'span'} {position!r}",
        where="positions",
        fix=f"it has {length} tokens and the spans {', '.join(spans)}",
    )
