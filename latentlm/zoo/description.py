"""What `zoo.describe` says of a model: its card, its costs, and both overheads, in words or as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from latentlm.config import SOCKETS, Card
from latentlm.zoo.accounting import Cost, Overhead


@dataclass(frozen=True)
class Description:
    """What a model is and costs. `overhead` is None where the card names no baseline."""

    card: Card
    cost: Cost
    overhead: Overhead | None
    drawing: str = ""
    """The sockets (drawing.py)."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "card": self.card.model_dump(mode="json"),
            "cost": self.cost.as_json(),
            "overhead": None if self.overhead is None else asdict(self.overhead),
            "drawing": self.drawing.splitlines(),
        }

    def sections(self) -> list[list[tuple[str, str]]]:
        """Label and value of every fact, in groups: what it is, parameters, operations and memory, parts, overhead, scores."""
        groups = [self._what(), self._parameters(), self._costs(), self._parts(), self._overhead(), self._scores()]
        return [rows for group in groups if (rows := list(group))]

    def __str__(self) -> str:
        rows = [row for group in self.sections() for row in group]
        width = max(len(label) for label, _ in rows)
        facts = [f"{label:{width}}  {value}" for label, value in rows]
        return "\n".join([f"{self.card.name} ({self.card.status})", *facts, "", self.drawing])

    def _what(self) -> Iterator[tuple[str, str]]:
        card = self.card
        facts = {"what": card.description, "paper": card.paper, "licence": card.licence}
        yield from ((label, value) for label, value in facts.items() if value)
        yield "tokenizer", card.tokenizer or "none: bring your own"
        if card.weights is not None:
            yield "weights", f"{card.weights.uri}, {card.weights.size:,} bytes, SHA-256 {card.weights.sha256[:12]}..."

    def _parameters(self) -> Iterator[tuple[str, str]]:
        yield "parameters", f"{self.cost.parameters:,}"
        for part, number in self.cost.by_part.items():
            if number:
                blocks = self.card.model.backbone.blocks
                note = f" ({blocks} of {self.cost.one_block:,})" if part == "blocks" else ""
                yield f"  {part}", f"{number:,}{note}"

    def _costs(self) -> Iterator[tuple[str, str]]:
        cost, context = self.cost, self.card.model.backbone.context
        yield "operations per token", (
            f"{cost.training_flops_per_token:.3g} in training, {cost.generation_flops_per_token:.3g} in generation "
            f"(mean over {context:,} tokens of context)"
        )
        cache = cost.cache_bytes_per_token
        yield "memory", (
            f"{_bytes(cost.weight_bytes)} of weights in {self.card.dtype}; key/value cache {_bytes(cache)} per token, "
            f"{_bytes(cache * context)} for a full context"
        )

    def _parts(self) -> Iterator[tuple[str, str]]:
        latents: dict[str, Any] = {**self.card.model.latents} or {"": self.card.model}
        for name, latent in latents.items():
            for socket in SOCKETS:
                if (spec := getattr(latent, socket)) is not None:
                    settings = ", ".join(f"{key}={value}" for key, value in spec.settings.items() if value is not None)
                    if spec.above:
                        settings = ", ".join((f"above {' and '.join(spec.above)}", *([settings] if settings else [])))
                    label = f"{name} {socket}".lstrip()
                    yield label, f"{spec.name} ({settings})" if settings else str(spec.name)

    def _overhead(self) -> Iterator[tuple[str, str]]:
        if (extra := self.overhead) is None:
            return
        yield f"overhead against {extra.baseline}", (
            f"{extra.encoder_block:.1%} the paper's way: the encoder's block over the baseline's blocks"
        )
        yield "", f"{extra.all_parameters:.1%} counting all parameters: everything that the baseline has not"
        yield "", (
            f"{extra.training_flops:.1%} of a training step's operations, {extra.generation_flops:.1%} of a generated token's"
        )

    def _scores(self) -> Iterator[tuple[str, str]]:
        for name, value in self.card.scores.items():
            for number, one in enumerate(value if isinstance(value, list) else [value]):
                yield ("" if number else name), _facts(one)
                if isinstance(one, dict) and one.get("z_used") is False:
                    yield "", "z is not used: the decoder does as well with another text's"


def _facts(value: object) -> str:
    """Numbers rounded, yes and no in words, mappings as a list of facts, those in them in brackets; what lies deeper is left to
    `as_json`."""
    if not isinstance(value, dict):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    said = []
    for key, item in value.items():
        if key == "z_used":  # where it is not, a line of its own says so
            said += ["z is used"] * bool(item)
        elif isinstance(item, bool):
            said.append(key if item else f"not {key}")
        elif isinstance(item, dict):
            deep = any(isinstance(inner, dict) for inner in item.values())
            said.append(f"{key} (see --json)" if deep else f"{key} ({_facts(item)})")
        elif item is not None:
            said.append(f"{key} {_facts(item)}")
    return ", ".join(said)


def _bytes(number: int) -> str:
    """A number of bytes in the largest unit that it fills."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number} bytes"
