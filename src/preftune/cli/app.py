"""The verbs. Each is loaded when it is called, so that help and a wrong key answer at once."""

from __future__ import annotations

from cyclopts import App

app = App(
    name="preftune",
    help="Tune language models on human preferences, and see what happened.\n\n"
    "A run is a TOML file (see `preftune keys`); words such as optim.lr=1e-6 change it; flags do not.",
    version=lambda: __import__("importlib.metadata").metadata.version("preftune"),
    help_format="plaintext",
)
app.register_install_completion_command()
for verb in ("demo", "check", "train", "sweep", "score", "report", "keys"):
    app.command(f"preftune.cli.{verb}:{verb}", name=verb)
