"""What is reported beside a score, on decoders whose latents are known."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from torch import Tensor

from latentlm.composed import ComposedDecoder, build
from latentlm.errors import UserError
from latentlm.interface import Bits, Distribution, Latent, Noise
from latentlm.likelihood import diagnostics
from latentlm.likelihood.diagnostics import diagnose
from likelihood_parts import StandardNormal, StickyBits, tiny
from samples import small_config

STRENGTH = 1 / (1 + math.exp(-4.0))


def random_texts(vocabulary: int, count: int = 24, length: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (count, length), generator=generator).tolist()


@cache
def planted() -> ComposedDecoder:
    return tiny(vocabulary=2, events=1)


def test_cross_entropies_rank_by_what_z_knows() -> None:
    """The posterior's z gives the answer away, prior and constant z do not, shuffled z misleads."""
    found = diagnose(planted(), random_texts(2)).cross_entropy
    assert found["posterior"] < 0.55
    assert found["posterior"] < found["constant"] < found["shuffled"] + 1.0
    assert found["prior"] > math.log(2)
    assert found["shuffled"] > math.log(2)


def test_kl_is_that_of_the_planted_bits() -> None:
    """Sure bits cost log 2 minus their entropy; the last position only guesses and costs less."""
    found = diagnose(planted(), random_texts(2))
    entropy = -(STRENGTH * math.log2(STRENGTH) + (1 - STRENGTH) * math.log2(1 - STRENGTH))
    assert found.kl_curve[:-1] == pytest.approx([1 - entropy] * 10, abs=1e-4)
    assert found.kl_curve[-1] < 0.6 * (1 - entropy)
    assert found.kl_bits_per_token == pytest.approx(sum(found.kl_curve) / 11, abs=1e-6)


def test_mutual_information_of_a_noisy_bit() -> None:
    """A fair bit read with error e tells 1 - H(e) bits; the few last positions tell less."""
    found = diagnose(planted(), random_texts(2, count=64))
    entropy = -(STRENGTH * math.log2(STRENGTH) + (1 - STRENGTH) * math.log2(1 - STRENGTH))
    assert found.mutual_information_bits == pytest.approx(10 / 11 * (1 - entropy) + 0.3 / 11, abs=0.06)
    assert found.active_units == 1
    assert found.persistence[0] == pytest.approx(0, abs=0.15)


def test_posterior_that_ignores_the_text_carries_nothing() -> None:
    model = tiny(vocabulary=2, events=1, steps=5)
    model.encoder.strength = 0.0
    found = diagnose(model, random_texts(2))
    assert found.active_units == 0
    assert found.kl_bits_per_token == pytest.approx(0, abs=1e-6)
    assert found.mutual_information_bits == pytest.approx(0, abs=1e-6)
    assert found.persistence == [0.0]


def test_ablation_charges_each_unit_that_is_used() -> None:
    found = diagnose(tiny("chunk:2"), random_texts(3), ablate=True)
    assert len(found.ablation) == 2
    assert min(found.ablation) > 0.01
    assert diagnose(tiny("chunk:2"), random_texts(3)).ablation == []


def test_persistent_text_has_persistent_bits() -> None:
    texts = [[bit] * 12 for bit in (0, 1)] * 8
    assert diagnose(planted(), texts).persistence[0] > 0.7


@pytest.mark.parametrize(
    "settings",
    [
        {"granularity": "document", "prior": StandardNormal, "events": 2},
        {"prior": StickyBits, "vocabulary": 2, "events": 1},
        {"encoder": False, "events": 1},
    ],
)
def test_other_latents_are_diagnosed_too(settings: dict[str, object]) -> None:
    found = diagnose(tiny(**settings, steps=30), random_texts(2, count=6), batch_size=4)
    assert set(found.cross_entropy) == {"posterior", "prior", "constant", "shuffled"}
    assert all(math.isfinite(value) for value in [*found.cross_entropy.values(), *found.kl_curve, *found.variances])
    assert found.kl_bits_per_token >= -1e-6
    assert math.isfinite(found.mutual_information_bits)


