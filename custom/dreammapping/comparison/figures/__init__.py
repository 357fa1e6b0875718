"""The paper's figures that are measurements and not comparisons of runs; the others are plans (`comparison/plans`)."""
