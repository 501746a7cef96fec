"""Training dictionaries: ours, dictionary-learning, sae-lens, each by its own public call on the same model and tokens.

All three stream activations of one model object through a buffer of the same size, of which half is renewed at a time,
and train with the same architecture, width and batch in single precision. What is timed lies between two calls for a
batch: a whole number of renewals of the buffer, after one of them; the first filling and set-up are left out on all
sides. The step alone is the time between the delivery of a batch and the call for the next.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import torch
from torch import Tensor

import crosspatch as cp
from benchmarks.problem import gpt2_small
from crosspatch.dictionaries.places import read_place
from crosspatch.dictionaries.train import Activations, Job, Settings, Standard, TopK, train
from crosspatch.dictionaries.train.stream import Batch
from crosspatch.model import record

MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 5000, "bos_token_id": 0, "eos_token_id": 0}
PLACE, MODULE = "r1.post", "transformer.h.1"
PROMPTS, LENGTH = 512, 128
WIDTH, K, L1, BATCH = 4096, 32, 0.1, 2048
BUFFER = 16 * BATCH
PASS = 32  # prompts that go through the model together
CYCLES = 3
LR, WARMUP = 1e-3, 5
NEVER = 10**9


class Enough(Exception):
    """What was to be timed is done."""


@dataclass
class Clock:
    """When batches were asked for, and when they came.

    Attributes:
        cycle: batches between two renewals of the buffer.
    """

    cycle: int
    asked: list[float] = field(default_factory=list)
    came: list[float] = field(default_factory=list)

    def draw(self, draw: Callable[[], Any]) -> Any:
        """A batch, once enough have been drawn: `Enough`."""
        self.asked.append(time.perf_counter())
        if len(self.asked) > self.cycle * (CYCLES + 1):
            raise Enough
        batch = draw()
        self.came.append(time.perf_counter())
        return batch

    @property
    def steps(self) -> int:
        """More than will be done."""
        return self.cycle * (CYCLES + 1) + 8

    def rates(self) -> tuple[float, float]:
        """Tokens per second: of everything, and of the training step alone."""
        first, last = self.cycle, self.cycle * (CYCLES + 1)
        alone = sum(self.asked[i + 1] - self.came[i] for i in range(first, last))
        tokens = (last - first) * BATCH
        return tokens / (self.asked[last] - self.asked[first]), tokens / alone


class _Timed(Activations):
    """Our stream, with a clock."""

    clock: Clock

    def draw(self) -> Batch:
        batch: Batch = self.clock.draw(super().draw)
        return batch


@dataclass
class Sides:
    """One architecture on the same problem.

    Args:
        architecture: "topk" or "standard".
    """

    architecture: str

    def __post_init__(self) -> None:
        self.problem = problem = gpt2_small(PROMPTS, LENGTH, 1, 0, **MODEL)
        self.model = cp.load(problem.hf, problem.tokenizer, name="gpt2-random")
        self.tokens = problem.clean

    @torch.no_grad()
    def difference(self) -> float:
        """Largest difference of our activations from those of the model called as it is, which the others read."""
        mine = read_place(record(self.model, self.tokens[:PASS].tolist(), read=[()] * PASS), [PLACE])
        theirs = self.problem.hf(self.tokens[:PASS], output_hidden_states=True).hidden_states[2]
        return float((mine - theirs.flatten(0, 1)).abs().max())

    def ours(self) -> Clock:
        clock = Clock(BUFFER // 2 // BATCH)
        stream = _Timed(self.model, self.tokens, buffer=BUFFER, drop_first=0, tokens_per_pass=PASS * LENGTH)
        stream.clock = clock
        variant = TopK(k=K) if self.architecture == "topk" else Standard(l1=L1)
        settings = Settings(clock.steps, BATCH, WARMUP, 0.0, WARMUP, NEVER, NEVER)
        with suppress(Enough):
            train(stream, Job(variant, PLACE, WIDTH, lr=LR), settings)
        return clock

    def dictionary_learning(self) -> Clock:
        """`trainSAE` on an `ActivationBuffer`, which takes text and calls the model through nnsight."""
        from dictionary_learning import ActivationBuffer
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer
        from dictionary_learning.training import trainSAE
        from nnsight import LanguageModel

        clock = Clock(BUFFER // 2 // BATCH + 1)  # it renews below half
        problem = self.problem
        problem.tokenizer.pad_token = "t0"

        def texts() -> Iterator[str]:
            while True:
                yield from (problem.text(ids) for ids in self.tokens.tolist())

        model = LanguageModel(problem.hf, tokenizer=problem.tokenizer)
        buffer = ActivationBuffer(
            texts(), model, model.transformer.h[1], d_submodule=MODEL["n_embd"], n_ctxs=BUFFER // LENGTH,
            ctx_len=LENGTH, refresh_batch_size=PASS, out_batch_size=BATCH, device="cpu",
        )  # fmt: skip
        own: dict[str, Any] = {"trainer": TopKTrainer, "k": K}
        if self.architecture == "standard":
            own = {"trainer": StandardTrainer, "l1_penalty": L1, "sparsity_warmup_steps": WARMUP}
        config = {
            "activation_dim": MODEL["n_embd"], "dict_size": WIDTH, "lr": LR, "device": "cpu",
            "warmup_steps": WARMUP, "steps": clock.steps, "layer": 1, "lm_name": "gpt2-random", "seed": 0, **own,
        }  # fmt: skip
        with suppress(Enough):
            trainSAE(_Wrapped(buffer, clock), [config], clock.steps, device="cpu")
        return clock

    def sae_lens(self) -> Clock:
        """`LanguageModelSAETrainingRunner` on tokens, with the model as sae-lens wraps models of `transformers`."""
        from datasets import Dataset
        from sae_lens import (
            LanguageModelSAERunnerConfig,
            LanguageModelSAETrainingRunner,
            LoggingConfig,
            StandardTrainingSAEConfig,
            TopKTrainingSAEConfig,
        )
        from sae_lens.load_model import HookedProxyLM

        clock = Clock(BUFFER // 2 // BATCH)
        size = {"d_in": MODEL["n_embd"], "d_sae": WIDTH}
        sae: Any = (
            TopKTrainingSAEConfig(**size, k=K)
            if self.architecture == "topk"
            else StandardTrainingSAEConfig(**size, l1_coefficient=L1, l1_warm_up_steps=WARMUP)
        )
        config = LanguageModelSAERunnerConfig(
            sae=sae, model_name="gpt2-random", model_class_name="AutoModelForCausalLM", hook_name=MODULE,
            dataset_path="", streaming=False, context_size=LENGTH, n_batches_in_buffer=BUFFER // LENGTH,
            training_tokens=clock.steps * BATCH, store_batch_size_prompts=PASS, train_batch_size_tokens=BATCH,
            prepend_bos=False, lr=LR, lr_warm_up_steps=WARMUP, device="cpu", dtype="float32", output_path=None,
            checkpoint_path=None, logger=LoggingConfig(log_to_wandb=False), verbose=False,
            dead_feature_window=NEVER, feature_sampling_window=NEVER,
        )  # fmt: skip
        model = HookedProxyLM(self.problem.hf, self.problem.tokenizer, hook_names=[MODULE])
        runner = LanguageModelSAETrainingRunner(
            config, Dataset.from_dict({"input_ids": self.tokens.tolist()}), override_model=model
        )
        runner.activations_store = _Wrapped(iter(runner.activations_store), clock)
        with suppress(Enough):
            runner.run()
        return clock


class _Wrapped:
    """An iterator of batches with a clock."""

    def __init__(self, batches: Any, clock: Clock) -> None:
        self.batches, self.clock, self.config = batches, clock, {}

    def __iter__(self) -> _Wrapped:
        return self

    def __next__(self) -> Tensor:
        batch: Tensor = self.clock.draw(lambda: next(self.batches))
        return batch


def quietly(run: Callable[[], Any]) -> Any:
    """Without progress bars and warnings of the libraries that are compared with."""
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        return run()
