"""latentlm: latent-conditioned decoders, language models p(text | z) with a latent z learned without supervision.

    from latentlm import zoo
    model = zoo.load("free-tiny")
    model.generate(["def "], max_tokens=40)

Start reading at `latentlm.interface` (the contracts), then `latentlm.composed` (a backbone with four sockets). Importing this
package imports no plugin and nothing heavy.
"""

__version__ = "0.1.0"
