"""The rows of the tables of docs/lm-eval.md: each option, what it does here, and how build_lm_eval_options.py is to run it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llama_folders import BOS, END


@dataclass(frozen=True)
class Option:
    """A row: how it is written, what it does here, and how to run it."""

    written: str
    behaviour: str
    model: dict[str, Any] = field(default_factory=dict)
    """Arguments of the adapter."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Arguments of `lm_eval.simple_evaluate`."""
    why: str = ""
    """Where the answers differ, the reason."""
    ours: dict[str, Any] = field(default_factory=dict)
    """Arguments that `hf` does not know."""
    command: tuple[str, ...] | None = None
    """Words of the `lm_eval` command, which then makes the model and runs the tasks."""
    tasks: tuple[str, ...] = ("choose", "write")
    refused: tuple[dict[str, Any], ...] = ()
    """Arguments of the adapter, each of which is to be refused by its name."""
    unmeasured: str = ""
    """Why it cannot be run here."""


MODEL = [
    Option("pretrained=, model=, model_name_or_path=", "the model: a zoo name, a run folder, a Llama folder"),
    Option("device=cpu", "where; under several processes each takes its own CUDA device", {"device": "cpu"}),
    Option("dtype=float32", "precision of the weights; None is the card's or config.json's", {"dtype": "float32"}),
    Option("batch_size=1", "requests per pass", {"batch_size": 1}),
    Option("batch_size=8", "", {"batch_size": 8}),
    Option("batch_size=auto", "8 on a CPU, else as many as fit a fixed memory", {"batch_size": "auto"}),
    Option("max_batch_size=4", "the most that auto takes", {"batch_size": "auto", "max_batch_size": 4}),
    Option("max_length=64", "tokens seen at most; contexts are cut from the left, counted, warned of once", {"max_length": 64}),
    Option("tokenizer=FOLDER", "another tokenizer.json, or `bytes`", {"tokenizer": "FOLDER"}),
    Option("add_bos_token=true", "feed the first token before every text", {"add_bos_token": True}),
    Option("add_bos_token=false", "feed none", {"add_bos_token": False}),
    Option("prefix_token_id=5", "stands for an empty context", {"prefix_token_id": 5}),
    Option("trust_remote_code=true", "accepted, unused: code of a folder is never run", {"trust_remote_code": True}),
    Option("think_end_token=...", "answers begin after the last of it, a text or a token's number", {"think_end_token": ","}),
    Option("enable_thinking=false", "passed to the chat template", {"enable_thinking": False}, {"apply_chat_template": True}),
    Option("chat_template_args={...}", "passed to it", {"chat_template_args": {"a": 1}}, {"apply_chat_template": True}),
    Option("attn_implementation=eager", "accepted, unused; also `sdpa`", {"attn_implementation": "eager"}),
    Option("logits_cache=false, low_cpu_mem_usage=true", "accepted, unused",
           {"logits_cache": False, "low_cpu_mem_usage": True}),
    Option("truncation=false, use_fast_tokenizer=true, backend=causal, revision=main, subfolder=", "accepted, unused",
           {"truncation": False, "use_fast_tokenizer": True, "backend": "causal", "revision": "main", "subfolder": ""}),
    Option("parallelize=false, offload_folder=./offload, autogptq=false, gptqmodel=false", "accepted, unused",
           {"parallelize": False, "offload_folder": "./offload", "autogptq": False, "gptqmodel": False}),
    Option("load_in_8bit=false, load_in_4bit=false", "accepted, unused", {"load_in_8bit": False, "load_in_4bit": False},
           why="`hf` fails: transformers does not know them"),
    Option("parallelize=true, tp_plan=, max_memory_per_gpu=, max_cpu_memory=, offload_folder=x", "", refused=(
        {"parallelize": True}, {"tp_plan": "auto"}, {"max_memory_per_gpu": "1GiB"}, {"max_cpu_memory": "1GiB"},
        {"offload_folder": "x"})),
    Option("peft=, delta=, gguf_file=", "", refused=({"peft": "x"}, {"delta": "x"}, {"gguf_file": "x"})),
    Option("load_in_8bit=true, load_in_4bit=true, gptqmodel=true, autogptq=", "", refused=(
        {"load_in_8bit": True}, {"load_in_4bit": True}, {"gptqmodel": True}, {"autogptq": "x"})),
    Option("softmax_dtype=, mixed_precision_dtype=", "", refused=(
        {"softmax_dtype": "float32"}, {"mixed_precision_dtype": "bfloat16"})),
    Option("subfolder=x, revision=x", "", refused=({"subfolder": "x"}, {"revision": "x"})),
    Option("truncation=true, use_fast_tokenizer=false, backend=seq2seq, attn_implementation=flash_attention_2", "", refused=(
        {"truncation": True}, {"use_fast_tokenizer": False}, {"backend": "seq2seq"},
        {"attn_implementation": "flash_attention_2"})),
    Option("windows=overlapping", "ours: a whole text is cut as lm-eval cuts it; `auto` for a model without latents",
           {"add_bos_token": False, "max_length": 32}, ours={"windows": "overlapping"}, tasks=("read",)),
    Option("windows=disjoint", "ours: each window begins with one token of context; `auto` for latents",
           {"add_bos_token": False, "max_length": 32}, ours={"windows": "disjoint"}, tasks=("read",),
           why="`hf` lets the last window keep more context"),
    Option("score=, samples=, tolerance=, max_samples=, refine=, seed=, last_latent=",
           "ours: of latents, which a Llama has not",
           ours={"score": "iwae", "samples": 2, "tolerance": 0.1, "max_samples": 4, "refine": 1, "seed": 1,
                 "last_latent": "prior"}),
    Option("allow_random=true", "ours: a card without weights is evaluated too", ours={"allow_random": True}),
]  # fmt: skip
HARNESS = [
    Option("--model, --model_args, --tasks, --include_path", "lm-eval's own", command=()),
    Option("--config FILE", "lm-eval's own", command=("--config", "CONFIG")),
    Option("--device cpu", "as in `--model_args`, which wins", command=("--device", "cpu")),
    Option("--batch_size 3", "the same", command=("--batch_size", "3")),
    Option("--batch_size auto --max_batch_size 2", "the same", command=("--batch_size", "auto", "--max_batch_size", "2")),
    Option("--output_path PATH", "lm-eval's own; `config.latentlm` is in it", command=()),
    Option("--log_samples", "lm-eval's own; items of a latent decoder have their `likelihoods` too",
           command=("--log_samples",)),
    Option("--write_out", "lm-eval's own", command=("--write_out",)),
    Option("--show_config", "lm-eval's own", command=("--show_config",)),
    Option("--verbosity ERROR", "lm-eval's own", command=("--verbosity", "ERROR")),
    Option("--metadata a=1", "lm-eval's own", command=("--metadata", "a=1")),
    Option("--trust_remote_code", "of data sets, lm-eval's own; of the model unused", command=("--trust_remote_code",)),
    Option("--check_integrity", "lm-eval's own", command=("--check_integrity",),
           why="neither runs: it wants the tests of lm-eval's source tree, which its package lacks"),
    Option("--wandb_args, --wandb_config_args, --trackio_args, --hf_hub_log_args", "lm-eval's own",
           unmeasured="they want accounts and a network"),
    Option("--num_fewshot 3", "lm-eval's own", evaluate={"num_fewshot": 3}),
    Option("--apply_chat_template", "the tokenizer's chat template (also a card's, from its folder)",
           evaluate={"apply_chat_template": True}),
    Option("--apply_chat_template short", "the template of that name", evaluate={"apply_chat_template": "short"},
           why="`hf` records the named template and applies the default one"),
    Option("--system_instruction", "a system turn, or before the prompt", evaluate={"system_instruction": "Be brief."}),
    Option("--system_instruction with a template", "",
           evaluate={"system_instruction": "Be brief.", "apply_chat_template": True}),
    Option("--fewshot_as_multiturn true", "each example is a turn",
           evaluate={"apply_chat_template": True, "fewshot_as_multiturn": True}),
    Option("--fewshot_as_multiturn false", "", evaluate={"apply_chat_template": True, "fewshot_as_multiturn": False}),
    Option("--limit 2", "lm-eval's own", evaluate={"limit": 2}),
    Option("--samples {...}", "lm-eval's own", evaluate={"limit": None, "samples": {"choose": [1, 3], "write": [0, 2]}}),
    Option("--use_cache PATH", "refuses another model's or setting's answers; never one sample for several repeats",
           evaluate={"use_cache": "FRESH"}),
    Option("--cache_requests true", "lm-eval's own; tokenizers and templates have names of their own",
           evaluate={"cache_requests": True, "apply_chat_template": True}),
    Option("--predict_only", "lm-eval's own", evaluate={"predict_only": True}),
    Option("--seed 7", "few-shot examples and metrics follow it; latents and sampled tokens follow seed= of --model_args, "
           "and a warning says so", evaluate={"torch_random_seed": 7, "random_seed": 7, "numpy_random_seed": 7}),
    Option("--confirm_run_unsafe_code", "lm-eval's own", evaluate={"confirm_run_unsafe_code": True}),
    Option("--gen_kwargs max_gen_toks=4", "tokens at most; also max_new_tokens, max_tokens, max_completion_tokens",
           evaluate={"gen_kwargs": {"max_gen_toks": 4}}),
    Option("--gen_kwargs max_completion_tokens=4", "", evaluate={"gen_kwargs": {"max_completion_tokens": 4}}),
    Option("--gen_kwargs until=[...]", "stop strings", evaluate={"gen_kwargs": {"until": ["e", "("]}}),
    Option("--gen_kwargs stop=[...]", "more stop strings", evaluate={"gen_kwargs": {"stop": ["e"]}},
           why="`hf` takes stop twice and fails"),
    Option("--gen_kwargs num_beams=1", "neutral values of transformers' arguments are accepted",
           evaluate={"gen_kwargs": {"num_beams": 1}}),
    Option("--gen_kwargs top_k=0,repetition_penalty=1.0", "", evaluate={"gen_kwargs": {"top_k": 0, "repetition_penalty": 1.0}}),
    Option("--gen_kwargs stop=None", "", evaluate={"gen_kwargs": {"stop": None}}, why="`hf` takes stop twice and fails"),
    Option("--gen_kwargs temperature=0", "greedy", evaluate={"gen_kwargs": {"temperature": 0}}),
    Option("--gen_kwargs do_sample=true,temperature=1", "sampled: numbers keyed by prompt and repeat; also top_p and top_k",
           evaluate={"gen_kwargs": {"do_sample": True, "temperature": 1.0}},
           why="other random numbers; without top_k `hf` samples from the top 50"),
    Option("--gen_kwargs num_beams=2", "", evaluate={"gen_kwargs": {"num_beams": 2}}),
    Option("--gen_kwargs repetition_penalty=1.2", "", evaluate={"gen_kwargs": {"repetition_penalty": 1.2}}),
]  # fmt: skip
REQUESTS: list[tuple[str, str, tuple[str, ...], str]] = [
    ("context and continuation", "the first token, context, continuation", ("def area(width", ", height"), ""),
    ("empty context", "the prefix token stands for it", ("", "return width"), ""),
    ("context of blanks", "the same: an empty context, the blanks the continuation's", (" \n", "return width"), ""),
    ("blank at a context's end", "the continuation's", ("import ", "os"), ""),
    ("prompt with special tokens", "these tokens", (f"import{END}\nself", ".x = x"), ""),
    ("prompt that begins with BOS", "no second one", (f"{BOS}import", " os"), ""),
    ("context too long", "cut from the left", ("x " * 300, "self.x = y"), ""),
    ("a token spans the join", "counted; `hf`'s cut, or where it leaves nothing both parts alone", ("impo", "rt"),
     "`hf` fails where its cut leaves nothing"),
    ("whole text (rolling)", "its tokens after the prefix token", ("class Point:\n    def __init__(self, x):\n" * 9,),
     "where a tokenizer puts BOS before a text, `hf` feeds it twice and counts it as text"),
]  # fmt: skip


