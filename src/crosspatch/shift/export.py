"""An ablation that can be kept: a `transformers` model that takes features out wherever it runs, `generate` included.

The folder is self-contained: `config.json`, `model.safetensors` (the model's weights, the features' encoder and decoder
rows, and the classifier), and the tokenizer. `load_exported` reads it, and so does `AutoModelForCausalLM` once this
module was imported. No code is read from the folder, and nothing is unpickled.

Features are taken out by hooks on the model's own modules, place after place, each encoded as the ablations before it
left the activation; error terms stay. Tokens that do not count (the beginning-of-text token) are left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.errors import DictionaryError, ModelError, ResultError
from crosspatch.features.basis import Bases, Features
from crosspatch.features.nodes import NodeSet
from crosspatch.graph import parse_site
from crosspatch.model import Model
from crosspatch.model.anatomy import Anatomy, read_anatomy
from crosspatch.shift.probe import Probe
from crosspatch.tasks.encode import Encoder

MODEL_TYPE = "crosspatch_ablated"
_PARTS = ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold", "input_bias", "rank")


class AblatedConfig(PreTrainedConfig):
    """The config of the model inside, and what is taken out of it.

    Args:
        inner: config of the model inside.
        places: one entry each: `place`, `selection`, `k`, `normalise`, `shapes` of the dictionary's tensors, and
            `features` (rows of the stored dictionary that are taken out).
        left_alone: ids of tokens at which nothing is taken out.
        classifier: `layer`, `labels` of the classifier, or None.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        inner: dict[str, Any] | None = None,
        places: Sequence[dict[str, Any]] = (),
        left_alone: Sequence[int] = (),
        classifier: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.inner, self.places = inner or {}, list(places)
        self.left_alone, self.classifier = list(left_alone), classifier
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
            if name in self.inner:
                kwargs.setdefault(name, self.inner[name])
        super().__init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The model inside has the sizes that caches and generation ask for."""
        return self.inner_config() if self.inner else self

    def inner_config(self) -> PreTrainedConfig:
        given = dict(self.inner)
        return AutoConfig.for_model(given.pop("model_type"), **given)


class _Ablation(nn.Module):
    """Some features of one dictionary."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.place, self.about, self.features = str(about["place"]), about, list(about["features"])
        for name, shape in about["shapes"].items():
            if name not in _PARTS:
                raise ModelError(f"unknown tensor {name!r}", where=f"ablation at {self.place}")
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "... d"], counts: Bool[Tensor, "text token"] | None) -> Float[Tensor, "... d"]:
        flat = x.flatten(0, -2)
        dictionary = self._dictionary()
        basis = Features(self.place, (0, ""), dictionary.width, True, dictionary)
        index = torch.tensor(self.features, device=x.device)
        change = -basis.only(flat, index)
        if counts is not None:
            change = change * counts.flatten()[:, None].to(change)
        return (flat + basis.written(change, index).to(flat)).view_as(x)

    def _dictionary(self) -> Dictionary:
        tensors = {name: getattr(self, name) for name in self.about["shapes"]}
        rest = {name: self.about[name] for name in ("selection", "k", "normalise")}
        return Dictionary(**tensors, reads=(self.place,), writes=(self.place,), **rest)


