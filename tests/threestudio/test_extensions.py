from __future__ import annotations

import sys

from threestudio import find
from threestudio.extensions import describe, failures, load_extensions

CLASS = "from threestudio import register\n@register('{name}')\nclass Part:\n    pass\n"


def test_packages_with_dashes_and_single_files_load(tmp_path):
    package = tmp_path / "some-pack"
    package.mkdir()
    (package / "__init__.py").write_text("from . import inner\n")
    (package / "inner.py").write_text(CLASS.format(name="ext-test-package"))
    (tmp_path / "single_file_ext.py").write_text(CLASS.format(name="ext-test-file"))
    loaded = load_extensions(tmp_path)
    assert [extension.name for extension in loaded] == ["single_file_ext", "some-pack"]
    assert all(extension.cause is None for extension in loaded)
    assert find("ext-test-package").__module__ == "some-pack.inner"
    assert find("ext-test-file").__module__ == "single_file_ext"


def test_disabled_hidden_and_foreign_entries_are_skipped(tmp_path):
    for name in ("off_disabled", ".hidden", "__pycache__", "data"):
        (tmp_path / name).mkdir()
        if name != "data":
            (tmp_path / name / "__init__.py").write_text("raise RuntimeError('must not run')\n")
    (tmp_path / "off_disabled.py").write_text("raise RuntimeError('must not run')\n")
    (tmp_path / "notes.txt").write_text("hello")
    assert load_extensions(tmp_path) == []


def test_a_broken_extension_does_not_stop_the_others(tmp_path):
    (tmp_path / "a_broken_ext.py").write_text(CLASS.format(name="ext-test-before") + "\nraise OSError('no weights')\n")
    (tmp_path / "b_syntax_ext.py").write_text("def broken(:\n")
    (tmp_path / "c_fine_ext.py").write_text(CLASS.format(name="ext-test-fine"))
    loaded = load_extensions(tmp_path)
    assert [extension.cause is None for extension in loaded] == [False, False, True]
    assert "OSError: no weights" in loaded[0].cause and "a_broken_ext.py:6" in loaded[0].cause
    assert "b_syntax_ext.py" in loaded[1].cause
    assert "Traceback" in loaded[0].details
    assert find("ext-test-before") and find("ext-test-fine")
    assert loaded[0] in failures() and loaded[2] not in failures()
    assert "IMPORT FAILED" in describe(loaded)


def test_a_folder_of_python_files_without_init_is_a_failure(tmp_path):
    (tmp_path / "no_init").mkdir()
    (tmp_path / "no_init" / "code.py").write_text("")
    (failure,) = load_extensions(tmp_path)
    assert "__init__.py does not exist" in failure.cause


def test_an_extension_is_imported_once(tmp_path):
    (tmp_path / "counting_ext.py").write_text("import sys\nsys.counting = getattr(sys, 'counting', 0) + 1\n")
    try:
        load_extensions(tmp_path)
        load_extensions(tmp_path)
        assert sys.counting == 1
    finally:
        del sys.counting


def test_an_extension_cannot_take_the_name_of_a_loaded_module(tmp_path):
    (tmp_path / "json.py").write_text("")
    (failure,) = load_extensions(tmp_path)
    assert "'json' is loaded already" in failure.cause


def test_a_missing_folder_holds_no_extensions(tmp_path):
    assert load_extensions(tmp_path / "nowhere") == []
