"""Latents by name: the values of all latents of a decoder, in order, and settings that are one for all or one for each.

Legend: R latent rows, S sites, E event dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor

from latentlm.config.checking import real, shown
from latentlm.errors import UserError, did_you_mean, unknown_name
from latentlm.interface.distributions import Distribution, Latent
from latentlm.interface.noise import Noise

T = TypeVar("T")


class Latents(Mapping[str, Latent]):
    """The value of each latent by name, in the decoder's order. With a single latent, `value`, `distribution` and `noise` are
    that one's.

    Example::

        latents = Latents({"intent": Latent(torch.zeros(2, 1, 16)), "bits": Latent(torch.ones(2, 5, 8))})
        assert list(latents) == ["intent", "bits"] and latents.rows == 2
    """

    def __init__(self, values: Mapping[str, Latent]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Latent:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(latent.value.shape)}" for name, latent in self.items())
        return f"Latents({shapes})"

    def before(self, name: str) -> Latents:
        """Those that come before one, in order."""
        names = list(self._values)
        return Latents({other: self._values[other] for other in names[: names.index(name)]})

    @property
    def rows(self) -> int:
        """R."""
        assert len(self._values) > 0, "no latents, no rows"
        return next(iter(self._values.values())).value.shape[0]

    @property
    def value(self) -> Tensor:
        """(R, S, E) of the only latent."""
        return only(self._values, 'latents["{}"].value').value

    @property
    def distribution(self) -> Distribution | None:
        """What the only latent was drawn from."""
        return only(self._values, 'latents["{}"].distribution').distribution

    @property
    def noise(self) -> Noise | None:
        """The numbers that the only latent was drawn with."""
        return only(self._values, 'latents["{}"].noise').noise

    def select(self, rows: Tensor) -> Latents:
        """The given rows, in that order; rows may repeat."""
        return Latents({name: latent.select(rows) for name, latent in self.items()})

    def plus(self, name: str, latent: Latent) -> Latents:
        """These and one more, or another value of one."""
        return Latents({**self._values, name: latent})

    @classmethod
    def of(cls, given: Latent | Latents | None, names: Sequence[str]) -> Latents:
        """A latent alone under the name of the decoder's only latent; none for a decoder without."""
        if given is None:
            return cls({})
        if isinstance(given, Latents):
            return given
        if len(names) != 1:
            raise UserError(f"This decoder has the latents {', '.join(names) or 'none'}: give each by name.")
        return cls({names[0]: given})


def only(values: Mapping[str, T], written: str) -> T:
    """The single value of a mapping by latent. Raises UserError where a decoder has several, with how one's is `written`, {}
    standing for its name."""
    if len(values) != 1:
        example = written.format(next(reversed(list(values)), "NAME"))
        raise UserError(f"This decoder has several latents ({', '.join(values)}): ask for one's, for example `{example}`.")
    return next(iter(values.values()))


def by_name(
    given: T | Mapping[str, T],
    names: Sequence[str],
    *,
    default: T,
    what: str,
    words: Sequence[str] = (),
    or_values: bool = False,
) -> dict[str, T]:
    """A setting for each latent, from one value for all or a mapping by name; `default` for what is not named. Raises UserError
    for a name that is no latent, and for a word that is none of `words`, where the setting is a word (`or_values`: or a value).
    """
    for value in (given.values() if isinstance(given, Mapping) else (given,)) if words else ():
        if value not in words if isinstance(value, str) else not or_values:
            listed = ", ".join(f'"{word}"' for word in words) + (" or latent values" if or_values else "")
            raise UserError(f'{what} must be {listed}, not {shown(value)}.{did_you_mean(str(value), words)}')
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    for name in given:
        if name not in names:
            raise unknown_name(f"latent in {what}", str(name), names)
    return {name: cast(Mapping[str, Any], given).get(name, default) for name in names}


def noise_of(noise: Noise, name: str, names: Sequence[str]) -> Noise:
    """What one latent draws from: the noise itself in a decoder of one latent, else a stream of the latent's own, so that
    adding a latent after another does not change the first one's draws."""
    return noise if len(names) == 1 else noise.latent(name)


def prior_temperatures(given: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The temperature of each latent's prior, 1 where none is given. Raises UserError for those that are not positive."""
    found = by_name(given, names, default=1.0, what="prior_temperature")
    return {name: real("prior_temperature", temperature, above=0) for name, temperature in found.items()}
