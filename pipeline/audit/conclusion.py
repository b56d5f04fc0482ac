"""What only all rows of a head together show: a shift, a bias, exchanged classes, another teacher.

It knows what `comparison` gathered, and puts it into findings and a result. Of two findings with one cause
only the one that names it is made.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.audit.averages import Bias
from pipeline.audit.comparison import HeadComparison
from pipeline.audit.findings import Finding, Findings, Result
from pipeline.targets.shift import Shift


def conclude(heads: list[HeadComparison], findings: Findings) -> list[Result]:
    """A result for each head; what is wrong goes to the findings."""
    tests = sum(head.tests for head in heads)
    return [_head(head, tests, findings) for head in heads]


def _head(head: HeadComparison, tests: int, findings: Findings) -> Result:
    name, shift, biases = head.head.name, head.shift(tests), head.averages.biases(tests)
    findings.checked["place"] += shift.groups
    findings.checked["bias"] += head.targets if biases else 0
    causes = list(_causes(head, shift, tests))
    for check, reason in causes or _symptoms(head, biases):
        findings.add(Finding(check, reason, head=name))
    return Result(
        name,
        head.targets,
        head.equal,
        head.differing,
        head.worst,
        shift if shift.groups else None,
        biases,
    )


def _causes(head: HeadComparison, shift: Shift, tests: int) -> Iterator[tuple[str, str]]:
    """Check and sentence of what explains all differences."""
    if shift.verdict is not None:
        before = shift.verdict == "before"
        yield (
            "place",
            f"targets fit the {'previous' if before else 'next'} token better than their own: shifted by one "
            f"(mean log-probability {shift.before if before else shift.after:.3f} against {shift.own:.3f} "
            "nats)",
        )
    if (truncated := head.averages.truncated(tests)) is not None:
        yield "bias", truncated
    if (ids := head.exchanged()) is not None:
        yield "values", f"classes {ids[0]} and {ids[1]} have each other's probability"


def _symptoms(head: HeadComparison, biases: list[Bias]) -> Iterator[tuple[str, str]]:
    """Check and sentence of differences that nothing explains."""
    if wrong := [bias for bias in biases if bias.found]:
        most = max(wrong, key=lambda bias: bias.z)
        yield (
            "bias",
            f'biased: "{most.name}" is off by {most.mean:+.4g} a target, {most.z:.1f} standard deviations '
            f"where {most.limit:.1f} are allowed",
        )
    if head.differing > 0.5 * head.targets:
        misfit = head.misfitting > 0.9 * head.differing
        why = (
            "their likeliest classes are and others are not, as where an approximation misfits"
            if misfit
            else "another teacher, or other weights"
        )
        yield (
            "values",
            f"{head.differing} of {head.targets} targets are not what this teacher says: {why}",
        )
