"""The decision table of the Switch, as its module states it."""

from __future__ import annotations

from coupler import switch
from generate import text


def parts() -> dict[str, str]:
    """`switch_table`: the module's docstring without its first line."""
    _, _, rest = text.docstring(switch).text.partition("\n")
    return {"switch_table": text.markdown(rest)}
