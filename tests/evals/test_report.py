"""The report page and the tables: every number is there, nothing is fetched, nothing is unescaped."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from latentlm.errors import UserError
from latentlm_evals import report, tables
from latentlm_evals.results import Comparison, Estimate, ModelResult, Sample, TaskResult


def model(name: str, *, latent: bool, bits: float) -> ModelResult:
    return ModelResult(
        name=name,
        decoder="free" if latent else "vanilla",
        has_latents=latent,
        parameters=1_071_872 if latent else 836_864,
        method="iwae, 16 samples" if latent else "exact",
        bits_per_byte=Estimate(bits, 0.0123),
        estimator_error=0.0031 if latent else 0.0,
        uncertainty=0.0177 if latent else 0.0,
        converged=not latent,
        effective_samples=1.7 if latent else 1.0,
        difference=Estimate(0.0456, 0.0007) if latent else None,
        elbo_bits_per_byte=bits + 0.11,
        posterior_bits_per_byte=bits - 0.07,
        kl_bits_per_token=0.1234 if latent else 0.0,
        live_units=3 if latent else None,
        units=8 if latent else 0,
        training_operations=5e6 if latent else 4e6,
        training={"tokens_per_second": 7777.0, "steps": 10, "tokens": 100, "seconds": 1.0},
        cross_entropy_bits={"posterior": 2.1, "prior": 2.2, "shuffled": 2.3, "constant": 2.4} if latent else {},
        curves={"cross_entropy": [[1, 8.0], [2, 7.0]], "kl_by_site": [[0, 0.1], [1, 0.2]] if latent else []},
        tasks=[TaskResult("latentlm_copy", "exact_match", 0.325, 0.043, 0.333, 120)],
        samples=[Sample("def <x>", "shared" if latent else "none", ["return '&'"])],
    )


@pytest.fixture
def comparison() -> Comparison:
    models = [model("plain<1>", latent=False, bits=2.3456), model("hidden", latent=True, bits=2.4012)]
    held_out = {"documents": 48, "bytes": 98_304, "of": "48 held-out documents of stdlib", "fingerprint": "abc"}
    return Comparison(
        models, held_out, "the first bytes", "operational", {"seed": 0}, "latentlm compare a b", {"latentlm": "0.1.0"}
    )


def test_page_has_every_number_and_names_what_is_no_likelihood(comparison: Comparison) -> None:
    page = report.page(comparison)
    numbers = ["2.3456", "2.4012", "+0.0456", "0.0007", "1,071,872", "7,777", "0.325", "0.333", "98,304", "2.3000", "0.0031"]
    assert [number for number in numbers if number not in page] == []
    assert "posterior cross-entropy, bits per byte (not a likelihood)" in page
    assert page.count("<svg") == 1


def test_page_needs_nothing_beside_it(comparison: Comparison) -> None:
    page = report.page(comparison)
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]+\"", page) == []
    assert "@import" not in page


def test_texts_of_users_and_models_are_escaped(comparison: Comparison) -> None:
    page = report.page(comparison)
    assert "plain<1>" not in page.replace("plain&lt;1&gt;", "")
    assert "def &lt;x&gt;" in page
    assert "return &#x27;&amp;&#x27;" in page


def test_the_page_says_what_z_gives_and_costs(comparison: Comparison) -> None:
    page = report.page(comparison)
    gained, paid = 2.3456 - (2.4012 - 0.07), 0.11 + 0.07
    row = re.search(r"What z gives, and what it costs.*?<td>.*?hidden</td>(.*?)</tr>", page, re.DOTALL)
    assert row is not None
    assert [f"{gained:+.4f}", "+0.2000", f"{paid:.4f}"] == re.findall(r"<td>([+\d.]+)</td>", row[1])
    assert "+0.0456" in row[1], "the tax"
    assert "not converged" in row[1]
    more = replace(comparison.models[1], training={"tokens": 1000})
    assert "What z gives" not in report.page(replace(comparison, models=[comparison.models[0], more])), "it saw more text"
    backwards = report.page(replace(comparison, models=comparison.models[::-1]))
    assert "What z gives" not in backwards, "no plain model to compare with"


def test_pictures_are_inside_the_page_as_images(comparison: Comparison, tmp_path: Path) -> None:
    picture = tmp_path / "a<b>.svg"
    picture.write_text("<svg><script>alert(1)</script></svg>", encoding="utf-8")
    page = report.page(comparison, [picture])
    assert "<script" not in page
    assert 'alt="a&lt;b&gt;" src="data:image/svg+xml;base64,' in page
    assert "<h2>a&lt;b&gt;</h2>" in page
    page = report.page(comparison, [picture], ["Figure <4>: Each block shares \"one\" z <b>. Left: the prior."])
    assert "<h2>Figure &lt;4&gt;</h2><p>Each block shares &quot;one&quot; z &lt;b&gt;. Left: the prior.</p>" in page
    assert 'alt="Each block shares &quot;one&quot; z &lt;b&gt;. Left: the prior."' in page
    report.check_captions([picture], ["a"])
    with pytest.raises(UserError, match="--caption is given 2 times and --picture 1 times"):
        report.check_captions([picture], ["a", "b"])
    report.check_picture(picture)
    (tmp_path / "text.png").write_text("no picture")
    for wrong in ("nowhere.svg", "page.html", "text.png"):
        with pytest.raises(UserError, match="--picture"):
            report.check_picture(tmp_path / wrong)


def test_the_use_of_z_is_called_alike_on_the_page_and_in_the_terminal(comparison: Comparison) -> None:
    page = report.page(comparison)
    assert "<th>another text&#x27;s z</th>" in page or "<th>another text's z</th>" in page
    assert "shuffled" not in page
    out = io.StringIO()
    tables.show(comparison, console=Console(file=out, width=80))
    text = " ".join(re.sub("[│\n]", " ", out.getvalue()).split())
    assert "yes, +0.2000" in text
    assert re.search(r"the tax of z, bits/byte – \+0\.0456 ± 0\.0007", text)
    deaf = replace(comparison.models[1], cross_entropy_bits=dict.fromkeys(("posterior", "prior", "shuffled", "constant"), 2.1))
    out = io.StringIO()
    tables.show(replace(comparison, models=[comparison.models[1], deaf]), console=Console(file=out, width=80))
    assert "no, +0.0000" in out.getvalue()
    assert "the tax of z, bits/byte" not in out.getvalue(), "the first has a latent, too"


def test_plain_models_alone_have_no_section_on_latents(comparison: Comparison) -> None:
    page = report.page(replace(comparison, models=comparison.models[:1]))
    assert "Does the decoder use its latents?" not in page
    assert "Does the decoder use its latents?" in report.page(comparison)


def test_terminal_table_fits_eighty_columns(comparison: Comparison) -> None:
    out = io.StringIO()
    tables.show(comparison, console=Console(file=out, width=80))
    text = out.getvalue()
    for number in ("2.3456 ± 0.0123", "+0.0456 ± 0.0007", "baseline", "0.1234", "0.0031 (1.7 eff. samples)"):
        assert number in text, number
    assert max(map(len, text.splitlines())) <= 80


def test_many_models_stand_in_rows_and_fit_eighty_columns(comparison: Comparison) -> None:
    names = ["vanilla-tiny", "free-tiny", "gaussian-tiny", "causal-tiny", "chunk-tiny", "della-tiny", "ltm-tiny"]
    models = [model(name, latent=number > 0, bits=2.0 + number) for number, name in enumerate(names)]
    out = io.StringIO()
    tables.show(replace(comparison, models=models), console=Console(file=out, width=80))
    text = out.getvalue()
    for name in names:
        assert len(re.findall(rf"^│ {name} ", text, re.MULTILINE)) == 6, name  # with the tasks
    assert "8.0000 ± 0.0123" in text
    assert "3 of 8" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_model_that_diverged_takes_no_name_from_the_tables(comparison: Comparison, count: int) -> None:
    names = ["vanilla-tiny", "free-tiny", "gaussian-tiny", "causal-tiny", "chunk-tiny"][:count]
    models = [model(name, latent=True, bits=2.1e15) for name in names]
    for one in models:
        one.tasks = [TaskResult("lambada", "perplexity", 1.2e16, 7e15, None, 120)]
    out = io.StringIO()
    tables.show(replace(comparison, models=models), console=Console(file=out, width=80))
    text = out.getvalue()
    for said in (*names, "lambada", "perplexity"):
        assert len(re.findall(rf"^[│┃].*\b{said} ", text, re.MULTILINE)) >= 1 + (said in names), said
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_different_amounts_of_training_text_are_said(comparison: Comparison) -> None:
    assert comparison.warning is None
    more = replace(comparison.models[1], training={**(comparison.models[1].training or {}), "tokens": 900})
    unequal = replace(comparison, models=[comparison.models[0], more])
    out = io.StringIO()
    tables.show(unequal, console=Console(file=out, width=80))
    assert "different amounts of text" in out.getvalue()
    assert "different amounts of text" in report.page(unequal)


def test_a_ranking_that_has_not_converged_says_so(comparison: Comparison) -> None:
    out = io.StringIO()
    tables.show(comparison, console=Console(file=out, width=80))
    said = "The likelihood of hidden has not converged"
    assert said in out.getvalue()
    assert "2.4012 ± 0.0123 *" in out.getvalue()
    assert "no, to 0.0177" in out.getvalue()
    assert replace(comparison.models[1], uncertainty=float("nan")).good_to == "unknown"
    assert said in report.page(comparison)
    sure = replace(comparison, models=[replace(each, converged=True) for each in comparison.models])
    assert said not in report.page(sure)


def test_page_gives_cost_as_a_ratio_to_the_first_model(comparison: Comparison) -> None:
    assert "1.25x" in report.page(comparison)


def test_json_round_trips(comparison: Comparison) -> None:
    comparison.models[0].bits_per_byte = Estimate(2.0, math.nan)
    data = json.loads(comparison.to_json())
    assert data["models"][0]["bits_per_byte"] == {"value": 2.0, "standard_error": None}
    assert data["models"][1]["difference"] == {"value": 0.0456, "standard_error": 0.0007}
