"""The memory budget is kept: live tensor bytes of a replay, counted operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from crosspatch.graph import Site
from crosspatch.model import Edit, FromRun, Model, Row, Run, load, record, replay
from crosspatch.model.budget import MIB

VOCAB, LENGTH, EXAMPLES, LAYERS, HEADS = 3000, 40, 4, 2, 8
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=VOCAB, n_embd=128, n_layer=LAYERS, n_head=HEADS, n_positions=64, bos_token_id=0,
                      eos_token_id=0)
    ),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_LLAMA)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**_LLAMA, head_dim=16)),  # writes its scores to memory
}  # fmt: skip


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if id(storage) not in self.seen and id(storage) not in given:
                self.seen.add(id(storage))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return load(MODELS[request.param]().eval())


def sites(kind: str) -> list[Site]:
    indices: list[int | None] = [None]
    if kind in ("z", "pattern"):
        indices = [*range(HEADS)]
    elif kind == "neuron":
        indices = [7]
    return [Site(kind, layer, index) for layer in range(LAYERS) for index in indices]


def runs(model: Model) -> tuple[Run, Run]:
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(0, VOCAB, (2, EXAMPLES, LENGTH), generator=generator).tolist()
    return record(model, clean), record(model, corrupt)


def test_the_counter_counts() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10]
        del a, b
        assert live.now == 4000  # the view keeps what it is a part of
        del view
    assert (live.now, live.peak) == (0, 8000)


def test_a_run_says_what_it_holds(model: Model) -> None:
    base, _ = runs(model)
    before, width = base.nbytes, model.shape.d_model
    assert before == EXAMPLES * width * 4  # the states that were read
    base.value("r1", 0)
    assert base.nbytes == before + EXAMPLES * LENGTH * width * 4
    base.value("a0.h0.pattern", 0)
    assert base.nbytes == before + EXAMPLES * LENGTH * (width + HEADS * LENGTH) * 4


@pytest.mark.parametrize("columns", [[1, 2, 3], None], ids=["three columns", "all columns"])
@pytest.mark.parametrize("kind", ["resid_pre", "z", "pattern", "mlp_out", "neuron"])
def test_a_replay_stays_under_its_budget(model: Model, kind: str, columns: list[int] | None) -> None:
    base, source = runs(model)
    # Not the last position only: a row from an early position carries all later ones.
    rows = [
        Row(example, (Edit(site, (position,), FromRun(source, example)),))
        for site in sites(kind)
        for position in range(0, LENGTH, 4)
        for example in range(EXAMPLES)
    ]
    plenty = replay(base, rows, lambda readout: None, columns=columns, budget_mib=1000)  # records what is needed
    for budget in (2, 5, 12):
        with LiveBytes() as live:
            cost = replay(base, rows, lambda readout: None, columns=columns, budget_mib=budget)
        assert live.peak <= budget * MIB
        assert cost.token_layers == plenty.token_layers
        if cost.chunks > 2:  # and it is used, not just kept
            assert live.peak >= budget * MIB / 4
