"""One mask description, lowered by each backend; xformers' own `materialize` is the oracle for ours."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from latentlm.backbone import attention_flex
from latentlm.backbone.attention import Mask, attend
from latentlm.backbone.attention_xformers import lower, refusal, run_lengths
from latentlm.composed import build
from latentlm.errors import UserError
from latentlm.interface import Batch, Noise, Prefix
from latentlm.training.compiling import compile_blocks
from samples import pack, small_config

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 1, -1, -1]])


def written_out(mask: Mask) -> torch.Tensor:
    """The rows' masks as blocks of one (B*T) x (B*T) mask."""
    return torch.block_diag(*mask.allowed.int()).bool()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2])
def test_lowered_xformers_bias_equals_our_mask(causal: bool, window: int | None) -> None:
    if window is not None and not causal:
        pytest.skip("windows are causal")
    mask = Mask(DOCUMENTS, DOCUMENTS, causal=causal, window=window)
    total = DOCUMENTS.numel()
    bias = lower(mask).materialize((1, 1, total, total))[0, 0]
    assert torch.equal(bias == 0, written_out(mask))
    assert torch.isneginf(bias[bias != 0]).all()


def test_runs_end_with_their_row() -> None:
    assert run_lengths(DOCUMENTS) == [3, 2, 3, 5, 1, 2]
    assert run_lengths(torch.zeros(2, 4)) == [4, 4]


def test_given_prompt_is_seen_both_ways() -> None:
    mask = Mask(torch.zeros(1, 5), torch.zeros(1, 5), given=torch.tensor([3])).allowed[0]
    assert mask[:3, :3].all()
    assert not mask[0, 3]
    assert torch.equal(mask[3:], torch.ones(5, 5).tril().bool()[3:])


def test_prefix_slots_are_seen_by_their_document_alone() -> None:
    mask = Mask(DOCUMENTS, DOCUMENTS).with_prefix(torch.tensor([[0, 1, -1], [0, 0, -1]])).allowed
    assert mask[0, :, 0].tolist() == [True] * 3 + [False] * 5
    assert mask[0, :, 1].tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert not mask[:, :, 2].any()


SINCE = torch.tensor([[0, 1, 5, 7, 0], [2, 4, 5, 0, 6]])
SLOT_DOCUMENTS = torch.tensor([[0, 0, 2, 2, -1], [0, 0, 1, -1, 0]])


def slots_by_hand(queries: torch.Tensor, *, start: int = 0) -> torch.Tensor:
    """(B, T, 5): a position sees the slots of its own document, from their column `since` on."""
    seen = torch.zeros(*queries.shape, 5, dtype=torch.bool)
    for row, place, slot in torch.cartesian_prod(*(torch.arange(size) for size in seen.shape)).tolist():
        own = queries[row, place] == SLOT_DOCUMENTS[row, slot] and SLOT_DOCUMENTS[row, slot] >= 0
        seen[row, place, slot] = own and start + place >= SINCE[row, slot]
    return seen


@pytest.mark.parametrize("causal", [True, False])
def test_slots_with_since_are_seen_from_there_on(causal: bool) -> None:
    plain = Mask(DOCUMENTS, DOCUMENTS, causal=causal)
    allowed = plain.with_prefix(SLOT_DOCUMENTS, SINCE).allowed
    assert torch.equal(allowed[..., :5], slots_by_hand(DOCUMENTS))
    assert torch.equal(allowed[..., 5:], plain.allowed)
    assert not torch.equal(allowed, plain.with_prefix(SLOT_DOCUMENTS).allowed)


def test_since_counts_columns_of_the_row_cached_ones_included() -> None:
    tail = DOCUMENTS[:, 4:6]
    mask = Mask(tail, DOCUMENTS[:, :6], start=4).with_prefix(SLOT_DOCUMENTS, SINCE)
    assert torch.equal(mask.allowed[..., :5], slots_by_hand(tail, start=4))


def test_rows_of_a_repeated_mask_keep_their_since() -> None:
    mask = Mask(DOCUMENTS, DOCUMENTS).with_prefix(SLOT_DOCUMENTS, SINCE)
    assert torch.equal(mask.repeat(3).allowed, mask.allowed.repeat_interleave(3, 0))


