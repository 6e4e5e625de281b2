"""A plugin to begin with: a distribution with an entry point, one part, a conformance test, a recipe and a CI file.

    files = write_plugin("mine", socket="encoder", folder=Path("latentlm-mine"))
    latentlm new-plugin mine --socket encoder

What is written works as it is: it installs, passes its tests, trains and is scored. The texts are in `templates`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from string import Template

from latentlm import plugins
from latentlm.errors import UserError, unknown_name
from latentlm.interface import CONTRACT_VERSION

SOCKETS = ("encoder", "prior", "injection", "kl_schedule")
"""The sockets that a part can be begun for; a decoder of one's own is usually a ComposedDecoder with these."""

_SUMMARIES = {
    "encoder": "An encoder: who infers z.",
    "prior": "A prior: where z comes from when nobody infers it.",
    "injection": "An injection: where z enters the decoder.",
    "kl_schedule": "A KL schedule: what z costs.",
}


def write_plugin(name: str, *, socket: str, folder: Path | None = None) -> list[Path]:
    """Write the distribution into `folder` (default: latentlm-NAME); returns its files.

    Raises UserError for a name that is no name or is taken, an unknown socket, and a folder that holds something.
    """
    if socket not in SOCKETS:
        raise unknown_name("socket", socket, SOCKETS)
    name = _checked(name, socket)
    target = folder or Path(f"latentlm-{name.replace('_', '-')}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; choose another with --out.")
    words = _words(name, socket)
    written = []
    for template, place in _places(words):
        path = target / place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} could not be written ({error.strerror}); choose another folder with --out.") from None
        written.append(path)
    return written


def _checked(name: str, socket: str) -> str:
    """The name with underscores, if it is one and free."""
    plain = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", plain):
        raise UserError(f'"{name}" is no name for a plugin: a lower-case letter, then letters, digits, dashes or underscores.')
    if plain in plugins.names(socket):
        raise UserError(f'There is a {socket} called "{plain}" already; `latentlm plugins` lists the names that are taken.')
    if plain in {plugin.name for plugin in plugins.listing()}:
        raise UserError(f'A plugin called "{plain}" is installed already; `latentlm plugins` lists the names that are taken.')
    if find_spec(f"latentlm_{plain}") is not None:
        raise UserError(f"There is a package latentlm_{plain} already; choose another name.")
    return plain


def _words(name: str, socket: str) -> dict[str, str]:
    """What the templates leave open."""
    stem = "".join(word.capitalize() for word in name.split("_"))
    role = "".join(word.capitalize() for word in socket.replace("kl_", "").split("_"))
    return {
        "name": name,
        "socket": socket,
        "distribution": f"latentlm-{name.replace('_', '-')}",
        "package": f"latentlm_{name}",
        "module": socket.replace("kl_", ""),
        "class_name": f"{stem.removesuffix(role)}{role}",
        "config_name": f"{stem}Config",
        "summary": _SUMMARIES[socket],
        "contract": str(CONTRACT_VERSION),
    }


def _places(words: dict[str, str]) -> Iterator[tuple[Traversable, str]]:
    """Each template and where its text goes."""
    root = files("latentlm.plugins") / "templates" / "plugin"
    yield root / "pyproject.toml.tmpl", "pyproject.toml"
    yield root / "README.md.tmpl", "README.md"
    yield root / "gitignore.tmpl", ".gitignore"
    yield root / "init.py.tmpl", f"{words['package']}/__init__.py"
    yield root / "parts" / f"{words['socket']}.py.tmpl", f"{words['package']}/{words['module']}.py"
    yield root / "test_conformance.py.tmpl", "tests/test_conformance.py"
    yield root / "recipe.yaml.tmpl", f"recipes/{words['name']}.yaml"
    yield root / "workflow.yml.tmpl", ".github/workflows/test.yml"
