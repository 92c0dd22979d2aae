"""How objects were constructed, as plain data."""

import copy
import inspect
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from rlhf_lightning.records.constructed import Constructed, PlainValues, arguments_of


class Colour(Enum):
    RED = "r"


@dataclass
class Lone:
    size: int = 3
    derived: int = field(default=0, init=False)


@dataclass
class Shape:
    sides: int = 4


@dataclass
class Polygon(Shape):
    regular: bool = True


class Parent(Constructed):
    def __init__(self, first, second=2):
        self.first = first


class Child(Parent):
    """Passes on its options, and calls the parent's constructor with other arguments than its own."""

    def __init__(self, name, *, scale=1.0, **options):
        super().__init__(name.upper(), **options)


class Without(Constructed):
    pass


def plain(value):
    values = PlainValues()
    return values.plain("key", value), values.inexpressible


def path(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def test_arguments_are_those_of_the_outermost_call_with_defaults_and_options():
    assert arguments_of(Child("a", second=5)) == {"name": "a", "scale": 1.0, "second": 5}
    assert arguments_of(Parent(1)) == {"first": 1, "second": 2}
    assert arguments_of(Without()) == {}
    assert arguments_of(Lone(7)) == {"size": 7}
    assert arguments_of(object()) is None


def test_classes_show_the_signature_of_their_constructor():
    assert list(inspect.signature(Child).parameters) == ["name", "scale", "options"]
    assert str(inspect.signature(Parent)) == "(first, second=2)"


def test_copies_keep_the_arguments():
    assert arguments_of(copy.deepcopy(Child("a"))) == {"name": "a", "scale": 1.0}


def test_plain_values_stay_and_others_become_plain():
    assert plain({"a": [1, (2.5, None)], "b": Path("x/y"), "c": Colour.RED, "d": True}) == (
        {"a": [1, [2.5, None]], "b": "x/y", "c": "RED", "d": True},
        {},
    )


def test_objects_are_named_by_class_path():
    expected = {"class_path": path(Child), "init_args": {"name": "a", "scale": 2.0}}
    assert plain([Child("a", scale=2.0)]) == ([expected], {})


def test_dataclasses_name_their_class_only_where_there_are_several():
    assert plain(Lone()) == ({"size": 3}, {})
    assert plain(Shape()) == ({"class_path": path(Shape), "init_args": {"sides": 4}}, {})
    assert plain(Polygon())[0] == {"class_path": path(Polygon), "init_args": {"sides": 4, "regular": True}}


def test_what_cannot_be_expressed_is_named_and_has_no_address():
    class Local(Constructed):
        def __init__(self, size=1):
            self.size = size

    value, inexpressible = plain({"items": [3, sys.stdout.write, object()], "local": Local()})
    assert value["local"] == {"class_path": path(Local), "init_args": {"size": 1}}
    assert list(inexpressible) == ["key.items.1", "key.items.2", "key.local"]
    assert value["items"][2] == inexpressible["key.items.2"] == "<object object>"
    assert not any("0x" in words for words in inexpressible.values())
