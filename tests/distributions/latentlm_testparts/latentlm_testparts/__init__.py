"""Two latent decoders that are not the Free Transformer, written against the public contracts alone.

    decoder     document_prefix   one Gaussian vector per document, as a key/value prefix of every block (Optimus' "memory")
                chunk_code        one code of bits per chunk of tokens, with a prior learned from the trunk
    encoder     pooled_gaussian, chunk_bits, and fitted_gaussian, which has no network
    prior       unit_normal, first_token_bits, recurrent_bits
    injection   prefix, chunk_code
"""

from __future__ import annotations

from latentlm.plugins import hookimpl
from latentlm_testparts.chunk import ChunkBits, ChunkInjection
from latentlm_testparts.decoders import ChunkCode, DocumentPrefix
from latentlm_testparts.document import PooledGaussian, PrefixInjection, UnitNormal
from latentlm_testparts.fitted import FittedGaussian
from latentlm_testparts.priors import FirstTokenBits, RecurrentBits

latentlm_contract = 2


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {
        "decoder": {"document_prefix": DocumentPrefix, "chunk_code": ChunkCode},
        "encoder": {"pooled_gaussian": PooledGaussian, "chunk_bits": ChunkBits, "fitted_gaussian": FittedGaussian},
        "prior": {"unit_normal": UnitNormal, "first_token_bits": FirstTokenBits, "recurrent_bits": RecurrentBits},
        "injection": {"prefix": PrefixInjection, "chunk_code": ChunkInjection},
    }
