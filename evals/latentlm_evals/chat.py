"""Conversations: the tokenizer's chat template, and answers that begin with thoughts.

    Templates(tokenizer).apply([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import postprocess_generated_text

from latentlm.errors import UserError, short, unknown_name
from latentlm_evals.options import flag


class Templates:
    """The chat templates of a tokenizer, as transformers has it; None is one without."""

    def __init__(self, tokenizer: Any, arguments: dict[str, Any] | None = None) -> None:
        """`arguments` of the template, by name. Raises UserError for what is no mapping."""
        if not isinstance(arguments, dict | None):
            raise UserError(f'chat_template_args={arguments} is no mapping; write {{"name": value}}.')
        self._tokenizer, self._arguments = tokenizer, arguments or {}
        self._chosen: str | None = None  # the tokenizer's own choice

    def choose(self, name: str | None = None) -> str:
        """Apply the template of that name, or the default, from now on; returns it. Raises UserError where there is none."""
        self._check()
        known = self._tokenizer.chat_template
        known = known if isinstance(known, dict) else {"default": known}
        if odd := [template for template in known.values() if not isinstance(template, str)]:
            raise UserError(f"this model's tokenizer has the chat template {short(repr(odd[0]))}, which is no text: mend it.")
        if (name or "default") not in known:
            raise unknown_name("chat template", name or "default", known, remedy="Say --apply_chat_template NAME.")
        self._chosen = str(known[name or "default"])
        return self._chosen

    @property
    def said(self) -> tuple[str | None, dict[str, Any]]:
        """What conversations look like under: the template that was chosen, and its arguments."""
        return self._chosen, self._arguments

    def _check(self) -> None:
        """Raise UserError where there is no template."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise UserError(
                "this model's tokenizer has no chat template: leave --apply_chat_template out, or put a chat_template.jinja "
                "(or a tokenizer_config.json with one) beside its tokenizer.json."
            )

    def apply(self, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """The conversation as one text. A template that knows no system role gets the conversation without it, as in `hf`."""
        import jinja2

        self._check()
        rest = [turn for turn in history if turn["role"] != "system"]
        try:
            try:
                return self._rendered(history, add_generation_prompt)
            except jinja2.exceptions.TemplateError:
                if len(rest) == len(history):
                    raise
                return self._rendered(rest, add_generation_prompt)
        except Exception as error:  # a template is a program, which raises what it runs into
            said = short(str(error) or type(error).__name__)
            raise UserError(f"the chat template cannot take this conversation: {said}") from None

    def _rendered(self, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        rendered = self._tokenizer.apply_chat_template(
            history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            chat_template=self._chosen,
            **self._arguments,
        )
        return str(rendered)


@dataclass(frozen=True)
class Thinking:
    """What is done with an answer's thoughts: everything up to `end`, a text or a token, is left out."""

    enabled: bool | None = None
    end: str | int | None = None

    @classmethod
    def of(cls, enabled: bool | None, end: str | int | None) -> Thinking:
        """Raises UserError for thoughts without an end, and for an end that is neither a text nor a token."""
        flag("enable_thinking", enabled)
        if isinstance(end, bool) or not isinstance(end, str | int | None):
            raise UserError(f"think_end_token={end} is neither a text nor the number of a token.")
        if enabled and end is None:
            raise UserError("enable_thinking=true needs think_end_token=..., the text or token that ends the thoughts.")
        return cls(enabled, int(end) if isinstance(end, str) and end.isdigit() else end)

    def check(self, vocabulary: int) -> None:
        """Raise UserError for an end that is no token."""
        if isinstance(self.end, int) and not 0 <= self.end < vocabulary:
            raise UserError(f"think_end_token={self.end} is no token of this model's: they go from 0 to {vocabulary - 1}.")

    def with_theirs(self, arguments: Any) -> Any:
        """Arguments for the chat template, and whether to think among them."""
        if self.enabled is None or not isinstance(arguments, dict | None):
            return arguments
        return {**(arguments or {}), "enable_thinking": self.enabled}

    def facts(self) -> dict[str, Any]:
        """What the answers depend on; nothing where nothing is asked for."""
        return {} if self.end is None else {"think_end_token": self.end}

    def refuse_likelihoods(self) -> None:
        """Raise UserError where thoughts are wanted before a continuation that is given."""
        if self.enabled:
            raise UserError("enable_thinking=true is for tasks that generate: a given continuation has no thoughts before it.")

    def after(self, tokens: list[int]) -> list[int]:
        """The tokens after the last one that ends thoughts."""
        if not isinstance(self.end, int) or self.end not in tokens:
            return tokens
        return tokens[len(tokens) - tokens[::-1].index(self.end) :]

    def answer(self, text: str, stop: Sequence[str]) -> str:
        """What of a text counts, in `hf`'s order: no thoughts, no blanks before the rest, and of that nothing from a stop
        string on. `text` lacks what `after` leaves out, and has the stop string that it ended at."""
        if isinstance(self.end, int):
            text = text.lstrip()  # with thoughts or without
        return str(postprocess_generated_text(text, list(stop), self.end if isinstance(self.end, str) else None))
