"""Write docs/reference.md from the docstrings of the hooks and contracts, and the schemas of recipes.

    python docs/build_reference.py           write the page
    python docs/build_reference.py --check   exit with 1 if the page is not what would be written

The text under "Example::" in a docstring becomes a Python block; the blocks of the page are one script, which the tests run.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from latentlm import interface
from latentlm.composed import ComposedDecoder
from latentlm.config import (
    BackboneConfig,
    DataConfig,
    EvaluateConfig,
    LatentConfig,
    ModelConfig,
    Recipe,
    RopeScaling,
    TrainConfig,
)
from latentlm.interface import batches, conditions, distributions, noise
from latentlm.plugins import hookspecs
from latentlm.plugins.settings import settings

PAGE = Path(__file__).parent / "reference.md"

HOOKS = (hookspecs.latentlm_parts, hookspecs.latentlm_cards)
SECTIONS: dict[str, tuple[type, ...]] = {
    "The sockets": (
        interface.Encoder, interface.Prior, interface.Injection, interface.KLSchedule, interface.Granularity,
        interface.LatentDecoder,
    ),
    "What parts are made of": (interface.Part, interface.Shape, interface.LatentShape, interface.Parts, interface.Operations),
    "What parts are given": (batches.Batch, batches.Context, interface.Latents, noise.Noise),
    "What parts return": (
        distributions.Distribution, distributions.Latent, distributions.Bits, distributions.Categorical, distributions.Codes,
        distributions.Gaussian, distributions.Point, distributions.Product,
        conditions.Condition, conditions.BlockCondition, conditions.Prefix, conditions.Cross, conditions.ValueMap,
    ),
    "What a decoder says and returns": (
        interface.LatentInfo, interface.Loss, interface.LatentLoss, interface.State, interface.Met,
    ),
    "The decoder that most plugins use": (ComposedDecoder,),
}  # fmt: skip
KEYS: dict[str, type[BaseModel]] = {
    "": Recipe,
    "model.": ModelConfig,
    "model.latents.NAME.": LatentConfig,
    "model.backbone.": BackboneConfig,
    "model.backbone.rope_scaling.": RopeScaling,
    "data.": DataConfig,
    "train.": TrainConfig,
    "train.evaluate.": EvaluateConfig,
}
"""What a recipe's keys begin with -> their schema."""

