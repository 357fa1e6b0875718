"""Comparing losses: many runs at once, their records, one report."""
