"""Units of LAMMPS's unit styles, as text for the fields. Pure.

Source: LAMMPS documentation, command `units`.
"""

from __future__ import annotations

_QUANTITIES = ("distance", "velocity", "energy", "pressure", "force", "time")
_STYLES: dict[str, tuple[str, ...]] = {
    "real": ("A", "A/fs", "kcal/mol", "atm", "kcal/mol/A", "fs"),
    "metal": ("A", "A/ps", "eV", "bar", "eV/A", "ps"),
    "si": ("m", "m/s", "J", "Pa", "N", "s"),
    "cgs": ("cm", "cm/s", "erg", "dyn/cm^2", "dyn", "s"),
    "electron": ("Bohr", "Bohr/atu", "Hartree", "Pa", "Hartree/Bohr", "fs"),
    "micro": ("um", "um/us", "pg um^2/us^2", "pg/(um us^2)", "pg um/us^2", "us"),
    "nano": ("nm", "nm/ns", "ag nm^2/ns^2", "ag/(nm ns^2)", "ag nm/ns^2", "ns"),
}
_KEYWORDS = {
    "energy": "pe ke etotal enthalpy evdwl ecoul epair ebond eangle edihed eimp emol elong etail ecouple econserve",
    "pressure": "press pxx pyy pzz pxy pxz pyz",
    "distance": "lx ly lz xlo xhi ylo yhi zlo zhi",
    "time": "dt time",
}


def unit_of(quantity: str, style: str) -> str:
    """The unit of `distance`, `velocity`, `force` or a thermo keyword; "1" for what has none or is not known.

    Args:
        quantity: What.
        style: The deck's unit style.
    """
    if style not in _STYLES:
        return "1"
    table = dict(zip(_QUANTITIES, _STYLES[style], strict=True)) | {"temp": "K", "vol": f"{_STYLES[style][0]}^3"}
    kind = next((kind for kind, keywords in _KEYWORDS.items() if quantity in keywords.split()), quantity)
    return table.get(kind, "1")
