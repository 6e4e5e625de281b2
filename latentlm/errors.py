"""Errors that a user can mend: each message says what is wrong and what to do about it.

`UserError` and its children are what the command line prints without a traceback. Library code raises them (or a plain
ValueError) for bad input; `assert` is for invariants that only a bug of ours can break. `did_you_mean` and `typed_path` read
what was typed in the way it was meant. Text of others is shown, never obeyed by a terminal, and not repeated without end:

    shown(text)    control characters as escapes
    told(text)     the same at a bearable length: what every `UserError` is made of
    short(text)    at a bearable length, for a part of a message
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import traceback
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class UserError(ValueError):
    """Bad input with a remedy in its message; the command line shows it as one line and exits non-zero."""

    def __init__(self, message: object) -> None:
        super().__init__(told(str(message)))


@contextmanager
def compiling(*, remedy: str) -> Iterator[None]:
    """Raises UserError where what is compiled in the block cannot be: no C compiler, a graph that torch does not take."""
    try:
        yield
    except OSError as error:
        frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
        if not any(name.startswith("torch._inductor") for name in frames):
            raise
        said = f"torch.compile keeps what it makes in files, and that failed ({error})"
        raise UserError(f"{said}. {remedy}, or set TORCHINDUCTOR_CACHE_DIR to a folder that can be written to.") from error
    except Exception as error:
        if type(error).__module__.split(".")[:2] not in (["torch", "_dynamo"], ["torch", "_inductor"]):
            raise
        if type(error).__name__ == "FailOnRecompileLimitHit":
            said = "the model has changed more often since its first graph than torch makes a graph anew"
            raise UserError(f"{said}. {remedy}, or load the model again.") from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raised = [line for line in lines if "raised exception" in line]  # what a part said, deep in torch's own words
        said = short((raised or lines or [type(error).__name__])[0])
        needs = "install what it needs (on a CPU, a C++ compiler)"
        raise UserError(f"torch.compile failed: {said.rstrip('.')}. {remedy}, or {needs}.") from error


class UnknownNameError(UserError):
    """A name that nothing answers to; the message has the nearest names and what is available."""


class PluginError(UserError):
    """A plugin that failed to load, or two plugins that claim one name."""


class CheckpointError(UserError):
    """Weights or a checkpoint that cannot be used: missing, truncated, or with another hash than promised."""


def sentence(text: str) -> str:
    """The text with a full stop at its end, so that another sentence can follow."""
    text = text.rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def short(text: str, most: int = 200) -> str:
    """A text as it is told in a message: not without end."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def shown(text: str) -> str:
    """The text with what would move the cursor, colour the screen or turn the line around spelt out, and lone surrogates, which
    no stream takes; line breaks stay."""
    kept = (char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Cs") for char in text)
    return "".join(char if as_is else _spelt(char) for char, as_is in zip(text, kept, strict=True))


def told(message: str) -> str:
    """`shown`, for errors and warnings, which repeat what was typed or read: long words and long messages lose their middle.
    What is wrong stands at the beginning, the remedy at the end."""
    message = shown(short(message, 10 * _LONG_MESSAGE))
    return short(re.sub(rf"\S{{{_LONG_WORD},}}", lambda word: short(word[0], _LONG_WORD), message), _LONG_MESSAGE)


_LONG_WORD, _LONG_MESSAGE = 400, 2_000


def _spelt(char: str) -> str:
    """A tab is a space; any other as Python spells it."""
    return " " if char == "\t" else char.encode("unicode_escape").decode("ascii")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the nearest of `known`, or an empty string where nothing is near. One that is a word of
    the other (`event_dims` for `dims`) is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    near = near or [other for other in names if other in name.split("_") or name in other.split("_")]
    return f' Did you mean "{near[0]}"?' if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str], *, remedy: str = "") -> UnknownNameError:
    """Build the error for an unknown `name` of some `kind` ("model", "encoder", ...)."""
    names = sorted(known)
    listed = ", ".join(names) if names else "none"
    message = f'Unknown {kind} "{name}".{did_you_mean(name, names)} Available: {listed}.'
    return UnknownNameError(f"{message} {remedy}".rstrip())


