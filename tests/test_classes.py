"""Two lists of classes that meet."""

import pytest

from vit_jax_mixer import classes
from vit_jax_mixer.errors import UserError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("10", 10),
        ("0010", 10),
        (" 10", 10),
        ("10.0", 10),
        ("-1", -1),
        ("٣", 3),
        ("1.5", None),
        ("1e3", None),
        ("", None),
    ],
)
def test_whole_numbers_have_a_value(name, value):
    assert classes.number(name) == value
    assert classes.number("9" * 5000) is None  # Python would refuse to read it


@pytest.mark.parametrize(
    ("names", "known", "places"),
    [
        (("b",), ("a", "b"), [1]),
        (("c", "a"), ("a", "b", "c"), [2, 0]),
        (("2", "10"), ("10", "1", "2"), [2, 0]),
        (("01", "1"), ("1", "01"), [1, 0]),  # the very name comes first
        (("b", "b"), ("b", "b"), [0, 1]),
        ((), (), []),
    ],
)
def test_classes_are_found_by_name(names, known, places):
    assert classes.match(names, known, "x", "y's").tolist() == places


@pytest.mark.parametrize(
    ("names", "known", "message"),
    [
        (("a", "c"), ("a", "b"), r"^x: 1 of its 2 classes are none of y's 2, 'c'; rename .* out\. Known: a, b\.$"),
        (("A",), ("a",), "none of y's 1, 'A'"),
        (("a ",), ("b", "a"), r"; 'a ' and 'a' differ in blanks at the ends alone\."),
        (("caf\xe9",), ("cafe\u0301",), r"'caf\\xe9' and 'cafe\\u0301' differ in Unicode form alone"),
        (("2", "02"), ("1", "2"), r"'2' and '02' are both y's '2'; join"),
        (("a",), ("a", "a"), "none of"),
    ],
)
def test_classes_that_are_not_there_are_named(names, known, message):
    with pytest.raises(UserError, match=message):
        classes.match(names, known, "x", "y's")


@pytest.mark.parametrize(
    ("name", "other", "what"),
    [
        ("cat", "cat ", "blanks at the ends"),
        ("cat", "\u3000cat", "blanks at the ends"),
        ("cat", "\ufeffcat", "Unicode form"),
        ("caf\xe9", "cafe\u0301", "Unicode form"),
        ("A", "\uff21", "Unicode form"),
        ("\u30ac", "\uff76\uff9e", "Unicode form"),  # half a width
    ],
)
def test_classes_that_look_the_same_are_told(name, other, what):
    with pytest.raises(UserError, match=f"^d: the classes .* differ in {what} alone; join them, or rename one"):
        classes.check_distinct(["x", name, "y", other], "d")
    assert classes.changed([name], [other]).endswith(f"differ in {what} alone")


def test_classes_that_look_different_are_not():
    classes.check_distinct(["cat", "Cat", "2", "\xb2", "02", "a b", "a  b", "\udcff", "\udcfe"], "d")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("ab", "ab", ""),
        ("ab", "ba", "the classes stand in another order: number 0 was 'a' and is 'b'"),
        ("ab", "abb", "the classes stand in another order: number 2 was nothing and is 'b'"),
        ("ab", "abc", "the classes differ: 'c' is new"),
        ("abcde", "e", "the classes differ: 'a', 'b', 'c', ... are gone"),
        ("ab", "xby", "the classes differ: 'a' is gone and 'x', 'y' are new"),
        ("", "a", "the classes differ: 'a' is new"),
    ],
)
def test_what_changed_is_said(before, now, said):
    assert classes.changed(tuple(before), list(now)) == said
