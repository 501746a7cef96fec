"""What an activation is split into: features of a dictionary and an error term, or plain neurons.

A basis writes the activation at one place as

    x = sum_i f_i(x) v_i + b + e(x)

exactly, so that the model with every part in its place is the model (Marks et al. 2025, arXiv 2403.19647, section 2).
`f` are activations of the dictionary's features, `v_i` the rows of its decoder and `e` the error term, which is a node
too. Of a dictionary that normalises its input the error term also holds what the reconstruction takes from the input
directly (a token's mean, its divisor times the bias): only then does the sum have the fixed directions `v_i`.

Gradients need no dictionary in the model: with g the gradient of the metric at x, the gradient at f_i is `g . v_i`
and the gradient at e is g. The other direction, how f_i and e change with x, is the encoder's; `Basis.pull` and
`Basis.pull_error` give it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.places import place_keys, place_width
from crosspatch.errors import DictionaryError
from crosspatch.model import Model
from crosspatch.model.run import Key


@dataclass(frozen=True, eq=False)
class Basis(ABC):
    """How the activation at one place is split; make them with `bases_of`.

    Attributes:
        place: its name (see `crosspatch.dictionaries.places`).
        key: where a run stores it.
        width: number of features.
        has_error: whether there is an error term. As a node it has the number `width`.
    """

    place: str
    key: Key
    width: int
    has_error: bool

    @property
    def n_nodes(self) -> int:
        """Features, and the error term."""
        return self.width + self.has_error

    @property
    def block(self) -> int:
        """The block that computes it; -1 for the input."""
        layer, kind = self.key
        return layer - 1 if kind == "resid_pre" else layer

    @abstractmethod
    def features(self, x: Float[Tensor, "token d"]) -> Float[Tensor, "token feature"]:
        """f(x)."""

    @abstractmethod
    def compose(self, f: Float[Tensor, "token feature"]) -> Float[Tensor, "token d"]:
        """sum_i f_i v_i + b."""

    @abstractmethod
    def along(self, g: Float[Tensor, "... d"], index: Int[Tensor, " node"] | None = None) -> Float[Tensor, "... node"]:
        """g . v_i of all features, or of some: gradients at features from gradients at x."""

    @abstractmethod
    def written(
        self, f: Float[Tensor, "token node"], index: Int[Tensor, " node"] | None = None
    ) -> Float[Tensor, "token d"]:
        """sum_i f_i v_i over all features, or over some."""

    @abstractmethod
    def only(self, x: Float[Tensor, "token d"], index: Int[Tensor, " node"]) -> Float[Tensor, "token node"]:
        """f_i(x) of some features."""

    @abstractmethod
    def pull(
        self, x: Float[Tensor, "token d"], index: Int[Tensor, " node"], weights: Float[Tensor, "node token"]
    ) -> Float[Tensor, "node token d"]:
        """weights times the gradient of f_i at x: what a backward pass from these features begins with."""

    @abstractmethod
    def pull_error(
        self, x: Float[Tensor, "token d"], g: Float[Tensor, "node token d"]
    ) -> Float[Tensor, "node token d"]:
        """The gradient of `g . e(x)` at x, g held fixed."""

    def error(
        self, x: Float[Tensor, "token d"], f: Float[Tensor, "token feature"] | None = None
    ) -> Float[Tensor, "token d"]:
        """e(x), in the dictionary's precision; what is left of x beside features f, where they are given."""
        made = self.compose(self.features(x) if f is None else f)
        return x.to(made) - made


