"""Short fingerprints that tell models apart."""

from __future__ import annotations

import hashlib
import json

import torch

from crosspatch.model.model import Model

SAMPLED = 4096


def config_hash(model: Model) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the model's config, without the name of the folder it came from."""
    config = {
        name: value for name, value in model.hf.config.to_dict().items() if name not in ("_name_or_path", "dtype")
    }
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_hash(model: Model) -> str:
    """First 16 hexadecimal digits of a SHA-256 over every parameter's name, shape, and `SAMPLED` of its values.

    A fingerprint that tells models apart in no time whatever their size; it does not certify every single weight.
    """
    digest = hashlib.sha256()
    for name, parameter in model.hf.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLED)].to("cpu", torch.float32)
        digest.update(f"{name}{list(parameter.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]
