"""Mean losses of the published model under the study's patches. Not run here: needs its weights and its data.

    python studies/induction/published.py et_model_state_dict.pt rows.npy

The dossier of the study gives, overall: nothing patched 4.192, Direct-V 4.270, PTH-K 4.318, Direct-Q 4.346, All-Initial
4.448, both induction heads on the counterfactual 4.623 nats, with induction heads 1.5 and 1.6 and previous-token head
0.0 in 10,000 pairs. Compare these before anything else is computed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import crosspatch as cp
from crosspatch.paths import everything, paths, test_paths, text_pairs, via
from crosspatch.shortformer.redwood import load_redwood

HEADS, PREVIOUS = ("a1.h5", "a1.h6"), "a0.h0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("rows", type=Path, help=".npy of token ids [row, 301]")
    parser.add_argument("--pairs", type=int, default=1000)
    args = parser.parse_args()
    model = cp.load(load_redwood(args.weights), name="redwood_attn_2l")
    pairs = text_pairs(np.load(args.rows, allow_pickle=False), args.pairs, 42, str(args.rows))
    q, k, v = ("{" + ", ".join(f"{head}.{channel}" for head in HEADS) + "}" for channel in "qkv")
    whole = {name: paths(f"input -> {name} -> logits", f"input -> a0.* -> {name} -> logits") for name in (q, k, v)}
    skip = {name: paths(f"input -> {name} -> logits") for name in (q, v)}
    before = paths(f"input -> {PREVIOUS} -> {k} -> logits")
    claims = {
        "Direct-V": skip[v] | whole[q] | whole[k],
        "PTH-K": whole[v] | whole[q] | before,
        "Direct-Q": whole[v] | skip[q] | whole[k],
        "All-Initial": skip[v] | skip[q] | before,
    }
    always = everything() - via("{" + ", ".join(HEADS) + "}")
    tested = test_paths(model, claims, pairs, dissimilarity="abs_loss", always=always)
    print(f"nothing: {tested.signed_reference.mean():.3f}; both heads: {tested.signed_null.mean():.3f}")
    for name, signed in zip(tested.names, tested.signed, strict=True):
        print(f"{name}: {signed.mean():.3f}")
    print(tested)


if __name__ == "__main__":
    main()
