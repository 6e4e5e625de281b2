"""Lines of Python that give the interface what it is not for, `model` being a decoder."""

_TRAINING = (
    "from pathlib import Path; from latentlm.training import train; from latentlm.training.recipes import load_recipe; "
    "recipe = load_recipe('my.yaml')"
)
LINES = (
    "from latentlm.generation.latents import from_codes; from_codes(torch.ones(1, 1, dtype=torch.long), event_dims=20000)",
    "from latentlm.generation.latents import from_codes; from_codes(torch.ones(1, 1, dtype=torch.long), event_dims=10**18)",
    "from latentlm.generation.latents import edited; edited(model.encode('x'), value=1.0, sites=True)",
    "from latentlm.generation.latents import edited; edited(model.encode('x'), value=1.0, events=False)",
    "from latentlm.likelihood import score_continuations; score_continuations(model, [([72], [105])], max_samples=0)",
    "from latentlm.likelihood import score_texts; score_texts(model, [[72, 105]], samples=4, max_samples=-3)",
    *(f"from latentlm.interface import Noise; Noise.keyed({call})"
      for call in ("0, None", "0, 'texts'", "0, {'a': 1}", "0, 5", "0, ['a'], samples=0", "0, ['a'], samples=-1",
                   "0, ['a'], samples=1.5")),
    "from latentlm.interface import Noise; Noise.keyed(0, ['a']).samples(0)",
    *(f"from latentlm.tokenizer import BPETokenizer; BPETokenizer.train({texts}, vocabulary=300)"
      for texts in ("5", "None", "'text'", "b'text'", "[5]", "[None]", "['a', 1.5]")),
    *(f"{_TRAINING}; train(recipe, out={out}, progress=False)" for out in ("'a\\0b'", "Path('a\\0b')", "Path('run\\0')")),
    *(f"{_TRAINING}; train(recipe, out='new', command={command}, progress=False)"
      for command in ("5", "'latentlm train'", "[5]", "[None]", "b'x'", "{}")),
    *(f"{_TRAINING}; from latentlm.training import evaluate; evaluate({given})"
      for given in ("model, ['x'], None", "model, [[10**9]], recipe.train", "None, [], recipe.train",
                    "model, None, recipe.train", "model, 'x', recipe.train", "model, [], recipe")),
)  # fmt: skip
