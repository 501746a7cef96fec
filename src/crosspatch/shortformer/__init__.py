"""An attention-only decoder with positions in queries and keys only, and one trained for the study of induction.

``crosspatch.load("induction-2l")`` needs no network. ``modeling`` is the architecture, ``redwood`` reads the published
weights that it is modelled on, ``corpus`` is the text of the shipped model, ``train`` its trainer, ``evaluate``
measures it; the model card lies beside the weights.

Importing this package registers the architecture with ``AutoConfig`` and ``AutoModelForCausalLM``.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM

from crosspatch.shortformer.modeling import ShortformerConfig, ShortformerForCausalLM, ShortformerModel

AutoConfig.register(ShortformerConfig.model_type, ShortformerConfig, exist_ok=True)
AutoModelForCausalLM.register(ShortformerConfig, ShortformerForCausalLM, exist_ok=True)


def induction_path() -> Path:
    """Folder of the shipped induction model, as written by ``save_pretrained``."""
    return Path(str(files(__package__))) / "weights"


__all__ = ["ShortformerConfig", "ShortformerForCausalLM", "ShortformerModel", "induction_path"]
