"""The log-mass of a tail at any temperature, from a few at which it was measured.

With l_i the log-probabilities of a target's tail, K(b) = log sum_i exp(b l_i) is its log-mass at temperature
1/b: a cumulant generating function, so convex and smooth in b. A codec stores K at a few b, and with it, if
it is told to, the slope K'(b) = sum_i l_i exp(b l_i) / sum_i exp(b l_i), the tail's mean log-probability at
that temperature. Between two neighbours a and b, h apart, convexity alone says

    tangents at a and b  <=  K  <=  chord from a to b,

and the cubic that has both values and both slopes (Hermite's) is off by at most h^4/384 times the greatest
fourth derivative, which is far less. Where it leaves the bounds it is clipped to them, so they bound its
error.

Written with operators that NumPy arrays and torch tensors share; knows neither, nor how the numbers are
stored.
"""

from __future__ import annotations

from math import isclose
from typing import Any, Generic, TypeVar

A = TypeVar("A")

FLOOR = -1e38
"""Stands for the log-mass of no tail where two such are subtracted."""


class MeasuredTail(Generic[A]):
    """What targets with a measured tail share. A is their kind of array, [N, betas] stored, [N] returned."""

    betas: Any
    tail_log_mass: Any
    tail_slope: Any

    def tail_log_mass_at(self, beta: float) -> A:
        """The tail's log-mass at temperature 1/beta, [N]; -inf where there is no tail.

        As stored at a stored beta, interpolated between two if there are slopes; `tail_error_at` bounds its
        error. Raises ValueError for any other beta.
        """
        column, between = self._place(beta)
        if not between:
            stored: A = self.tail_log_mass[:, column]
            return stored
        (a, b), mass, slope = self._around(column)
        h, t = b - a, (beta - a) / (b - a)
        cubic = (1 + 2 * t) * (1 - t) ** 2 * mass[0] + t**2 * (3 - 2 * t) * mass[1]
        cubic = cubic + h * t * (1 - t) * ((1 - t) * slope[0] - t * slope[1])
        clipped: A = cubic.clip(*self.tail_bounds_at(beta))
        return clipped

    def tail_bounds_at(self, beta: float) -> tuple[A, A]:
        """What the tail's log-mass at temperature 1/beta lies between, but for the stored numbers' rounding:
        the higher tangent and the chord, [N] each. Raises ValueError as `tail_log_mass_at`.
        """
        column, between = self._place(beta)
        if not between:
            return self.tail_log_mass[:, column], self.tail_log_mass[:, column]
        (a, b), mass, slope = self._around(column)
        t = (beta - a) / (b - a)
        left, right = mass[0] + (beta - a) * slope[0], mass[1] - (b - beta) * slope[1]
        return left.clip(right), (1 - t) * mass[0] + t * mass[1]

    def tail_error_at(self, beta: float) -> A:
        """How far `tail_log_mass_at` can be off, nats [N], but for the stored numbers' rounding: the distance
        to the farther bound; 0 at a stored beta, and where there is no tail.
        """
        bounds: Any = (self.tail_log_mass_at(beta), *self.tail_bounds_at(beta))
        value, low, high = (each.clip(FLOOR) for each in bounds)
        error: A = (high - value).clip(value - low)
        return error

    def require(self, beta: float) -> None:
        """Raises ValueError unless the tail's log-mass at temperature 1/beta is known."""
        self._place(beta)

    def _place(self, beta: float) -> tuple[int, bool]:
        """The column of a stored beta and false; or the last column below it and true."""
        for column, known in enumerate(self.betas):
            if isclose(beta, known, rel_tol=1e-6):
                return column, False
        if self.tail_slope is not None and self.betas[0] < beta < self.betas[-1]:
            return sum(known < beta for known in self.betas) - 1, True
        stored = ", ".join(f"{1 / known:g}" for known in self.betas)
        between = ", and between" if self.tail_slope is not None else ""
        raise ValueError(
            f"the tail's mass was not stored at temperature {1 / beta:g} (stored: {stored}{between}); "
            "choose one of these, or label with that beta"
        )

    def _around(self, column: int) -> tuple[Any, Any, Any]:
        """A column and the next one: their betas, log-masses and slopes."""
        pair = (column, column + 1)
        return (
            [self.betas[i] for i in pair],
            [self.tail_log_mass[:, i] for i in pair],
            [self.tail_slope[:, i] for i in pair],
        )