class AblatedModel(PreTrainedModel, GenerationMixin):
    """A language model without some features of its activations; make it with `export` or `load_exported`."""

    config_class = AblatedConfig
    base_model_prefix = "inner"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: AblatedConfig) -> None:
        super().__init__(config)
        self.inner = AutoModelForCausalLM.from_config(config.inner_config())
        self.ablations = nn.ModuleList(_Ablation(about) for about in config.places)
        self.classifier = None
        if config.classifier is not None:
            self.classifier = nn.Linear(int(config.classifier["d_model"]), 1)
        self._counts: Bool[Tensor, "text token"] | None = None
        self._classifying, self._seen = False, torch.empty(0)
        self._hook()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every weight is read from the folder; there is nothing to draw."""

    def _hook(self) -> None:
        anatomy = read_anatomy(self.inner)
        for ablation, about in zip(self.ablations, self.config.places, strict=True):
            _install(anatomy, about["place"], self._without(ablation))
        if self.config.classifier is not None:
            last = anatomy.blocks[int(self.config.classifier["layer"])].layer

            def keep(_: Any, args: Any, out: Any) -> None:
                if self._classifying:
                    self._seen = out[0] if isinstance(out, tuple) else out

            last.register_forward_hook(keep)

    def _without(self, ablation: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: ablation(x, self._counts)

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.inner.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, input_ids: Int[Tensor, "text token"] | None = None, **kwargs: Any) -> Any:
        """As the model inside; the features are taken out on the way.

        Raises:
            ModelError: embeddings instead of token ids, where some tokens are to be left alone.
        """
        left = self.config.left_alone
        if left and input_ids is None:
            raise ModelError(
                "the tokens that are left alone cannot be told from embeddings",
                where=MODEL_TYPE,
                fix="give input_ids",
            )
        if left:
            assert input_ids is not None
            self._counts = ~torch.isin(input_ids, torch.tensor(left, device=input_ids.device))
        try:
            return self.inner(input_ids=input_ids, **kwargs)
        finally:
            self._counts = None

    @torch.no_grad()
    def classify(
        self, input_ids: Int[Tensor, "text token"], attention_mask: Int[Tensor, "text token"] | None = None
    ) -> Float[Tensor, " text"]:
        """The classifier's logit of each text: above 0 for `config.classifier["labels"][1]`.

        Raises:
            ModelError: exported without a classifier.
        """
        if self.classifier is None:
            raise ModelError("has no classifier", where=MODEL_TYPE, fix="export it with probe=")
        self._classifying = True
        try:
            self(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        finally:
            self._classifying = False
        seen, self._seen = self._seen, torch.empty(0)
        counts = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        for token in self.config.left_alone:
            counts = counts & (input_ids != token)
        weight = counts.to(seen)[..., None]
        mean = (seen * weight).sum(1) / weight.sum(1)
        return self.classifier(mean.to(self.classifier.weight))[:, 0]


def _install(anatomy: Anatomy, place: str, change: Callable[[Tensor], Tensor]) -> None:
    """A hook on the module that computes, or reads, the activation at a place.

    Raises:
        ModelError: an activation that no module of its own gives (the stream between attention and MLP).
    """

    def after(_: Any, args: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def read(module: nn.Module) -> None:
        module.register_forward_pre_hook(before, with_kwargs=True)

    if place.endswith(".z"):
        return read(anatomy.blocks[int(place[1:-2])].o_proj)
    site = parse_site(place)
    if site.kind == "input":
        return read(anatomy.blocks[0].layer)
    assert site.layer is not None
    block = anatomy.blocks[site.layer]
    made = {
        "resid_post": block.layer,
        "attn_out": block.norm_attn_out if isinstance(block.norm_attn_out, nn.Module) else block.attn,
        "mlp_out": block.norm_mlp_out if isinstance(block.norm_mlp_out, nn.Module) else block.mlp,
    }.get(site.kind)
    if site.kind == "resid_pre":
        return read(block.layer)
    if site.kind == "mlp_act" and block.down_proj is not None:
        return read(block.down_proj)
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"no module of this family gives {place} alone",
            where="export",
            fix="use dictionaries of attention, MLP and block outputs",
        )
    made.register_forward_hook(after)
    return None


def export(
    model: Model,
    bases: Bases,
    features: NodeSet,
    folder: str | Path,
    *,
    probe: Probe | None = None,
    labels: tuple[str, str] | None = None,
    with_bos: bool = False,
) -> Path:
    """Write a model without some features as a folder that `transformers` can run.

    Args:
        model: the whole model; it is not changed.
        bases: the places, as in a `ProbeCircuit`.
        features: what is taken out. Zero takes its place.
        folder: made if need be.
        probe: a classifier to go with it.
        labels: names of its two classes.
        with_bos: take them out of the beginning-of-text token as well.

    Returns:
        the folder.

    Raises:
        DictionaryError: a node that is no feature of a dictionary.
        ModelError: a place that no module of this family gives.
    """
    folder = Path(folder)
    chosen: dict[str, list[int]] = {}
    for node in features:
        if node.feature is None:
            raise DictionaryError("error terms cannot be exported as taken out", where=str(node), fix="features only")
        chosen.setdefault(node.place, []).append(node.feature)
    parts = [_part(basis, sorted(chosen[basis.place])) for basis in bases if basis.place in chosen]
    left = [] if with_bos or model.tokenizer is None else list(Encoder(model.tokenizer).bos.ids)
    config = AblatedConfig(
        model.hf.config.to_dict(),
        [about for about, _ in parts],
        left,
        None if probe is None else {
            "layer": probe.layer, "d_model": len(probe.weight), "labels": list(labels or ("0", "1")),
        },
    )  # fmt: skip
    made = AblatedModel(config)
    try:
        made.inner.load_state_dict(model.hf.state_dict())
    except RuntimeError as error:
        raise ModelError(
            "its weights are not those of its config, so that a folder could not be read again",
            where=model.name,
            fix="export a model whose modules were not replaced",
        ) from error
    made.inner.to(model.dtype)
    for module, (_, tensors) in zip(made.ablations, parts, strict=True):
        module.load_state_dict(tensors)
    if probe is not None:
        assert made.classifier is not None
        with torch.no_grad():
            made.classifier.weight.copy_(probe.weight[None])
            made.classifier.bias.fill_(probe.bias)
    made.generation_config = getattr(model.hf, "generation_config", None) or made.generation_config
    made.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    return folder


def _part(basis: Any, features: list[int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the config says about one place, and its tensors: only the rows that are needed, where rows are apart."""
    if not isinstance(basis, Features):
        raise DictionaryError("is no dictionary", where=basis.place, fix="export features of dictionaries")
    d = basis.dictionary
    index = list(range(len(features)))
    if d.selection == "all":
        at = torch.tensor(features, device=d.device)
        rows = {name: getattr(d, name)[at] for name in ("encoder", "encoder_bias", "decoder", "threshold")}
        d = dataclasses.replace(d, **rows, rank=None, scale=None)
    else:
        index = features  # features compete: which are active depends on all
    tensors = {name: getattr(d, name).detach().float().cpu() for name in _PARTS if getattr(d, name) is not None}
    about = {
        "place": basis.place,
        "selection": d.selection,
        "k": d.k,
        "normalise": d.normalise,
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "features": index,
        "names": [f"{basis.place}/{feature}" for feature in features],
    }
    return about, tensors


def load_exported(folder: str | Path) -> AblatedModel:
    """Read what `export` wrote, ready to run.

    Raises:
        ResultError: missing, or something else.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ResultError(
            "there is no exported model", where=str(folder), fix="give a folder of crosspatch shift --export"
        )
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, AblatedConfig):
        raise ResultError(f"is a {config.model_type!r} model", where=str(folder), fix="load it with transformers")
    return AblatedModel.from_pretrained(folder, use_safetensors=True).eval()


AutoConfig.register(MODEL_TYPE, AblatedConfig)
AutoModelForCausalLM.register(AblatedConfig, AblatedModel)
