"""Draws by a vLLM server over HTTP: its own process, on this or another machine.

Prompts and responses travel as token ids. The server's defaults (top_p and the like, out of a model's
generation_config.json) are overruled, so that a token is drawn from the policy itself. New weights reach it as a LoRA
folder that it can read (`load_adapter`; it is started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1). Its
weight-transfer calls are not used: they carry the weights by NCCL or CUDA IPC through vLLM's own classes, which would
have to be installed here; so a server draws for runs with an adapter, and not for a whole model that is trained.
The server's log-probabilities are those at temperature 1, unless it runs with --logprobs-mode processed_logprobs, and
are computed in its own precision: what learns from them compares them with its own.
Held by tests/rollout/test_server.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.errors import UserError
from preftune.rollout.draw import Drawn, prompt_key
from preftune.rollout.web import Api, in_parallel
from preftune.tokens.tokenizer import PROBES, backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 64  # prompts that the server works on at the same time
PATIENCE = 1800.0  # seconds for the responses to one prompt
OWN_DISTRIBUTION = {  # nothing but the temperature changes what the model says
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "skip_special_tokens": False,
}  # fmt: skip


class Server:
    """A sampler that asks a vLLM server for its first model. end_tokens: ids of which each ends a response; vocab:
    number of token ids; location: the key that names it; patience: seconds for one answer.

    The environment's VLLM_API_KEY is sent along. Raises UserError where no such server answers.
    """

    def __init__(
        self, url: str, max_tokens: int, end_tokens: frozenset[int], temperature: float, vocab: int, *,
        location: str = "--server", patience: float = PATIENCE,
    ) -> None:  # fmt: skip
        self._api = Api(url, location, os.environ.get("VLLM_API_KEY", ""), patience)
        self._max_tokens, self._end_tokens, self._temperature = max_tokens, end_tokens, temperature
        self._vocab, self._model, self._adapter = vocab, self._models()[0], ""

    def _models(self) -> list[str]:
        """Names of its model and of the adapters that it has loaded."""
        names = self._api.models()
        if not names:
            raise self._api.error(f"{self._api.root} lists no model.")
        return names

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError where the server's tokenizer gives other ids than the policy's."""
        for probe in PROBES:
            body: dict[str, object] = {"model": self._model, "prompt": probe, "add_special_tokens": False}
            server_ids = self._api.ask_json("/tokenize", body).get("tokens")
            if server_ids != backend(tokenizer).encode(probe, add_special_tokens=False).ids:
                message = f"the server's model {self._model} has another tokenizer: {probe!r} differs."
                raise self._api.error(message, "Serve the policy's own model.")

    def load_adapter(self, folder: Path) -> None:
        """Draw from the adapter in this folder from here on. Raises UserError where the server cannot load it.

        Each gets a name of its own, because the server remembers prompts by the name.
        """
        digest = hashlib.sha256()
        for file in sorted(folder.iterdir()):
            if file.is_file():
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
        name = f"preftune-{digest.hexdigest()[:16]}"
        if name == self._adapter:
            return
        if name not in self._models():  # a run that goes on finds what it has loaded before
            hint = "Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; it reads the same folder."
            body = {"lora_name": name, "lora_path": str(folder.resolve())}
            self._api.ask("/v1/load_lora_adapter", body, hint)
        before, self._adapter = self._adapter, name
        if before:
            with contextlib.suppress(UserError):  # one that has been started anew does not know it, and need not
                self._api.ask("/v1/unload_lora_adapter", {"lora_name": before})

    def draw(self, prompts: Sequence[np.ndarray], count: int, seed: Sequence[int]) -> list[Drawn]:
        """`count` responses to each prompt. Raises UserError where the server fails or answers something else."""
        return in_parallel(lambda ids: self._drawn(ids, count, seed), prompts, AT_ONCE)

    def _drawn(self, prompt: np.ndarray, count: int, seed: Sequence[int]) -> Drawn:
        answer = self._api.ask_json("/v1/completions", {
            **OWN_DISTRIBUTION,
            "model": self._adapter or self._model,
            "prompt": prompt.tolist(),
            "n": count,
            "max_tokens": self._max_tokens,
            "temperature": self._temperature,
            "seed": prompt_key(prompt, seed) >> 2,  # the server adds the number of the response
            "stop_token_ids": sorted(self._end_tokens),
            "logprobs": 1,
            "return_token_ids": True,
        })  # fmt: skip
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != count:
            size = len(choices) if isinstance(choices, list) else 0
            raise self._wrong(f"gives {size} responses where {count} were asked for.")
        try:
            responses = [self._response(choice) for choice in sorted(choices, key=lambda choice: choice["index"])]
        except (KeyError, TypeError, AttributeError) as error:
            raise self._wrong("answers in another form than vLLM's.") from error
        ids, logp, ended = zip(*responses, strict=True)
        return Drawn(ids=ids, logp=logp, ended=ended)

    def _response(self, choice: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, bool]:
        """ids, logp and whether it ended."""
        ids, numbers = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if not ids:
            raise self._wrong("tells no token ids.", "vLLM does from version 0.10.2 on (return_token_ids).")
        if not numbers or any(number is None for number in numbers):
            raise self._wrong("tells no log-probability of its tokens.")
        if len(ids) != len(numbers) or len(ids) > self._max_tokens:
            raise self._wrong(
                f"gives {len(ids)} tokens and {len(numbers)} log-probabilities, of at most {self._max_tokens}."
            )
        if highest := max((i for i in ids if not 0 <= i < self._vocab), default=0):
            raise self._wrong(
                f"gives the token id {highest}, and the policy has {self._vocab}.", "Is it another model?"
            )
        logp = np.array(numbers, np.float32)
        if not (np.isfinite(logp).all() and (logp <= 1e-3).all()):
            raise self._wrong("gives a log-probability that is none.")
        ended = choice["finish_reason"] == "stop"
        if choice["finish_reason"] not in ("stop", "length") or ended != (ids[-1] in self._end_tokens):
            hint = "Start it with --generation-config vllm, so that it has no end tokens of its own."
            raise self._wrong(
                f"ends a response with the token {ids[-1]} and calls it {choice['finish_reason']!r}.", hint
            )
        return np.array(ids, np.int32), logp, ended

    def _wrong(self, message: str, hint: str = "") -> UserError:
        return self._api.error(f"the server {message}", hint)


class ServedAdapter:
    """A sampler whose server has the adapter of now before each draw. export: writes it to a folder, which the server
    reads, too."""

    def __init__(self, server: Server, folder: Path, export: Callable[[Path], None]) -> None:
        self._server, self._folder, self._export = server, folder, export

    def draw(self, prompts: Sequence[np.ndarray], count: int, seed: Sequence[int]) -> list[Drawn]:
        """`count` responses to each prompt. Raises UserError where the server fails, or cannot load the adapter."""
        self._export(self._folder)
        self._server.load_adapter(self._folder)
        return self._server.draw(prompts, count, seed)
