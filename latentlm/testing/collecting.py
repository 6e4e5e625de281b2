"""The checks as pytest tests.

    test_conformance = latentlm.testing.conformance("gaussian")          one test per check
    class TestMine(latentlm.testing.Conformance): decoder = "gaussian"   the same, as a class

pytest is imported when it is asked for, not before: the kit is part of the library, pytest is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from latentlm.errors import UserError, unknown_name
from latentlm.testing.registry import Check, NotApplicable, chosen, registered
from latentlm.testing.subject import Subject


@dataclass(frozen=True)
class Case:
    """One check of one subject. Calling it is the test."""

    check: Check
    subject: Subject
    reason: str | None
    """Why it is expected to fail; None where it is not."""

    def __call__(self) -> None:
        """Pass, fail, skip with the reason why the check does not apply, or fail as expected. An expected failure that does not
        happen is a failure."""
        pytest, missing = _pytest(), None
        try:
            self.check(self.subject)
        except NotApplicable as reason:
            missing = reason
        except Exception as error:
            if self.reason is None or isinstance(error, UserError):  # a setting that is none is no expected failure
                raise
            pytest.xfail(self.reason)
        if self.reason is not None:
            instead = "passes" if missing is None else f"does not apply ({missing})"
            pytest.fail(f"{self.check.name} is expected to fail ({self.reason}) but {instead}: take it off.", pytrace=False)
        if missing is not None:
            pytest.skip(f"does not apply: {missing}")


def cases(
    decoder: str,
    *,
    model: Mapping[str, Any] | None = None,
    exact: Mapping[str, Any] | None = None,
    checks: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    label: str | None = None,
) -> list[Any]:
    """The arguments of a test over cases, each with an id of its own, for whoever parametrises by hand; see `conformance`."""
    wanted, expected = chosen(checks), dict(expected_failures or {})
    for name, reason in expected.items():
        if name not in registered():
            raise unknown_name("check", name, registered(), remedy="(in expected_failures)")
        if not isinstance(reason, str) or not reason.strip():
            raise UserError(f'expected_failures needs a reason for "{name}": say why it fails.')
    subject = Subject(decoder, model=model, exact=exact)
    return [
        _pytest().param(Case(made, subject, expected.get(name)), id=f"{label or decoder}-{name}")
        for name, made in wanted.items()
    ]


def conformance(
    decoder: str,
    *,
    model: Mapping[str, Any] | None = None,
    exact: Mapping[str, Any] | None = None,
    checks: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    label: str | None = None,
) -> Callable[..., None]:
    """A test of every check for a registered decoder, to be bound to a name that pytest collects.

    decoder            its name; a part is tested in a decoder that it is for: `conformance("free", model={"encoder": "mine"})`
    model              settings as under `model:` in a recipe, over the kit's structural sizes (see `latentlm.testing.Subject`);
                       a decoder without latents says `{"event_dims": 0}`
    exact              the same for the enumerable decoder, which otherwise has the parts of `model`
    checks             names of checks or groups (`latentlm.testing.CHECKS`, `GROUPS`); default: all
    expected_failures  check -> why it fails; one that passes after all is a failure
    label              what test ids begin with; default: the decoder's name

    Raises UnknownNameError for checks that do not exist, UserError without pytest.
    """
    found = cases(
        decoder, model=model, exact=exact, checks=checks, expected_failures=expected_failures, label=label
    )

    def test_conformance(case: Case) -> None:
        case()

    made: Callable[..., None] = _pytest().mark.parametrize("case", found)(test_conformance)
    return made


class Conformance:
    """`conformance` as a class: derive, name the decoder, and pytest collects the subclass (called Test...)."""

    decoder: ClassVar[str]
    model: ClassVar[Mapping[str, Any] | None] = None
    exact: ClassVar[Mapping[str, Any] | None] = None
    checks: ClassVar[Iterable[str] | None] = None
    expected_failures: ClassVar[Mapping[str, str] | None] = None

    def __init_subclass__(cls) -> None:
        """The settings are checked where the class is written."""
        test = conformance(
            cls.decoder, model=cls.model, exact=cls.exact, checks=cls.checks, expected_failures=cls.expected_failures
        )
        cls.test_conformance = staticmethod(test)  # type: ignore[attr-defined]


def _pytest() -> Any:
    """pytest, or how to get it. Raises UserError."""
    try:
        import pytest
    except ModuleNotFoundError:
        raise UserError(
            "Conformance tests are run by pytest, which is not installed: pip install pytest. "
            "Without it, call the checks yourself: latentlm.testing.CHECKS[name](latentlm.testing.Subject(decoder))."
        ) from None
    return pytest
