"""Diversity and pass@k: the estimator, the 2x2 on planted decoders, the temperature of equal pass@1, and the command."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentlm.composed import ComposedDecoder, build
from latentlm.composed.completing import granularity_of
from latentlm.composed.sockets import Filled
from latentlm.config import BackboneConfig, LatentConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder, LatentShape, Shape
from latentlm.tokenizer import ByteTokenizer
from latentlm_evals.diversity import experiment
from latentlm_evals.diversity.matching import MOST_TRIES, Match, matched
from latentlm_evals.diversity.measures import estimate, measured, pass_at_k
from latentlm_evals.diversity.sampling import Sampler, of_the_data
from latentlm_evals.diversity.table import verdict
from latentlm_evals.diversity.task import Prompt, make_task
from latentlm_evals.diversity_cli import app
from latentlm_evals.intervals import Interval
from likelihood_parts import FairBits, LinearInjection

_BACKBONE = BackboneConfig(vocabulary=257, width=4, blocks=2, heads=2, context=32, tie_embeddings=False)


def _still(model: LatentDecoder, readout: dict[str, list[float]], *, stream: float) -> LatentDecoder:
    """The model without a thought of its own: every token is `stream` in the last place of its embedding, no block adds to it,
    and the characters of `readout` are read off the normalised stream, all others as zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("embedding.weight", "output.weight", "down.weight", "readout.weight")):
                parameter.zero_()
        weights = dict(model.named_parameters())
        weights["backbone.embedding.weight"][:, -1] = stream
        for character, row in readout.items():
            weights["backbone.readout.weight"][ord(character)] = torch.tensor(row)
    model.tokenizer = ByteTokenizer()
    return model.eval()


@pytest.fixture(scope="module")
def deciding() -> LatentDecoder:
    """A decoder whose z, two fair bits a token, decides which of the digits 0 to 3 comes next."""
    config = ModelConfig(decoder="composed", event_dims=2, backbone=_BACKBONE)
    scale, sites = granularity_of("token", None)
    latent = LatentShape("z", 2, scale, sites.length)
    shape = Shape(config.backbone, latent)
    injection = LinearInjection(None, shape)
    parts = {"encoder": None, "prior": FairBits(None, shape), "injection": injection, "kl_schedule": None}
    model = ComposedDecoder(config, [Filled(LatentConfig(dims=2, granularity="token"), latent, sites, **parts)])
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        injection.map.weight.zero_()
        injection.map.weight[:2] = 2 * torch.eye(2)
        injection.map.bias.copy_(torch.tensor([-1.0, -1.0, 0.0, 0.0]))
    digits = {str(2 * one + other): [40.0 * one - 20, 40.0 * other - 20, 0.0, 0.0] for one in (0, 1) for other in (0, 1)}
    return _still(model, digits, stream=0.0)


LOGIT = 5.76


@pytest.fixture(scope="module")
def plain() -> LatentDecoder:
    """A plain decoder that always has 5.76 for the logit of "0" and zero for those of the other 256 tokens."""
    model = build(ModelConfig(decoder="vanilla", backbone=_BACKBONE), seed=0)
    return _still(model, {"0": [0.0, 0.0, 0.0, LOGIT / 2]}, stream=1.0)  # normalised, the last place is sqrt(4)


EVERY = frozenset(map("".join, itertools.product("0123", repeat=2)))
PROMPTS = [Prompt(f"{number}=", EVERY) for number in range(6)]

# ------------------------------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize("correct", range(7))
def test_pass_at_k_is_the_share_of_sets_of_k_samples_with_a_right_one(correct: int) -> None:
    right = [number < correct for number in range(6)]
    for k in range(1, 7):
        sets = list(itertools.combinations(right, k))
        assert pass_at_k(6, correct, k) == pytest.approx(sum(map(any, sets)) / len(sets))


