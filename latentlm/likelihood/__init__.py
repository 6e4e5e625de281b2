"""Honest likelihoods of latent decoders: numbers that are log-probabilities, with their standard errors.

    method        what it estimates                                                  by
    operational   log p_gen(y | c), the density of what `generate` samples: latents  importance-weighted mean
                  of the context from the encoder run on the context alone, later
                  ones from the prior
    iwae          log E_prior p(y | c, z), from below (Burda et al. 2016)            the same, every latent weighted
    prior         the same                                                           mean over prior samples
    elbo          a lower bound of it that does not converge to it                   mean of logs minus the KL
    smc           operational of a continuation, iwae of a text                      particle filters
    auto          the same                                                           weights, then filters where they
                                                                                     settle nothing
    joint         log p(c, y) after the first token, by iwae: for ranking the        as iwae
                  options of one question, not a score of y

All but `elbo` are one primitive, `log_weights`, with different targets and proposals. Nothing here ever conditions a target on
latents that have seen it without dividing by the density that they were drawn from. Operational scores do not chain:
p(y1 y2 | c) is not p(y1 | c) p(y2 | c, y1), because the longer context is encoded anew; never add such pieces up.

    score_continuations(model, [(context, continuation)])     multiple choice
    score_texts(model, [tokens])                              held-out text, in disjoint windows
    bits_per_byte(scores, sizes), paired_difference(...)      tables
    elbo(model, batch, noise)                                 the bound of a training batch
"""

from latentlm.likelihood.bound import Bound, bound_of, elbo
from latentlm.likelihood.results import EXACT, METHODS, Method, Score, log_mean_exp
from latentlm.likelihood.scoring import fit_to_context, score_continuations, score_texts, windows
from latentlm.likelihood.summary import Estimate, bits_per_byte, paired_difference
from latentlm.likelihood.weights import log_weights

__all__ = [
    "EXACT",
    "METHODS",
    "Bound",
    "Estimate",
    "Method",
    "Score",
    "bits_per_byte",
    "bound_of",
    "elbo",
    "fit_to_context",
    "log_mean_exp",
    "log_weights",
    "paired_difference",
    "score_continuations",
    "score_texts",
    "windows",
]
