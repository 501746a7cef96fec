"""One form for every kind of dictionary.

    pre_i    = encoder_i . (x - input_bias) + encoder_bias_i
    f_i      = pre_i where it is above max(threshold_i, 0) and selected, else 0
    y_hat    = sum_i f_i decoder_i + decoder_bias (+ skip x)
    error    = y - y_hat

| architecture | as this form |
|---|---|
| standard (ReLU, L1), p-anneal | threshold 0 |
| gated (arXiv 2404.16014) | encoder exp(r) W, bias b_mag, threshold b_mag - exp(r) b_gate: the same function |
| JumpReLU (arXiv 2407.14435) | its thresholds |
| TopK (Gao et al. 2024, arXiv 2406.04093) | the k largest pre-activations of a token are selected |
| BatchTopK (arXiv 2412.06410), Matryoshka (arXiv 2503.17547) | one threshold, measured in training |
| transcoder, skip transcoder (arXiv 2406.11944, 2501.18823) | `writes` differs from `reads`; `skip` |
| crosscoder | several places side by side in `reads` and `writes` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosspatch.dictionaries.places import check_place
from crosspatch.errors import DictionaryError

SELECTIONS = ("all", "topk", "groupmax")
"""Which features may be active: all above their threshold, a token's k largest, the largest of each of k groups."""
NORMALISATIONS = ("none", "constant_norm", "layer_norm")
"""What is done to each token before the encoder and undone after the decoder (see `Dictionary.normalise`)."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Directions in activation space with an encoder that says how much of each there is.

    Args:
        encoder, encoder_bias: one row and one number for each feature.
        decoder, decoder_bias: what each feature writes, and what is written without any.
        threshold: smallest pre-activation that counts; below 0 it means 0.
        reads, writes: places (see `places`); several of equal width are concatenated in order. They are equal in an
            autoencoder.
        architecture: what it was trained as; only a label.
        input_bias: taken off the input.
        skip: linear part from input to output.
        selection, k: see `SELECTIONS`.
        rank: features are compared by `pre * rank` when the largest are selected; None = ones.
        normalise: `constant_norm` divides each token by its root mean square, `layer_norm` takes its mean off and
            divides by its standard deviation. The inverse is applied to the output. Features are given in the units
            of the output (times that divisor), so that decoder rows are the same directions for every token.
        scale: feature now = `scale` times feature as stored by whoever trained it (see `fold`); None = ones.
        meta: where it comes from, as plain data.

    Raises:
        DictionaryError: shapes that do not fit, an unknown selection or normalisation.
    """

    encoder: Float[Tensor, "feature d_in"]
    encoder_bias: Float[Tensor, " feature"]
    decoder: Float[Tensor, "feature d_out"]
    decoder_bias: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " feature"]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    architecture: str = "standard"
    input_bias: Float[Tensor, " d_in"] | None = None
    skip: Float[Tensor, "d_out d_in"] | None = None
    selection: str = "all"
    k: int | None = None
    rank: Float[Tensor, " feature"] | None = None
    normalise: str = "none"
    scale: Float[Tensor, " feature"] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("reads", "writes"):
            places = getattr(self, name)
            object.__setattr__(self, name, tuple(map(check_place, (places,) if isinstance(places, str) else places)))
        width, d_in = self.encoder.shape
        d_out = self.decoder.shape[1]
        wanted = {
            "encoder_bias": (width,), "decoder": (width, d_out), "decoder_bias": (d_out,), "threshold": (width,),
            "input_bias": (d_in,), "skip": (d_out, d_in), "rank": (width,), "scale": (width,),
        }  # fmt: skip
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise DictionaryError(f"has shape {list(value.shape)}, expected {list(shape)}", where=name)
        for name, known in (("selection", SELECTIONS), ("normalise", NORMALISATIONS)):
            if getattr(self, name) not in known:
                raise DictionaryError(f"{getattr(self, name)!r} is unknown", where=name, fix=f"one of {known}")
        if (self.k is not None) != (self.selection != "all") or not 0 < (self.k or 1) <= width:
            raise DictionaryError(f"k is {self.k} with selection {self.selection!r} of {width} features", where="k")
        if self.selection == "groupmax" and width % (self.k or 1):
            raise DictionaryError(f"{width} features do not divide into {self.k} groups", where="k")
        if self.normalise != "none" and (d_in != d_out or self.skip is not None):
            raise DictionaryError("only an autoencoder can undo a normalisation of its input", where="normalise")
        if not self.reads or not self.writes or d_in % len(self.reads) or d_out % len(self.writes):
            raise DictionaryError(
                f"{d_in} and {d_out} do not divide into {len(self.reads)} and {len(self.writes)} places of one width",
                where="reads and writes",
            )

    def __repr__(self) -> str:
        places = " ".join(self.reads) + ("" if self.reads == self.writes else f" -> {' '.join(self.writes)}")
        return f"Dictionary({self.architecture} {places}, {self.width} features, d_in {self.d_in}, d_out {self.d_out})"

    @property
    def width(self) -> int:
        """Number of features."""
        return self.encoder.shape[0]

    @property
    def d_in(self) -> int:
        return self.encoder.shape[1]

    @property
    def d_out(self) -> int:
        return self.decoder.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.dtype

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def autoencoder(self) -> bool:
        """Whether it reconstructs what it reads."""
        return self.reads == self.writes

    @property
    def needs_input(self) -> bool:
        """Whether `decode` and `baseline` need the input beside the features."""
        return self.skip is not None or self.normalise != "none"

    def decoder_at(self, place: str) -> Float[Tensor, "feature width"]:
        """The part of the decoder that writes at one place.

        Raises:
            DictionaryError: it does not write there.
        """
        if place not in self.writes:
            raise DictionaryError(f"does not write at {place}", where=repr(self), fix=f"use {', '.join(self.writes)}")
        each = self.d_out // len(self.writes)
        at = self.writes.index(place) * each
        return self.decoder[:, at : at + each]

    def pre_activations(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... feature"]:
        """What is compared with the thresholds."""
        x = self._normalised(x.to(self.encoder))
        if self.input_bias is not None:
            x = x - self.input_bias
        return torch.nn.functional.linear(x, self.encoder, self.encoder_bias)

    def selected(self, pre: Float[Tensor, "... feature"]) -> Bool[Tensor, "... feature"]:
        """Which features are active, given the pre-activations of a token."""
        active = pre > self.threshold.clamp(min=0)
        if self.selection == "all" or self.k is None:
            return active
        score = pre if self.rank is None else pre * self.rank
        if self.selection == "topk":
            at = score.topk(self.k, dim=-1, sorted=False).indices
        else:
            size = self.width // self.k
            first = torch.arange(0, self.width, size, device=pre.device)
            at = score.unflatten(-1, (self.k, size)).argmax(-1) + first
        return active & torch.zeros_like(active).scatter(-1, at, True)

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... feature"]:
        """Feature activations, in the units of what the decoder writes.

        Where the selection does not change this is linear in `x`; gradients pass accordingly.
        """
        pre = self.pre_activations(x)
        f = torch.where(self.selected(pre), pre, 0)
        return f if self.normalise == "none" else f * self._spread(x.to(self.encoder))[1]

    def baseline(self, x: Float[Tensor, "... d_in"] | None = None) -> Float[Tensor, "... d_out"]:
        """The reconstruction with no feature active.

        Raises:
            DictionaryError: it depends on the input, which was not given.
        """
        if not self.needs_input:
            return self.decoder_bias
        if x is None:
            raise DictionaryError(
                "the reconstruction depends on the input beside the features (a skip connection or a normalisation)",
                where=repr(self),
                fix="pass x as well",
            )
        x = x.to(self.encoder)
        mean, spread = self._spread(x)
        out = self.decoder_bias * spread + mean if self.normalise != "none" else self.decoder_bias
        return out if self.skip is None else out + torch.nn.functional.linear(x, self.skip)

    def decode(
        self, features: Float[Tensor, "... feature"], x: Float[Tensor, "... d_in"] | None = None
    ) -> Float[Tensor, "... d_out"]:
        """The reconstruction from feature activations; `x` only where `needs_input`.

        Raises:
            DictionaryError: as `baseline`.
        """
        return features.to(self.decoder) @ self.decoder + self.baseline(x)

    def reconstruct(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """`decode(encode(x), x)`."""
        return self.decode(self.encode(x), x)

    def error(
        self, x: Float[Tensor, "... d_in"], y: Float[Tensor, "... d_out"] | None = None
    ) -> Float[Tensor, "... d_out"]:
        """What the reconstruction misses of `y` (of `x` itself in an autoencoder).

        Raises:
            DictionaryError: a transcoder without `y`.
        """
        if y is None and not self.autoencoder:
            raise DictionaryError("a transcoder's error is of what it writes", where=repr(self), fix="pass y")
        return (x if y is None else y).to(self.encoder) - self.reconstruct(x)

    def fold(self) -> Dictionary:
        """The same function with decoder rows of length 1; `scale` records what features were multiplied by.

        Rows of length 0 stay.
        """
        norms = self.decoder.norm(dim=1)
        return self._rescaled(torch.where(norms > 0, norms, 1))

    def unfold(self) -> Dictionary:
        """The same function in the units of whoever trained it."""
        return self if self.scale is None else self._rescaled(1 / self.scale)

    def rescaled(self, by_in: float | Float[Tensor, " d_in"], by_out: float | Float[Tensor, " d_out"]) -> Dictionary:
        """A dictionary that takes `x * by_in` and gives `y * by_out`, as one that takes `x` and gives `y`.

        Features stay as they are.
        """
        into = torch.as_tensor(by_in, dtype=self.dtype, device=self.device)
        out = torch.as_tensor(by_out, dtype=self.dtype, device=self.device)
        return replace(
            self,
            encoder=self.encoder * into,
            input_bias=None if self.input_bias is None else self.input_bias / into,
            decoder=self.decoder / out,
            decoder_bias=self.decoder_bias / out,
            skip=None if self.skip is None else self.skip * into / out.reshape(-1, 1),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dictionary:
        """The same dictionary elsewhere, or in another precision."""
        names = [name for name, value in vars(self).items() if isinstance(value, Tensor)]
        return replace(self, **{name: getattr(self, name).to(device=device, dtype=dtype) for name in names})

    def _rescaled(self, by: Tensor) -> Dictionary:
        ranked = self.selection != "all"
        ones = torch.ones_like(by)
        return replace(
            self,
            encoder=self.encoder * by[:, None],
            encoder_bias=self.encoder_bias * by,
            threshold=self.threshold * by,
            decoder=self.decoder / by[:, None],
            rank=(ones if self.rank is None else self.rank) / by if ranked else None,
            scale=(ones if self.scale is None else self.scale) * by,
        )

    def _spread(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and divisor of each token."""
        if self.normalise == "layer_norm":
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return torch.zeros_like(x[..., :1]), (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5).clamp(min=1e-12)

    def _normalised(self, x: Tensor) -> Tensor:
        if self.normalise == "none":
            return x
        mean, spread = self._spread(x)
        # SAELens guards a constant token in this way; its output is multiplied by the bare standard deviation.
        return (x - mean) / (spread + 1e-5 if self.normalise == "layer_norm" else spread)


@dataclass(frozen=True, eq=False)
class CrossLayer:
    """A cross-layer transcoder: features of each layer write to that layer's place and all later ones.

    y_hat[place] = sum over the layers that write there of (features decoder) + that place's bias.

    Args:
        layers: one dictionary for each layer; `writes` of each is a tail of the places of the first. A place's bias is
            the `decoder_bias` of the dictionary that comes first in it, all other biases are 0.

    Raises:
        DictionaryError: places that are not such tails.
    """

    layers: tuple[Dictionary, ...]

    def __post_init__(self) -> None:
        places = self.places
        for i, layer in enumerate(self.layers):
            if layer.writes != places[i:]:
                raise DictionaryError(
                    f"layer {i} writes {' '.join(layer.writes)}, expected {' '.join(places[i:])}", where="layers"
                )

    @classmethod
    def split(cls, whole: Dictionary) -> CrossLayer:
        """Take apart what was trained as one dictionary (`Job(cross_layer=True)`).

        Raises:
            DictionaryError: features read or write where those of their layer must not.
        """
        n, width = len(whole.reads), whole.width
        if n != len(whole.writes) or width % n or whole.selection != "all" or whole.skip is not None:
            raise DictionaryError("is no cross-layer transcoder", where=repr(whole))
        d_in, d_out, each = whole.d_in // n, whole.d_out // n, width // n
        layers = []
        for i in range(n):
            mine = slice(i * each, (i + 1) * each)
            encoder, decoder = whole.encoder[mine], whole.decoder[mine]
            here, after = slice(i * d_in, (i + 1) * d_in), slice(i * d_out, None)
            if encoder.count_nonzero() != encoder[:, here].count_nonzero() or decoder[:, : i * d_out].any():
                raise DictionaryError(f"features of layer {i} read or write other layers", where=repr(whole))
            bias = torch.zeros_like(whole.decoder_bias[after])
            bias[:d_out] = whole.decoder_bias[i * d_out : (i + 1) * d_out]
            layers.append(
                replace(
                    whole,
                    encoder=encoder[:, here].clone(),
                    encoder_bias=whole.encoder_bias[mine].clone(),
                    decoder=decoder[:, after].clone(),
                    decoder_bias=bias,
                    threshold=whole.threshold[mine].clone(),
                    reads=(whole.reads[i],),
                    writes=whole.writes[i:],
                    input_bias=None if whole.input_bias is None else whole.input_bias[here].clone(),
                    scale=None if whole.scale is None else whole.scale[mine].clone(),
                )
            )
        return cls(tuple(layers))

    @property
    def places(self) -> tuple[str, ...]:
        """Where it writes."""
        return self.layers[0].writes if self.layers else ()

    def encode(self, inputs: Sequence[Float[Tensor, "... d_in"]]) -> list[Float[Tensor, "... feature"]]:
        """Features of every layer, each from its own input."""
        return [layer.encode(x) for layer, x in zip(self.layers, inputs, strict=True)]

    def decode(
        self, features: Sequence[Float[Tensor, "... feature"]], inputs: Sequence[Tensor] | None = None
    ) -> dict[str, Float[Tensor, "... d_out"]]:
        """The reconstruction at every place; `inputs` only where a layer has a skip connection."""
        given = [None] * len(self.layers) if inputs is None else inputs
        out: dict[str, Tensor] = {}
        for layer, f, x in zip(self.layers, features, given, strict=True):
            parts = layer.decode(f, x).chunk(len(layer.writes), dim=-1)
            for place, part in zip(layer.writes, parts, strict=True):
                out[place] = out[place] + part if place in out else part
        return out
