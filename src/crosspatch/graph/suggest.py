"""Guess which site a wrong name meant: other libraries' names, module paths and near misses."""

from __future__ import annotations

import re
from difflib import get_close_matches

_EXAMPLES = (
    "input",
    "logits",
    "r5",
    "r5.mid",
    "r5.post",
    "a5",
    "a5.h3",
    "a5.h3.z",
    "a5.h3.q",
    "a5.h3.k",
    "a5.h3.v",
    "a5.kv1.k",
    "a5.kv1.v",
    "a5.h3.pattern",
    "m5",
    "m5.act",
    "m5.n120",
)

# TransformerLens hook names. Its hook_q comes before rotary embedding; our q is its hook_rot_q (k likewise).
_HOOKS = {
    "resid_pre": "r{}",
    "resid_mid": "r{}.mid",
    "resid_post": "r{}.post",
    "attn_out": "a{}",
    "mlp_out": "m{}",
    "z": "a{}.h0",
    "result": "a{}.h0",
    "q": "a{}.h0.q",
    "rot_q": "a{}.h0.q",
    "k": "a{}.h0.k",
    "rot_k": "a{}.h0.k",
    "v": "a{}.h0.v",
    "pattern": "a{}.h0.pattern",
    "post": "m{}.act",
    "mlp_in": "m{}",
    "attn_in": "a{}",
}
_ATTENTION, _LAYER = r"(?:attn|attention|self_attn|a)", r"(?:layers?|blocks?|l|h)"
_PART = r"((?:\.(?:z|q|k|v|pattern))?)"
_GUESSES = [
    (rf"{_LAYER}[._ ]?(\d+)[._ ]?(?:h|head)[._ ]?(\d+){_PART}", "a{}.h{}{}"),  # L5.H3, layer5.head3
    (rf"{_ATTENTION}[._ ]?(\d+)(?:[._ ]?(?:h|head)|\.)[._ ]?(\d+){_PART}", "a{}.h{}{}"),  # attn5.h3, a5h3
    (r"(\d+)\.(\d+)", "a{}.h{}"),  # 9.6, as papers write heads
    (rf"{_ATTENTION}[._ ]?(\d+)", "a{}"),
    (r"mlp[._ ]?(\d+)", "m{}"),
    (r"(?:resid|resid_pre|residual)[._ ]?(\d+)", "r{}"),
    (r"resid_(mid|post)[._ ]?(\d+)", "r{1}.{0}"),
    (rf".*\b{_LAYER}\.(\d+)\.(?:attn|attention|self_attn)", "a{}"),  # module paths
    (rf".*\b{_LAYER}\.(\d+)\.mlp", "m{}"),
    (rf".*\b{_LAYER}\.(\d+)", "r{}.post"),
    (r"(?:hook_)?embed(?:ding)?s?|wte|embed_tokens", "input"),
    (r"lm_head|unembed|output", "logits"),
]


def suggest(text: str) -> str:
    """One line on how to spell the site that `text` probably means."""
    tidy = re.sub(r"(?<![0-9])0+(?=[0-9])", "", text.strip().lower().replace(" ", ""))
    hook = re.fullmatch(r"(?:blocks\.)?(\d+)?\.?(?:attn\.|mlp\.)?hook_(\w+)", tidy)
    if hook and hook[2] in _HOOKS:
        name = _HOOKS[hook[2]].format(hook[1] or 0)
        each = " (one head at a time; a*.h* selects all)" if ".h0" in name else ""
        return f"did you mean {name}{each}?"
    for pattern, template in _GUESSES:
        if match := re.fullmatch(pattern, tidy):
            return f"did you mean {template.format(*match.groups())}?"
    if tidy != text and re.fullmatch(r"input|logits|r\d+|m\d+(\.n\d+)?", tidy):
        return f"did you mean {tidy}?"
    close = get_close_matches(re.sub(r"\d+", "5", tidy), _EXAMPLES, n=3, cutoff=0.5)
    return f"names look like {', '.join(close or ('r5', 'a5', 'a5.h3', 'a5.h3.q', 'm5', 'm5.n120', 'input'))}"
