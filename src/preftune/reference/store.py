"""Log-probabilities of responses under a reference, kept on disk for all runs.

An entry is filed under what it depends on and nothing else: the reference's weights digest and the numerics (the
folder), and the token ids of prompt and response (the key). It holds one fp32 number a token, so truncation, length
norms and token weights derive from it. Files are written once, whole, and named by their content: any number of
processes may write to one store without a lock, and a file that a crash or a disk has damaged loses only itself.

Who can write to a store decides what a run learns, so it has to belong to this user (or to root), and nobody else may
write to it. Held by tests/reference/test_store.py and tests/reference/test_trusted.py.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from preftune import files
from preftune.errors import IO, UserError

Key = bytes  # 32 bytes
PRIVATE = 0o700
ROOT = 0  # the user who may write everywhere anyway
ABANDONED = 24 * 3600.0  # seconds after which what a writer has left half written is deleted


def key_of(prompt: np.ndarray, response: np.ndarray) -> Key:
    """SHA-256 of the token ids of a prompt and a response, and of where one ends."""
    digest = hashlib.sha256(len(prompt).to_bytes(8, "little"))
    digest.update(np.asarray(prompt, "<i4").tobytes())
    digest.update(np.asarray(response, "<i4").tobytes())
    return digest.digest()


class Store:
    """The entries of one reference. root: None keeps them in memory only; damaged: entries or files found broken on
    opening, which count as absent."""

    def __init__(self, root: Path | None, weights: str, numerics: str) -> None:
        self.folder = None if root is None else root / f"{weights[:32]}-{numerics}"
        self.damaged = 0
        self._entries: dict[Key, np.ndarray] = {}
        self._new: dict[Key, np.ndarray] = {}
        if root is not None and self.folder is not None:
            for path in (root, self.folder):
                _refuse_what_others_can_write(path)
            files.sweep_leftovers(self.folder, ABANDONED)
            for file in sorted(self.folder.glob("*.safetensors")):
                _refuse_what_others_can_write(file)
                self._read(file)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def has(self, key: Key, tokens: int) -> bool:
        """Whether there is an entry for a response of so many tokens; one of another length is none."""
        if key in self._entries and len(self._entries[key]) != tokens:
            del self._entries[key]
            self.damaged += 1
        return key in self._entries

    def __getitem__(self, key: Key) -> np.ndarray:
        """(tokens of the response,) fp32, of an entry that is there."""
        return self._entries[key]

    def hold(self, key: Key, token_logp: np.ndarray) -> None:
        """Add an entry that another process has on its disk."""
        self._entries[key] = np.ascontiguousarray(token_logp, np.float32)

    def put(self, key: Key, token_logp: np.ndarray) -> None:
        """Add an entry; it is on disk after the next `flush`."""
        self.hold(key, token_logp)
        if self.folder is not None:
            self._new[key] = self._entries[key]

    def flush(self) -> None:
        """Write what is new as one more file."""
        if self.folder is None or not self._new:
            return
        keys = sorted(self._new)
        values = [self._new[key] for key in keys]
        data = save(
            {
                "key": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32),
                "sum": np.stack([_checksum(k, v) for k, v in zip(keys, values, strict=True)]),
                "tokens": np.array([len(v) for v in values], np.int64),
                "logp": np.concatenate(values),
            }
        )
        files.write(self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors", data, 0o600)
        self._new.clear()

    def _read(self, file: Path) -> None:
        try:
            data = load_file(file)
            keys, sums, tokens, logp = (data[name] for name in ("key", "sum", "tokens", "logp"))
            stops = np.cumsum(tokens)
            parts = [logp[stop - n : stop] for stop, n in zip(stops, tokens, strict=True)]
            entries = list(zip([bytes(key) for key in keys], parts, sums, strict=True))
        except Exception:  # safetensors raises its own class; whatever is wrong, the file cannot be used
            self.damaged += 1
            return
        for key, values, checksum in entries:
            if np.array_equal(_checksum(key, values), checksum) and np.isfinite(values).all():
                self._entries[key] = values
            else:
                self.damaged += 1


def _refuse_what_others_can_write(path: Path) -> None:
    """Raise UserError where a file or folder of a store is a link, belongs to another, or can be written by another."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):  # what is written there later says so
        return
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", location=str(path), code=IO) from error
    problem, hint = "", 'Set reference.store to a folder of your own, or to "memory".'
    if stat.S_ISLNK(status.st_mode):
        problem, hint = "this is a link", "Name the folder that it leads to."
    elif status.st_uid not in (os.geteuid(), ROOT):
        problem = "this belongs to another user"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem, hint = "other users can write here", f"Run: chmod -R go-w {path}"
    if problem:
        raise UserError(
            f"{problem}, and a store that another can change is not trusted.", location=str(path), hint=hint
        )


def _checksum(key: Key, values: np.ndarray) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(key + values.tobytes()).digest()[:8], np.uint8)
