"""The verbs. Each is loaded when it is called, so that help and a wrong key answer at once."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App

VERBS = {
    "demo": "Tune a small model offline in about a minute, in a world whose reward is known, and say what changed.",
    "check": "Read all data as training would, and train nothing.",
    "train": "Tune a model.",
    "sweep": "Do a run for each combination of keys.",
    "score": "Score every row of data.train under two models.",
    "report": "Write the page of a record, or one page that compares several.",
    "keys": "Print every key of a run with its type, default, bound and meaning.",
}
"""Verb -> the first line of its docstring, which is not loaded for a list of them."""

app = App(
    name="preftune",
    help="Tune language models on human preferences, and see what happened.\n\n"
    "A run is a TOML file (see `preftune keys`); words such as optim.lr=1e-6 change it; flags do not.",
    version=lambda: __import__("importlib.metadata").metadata.version("preftune"),
    help_format="markdown",
)
app.register_install_completion_command()
for place, (verb, line) in enumerate(VERBS.items()):
    app.command(f"preftune.cli.{verb}:{verb}", name=verb, help=line, sort_key=place)


def call(words: Sequence[str]) -> None:
    """Do what the words of a command say."""
    if words and words[0] in VERBS:
        app[words[0]].help = None  # its docstring has more to say than the list
    app(words)
