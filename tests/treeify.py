"""The slow oracle of path patching: literal treeify, one copy of every node for every path suffix.

It shares nothing with the package but the modules of the model: which paths a pattern holds is decided by a regular
expression over the path written out, and every copy of every node is computed anew, position by position.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

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
    """G_T with one input for every path of one pair."""

    def __init__(self, model: Model, reference: list[int], counter: list[int], member: Member) -> None:
        self.model, self.shape, self.member = model, model.shape, member
        self.x = {True: model.embed([reference]), False: model.embed([counter])}
        self.evaluations = 0
        model.ensure_positions(len(reference))

    def logits(self, position: int) -> Tensor:
        stream = self.stream(self.shape.n_layers, False, position, f"logits@{position};")
        return self.model.unembed(self.model.anatomy.final_norm(stream[None]))[0]

    def stream(self, layer: int, after_attention: bool, p: int, suffix: str) -> Tensor:
        """The residual stream that one reader sees before block `layer` (or in the middle of it)."""
        x = self.x[self.member(f"input@{p};{suffix}")][p].clone()
        for at in range(layer + int(after_attention)):
            block = self.model.anatomy.blocks[at]
            z = torch.stack([self.head(at, h, p, suffix) for h in range(self.shape.n_heads)])
            x = x + block.norm_attn_out(block.o_proj(z.flatten()[None, None]))[0, 0]
            if self.shape.has_mlp and at < layer:
                x = x + self.mlp(at, p, suffix)
        return x

    def head(self, layer: int, head: int, p: int, suffix: str) -> Tensor:
        self.evaluations += 1
        block = self.model.anatomy.blocks[layer]
        group = self.shape.group_of(head)

        def read(channel: str, j: int) -> Tensor:
            stream = self.stream(layer, False, j, f"a{layer}.h{head}.{channel}@{j}>{p};{suffix}")
            kwargs = self.model.attention_kwargs(layer, torch.tensor([j]), {})
            with capturing([block.attn]):
                q, k, v, self.rule = query_key_value(block.attn, block.norm_attn_in(stream[None, None])[0], kwargs)
            return {"q": q[0, head], "k": k[0, group], "v": v[0, group]}[channel]

        q = read("q", p)
        window = self.rule.window
        seen = [j for j in range(p + 1) if window is None or p - j < window]
        scores = torch.stack([q @ read("k", j) for j in seen]) * self.rule.scaling
        if self.rule.softcap is not None:
            scores = torch.tanh(scores / self.rule.softcap) * self.rule.softcap
        return scores.softmax(-1) @ torch.stack([read("v", j) for j in seen])

    def mlp(self, layer: int, p: int, suffix: str) -> Tensor:
        self.evaluations += 1
        block = self.model.anatomy.blocks[layer]
        stream = self.stream(layer, not self.shape.parallel, p, f"m{layer}.x@{p}>{p};{suffix}")[None, None]
        h = block.norm_attn_in(stream) if block.shared_norm else block.norm_mlp_in(stream)
        out = block.mlp(h)
        return block.norm_mlp_out(out[0] if isinstance(out, tuple) else out)[0, 0]
