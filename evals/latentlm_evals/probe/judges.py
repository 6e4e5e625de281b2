"""Who says what attribute a text shows: 1, -1, or 0 for neither. None of them reads meaning.

    rule        a synthetic source's own: which of its opinion words the text has more of
    lexicon     the sum of the valences that VADER's lexicon (Hutto and Gilbert 2014) gives to the words of the text. Its rules
                are left out: no negation, no boosters ("very"), no capitals, no punctuation, no emoticons
    words       a logistic regression on the words of the rated texts, those whose attribute is known
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from latentlm.errors import UserError, unknown_name
from latentlm_evals.probe.attributes import REVIEWS, Attribute
from latentlm_evals.probe.classify import fitted
from latentlm_evals.probe.features import Vocabulary
from latentlm_evals.probe.fetching import cached

Judge = Callable[[str], int]
JUDGES = ("rule", "lexicon", "words")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def judge_name(name: str | None, attribute: Attribute) -> str:
    """The judge that was asked for, or the attribute's own. Raises UserError for one that cannot judge it."""
    if name is not None and name not in JUDGES:
        raise unknown_name("judge", name, JUDGES)
    if name == "rule" and attribute.source is None:
        raise UserError(f"--judge rule is a synthetic source's, and {attribute.name} is none: take lexicon or words.")
    if name == "lexicon" and not cached().complete:
        raise UserError("--judge lexicon is fetched with the movie reviews: run `latentlm reviews`, or take --judge words.")
    return name or ("rule" if attribute.source else "lexicon" if attribute.name == REVIEWS else "words")


def make_judge(name: str, attribute: Attribute) -> Judge:
    """The judge of that name."""
    if name == "rule":
        assert attribute.source is not None
        return attribute.source.read
    return lexicon(cached().lexicon) if name == "lexicon" else words(attribute)


def lexicon(path: Path) -> Judge:
    """By a file of words and their valences, between tabs. Raises UserError."""
    valences = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            word, _, rest = line.partition("\t")
            valences[word] = float(rest.partition("\t")[0])
    except (OSError, ValueError) as error:
        raise UserError(f"the lexicon {path} cannot be read ({error}): fetch it anew with `latentlm reviews --anew`.") from None
    return lambda text: _sign(math.fsum(valences.get(word, 0.0) for word in _WORD.findall(text.lower())))


def words(attribute: Attribute) -> Judge:
    """By the words of the attribute's own texts."""
    vocabulary = Vocabulary.of(attribute.texts)
    model = fitted(vocabulary.counts(attribute.texts), attribute.labels)
    return lambda text: _sign(float(model.decision_function(vocabulary.counts([text.encode()]))[0]))


def _sign(value: float) -> int:
    return int(np.sign(value))
