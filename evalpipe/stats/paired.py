"""Two raters of the same records, each right or wrong: is one of them right more often?"""

from __future__ import annotations

from math import comb


def mcnemar_p(lost: int, won: int) -> float:
    """The two-sided exact p of McNemar's test (1947, Psychometrika 12), by the binomial distribution.

    Records on which both are right, or both wrong, say nothing: of the others, half would go each way by chance.

    Args:
        lost: records on which only the first rater is right.
        won: records on which only the second is.
    """
    n, fewer = lost + won, min(lost, won)
    if n == 0:
        return 1.0
    either: int = 2 * sum(comb(n, k) for k in range(fewer + 1))
    return min(1.0, either / (1 << n))
