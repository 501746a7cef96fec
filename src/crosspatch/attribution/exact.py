"""What cutting single edges does, exactly: the truth for edge scores.

Nothing before an edge's receiver changes when the edge is cut, so that a pass begins at the receiver: its stream is the
clean run's and one change, of which one head's query, key or value, or one MLP's output, is made anew. All senders of
a receiver are on the batch axis. An edge into the logits costs no pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosspatch.attribution.ablation import Ablation, AblationName, resolve_ablation
from crosspatch.attribution.recorded import Recorded, Tokens, pack_tokens, record_pairs
from crosspatch.attribution.setup import Setup
from crosspatch.attribution.slots import Projection, attend_heads
from crosspatch.errors import InterventionError
from crosspatch.graph import ALL, EdgeTable, edge_table
from crosspatch.model.activation import one_kernel
from crosspatch.model.attention import attend, capturing, query_key_value
from crosspatch.model.project import Slot, head_write

MIB = 2**20
WIDEST_MIB = 4.0
"""Hidden neurons that are held at once."""
Progress = Callable[[float, float], None]
Job = tuple[int, int, int]  # sender, receiver, number of the span or 0
Rows = Float[Tensor, "row token d_model"]


@torch.no_grad()
def exact_edges(
    setup: Setup,
    edges: Sequence[int] | None = None,
    ablation: AblationName | Ablation = "paired",
    *,
    spans: Sequence[str] = (),
    recorded: Recorded | None = None,
    budget_mib: float = 512.0,
    progress: Progress | None = None,
) -> Float[np.ndarray, "example edge *span"]:
    """`metric(clean) - metric(one edge cut)` of every pair: the receiver reads the sender's replacement.

    Args:
        edges: by number (`edge_table(model.shape)`); None = all of them.
        ablation: what replaces.
        spans: cut an edge at the tokens of one span only, once for each (`"*"`: all tokens). The result then has an
            axis for them.
        recorded: both plain runs of these very pairs (`record_pairs`), to save running them again.
        budget_mib: memory for what is computed, beside `recorded`.
        progress: called with (rows done, rows in all).

    Raises:
        InterventionError: see `resolve_ablation`; an unknown edge or span; runs of other pairs.
    """
    chosen = resolve_ablation(ablation, setup) if recorded is None else recorded.require(setup, ablation)
    table = edge_table(setup.model.shape)
    jobs = _jobs(table, edges, max(1, len(spans)))
    for i, named in enumerate(setup.spans):
        missing = [name for name in spans if name != ALL and name not in named]
        if missing:
            raise InterventionError(
                f"example {i} has no span {missing[0]!r}", where="spans", fix=f"it has {', '.join(named)}"
            )
    out = np.zeros((len(setup), len(jobs)))
    order = sorted(range(len(jobs)), key=lambda j: (jobs[j][1], jobs[j][2], jobs[j][0]))
    n_pairs = _pairs_at_once(setup, jobs, budget_mib, recorded is None)
    done = 0
    for examples in setup.chunks(n_pairs):
        runs = recorded if recorded is not None else record_pairs(setup, chosen, examples)
        tokens = pack_tokens(runs, examples if recorded is not None else range(len(examples)))
        where = [runs.examples[pair] for pair in tokens.pairs]
        if where:
            walk = _Walk(tokens, table, {u for u, _, _ in jobs}, [(name, i) for i, name in enumerate(spans)])
            clean = setup.measure(_clean_reads(tokens), where).double().cpu().numpy()
            step = max(1, int(0.5 * budget_mib * MIB / _row_bytes(setup, len(tokens.index))))
            for at in range(0, len(order), step):
                chunk = order[at : at + step]
                hidden = tokens.reads(walk.run([jobs[j] for j in chunk]))
                values = setup.measure(hidden.flatten(0, 1), where * len(chunk)).double().cpu().numpy()
                out[np.ix_(where, chunk)] = clean[:, None] - values.reshape(len(chunk), len(where)).T
                if progress is not None:
                    progress(done + min(at + step, len(order)) * len(examples), len(jobs) * len(setup))
        done += len(jobs) * len(examples)
        if progress is not None:
            progress(done, len(jobs) * len(setup))
    return out.reshape(len(setup), -1, len(spans)) if spans else out


def _jobs(table: EdgeTable, edges: Sequence[int] | None, n_spans: int) -> list[Job]:
    numbers = np.arange(len(table)) if edges is None else np.asarray(edges, dtype=int)
    wrong = numbers[(numbers < 0) | (numbers >= len(table))]
    if len(wrong):
        raise InterventionError(
            f"there is no edge {wrong[0]}", where="exact_edges", fix=f"this model's are numbered 0 to {len(table) - 1}"
        )
    ends = np.cumsum(table.reach)
    receivers = np.searchsorted(ends, numbers, side="right")
    senders = numbers - (ends - table.reach)[receivers]
    pairs = zip(senders.tolist(), receivers.tolist(), strict=True)
    return [(u, v, span) for u, v in pairs for span in range(n_spans)]


def _row_bytes(setup: Setup, n_tokens: int) -> int:
    shape = setup.model.shape
    widest = max(2 * (shape.n_heads + shape.n_kv_heads) * shape.d_head, 3 * (shape.d_mlp or 4 * shape.d_model))
    return n_tokens * (4 * shape.d_model + widest) * (torch.finfo(setup.model.dtype).bits // 8)


def _pairs_at_once(setup: Setup, jobs: list[Job], budget_mib: float, recording: bool) -> int:
    """How many pairs leave room for the changes of all senders, and for as many rows again."""
    shape = setup.model.shape
    senders = len({u for u, _, _ in jobs})
    numbers = (senders + 8) * shape.d_model
    numbers += 2 * shape.n_layers * (5 * shape.d_model + 4 * shape.n_heads * shape.d_head) if recording else 0
    longest = max(map(len, setup.clean))
    size = torch.finfo(setup.model.dtype).bits // 8
    return max(1, int(0.4 * budget_mib * MIB / (numbers * size * longest)))


def _clean_reads(tokens: Tokens) -> Float[Tensor, "read d_model"]:
    run = tokens.recorded.clean
    return torch.cat([run.hidden[run.read_offset[pair] : run.read_offset[pair + 1]] for pair in tokens.pairs])


class _Walk:
    """Rows that begin where their edge's receiver is, through the rest of the model.

    Args:
        senders: those whose edges are cut.
        spans: (name, number).
    """

    def __init__(self, tokens: Tokens, table: EdgeTable, senders: set[int], spans: Sequence[tuple[str, int]]) -> None:
        self.tokens, self.table = tokens, table
        self.model = tokens.recorded.setup.model
        self.shape = self.model.shape
        self.last = self.shape.n_layers - 1
        self.inside = [self._inside(name) for name, _ in spans]
        self.column = {sender: i for i, sender in enumerate(sorted(senders))}
        self.changes = self._changes()
        self.tables: dict[int, dict[int, Any]] = {}  # rotary tables, by number of rows

    def _inside(self, name: str) -> Bool[Tensor, "token 1"] | None:
        if name == ALL:
            return None
        spans = self.tokens.recorded.setup.spans
        inside = [spans[pair][name][0] <= p < spans[pair][name][1] for pair, p in self.tokens.spots]
        return torch.tensor(inside, device=self.model.device)[:, None]

    def _changes(self) -> Float[Tensor, "sender token d_model"]:
        """What cutting each sender changes in the residual stream."""
        tokens, senders = self.tokens, self.table.senders
        found = torch.empty(
            len(self.column), len(tokens.index), self.shape.d_model, dtype=self.model.dtype, device=self.model.device
        )
        for number, i in self.column.items():
            site = senders[number]
            layer, kind = (0, "resid_pre") if site.kind == "input" else (site.layer or 0, site.kind)
            change = tokens.cut(layer, kind) - tokens.clean(layer, kind)
            if site.kind == "z":
                change = head_write(self.model, layer, site.index or 0, change[:, site.index or 0])
                block = self.model.anatomy.blocks[layer]
                if block.post_norm:  # all other heads stay as they are
                    out = block.o_proj(tokens.clean(layer, "z").flatten(1)[None])[0]
                    both = block.norm_attn_out(torch.stack([out, out + change]))
                    change = both[1] - both[0]
            found[i] = change
        return found

    def run(self, jobs: list[Job]) -> Float[Tensor, "row read d_model"]:
        """Final-norm outputs at the tokens that are read, in the order of the jobs."""
        blocks, model = self.model.anatomy.blocks, self.model
        by_layer: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        ends: list[int] = []
        for row, (_, receiver, _) in enumerate(jobs):
            site = self.table.receivers[receiver]
            if site.kind == "logits":
                ends.append(row)
            else:
                by_layer[site.layer or 0][site.kind == "mlp_out"].append(row)
        order: list[int] = []
        x = self.changes.new_empty(0, len(self.tokens.index), self.shape.d_model)
        with capturing([b.attn for b in blocks]), one_kernel([b.mlp for b in blocks]):
            for layer in range(min(by_layer, default=self.shape.n_layers), self.shape.n_layers):
                heads, mlps = by_layer[layer]
                x = self._block(layer, x, [jobs[row] for row in heads], [jobs[row] for row in mlps])
                order += heads + mlps
        if x.shape[1] == len(self.tokens.index):  # no row began before the logits
            x = x[:, self.tokens.tail]
        if ends:
            clean = self.tokens.clean(self.last, "resid_post")
            fresh = self._cut_streams(clean, [jobs[row][::2] for row in ends], self.tokens.tail)
            x, order = torch.cat([x, fresh]), order + ends
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return model.anatomy.final_norm(x[back.to(x.device)])

    def _cut_streams(self, clean: Tensor, cuts: Sequence[tuple[int, int]], here: Any = slice(None)) -> Rows:
        """A clean stream in which one sender is replaced, at the tokens of one span, for each (sender, span)."""
        change = self.changes[[self.column[sender] for sender, _ in cuts]]
        for i, (_, span) in enumerate(cuts):
            inside = self.inside[span] if self.inside else None
            if inside is not None:
                change[i] *= inside
        return clean[here] + change[:, here]

    def _block(self, layer: int, x: Rows, heads: list[Job], mlps: list[Job]) -> Rows:
        """One block for rows that are under way, and for those that begin in it."""
        tokens, parallel = self.tokens, self.shape.parallel
        here = slice(None) if layer < self.last else tokens.tail  # after the last attention reads are enough
        after = (layer + 1, "resid_pre") if layer < self.last else (layer, "resid_post")
        end = tokens.clean(*after)[here]
        parts = []
        if len(x):
            mid = self._attention(layer, x)
            parts.append(mid if not parallel else mid + self._mlp(layer, x[:, here]))
        if heads:
            parts.append(self._from_heads(layer, heads, end, here))
        x = torch.cat(parts) if parts else x[:, here]
        if self.shape.has_mlp and not parallel and len(x):
            x = x + self._mlp(layer, x)
        if mlps:
            clean = tokens.clean(layer, "resid_pre" if parallel else "resid_mid")
            streams = self._cut_streams(clean, [(u, span) for u, _, span in mlps], here)
            x = torch.cat([x, self._mlp(layer, streams) + (end - tokens.clean(layer, "mlp_out")[here])])
        return x

    def _attention(self, layer: int, x: Rows) -> Rows:
        """The stream after attention, of the last layer at the tokens that are read."""
        block, n, size = self.model.anatomy.blocks[layer], len(x), len(self.tokens.index)
        kwargs = self.model.attention_kwargs(layer, self.tokens.positions.repeat(n), self.tables.setdefault(n, {}))
        h = block.norm_attn_in(x.flatten(0, 1)[None])[0]
        q, k, v, rule = query_key_value(block.attn, h, kwargs)
        q, k, v = (value.unflatten(0, (n, size)) for value in (q, k, v))
        if layer == self.last:
            q, x = q[:, self.tokens.tail], x[:, self.tokens.tail]
        z = torch.empty_like(q)
        queries = keys = 0
        for group in self.tokens.groups:
            pairs, length = len(group.pairs), group.end - group.first
            at = group.read if layer == self.last else tuple(range(group.first, group.end))
            mine, theirs = slice(queries, queries + pairs * len(at)), slice(keys, keys + pairs * length)
            queries, keys = mine.stop, theirs.stop
            both = [value[:, theirs].reshape(n * pairs, length, *value.shape[2:]) for value in (k, v)]
            if group.first:
                for i, kind in enumerate("kv"):
                    both[i] = torch.cat([self.tokens.before(layer, kind, group).repeat(n, 1, 1, 1), both[i]], 1)
            own = q[:, mine].reshape(n * pairs, len(at), *q.shape[2:])
            z[:, mine] = attend(own, both[0], both[1], at, rule).reshape(n, pairs * len(at), *q.shape[2:])
        return x + block.norm_attn_out(block.o_proj(z.flatten(0, 1).flatten(1)[None]))[0].view(x.shape)

    def _mlp(self, layer: int, x: Rows) -> Rows:
        """What the MLP writes, some rows at a time: large activations would be fresh memory each time."""
        block = self.model.anatomy.blocks[layer]
        assert block.mlp is not None
        norm = block.norm_attn_in if block.shared_norm else block.norm_mlp_in
        made = torch.empty_like(x)
        size = x.shape[1] * (self.shape.d_mlp or 4 * self.shape.d_model) * x.element_size()
        for part, into in zip(*(value.split(max(1, int(WIDEST_MIB * MIB / size))) for value in (x, made)), strict=True):
            out = block.mlp(norm(part.flatten(0, 1)[None]))
            into.copy_(block.norm_mlp_out(out[0] if isinstance(out, tuple) else out).view(part.shape))
        return made

    def _from_heads(self, layer: int, jobs: list[Job], end: Tensor, here: Any) -> Rows:
        """Rows that begin at a query, key or value: the stream after attention (after the block, where it is parallel
        or attention only)."""
        tokens, block = self.tokens, self.model.anatomy.blocks[layer]
        made, items = self._ports(layer, jobs)
        plain = {kind: tokens.clean(layer, kind) for kind in ("q", "k", "v", "z")}
        groups = [self.shape.group_of(head) for _, head in items]
        slots = [self._slot(receiver) for _, receiver, _ in jobs]

        def of(kind: str, row: int, index: int) -> Tensor:
            return made[row] if slots[row][0] == kind else plain[kind][:, index]

        q = torch.stack([of("q", row, head)[here] for row, head in items])
        k, v = (
            torch.stack([of(kind, row, group) for (row, _), group in zip(items, groups, strict=True)]) for kind in "kv"
        )
        z = attend_heads(tokens, layer, self.model.attention_rule(layer), q, k, v, groups)
        clean = plain["z"][here]
        if block.post_norm:
            mixed = clean.expand(len(jobs), *clean.shape).clone()
            for (row, head), value in zip(items, z, strict=True):
                mixed[row, :, head] = value
            out = block.norm_attn_out(block.o_proj(mixed.flatten(2).flatten(0, 1)[None]))[0]
            return tokens.clean(layer, "resid_pre")[here] + out.view(len(jobs), -1, self.shape.d_model)
        start = tokens.clean(layer, "resid_mid")[here] if self.shape.has_resid_mid else end
        x = start.expand(len(jobs), *start.shape).clone()
        by_head: dict[int, list[int]] = defaultdict(list)
        for item, (_, head) in enumerate(items):
            by_head[head].append(item)
        for head, some in by_head.items():
            rows = torch.tensor([items[item][0] for item in some], device=x.device)
            x.index_add_(0, rows, head_write(self.model, layer, head, z[some] - clean[:, head]))
        return x

    def _slot(self, receiver: int) -> Slot:
        site = self.table.receivers[receiver]
        return site.kind, site.index or 0

    def _ports(self, layer: int, jobs: list[Job]) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """(each job's query, key or value; the (job, head) whose outputs change)."""
        clean, block = self.tokens.clean(layer, "resid_pre"), self.model.anatomy.blocks[layer]
        streams = {key: i for i, key in enumerate(dict.fromkeys((u, span) for u, _, span in jobs))}
        readers: dict[int, list[Slot]] = defaultdict(list)
        for u, receiver, span in jobs:
            if self._slot(receiver) not in readers[streams[(u, span)]]:
                readers[streams[(u, span)]].append(self._slot(receiver))
        projection = Projection(self.model, layer, readers, self.tokens.positions)
        for tile in _tiles(list(streams), max(1, len(jobs) // 4)):
            projection.add([streams[key] for key in tile], block.norm_attn_in(self._cut_streams(clean, tile)))
        values = projection.values()
        made = [values[(self._slot(receiver), streams[(u, span)])] for u, receiver, span in jobs]
        items = []
        for row, (_, receiver, _) in enumerate(jobs):
            kind, index = self._slot(receiver)
            items += [(row, head) for head in (self.shape.heads_of(index) if kind != "q" else [index])]
        return made, items


def _tiles(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    yield from (items[at : at + size] for at in range(0, len(items), size))
