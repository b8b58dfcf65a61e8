"""Whose store is used: one that this user alone can write to, whose samples nobody can foresee."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import numpy as np
import pytest
from making import groups, tiny

from preftune.errors import UserError
from preftune.model.policy import wrap
from preftune.reference import fill, store
from preftune.reference.fill import numerics, score_missing
from preftune.reference.store import Store, key_of

KEY = b"a" * 32


def stored(root: Path) -> Path:
    """The folder of a store with one entry."""
    written = Store(root, "w" * 64, "n")
    written.put(KEY, np.array([-1.0]))
    written.flush()
    assert written.folder is not None
    return written.folder


def opened(root: Path) -> Store:
    return Store(root, "w" * 64, "n")


def test_what_is_new_is_this_users_alone(tmp_path: Path) -> None:
    policy, _ = wrap(tiny(), "auto")
    written = Store(tmp_path / "a" / "store", policy.weights.digest(), numerics(policy))
    score_missing(policy, written, groups(2), tokens=60)
    folder = written.folder
    assert folder is not None
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, *folder.iterdir())}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o720])
@pytest.mark.parametrize("part", ["root", "folder", "file"])
def test_a_store_that_others_can_write_to_is_refused(part: str, mode: int, tmp_path: Path) -> None:
    folder = stored(tmp_path / "store")
    path = {"root": tmp_path / "store", "folder": folder, "file": next(folder.iterdir())}[part]
    path.chmod(mode)
    with pytest.raises(UserError, match=r"other users can write here.*chmod -R go-w"):
        opened(tmp_path / "store")
    path.chmod(mode & 0o755)
    assert KEY in opened(tmp_path / "store")


@pytest.mark.parametrize("part", ["root", "folder", "file"])
def test_a_link_is_no_store(part: str, tmp_path: Path) -> None:
    folder = stored(tmp_path / "store")
    path = {"root": tmp_path / "store", "folder": folder, "file": next(folder.iterdir())}[part]
    path.rename(tmp_path / f"elsewhere{path.suffix}")
    path.symlink_to(tmp_path / f"elsewhere{path.suffix}")
    with pytest.raises(UserError, match="this is a link"):
        opened(tmp_path / "store")


def test_another_users_store_is_refused_and_roots_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path / "store")
    owner = (tmp_path / "store").stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # which can do everything anyway
        assert KEY in opened(tmp_path / "store")
        monkeypatch.setattr(store, "ROOT", -1)
    with pytest.raises(UserError, match=r"belongs to another user.*reference\.store"):
        opened(tmp_path / "store")


def test_a_forged_entry_is_found_whatever_the_seed_and_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack on samples that can be foreseen: right where random.Random(0) would look, wrong elsewhere."""
    policy, _ = wrap(tiny(), "auto")
    made = groups(40, response=(1, 3))
    written = Store(None, policy.weights.digest(), numerics(policy))
    score_missing(policy, written, made, tokens=200)
    keys = sorted({key_of(group.prompt, response) for group in made for response in group.responses})
    looked_at = {key for seed in range(2) for key in random.Random(seed).sample(keys, fill.CANARIES)}
    for key in {*keys} - looked_at:
        written.put(key, written[key] + 0.5)
    monkeypatch.setattr(fill.secrets, "SystemRandom", lambda: random.Random(12345))  # the share of forged ones is 80 %
    random.seed(0)
    with pytest.raises(UserError, match=r"differs from the model by 0\.5"):
        score_missing(policy, written, made, tokens=200)


def test_what_a_killed_writer_left_is_never_read_and_swept_when_it_is_old(tmp_path: Path) -> None:
    folder = stored(tmp_path / "store")
    leftover, recent = (folder / f".preftune-{digit * 16}.tmp" for digit in "01")
    for path in (leftover, recent):
        path.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    again = opened(tmp_path / "store")
    assert (again.damaged, len(again)) == (0, 1)
    assert not leftover.exists()
    assert recent.exists()
