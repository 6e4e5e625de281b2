"""A latent decoder as lm-eval wants it: `lm_eval --model latentlm --model_args model=free-tiny,samples=16 --tasks ...`

    model_args       default        meaning
    model            (needed)       a name of the zoo, or a run folder
    score            operational    operational, iwae, elbo, prior or joint (docs/latents.md); whole texts take iwae
                                    for operational and joint
    samples          16             K latent samples per request
    seed             0              of the keyed random numbers
    last_latent      posterior      who draws the latent of the last context token: posterior or prior
    batch_size       (lm-eval's)    requests per forward pass; "auto" fills a fixed number of latent tokens
    device, dtype    the card's     where and in what precision
    max_length       the context    tokens that the model is shown at most
    tokenizer        the card's     for a card without one: "bytes" or the path of a tokenizer.json
    allow_random     false          true evaluates an `architecture` card, whose weights are random
    windows          auto           rolling windows: "disjoint" (one context token each) or "overlapping" (lm-eval's: the last
                                    window keeps as much context as fits); auto: disjoint for latents, else overlapping

Rules that make the numbers honest: nothing is shared between the options of a question (one option's posterior has seen its own
targets); batches are padded on the right and encoders never see the padding; `is_greedy` is the argmax of the K-sample
predictive mixture; random numbers are keyed by content, so batch size, order and number of processes change no answer; a
`--use_cache` database belongs to one fingerprint (see fingerprint.py).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from latentlm.errors import UserError, unknown_name
from latentlm.generation import generate
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Method, fit_to_context, score_continuations
from latentlm_evals.chunks import answer_in_chunks
from latentlm_evals.fingerprint import Facts, claim_cache, model_facts
from latentlm_evals.generation_settings import GenerationSettings
from latentlm_evals.loading import load_model
from latentlm_evals.scored import Scored

Windows = Literal["auto", "disjoint", "overlapping"]
TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""(context and continuation as text, context tokens, continuation tokens)."""

_GENERATED_TOGETHER = 32  # prompts in a batch where batch_size is "auto"