def test_measures_count_different_right_answers_of_those_there_are() -> None:
    prompts = [Prompt("a=", frozenset(["1", "2", "3", "4"])), Prompt("b=", frozenset(["1", "2"]))]
    found = measured(prompts, [["1", "1", "2", "x"], ["x", "y", "y", "x"]])
    assert list(found) == ["pass@1", "pass@2", "pass@4", "distinct", "valid", "coverage", "entropy"]
    assert found["pass@1"].tolist() == [0.75, 0.0]
    assert found["pass@4"].tolist() == [1.0, 0.0]
    assert found["distinct"].tolist() == [3, 2]
    assert found["valid"].tolist() == [2, 0]
    assert found["coverage"].tolist() == [0.5, 0.0]
    assert found["entropy"][0] == pytest.approx(math.log2(3) - 2 / 3)
    assert math.isnan(found["entropy"][1]), "no right answer has no entropy"


def test_intervals_are_those_of_a_mean_and_leave_out_what_has_no_value() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = estimate(values, seed=1)
    half = 1.96 * values.std() / 20
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    assert found.value == pytest.approx(values.mean())
    assert found.low < found.value < found.high
    holes = np.where(np.arange(400) % 2, values, np.nan)
    assert estimate(holes, seed=1).value == pytest.approx(values[1::2].mean())
    assert math.isnan(estimate(np.full(3, np.nan), seed=0).value)


# ----------------------------------------------------------------------------------------------------------------- task


@pytest.mark.parametrize(("spec", "right"), [("sums,length=5,shown=2", 64), ("sums,length=7", 8)])
def test_every_right_answer_is_known(spec: str, right: int) -> None:
    task = make_task(spec, prompts=8, calibration=4, least=2, seed=0)
    assert {len(prompt.answers) for prompt in task.measured} == {right}
    assert all(len(answer) == task.length for prompt in task.measured for answer in prompt.answers)


def test_the_answers_of_a_prompt_are_those_that_the_source_writes_after_it() -> None:
    (prompt, *_) = make_task("synthetic:subset,length=9,fillers=2", prompts=3, calibration=0, least=2, seed=0).measured
    weights = [1000 + 37 * place * place % 997 for place in range(9)]
    bits = ["".join(one) for one in itertools.product("01", repeat=9)]
    sums = {one: sum(weight for weight, bit in zip(weights, one, strict=True) if bit == "1") for one in bits}
    assert prompt.text.startswith("\n\n")
    assert prompt.text.endswith("=")
    assert prompt.answers == {one for one in bits if sums[one] == int(prompt.text[2:-1])}


def test_prompts_come_as_the_source_draws_them_and_none_twice() -> None:
    task = make_task("subset,length=12", prompts=200, calibration=100, least=1, seed=0)
    every = task.measured + task.calibration
    assert len({prompt.text for prompt in every}) == 300
    for prompts in (task.measured, task.calibration):  # 2.3 by the source's draws, 1.6 by counting each prompt once
        assert 1.9 < np.mean([len(prompt.answers) for prompt in prompts]) < 2.7
    other = make_task("subset,length=12", prompts=200, calibration=100, least=1, seed=1)
    assert other.measured != task.measured


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("subst", 'Did you mean "subset"'),
        ("letter", "plan-first source"),
        ("sums,lenght=5", 'Did you mean "length"'),
        ("sums,length=5", "0 prompts with at least 2 right answers .none has more than 1."),
        ("sums,length=10", "lower its length"),
        ("sums,shown=6,forwards=1", "no prompt asks for it"),
    ],
)
def test_a_task_that_cannot_be_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_task(spec, prompts=10, calibration=10, least=2, seed=0)


# -------------------------------------------------------------------------------------------------------------- the 2x2


def test_greedy_under_fresh_z_finds_every_answer_and_under_a_shared_z_one(deciding: LatentDecoder) -> None:
    sampler = Sampler(deciding, 2, 96)
    fresh = measured(PROMPTS, sampler.answers(PROMPTS, 0.0, "fresh"))
    assert fresh["pass@1"].min() == 1.0
    assert fresh["coverage"].mean() > 0.98  # 1 - (15/16)^96 = 0.998
    assert fresh["entropy"].mean() == pytest.approx(4.0, abs=0.2)
    one = sampler.answers(PROMPTS, 0.0, "shared")
    assert [len(own) for own in one] == [96] * 6
    assert measured(PROMPTS, one)["distinct"].max() == 1
    assert len({own[0] for own in one}) > 1, "each prompt has a z of its own"


