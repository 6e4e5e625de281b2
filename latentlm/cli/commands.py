"""The command line. Each subcommand is a module of this package, imported only when it is called. Commands that need the other
shelves come in through the entry-point group `latentlm.commands` (name -> a Typer app), and so may anyone's.

    latentlm --help
    latentlm train RECIPE [key=value ...]

An error that the user can mend is printed as one message and ends with exit status 1 (130 after Ctrl-C, 2 for a wrong option);
anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from latentlm.cli._errors import explain, tidy_warnings
from latentlm.cli._streams import finish
from latentlm.errors import UserError, did_you_mean, shown, told

_GROUP = "latentlm.commands"
COMMANDS: dict[str, str] = {
    "zoo": "List, describe and extend the model zoo.",
    "plugins": "Show the plugins, their parts, and what failed to load.",
    "parts": "List the parts by socket, describe one, or say which fit a recipe.",
    "new-plugin": "Begin a plugin of your own.",
    "data": "Write token shards, for data larger than memory; verify them.",
    "train": "Train a model from a recipe.",
    "compare": "Train or load several models and lay them side by side.",
    "generate": "Continue prompts.",
    "score": "Honest likelihood of a text.",
    "eval": "Run lm-eval tasks on a model.",
    "reproduce": "Repeat an experiment of the literature: the Free Transformer's Figure 4.",
    "study": "Train and compare the arms of a controlled study, several seeds each.",
    "diversity": "Diversity and pass@k of samples: latents shared or fresh, greedy or temperature.",
    "probe": "Ask what z knows of an attribute of a text, and whether the decoder uses it.",
    "reviews": "Fetch rated sentences of movie reviews, to train on and to probe with.",
    "schedules": "List KL schedules, plot what each does, see which revive a latent.",
}


class _LazyGroup(TyperGroup):
    """Imports `latentlm.cli.<command>` (its `app`, a Typer; a dash is an underscore there) when the command is called or its
    help is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of `COMMANDS`, then those of other distributions."""
        return [*COMMANDS, *sorted(entry_points(group=_GROUP).names - COMMANDS.keys())]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As ever, and the nearest name for one that is unknown."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            near = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f'No such command "{args[0]}".{near} See `latentlm --help`.')
        found = super().resolve_command(ctx, args)
        _refuse_empty_paths(ctx, found[1], found[2])
        return found

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; while the overview is printed, a stub with its one line of help."""
        if cmd_name not in self.list_commands(ctx):
            return None
        if ctx.resilient_parsing or not _is_called(cmd_name):
            return TyperCommand(cmd_name, help=COMMANDS.get(cmd_name, "Added by another distribution."))
        command = typer.main.get_command(_load(cmd_name))
        command.name = cmd_name
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As ever; what was typed is shown in an error, not obeyed by the terminal."""
        with _shown_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Ctrl-C ends it with one word and the shell's status for it."""
        try:
            with _shown_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("stopped.", file=sys.stderr)
            raise typer.Exit(130) from None


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Errors about the command line, whose messages repeat what was typed, without control characters."""
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):
            error.message = told(message)  # type: ignore[attr-defined]
        raise


def _refuse_empty_paths(ctx: Any, command: Any, args: list[str]) -> None:
    """An option for a path that is given the empty text (a variable of the shell that is not set) is refused: to Python that is
    the folder one is in."""
    empty = {word for word, value in pairwise(args) if not value} | {
        word[:-1] for word in args if word.startswith("--") and word.endswith("=")
    }
    for leaf in (command, *getattr(command, "commands", {}).values()) if empty else ():
        kinds = get_type_hints(leaf.callback) if leaf.callback else {}
        for parameter in leaf.params:
            kind = kinds.get(parameter.name)
            if Path in (kind, *get_args(kind)) and (option := next(iter(empty.intersection(parameter.opts)), None)):
                ctx.fail(f"{option} is given an empty path. Say . for the folder you are in.")


def _load(cmd_name: str) -> typer.Typer:
    """The Typer app of a command: an entry point of that name, or the module of this package. Raises UserError where another
    distribution's does not load."""
    own = cmd_name in COMMANDS
    entries = entry_points(group=_GROUP, name=cmd_name)
    if not own and len(whose := sorted({_distribution(entry) for entry in entries})) > 1:
        raise UserError(f'the command "{cmd_name}" is offered by {" and ".join(whose)}: uninstall all but one of them.')
    for entry in entries:
        if own and (entry.dist is None or entry.dist.name != "latentlm"):
            continue  # nobody takes over a command of ours
        with redirect_stdout(sys.stderr):  # before the command has read its options
            return _app(entry) if not own else entry.load()  # type: ignore[no-any-return]
    module = importlib.import_module(f"latentlm.cli.{cmd_name.replace('-', '_')}")
    found: typer.Typer = module.app
    return found


def _app(entry: EntryPoint) -> typer.Typer:
    """The app of another distribution's command. Raises UserError where there is none."""
    from latentlm.plugins.foreign import is_users, told_error

    whose = f'the command "{entry.name}" of {_distribution(entry)}'
    try:
        app = entry.load()
    except BaseException as error:  # as of a plugin, an exit and a test framework's skip among them
        if is_users(error):
            raise
        raise UserError(f"{whose} cannot be loaded ({told_error(error)}). Mend or uninstall it.") from None
    if not isinstance(app, typer.Typer):
        raise UserError(f"{whose} is no Typer app but {type(app).__name__}. Mend or uninstall it.")
    return app


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def _is_called(cmd_name: str) -> bool:
    """Whether the command line asks for this command, rather than for the list of all."""
    return cmd_name in sys.argv[1:]


app = typer.Typer(
    cls=_LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Latent-conditioned decoders: train, compare, generate and score language models p(text | z).",
)


@app.callback()
def _root() -> None:
    """Latent-conditioned decoders: train, compare, generate and score language models p(text | z)."""


def _say_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback as Python prints it, but shown: the text of an error may be anyone's."""
    typer.echo(shown("".join(traceback.format_exception(kind, error, trace)).rstrip()), file=sys.stderr)


def run() -> None:
    """What was typed, from the first to the last letter that is written."""
    try:
        try:
            with tidy_warnings():
                app()
        finally:
            finish()
    except Exception as error:
        if (message := explain(error)) is None:
            sys.excepthook = _say_bug  # in the place of Typer's, which prints it as it is
            raise
        typer.secho(f"error: {told(message)}", fg=typer.colors.RED, file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:  # of a command of others, with a text that Python prints
        if isinstance(stop.code, str):
            sys.exit(told(stop.code))
        raise
    except KeyboardInterrupt:  # before the command has begun, or after it has ended
        typer.echo("stopped.", file=sys.stderr)
        sys.exit(130)