class LatentLM(TemplateLM):
    """A LatentDecoder as lm-eval wants it. Likelihoods are nats."""

    def __init__(
        self,
        model: str | LatentDecoder,
        *,
        score: Method = "operational",
        samples: int = 16,
        seed: int = 0,
        last_latent: Literal["posterior", "prior"] = "posterior",
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        tokenizer: str | None = None,
        allow_random: bool = False,
        windows: Windows = "auto",
    ) -> None:
        super().__init__()
        for name, value, known in (("score", score, get_args(Method)), ("windows", windows, get_args(Windows))):
            if value not in known:
                raise unknown_name(name, str(value), known)
        loaded = load_model(model, device=device, dtype=dtype, tokenizer=tokenizer, allow_random=allow_random)
        assert loaded.tokenizer is not None, "load_model refuses models without one"
        self.model, self._tokenizer = loaded, loaded.tokenizer
        self._device = loaded.device
        self.score: Method = score
        self.samples, self.seed, self.last_latent = int(samples), int(seed), last_latent
        self.batch_size = _batch_size(batch_size, max_batch_size)
        self.max_length = _max_length(max_length, loaded.config.backbone.context)
        self.windows = windows if windows != "auto" else "disjoint" if loaded.has_latents else "overlapping"
        self._facts: Facts | None = None
        self._scored = Scored()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> LatentLM:
        """As lm-eval calls it with `--model_args a=b,c=d`; an unknown name is a UserError with the nearest known one."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> LatentLM:
        """The same from a mapping; what `--model_args` says wins over lm-eval's own options."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if str(given.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
            del given["device"]  # the lm_eval command asks for cuda:0 on every machine
        given |= arg_dict
        known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        for name in given:
            if name not in known:
                raise unknown_name("model_args key", name, known)
        if "model" not in given:
            raise UserError("--model_args needs a model: model=NAME of the zoo (see `latentlm zoo list`), or model=RUN_FOLDER.")
        return cls(**given)

    # ------------------------------------------------------------------------------------------------ tokens

    @property
    def eot_token_id(self) -> int:
        """End-of-text, which also stands for an empty context."""
        return self._tokenizer.end_of_text

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of built requests."""
        return self._tokenizer.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; no special token is ever added. lm-eval may pass options of other tokenizers: unused."""
        return [int(token) for token in self._tokenizer.encode(string)]

    # ------------------------------------------------------------------------------------------------ requests

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, nats, and whether greedy decoding would produce it."""

        def answer(numbers: list[int]) -> Iterator[tuple[float, bool]]:
            chosen = [requests[number] for number in numbers]
            scores = score_continuations(
                self.model,
                [fit_to_context(context, continuation, self.max_length) for _, context, continuation in chosen],
                method=self.score,
                samples=self.samples,
                seed=self.seed,
                batch_size=self.batch_size,
                last_latent=self.last_latent,
                greedy=True,
                # The options of a question share their uniform numbers even where the context is cut to different lengths.
                keys=[tuple(context) for _, context, _ in chosen],
            )
            self._scored.add(scores)
            for (text, _, _), score in zip(chosen, scores, strict=True):
                result = (score.value, bool(score.greedy))
                self.cache_hook.add_partial("loglikelihood", text, result)
                yield result

        order = sorted(range(len(requests)), key=lambda number: -len(requests[number][1] + requests[number][2]))
        return answer_in_chunks(order, answer, title="latentlm: continuations", quiet=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, nats, each cut into windows that add up; an empty text has 0."""
        texts = [str(request.args[0]) for request in requests]
        tokens = [self.tok_encode(text) for text in texts]

        def answer(numbers: list[int]) -> Iterator[float]:
            values = self._whole_texts([tokens[number] for number in numbers])
            for number, value in zip(numbers, values, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", (texts[number],), value)
                yield value

        order = sorted(range(len(texts)), key=lambda number: -len(tokens[number]))
        return answer_in_chunks(order, answer, title="latentlm: whole texts", quiet=disable_tqdm)

    def _whole_texts(self, texts: list[list[int]]) -> list[float]:
        """Nats of each text of tokens, the prefix token not among them."""
        method: Method = "iwae" if self.score in ("operational", "joint") else self.score
        values = [0.0] * len(texts)
        owners, windows = [], []
        for number, text in enumerate(texts):
            for context, targets in self._windows(text):
                owners.append(number)
                windows.append((context, targets))
        scores = score_continuations(
            self.model,
            windows,
            method=method,
            samples=self.samples,
            seed=self.seed,
            batch_size=self.batch_size,
            # The default key is the context, which all texts share here: their errors would not be independent.
            keys=[("text", tuple(context), tuple(targets)) for context, targets in windows],
        )
        self._scored.add(scores)
        for owner, score in zip(owners, scores, strict=True):
            values[owner] += score.value
        return values

    def _windows(self, text: list[int]) -> list[tuple[list[int], list[int]]]:
        """(context, targets) of each window; targets are disjoint and cover the text."""
        whole = get_rolling_token_windows(text, self.prefix_token_id, self.max_length, context_len=1)
        windows = [make_disjoint_window(window) for window in whole]
        if self.windows == "overlapping":
            return windows
        return [(context[-1:], targets) for context, targets in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, greedy unless the task samples. Latents are drawn anew for each prompt."""
        contexts = [str(request.args[0]) for request in requests]
        settings = [GenerationSettings.of(request.args[1], self.max_length) for request in requests]
        # lm-eval repeats a request by passing it several times, and wants several samples; equal prompts of different
        # documents draw the same numbers, so that the order of documents does not matter.
        seen: Counter[int] = Counter()
        keys = []
        for request, context, wanted in zip(requests, contexts, settings, strict=True):
            keys.append((context, repr(wanted), seen[id(request)]))
            seen[id(request)] += 1

        def answer(numbers: list[int]) -> Iterator[str]:
            texts: dict[int, str] = {}
            for group in dict.fromkeys(settings[number] for number in numbers):
                members = [number for number in numbers if settings[number] == group]
                found = self._generate([contexts[n] for n in members], group, [keys[n] for n in members])
                texts.update(zip(members, found, strict=True))
            for number in numbers:
                self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                yield texts[number]

        order = sorted(range(len(contexts)), key=lambda number: -len(contexts[number]))
        return answer_in_chunks(order, answer, title="latentlm: generations", quiet=disable_tqdm)

    def _generate(self, contexts: list[str], settings: GenerationSettings, keys: Sequence[tuple[str, str, int]]) -> list[str]:
        """Continuations of contexts that share their settings."""
        room = self.max_length - settings.max_tokens
        found = generate(
            self.model,
            [self.tok_encode(context)[-room:] for context in contexts],
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop=settings.stop,
            seed=self.seed,
            last_latent=self.last_latent,
            keys=keys,
            batch_size=self.batch_size or _GENERATED_TOGETHER,
        )
        assert all(one.text is not None for one in found), "load_model refuses models without a tokenizer"
        return [str(one.text) for one in found]

    # ------------------------------------------------------------------------------------------------ facts

    def facts(self) -> Facts:
        """What every answer depends on: the model's facts and the settings of scoring."""
        if self._facts is None:
            self._facts = model_facts(self.model) | {
                "score": self.score,
                "samples": self.samples if self.model.has_latents else 0,
                "seed": self.seed,
                "last_latent": self.last_latent,
                "max_length": self.max_length,
                "windows": self.windows,
            }
        return self._facts

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's cache, signed with `facts`. Raises UserError for a database signed with others, or not at all."""
        if cache_hook.dbdict is not None:
            claim_cache(cache_hook.dbdict, self.facts())
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """For the `config` of lm-eval's results: the facts, and how well the likelihoods were determined."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {"model_num_parameters": parameters, "latentlm": self.facts() | {"likelihoods": asdict(self._scored)}}


def _batch_size(given: int | str | None, largest: int | None) -> int | None:
    """Requests per forward pass; None = as many as fit a fixed number of latent tokens ("auto")."""
    if given is None or str(given).startswith("auto"):
        return largest
    try:
        size = int(given)
    except ValueError:
        size = 0
    if size < 1:
        raise UserError(f'batch_size={given} is neither a number of requests nor "auto".')
    return size


def _max_length(given: int | None, context: int) -> int:
    """Tokens that the model is shown at most."""
    if given is not None and not 2 <= given <= context:
        raise UserError(f"max_length={given} is not between 2 and the model's context of {context} tokens.")
    return given or context
