"""What `zoo.describe` draws and `zoo list` shows as a tree."""

from __future__ import annotations

from latentlm import zoo
from latentlm.composed import build
from latentlm.config import ModelConfig
from latentlm.training.recipes import load_recipe
from latentlm.zoo.drawing import draw
from latentlm.zoo.family import tree
from latentlm.zoo.shelves import zoo_recipes
from samples import small_config

ALL = sorted(zoo_recipes())
FREE = """\
    embedding
        │
   blocks 0-1        the trunk, free of z
        ├──────────► encoder free                q(z | x), sees ahead, tap 2
        ├──────────► prior uniform_bits          p(z)
        │            z: 4 bits per token         KL schedule free_bits
     block 2      ◄─ injection free              kv
        │
     block 3
        │
  norm, readout"""


def test_every_socket_of_the_free_transformer_is_drawn() -> None:
    assert draw(build(small_config("free"), device="meta")) == FREE


def test_a_plain_decoder_has_nothing_beside_its_column() -> None:
    drawing = draw(build(small_config("vanilla"), device="meta"))
    assert [line.strip() for line in drawing.splitlines()] == ["embedding", "│", "blocks 0-3", "│", "norm, readout"]


def test_a_drawing_fits_a_terminal_of_80_columns() -> None:
    assert len(ALL) > 10
    for name in ALL:
        drawing = draw(build(load_recipe(name).model, device="meta"))
        assert max(map(len, drawing.splitlines())) <= 80, drawing


def test_what_does_not_fit_beside_a_part_stands_below_it() -> None:
    lines = draw(build(load_recipe("two-level-tiny").model, device="meta")).splitlines()
    place = lines.index("        ├──────────► encoder free")
    assert lines[place + 1] == "        │              q(bits | x, intent), sees ahead, tap 2"


def test_describe_ends_with_the_drawing() -> None:
    found = zoo.describe("free-tiny")
    assert found.drawing in str(found)
    assert "injection free" in found.drawing
    assert found.as_json()["drawing"] == found.drawing.splitlines()


def test_the_tree_has_every_card_once_on_the_branch_of_its_latents() -> None:
    cards = zoo.list()
    branches = tree(cards)
    named = [card.name for members in branches.values() for member in members for card in member.cards]
    assert sorted(named) == [card.name for card in cards]
    (vanilla,) = branches["no latents"]
    assert vanilla.decoder == "vanilla"
    free = next(member for member in branches["one latent per token"] if member.decoder == "free")
    assert free.parts == "encoder free, prior uniform_bits, injection free"


def test_a_card_of_a_missing_plugin_stands_on_the_branch_that_it_says() -> None:
    card = zoo.list("free-tiny")[0]
    stranger = card.model_copy(update={"model": ModelConfig(decoder="unheard_of", granularity="document", event_dims=2)})
    assert [member.decoder for member in tree([stranger])["one latent per document"]] == ["unheard_of"]
