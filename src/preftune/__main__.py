"""The command line: `preftune VERB`, also `python -m preftune VERB`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time

from preftune.errors import BUG, INTERRUPTED, PeerRankError, UserError


def main() -> None:
    """Run a verb; exit with the code of what happened (see preftune.errors)."""
    try:
        _as_a_rank() if "RANK" in os.environ else _verb()  # without it there is no need of torch yet
    except PeerRankError as error:
        time.sleep(1)  # torchrun ends all at the first end, and the rank that tells the user shall have told
        sys.exit(error.code)
    except UserError as error:
        sys.stderr.write(f"preftune: {safe(str(error))}\n")
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever reads has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python has yet to write goes there
    except SystemExit as left:
        if not isinstance(left.__context__, BrokenPipeError):  # rich has seen it first, and done the same
            raise
    except Exception:
        import traceback

        sys.stderr.write(safe(traceback.format_exc()))
        sys.stderr.write("preftune: this is a bug of preftune; please report it with the lines above.\n")
        sys.exit(BUG)


def _verb() -> None:
    from preftune.cli.app import call

    call(sys.argv[1:])
    sys.stdout.flush()  # a reader that has gone shows here, not when Python ends


def _as_a_rank() -> None:
    """The verb, as one of several processes of which the first speaks; whichever fails first says why."""
    from preftune.distributed import process_group

    with process_group() as dist, contextlib.ExitStack() as quiet:
        if not dist.first:
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        _verb()


def safe(text: str) -> str:
    """Text without control characters, which data could use to take over a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    main()
