from __future__ import annotations

from typing import Annotated

import pytest

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError


def ask(count: specs.Count, rate: specs.Rate = 0.5, maybe: Annotated[float | None, specs.Within(0)] = None, name=""):
    return count, rate, maybe, name


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"count": "3"}, "count is '3'; it must be of type int"),
        ({"count": True}, "count is True; it must be of type int"),
        ({"count": 0}, "count is 0; it must be from 1 to 2,147,483,647"),
        ({"count": 10**5000}, "count is an integer of 16610 bits; it must be a finite number of 64 bits"),
        ({"count": 1, "rate": float("nan")}, "rate is nan; it must be a finite number"),
        ({"count": 1, "rate": True}, "rate is True; it must be of type float"),
        ({"count": 1, "rate": 1.5}, "rate is 1.5; it must be from 0 to 1"),
        ({"count": 1, "maybe": -1}, "maybe is -1; it must be 0 or more"),
    ],
)
def test_a_value_that_makes_no_sense_is_told_though_annotations_are_strings(section, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        specs.call(ask, section, "config.x")


def test_a_value_that_fits_is_passed_on():
    assert specs.call(ask, {"count": 2, "rate": 1, "maybe": None}, "config.x") == (2, 1, None, "")


def test_a_whole_number_for_a_float_is_one():
    found = specs.call(ask, {"count": 2, "rate": 1, "maybe": 3}, "config.x")
    assert [type(value) for value in found[:3]] == [int, float, float]


@pytest.mark.parametrize("kind", [TypeError, ValueError, AttributeError, AssertionError])
def test_what_a_callee_raises_is_a_defect_and_goes_through(kind):
    def broken():
        raise kind("a bug")

    with pytest.raises(kind, match=r"^a bug$") as error:
        specs.build({"broken": broken}, "broken", "config.x")
    assert not isinstance(error.value, UserError)
