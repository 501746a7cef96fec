"""The attention-only shortformer model: as a transformers class, in the executor, and as the published layout."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from families import VOCAB, make
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import crosspatch as cp
from crosspatch.errors import AddressError, InterventionError, ModelError
from crosspatch.graph import Site, nodes
from crosspatch.model.check import relative_error
from crosspatch.shortformer import ShortformerConfig, ShortformerForCausalLM
from crosspatch.shortformer.redwood import from_transformer_lens, load_redwood

VOCABULARY, WIDTH, HEADS, CONTEXT = 61, 32, 8, 40


@pytest.fixture(scope="module")
def small() -> ShortformerForCausalLM:
    return make("shortformer")


def tokens(n: int = 3, length: int = 17, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return torch.randint(vocab, (n, length), generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------- a transformers class


def test_saved_and_loaded_it_is_the_same_model(small: ShortformerForCausalLM, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is ShortformerForCausalLM
    assert again.config.to_dict() == {**small.config.to_dict(), "_name_or_path": again.config._name_or_path}
    with torch.no_grad():
        assert torch.equal(again.eval()(tokens()).logits, small(tokens()).logits)


def test_eager_and_sdpa_agree_and_eager_shows_its_patterns(small: ShortformerForCausalLM) -> None:
    eager = copy.deepcopy(small)
    eager.set_attn_implementation("eager")
    assert small.config._attn_implementation == "sdpa"
    with torch.no_grad():
        out = eager(tokens(), output_attentions=True, output_hidden_states=True)
        assert relative_error(small(tokens()).logits, out.logits) < 1e-5
    assert [tuple(a.shape) for a in out.attentions] == [(3, 4, 17, 17)] * 3
    assert torch.allclose(out.attentions[1].sum(-1), torch.ones(3, 4, 17))
    assert not out.attentions[1].triu(1).any()
    assert len(out.hidden_states) == 4


@torch.no_grad()
def test_a_cache_and_padding_on_the_left_change_nothing(small: ShortformerForCausalLM) -> None:
    ids = tokens()
    whole = small(ids).logits
    first = small(ids[:, :9], use_cache=True)
    rest = small(ids[:, 9:], past_key_values=first.past_key_values)
    assert relative_error(torch.cat([first.logits, rest.logits], 1), whole) < 1e-5
    padded = torch.cat([torch.zeros(3, 5, dtype=torch.long), ids], 1)
    mask = (torch.arange(22) >= 5).long().expand(3, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    shifted = small(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
    assert relative_error(shifted, whole) < 1e-5
    greedy = small.generate(ids[:, :9], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(greedy[:, 9], whole[:, 8].argmax(-1))


@torch.no_grad()
def test_loss_and_kept_logits(small: ShortformerForCausalLM) -> None:
    out = small(tokens(), labels=tokens())
    want = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
    assert torch.allclose(out.loss, want)
    assert torch.equal(small(tokens(), logits_to_keep=2).logits, out.logits[:, -2:])


@torch.no_grad()
def test_positions_reach_queries_and_keys_and_nothing_else(small: ShortformerForCausalLM) -> None:
    """With attention on one token (the first has no other), positions cannot matter; values never see them."""
    moved = copy.deepcopy(small)
    moved.model.embed_positions.weight.add_(torch.randn(128, 64, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(moved(tokens()).logits[:, 0], small(tokens()).logits[:, 0])
    assert not torch.allclose(moved(tokens()).logits[:, 5], small(tokens()).logits[:, 5], atol=1e-3)
    before, after = (cp.record(cp.load(m), tokens().tolist()) for m in (small, moved))
    assert torch.equal(before.value("input", 0), after.value("input", 0))
    assert torch.equal(before.value("a0.h1.v", 0), after.value("a0.h1.v", 0))
    for part in ("q", "k"):
        assert not torch.allclose(before.value(f"a0.h1.{part}", 0), after.value(f"a0.h1.{part}", 0), atol=1e-3)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide"):
        ShortformerConfig(hidden_size=64, num_attention_heads=3)


# ------------------------------------------------------------------------------- blocks without an MLP, in the graph


def test_the_graph_of_an_attention_only_model(small: ShortformerForCausalLM) -> None:
    model = cp.load(small)
    assert not model.shape.has_mlp and not model.shape.has_neurons and model.shape.d_mlp == 0
    assert {site.kind for site in nodes(model.shape)} == {"input", "z"}
    run = cp.record(model, tokens().tolist())
    for name in ("m0", "m0.act", "m0.n3", "r1.mid"):
        with pytest.raises(AddressError, match="no MLP"):
            run.value(name, 0)
    source = cp.record(model, tokens(seed=1).tolist())
    for site in (Site("mlp_out", 1), Site("mlp_act", 1), Site("resid_mid", 1)):
        with pytest.raises(InterventionError, match="they have no MLP"):
            cp.replay(run, [cp.Row(0, (cp.Edit(site, (3,), cp.FromRun(source, 0)),))], lambda readout: None)


def test_an_mlp_with_an_unknown_name_is_not_taken_for_none() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4)).eval()
    for block in gpt2.transformer.h:
        block.feedforward = block.mlp
        del block.mlp
    with pytest.raises(ModelError, match="could not find the mlp of GPT2LMHeadModel"):
        cp.load(gpt2)


def test_the_layout_of_an_attention_only_model_can_be_given(small: ShortformerForCausalLM) -> None:
    layout = cp.Layout(layers="model.layers", final_norm="model.norm", mlp=None, norm_mlp_in=None)
    assert not cp.load(small, layout=layout).shape.has_mlp


# ------------------------------------------------------------------------------------------ the published layout


def published(seed: int = 0, bias: float = 0.3) -> dict[str, Tensor]:
    """Random tensors in the layout of ``redwood_attn_2l``: 2 layers, 8 heads, small sizes."""
    generator = torch.Generator().manual_seed(seed)
    d_head = WIDTH // HEADS

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    state = {
        "embed.W_E": random(VOCABULARY, WIDTH),
        "pos_embed.W_pos": random(CONTEXT, WIDTH),
        "ln_final.w": 1 + 0.2 * random(WIDTH),
        "ln_final.b": 0.2 * random(WIDTH),
        "unembed.W_U": random(WIDTH, VOCABULARY) / WIDTH**0.5,
        "unembed.b_U": bias * random(VOCABULARY),
    }
    for i in range(2):
        state |= {f"blocks.{i}.ln1.w": 1 + 0.2 * random(WIDTH), f"blocks.{i}.ln1.b": 0.2 * random(WIDTH)}
        state |= {f"blocks.{i}.attn.W_{part}": random(HEADS, WIDTH, d_head) / 3 for part in "QKV"}
        state |= {f"blocks.{i}.attn.b_{part}": torch.zeros(HEADS, d_head) for part in "QKV"}
        state |= {f"blocks.{i}.attn.W_O": random(HEADS, d_head, WIDTH) / 3, f"blocks.{i}.attn.b_O": torch.zeros(WIDTH)}
        state |= {f"blocks.{i}.attn.mask": torch.ones(CONTEXT, CONTEXT).tril().bool()}
        state |= {f"blocks.{i}.attn.IGNORE": torch.tensor(-1e5)}
    return state


def written_out(state: dict[str, Tensor], ids: list[int]) -> Tensor:
    """The architecture of the study head by head and position by position, in float64: logits ``[position, vocab]``."""
    w = {name: tensor.double() for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean()
        return x / (x.pow(2).mean() + 1e-5).sqrt() * w[f"{name}.w"] + w[f"{name}.b"]

    stream = [w["embed.W_E"][token] for token in ids]
    for i in range(2):
        normed = [norm(x, f"blocks.{i}.ln1") for x in stream]
        placed = [x + w["pos_embed.W_pos"][p] for p, x in enumerate(normed)]
        added = [torch.zeros(WIDTH, dtype=torch.float64) for _ in ids]
        for head in range(HEADS):
            to_q, to_k, to_v, to_o = (w[f"blocks.{i}.attn.W_{part}"][head] for part in "QKVO")
            for p in range(len(ids)):
                scores = torch.stack([(placed[p] @ to_q) @ (placed[s] @ to_k) for s in range(p + 1)])
                pattern = (scores / (WIDTH // HEADS) ** 0.5).softmax(0)
                added[p] += sum(pattern[s] * (normed[s] @ to_v) for s in range(p + 1)) @ to_o
        stream = [x + a for x, a in zip(stream, added, strict=True)]
    return torch.stack([norm(x, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"] for x in stream])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_published_layout_computes_what_the_architecture_says(tmp_path: Path, suffix: str) -> None:
    state, path = published(), tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    model = cp.load(load_redwood(path), name="redwood_attn_2l")
    assert cp.check(model).passed
    assert (model.shape.n_layers, model.shape.n_heads, model.context) == (2, HEADS, CONTEXT)
    ids = tokens(1, 23, vocab=VOCABULARY)[0].tolist()
    got = cp.record(model, [ids], read=[range(23)]).logits()
    assert relative_error(got, written_out(state, ids)) < 1e-5


def test_an_unembedding_bias_is_kept_only_where_there_is_one() -> None:
    assert from_transformer_lens(published()).lm_head.bias is not None
    assert from_transformer_lens(published(bias=0.0)).lm_head.bias is None
    state = {name: tensor for name, tensor in published(bias=0.0).items() if ".b_" not in name}
    assert from_transformer_lens(state).lm_head.bias is None  # biases may be left out


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("embed.W_E", None, ["'embed.W_E' is missing", "2 dimensions"]),
        ("blocks.1.attn.W_K", None, ["'blocks.1.attn.W_K' is missing", "[8, 32, 4]"]),
        ("blocks.1.attn.W_O", torch.zeros(8, 32, 4), ["[8, 32, 4]", "has to be [8, 4, 32]"]),
        ("unembed.W_U", torch.zeros(61, 32), ["'unembed.W_U' has shape [61, 32]", "[32, 61]"]),
        ("pos_embed.W_pos", torch.zeros(5), ["'pos_embed.W_pos' has shape [5]", "2 dimensions"]),
        ("blocks.0.attn.W_Q", torch.zeros(8, 32, 5), ["8 heads of 5", "32"]),
        ("blocks.0.mlp.W_in", torch.zeros(2, 2), ["unknown tensor 'blocks.0.mlp.W_in'"]),
        ("blocks.0.attn.b_Q", torch.ones(8, 4), ["'blocks.0.attn.b_Q' is not zero"]),
        ("blocks.2.ln1.w", torch.ones(32), ["'blocks.2.attn.W_K' is missing"]),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(name: str, tensor: Tensor | None, words: list[str]) -> None:
    state = published()
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    with pytest.raises(ModelError) as error:
        from_transformer_lens(state)
    assert all(word in str(error.value) for word in words), str(error.value)


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_files_that_are_no_state_dict_are_refused_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with pytest.raises(ModelError, match="no such file"):
        load_redwood(path)
    path.write_bytes(pickle.dumps(_Trap(), protocol=2))
    with pytest.raises(ModelError, match="cannot be read"):
        load_redwood(path)
    torch.save({"model": {"embed.W_E": torch.zeros(2, 2)}}, path)
    with pytest.raises(ModelError, match="does not hold a state dict"):
        load_redwood(path)
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"not a file of tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load_redwood(broken)