def test_temperature_under_a_shared_z_keeps_what_z_decides(deciding: LatentDecoder) -> None:
    # Beside the digit that z decides, with a logit of 80 and more, others have one of 0 or less: temperature 1 changes nothing.
    sampler = Sampler(deciding, 2, 5)
    assert sampler.answers(PROMPTS, 1.0, "shared") == sampler.answers(PROMPTS, 0.0, "shared")
    assert sampler.answers(PROMPTS, 1.0, "fresh") == sampler.answers(PROMPTS, 0.0, "fresh")
    hot = sampler.answers(PROMPTS, 200.0, "shared")
    assert measured(PROMPTS, hot)["distinct"].min() > 1, "tokens are drawn for each sample"


def test_answers_do_not_depend_on_the_batch(deciding: LatentDecoder) -> None:
    for temperature, sharing in ((0.0, "fresh"), (50.0, "shared")):
        whole, parts = (
            Sampler(deciding, 2, 4, batch_size=size).answers(PROMPTS, temperature, sharing)  # type: ignore[arg-type]
            for size in (512, 5)
        )
        assert whole == parts


def test_without_latents_greedy_is_one_answer_and_only_temperature_differs(plain: LatentDecoder) -> None:
    sampler = Sampler(plain, 2, 16)
    assert sampler.answers(PROMPTS, 0.0, "fresh") == [["00"] * 16] * 6
    assert measured(PROMPTS, sampler.answers(PROMPTS, 1.0, "fresh"))["distinct"].min() > 1


def test_the_datas_own_answers_are_right_and_as_likely_each() -> None:
    found = measured(PROMPTS, of_the_data(PROMPTS, 512, seed=0))
    assert found["pass@1"].min() == 1.0
    assert found["coverage"].min() == 1.0
    assert found["entropy"].min() > 3.9


# ----------------------------------------------------------------------------------------------------------- equal pass@1


def test_the_temperature_of_a_known_pass_at_1_is_found(plain: LatentDecoder) -> None:
    prompts = [Prompt(f"{number}=", frozenset(["0000"])) for number in range(10)]
    sampler = Sampler(plain, 4, 40)
    goal = (1 + 256 * math.exp(-LOGIT / 0.8)) ** -4  # the pass@1 at 0.8, in closed form: 0.50

    def pass_at_1(temperature: float) -> float:
        return float(measured(prompts, sampler.answers(prompts, temperature, "fresh"))["pass@1"].mean())

    found = matched(pass_at_1, goal)
    assert found.reached
    assert found.temperature == pytest.approx(0.8, abs=0.03)  # a standard error of pass@1 is 0.025, of the temperature 0.009
    assert found.found == pytest.approx(goal, abs=0.02)


def test_the_hottest_of_several_temperatures_is_taken() -> None:
    tries: list[float] = []

    def hump(temperature: float) -> float:
        tries.append(temperature)
        return 1 - abs(temperature - 0.7)

    found = matched(hump, 0.5)
    assert found.temperature == pytest.approx(1.2, abs=0.01)  # 0.2 would do too
    assert len(tries) <= MOST_TRIES


@pytest.mark.parametrize(("goal", "nearest"), [(0.9, 0.0), (0.1, 4.0)])
def test_a_goal_out_of_reach_has_the_nearest_and_says_so(goal: float, nearest: float) -> None:
    found = matched(lambda temperature: 0.8 - temperature / 10, goal)
    assert not found.reached
    assert found.temperature == nearest
    assert "has no temperature" in verdict(experiment.Comparison("free", "vanilla", found, {}))


