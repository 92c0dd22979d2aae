"""The run-time check of annotations that jaxtyping applies to every function of `rlhf_lightning.ops`."""

import inspect
from functools import wraps
from typing import get_type_hints

from typeguard import check_type


def checked(function):
    """Check arguments and result, one by one: `typeguard.typechecked` would read the shape strings as Python."""
    signature, hints = inspect.signature(function), get_type_hints(function)

    @wraps(function)
    def wrapper(*args, **kwargs):
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_type(value, hints[name])
        result = function(*args, **kwargs)
        if "return" in hints:
            check_type(result, hints["return"])
        return result

    return wrapper