@dataclass(frozen=True, eq=False)
class Features(Basis):
    """Features of a dictionary, and its error term."""

    dictionary: Dictionary

    def features(self, x: Tensor) -> Tensor:
        return self.dictionary.encode(x)

    def compose(self, f: Tensor) -> Tensor:
        return self.written(f) + self.dictionary.decoder_bias

    def along(self, g: Tensor, index: Tensor | None = None) -> Tensor:
        return g.to(self.dictionary.decoder) @ self._rows(index).T

    def written(self, f: Tensor, index: Tensor | None = None) -> Tensor:
        return f.to(self.dictionary.decoder) @ self._rows(index)

    def only(self, x: Tensor, index: Tensor) -> Tensor:
        d = self.dictionary
        if not len(index):
            return x.new_zeros(len(x), 0)
        if d.selection != "all":  # features compete: which are active depends on all
            return d.encode(x)[:, index]
        part = replace(
            d,
            encoder=d.encoder[index],
            encoder_bias=d.encoder_bias[index],
            decoder=d.decoder[index],
            threshold=d.threshold[index],
            rank=None,
            scale=None,
        )
        return part.encode(x)

    def pull(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        d = self.dictionary
        if d.normalise != "none":
            return self._pulled(x, lambda y: d.encode(y)[:, index].T.unsqueeze(-1), weights.unsqueeze(-1))
        active = (self.only(x, index) != 0).T
        return ((weights * active).to(d.encoder)[..., None] * d.encoder[index][:, None]).to(x)

    def pull_error(self, x: Tensor, g: Tensor) -> Tensor:
        d = self.dictionary
        if d.normalise != "none":
            return g - self._pulled(x, lambda y: self.written(d.encode(y)).expand(len(g), -1, -1), g)
        active = self.features(x) != 0
        return g - ((self.along(g) * active) @ d.encoder).to(g)

    def _rows(self, index: Tensor | None) -> Tensor:
        return self.dictionary.decoder if index is None else self.dictionary.decoder[index]

    @staticmethod
    def _pulled(x: Tensor, function: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
        """Row by row the gradient of `function(x) * weights` at x."""
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            made = function(at)
            rows = [
                torch.autograd.grad(y, at, w.to(y), retain_graph=True)[0] for y, w in zip(made, weights, strict=True)
            ]
        return torch.stack(rows) if rows else x.new_zeros(0, *x.shape)


@dataclass(frozen=True, eq=False)
class Neurons(Basis):
    """The activation's own dimensions, without an error term: the baseline that features have to beat."""

    def features(self, x: Tensor) -> Tensor:
        return x

    def compose(self, f: Tensor) -> Tensor:
        return f

    def along(self, g: Tensor, index: Tensor | None = None) -> Tensor:
        return g if index is None else g[..., index]

    def written(self, f: Tensor, index: Tensor | None = None) -> Tensor:
        if index is None:
            return f
        return f.new_zeros(*f.shape[:-1], self.width).index_copy(-1, index, f)

    def only(self, x: Tensor, index: Tensor) -> Tensor:
        return x[:, index]

    def pull(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        out = x.new_zeros(len(index), *x.shape)
        out[torch.arange(len(index)), :, index] = weights.to(x)
        return out

    def pull_error(self, x: Tensor, g: Tensor) -> Tensor:
        return torch.zeros_like(g)


Bases = tuple[Basis, ...]


def bases_of(
    model: Model, dictionaries: Iterable[Dictionary] | Mapping[str, Dictionary] = (), neurons: Sequence[str] = ()
) -> Bases:
    """The places that a circuit is about, each with what it is split into, in the order of the computation.

    Args:
        dictionaries: autoencoders, each at the one place that it reads and writes. They are used in the precision
            and on the device that they are in.
        neurons: places to be split into their own dimensions: `m3.act` (hidden neurons), `a3`, `m3`, `r3.post`.

    Raises:
        DictionaryError: a transcoder or crosscoder, a width that is not the model's, a place that is only read or is
            named twice.
        AddressError: a place that the model does not have.
    """
    given = dictionaries.values() if isinstance(dictionaries, Mapping) else dictionaries
    made: list[Basis] = []
    for dictionary in given:
        if not dictionary.autoencoder or len(dictionary.reads) != 1:
            raise DictionaryError(
                "a node is a feature of one activation, and this reads or writes several",
                where=repr(dictionary),
                fix="use an autoencoder of one place",
            )
        place = dictionary.reads[0]
        if dictionary.d_in != (wide := place_width(model, place)):
            raise DictionaryError(f"reads {dictionary.d_in} numbers, {place} has {wide}", where=repr(dictionary))
        made.append(Features(place, _key(model, place), dictionary.width, True, dictionary))
    made += [Neurons(place, _key(model, place), place_width(model, place), False) for place in neurons]
    for basis in made:
        if twice := [other.place for other in made if other is not basis and other.key == basis.key]:
            raise DictionaryError(f"{basis.place} and {twice[0]} are the same activation", where="bases_of")
    return tuple(sorted(made, key=lambda basis: order(basis.key)))


STAGES = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_act", "mlp_out", "resid_post")


def order(key: Key) -> tuple[int, int]:
    """Place in the computation."""
    return key[0], STAGES.index(key[1])


def _key(model: Model, place: str) -> Key:
    if place.endswith((".in", ".norm")):
        raise DictionaryError(f"{place} is read only", where=place, fix="use a dictionary of m3, a3, a3.z or r3.post")
    return next(iter(place_keys(model, [place])))
