"""The slow oracle of path patching: literal treeify, one copy of every node for every path suffix.

It shares nothing with the package but the modules of the model: which paths a pattern holds is decided by a regular
expression over the path written out, and every copy of every node is computed anew, position by position.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosspatch.model import Model
from crosspatch.model.attention import capturing, query_key_value

Member = Callable[[str], bool]
Names = dict[str, list[int]]  # span -> positions


def as_regex(pattern: str, shape, names: Names) -> Member:
    """Whether a path such as ``input@0;a0.h1.v@0>2;m1.x@2>2;logits@2`` matches a pattern."""
    parts = re.split(r"\s*(->|~>)\s*", pattern.strip())
    hops, links = parts[::2], parts[1::2]
    mlp = r"(?:m\d+\.x@\d+>\d+;)*"
    whatever = r"(?:[am]\d+[^;]*;)*"
    out, between = "", ""
    for i, hop in enumerate(hops):
        if hop == "**":
            between = whatever
            if i == 0:
                out += r"input@\d+;"
            continue
        if i and not between and links[i - 1] == "~>":
            between = mlp
        out += between + _hop(hop, shape, names)
        between = ""
    compiled = re.compile(out)

    def member(path: str) -> bool:
        found = compiled.fullmatch(path)
        return bool(found) and _windows_hold(pattern, path, shape, names)

    return member


def _hop(hop: str, shape, names: Names) -> str:
    hop = re.sub(r"\[-?\d+\.\.-?\d+\]$", "", hop)
    name, _, at = hop.partition("@")
    where = rf"(?:{'|'.join(map(str, _positions(at, names)))})" if at else r"\d+"
    if name in ("input", "logits"):
        return rf"{name}@{where};"
    channel = re.search(r"\.([qkv])$", name)
    node = name[: channel.start()] if channel else name
    node = r"(?:a\d+\.h\d+|m\d+)" if node == "*" else re.escape(node).replace(r"\.\*", r"\.h\d+").replace(r"\*", r"\d+")
    inside = channel[1] if channel else "[qkvx]"
    if channel and channel[1] in "kv":
        return rf"{node}\.{inside}@{where}>\d+;"
    return rf"{node}\.{inside}@\d+>{where};"


def _positions(at: str, names: Names) -> list[int]:
    return names[at] if at in names else [int(at)]


def _windows_hold(pattern: str, path: str, shape, names: Names) -> bool:
    """Windows only appear in patterns whose hops and path nodes correspond one to one."""
    hops = [hop for hop in re.split(r"\s*(?:->|~>)\s*", pattern.strip())]
    nodes = path.strip(";").split(";")
    for hop, node in zip(hops, nodes, strict=False):
        window = re.search(r"\[(-?\d+)\.\.(-?\d+)\]$", hop)
        if window:
            assert len(hops) == len(nodes)
            read, wrote = map(int, re.search(r"@(\d+)>(\d+)", node).groups())
            if not int(window[1]) <= read - wrote <= int(window[2]):
                return False
    return True


class Treeified:
    """G_T with one input for every path of one pair.

    With `frozen` readers of mixed streams take the scale of their norm from the reference run; whether a stream is
    mixed is asked of every path into it.
    """

    def __init__(
        self, model: Model, reference: list[int], counter: list[int], member: Member, frozen: bool = False
    ) -> None:
        self.model, self.shape, self.member = model, model.shape, member
        self.plain = Plain(model, reference) if frozen else None
        self.x = {True: model.embed([reference]), False: model.embed([counter])}  # by what `member` says of a path
        self.reference = self.x[True]
        self.evaluations = 0
        model.ensure_positions(len(reference))

    def logits(self, position: int) -> Tensor:
        stream = self.stream(self.shape.n_layers, False, position, f"logits@{position};")
        spot = (self.shape.n_layers, False, position, f"logits@{position};")
        return self.model.unembed(self.normed(self.model.anatomy.final_norm, stream, spot)[None])[0]

    def normed(self, norm, x: Tensor, spot: tuple) -> Tensor:
        """The norm of what a reader finds at a place that `stream` takes."""
        if self.plain is None or self.only_counter(*spot):
            return norm(x[None])[0]
        return held(norm, x, self.plain.stream(*spot))

    def only_counter(self, *spot) -> bool:
        """Whether all paths into a stream carry the same prompt, and not the reference."""
        return self.counter_only(self.sources(*spot))

    def counter_only(self, sources: set) -> bool:
        return len(sources) == 1 and self.x[next(iter(sources))] is not self.reference

    def sources(self, layer: int, after_attention: bool, p: int, suffix: str) -> set:
        """What the paths into a stream carry."""
        found = {self.member(f"input@{p};{suffix}")}
        for at in range(layer + int(after_attention)):
            found |= self.head_sources(at, p, suffix)
            if self.shape.has_mlp and at < layer:
                found |= self.mlp_sources(at, p, suffix)
        return found

    def head_sources(self, layer: int, p: int, suffix: str) -> set:
        """Of all heads of a layer."""
        reads = [("q", p), *((channel, j) for channel in "kv" for j in self.seen(layer, p))]
        names = [(f"a{layer}.h{h}.{c}@{j}>{p};{suffix}", j) for h in range(self.shape.n_heads) for c, j in reads]
        return set().union(*(self.sources(layer, False, j, name) for name, j in names))

    def mlp_sources(self, layer: int, p: int, suffix: str) -> set:
        return self.sources(layer, not self.shape.parallel, p, f"m{layer}.x@{p}>{p};{suffix}")

    def seen(self, layer: int, p: int) -> list[int]:
        """Tokens that a query reads."""
        window = self.model.attention_rule(layer).window
        span = p + 1 if self.shape.causal else len(self.x[True])
        return [j for j in range(span) if window is None or abs(p - j) < window]

    def stream(self, layer: int, after_attention: bool, p: int, suffix: str) -> Tensor:
        """The residual stream that one reader sees before block `layer` (or in the middle of it)."""
        x = self.x[self.member(f"input@{p};{suffix}")][p].clone()
        for at in range(layer + int(after_attention)):
            block = self.model.anatomy.blocks[at]
            out = self.attention(at, p, suffix)
            if self.plain is None or self.counter_only(self.head_sources(at, p, suffix)):
                x = x + block.norm_attn_out(out)
            else:
                x = x + held(block.norm_attn_out, out, self.plain.attention(at, p, suffix))
            if self.shape.has_mlp and at < layer:
                x = x + self.mlp(at, p, suffix)
        return x

    def attention(self, layer: int, p: int, suffix: str) -> Tensor:
        """What the heads of one block add up to, before a norm that may follow."""
        z = torch.stack([self.head(layer, h, p, suffix) for h in range(self.shape.n_heads)])
        return self.model.anatomy.blocks[layer].o_proj(z.flatten()[None, None])[0, 0]

    def head(self, layer: int, head: int, p: int, suffix: str) -> Tensor:
        self.evaluations += 1
        block = self.model.anatomy.blocks[layer]
        group = self.shape.group_of(head)

        seen = self.seen(layer, p)
        reads = [("q", p), *(("k", j) for j in seen), *(("v", j) for j in seen)]
        spots = [(layer, False, j, f"a{layer}.h{head}.{channel}@{j}>{p};{suffix}") for channel, j in reads]
        streams = torch.stack([self.normed(block.norm_attn_in, self.stream(*spot), spot) for spot in spots])
        kwargs = self.model.attention_kwargs(layer, torch.tensor([j for _, j in reads]), {})
        with capturing([block.attn]):
            q, k, v, rule = query_key_value(block.attn, streams, kwargs)
        scores = k[1 : 1 + len(seen), group] @ q[0, head] * rule.scaling
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        return scores.softmax(-1) @ v[1 + len(seen) :, group]

    def mlp(self, layer: int, p: int, suffix: str) -> Tensor:
        self.evaluations += 1
        block = self.model.anatomy.blocks[layer]
        out = self.mlp_raw(layer, p, suffix)
        if self.plain is None or self.counter_only(self.mlp_sources(layer, p, suffix)):
            return block.norm_mlp_out(out)
        return held(block.norm_mlp_out, out, self.plain.mlp_raw(layer, p, suffix))

    def mlp_raw(self, layer: int, p: int, suffix: str) -> Tensor:
        """What an MLP returns, before a norm that may follow."""
        block = self.model.anatomy.blocks[layer]
        spot = (layer, not self.shape.parallel, p, f"m{layer}.x@{p}>{p};{suffix}")
        norm = block.norm_attn_in if block.shared_norm else block.norm_mlp_in
        out = block.mlp(self.normed(norm, self.stream(*spot), spot)[None, None])
        return (out[0] if isinstance(out, tuple) else out)[0, 0]


class Plain(Treeified):
    """The reference run: all copies of a node are equal, so that each is computed once."""

    def __init__(self, model: Model, reference: list[int]) -> None:
        super().__init__(model, reference, reference, lambda path: True)
        self.known: dict[tuple[int, bool, int], Tensor] = {}

    def stream(self, layer: int, after_attention: bool, p: int, suffix: str) -> Tensor:
        key = (layer, after_attention, p)
        if key not in self.known:
            self.known[key] = super().stream(layer, after_attention, p, "")
        return self.known[key]


def held(norm, x: Tensor, reference: Tensor) -> Tensor:
    """A norm of one token with the scale that it has for another input: what it gives, times the ratio of scales."""
    if not isinstance(norm, nn.Module):
        return norm(x)  # no norm here
    centre = isinstance(norm, nn.LayerNorm)
    eps = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))

    def size(value: Tensor) -> Tensor:
        value = value - value.mean() if centre else value
        return (value.pow(2).mean() + eps).sqrt()

    bias = norm(torch.zeros_like(x))
    return (norm(x) - bias) * size(x) / size(reference) + bias