def typed_path(text: str | Path) -> Path:
    """The path that a user typed: as it stands where something lies there, whatever characters it has; else with `~` for a
    home folder, where there is such a user."""
    path = path_of(text)
    try:
        return path if os.path.lexists(path) else path_of(os.path.expanduser(path))
    except ValueError as error:  # a home folder of a user with no name that there can be
        raise error if isinstance(error, UserError) else UserError(f"{str(path)!r} is no path: {error}.") from None


def path_of(text: str | Path) -> Path:
    """The path that a caller gives. Raises UserError for what is none, or longer than any can be."""
    if not isinstance(text, str | Path):
        raise UserError(f"a path is given as a text, not as {type(text).__name__}.")
    path = Path(text)
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{short(str(path))} cannot exist: the name is too long. Choose a shorter one.") from None
    except ValueError:  # a null byte: of names, what looks for them says that there is none
        pass
    return path


def resolved(path: Path) -> Path:
    """The absolute path without links, but for those that lead in a circle. Raises UserError for what is no path."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no path: {error}.") from None


def invalid(error: ValidationError, schema: type[BaseModel], *, source: str) -> UserError:
    """A pydantic error as one message: each line names the key, what is wrong, and the nearest known key."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f'unknown key "{where}".{_near(str(item["loc"][-1]), _beside(schema, item["loc"]))}')
        elif item["type"] == "missing":
            lines.append(f'"{where}" is missing: set it')
        elif item["type"] == "model_type":
            lines.append(f"{where}: settings are needed (key: value), not {item['input']!r}")
        elif item["type"] == "string_pattern_mismatch" and item["loc"][-1] == "name":
            allowed = "a letter or digit, then letters, digits, dots, dashes and underscores"
            lines.append(f'{where}: "{item["input"]}" is no name ({allowed})')
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message}" if where else message)
    told = [line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]}..." for line in lines[:_MOST_LINES]]
    more = [f"and {len(lines) - _MOST_LINES:,} more"] if len(lines) > _MOST_LINES else []
    return UserError(f"{source}: " + "; ".join([*told, *more]))


_MOST_LINES, _MOST_LETTERS = 8, 300
"""Of what is wrong with a file: nobody reads more."""


def _near(key: str, known: list[str] | None) -> str:
    """What to write instead of an unknown key. `known` None: nothing is known of the place."""
    if known is None:
        return ""
    if not known:
        return " It has no settings."
    return did_you_mean(key, known) or f" Known: {', '.join(sorted(known))}."


def _beside(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str] | None:
    """Names that are allowed beside the last element of `location`; None where the types do not say."""
    found: Any = schema
    for key in location[:-1]:
        found = _inside(found, key)
    fields = _fields(found)
    return None if fields is None else list(fields)


def _fields(annotation: Any) -> Mapping[str, Any] | None:
    """The fields of a schema, or of the one among the alternatives of an annotation."""
    own: Mapping[str, Any] | None = getattr(annotation, "model_fields", None) if isinstance(annotation, type) else None
    if own is not None or get_origin(annotation) in (dict, list, tuple):
        return own
    return next((fields for option in get_args(annotation) if (fields := _fields(option)) is not None), None)


def _inside(annotation: Any, key: int | str) -> Any:
    """The annotation that a key, or an index, of a value leads to."""
    if get_origin(annotation) in (dict, list, tuple):
        return get_args(annotation)[-1 if get_origin(annotation) is dict else 0]
    fields = _fields(annotation)
    if fields is None:
        return next((inner for option in get_args(annotation) if (inner := _inside(option, key)) is not None), None)
    return fields[key].annotation if isinstance(key, str) and key in fields else None
