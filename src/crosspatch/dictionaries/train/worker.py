"""One dictionary in training: its parameters, its optimiser, one step, and the dictionary that comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.train.coder import Coder, Moment, Terms
from crosspatch.dictionaries.train.dead import resample
from crosspatch.dictionaries.train.settings import Job, Settings
from crosspatch.dictionaries.train.start import SAMPLE, scale_encoder
from crosspatch.dictionaries.train.stream import Batch, generator
from crosspatch.errors import DictionaryError


class Worker:
    """Trains one job.

    Args:
        job, settings: what and how.
        number: which job it is; each has its own random numbers.
        sample: activations to measure scales and means on.
        device: where it is trained.
    """

    def __init__(self, job: Job, settings: Settings, number: int, sample: Batch, device: torch.device) -> None:
        self.job, self.settings, self.device = job, settings, device
        self.generator = generator(f"dictionary {settings.seed} {number}")
        self.mean_in, self.scale_in = _measure(sample, job.places_in, device)
        self.mean_out, self.scale_out = _measure(sample, job.places_out, device)
        tied = job.places_in == job.places_out
        d_in, d_out = len(self.mean_in), len(self.mean_out)
        self.masks = _cross_layer(job, d_in, d_out) if job.cross_layer else {}
        decoder = _unit(torch.randn(job.width, d_out, generator=self.generator) * self.masks.get("decoder", 1))
        encoder = decoder.clone() if tied else torch.randn(job.width, d_in, generator=self.generator)
        encoder = _unit(encoder * self.masks.get("encoder", 1))
        self.masks = {name: mask.to(device) for name, mask in self.masks.items()}
        params = {
            "encoder": encoder.to(device),
            "encoder_bias": torch.zeros(job.width, device=device),
            "decoder": decoder.to(device),
            "decoder_bias": torch.zeros(d_out, device=device),
        }
        if job.skip:
            params["skip"] = torch.zeros(d_out, d_in, device=device)
        self.coder = Coder(params, len(job.places_out), tied)
        job.variant.prepare(self.coder)
        some = {place: value[:: max(1, len(value) // SAMPLE)] for place, value in sample.items()}
        scale_encoder(job.variant, self.coder, *self.normalised(some))
        for value in params.values():
            value.requires_grad_()
        self.lr = job.variant.learning_rate(job.width) if job.lr is None else job.lr
        self.optimizer = torch.optim.Adam(list(params.values()), lr=self.lr, betas=job.variant.betas, fused=True)
        self.silent = torch.zeros(job.width, dtype=torch.int64, device=device)  # tokens since last active
        self.reset()

    def reset(self) -> None:
        """Start new averages for the next report."""
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # loss, L0, squared error, variance
        self.batches = 0

    @property
    def dead(self) -> Tensor:
        """Features without activity for `dead_after` tokens."""
        return self.silent >= self.settings.dead_after

    def normalised(self, batch: Batch) -> tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]]:
        """Input and target in training units, centred."""
        x = (self._at(batch, self.job.places_in) - self.mean_in) * self.scale_in
        return x, x if self.coder.tied else (self._at(batch, self.job.places_out) - self.mean_out) * self.scale_out

    def step(self, batch: Batch, step: int) -> None:
        """One step of the optimiser.

        Raises:
            DictionaryError: the loss is not a number any more.
        """
        x, y = self.normalised(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.autocast):
            at = Moment(step, self.settings.steps, self.settings.sparsity_factor(step), self.dead)
            terms = self.job.variant.terms(self.coder, x, y, at)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.settings.lr_factor(step)
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        self._apply()
        self._note(terms, y)
        self._replace(terms, x, y, step)

    def report(self) -> dict[str, float]:
        """Averages since the last report: loss, l0, fvu; and the share of dead features.

        Raises:
            DictionaryError: the loss is not finite.
        """
        loss, l0, error, variance = (self.sums / max(1, self.batches)).tolist()
        if not math.isfinite(loss):
            raise DictionaryError(
                "the loss is not finite", where=self.job.label, fix="lower lr, or look for infinite activations"
            )
        fvu = error / variance if variance > 0 else float("nan")
        return {"loss": loss, "l0": l0, "fvu": fvu, "dead": float(self.dead.double().mean())}

    @torch.no_grad()
    def dictionary(self) -> Dictionary:
        """What has been learned, for activations as they are, with decoder rows of length 1."""
        done, params = self.job.variant.finish(self.coder), self.coder.params
        center_in, center_out = self.mean_in * self.scale_in, self.mean_out * self.scale_out
        bias = params["decoder_bias"].detach() + center_out
        if "skip" in params:
            bias = bias - params["skip"].detach() @ center_in
        made = Dictionary(
            done.encoder.detach().clone(),
            done.encoder_bias.detach().clone(),
            params["decoder"].detach().clone(),
            bias,
            done.threshold.detach().clone(),
            self.job.places_in,
            self.job.places_out,
            architecture=self.job.variant.name,
            input_bias=bias if self.coder.tied else center_in,
            skip=params["skip"].detach().clone() if "skip" in params else None,
            selection=done.selection,
            k=done.k,
            meta={"trained_as": self.job.plain()},
        )
        return made.rescaled(self.scale_in, self.scale_out).fold()

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on."""
        return {
            "params": {name: value.detach() for name, value in self.coder.params.items()},
            "state": self.coder.state,
            "optimizer": self.optimizer.state_dict(),
            "silent": self.silent,
            "generator": self.generator.get_state(),
            "scales": [self.mean_in, self.scale_in, self.mean_out, self.scale_out],
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where a worker of the same job was."""
        for name, value in self.coder.params.items():
            value.copy_(state["params"][name])
        self.coder.state = {name: value.to(self.device) for name, value in state["state"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.silent.copy_(state["silent"])
        self.generator.set_state(state["generator"].cpu())
        scales = [value.to(self.device) for value in state["scales"]]
        self.mean_in, self.scale_in, self.mean_out, self.scale_out = scales

    def _at(self, batch: Batch, places: tuple[str, ...]) -> Tensor:
        parts = [batch[place].to(self.device, torch.float32) for place in places]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @torch.no_grad()
    def _apply(self) -> None:
        """The optimiser's step, with decoder rows kept at length 1 (only changes of direction count)."""
        decoder = self.coder.params["decoder"]
        assert decoder.grad is not None
        for name, mask in self.masks.items():
            grad = self.coder.params[name].grad
            assert grad is not None
            grad *= mask
        decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        torch.nn.utils.clip_grad_norm_(list(self.coder.params.values()), self.settings.clip)
        self.optimizer.step()
        decoder.copy_(_unit(decoder))

    @torch.no_grad()
    def _note(self, terms: Terms, y: Tensor) -> None:
        self.silent += len(y)
        self.silent[terms.active > 0] = 0
        error = (y - terms.reconstruction.detach()).pow(2).sum() / len(y)
        variance = (y - y.mean(0)).pow(2).sum() / len(y)
        self.sums += torch.stack([terms.loss.detach(), terms.l0, error, variance]).double()
        self.batches += 1

    @torch.no_grad()
    def _replace(self, terms: Terms, x: Tensor, y: Tensor, step: int) -> None:
        late = step >= 0.8 * self.settings.steps
        if not self.job.variant.resamples or late or (step + 1) % self.settings.resample_every:
            return
        dead = self.dead
        error = (y - terms.reconstruction).float()
        if resample(self.coder, self.optimizer, dead, x, error, self.generator):
            self.job.variant.revive(self.coder, dead)
            for name, mask in self.masks.items():
                self.coder.params[name] *= mask
            self.silent[dead] = 0


def _measure(sample: Batch, places: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean of every dimension, and for every dimension what makes its place's mean squared deviation 1 (over all of a
    crosscoder's places: 1 in sum).
    """
    means, scales = [], []
    for place in places:
        values = sample[place].to(device, torch.float32)
        mean = values.mean(0)
        spread = (values - mean).pow(2).sum(1).mean().sqrt()
        if not (torch.isfinite(spread) and spread > 0):
            raise DictionaryError(
                f"activations have the spread {float(spread):g}", where=place, fix="they must vary and be finite"
            )
        means.append(mean)
        scales.append(torch.full_like(mean, 1 / float(spread * len(places) ** 0.5)))
    return torch.cat(means), torch.cat(scales)


def _cross_layer(job: Job, d_in: int, d_out: int) -> dict[str, Tensor]:
    """Which entries of encoder and decoder may differ from 0: layer i reads place i and writes places i, i + 1, ..."""
    n = len(job.places_in)
    layer = torch.arange(job.width) // (job.width // n)
    read, written = torch.arange(d_in) // (d_in // n), torch.arange(d_out) // (d_out // n)
    return {"encoder": layer[:, None] == read, "decoder": layer[:, None] <= written}


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
