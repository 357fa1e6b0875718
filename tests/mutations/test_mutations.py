"""The lists of mutations fit the code (whether tests notice them is run.py's to find out; that takes many minutes)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations.run import ROOT, Mutation, load_mutations

MUTATIONS = load_mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.group}: {m.what}")
def test_the_text_to_break_is_there_once_and_the_broken_file_compiles(mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.before) == 1 and mutation.before != mutation.after
    if mutation.file.endswith(".py"):
        compile(text.replace(mutation.before, mutation.after), mutation.file, "exec")
    assert all((ROOT / test).exists() for test in mutation.tests)


def test_there_are_at_least_forty_and_none_is_listed_twice():
    assert len(MUTATIONS) >= 40
    assert len({(m.file, m.before, m.after) for m in MUTATIONS}) == len(MUTATIONS)


def test_a_mutation_that_does_not_fit_is_refused(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    with pytest.raises(ValueError, match="occurs 2 times"):
        Mutation("some", "doubled", "a.py", "x = 1", "x = 2", ()).apply(tmp_path)
