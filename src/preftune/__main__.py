"""The command line: `preftune VERB`, also `python -m preftune VERB`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from typing import NoReturn

from preftune.errors import BUG, INTERRUPTED, IO, PeerRankError, UserError, is_out_of_memory, printable

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch's names for its allocator's settings, new and old


def main() -> None:
    """Run a verb, and exit with the code of its outcome (see preftune.errors)."""
    if not any(name in os.environ for name in ALLOCATOR):  # torch reads it when it is loaded
        # packs have other shapes each time, and blocks of fixed size would leave memory free that no pack can have
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    sys.stdin = io.StringIO()  # no library that is loaded here may ask for a consent, a key or a password
    try:
        _run_as_rank() if "RANK" in os.environ else _run_verb()  # a single process does not need torch yet
    except PeerRankError as error:
        time.sleep(1)  # torchrun ends all ranks when one ends, and the one that failed has to write its error
        sys.exit(error.code)
    except UserError as error:
        _end(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python has yet to write goes there
    except SystemExit as exited:
        if not isinstance(exited.__context__, BrokenPipeError):  # rich saw the closed pipe first, and did the same
            raise
    except Exception as error:
        if explained := _explained(error):
            _end(explained)
        import traceback

        sys.stderr.write(printable(traceback.format_exc(), "\n\t"))
        sys.stderr.write("preftune: this is a bug of preftune; please report it with the lines above.\n")
        sys.exit(BUG)


def _end(error: UserError) -> NoReturn:
    sys.stderr.write(f"preftune: {error}\n")  # which has no control characters
    sys.exit(error.code)


def _explained(error: Exception) -> UserError | None:
    """What the machine or the input is to blame for, wherever it came from; None for a bug."""
    if is_out_of_memory(error):
        return UserError("memory ran out.", hint="Lower batch.tokens or data.max_tokens, or take fewer rows.", code=IO)
    if isinstance(error, OSError):
        location = "" if error.filename is None else os.fsdecode(error.filename)
        return UserError(f"the system refuses: {error.strerror or error}.", location=location, code=IO)
    if isinstance(error, RecursionError):
        return UserError("a value in the input is nested too deeply.", hint="Look at the files that were named last.")
    return None


def _run_verb() -> None:
    from preftune.cli.app import call

    call(sys.argv[1:])
    sys.stdout.flush()  # a closed pipe shows here, and not when Python ends


def _run_as_rank() -> None:
    """Run the verb as one of several processes, of which the first one writes; the first that fails says why."""
    from preftune.distributed import process_group

    with process_group() as dist, contextlib.ExitStack() as redirected:
        if not dist.first:
            redirected.enter_context(contextlib.redirect_stdout(io.StringIO()))
            redirected.enter_context(contextlib.redirect_stderr(io.StringIO()))
        _run_verb()


if __name__ == "__main__":
    main()
