"""Numbers are numbers, and text is text: weights, latents, and every setting of the Python interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.harness import Case
from hostile.lines import LINES

_WEIGHTS = {
    "NaN": "t.fill_(float('nan'))",
    "infinite": "t.fill_(float('inf'))",
    "one NaN": "t.view(-1)[0] = float('nan')",
}
_LATENTS = {
    "NaN": "torch.full_like(t, float('nan'))",
    "infinite": "torch.full_like(t, float('inf'))",
    "halves": "torch.full_like(t, 0.5)",
    "twos": "torch.full_like(t, 2.0)",
    "complex": "t.to(torch.complex64)",
    "negative": "-torch.ones_like(t)",
    "too wide": "torch.cat([t, t], -1)",
    "no sites": "t[:0]",
    "of one dimension": "t[0]",
    "of four dimensions": "t[None, None]",
}
_ODD = {
    "None": "None",
    "bytes": "b'ab'",
    "a float": "1.5",
    "NaN": "float('nan')",
    "a list": "[1, 'a']",
    "a dict": "{}",
    "True": "True",
    "an object": "object()",
    "a long number": "10**30",
    "minus one": "-1",
    "a text": "'a text'",
    "numbers": "[[1.5, 2.5]]",
    "floats": "[1.5, float('nan')]",
    "lists": "[[1]]",
    "minus one of them": "[97, -1]",
    **dict.fromkeys(("int8", "float8_e4m3fn", "complex64", "bool")),
}
_CALLS: dict[str, tuple[str, ...]] = {
    "model.generate({0}, max_tokens=2)": ("bytes", "a float", "NaN", "a list", "an object", "a long number", "True"),
    "model.generate('x', max_tokens={0})": (
        "None",
        "bytes",
        "a float",
        "NaN",
        "a list",
        "a dict",
        "an object",
        "minus one",
        "a long number",
    ),
    "model.generate('x', max_tokens=2, temperature={0})": ("None", "bytes", "NaN", "a list", "an object", "minus one"),
    "model.generate('x', max_tokens=2, top_k={0})": ("bytes", "a float", "NaN", "a list", "an object", "minus one"),
    "model.generate('x', max_tokens=2, top_p={0})": ("bytes", "NaN", "a list", "an object", "minus one", "a float"),
    "model.generate('x', max_tokens=2, seed={0})": ("None", "bytes", "a float", "a list", "an object"),
    "model.generate('x', max_tokens=2, samples={0})": (
        "None",
        "bytes",
        "a float",
        "a list",
        "an object",
        "minus one",
        "a long number",
    ),
    "model.generate('x', max_tokens=2, stop={0})": ("None", "bytes", "a float", "a list", "an object"),
    "model.generate('x', max_tokens=2, batch_size={0})": ("None", "bytes", "a float", "a list", "minus one"),
    "model.generate('x', max_tokens=2, prior_temperature={0})": ("None", "bytes", "NaN", "a list", "minus one"),
    "model.generate('x', max_tokens=2, latents={0})": ("None", "bytes", "a float", "a list", "an object", "True"),
    "model.generate('x', max_tokens=2, truncate={0})": ("bytes", "a float", "a list", "True"),
    "model.encode({0})": ("None", "bytes", "a float", "a list", "an object"),
    "model.encode('x', samples={0})": ("None", "bytes", "a float", "a list", "minus one"),
    "score_texts(model, {0})": ("None", "bytes", "a float", "a list", "an object"),
    "score_texts(model, [[72, 105]], samples={0})": ("None", "bytes", "a float", "NaN", "a list", "minus one", "an object"),
    "score_texts(model, [[72, 105]], max_samples={0})": ("None", "bytes", "a float", "a list", "minus one"),
    "score_texts(model, [[72, 105]], tolerance={0})": ("bytes", "NaN", "a list", "minus one"),
    "score_texts(model, [[72, 105]], batch_size={0})": ("bytes", "a float", "a list", "minus one"),
    "score_texts(model, [[72, 105]], seed={0})": ("None", "bytes", "a float", "a list", "an object"),
    "score_texts(model, [[72, 105]], refine={0})": ("bytes", "a float", "a list", "minus one"),
    "score_texts(model, [[72, 105]], defensive={0})": ("bytes", "NaN", "a list", "minus one", "a float"),
    "zoo.load({0})": ("None", "bytes", "a float", "a list", "a dict", "an object", "True"),
    "zoo.load('run', device={0})": ("bytes", "a float", "a list", "an object"),
    "zoo.load('run', dtype={0})": ("bytes", "a float", "a list", "an object"),
    "zoo.load('run', weights={0})": ("bytes", "a float", "a list", "an object"),
    "model.generate(torch.tensor({0}), max_tokens=2)": ("a float", "True", "NaN", "numbers"),
    "model.generate('x', max_tokens=2, keys={0})": ("bytes", "a float", "a list", "an object", "lists"),
    "model.generate('x', max_tokens=2, on_token={0})": ("bytes", "a float", "a list"),
    "score_texts(model, ['abc'], keys={0})": ("bytes", "a float", "an object", "lists"),
    "score_texts(model, [[256, 97, 98]], keys={0})": ("bytes", "a float", "an object", "lists"),
    "score_texts(model, [[256, 97, 98]], progress={0})": ("bytes", "a float", "a list"),
    "score_texts({0}, [[256, 97, 98]])": ("None", "bytes", "a float", "a text", "a list", "an object"),
    "score_continuations({0}, [([256], [97])])": ("None", "a text", "an object"),
    "score_continuations(model, [([256], [97])], tolerance={0})": ("None", "bytes", "a list", "NaN", "an object"),
    "generate({0}, 'x', max_tokens=2)": ("None", "a text", "an object"),
    "encode({0}, 'x')": ("None", "a text", "an object"),
    "diagnose({0}, [[256, 97]])": ("None", "a text"),
    "diagnose(model, {0})": ("None", "bytes", "a float", "a list", "an object", "a text"),
    "diagnose(model, [[256, 97]], batch_size={0})": ("None", "bytes", "a float", "minus one"),
    "load_latents({0})": ("None", "bytes", "a float", "NaN", "a list", "an object"),
    "load_latents('z.safetensors', model={0})": ("bytes", "a float", "a list", "a text"),
    "save_latents({0}, [model.encode('x')])": ("None", "bytes", "a float", "a list", "an object"),
    "save_latents('new', {0})": ("None", "bytes", "a float", "NaN", "a list", "a dict", "an object", "a text"),
    "save_latents('new', [model.encode('x')], model={0})": ("bytes", "a float", "a list", "a text"),
    "edited({0}, value=1.0)": ("None", "bytes", "a list"),
    "edited(model.encode('x'), value={0})": ("None", "bytes", "an object", "a text", "a dict"),
    "edited(model.encode('x'), value=1.0, sites={0})": ("bytes", "a float", "an object", "a text"),
    "joined({0})": ("None", "bytes", "a list"),
    "cut({0}, 0)": ("None", "bytes", "a list"),
    "cut(model.encode('x'), {0})": ("None", "bytes", "a list", "NaN"),
    "codes({0})": ("None", "bytes", "a list"),
    "from_codes({0}, event_dims=4)": ("None", "bytes", "a list", "an object"),
    "from_codes(torch.ones(1, 1), event_dims={0})": ("None", "bytes", "a list", "NaN"),
    "load_recipe({0})": ("None", "bytes", "a float", "NaN", "a list", "an object"),
    "load_recipe('my.yaml', {0})": ("bytes", "a float", "a list", "an object", "a text"),
    "train({0}, out='new')": ("None", "bytes", "a float", "a dict", "an object", "a text"),
    "train(load_recipe('my.yaml'), out={0})": ("None", "bytes", "a float", "a list", "an object"),
    "train(load_recipe('my.yaml'), out='new', resume={0})": ("None", "bytes", "a float", "a list", "a text"),
    "model.tokenizer.encode({0})": ("None", "a float", "NaN", "a list", "an object"),
    "model.tokenizer.decode({0})": ("None", "bytes", "a float", "a list", "an object", "a text", "floats", "minus one of them"),
    "bpe().encode({0})": ("None", "a float", "NaN", "a list", "an object"),
    "bpe().encode_prompt({0})": ("None", "a float", "NaN", "a list", "an object"),
    "bpe().decode({0})": ("None", "bytes", "a float", "a list", "an object", "a text", "floats", "minus one of them"),
    "load_tokenizer({0})": ("None", "bytes", "a float", "a list", "an object"),
    "zoo.describe({0})": ("None", "bytes", "a float", "a list", "an object"),
    "zoo.list({0})": ("None", "bytes", "a float", "a list", "an object"),
    "zoo.load('run', dtype=torch.{0})": ("int8", "float8_e4m3fn", "complex64", "bool"),
}
_RIGHT = {
    "model.generate('x', max_tokens={0})": "2",
    "model.encode({0})": "'x'",
    "score_texts(model, [[72, 105]], samples={0})": "2",
    "score_texts(model, [[72, 105]], tolerance={0})": "0.5",
    "score_continuations(model, [([72], [{0}])])": "105",
    "zoo.load({0})": "'run'",
}
"""What the calls take, so that what is refused is refused for what is bad in it."""
_COUNTS = (
    "model.encode('x', samples={0})",
    "model.generate('x', max_tokens={0})",
    "model.generate('x', max_tokens=2, samples={0})",
    "score_texts(model, [[256, 97, 98]], samples={0})",
    "score_texts(model, [[256, 97, 98]], max_samples={0})",
    "score_texts(model, [[256, 97, 98]], refine={0})",
    "score_texts(model, [[256, 97, 98]], samples={0}, method='smc')",
    "score_continuations(model, [([256], [97])], samples={0})",
    "BPETokenizer.train(['a text'], vocabulary={0})",
    "Noise.keyed(0, ['a'], samples={0})",
    "Noise.keyed(0, ['a']).samples({0})",
    "Noise.keyed(0, ['a']).uniform({0}, 4)",
)
"""Of things that are in memory together, or take their time one after another."""
_MANY_TIMES = (
    "model.generate('x', max_tokens=2, batch_size={0})",
    "model.generate('x', max_tokens=2, top_k={0})",
    "score_texts(model, [[256, 97, 98]], samples=2, batch_size={0})",
    "score_texts(model, [[256, 97, 98]], samples=2, context={0})",
    "diagnose(model, [[256, 97]], batch_size={0})",
)
"""At most so many: more than there are is as good as all."""

_LITERALS = (
    "model.generate('x', max_tokens=2, prefill='priro')",
    "model.generate('x', max_tokens=2, last_latent='posteror')",
    "model.generate('x', max_tokens=2, latents='frehs')",
    "model.generate('x', max_tokens=2, continuation_latents='shard')",
    "model.generate('x', max_tokens=2, truncate='right')",
    "model.generate('x', max_tokens=2, prefill={'y': 'prior'})",
    "model.generate('x', max_tokens=2, prefill={'z': 'priro'})",
    "model.generate('x', max_tokens=2, last_latent={'z': 5})",
    "score_texts(model, [[72, 105]], method='iwea')",
    "score_texts(model, [[72, 105]], samples='atuo')",
    "score_continuations(model, [('a', 'b')], method='iwea')",
    "score_continuations(model, [('a', 5)])",
    "score_continuations(model, [('a',)])",
    "score_continuations(model, ['ab'])",
    "score_continuations(model, [(b'a', b'b')])",
    "score_continuations(model, 'ab')",
    "score_texts(model, 'abc', keys=[1, 2])",
    "zoo.load('run', dtype='flot32')",
    "zoo.load('run', device='cdua')",
    "zoo.load('rnu')",
)
_TEXTS = (
    "zoo.load({0})",
    "zoo.load('run', dtype={0})",
    "zoo.load('run', device={0})",
    "zoo.load('run', weights={0})",
    "zoo.describe({0})",
    "model.generate('x', max_tokens=2, latents={0})",
    "model.generate('x', max_tokens=2, latents={{{0}: 'fresh'}})",
    "model.generate('x', max_tokens=2, prefill={0})",
    "model.generate('x', max_tokens=2, truncate={0})",
    "score_texts(model, ['abc'], method={0})",
    "score_texts(model, ['abc'], samples={0})",
    "load_recipe({0})",
    "load_recipe('my.yaml', [{0}])",
    "load_recipe('my.yaml', ['data.path=' + {0}]) and prepare(load_recipe('my.yaml', ['data.path=' + {0}]).data)",
    "load_tokenizer({0})",
    "load_latents({0})",
    "save_latents('new/' + {0} + '/z', [model.encode('x')])",
)
"""Calls that take a text of the user's."""
_HOSTILE = {
    "control characters": "'a\\0\\x1b]0;owned\\x07\\x9b2J\\u202eb\\r'",
    "a million letters": "'x' * 10**6",
    "half a character": "'\\udc80\\ud800'",
    "nothing": "''",
}
_SAID = {
    "--model-args": (
        *("score", "tolerance", "refine", "seed", "last_latent", "batch_size", "max_batch_size", "device", "dtype", "windows"),
        *("max_length", "tokenizer", "add_bos_token", "prefix_token_id", "enable_thinking", "think_end_token", "max_samples"),
        *("chat_template_args", "allow_random", "model"),
    ),
    "--gen-kwargs": ("temperature", "do_sample", "top_k", "top_p", "max_gen_toks", "until", "stop", "num_beams", "nothing"),
    "--metadata": ("a",),
}
_WORDS = ("x", "-1", "nan", "1e400", "9" * 5000, "²", "[1,'a']", "{'a':[1]}", "[" * 900, "")
_IMPORTS = """
import torch
from latentlm import zoo
from latentlm.generation import codes, cut, edited, encode, from_codes, generate, joined, load_latents, save_latents
from latentlm.interface import Noise
from latentlm.likelihood import score_continuations, score_texts
from latentlm.likelihood.diagnostics import diagnose
from latentlm.tokenizer import BPETokenizer, load_tokenizer
from latentlm.training import load_recipe, prepare, train
bpe = lambda: BPETokenizer.train(["a text"], vocabulary=257)
"""
_MODEL = _IMPORTS + "model = zoo.load('run')\n"


