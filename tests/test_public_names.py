"""Two public classes never share a name, and every public name can be imported."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import rlhf_lightning
from rlhf_lightning.algorithms import all_algorithms

PACKAGE = Path(rlhf_lightning.__file__).parent


def class_name(node):
    """Of a public class, or of a type that is defined as others."""
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
        name = ast.unparse(node.target)
    else:
        name = node.name if isinstance(node, ast.ClassDef) else "_"
    return None if name.startswith("_") else name


def test_public_classes_have_names_of_their_own():
    places = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if name := class_name(node):
                places[name].append(str(path.relative_to(PACKAGE)))
    assert "KLEstimator" in places
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("name", sorted(rlhf_lightning.public_names()))
def test_public_name_can_be_imported(name):
    assert getattr(rlhf_lightning, name).__name__ == name


def test_algorithms_are_found_in_their_files():
    assert rlhf_lightning.public_names()["KTO"] == "algorithms.kto"
    assert {algorithm.__name__ for algorithm in all_algorithms()} <= set(dir(rlhf_lightning))