@pytest.mark.parametrize(
    ("goal", "first", "last", "sentence"),
    [
        (0.5, 0.0, 0.2, "pass@8 is higher by 0.200"),
        (0.5, 0.0, -0.2, "pass@8 is lower by 0.200"),
        (0.5, 0.0, 0.01, "pass@8 is not told apart"),
        (0.5, 0.2, 0.2, "differs on those measured"),
        (0.0, 0.0, 0.0, "no right latent-only answer"),
    ],
)
def test_the_verdict_is_that_of_the_intervals(goal: float, first: float, last: float, sentence: str) -> None:
    values = {"pass@1": first, "pass@8": last, "distinct": 0.0, "valid": 3.0, "coverage": 0.0, "entropy": 0.0}
    found = {name: Interval(value, value - 0.1, value + 0.1) for name, value in values.items()}
    said = verdict(experiment.Comparison("free", "vanilla", Match(0.8, goal, goal, reached=True), found))
    assert sentence in said
    assert ("different right answers higher by 3.0" in said) is ("pass@8" in said)


# ------------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def models(deciding: LatentDecoder, plain: LatentDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted decoders, by name."""
    monkeypatch.setattr(experiment, "load_model", lambda name, **_: {"decides": deciding, "plain": plain}[name])


SMALL = ["--task", "sums,length=4,shown=2", "--prompts", "6", "--calibration", "4", "--samples", "16"]


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.mark.usefixtures("models")
def test_the_command_measures_every_cell_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goals: list[float] = []

    def noted(pass_at_1: Callable[[float], float], goal: float) -> Match:
        goals.append(goal)
        return matched(pass_at_1, goal)

    monkeypatch.setattr(experiment, "matched", noted)
    _run("plain", "decides", *SMALL, "--out", str(tmp_path))
    found = json.loads((tmp_path / "diversity.json").read_text(encoding="utf-8"))
    cells = {(cell["model"], cell["temperature"], cell["latents"]): cell for cell in found["cells"] if not cell["matched_to"]}
    assert list(cells) == [
        ("decides", 0.0, "shared"), ("decides", 0.0, "fresh"), ("decides", 1.0, "shared"), ("decides", 1.0, "fresh"),
        ("plain", 0.0, None), ("plain", 1.0, None),
    ]  # fmt: skip
    own = cells["decides", 0.0, "fresh"]["measures"]
    assert own["pass@1"]["value"] == pytest.approx(1 / 16, abs=0.06)  # all 256 answers as likely, 16 right
    assert own["distinct"]["value"] > 12
    assert cells["decides", 0.0, "shared"]["measures"]["distinct"]["value"] == 1
    (compared,) = found["comparisons"]
    (matching,) = [cell for cell in found["cells"] if cell["matched_to"] == "decides"]
    assert matching["temperature"] == compared["match"]["temperature"]
    gain = own["valid"]["value"] - matching["measures"]["valid"]["value"]
    assert compared["differences"]["valid"]["value"] == pytest.approx(gain)
    assert found["right_answers"] == 16
    assert goals == [compared["match"]["goal"]]
    assert goals[0] != own["pass@1"]["value"], "the goal is that of other prompts"
    assert "<svg" in (tmp_path / "pass-at-k.svg").read_text(encoding="utf-8")


@pytest.mark.usefixtures("models")
def test_a_model_alone_is_measured_and_json_is_the_file(tmp_path: Path) -> None:
    found = _run("decides", *SMALL, "--json", "--out", str(tmp_path))
    assert json.loads(found.stdout) == json.loads((tmp_path / "diversity.json").read_text(encoding="utf-8"))
    assert json.loads(found.stdout)["comparisons"] == []


@pytest.mark.usefixtures("models")
def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path: Path) -> None:
    found = _run("plain", "decides", *SMALL, "--dry-run", "--json", "--out", str(tmp_path / "none"))
    assert [one["model"] for one in json.loads(found.stdout)] == ["plain", "decides"]
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain", "plain", *SMALL], "each model once"),
        (["plain", "decides", *SMALL[2:]], "name the task with --task"),
        (["plain", *SMALL, "--prefill", "postrior"], 'Did you mean "posterior"'),
        (["plain", *SMALL, "--temperature", "0"], "above it"),
        (["no-such-model", "--task", "smus"], 'Did you mean "sums"'),  # before anything is loaded
        (["plain", "--task", "subset,length=8,fillers=30", "--prompts", "6", "--answers", "1"], "plain: Prompt 0 has"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _run(*arguments)
