"""The texts that published likelihoods are measured on: the beginnings of 48 held-out files of the standard library of Python
3.11. They are kept (`texts.jsonl`), since the library of another Python is another text, of which models may have seen half.
Their licence is evals/latentlm_evals/tasks/LICENSE-PSF.txt.

Run: ``python -m benchmarks.texts`` writes the file anew, from the running interpreter; only where what is held out changes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from latentlm import zoo
from latentlm.config import Card
from latentlm.training.data import Document, load_documents
from latentlm.training.recipes import load_recipe
from latentlm_evals.measure import Text, held_out_texts

KEPT = Path(__file__).with_suffix(".jsonl")
DATA = "demo-free"
"""The recipe whose held-out documents they are."""
DOCUMENTS, BYTES = 48, 2048


def published_texts(count: int = DOCUMENTS, limit: int = BYTES) -> list[Text]:
    """`count` of the kept texts, each cut to `limit` bytes: the same as of all held-out documents."""
    assert count <= DOCUMENTS
    assert limit <= BYTES
    lines = [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()]
    return held_out_texts([Document(line["id"], _bytes(line["text"])) for line in lines], count=count, limit=limit, seed=0)


@functools.cache
def texts_hash() -> str:
    """SHA-256 of the kept texts."""
    return hashlib.sha256(KEPT.read_bytes()).hexdigest()


def trained_cards() -> dict[str, Card]:
    """The trained cards of the zoo whose text this is, by name."""
    cards = {card.name: card for card in zoo.list() if card.status == "trained"}
    return {name: card for name, card in cards.items() if card.training.get("data", {}).get("path") == "stdlib"}


def main() -> None:
    """The command described above."""
    documents = load_documents(load_recipe(DATA, []).data).held_out
    texts = held_out_texts(documents, count=DOCUMENTS, limit=BYTES + 1, seed=0)  # one byte more tells who ends at the limit
    lines = [json.dumps({"id": text.id, "text": text.data.decode("utf-8", "surrogateescape")}) for text in texts]
    KEPT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _bytes(text: str) -> bytes:
    """What was decoded, also where it was cut within a character."""
    return text.encode("utf-8", "surrogateescape")


if __name__ == "__main__":
    main()
