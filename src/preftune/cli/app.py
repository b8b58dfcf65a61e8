"""The verbs. Each is loaded when it is called, so that help and an error about a key appear at once."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App, CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

from preftune.errors import UserError

VERBS = {
    "demo": "Tune a small model offline by DPO and by RLHF, in a world whose reward is known, and show what changed.",
    "check": "Read all data as training would, say what fits on which GPUs, and train nothing.",
    "train": "Tune a model.",
    "sweep": "Train once for each combination of keys.",
    "score": "Score every row of a file under a model and the one that it was tuned from, or under a reward model.",
    "draw": "Draw responses from a model to the prompts of a file.",
    "export": "Write an adapter and its base as one model without peft, or a checkpoint of a run as a model.",
    "report": "Write the page of a record, or one page that compares several.",
    "trade-off": "Measure DPO, RLHF and what lies between under the ceiling that theory gives, in two worlds of "
    "known reward.",
    "keys": "Print every key of a run with its type, default, bound and meaning.",
}
"""Verb -> the first line of its docstring; listing the verbs loads none of them."""
ALONE = ("check", "demo", "draw", "score", "trade_off")  # verbs with a module of their own


def _version() -> str:
    from preftune.record.writer import version_of

    return version_of("preftune")


app = App(
    name="preftune",
    help="Tune language models on human preferences, and see what happened.\n\n"
    "A run is a TOML file (see `preftune keys`); words such as optim.lr=1e-6 change it; flags do not.",
    version=_version,  # asked for only when it is printed
    help_format="markdown",
)
app.register_install_completion_command()
for position, (verb, line) in enumerate(VERBS.items()):
    function = verb.replace("-", "_")
    module = function if function in ALONE else "verbs"
    app.command(f"preftune.cli.{module}:{function}", name=verb, help=line, sort_key=position)


def call(words: Sequence[str]) -> None:
    """Run the verb that the words of a command name."""
    if words and words[0] in VERBS:
        app[words[0]].help = None  # help on one verb is its whole docstring
    try:
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UserError(_what(error, words[0] if words else ""), hint=_how(error, words)) from error


def _what(error: CycloptsError, verb: str) -> str:
    """What is wrong with a command, in a sentence."""
    if isinstance(error, UnusedCliTokensError):
        return f"{verb} takes no {' and no '.join(error.unused_tokens or ())}."
    if isinstance(error, MissingArgumentError) and error.argument is not None and not error.keyword:
        return f"{verb} needs {error.argument.name.lstrip('-').upper()}."
    return " ".join(str(error).split())


def _how(error: CycloptsError, words: Sequence[str]) -> str:
    """A hint on a wrong command."""
    from preftune.config.mistakes import instead_of_flag

    verb = words[0] if words else ""
    arguments = app[verb].assemble_argument_collection() if verb in VERBS else ()
    if isinstance(error, UnknownOptionError):
        if not any(argument.name == "WORDS" for argument in arguments):  # which are keys of a run
            return f"See `preftune {verb} --help`." if "Did you mean" not in str(error) else ""
        hint, asks = instead_of_flag(next((word for word in words[1:] if word.startswith("-")), "")), "Did you mean"
        return "" if hint.startswith(asks) and asks in str(error) else hint
    if not isinstance(error, UnusedCliTokensError | MissingArgumentError):
        return ""
    key, equals, value = (error.unused_tokens or [""])[0].partition("=")
    flag = (
        f"Options have dashes here: --{key} {value}. "
        if equals and any(f"--{key}" in argument.names for argument in arguments)
        else ""
    )
    return f"{flag}See `preftune {words[0]} --help`."
