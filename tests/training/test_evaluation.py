"""The held-out evaluation, the metrics' keys, and the watch over the latents."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentlm.config import Recipe
from latentlm.interface import Batch, Bits, LatentLoss, Loss, Noise
from latentlm.training.data.prepared import prepare
from latentlm.training.evaluation import CollapseWatch, evaluate, excerpts
from latentlm.training.record.metrics import MetricsFile, Tally, read_metrics, rewind
from latentlm.training.setup import make_model, resolve
from latentlm.training.trainer import StepFacts

Make = Callable[..., Recipe]


def test_numbers_are_those_of_the_documents_alone(recipe: Make) -> None:
    """Each document by itself, through the interface, gives the same sums: padding and batching change nothing."""
    asked = recipe("train.batch=3", "train.eval_documents=5", "model.backbone.init_std=0.2", "model.backbone.context=64")
    prepared = prepare(asked.data)
    settings = resolve(asked, vocabulary=257)
    model = make_model(settings, "cpu")
    texts = excerpts(prepared.held_out, prepared.tokenizer, context=64, count=5)
    report = evaluate(model, texts, settings.train)
    nats = kl = 0.0
    for row, text in enumerate(texts):
        batch = Batch.of([text.window.inputs], [text.window.targets])
        noise = Noise.keyed(settings.train.seed, [("held out", row)])
        loss = model.loss(batch, step=0, noise=noise)
        assert loss.kl is not None
        nats, kl = nats + loss.reconstruction.sum().item(), kl + loss.kl.sum().item()
    targets = sum(len(text.window.targets) for text in texts)
    assert report["cross_entropy"] == pytest.approx(nats / targets, rel=1e-5)
    assert report["kl"] == pytest.approx(kl / targets, rel=1e-4)
    assert report["bound"] == pytest.approx((nats + kl) / targets, rel=1e-5)
    assert report["bits_per_byte"] == pytest.approx((nats + kl) / math.log(2) / sum(text.bytes for text in texts), rel=1e-5)
    assert report["standard_error"] > 0
    assert evaluate(model, texts, settings.train) == report


def test_bytes_are_those_of_the_targets(recipe: Make) -> None:
    """A whole document counts all its bytes; a first window as many as its targets stand for."""
    prepared = prepare(recipe("data.tokenizer=bpe:300").data)
    document = prepared.held_out[0]
    (whole,) = excerpts([document], prepared.tokenizer, context=1000, count=1)
    assert whole.bytes == document.bytes
    (start,) = excerpts([document], prepared.tokenizer, context=7, count=1)
    assert len(start.window.targets) == 7
    assert document.data.startswith(prepared.tokenizer.decode_bytes(start.window.targets))
    assert start.bytes == len(prepared.tokenizer.decode_bytes(start.window.targets)) > 7


def test_curves_and_live_bits_by_hand(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit 0 follows the position, bit 1 never moves; the KL of position t is t + 1 bits."""
    settings = resolve(recipe(), vocabulary=257)
    model = make_model(settings, "cpu")

    def loss(batch: Batch, *, step: int, noise: Noise) -> Loss:
        assert model.kl_schedule is None, "an evaluation must not move the schedule"
        place = batch.positions.float()
        logits = torch.stack([torch.where(place % 2 == 0, 9.0, -9.0), torch.full_like(place, 9.0)], dim=-1)
        kl = torch.stack([place + 1, torch.zeros_like(place)], dim=-1) * math.log(2)
        mask = batch.documents >= 0
        return Loss(torch.zeros(()), place * 0, batch.target_mask, {"z": LatentLoss(kl, mask, Bits(logits))})

    monkeypatch.setattr(model, "loss", loss)
    prepared = prepare(recipe().data)
    texts = excerpts(prepared.held_out, prepared.tokenizer, context=5, count=3)
    report = evaluate(model, texts, settings.train)
    assert (report["live_bits"], report["dimensions"]) == (1, 2)
    assert report["kl_by_position"] == [[float(t), pytest.approx(t + 1)] for t in range(5)]
    assert report["kl_bits_per_site"] == pytest.approx(3.0)
    assert report["information_bits_per_site"] == pytest.approx(0.97, abs=0.01)  # of a bit that is one at 3 of 5 positions
    assert model.kl_schedule is not None


