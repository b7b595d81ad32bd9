"""Checks of what was read as JSON, as by a later run: state and footers may hold anything."""

from typing import Any


def has_form(value: Any, form: Any) -> bool:
    """Tell whether a value that was read as JSON has a form: a type, one of several, or keys with theirs.

    An object may have more keys. `float` stands for whole numbers too, but never for true and false.
    """
    if isinstance(form, dict):
        return isinstance(value, dict) and all(k in value and has_form(value[k], form[k]) for k in form)
    if isinstance(form, tuple):
        return any(has_form(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(has_form(each, form[0]) for each in value)
    if form is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, form) and (form is bool or not isinstance(value, bool))
