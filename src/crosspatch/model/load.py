"""Load a model in place: a name, a folder, or a model that is already in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from crosspatch.errors import ModelError
from crosspatch.model.anatomy import Layout, read_anatomy, read_shape
from crosspatch.model.check import check
from crosspatch.model.model import Model


def load(
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
    layout: Layout | None = None,
    name: str | None = None,
    verify: bool = True,
    **kwargs: Any,
) -> Model:
    """A model seen as a graph; the Hugging Face module itself is used and left as it is.

    Args:
        model: ``"embedded"`` or ``"induction-2l"`` (the models that ship with Crosspatch), a name that
            ``crosspatch models fetch`` knows, a local folder, a hub name, or a loaded ``AutoModelForCausalLM``.
        tokenizer: a tokenizer; default: the one beside the model.
        dtype: default float32 on a CPU, the checkpoint's own otherwise. Not for a loaded model.
        device, device_map: as in ``transformers``.
        layout: where the parts are, for a family that cannot be read by itself.
        name: what to call it in results.
        verify: compare the graph's logits with the model's own on one short prompt.
        kwargs: passed to ``from_pretrained`` (``revision``, ``token``, ``gguf_file``, ...). ``trust_remote_code`` is
            refused.

    Example:
        >>> import crosspatch as cp
        >>> model = cp.load("embedded")

    Raises:
        ModelError: the model cannot be found or read, or its graph does not reproduce its logits.
    """
    if isinstance(model, nn.Module):
        hf: Any = model
        given = {"dtype": dtype, "device_map": device_map, **kwargs}
        wrong = [key for key, value in given.items() if value is not None]
        if wrong:
            raise ModelError(f"{', '.join(wrong)} cannot change a model that is already loaded", where="load")
        name = name or getattr(hf.config, "_name_or_path", "") or type(hf).__name__
    else:
        hf, tokenizer, found = _from_pretrained(model, tokenizer, dtype, device, device_map, kwargs)
        name = name or found
    if device is not None and device_map is None:
        hf = hf.to(device)
    hf.eval() if not isinstance(model, nn.Module) else None
    if any(p.is_meta for p in hf.parameters()):
        raise ModelError(
            "some weights are off-loaded (they are on the meta device)",
            where=name,
            fix="give a device_map that keeps every layer on a CPU or GPU",
        )
    anatomy = read_anatomy(hf, layout)
    wrapped = Model(hf, tokenizer, anatomy, read_shape(hf, anatomy), name)
    if verify and not hf.training:
        check(wrapped, quick=True).require()
    return wrapped


def resolve(model: str | Path) -> str:
    """The folder or hub name that ``load`` would read for a name."""
    from crosspatch.embedded import embedded_path
    from crosspatch.model.fetch import fetched_path, known_models
    from crosspatch.shortformer import induction_path

    if str(model) == "embedded":
        return str(embedded_path())
    if str(model) == "induction-2l":
        return str(induction_path())
    if str(model) in known_models() and not Path(model).exists():
        found = fetched_path(str(model))
        if found is None:
            raise ModelError(f"{model} has not been fetched", where="load", fix=f"run: crosspatch models fetch {model}")
        return str(found)
    return str(model)


def _from_pretrained(
    model: str | Path, tokenizer: Any, dtype: Any, device: Any, device_map: Any, kwargs: dict[str, Any]
) -> tuple[Any, Any, str]:
    if kwargs.pop("trust_remote_code", False):
        raise ModelError(
            "trust_remote_code would run code from the model's folder", where=str(model), fix="leave it out"
        )
    path = resolve(model)
    if dtype is None:
        on_cpu = device_map is None and (device is None or torch.device(device).type == "cpu")
        dtype = torch.float32 if on_cpu else "auto"
    try:
        hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map=device_map, **kwargs)
        beside = {key: kwargs[key] for key in ("revision", "token", "subfolder", "gguf_file") if key in kwargs}
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(path, **beside)
    except (OSError, ValueError, KeyError) as error:
        folder = Path(path)
        here = (
            f"the folder holds {sorted(p.name for p in folder.iterdir())[:8]}" if folder.is_dir() else "no such folder"
        )
        raise ModelError(
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'} ({here})",
            where=f"loading {path!r}",
            fix="give a folder written by save_pretrained (config.json, model.safetensors, tokenizer files), "
            "or 'embedded', or a name listed by: crosspatch models",
        ) from error
    return hf, tokenizer, str(model)
