"""Where a dictionary reads and writes: the graph's activations, and two that are not sites of the graph.

| name | activation (per token) | TransformerLens |
|---|---|---|
| any site without an index: `input`, `r3`, `r3.mid`, `r3.post`, `a3`, `m3`, `m3.act` | see docs/architecture.md | |
| `a3.z` | the outputs of all heads before W_O, concatenated in order: `n_heads * d_head` | `attn.hook_z`, flattened |
| `m3.in` | what the MLP reads: its norm's output `d_model` | `mlp.hook_in` |
| `m3.norm` | the same before the norm's gain and bias `d_model` | `ln2.hook_normalized` |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.errors import DictionaryError
from crosspatch.graph import Site, parse_site
from crosspatch.model import Edit, Model, Run
from crosspatch.model.replay import ensure
from crosspatch.model.run import Key, store_key

_OWN = re.compile(r"(?:a(?P<z>\d+)\.z|m(?P<mlp>\d+)\.(?P<part>in|norm))")


def check_place(place: str) -> str:
    """The name itself, if it is one.

    Raises:
        AddressError: not a name.
        DictionaryError: a site of which there are many in a layer (a head, a neuron, a pattern).
    """
    if _OWN.fullmatch(place):
        return place
    site = parse_site(place)
    if site.index is not None or site.kind == "logits":
        fix = f"read all heads at once: a{site.layer}.z" if site.kind == "z" else "use r3, a3, a3.z, m3, m3.act, input"
        raise DictionaryError(f"no dictionary reads or writes {place}", where=place, fix=fix)
    return str(site)


def place_layer(place: str) -> int:
    """The block a place lies in; -1 for `input`."""
    match = _OWN.fullmatch(place)
    if match:
        return int(match["z"] or match["mlp"])
    layer = parse_site(place).layer
    return -1 if layer is None else layer


def place_width(model: Model, place: str) -> int:
    """Numbers per token at a place.

    Raises:
        AddressError: the model has no such place.
    """
    _check_model(model, place)
    match = _OWN.fullmatch(place)
    if match and match["z"]:
        return model.shape.n_heads * model.shape.d_head
    if not match and parse_site(place).kind == "mlp_act":
        return model.shape.d_mlp
    return model.shape.d_model


def place_keys(model: Model, places: Iterable[str]) -> set[Key]:
    """What a run has to keep so that `read_place` costs no further pass."""
    return {_key(model, place) for place in places}


@torch.no_grad()
def read_place(run: Run, places: Sequence[str]) -> Float[Tensor, "token width"]:
    """Activations of all tokens of all examples of a run, in order; several places side by side.

    Raises:
        AddressError: the model has no such place.
    """
    parts = [_read(run, place) for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def write_place(
    model: Model, place: str, positions: Sequence[int], value: Float[Tensor, "position width"]
) -> tuple[Edit, ...]:
    """The edits that put `value` at a place of one example.

    Raises:
        AddressError: the model has no such place.
        DictionaryError: a place that can be read but not written.
    """
    _check_model(model, place)
    match = _OWN.fullmatch(place)
    if match is None:
        return (Edit(parse_site(place), tuple(positions), value),)
    if match["mlp"]:
        layer = match["mlp"]
        raise DictionaryError(f"{place} is read only", where=place, fix=f"write m{layer} or r{layer}.mid")
    heads = value.unflatten(-1, (model.shape.n_heads, model.shape.d_head)).unbind(-2)
    return tuple(Edit(Site("z", int(match["z"]), h), tuple(positions), v) for h, v in enumerate(heads))


def to_residual(model: Model, place: str, vectors: Float[Tensor, "n width"]) -> Float[Tensor, "n d_model"]:
    """What vectors written at a place add to the residual stream (a post norm, if any, is left out).

    Raises:
        DictionaryError: a place that is only read.
    """
    _check_model(model, place)
    match = _OWN.fullmatch(place)
    if match and match["mlp"]:
        raise DictionaryError(f"{place} is read only, nothing is written there", where=place)
    layer = place_layer(place)
    through = None
    if match:
        through = model.anatomy.blocks[layer].o_proj
    elif parse_site(place).kind == "mlp_act":
        through = model.anatomy.blocks[layer].down_proj
    if through is None:
        return vectors
    with torch.no_grad():
        vectors = vectors.to(next(through.parameters()))
        return through(vectors) - through(torch.zeros_like(vectors[:1]))


@torch.no_grad()
def final_gain(model: Model) -> Float[Tensor, " d_model"]:
    """What the final norm multiplies each dimension by, its division left out; ones where there is none."""
    like = torch.zeros(1, model.shape.d_model, dtype=model.dtype, device=model.device)
    norm = model.anatomy.final_norm
    if torch.equal(norm(like + 2), like + 2):
        return torch.ones_like(like[0])
    return _affine(norm, like)[0]


def _read(run: Run, place: str) -> Tensor:
    key = _key(run.model, place)
    ensure(run, [key])
    x = run.packed(key)
    match = _OWN.fullmatch(place)
    if match is None:
        return x
    if match["z"]:
        return x.flatten(1)
    block = run.model.anatomy.blocks[int(match["mlp"])]
    norm = block.norm_attn_in if block.shared_norm else block.norm_mlp_in
    y = norm(x[None])[0]
    if match["part"] == "in":
        return y
    gain, zero = _affine(norm, x)
    return (y - zero) / gain


def _affine(norm: Callable[[Tensor], Tensor], like: Float[Tensor, "token d_model"]) -> tuple[Tensor, Tensor]:
    """Gain and bias of a norm.

    The alternating vector has mean 0 and mean square 1 (times a size that drowns epsilon), so that any norm keeps it.
    """
    sign = 1 - 2 * (torch.arange(like.shape[-1], device=like.device) % 2).to(like)
    zero = norm(torch.zeros_like(sign)[None, None])[0, 0]
    return sign * (norm(1e3 * sign[None, None])[0, 0] - zero), zero


def _key(model: Model, place: str) -> Key:
    _check_model(model, place)
    match = _OWN.fullmatch(place)
    if match is None:
        return store_key(parse_site(place), model.shape.n_layers)
    if match["z"]:
        return int(match["z"]), "z"
    return int(match["mlp"]), "resid_pre" if model.shape.parallel else "resid_mid"


def _check_model(model: Model, place: str) -> None:
    match = _OWN.fullmatch(check_place(place))
    model.site(Site("z", int(match["z"]), 0) if match and match["z"] else f"m{match['mlp']}" if match else place)