def test_chunks_have_their_kl_at_their_first_position(recipe: Make) -> None:
    settings = resolve(recipe("model.granularity=chunk:4"), vocabulary=257)
    prepared = prepare(recipe().data)
    texts = excerpts(prepared.held_out, prepared.tokenizer, context=16, count=3)
    report = evaluate(make_model(settings, "cpu"), texts, settings.train)
    assert [position for position, _ in report["kl_by_position"]] == [0.0, 4.0, 8.0, 12.0]


def test_a_model_without_latents_reports_no_latents(recipe: Make) -> None:
    settings = resolve(recipe(decoder="vanilla"), vocabulary=257)
    prepared = prepare(settings.data)
    texts = excerpts(prepared.held_out, prepared.tokenizer, context=16, count=3)
    report = evaluate(make_model(settings, "cpu"), texts, settings.train)
    assert report["kl"] == 0.0
    assert report["bound"] == report["cross_entropy"]
    assert "live_bits" not in report
    assert "information_bits_per_site" not in report
    assert CollapseWatch().check(report) is None


def test_collapse_is_told_once_and_only_when_it_lasts() -> None:
    good = {"kl_bits_per_site": 0.4, "information_bits_per_site": 0.3, "live_bits": 0, "dimensions": 8}
    silent, frozen = {**good, "kl_bits_per_site": 0.001}, {**good, "information_bits_per_site": 0.0}
    watch = CollapseWatch()
    assert [watch.check(each) for each in (silent, frozen, good, silent, silent)] == [None] * 5
    text = CollapseWatch.of(watch.state_dict()).check(silent)
    assert text is not None
    assert "collapsed" in text
    watch.check(frozen)
    assert watch.check(frozen) is None


def test_without_a_known_information_the_live_units_decide() -> None:
    """Gaussians: no closed form."""
    watch, frozen = CollapseWatch(), {"kl_bits_per_site": 0.4, "live_bits": 0, "dimensions": 8}
    assert [watch.check(each) is None for each in (frozen, frozen, frozen)] == [True, True, False]


def test_a_tally_averages_over_targets_and_survives_a_checkpoint() -> None:
    one = StepFacts(
        targets=10, cross_entropy=20.0, kl=5.0, penalty=1.0, gradient_norm=2.0, learning_rate=0.1, schedule={"w": 1.0}
    )
    two = StepFacts(
        targets=30, cross_entropy=20.0, kl=7.0, penalty=3.0, gradient_norm=4.0, learning_rate=0.2, schedule={"w": 2.0}
    )
    tally = Tally()
    tally.add(one)
    tally.seconds += 1.0
    tally = Tally.of(json.loads(json.dumps(tally.state_dict())))
    tally.add(two)
    tally.seconds += 3.0
    line = tally.line(step=2, tokens=40, elapsed=4.0, bytes_per_target=2.0)
    assert (line["cross_entropy"], line["kl"], line["penalty"]) == (1.0, 0.3, 0.1)
    assert (line["bound"], line["loss"]) == (1.3, 1.1)
    assert line["kl_bits_per_token"] == pytest.approx(0.3 / math.log(2))
    assert line["bits_per_byte"] == pytest.approx(1.3 / math.log(2) / 2)
    assert (line["tokens_per_second"], line["grad_norm"], line["learning_rate"]) == (10.0, 3.0, 0.2)
    assert line["schedule"] == {"w": 1.5}


def test_a_metrics_file_is_rewound_and_forgives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for step in (1, 2, 3):
        metrics.write({"step": step, "value": math.nan})
    metrics.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "val')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    assert rewind(path, step=2) == [{"step": 1, "value": None}, {"step": 2, "value": None}]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
