"""Several teachers' stores of one corpus as one: their heads side by side, or each head averaged."""

from pipeline.merge.merger import Merged, merge

__all__ = ["Merged", "merge"]