def prefix_of(documents: torch.Tensor, since: torch.Tensor | None) -> Prefix:
    slots = torch.zeros(documents.shape[0], 1, documents.shape[1], 1)
    return Prefix(slots, slots, documents, since)


def test_prefixes_side_by_side_keep_who_sees_them() -> None:
    plain = Mask(DOCUMENTS, DOCUMENTS)
    always, later = prefix_of(SLOT_DOCUMENTS[:, :2], None), prefix_of(SLOT_DOCUMENTS, SINCE)
    both = plain.with_prefixes((always, later)).allowed
    assert torch.equal(both[..., :2], plain.with_prefixes((always,)).allowed[..., :2])
    assert torch.equal(both[..., 2:], plain.with_prefixes((later,)).allowed)
    twice = plain.with_prefixes((always, always))
    assert twice.prefix_since is None
    assert torch.equal(twice.allowed[..., :2], twice.allowed[..., 2:4])


def test_blocks_share_the_mask_of_the_prefixes_that_they_share() -> None:
    plain = Mask(DOCUMENTS, DOCUMENTS)
    always, later = prefix_of(SLOT_DOCUMENTS, None), prefix_of(SLOT_DOCUMENTS, SINCE)
    assert plain.with_prefixes((always, later)) is plain.with_prefixes((always, later))
    assert plain.with_prefixes((later,)) is not plain.with_prefixes((always,))
    assert plain.with_prefixes((later,)) is plain.with_prefix(SLOT_DOCUMENTS, SINCE)
    assert plain.with_prefixes(()) is plain


def attention_by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1) @ value


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_sdpa_equals_attention_by_hand(causal: bool, plain: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 8, 6, generator=generator)
    key, value = (torch.randn(2, 2, 8, 6, generator=generator) for _ in range(2))
    documents = torch.zeros(2, 8) if plain else DOCUMENTS
    mask = Mask(documents, documents, causal=causal, plain=plain)
    torch.testing.assert_close(attend(query, key, value, mask=mask), attention_by_hand(query, key, value, mask.allowed))


def masks() -> dict[str, Mask]:
    given = torch.tensor([3, 0])
    return {
        "causal": Mask(DOCUMENTS, DOCUMENTS),
        "both ways": Mask(DOCUMENTS, DOCUMENTS, causal=False),
        "window": Mask(DOCUMENTS, DOCUMENTS, window=2),
        "prompt both ways": Mask(DOCUMENTS, DOCUMENTS, given=given),
        "prefix": Mask(DOCUMENTS, DOCUMENTS).with_prefix(SLOT_DOCUMENTS),
        "prefix since": Mask(DOCUMENTS, DOCUMENTS, window=3, given=given).with_prefix(SLOT_DOCUMENTS, SINCE),
        "without causality, since": Mask(DOCUMENTS, DOCUMENTS, causal=False).with_prefix(SLOT_DOCUMENTS, SINCE),
        "one document": Mask(torch.zeros(2, 8), torch.zeros(2, 8), plain=True),
        "after a cache": Mask(DOCUMENTS[:, 5:], DOCUMENTS, start=5),
    }


@pytest.fixture(params=["as it is", pytest.param("compiled", marks=pytest.mark.conformance)])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """FlexAttention as it is in eager mode, or compiled, as the library has it."""
    if request.param == "as it is":
        monkeypatch.setattr(attention_flex, "_kernel", lambda: flex_attention)
    return str(request.param)


@pytest.mark.usefixtures("kernel")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("what", masks())
@torch.no_grad()
def test_flex_equals_attention_by_hand(what: str) -> None:
    mask = masks()[what]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(*mask.query_documents.shape, 4, 16, generator=generator).transpose(1, 2)
    key, value = (torch.randn(2, 2, mask.allowed.shape[-1], 16, generator=generator) for _ in range(2))
    found = attend(query, key, value, mask=mask, backend="flex")
    sees_something = mask.allowed.any(-1)[:, None, :, None]  # what sees nothing is padding's, and no number
    expected = attention_by_hand(query, key, value, mask.allowed)
    torch.testing.assert_close(found.where(sees_something, 0), expected.where(sees_something, 0))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("decoder", ["vanilla", "free", "gaussian"])
