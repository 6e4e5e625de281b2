"""All broken parts by socket and name, and how a process offers them."""

from __future__ import annotations

from conformance.broken import averages, decoders, encoders, energies, granularities, priors, right
from latentlm import plugins

PARTS: dict[str, dict[str, type]] = {
    "encoder": {
        "right_encoder": right.WindowBits,
        "no_positions": encoders.NoPositions,
        "ignores_documents": encoders.IgnoresDocuments,
        "ignores_padding": encoders.IgnoresPadding,
        "says_causal": encoders.SaysCausal,
        "cuts_gradient": encoders.CutsGradient,
        "leaves_unset": encoders.LeavesUnset,
        "takes_anything": encoders.TakesAnything,
        "summed_over_sites": encoders.with_family(encoders.SummedOverSites),
        "batch_mean_kl": encoders.with_family(encoders.BatchMeanKL),
        "global_draws": encoders.with_family(encoders.GlobalDraws),
        "wrong_density": encoders.with_family(encoders.WrongDensity),
        "negative_kl": encoders.with_family(encoders.NegativeKL),
        "real_buffer": encoders.RealBuffer,
        "fits_nothing": encoders.FitsNothing,
        "deaf_encoder": encoders.DeafEncoder,
        "right_average": averages.Averaging,
        "moves_in_loss": averages.MovesInLoss,
        "never_empties": averages.NeverEmpties,
        "last_batch_alone": averages.LastBatchAlone,
    },
    "prior": {
        "right_prior": right.LearnedBits,
        "peeking_prior": priors.PeekingPrior,
        "other_step": priors.OtherStep,
        "hidden_memory": priors.HiddenMemory,
        "unseeded_prior": priors.UnseededPrior,
        "priced_prior": priors.PricedPrior,
        "undeclared_tap": priors.UndeclaredTap,
        "no_bits": priors.NoBits,
        "right_above": priors.ReadsAbove,
        "peeks_above": priors.PeeksAbove,
        "deaf_to_above": priors.DeafToAbove,
        "right_energy": energies.EnergyPrior,
        "silent_energy": energies.SilentEnergyPrior,
    },
    "injection": {
        "right_injection": right.LinearBits,
        "detached_injection": priors.DetachedInjection,
        "early_site": priors.EarlySite,
        "late_site": priors.LateSite,
        "unused_weight": priors.UnusedWeight,
        "offset": priors.Offset,
        "undeclared_slot": priors.UndeclaredSlot,
        "undeclared_block": priors.UndeclaredBlock,
        "ignores_sites": priors.IgnoresSites,
        "other_compiled": priors.OtherCompiled,
    },
    "decoder": {
        "right": right.Linear,
        "not_causal": decoders.NotCausal,
        "leaking_scores": decoders.LeakingScores,
        "trunk_reads_z": decoders.TrunkReadsZ,
        "stale_cache": decoders.StaleCache,
        "forks_share": decoders.ForksShare,
        "resamples_in_place": decoders.ResamplesInPlace,
        "loses_state": decoders.LosesState,
        "dropout": decoders.Dropout,
        "completes_twice": decoders.CompletesTwice,
        "wrong_rows": decoders.WrongRows,
        "spare": decoders.Spare,
        "ascends": decoders.Ascends,
        "encoderless": decoders.Encoderless,
    },
    "granularity": {
        "right_pairs": granularities.Pairs,
        "looks_ahead": granularities.LooksAhead,
        "short_lookback": granularities.ShortLookback,
        "across_documents": granularities.AcrossDocuments,
        "from_the_row": granularities.FromTheRow,
        "not_at_first": granularities.NotAtFirst,
    },
    "kl_schedule": {"forgets_state": decoders.ForgetsState},
}


def register() -> None:
    """Offer them all in this process."""
    for socket, parts in PARTS.items():
        for name, part in parts.items():
            plugins.register(socket, name, part)


def unregister() -> None:
    """Take them back."""
    for socket, parts in PARTS.items():
        for name in parts:
            plugins.unregister(socket, name)
