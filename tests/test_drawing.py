"""Names in pictures."""

import numpy as np
import pytest

from vit_jax_mixer import drawing


def ink(text, size=12):
    return 255 - np.asarray(drawing.line(text, size)).astype(int)


@pytest.mark.parametrize("name", ["café", "猫", "고양이", "кошка", "γάτα"])
def test_names_are_drawn_and_not_as_boxes(name):
    assert ink(name).sum() > 500
    for other in ("????", "\ufffd" * 4, name[::-1] + "x", *(name.replace(c, "\uffff") for c in set(name))):
        assert not np.array_equal(ink(name), ink(other))


def test_one_name_in_two_forms_is_drawn_alike():
    np.testing.assert_array_equal(ink("café"), ink("cafe\u0301"))


@pytest.mark.parametrize(
    ("name", "shown"), [("a\x1bb", r"a\x1bb"), ("caf\udce9", r"caf\xe9"), ("\U000f0000", r"\U000f0000"), ("?", "?")]
)
def test_what_cannot_be_drawn_is_escaped(name, shown):
    np.testing.assert_array_equal(ink(name), ink(shown))


@pytest.mark.skipif(not drawing._of_system("DejaVuSans.ttf", 12), reason="needs a font that joins Arabic letters")
@pytest.mark.parametrize("name", ["\u0627\u0644\u0639", "\u05e9\u05dc\u05d5", "a\u0316b"])
def test_what_joins_or_runs_from_the_right_is_drawn_by_a_font_that_can(name):
    assert ink(name).shape[1] < 40
    assert not np.array_equal(ink(name), ink(name.encode("ascii", "backslashreplace").decode()))
    separate = sum(ink(character).shape[1] for character in name)
    assert ink(name).shape[1] < separate - 2


def test_right_to_left_is_not_drawn_from_the_left(monkeypatch):
    drawing._of_system.cache_clear()
    monkeypatch.setattr(drawing, "_OF_SYSTEMS", ())
    np.testing.assert_array_equal(ink("\u0627\u0644"), ink(r"\u0627\u0644"))


def test_nothing_sticks_out_of_a_line():
    for size in (10, 12, 20):
        strip = ink("Ågjpqy|國Ễ", size)
        assert strip.shape[0] == round(1.5 * size)
        assert not strip[:, [0, -1]].any()
        assert strip[[0, -1]].sum() < 0.04 * strip.sum()


def test_without_fonts_of_opencv_there_is_ascii(monkeypatch):
    monkeypatch.setattr(drawing, "_FONTS", False)
    drawing._has.cache_clear()
    np.testing.assert_array_equal(ink("猫"), ink(r"\u732b"))
    assert ink("cat").sum() > 500
    drawing._has.cache_clear()


def test_long_names_are_cut():
    assert drawing.short("abcdefgh", 8) == "abcdefgh"
    assert drawing.short("abcdefghi", 8) == "abcde..."