def test_a_model_says_the_same_by_flex(decoder: str, kernel: str) -> None:
    """Packed rows, encoder and prefixes among them, and with its blocks compiled."""
    sites = "document" if decoder == "gaussian" else "token"
    plain, flex = (build(small_config(decoder, granularity=sites, attention=how), seed=0).eval() for how in ("sdpa", "flex"))
    if kernel == "compiled":
        compile_blocks(flex)
    batch = pack([[[1, 2, 3, 4], [5, 6, 7]], [[8, 9], [10, 11, 12, 13, 14]]])
    noise = Noise.keyed(0, range(len(batch.inputs)))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = []
    for _ in range(3):
        with torch.no_grad():
            ours, theirs = (model.loss(batch, step=0, noise=noise) for model in (plain, flex))
        torch.testing.assert_close(theirs.total, ours.total)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1, "a new mask is no new graph"
    with pytest.raises(UserError, match="no backward pass on a CPU"):
        flex.loss(batch, step=0, noise=noise)


def test_shortcut_for_single_documents_is_taken_only_for_them() -> None:
    assert Mask(torch.zeros(1, 3), torch.zeros(1, 3), plain=True).simple
    assert not Mask(DOCUMENTS, DOCUMENTS).simple
    assert not Mask(torch.zeros(1, 3), torch.zeros(1, 3), plain=True, window=2).simple


def test_named_backend_says_why_it_cannot_serve() -> None:
    model = build(small_config("vanilla", attention="xformers"))
    with pytest.raises(UserError, match=r"CUDA only.*sdpa"):
        model.hidden(model.context(Batch.of([[1, 2, 3]])), None)
    cuda = torch.device("cuda")
    plain = Mask(torch.zeros(1, 1), torch.zeros(1, 4), plain=True, start=3)
    assert refusal(plain, device=cuda, columns=4) is None
    holes = Mask(torch.zeros(1, 1), torch.tensor([[0, -1, 0, 0]]), start=3)
    assert "equal length" in str(refusal(holes, device=cuda, columns=4))
    assert "prefix" in str(refusal(plain.with_prefix(torch.zeros(1, 2)), device=cuda, columns=4))


def test_an_xformers_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlm.backbone.attention_xformers.refusal", lambda *_, **__: None)  # on the CPU it has none
    model = build(small_config("vanilla", attention="xformers"))
    with pytest.raises(UserError, match=r"no kernel.*sdpa"):
        model.hidden(model.context(Batch.of([[1, 2, 3]])), None)


def _xformers_computes() -> bool:
    """Whether the xformers that is installed was built for this torch and a GPU is here."""
    from xformers.ops import fmha

    return torch.cuda.is_available() and any(operator.is_available() for operator in fmha.ALL_FW_OPS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 30])
def test_flex_equals_sdpa_on_cuda_and_so_do_its_gradients(window: int | None) -> None:
    documents = torch.arange(200, device="cuda").expand(2, -1) // 70
    parts = [torch.randn(2, heads, 200, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for heads in (4, 2, 2)]
    found, gradients = {}, {}
    for backend in ("sdpa", "flex"):
        found[backend] = attend(*parts, mask=Mask(documents, documents, window=window), backend=backend)
        gradients[backend] = torch.autograd.grad(found[backend].float().square().sum(), parts)
    torch.testing.assert_close(found["flex"], found["sdpa"], atol=2e-2, rtol=2e-2)
    for flex, sdpa in zip(gradients["flex"], gradients["sdpa"], strict=True):
        torch.testing.assert_close(flex, sdpa, atol=1e-1, rtol=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [True, False])
def test_xformers_equals_sdpa_on_cuda(causal: bool) -> None:
    if not _xformers_computes():
        pytest.skip("needs a CUDA device, and an xformers built for this torch")
    documents = DOCUMENTS.cuda()
    query = torch.randn(2, 4, 8, 64, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(2, 2, 8, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    mask = Mask(documents, documents, causal=causal)
    ours = attend(query, key, value, mask=mask, backend="xformers")
    torch.testing.assert_close(ours, attend(query, key, value, mask=mask), atol=2e-2, rtol=2e-2)
