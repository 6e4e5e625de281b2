"""The n-gram decoder: which row an n-gram takes, where it may look, what it keeps from token to token, how large it is.

Run: ``pytest tests/plugins/test_ngram.py``
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentlm.composed import build
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.interface import Batch, Noise
from latentlm.training.recipes import load_recipe
from latentlm.training.setup import parameters_by_socket
from latentlm_ngram import NgramDecoder
from latentlm_ngram.hashing import hashed, newest, windows_of
from samples import small_config

BACKBONE = small_config("vanilla").backbone
OUTSIDE = BACKBONE.vocabulary


def made(**settings: object) -> NgramDecoder:
    spec = PartSpec.model_validate({"name": "ngram", "rows": 40, "init_std": 1.0, **settings})
    model = build(ModelConfig(decoder=spec, backbone=BACKBONE), seed=1)
    assert isinstance(model, NgramDecoder)
    return model.eval()


def by_hand(ids: list[int], rows: int) -> int:
    """The hash in integers of any size."""
    found = len(ids)
    for token in ids:
        found = (found ^ token) * 16777619 % 2**32
    found = (found ^ (found >> 16)) * 2146121005 % 2**32
    return (found ^ (found >> 15)) % rows


def test_an_ngram_takes_the_row_of_the_documented_hash() -> None:
    windows = torch.tensor([[97, 98], [98, 97], [256, 97], [199_999, 128_000]])
    assert hashed(windows, 1836).tolist() == [by_hand(ids, 1836) for ids in windows.tolist()]
    assert hashed(windows, 1836).tolist()[:3] == [1468, 1378, 214], "rows of trained tables stay where they are"
    assert hashed(torch.tensor([[97, 98, 99]]), 1836).tolist() == [933]


def test_ngrams_spread_evenly_over_the_rows() -> None:
    every = torch.cartesian_prod(torch.arange(257), torch.arange(257))
    counts = torch.bincount(hashed(every, 1836), minlength=1836).double()
    chi_squared = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(chi_squared - 1835) < 5 * (2 * 1835) ** 0.5


def test_an_ngram_stays_within_its_document() -> None:
    tokens, positions = torch.tensor([[3, 1, 4, 7, 7]]), torch.tensor([[0, 1, 2, 0, 1]])
    windows = windows_of(tokens, positions, torch.tensor([[9, 9]]), outside=99)
    assert windows.tolist() == [[[99, 99, 3], [99, 3, 1], [3, 1, 4], [99, 99, 7], [99, 7, 7]]]


def test_a_pass_goes_on_with_the_tokens_before_it() -> None:
    before = newest(torch.tensor([[3, 1, 0], [5, 9, 2]]), torch.tensor([[0, 0, -1], [0, 0, 0]]), torch.zeros(2, 2).long())
    assert before.tolist() == [[3, 1], [9, 2]], "padding is no token"
    windows = windows_of(torch.tensor([[4], [6]]), torch.tensor([[2], [3]]), before, outside=99)
    assert windows.tolist() == [[[3, 1, 4]], [[9, 2, 6]]]
    assert newest(torch.tensor([[4]]), torch.tensor([[0]]), before[:1]).tolist() == [[1, 4]]


def test_chosen_rows_go_on_with_their_own_tokens() -> None:
    """A beam's rows change places and repeat."""
    model, texts = made(orders=[3]), torch.tensor([[3, 1, 4, 1], [2, 7, 1, 1], [9, 9, 9, 1]])
    state = model.prefill(texts[:, :3], torch.full((3,), 3), noise=Noise.keyed(0, range(3)))
    rows = torch.tensor([2, 0, 2, 1])
    state = model.step(model.select(state, rows), texts[rows, 3], noise=Noise.keyed(0, range(4)))
    whole = model.context(Batch.of(texts[rows].tolist()))
    assert torch.allclose(state.logits, model.logits(model.hidden(whole, None))[:, -1], atol=1e-5)


def test_the_rows_of_all_orders_add() -> None:
    model = made(orders=[1, 3])
    tokens, positions = torch.tensor([[3, 1, 4]]), torch.arange(3)[None]
    rows = model.rows_of(tokens, positions, torch.zeros(1, 2).long())
    row_of = [by_hand(ids, 40) for ids in ([4], [3, 1, 4])]
    assert torch.equal(rows[0, 2], model.table.weight[row_of[0]] + model.table.weight[row_of[1]])
    first = [by_hand(ids, 40) for ids in ([3], [OUTSIDE, OUTSIDE, 3])]
    assert torch.equal(rows[0, 0], model.table.weight[first[0]] + model.table.weight[first[1]])


def test_the_sum_over_orders_begins_with_the_standard_deviation_asked_for() -> None:
    model = made(rows=4000, orders=[1, 2, 3, 4], init_std=0.5)
    assert model.table.weight.std().item() == pytest.approx(0.25, rel=0.02)
    assert made(rows=4000, orders=[2], init_std=None).table.weight.std().item() == pytest.approx(BACKBONE.init_std, rel=0.02)


@pytest.mark.parametrize("slot", ["kv", "residual"])
def test_rows_enter_the_named_slot_of_the_named_block(slot: str) -> None:
    model = made(slot=slot, block=1)
    (found,) = model.token_conditions(Batch.of([[1, 2, 3]]), None).items()
    assert found[0] == 1
    filled = {name: value for name, value in vars(found[1]).items() if value is not None}
    assert set(filled) == {slot}
    assert isinstance(filled[slot], Tensor)


def test_the_control_has_as_many_parameters_as_what_it_stands_for() -> None:
    models = [build(load_recipe(name).model, device="meta") for name in ("ngram-tiny", "demo-free")]
    table, free = (parameters_by_socket(model)["total"] for model in models)
    assert table == pytest.approx(free, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"row": 5}, "rows"),
        ({"orders": [2, 2]}, "twice"),
        ({"orders": []}, "orders"),
        ({"orders": [0]}, "orders"),
        ({"block": BACKBONE.blocks}, f"the last of {BACKBONE.blocks} blocks is {BACKBONE.blocks - 1}"),
        ({"slot": "kvs"}, "residual"),
    ],
)
def test_a_faulty_setting_is_refused_by_name(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        made(**settings)


@pytest.mark.parametrize("latent", [{"event_dims": 4}, {"prior": "uniform_bits"}])
def test_it_takes_no_latent(latent: dict[str, object]) -> None:
    with pytest.raises(UserError, match="a control without a latent"):
        build(ModelConfig(decoder="ngram", backbone=BACKBONE, **latent))  # type: ignore[arg-type]
