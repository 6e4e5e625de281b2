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

from latentlm.interface.batches import PADDING, Batch, Context, site_mask
from latentlm.interface.conditions import SLOTS, BlockCondition, Condition, Cross, Prefix, ValueMap
from latentlm.interface.decoder import LatentDecoder, Latents, Loss, State
from latentlm.interface.distributions import Bits, Codes, Distribution, Gaussian, Latent, code_bits, sampled_kl
from latentlm.interface.generation import Finish, Generation, Given, OnToken
from latentlm.interface.noise import Noise
from latentlm.interface.parts import (
    CONTRACT_VERSION,
    Encoder,
    Injection,
    KLSchedule,
    Objective,
    Part,
    Prior,
    Shape,
    Sockets,
)
from latentlm.interface.sites import assign_sites, begins_site, chunk_length

__all__ = [
    "CONTRACT_VERSION", "PADDING", "SLOTS", "Batch", "Bits", "BlockCondition", "Codes", "Condition", "Context", "Cross",
    "Distribution", "Encoder", "Finish", "Gaussian", "Generation", "Given", "Injection", "KLSchedule", "Latent",
    "LatentDecoder", "Latents", "Loss", "Noise", "Objective", "OnToken", "Part", "Prefix", "Prior", "Shape",
    "Sockets", "State", "ValueMap", "assign_sites", "begins_site", "chunk_length", "code_bits", "sampled_kl", "site_mask",
]  # fmt: skip
