"""A Hugging Face tokenizer as this package needs it: ids, character offsets, continuations, readable tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from crosspatch.errors import TaskError

CharSpan = tuple[int, int]
BosPolicy = Literal["tokenizer", "added", "removed"]


@dataclass(frozen=True)
class Bos:
    """What stands before the text of every prompt.

    Args:
        policy: "tokenizer" = whatever the tokenizer does on its own; "added" / "removed" = add_bos was given.
        ids: token ids put before the text (empty: none).
        tokens: the same as strings.
    """

    policy: BosPolicy
    ids: tuple[int, ...]
    tokens: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt, what stands before the text included, and the characters behind each token."""

    ids: list[int]
    offsets: list[CharSpan]


@dataclass(frozen=True)
class Continuation:
    """Token ids of an answer; not `exact` where prompt and answer merge into other tokens than the prompt's own."""

    ids: list[int]
    exact: bool


class Encoder:
    """Encodes prompts and answers with one fixed policy on what stands before the text.

    Args:
        tokenizer: a Hugging Face tokenizer, fast or not.
        add_bos: None = as the tokenizer does; True / False = with / without its beginning-of-text token.

    Raises:
        TaskError: `add_bos=True` but the tokenizer has no such token.
    """

    def __init__(self, tokenizer: Any, add_bos: bool | None = None) -> None:
        self.tokenizer = tokenizer
        self.special = set(tokenizer.all_special_ids)
        self._texts: dict[int, str] = {}
        self._core_ids: dict[str, list[int]] = {}
        if add_bos is None:
            ids = self._prefix()
        elif not add_bos:
            ids = []
        elif tokenizer.bos_token_id is None:
            raise TaskError(
                f"add_bos=True, but {type(tokenizer).__name__} has no beginning-of-text token",
                fix="leave add_bos out, or set tokenizer.bos_token",
            )
        else:
            ids = [int(tokenizer.bos_token_id)]
        policy: BosPolicy = "tokenizer" if add_bos is None else "added" if add_bos else "removed"
        self.bos = Bos(policy, tuple(ids), tuple(tokenizer.convert_ids_to_tokens(ids)))

    def _prefix(self) -> list[int]:
        """Ids that the tokenizer puts before a text. What it puts after one (a closing token, in some) is left off:
        the prompt must end where the answer begins."""
        core = self.core("a b")
        full = list(self.tokenizer("a b", add_special_tokens=True)["input_ids"])
        for start in range(len(full) - len(core) + 1):
            if full[start : start + len(core)] == core:
                return full[:start]
        return []

    def prime(self, texts: Iterable[str]) -> None:
        """Encode many texts in one call (much faster than one by one); `core` then knows them."""
        new = [t for t in dict.fromkeys(texts) if t not in self._core_ids]
        if new:
            ids = self.tokenizer(new, add_special_tokens=False)["input_ids"]
            self._core_ids.update(zip(new, map(list, ids), strict=True))

    def core(self, text: str) -> list[int]:
        """Token ids of the text alone."""
        if text not in self._core_ids:
            self._core_ids[text] = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._core_ids[text]

    def encode(self, text: str) -> Encoded:
        """Ids and offsets of a prompt. Raises TaskError if no token comes out."""
        if getattr(self.tokenizer, "is_fast", False):
            out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            core, offsets = list(out["input_ids"]), [(int(s), int(e)) for s, e in out["offset_mapping"]]
            self._core_ids[text] = core
        else:
            core = self.core(text)
            offsets = self._offsets_by_prefixes(core, text)
        ids = [*self.bos.ids, *core]
        if not ids:
            raise TaskError(f"the prompt {text!r} has no tokens", fix="give a prompt that is not empty")
        return Encoded(ids, [(0, 0)] * len(self.bos.ids) + offsets)

    def _offsets_by_prefixes(self, ids: list[int], text: str) -> list[CharSpan]:
        """Offsets for tokenizers that do not give them: how much of the text the first j tokens spell."""
        ends = []
        for j in range(len(ids) + 1):
            spelled = self.tokenizer.decode(ids[:j], clean_up_tokenization_spaces=False)
            # A character that is cut in the middle decodes to a replacement mark, which ends the common part.
            ends.append(_common_prefix(spelled, text))
        if ends[-1] < len(text.rstrip()):
            raise TaskError(
                f"the tokens spell {text[: ends[-1]]!r} of {text!r}, so characters cannot be matched to tokens",
                fix="use a fast tokenizer (AutoTokenizer.from_pretrained(..., use_fast=True))",
            )
        return list(pairwise(ends))

    def continuation(self, prompt: str, answer: str) -> Continuation:
        """Token ids that the answer adds to the prompt.

        The prompt and the answer are encoded as one text. If the prompt's own tokens are not a prefix of that (the
        last word and the answer merge), the answer is encoded after a neutral character instead, `exact=False`.
        """
        core = self.core(prompt)
        ids = self._after(prompt, core, answer)
        if ids is not None:
            return Continuation(ids, exact=True)
        anchor = "." if answer[0].isspace() or answer[0].isalnum() else "a"
        return Continuation(self._after(anchor, self.core(anchor), answer) or self.core(answer), exact=False)

    def _after(self, prompt: str, core: list[int], answer: str) -> list[int] | None:
        joined = self.core(prompt + answer)
        return joined[len(core) :] if joined[: len(core)] == core and len(joined) > len(core) else None

    def is_single(self, text: str) -> bool:
        """True if the text (with its leading space) is one token inside a sentence."""
        found = self.continuation(".", text)
        return found.exact and len(found.ids) == 1

    def readable(self, token_id: int) -> str:
        """A token as text: leading spaces kept, special tokens by name, bytes of a cut character as the vocabulary's
        own string."""
        if token_id not in self._texts:
            token = self.tokenizer.convert_ids_to_tokens([token_id])[0]
            if token is None:
                text = f"<{token_id}>"
            elif token_id in self.special:
                text = token
            elif "\u2581" in token:  # sentencepiece's visible space; decoding would drop a leading one
                text = token.replace("\u2581", " ")
            else:
                text = self.tokenizer.convert_tokens_to_string([token])
                text = token if "\ufffd" in text or not text else text
            self._texts[token_id] = text
        return self._texts[token_id]


def _common_prefix(a: str, b: str) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