class Wrapped(Distribution):
    """A third party's family, of which nobody knows that there are bits inside."""

    parameters = ("inner",)

    def __init__(self, inner: Bits) -> None:
        self.inner = inner

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.inner.shape

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        return self.inner.sample(noise)

    def log_prob(self, latent: Latent) -> Tensor:
        return self.inner.log_prob(latent)

    def tempered(self, temperature: float) -> Wrapped:
        return Wrapped(self.inner.tempered(temperature))


def test_a_third_partys_family_has_mutual_information_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites in batches, pools and blocks of any size: the same number; units and means it need not have."""
    texts, known = random_texts(2, count=7), diagnose(planted(), random_texts(2, count=7))
    model = copy.deepcopy(planted())
    bits = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda *given: Wrapped(bits(*given)))
    for size, pairs in ((3, 2**16), (7, 100)):
        monkeypatch.setattr(diagnostics, "_PAIRS", pairs)
        found = diagnose(model, texts, batch_size=size)
        assert found.mutual_information_bits == pytest.approx(known.mutual_information_bits, abs=1e-5)
        assert found.active_units is None
    monkeypatch.setattr(diagnostics, "_POOL", 20)
    assert diagnose(model, texts).mutual_information_bits == pytest.approx(
        diagnose(planted(), texts).mutual_information_bits, abs=1e-5
    )
    monkeypatch.setattr(Wrapped, "normalised", False)
    assert diagnose(model, texts).mutual_information_bits is None


def test_mutual_information_by_hand() -> None:
    """Over 84 sites, each value weighed against every posterior."""
    logits = 2 * torch.randn(7, 12, 2, generator=torch.Generator().manual_seed(0)).double()
    real = torch.rand(7, 12, generator=torch.Generator().manual_seed(1)) < 0.8
    units = diagnostics._Units()
    for rows in torch.arange(7).split(3):
        units._moments(Bits(logits[rows]), real[rows])
    flat = torch.sigmoid(logits[real])
    noise = Noise.keyed(5, [("mutual information", site) for site in range(len(flat))])
    value = (noise.uniform(1, 2)[:, 0] < flat).double()
    chances = torch.stack([(value * q + (1 - value) * (1 - q)).prod(-1) for q in flat])  # q_j(z_i) at j, i
    expected = float((chances.diagonal() / chances.mean(0)).log2().mean())
    assert diagnostics._mutual_information(units._pool(), 5) == pytest.approx(expected, abs=1e-9)
    assert expected > 0.3


def test_gaussian_mutual_information_matches_its_integral() -> None:
    """Two equally likely posteriors N(-1, .6) and N(1, .6): by quadrature. A document's mean decides."""
    model = tiny("document", prior=StandardNormal, events=1, vocabulary=2, steps=5)
    texts = [[bit] * 13 for bit in (0, 1)] * 200
    found = diagnose(model, texts, batch_size=100).mutual_information_bits
    mean = (11 + 1 / 3) / 12
    axis = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    one, two = (torch.exp(-0.5 * ((axis - m) / 0.6) ** 2) / (0.6 * math.sqrt(2 * math.pi)) for m in (-mean, mean))
    exact = float((one * (one / ((one + two) / 2)).clamp(min=1e-300).log2()).sum() * (axis[1] - axis[0]))
    assert found == pytest.approx(exact, abs=0.05)


def test_vanilla_has_its_cross_entropy_and_no_more() -> None:
    found = diagnose(build(small_config("vanilla")), random_texts(17))
    assert list(found.cross_entropy) == ["exact"]
    assert found.active_units is None
    assert found.kl_bits_per_token == 0


def test_batch_size_changes_neither_kl_nor_tokens() -> None:
    texts = random_texts(2, count=7)
    one, other = diagnose(planted(), texts, batch_size=2), diagnose(planted(), texts, batch_size=7)
    assert one.tokens == other.tokens == 77
    assert one.kl_curve == pytest.approx(other.kl_curve, abs=1e-6)
    assert one.cross_entropy["posterior"] == pytest.approx(other.cross_entropy["posterior"], abs=1e-4)


def test_texts_too_short_are_refused() -> None:
    with pytest.raises(UserError, match="at least two tokens"):
        diagnose(planted(), [[0]])
