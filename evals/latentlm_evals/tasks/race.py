"""RACE as lm-eval's own task asks it."""

from __future__ import annotations

from lm_eval.tasks.race.preprocess_race import doc_to_choice, doc_to_target, doc_to_text

__all__ = ["doc_to_choice", "doc_to_target", "doc_to_text"]
