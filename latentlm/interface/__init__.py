"""The contracts of latentlm: what a latent decoder is, and what its parts owe each other.

A latent decoder is a language model p(x|z) with a latent z learned by a variational procedure. It has four sockets:

    Encoder      who infers z           q(z | x)
    Prior        where z comes from     p(z | x before)
    Injection    where z enters         latent -> Condition on the backbone's blocks
    KLSchedule   what z costs           KL -> penalty in nats per target token

Training, generation, likelihood, zoo and evaluation talk to `LatentDecoder` only.

Legend: B rows, T tokens, D width, S latent sites, E event dimensions of a site, K latent samples per row, V vocabulary,
R = B*K latent rows (row b*K + k is sample k of context row b), M prefix slots, L blocks, H heads, Hkv key/value heads,
dh head width.

Indices. Position t consumes token x_t and predicts x_{t+1}. A latent *site* conditions one position (granularity `token`), n
consecutive positions of a document (`chunk:n`) or a whole document (`document`). Tap k is the residual stream entering block k;
tap 0 is the embedding.
"""

from latentlm.interface.batches import PADDING, Batch, Context, SiteMap, Stems, one_document_a_row, site_mask
from latentlm.interface.conditions import SLOTS, BlockCondition, Condition, Cross, Prefix, ValueMap, listed, merged, owned
from latentlm.interface.decoder import (
    LatentDecoder,
    LatentInfo,
    LatentSource,
    StepSource,
)
from latentlm.interface.distributions import (
    Bits,
    Categorical,
    Codes,
    Distribution,
    Gaussian,
    Latent,
    Point,
    Product,
    code_bits,
    sampled_kl,
)
from latentlm.interface.generation import CompiledSteps, Finish, Generation, Given, Met, OnToken, State, Wanted
from latentlm.interface.granularity import (
    Granularity,
    assign_sites,
    begins_now,
    count_sites,
    from_previous,
    parse_granularity,
    recent_tokens,
    site_starts,
)
from latentlm.interface.latents import Latents, by_name, noise_of, only
from latentlm.interface.losses import LatentLoss, Loss
from latentlm.interface.noise import Noise
from latentlm.interface.parts import (
    CONTRACT_VERSION,
    Encoder,
    Injection,
    KLSchedule,
    LatentShape,
    Objective,
    Operations,
    Part,
    Parts,
    Prior,
    Shape,
    Sockets,
)
from latentlm.interface.ranks import gathered, summed
from latentlm.interface.token_sets import TokenIds, TokenSet, pack_ids

__all__ = [
    "CONTRACT_VERSION",
    "PADDING",
    "SLOTS",
    "Batch",
    "Bits",
    "BlockCondition",
    "Categorical",
    "Codes",
    "CompiledSteps",
    "Condition",
    "Context",
    "Cross",
    "Distribution",
    "Encoder",
    "Finish",
    "Gaussian",
    "Generation",
    "Given",
    "Granularity",
    "Injection",
    "KLSchedule",
    "Latent",
    "LatentDecoder",
    "LatentInfo",
    "LatentLoss",
    "LatentShape",
    "LatentSource",
    "Latents",
    "Loss",
    "Met",
    "Noise",
    "Objective",
    "OnToken",
    "Operations",
    "Part",
    "Parts",
    "Point",
    "Prefix",
    "Prior",
    "Product",
    "Shape",
    "SiteMap",
    "Sockets",
    "State",
    "Stems",
    "StepSource",
    "TokenIds",
    "TokenSet",
    "ValueMap",
    "Wanted",
    "assign_sites",
    "begins_now",
    "by_name",
    "code_bits",
    "count_sites",
    "from_previous",
    "gathered",
    "listed",
    "merged",
    "noise_of",
    "one_document_a_row",
    "only",
    "owned",
    "pack_ids",
    "parse_granularity",
    "recent_tokens",
    "sampled_kl",
    "site_mask",
    "site_starts",
    "summed",
]  # fmt: skip
