"""Names that other libraries give to places, and back."""

from __future__ import annotations

import re

from crosspatch.dictionaries.places import check_place

_HOOKS = {
    "hook_resid_pre": "r{}",
    "hook_resid_mid": "r{}.mid",
    "hook_mlp_in": "r{}.mid",  # the stream before the MLP's norm
    "hook_resid_post": "r{}.post",
    "hook_attn_out": "a{}",
    "attn.hook_z": "a{}.z",
    "hook_mlp_out": "m{}",
    "mlp.hook_out": "m{}",
    "mlp.hook_post": "m{}.act",
    "mlp.hook_in": "m{}.in",
    "ln2.hook_normalized": "m{}.norm",
}
_MODULES = [
    (r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)", "r{}.post"),
    (r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.(?:mlp|feed_forward)", "m{}"),
    (r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.(?:attn|attention|self_attn)", "a{}"),
    (r"(?:.*\.)?(?:embed_tokens|embed_in|wte)", "input"),
    (r"resid_post_layer_(\d+)", "r{}.post"),
    (r"mlp_out_layer_(\d+)", "m{}"),
    (r"(?:attention|attn)_out_layer_(\d+)", "a{}"),
]


def place_of(name: str) -> str | None:
    """The place that a TransformerLens hook or a module path of a Hugging Face model names; None = unknown.

    A module path means the module's output.
    """
    if name in ("hook_embed", "embed"):
        return "input"
    if (match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name)) and match[2] in _HOOKS:
        return _HOOKS[match[2]].format(match[1])
    for pattern, template in _MODULES:
        if match := re.fullmatch(pattern, name):
            return template.format(*match.groups())
    return None


def hook_of(place: str) -> str:
    """The TransformerLens hook of a place."""
    place = check_place(place)
    if place == "input":
        return "blocks.0.hook_resid_pre"  # positions, where a model adds them, are in it
    for hook, template in _HOOKS.items():
        if match := re.fullmatch(re.escape(template).replace(r"\{\}", r"(\d+)"), place):
            return f"blocks.{match[1]}.{hook}"
    raise AssertionError(place)
