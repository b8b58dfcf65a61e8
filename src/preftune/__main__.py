"""The command line: `preftune VERB`, also `python -m preftune VERB`."""

from __future__ import annotations

import sys

from preftune.errors import BUG, UserError


def main() -> None:
    """Run a verb; exit with the code of what happened (see preftune.errors)."""
    from preftune.cli.app import app

    try:
        app(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"preftune: {safe(str(error))}\n")
        sys.exit(error.code)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except Exception:
        import traceback

        sys.stderr.write(safe(traceback.format_exc()))
        sys.stderr.write("preftune: this is a bug of preftune; please report it with the lines above.\n")
        sys.exit(BUG)


def safe(text: str) -> str:
    """Text without control characters, which data could use to take over a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    main()
