"""A plugin to begin with: a distribution with an entry point, one part or a whole method, tests, a recipe and a CI file.

    files = write_plugin("mine", socket="encoder", folder=Path("latentlm-mine"))
    files = write_method("mine", folder=Path("latentlm-mine"))
    latentlm new-plugin mine --socket encoder
    latentlm new-plugin mine --method

What is written works as it is: it installs, passes its tests, trains and is scored. The texts are in `templates`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from string import Template

from latentlm import plugins
from latentlm.errors import UserError, unknown_name
from latentlm.interface import CONTRACT_VERSION

SOCKETS = ("encoder", "prior", "injection", "kl_schedule", "granularity")
"""The sockets that a part can be begun for; a decoder of one's own is usually a ComposedDecoder with these."""
METHOD = ("decoder", "encoder", "prior", "injection")
"""The sockets that a method fills under its one name."""

_SUMMARIES = {
    "encoder": "An encoder: who infers z.",
    "prior": "A prior: where z comes from when nobody infers it.",
    "injection": "An injection: where z enters the decoder.",
    "kl_schedule": "A KL schedule: what z costs.",
    "granularity": "A granularity: where a latent's sites begin.",
}


def write_plugin(name: str, *, socket: str, folder: Path | None = None) -> list[Path]:
    """Write a distribution with one part into `folder` (default: latentlm-NAME); returns its files.

    Raises UserError for a name that is no name or is taken, an unknown socket, and a folder that holds something.
    """
    if socket not in SOCKETS:
        raise unknown_name("socket", socket, SOCKETS)
    words = _words(_checked(name, [socket]), _SUMMARIES[socket]) | _words_of_part(name.replace("-", "_"), socket)
    return _write(words, folder, _places(words, "plugin", _part_places(words)))


def write_method(name: str, *, folder: Path | None = None) -> list[Path]:
    """Write a distribution with a whole method: encoder, prior, injection, what their latents are, and a decoder that has them
    as its defaults. Folder, files and errors as those of `write_plugin`."""
    words = _words(_checked(name, METHOD), "A method: what z is, who infers it, where it comes from and where it enters.")
    return _write(words, folder, _places(words, "method", _method_places(words)))


def _write(words: dict[str, str], folder: Path | None, places: Iterator[tuple[Traversable, str]]) -> list[Path]:
    """Fill the templates. Raises UserError."""
    target = folder or Path(words["distribution"])
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; choose another with --out.")
    written = []
    for template, place in places:
        path = target / place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} could not be written ({error.strerror}); choose another folder with --out.") from None
        written.append(path)
    return written


def _checked(name: str, sockets: Iterable[str]) -> str:
    """The name with underscores, if it is one and free in these sockets."""
    plain = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", plain):
        raise UserError(f'"{name}" is no name for a plugin: a lower-case letter, then letters, digits, dashes or underscores.')
    for socket in sockets:
        if plain in plugins.names(socket):
            raise UserError(f'There is a {socket} called "{plain}" already; `latentlm parts` lists the names that are taken.')
    if plain in {plugin.name for plugin in plugins.listing()}:
        raise UserError(f'A plugin called "{plain}" is installed already; `latentlm plugins` lists the names that are taken.')
    if find_spec(f"latentlm_{plain}") is not None:
        raise UserError(f"There is a package latentlm_{plain} already; choose another name.")
    return plain


def _words(name: str, summary: str) -> dict[str, str]:
    """What all templates leave open."""
    return {
        "name": name,
        "stem": _stem(name),
        "distribution": f"latentlm-{name.replace('_', '-')}",
        "package": f"latentlm_{name}",
        "summary": summary,
        "contract": str(CONTRACT_VERSION),
    }


def _words_of_part(name: str, socket: str) -> dict[str, str]:
    """What the templates of a single part leave open besides."""
    role = _stem(socket.replace("kl_", ""))
    return {
        "socket": socket,
        "module": socket.replace("kl_", ""),
        "class_name": f"{_stem(name).removesuffix(role)}{role}",
        "config_name": f"{_stem(name)}Config",
    }


def _stem(name: str) -> str:
    """The name as a class has it."""
    return "".join(word.capitalize() for word in name.split("_"))


def _places(words: dict[str, str], kind: str, own: Iterable[tuple[str, str]]) -> Iterator[tuple[Traversable, str]]:
    """Each template and where its text goes: files that every distribution has, and around its own modules a page and a recipe
    that each kind has its own of."""
    common, of_kind = (files("latentlm.plugins") / "templates" / folder for folder in ("plugin", kind))
    yield common / "pyproject.toml.tmpl", "pyproject.toml"
    yield of_kind / "README.md.tmpl", "README.md"
    yield common / "gitignore.tmpl", ".gitignore"
    for template, place in own:
        yield of_kind.joinpath(*template.split("/")), place
    yield of_kind / "recipe.yaml.tmpl", f"recipes/{words['name']}.yaml"
    yield common / "workflow.yml.tmpl", ".github/workflows/test.yml"


def _part_places(words: dict[str, str]) -> list[tuple[str, str]]:
    """The modules of a plugin with one part."""
    return [
        ("init.py.tmpl", f"{words['package']}/__init__.py"),
        (f"parts/{words['socket']}.py.tmpl", f"{words['package']}/{words['module']}.py"),
        ("test_conformance.py.tmpl", "tests/test_conformance.py"),
    ]


def _method_places(words: dict[str, str]) -> list[tuple[str, str]]:
    """The modules of a whole method."""
    modules = ("distribution", "encoder", "prior", "injection")
    return [
        ("init.py.tmpl", f"{words['package']}/__init__.py"),
        *((f"{module}.py.tmpl", f"{words['package']}/{module}.py") for module in modules),
        ("test_conformance.py.tmpl", "tests/test_conformance.py"),
        ("test_distribution.py.tmpl", "tests/test_distribution.py"),
    ]
