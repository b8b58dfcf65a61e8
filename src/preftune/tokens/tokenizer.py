"""Load a tokenizer, verify that it is what its file says, and identify it by a digest."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from preftune.errors import UserError, third_party_message
from preftune.rows.sources import HUB
from preftune.trust import refuse_code, refuse_hub_code, refuse_unnamed

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

END_TOKENS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>", "<eos>", "<end_of_turn>", "<|end|>")
PROBES = ("Hello, world!", " 1234567 + 8.9", "naïve Ænima 東京 العربية", "a\n\n  b\tc", "don't WON'T", "x=[i**2];")
WHICH = "The tokenizer is the folder or hub name in model.tokenizer or, without it, in model.path."
FILES = ("*token*", "*vocab*", "*.model")  # every tokenizer's folder has some of them


def load_tokenizer(
    source: str | PreTrainedTokenizerBase, revision: str | None = None, template: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, or a copy of a loaded one; code that a folder brings along never runs.

    template: file with a chat template in place of its own. A folder with tokenizer.json alone suffices; its end token
    is then the one of END_TOKENS that it knows. Raises UserError.
    """
    from transformers import PreTrainedTokenizerBase

    # a copy of a loaded one, because encoding changes its padding and truncation
    tokenizer = _load(source, revision) if isinstance(source, str) else deepcopy(source)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        name = source if isinstance(source, str) else f"this {type(source).__name__}"
        hint = "Convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        raise UserError(f"{name} has no tokenizer.json.", location="model.tokenizer", hint=hint)
    if isinstance(source, str) and (file := Path(source).expanduser() / "tokenizer.json").exists():
        _verify(tokenizer, file)
    if template is not None:
        try:
            tokenizer.chat_template = Path(template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UserError(f"{template} cannot be read: {why}.", location="data.template") from error
    return tokenizer


def _load(path: str, revision: str | None) -> object:
    refuse_unnamed(path, "model.path")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(path).expanduser()
    if folder.is_dir():
        refuse_code(folder, "tokenizer")
        if not any(any(folder.glob(name)) for name in FILES):
            raise UserError(f"the folder {path} has no tokenizer.", location="tokenizer", hint=WHICH)
    elif not HUB.fullmatch(path) or path.startswith((".", "~")) or folder.exists():
        raise UserError(f"there is no folder {path}.", location="tokenizer", hint=WHICH)
    else:
        refuse_hub_code(path, revision, "tokenizer")
    try:
        if (folder / "tokenizer.json").exists() and not (folder / "tokenizer_config.json").exists():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
            known = [token for token in END_TOKENS if token in tokenizer.get_vocab()]
            if len(known) == 1:
                tokenizer.eos_token = known[0]
        else:
            source = str(folder) if folder.is_dir() else path
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and the hub's client each have their own
        message = f"no readable tokenizer at {path}: {third_party_message(error)}"
        raise UserError(message, location="tokenizer", hint=WHICH) from error
    return tokenizer


def _verify(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Raise UserError where the tokenizer as loaded differs from its file, as transformers 5 makes some do."""
    from tokenizers import Tokenizer

    plain, loaded = Tokenizer.from_file(str(file)), backend(tokenizer)
    for probe in PROBES:
        if loaded.encode(probe, add_special_tokens=False).ids != plain.encode(probe, add_special_tokens=False).ids:
            raise UserError(f"transformers and {file} encode {probe!r} differently.", location="model.tokenizer",
                            hint="Its tokenizer_config.json names a class that changes it.")  # fmt: skip


def backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer of the tokenizers library below one of transformers. Raises UserError."""
    from tokenizers import Tokenizer

    inner = tokenizer.backend_tokenizer
    if not isinstance(inner, Tokenizer):
        raise UserError("the tokenizer is not one of the tokenizers library.", location="model.tokenizer")
    return inner


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that decides ids: the content of tokenizer.json, the begin and end tokens, the chat template."""
    content = json.loads(backend(tokenizer).to_str())
    del content["truncation"], content["padding"]  # whoever called it last left them behind
    deciding = [content, tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()


def other_meaning(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str:
    """The first id that is one token of text to a tokenizer and another one to the other, in words; empty where there
    is none. Control tokens are left out: models that go on from a base give its spare ones names of their own."""
    control = {*tokenizer.added_tokens_decoder, *other.added_tokens_decoder}
    tokens, others = ({id_: token for token, id_ in each.get_vocab().items()} for each in (tokenizer, other))
    for id_ in sorted(tokens.keys() & others.keys() - control):
        if tokens[id_] != others[id_]:
            return f"token {id_} is {tokens[id_]!r} to the policy and {others[id_]!r} to this model"
    return ""
