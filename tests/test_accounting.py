"""What models cost: the paper's counts to the last parameter, operations by hand, both overheads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from latentlm import zoo
from latentlm.composed import build
from latentlm.config import PartSpec
from latentlm.errors import UserError
from latentlm.zoo.accounting import cost
from samples import small_config


def test_the_1b5_baseline_has_the_papers_parameters() -> None:
    counted = zoo.describe("vanilla-1.5b").cost
    assert (counted.one_block, counted.parameters) == (46_795_776, 1_511_609_856)


def test_the_8b_baseline_has_the_papers_parameters() -> None:
    counted = zoo.describe("vanilla-8b").cost
    assert (counted.one_block, counted.parameters) == (218_112_000, 8_053_329_920)


def test_the_1b5_free_transformer_has_the_papers_parameters() -> None:
    counted = zoo.describe("free-1.5b").cost
    assert counted.parameters == 1_659_096_576
    assert counted.by_part["injection"] == 100_663_296
    assert counted.by_part["encoder"] == 46_795_776 + 24_576 + 1_536 + 1_536
    assert counted.by_part["readout"] == 0  # tied


def test_the_8b_free_transformer_has_the_papers_parameters() -> None:
    counted = zoo.describe("free-8b").cost
    assert counted.parameters == 8_539_951_104
    assert counted.by_part["injection"] == 268_435_456
    assert counted.by_part["encoder"] == 218_112_000 + 65_536 + 4_096 + 4_096
    assert counted.by_part["readout"] == counted.by_part["embedding"] == 131_072 * 4_096


@pytest.mark.parametrize(("name", "papers", "all_parameters"), [("free-1.5b", "3.6%", "9.8%"), ("free-8b", "3.1%", "6.0%")])
def test_both_overheads_are_stated(name: str, papers: str, all_parameters: str) -> None:
    described = zoo.describe(name)
    assert described.overhead is not None
    assert f"{described.overhead.encoder_block:.1%}" == papers
    assert f"{described.overhead.all_parameters:.1%}" == all_parameters
    text = str(described)
    assert f"{papers} the paper's way" in text
    assert f"{all_parameters} counting all parameters" in text


def test_parts_sum_to_the_whole() -> None:
    for card in zoo.list():
        counted = zoo.describe(card.name).cost
        assert sum(counted.by_part.values()) == counted.parameters, card.name


def test_the_tiny_models_fit_their_files() -> None:
    for name in ("vanilla-tiny", "free-tiny"):
        assert zoo.describe(name).cost.weight_bytes < 5_000_000 - 50_000


def test_operations_of_a_baseline_are_those_counted_by_hand() -> None:
    width, blocks, kv_width, context, vocabulary = 32, 4, 16, 64, 17
    config = small_config("vanilla", feed_forward=96)
    attention = 2 * width * width + 2 * width * kv_width
    matrices = blocks * (attention + 3 * width * 96) + vocabulary * width
    scores = blocks * 2 * width * context
    counted = cost(config, dtype=torch.float32)
    assert counted.generation_flops_per_token == 2 * matrices + scores
    assert counted.training_flops_per_token == 3 * (2 * matrices + scores)


def test_the_encoder_is_trained_but_not_run_in_generation() -> None:
    free, vanilla = (cost(small_config(decoder, feed_forward=96), dtype=torch.float32) for decoder in ("free", "vanilla"))
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 96
    encoding = 2 * (block + 32 * 4) + 4 * 32 * 64  # the block, the readout of 4 bits, attention to all positions
    table = 2**4 * 32
    assert free.generation_flops_per_token == vanilla.generation_flops_per_token
    assert free.training_flops_per_token == vanilla.training_flops_per_token + 3 * encoding + 2 * table


def test_the_encoders_overhead_is_zero_without_an_encoder() -> None:
    parts = {"prior": PartSpec(name="uniform_bits"), "injection": PartSpec(name="free")}
    control = small_config("free").model_copy(update={"decoder": "composed", **parts})
    counted = cost(control, dtype=torch.float32)
    assert counted.encoder_blocks == 0
    assert counted.by_part["injection"] == 2**4 * 32


def test_the_cache_is_that_of_generation() -> None:
    model = build(small_config("vanilla"))
    counted = cost(small_config("vanilla"), dtype=torch.float32)
    keys_and_values = 2 * 4 * 2 * 8  # of 4 blocks, 2 heads of 8
    assert counted.cache_bytes_per_token == keys_and_values * 4
    assert counted.weight_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_a_description_is_plain_data() -> None:
    data = json.loads(json.dumps(zoo.describe("free-8b").as_json()))
    assert data["card"]["name"] == "free-8b"
    assert data["cost"]["parameters"] == 8_539_951_104
    assert data["overhead"]["baseline"] == "vanilla-8b"


def test_a_baseline_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentlm.zoo import shelves

    known = {name: claims for name, claims in shelves.entries().items() if name != "vanilla-8b"}
    monkeypatch.setattr(shelves, "entries", lambda: known)
    with pytest.raises(UserError, match=r'Unknown model "vanilla-8b"'):
        zoo.describe("free-8b")


def test_describing_8b_imports_nothing_heavy() -> None:
    """What it must not import is what would make it slow."""
    code = (
        "import sys; from latentlm import zoo; zoo.describe('free-8b');"
        "heavy = {'transformers', 'xformers', 'datasets', 'lm_eval', 'torch._dynamo', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_acts_once_a_site_counts_once_a_site() -> None:
    """The table of the Free Transformer is scored once a latent: an eighth as often for chunks of eight tokens."""
    token = cost(small_config("free", granularity="token"), dtype=torch.float32)
    chunk = cost(small_config("free", granularity="chunk:8"), dtype=torch.float32)
    table = 2.0 * 2**4 * 32
    assert token.training_flops_per_token - chunk.training_flops_per_token == pytest.approx(table * 7 / 8)


def test_fitting_a_posterior_without_a_network_costs_two_passes_a_step() -> None:
    def counted(steps: int) -> float:
        part = PartSpec.model_validate({"name": "fitted_thoughts", "steps": steps})
        config = small_config("vanilla").model_copy(update={"decoder": "ltm", "event_dims": 8, "encoder": part})
        return cost(config.model_copy(update={"granularity": "document", "injection": PartSpec.model_validate(
            {"name": "thoughts", "slots": 2})}), dtype=torch.float32).training_flops_per_token  # fmt: skip

    none, two, four = counted(0), counted(2), counted(4)
    assert two - none == pytest.approx(none * 4 / 3, rel=1e-4)  # training is three passes, two fits are four
    assert four - none == pytest.approx(2 * (two - none))
