"""The model that ships with the package: a small decoder trained by the project on its own text.

``crosspatch.load(embedded_path())`` needs no network. ``corpus`` is the text, ``train`` the trainer, ``evaluate``
measures the held-out accuracies; the model card lies beside the weights.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def embedded_path() -> Path:
    """Folder of the shipped model, readable by ``AutoModelForCausalLM`` and ``AutoTokenizer``."""
    return Path(str(files(__package__))) / "weights"
