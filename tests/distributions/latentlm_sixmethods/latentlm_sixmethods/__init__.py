"""Six small plugins, one module and one entry point each, and the few parts that they share.

    topics         a prior of token bits that reads a document's vector          `above`
    energy         a prior known up to a constant (LEBM)                         Distribution.normalised = False
    codebook       a codebook that follows its codes by moving averages (VQ-VAE) Part.advance
    paragraphs     a granularity of one's own, filled in from the tokenizer      Granularity.fill, lookback
    experts        feed-forwards chosen by z                                     the slot `feed_forward`
    chunk_tokens   latent tokens for each chunk                                  Prefix.since
    sites          a Gaussian read off each site, a vector added to each site    (shared)
"""
