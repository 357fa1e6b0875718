from __future__ import annotations

import pytest

import threestudio
from threestudio import extensions, find, register
from threestudio.errors import RegistryError


@register("registry-test-main")
class Main:
    def who(self):
        return "main"

    def only_main(self):
        return True


@register("registry-test-loud")
class Loud:
    def who(self):
        return "loud " + super().who()


@register("registry-test-polite")
class Polite:
    def who(self):
        return "polite " + super().who()


def test_find_returns_what_was_registered():
    assert find("registry-test-main") is Main
    assert threestudio.__modules__["registry-test-main"] is Main


def test_composites_put_the_mixins_first_and_main_last():
    one = find("registry-test-main:registry-test-loud")
    assert one.__bases__ == (Loud, Main) and one.__name__ == "registry-test-main.registry-test-loud"
    two = find("registry-test-main:registry-test-polite,registry-test-loud")
    assert two.__bases__ == (Polite, Loud, Main)
    assert two().who() == "polite loud main" and two().only_main()


def test_a_composite_is_the_same_class_each_time():
    name = "registry-test-main:registry-test-loud"
    assert isinstance(find(name)(), find(name))


@pytest.mark.parametrize(
    "name", ["registry-test-main:a:b", "registry-test-main:", ":registry-test-loud", "registry-test-main:,"]
)
def test_malformed_composites_are_refused(name):
    with pytest.raises(RegistryError, match="main:sub"):
        find(name)


def test_a_second_class_under_a_name_is_refused_and_the_first_stays():
    with pytest.raises(ValueError, match="registry-test-main.*conflict"):
        register("registry-test-main")(Loud)
    assert find("registry-test-main") is Main
    assert register("registry-test-main")(Main) is Main  # the same class again is no conflict


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(KeyError) as caught:
        find("registry_test_mian")
    assert "registry-test-main" in str(caught.value) and caught.value.is_user_error


def test_an_unknown_name_names_extensions_that_failed(tmp_path):
    folder = tmp_path / "broken-pack"
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import part\n")
    (folder / "part.py").write_text("import no_such_library_anywhere\n")
    extensions.load_extensions(tmp_path)
    with pytest.raises(RegistryError) as caught:
        find("name-of-broken-pack")
    message = str(caught.value)
    assert str(folder) in message and "no_such_library_anywhere" in message and "part.py:1" in message
