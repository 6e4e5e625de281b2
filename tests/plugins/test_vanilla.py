"""Plain decoders: what they refuse, and whom the tokens of a prompt see.

Run: ``pytest tests/plugins/test_vanilla.py``
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentlm.composed import build
from latentlm.config import ModelConfig
from latentlm.errors import UserError
from latentlm.interface import Batch, LatentDecoder, Noise
from latentlm.likelihood import score_continuations
from samples import small_config

BACKBONE = small_config("vanilla").backbone
TEXT = [3, 1, 4, 1, 5, 9, 2, 6]


def made(decoder: str) -> LatentDecoder:
    return build(ModelConfig(decoder=decoder, backbone=BACKBONE), seed=1).eval()


def hidden(model: LatentDecoder, text: list[int], given: int) -> Tensor:
    """(T, D)."""
    with torch.no_grad():
        return model.hidden(model.context(Batch.of([text], given=[given])), None)[0]


def moved(decoder: str, place: int, *, given: int) -> list[bool]:
    """Which positions another token at `place` moves."""
    model, other = made(decoder), [*TEXT[:place], TEXT[place] + 1, *TEXT[place + 1 :]]
    differ = (hidden(model, TEXT, given) - hidden(model, other, given)).abs().amax(1)
    return (differ > 1e-6).tolist()


def test_a_prompt_is_seen_both_ways_and_what_follows_is_not() -> None:
    assert moved("prefix", 3, given=5) == [True] * 8
    assert moved("prefix", 4, given=5) == [True] * 8
    assert moved("prefix", 5, given=5) == [False] * 5 + [True] * 3
    assert moved("prefix", 3, given=0) == moved("vanilla", 3, given=5) == [False] * 3 + [True] * 5


def test_generation_sees_the_prompt_as_scores_do() -> None:
    """Prompts of unequal length in one batch: the padding between prompt and continuation is no prompt."""
    model, prompts = made("prefix"), [TEXT[:5], TEXT[:3]]
    padded = torch.tensor([TEXT[:5], [*TEXT[:3], 0, 0]])
    state = model.prefill(padded, torch.tensor([5, 3]), noise=Noise.keyed(0, range(2)))
    nats = [state.logits.log_softmax(-1)[:, 7]]
    state = model.step(state, torch.tensor([7, 7]), noise=Noise.keyed(0, range(2)))
    nats.append(state.logits.log_softmax(-1)[:, 8])
    scores = score_continuations(model, [(prompt, [7, 8]) for prompt in prompts])
    assert [score.value for score in scores] == pytest.approx(sum(nats).tolist(), abs=1e-5)  # type: ignore[union-attr]


def test_prompts_that_begin_alike_are_scored_as_each_alone() -> None:
    """The beginning of a prompt that is seen both ways depends on its end."""
    model, start = made("prefix"), TEXT * 3
    requests = [([*start, last], [2, 3]) for last in (5, 9)]
    together = [score.value for score in score_continuations(model, requests)]
    assert together == pytest.approx([score_continuations(model, [request])[0].value for request in requests], abs=1e-5)


@pytest.mark.parametrize("decoder", ["vanilla", "prefix"])
def test_a_plain_decoder_takes_no_latent(decoder: str) -> None:
    with pytest.raises(UserError, match=f'"{decoder}" has no prior'):
        build(ModelConfig(decoder=decoder, prior="uniform_bits", backbone=BACKBONE))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f'"{decoder}" has no latents'):
        build(ModelConfig(decoder=decoder, event_dims=4, backbone=BACKBONE))