HEAD = """\
# Reference: hooks and contracts

Made from the docstrings by `python docs/build_reference.py`; a test keeps it current. [plugins.md](plugins.md) is the tutorial,
[conformance.md](conformance.md) says how a part is checked. These are version {version} of the contracts.

Legend: B rows, T tokens, D width, S latent sites, E event dimensions of a site, K latent samples per row, V vocabulary,
R = B*K latent rows (row b*K + k is sample k of context row b), M prefix or memory slots, L blocks, Hkv key/value heads,
dh head width. Position t consumes token x_t and predicts x_(t+1). Tap k is the residual stream entering block k.

The examples on this page are one script, which begins with:

```python
from pathlib import Path

import torch
from torch import nn

from latentlm import plugins
from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig, Strict
from latentlm.interface import (
    Batch, Bits, BlockCondition, Categorical, Condition, Encoder, Gaussian, Granularity, Injection, KLSchedule, Latent, Latents,
    LatentShape, Noise, Part, Prior, Product, Shape,
)
from latentlm.plugins import hookimpl
```
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD.format(version=interface.CONTRACT_VERSION)]
    parts.append("## The hooks\n\nA plugin is a module that an entry point of the group `latentlm` names.\n")
    parts += [_function(hook, level=3) for hook in HOOKS]
    for title, classes in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [_class(cls) for cls in classes]
    parts.append(_recipe_keys())
    return "\n".join(parts)


def _recipe_keys() -> str:
    """Every key of a recipe with its type, default and range; a key that holds others has its own table instead."""
    lines = [
        "## Recipe keys\n",
        "A recipe is YAML; on the command line a key is written with dots (`latentlm train demo-free train.steps=500`).",
        "The keys under `model:` are a card's too. What can be set in a part depends on the part:",
        "`latentlm parts describe NAME` says it. Settings without a name (`model.encoder.tap=1`) change its default.\n",
    ]
    for prefix, schema in KEYS.items():
        lines += [f"### {prefix.rstrip('.') or 'top level'}\n", _prose(inspect.getdoc(schema) or "") + "\n"]
        lines += ["| key | type | default | range | |", "|---|---|---|---|---|"]
        for row in settings(schema, prefix=prefix):
            if f"{row.name}." not in KEYS:
                default = f"`{row.default}`" if row.default else ""
                cells = (f"`{row.name}`", row.type, default, row.range and f"`{row.range}`", row.description)
                lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _function(function: Any, *, level: int) -> str:
    signature = _tidy(str(inspect.signature(function)))
    text = _prose(inspect.getdoc(function) or "")
    return f"{'#' * level} {function.__name__}\n\n`{function.__name__}{signature}`\n\n{text}\n"


def _class(cls: type) -> str:
    """A class: what it says of itself, its fields with their docstrings, its own public methods. A constructor is told where it
    says itself what it takes; that of a part is the frame's to call."""
    lines = [f"### {cls.__name__}\n", f"`{cls.__module__}.{cls.__name__}`\n", _prose(inspect.getdoc(cls) or ""), ""]
    if fields := _fields(cls):
        lines += ["| field | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in fields), ""]
    methods = [(name, member) for name, member in vars(cls).items() if _is_shown(name, member)]
    if methods:
        lines += ["| method | |", "|---|---|"]
        for name, member in methods:
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            function = function.fget if isinstance(function, property) else function
            shown = cls.__name__ if name == "__init__" else name
            signature = "" if isinstance(member, property) else _tidy(str(inspect.signature(function)))
            call = shown + (signature.removesuffix(" -> None") if name == "__init__" else signature)
            abstract = " *(to be written)*" if getattr(member, "__isabstractmethod__", False) else ""
            lines.append(f"| `{_cell(call)}` | {_cell(_first_paragraph(inspect.getdoc(function) or ''))}{abstract} |")
        lines.append("")
    return "\n".join(lines)


def _is_shown(name: str, member: Any) -> bool:
    if name == "__init__":
        return inspect.isfunction(member) and bool(inspect.getdoc(member)) and member.__doc__ is not None
    callable_ = inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property)
    return callable_ and not name.startswith("_")


def _fields(cls: type) -> list[tuple[str, str]]:
    """Annotated names, with the docstring that follows them in the source or else their type."""
    source = inspect.getsource(cls)
    found = re.findall(r'^    (\w+): ([^\n]+)(?:\n    """(.*?)""")?', source, re.MULTILINE | re.DOTALL)
    return [(name, _cell(" ".join(text.split()) or f"`{kind}`")) for name, kind, text in found if not name.startswith("_")]


def _prose(text: str) -> str:
    """A docstring as Markdown, its example as a block."""
    words, _, example = text.partition("Example::")
    block = inspect.cleandoc("\n" + example).strip("\n")
    return words.rstrip() + (f"\n\n```python\n{block}\n```" if block else "")


def _first_paragraph(text: str) -> str:
    return " ".join(text.partition("Example::")[0].split())


def _tidy(signature: str) -> str:
    """A signature as it reads in the source."""
    signature = re.sub(r"'([^']*)'", r"\1", signature).replace("self, ", "").replace("(self)", "()").replace("cls, ", "")
    return re.sub(r"(?:latentlm|torch|collections)\.(?:\w+\.)*(\w+)", r"\1", signature)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write or check; the exit status."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        if current != wanted:
            print(f"{PAGE.name} is not current: run python docs/build_reference.py", file=sys.stderr)
        return int(current != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
