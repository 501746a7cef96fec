"""The sizes of a model, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, fields

from crosspatch.errors import ModelError


@dataclass(frozen=True)
class ModelShape:
    """What the names of a model's sites depend on.

    Args:
        n_layers: number of transformer blocks.
        n_heads: query heads per block.
        n_kv_heads: key/value heads per block; fewer than `n_heads` when queries are grouped.
        d_model: width of the residual stream.
        d_head: width of one head's query, key and output.
        d_mlp: hidden neurons of one MLP; 0 where there is none, or where `has_neurons` is false.
        vocab: number of logits.
        parallel: attention and MLP of a block both read the block's input (GPT-J, GPT-NeoX, Phi).
        has_neurons: the MLP block has one set of hidden neurons; false for a mixture of experts.
        has_mlp: blocks have an MLP; false for an attention-only model, whose blocks have no `resid_mid` either (it
            would be their `resid_post`).
        causal: a token sees itself and earlier tokens only; false where attention is bidirectional in any layer, so
            that every position depends on every other.

    Raises:
        ModelError: a size below one, query heads that do not divide into the key/value heads, or neurons or parallel
            blocks without an MLP.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocab: int
    parallel: bool = False
    has_neurons: bool = True
    has_mlp: bool = True
    causal: bool = True

    def __post_init__(self) -> None:
        small = [
            f.name
            for f in fields(self)
            if f.name not in ("parallel", "has_neurons", "has_mlp", "causal", "d_mlp") and getattr(self, f.name) < 1
        ]
        if small:
            raise ModelError(f"{small[0]} is {getattr(self, small[0])}, it must be at least 1", where="ModelShape")
        if self.n_heads % self.n_kv_heads:
            raise ModelError(
                f"{self.n_heads} query heads do not divide into {self.n_kv_heads} key/value heads",
                where="ModelShape",
                fix="check n_heads and n_kv_heads against the model's config",
            )
        if not self.has_mlp and (self.has_neurons or self.d_mlp or self.parallel):
            raise ModelError(
                "neurons or parallel blocks in a model without MLPs",
                where="ModelShape",
                fix="with has_mlp=False give d_mlp=0 and has_neurons=False, and leave parallel out",
            )

    @property
    def has_resid_mid(self) -> bool:
        """Whether the stream between attention and MLP exists: not in parallel blocks, nor without an MLP."""
        return self.has_mlp and not self.parallel

    @property
    def grouped(self) -> bool:
        """Whether several query heads share one key/value head."""
        return self.n_kv_heads != self.n_heads

    def group_of(self, head: int) -> int:
        """The key/value head that query head `head` reads."""
        return head // (self.n_heads // self.n_kv_heads)

    def heads_of(self, group: int) -> range:
        """The query heads that read key/value head `group`."""
        size = self.n_heads // self.n_kv_heads
        return range(group * size, (group + 1) * size)