def _weights(change: str, tensor: str) -> Callable[[Path], None]:
    """Other weights in the run, of which the card knows the hash: somebody trained them so."""

    def make(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        path = folder / "run" / "model.safetensors"
        tensors = load_file(path)
        names = [name for name in tensors if tensor in name]
        t = tensors[names[0]]
        exec(change, {"t": t, "torch": torch})
        save_file(tensors, path)
        known(folder)

    return make


def known(folder: Path) -> None:
    """Let the card of the run say the hash and size of the weights that are there."""
    import hashlib

    import yaml

    path, card = folder / "run" / "model.safetensors", folder / "run" / "card.yaml"
    said = yaml.safe_load(card.read_text())
    said["weights"] |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    card.write_text(yaml.safe_dump(said))


def _complex(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "llama" / "model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name].to(torch.complex64)}, folder / "llama" / "model.safetensors")


def _llama(change: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "llama" / "model.safetensors")
        t = tensors["model.norm.weight"]
        exec(change, {"t": t, "torch": torch})
        save_file(tensors, folder / "llama" / "model.safetensors")

    return make


def _latents(change: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import torch
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(folder / "z.safetensors", framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        changed = {name: eval(change, {"t": t, "torch": torch}).contiguous() for name, t in tensors.items()}
        save_file(changed, folder / "bad.safetensors", metadata=metadata)

    return make


def cases() -> Iterator[Case]:
    """Of weights, latents, calls and literals."""
    commands = {
        "generate": ("generate", "run", "x", "--max-tokens", "2"),
        "score": ("score", "run", "notes.txt", "--samples", "2"),
        "eval": ("eval", "run", "--tasks", "latentlm_copy", "--limit", "2", "--samples", "2"),
        "compare": (
            "compare",
            "run",
            "--tasks",
            "none",
            "--documents",
            "2",
            "--document-bytes",
            "16",
            "--samples",
            "2",
            "--out",
            "new",
        ),
        "zoo add": ("zoo", "add", "run", "--to", "shelf"),
    }
    for what, change in _WEIGHTS.items():
        for part in ("norm", "embed", "encoder"):
            for name, command in commands.items():
                yield Case(
                    f"weights {what} in {part}: {name}", command, prepare=_weights(change, part), says="norm|embed|encoder"
                )
        yield Case(f"weights of a Llama {what}", ("generate", "llama", "x"), prepare=_llama(change), says="norm")
    yield Case("weights of a Llama complex", ("generate", "llama", "x"), prepare=_complex)
    for what, change in _LATENTS.items():
        given = ("generate", "run", "x", "--max-tokens", "2", "--load-latents", "bad.safetensors")
        # Where there are no sites, the prior goes on from the start.
        yield Case(f"latents {what}", given, prepare=_latents(change), good=what == "no sites")
        if what == "no sites":
            continue
        yield Case(f"latents {what} given in Python", python=_MODEL + _GIVEN.format(change=change))
    for call, odd in _CALLS.items():
        for what in odd:
            lines = (_IMPORTS if call.startswith("zoo") else _MODEL) + call.format(_ODD[what] or what) + "\n"
            yield Case(f"{call.format(what)}", python=lines)
    for call, right in _RIGHT.items():
        yield Case(f"{call.format(right)}, as it should be", python=_MODEL + call.format(right) + "\n", good=True)
    for call in _TEXTS:
        for what, text in _HOSTILE.items():
            yield Case(f"{call.format(what)}", python=_MODEL + call.format(text) + "\n")
    for calls, good in ((_COUNTS, False), (_MANY_TIMES, True)):
        for call in calls:
            for count in (10**10, 10**12, 2**62):
                yield Case(call.format(f"{count:.0e}"), python=_MODEL + call.format(count) + "\n", good=good)
    for line in _LITERALS:
        yield Case(line, python=_MODEL + line + "\n")
    for line in LINES:
        yield Case(line, python="import torch\n" + _MODEL + line + "\n")
    for option, names in _SAID.items():
        for name in names:
            for word in _WORDS:
                yield Case(
                    f"eval {option} {name}={word[:20]}",
                    ("eval", "run", "--tasks", "latentlm_copy", "--limit", "1", "--samples", "2", option, f"{name}={word}"),
                    good=None,
                )


_GIVEN = """
from latentlm.interface import Latent, Latents
saved = model.encode('The text')
name = next(iter(saved))
t = saved[name].value[0] if hasattr(saved[name], 'value') else saved[name][0]
t = {change}
model.generate('x', max_tokens=2, latents=[Latents({{name: Latent(t[None])}})])
"""
