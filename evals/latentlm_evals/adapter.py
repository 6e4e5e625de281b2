"""A latent decoder as lm-eval wants it: `lm_eval --model latentlm --model_args model=free-tiny,samples=16 --tasks ...`

    model_args       default        meaning
    model            (needed)       a name of the zoo, a run folder, or a Llama folder of transformers; also `pretrained`
    score            operational    operational, auto, iwae, smc, elbo, prior or joint (docs/latents.md); for operational whole
                                    texts take what score_texts takes by itself, for joint iwae
    samples          16             K latent samples per request; "auto" doubles them, from 32, until the score has converged
    tolerance        0.01           what scores are to be good to: nats of a continuation, bits per byte of a whole text
    max_samples      256            where "auto" gives up; how many requests have not converged is in the results
    refine           50 or 0        gradient steps on the proposal of a document's vector: 50 for whole texts with samples=auto,
                                    else 0; a number of yours is for continuations too (docs/latents.md)
    seed             0              of the keyed random numbers; lm-eval's own --seed does not reach them
    last_latent      posterior      who draws the latent of the last context token: posterior or prior
    batch_size       (lm-eval's)    requests per forward pass; "auto" is as many as go well together on the device
    device, dtype    the card's     where and in what precision
    max_length       the context    tokens that the model is shown at most
    tokenizer        the card's     for a card without one: "bytes", or a tokenizer.json or its folder
    allow_random     false          true evaluates an `architecture` card, whose weights are random
    windows          auto           rolling windows: "disjoint" (one context token each) or "overlapping" (lm-eval's: the last
                                    window keeps as much context as fits); auto: disjoint for latents, else overlapping

add_bos_token, prefix_token_id, enable_thinking, think_end_token and chat_template_args are those of lm-eval's `hf`.
docs/lm-eval.md lists every option of both.

Rules that make the numbers honest: the options of a question share what their context alone decides, nothing else (an option's
posterior has seen its targets); encoders never see the padding; `is_greedy` is the argmax of a mixture of samples that have
not; random numbers are keyed by content, so batches and processes change no answer; the first token is what training fed
(reading.py); a `--use_cache` database belongs to one fingerprint (fingerprint.py), gives no sample twice (answers.py).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.utils import simple_parse_args_string

from latentlm.errors import UserError, unknown_name
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Method, Score
from latentlm.likelihood.estimating import estimated
from latentlm.likelihood.requests import How, Request
from latentlm.likelihood.scoring import MAX_SAMPLES, TOLERANCE
from latentlm.likelihood.texts import reading_order
from latentlm_evals import chat
from latentlm_evals.answers import keep, keep_score, recall, refuse_samples, repeat_numbers
from latentlm_evals.chunks import answer_in_chunks
from latentlm_evals.fingerprint import Facts, claim_cache, machine_facts, model_facts
from latentlm_evals.following import Evaluation, announce, torch_seed
from latentlm_evals.generation_settings import GenerationSettings
from latentlm_evals.loading import load_model, tokenizer_folder
from latentlm_evals.options import batch_rows, ours, seen_tokens, words
from latentlm_evals.ranks import Ranks, emptied, in_document_order
from latentlm_evals.reading import TokenRequest, begun, cut_and_joined, fitted, reader_of
from latentlm_evals.scored import Scored
from latentlm_evals.scoring_settings import LastLatent, ScoringSettings
from latentlm_evals.writing import Writer

Windows = Literal["auto", "disjoint", "overlapping"]

_log = logging.getLogger("latentlm_evals")


class LatentLM(TemplateLM):
    """A LatentDecoder as lm-eval wants it. Likelihoods are nats."""

    def __init__(
        self,
        model: str | LatentDecoder,
        *,
        score: Method = "operational",
        samples: int | Literal["auto"] = 16,
        tolerance: float = TOLERANCE,
        max_samples: int = MAX_SAMPLES,
        refine: int | None = None,
        seed: int = 0,
        last_latent: LastLatent = "posterior",
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        tokenizer: str | None = None,
        allow_random: bool = False,
        windows: Windows = "auto",
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if windows not in get_args(Windows):
            raise unknown_name("windows", str(windows), get_args(Windows))
        words(model=None if isinstance(model, LatentDecoder) else model, device=device, tokenizer=tokenizer)
        scoring = ScoringSettings.of(
            score=score,
            samples=samples,
            tolerance=tolerance,
            max_samples=max_samples,
            refine=refine,
            seed=seed,
            last_latent=last_latent,
        )
        self.thinking = chat.Thinking.of(enable_thinking, think_end_token)
        self._ranks = Ranks.join()
        self._rank, self._world_size = self._ranks.rank, self._ranks.count
        loaded = load_model(
            model, device=self._ranks.device(device), dtype=dtype, tokenizer=tokenizer, allow_random=allow_random
        )
        assert loaded.tokenizer is not None, "load_model refuses models without one"
        self.thinking.check(loaded.tokenizer.vocabulary)
        self.model, self._tokenizer = loaded, loaded.tokenizer
        self._device = loaded.device
        folder, elsewhere = tokenizer_folder(model, tokenizer)
        if elsewhere and loaded.end_tokens is not None:  # `hf` stops at the tokenizer's end-of-text too
            loaded.end_tokens |= {loaded.tokenizer.end_of_text}
        self.reader = reader_of(
            loaded.tokenizer, folder, elsewhere=elsewhere, add_bos_token=add_bos_token, prefix_token_id=prefix_token_id
        )
        self.tokenizer = self.reader.templates  # lm-eval notes its special tokens in the results
        self.templates = chat.Templates(self.reader.templates, self.thinking.with_theirs(chat_template_args))
        self.batch_size = batch_rows(batch_size, max_batch_size, loaded.device)
        self.scoring = replace(scoring, batch_size=self.batch_size)
        self.max_length = seen_tokens(max_length, loaded.config.backbone.context)
        self.writer = Writer(
            model=loaded, thinking=self.thinking, seed=scoring.seed, last_latent=last_latent, batch_size=self.batch_size
        )
        self.windows = windows if windows != "auto" else "disjoint" if loaded.has_latents else "overlapping"
        self._facts: Facts | None = None
        announce()
        self.begin_evaluation(Evaluation())

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> LatentLM:
        """As lm-eval calls it with `--model_args a=b,c=d`; an unknown name is a UserError with the nearest known one."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> LatentLM:
        """The same from a mapping; what `--model_args` says wins over lm-eval's own options. None is the default."""
        known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if str(given.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
            del given["device"]  # the lm_eval command asks for cuda:0 on every machine
        given |= {name: value for name, value in ours(arg_dict, known).items() if value is not None}
        if isinstance(given.get("model"), int) and not isinstance(given["model"], bool):
            given["model"] = str(given["model"])  # lm-eval takes a folder of digits for a number
        if "model" not in given:
            raise UserError("--model_args needs a model: model=NAME of the zoo (see `latentlm zoo list`), or model=RUN_FOLDER.")
        if "seed" not in given and (theirs := torch_seed()) not in (None, DEFAULT_OTHER_SEED):
            _log.warning(
                "latentlm: --seed %d does not reach the latents, which are keyed by seed=0: say seed=... in --model_args.",
                theirs,
            )
        return cls(**given)

    # ------------------------------------------------------------------------------------------------ tokens

    @property
    def eot_token_id(self) -> int:
        """End-of-text."""
        return self._tokenizer.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """Stands for an empty context."""
        return self.reader.prefix

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of built requests: other tokenizers and templates have other names."""
        said = json.dumps([self.reader.digest(), self.templates.said], sort_keys=True, default=str)
        return f"{self.reader.name}_{hashlib.sha256(said.encode()).hexdigest()[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, the first token before it unless `add_special_tokens` is false."""
        return self.reader.plain(string) if add_special_tokens is False else self.reader.encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as a prompt, by the tokenizer's template. Raises UserError where it has none."""
        return self.templates.apply(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `--apply_chat_template [NAME]` picks, from now on. Raises UserError where there is none."""
        if chat_template is False or chat_template is None:
            return None
        return self.templates.choose(chat_template if isinstance(chat_template, str) else None)

    # ------------------------------------------------------------------------------------------------ requests

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, nats, and whether greedy decoding would produce it. Raises UserError, before any
        is scored, for a continuation that is empty or longer than what the model can see."""
        self._evaluation.hear(requests, self._check, besides="loglikelihood")
        prepared, joined = zip(*map(self._prepared, requests), strict=True) if requests else ((), ())
        self._scored.joined += sum(joined)
        return self._loglikelihood_tokens(list(prepared), disable_tqdm=disable_tqdm, requested=requests)

    def _prepared(self, request: Instance) -> tuple[TokenRequest, bool]:
        """A request in tokens, and whether one spans the join. Raises UserError where thoughts are wanted."""
        self.thinking.refuse_likelihoods()
        context, continuation = str(request.args[0]), str(request.args[1])
        pair = self.reader.pair(context, continuation)
        return ((context, continuation), pair.given, pair.continued), pair.joined

    def _check(self, request: Instance) -> None:
        """Raise UserError for a request that could not be served."""
        if request.request_type == "generate_until":
            GenerationSettings.of(request.args[1], self.max_length)
        elif request.request_type == "loglikelihood":
            fitted(self._prepared(request)[0], self.max_length)

    def _loglikelihood_tokens(
        self,
        requests: list[TokenRequest],
        disable_tqdm: bool = False,
        requested: Sequence[Instance] = (),
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """The same of tokens; `requested` are the requests as lm-eval has them, if it has."""
        asked = [fitted(request, self.max_length) for request in requests]
        cut = sum(len(given) < len(context) for (given, _), (_, context, _) in zip(asked, requests, strict=True))
        self._scored.cut(cut, len(requests), self.max_length)

        def answer(numbers: list[int]) -> Iterator[tuple[float, bool]]:
            # The options of a question share their uniform numbers even where the context is cut to different lengths.
            keys = [tuple(requests[number][1]) for number in numbers]
            scores = self._estimated(*self.scoring.continuations(self.model, [asked[number] for number in numbers], keys=keys))
            self._scored.add(scores)
            for number, score in zip(numbers, scores, strict=True):
                result = (score.value, bool(score.greedy))
                self.cache_hook.add_partial("loglikelihood", requests[number][0], result)
                keep_score(self.cache_hook, "loglikelihood", requests[number][0], score)
                if requested:
                    self._evaluation.note(requested[number], score)
                yield result

        contexts = [tuple(given) for _, given, _ in requests]
        order = reading_order(contexts, [len(given) + len(continued) for _, given, continued in requests])
        quiet = self._quiet(disable_tqdm)
        return answer_in_chunks(order, answer, title="latentlm: continuations", quiet=quiet, together=contexts)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, nats, each cut into windows that add up; an empty text has 0."""
        self._evaluation.hear(requests, self._check)
        texts = [str(request.args[0]) for request in requests]
        tokens = [self.reader.plain(text) for text in texts]

        def answer(numbers: list[int]) -> Iterator[float]:
            totals = self._whole_texts([tokens[number] for number in numbers])
            self._scored.add([total for total in totals if total is not None])
            for number, total in zip(numbers, totals, strict=True):
                value = 0.0 if total is None else total.value
                self.cache_hook.add_partial("loglikelihood_rolling", (texts[number],), value)
                if total is not None:
                    keep_score(self.cache_hook, "loglikelihood_rolling", (texts[number],), total)
                self._evaluation.note(requests[number], total)
                yield value

        order = sorted(range(len(texts)), key=lambda number: -len(tokens[number]))
        return answer_in_chunks(order, answer, title="latentlm: whole texts", quiet=self._quiet(disable_tqdm))

    def _whole_texts(self, texts: list[list[int]]) -> list[Score | None]:
        """The score of each text of tokens, after the prefix token; None of an empty one."""
        whole = [begun(text, self.prefix_token_id) for text in texts]
        requests, owners, how = self.scoring.texts(
            self.model, whole, context=self.max_length, overlapping=self.windows == "overlapping"
        )
        totals: list[Score | None] = [None] * len(texts)
        for owner, score in zip(owners, self._estimated(requests, how), strict=True):
            before = totals[owner]
            totals[owner] = score if before is None else before.plus(score)
        return totals

    @torch.no_grad()
    def _estimated(self, requests: list[Request], how: How) -> list[Score]:
        """The scores of what there is to score: of every likelihood, whatever asks for it."""
        return estimated(self.model, requests, how)

    def _quiet(self, disable_tqdm: bool) -> bool:
        """Whether no progress is shown."""
        return disable_tqdm or self.rank > 0

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, greedy unless the task samples. Latents are drawn anew for each prompt."""
        self._evaluation.hear(requests, self._check)
        settings = [GenerationSettings.of(request.args[1], self.max_length) for request in requests]
        contexts = [str(request.args[0]) for request in requests]
        prompts = [self.reader.prompt(context) for context in contexts]
        rooms = [self.max_length - wanted.max_tokens for wanted in settings]
        self._scored.cut(sum(len(p) > room for p, room in zip(prompts, rooms, strict=True)), len(prompts), self.max_length)
        repeats = repeat_numbers(requests)

        def answer(numbers: list[int]) -> Iterator[str]:
            drawn = [n for n in numbers if self.writer.draws(settings[n])]
            known = {n: recall(self.cache_hook, requests[n].args, repeats[n]) for n in drawn}
            texts = {n: text for n, text in known.items() if text is not None}
            missing = [n for n in numbers if n not in texts]
            for group in dict.fromkeys(settings[n] for n in missing):
                members = [n for n in missing if settings[n] == group]
                keys = [(contexts[n], repr(group), repeats[n]) for n in members]
                found = self.writer.write([prompts[n][-rooms[n] :] for n in members], group, keys)
                texts.update(zip(members, found, strict=True))
            for n in numbers:
                yield keep(self.cache_hook, requests[n].args, repeats[n] if n in known else None, texts[n])

        order = sorted(range(len(contexts)), key=lambda number: -len(prompts[number]))
        return answer_in_chunks(order, answer, title="latentlm: generations", quiet=self._quiet(disable_tqdm))

    # ----------------------------------------------------------------------------------------- several processes

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """This process's number for every rank. lm-eval asks in order to pad all to equally many requests; here nobody waits
        for anybody, and padding would give the last document more samples than it wants."""
        return tensor.expand(self.world_size) if self.world_size > 1 else tensor

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Everybody's metrics or samples, for process 0, in the order that one process would have; the counts come along."""
        found = self._ranks.gather((obj, self._finished()))
        if found is None:
            self._scored = Scored()
            return None
        if len(found) == 1:
            return [obj]
        for _, scored in found[1:]:
            self._scored.plus(scored)
        merged = in_document_order([part for part, _ in found])
        return [merged, *[emptied(merged)] * (len(found) - 1)]

    # ------------------------------------------------------------------------------------------------ facts

    def facts(self) -> Facts:
        """What every answer depends on: the model's facts and the settings of scoring."""
        if self._facts is None:
            self._facts = model_facts(self.model) | {
                **self.scoring.facts(self.model),
                "max_length": self.max_length,
                "windows": self.windows,
                "reading_sha256": self.reader.digest(),
                **self.reader.facts(),
                **self.thinking.facts(),
            }
        return self._facts

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's cache, signed with `facts`. Raises UserError for a database signed with others, or not at all."""
        if cache_hook.dbdict is not None:
            claim_cache(cache_hook.dbdict, self.facts())
            refuse_samples(cache_hook.dbdict)
        super().set_cache_hook(cache_hook)

    def begin_evaluation(self, evaluation: Evaluation) -> None:
        """Count anew: the next requests are this evaluation's. `lm_eval.evaluate` calls it (following.py)."""
        self._evaluation, self._scored = evaluation, Scored()
        evaluation.share(self.rank, self.world_size)

    def end_evaluation(self, results: dict[str, Any]) -> None:
        """Put every item's scores beside its answers in lm-eval's samples, where it logs them (`lm_eval.evaluate` calls it)."""
        self._finished().log(results.get("samples") or {})

    def _finished(self) -> Scored:
        """The counts of an evaluation that is over, with those of answers that came from a database."""
        unheard = [cut_and_joined(self.reader, request, self.max_length) for request in self._evaluation.unheard()]
        self._scored.cut(sum(cut for cut, _ in unheard), len(unheard), self.max_length)
        self._scored.joined += sum(joined for _, joined in unheard)
        recalled = self._evaluation.recall(self.cache_hook)
        self._scored.add(recalled)
        self._scored.recalled += len(recalled)
        if self.model.has_latents:  # others make no error
            self._scored.items |= self._evaluation.scores()
        self._evaluation = Evaluation()
        return self._scored

    def get_model_info(self) -> dict[str, Any]:
        """For the `config` of lm-eval's results: the facts, the machine, and how well the likelihoods were determined. lm-eval
        asks once, at an evaluation's end; the counts then begin anew."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        counted = self._finished().as_json()
        self.begin_evaluation(Evaluation())
        machine = machine_facts(self.model) | {"processes": self.world_size}
        return {"model_num_parameters": parameters, "latentlm": self.facts() | machine | {"likelihoods": counted}}