COMMAND = {
    "--model": "the first word: `latentlm eval MODEL`",
    "--samples": "**another meaning**: latent samples of a request. Documents cannot be picked by number",
    "--seed": "**another meaning**: of latents and sampled tokens, as `seed=` of `--model_args`. `--fewshot-seed` is the last "
              "of lm-eval's four; the generators of Python, NumPy and torch are left alone",
    "--batch_size": "the same, but `auto` where nothing is said",
    "--max_batch_size": "`--model-args max_batch_size=N`",
    "--apply_chat_template": "takes no name: `--chat-template NAME` is for that",
    "--fewshot_as_multiturn": "takes no value: `--no-fewshot-as-multiturn`",
    "--cache_requests": "takes no value, and is lm-eval's `true`",
    "--output_path": "`--output FILE`: all results in one JSON file",
    "--log_samples": "on where nothing is said: the samples are in `--output`'s file; `--no-log-samples` leaves them out",
    "--metadata": "`a=1,b=2` or a JSON object; the model's arguments are not added to it",
    "--config": "no",
    "--show_config": "no; `--output`'s file has it",
    "--check_integrity": "no; it wants the tests of lm-eval's source tree",
    "--verbosity": "no",
    "--trust_remote_code": "no",
    "--wandb_args": "no",
    "--wandb_config_args": "no",
    "--trackio_args": "no",
    "--hf_hub_log_args": "no",
}  # fmt: skip
"""Options of `lm_eval run` that are not, or not quite, those of `latentlm eval` under the same name."""
