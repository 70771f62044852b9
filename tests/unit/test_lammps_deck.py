from __future__ import annotations

import pytest

from sim_clients.adapters.lammps_deck import Command, DeckError, read_deck, refuse, run_line, split, with_keywords
from sim_clients.adapters.lammps_units import unit_of

MELT = """\
# melt
units metal      # Angstrom, eV
fix 1 all &
    nve          # continued
print "a # b"

timestep 0.001
run 100
velocity all scale 2
run 50 pre no
quit
minimize 0 0 1 1
"""


def deck(text, **files):
    return read_deck("in", {"in": text, **files}.__getitem__)


def test_commands_have_the_line_they_begin_in():
    found = list(split(MELT, "in.melt"))
    assert [(c.line, c.name) for c in found[:5]] == [
        (2, "units"),
        (3, "fix"),
        (5, "print"),
        (7, "timestep"),
        (8, "run"),
    ]
    assert found[1].words == ["fix", "1", "all", "nve"]
    assert found[2].text == 'print "a # b"'
    assert found[3].place == "in.melt:7"


def test_triple_quotes_span_lines_and_a_last_continuation_ends():
    (one, two) = split('print """a\nb # c"""\nfix 1 all &')
    assert one.words[1] == "a\nb # c"
    assert two.words == ["fix", "1", "all"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("timestep 0.0& \n04", [["timestep", "0.004"]]),
        ("fix 1 all &\r\n  nve\r\nrun 1\r\n", [["fix", "1", "all", "nve"], ["run", "1"]]),
        ("# a\x0cb\x85c\u2028minimize\nrun 1", [["run", "1"]]),
        ("units\x0creal", [["units", "real"]]),
        ("print a\x85b", [["print", "a\x85b"]]),
        ("\ufeffunits real", [["units", "real"]]),
        ("run\u00a01", [["run", "1"]]),
        ('print ""&\n" x"""', [["print", " x"]]),
        ('print """a \n\nb"""', [["print", "a\nb"]]),
        ('print """a "b # c" d""" # e', [["print", 'a "b # c" d']]),
        ("print 'a\\' it's", [["print", "a\\", "it's"]]),
        ("print \u201ca b\u201d", [["print", "a b"]]),
    ],
)
def test_lines_and_words_are_those_that_lammps_reads(text, words):
    assert [command.words for command in split(text)] == words
    assert [command.name for command in split(text)] == [first for first, *_ in words]


def test_a_deck_ends_with_quit_and_knows_its_runs_and_units():
    found = deck(MELT)
    assert [found.commands[i].line for i in found.runs] == [8, 10]
    assert found.units == "metal"


@pytest.mark.parametrize(
    ("text", "units", "source"),
    [
        ("", "lj", None),
        ("units metal\nunits real", "real", 2),
        ("variable u index si\nunits ${u}", "", 2),
        ("units foo", "", 1),
        ("units", "", 1),
        ("read_restart r", "", 1),
        ("units metal\nread_restart r", "", 2),
        ("units real\nclear", "lj", None),
        ('units real\nif "${a} > 1" then "units metal"', "", 2),
        ("kim init LJ real", "", 1),
    ],
)
def test_units_are_not_guessed(text, units, source):
    found = deck(f"{text}\nrun 1")
    assert found.units == units
    assert (found.units_from and found.units_from.line) == source


def test_included_files_are_put_in():
    found = deck("include pot\nrun 1", pot="units real\npair_style lj/cut 2.5")
    assert [c.place for c in found.commands] == ["pot:1", "pot:2", "in:2"]
    for line, files in (("include ${f}", {}), ("include in", {})):
        with pytest.raises(DeckError, match=r"in:1: 'include .*write the name of one other file"):
            deck(f"{line}\nrun 1", **files)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("minimize 0 0 10 10", "minimise in a deck of its own"),
        ("rerun dump.x dump x y z", "no dynamics"),
        ("jump SELF loop", "write the loop out"),
        ('if "${a} > 1" then "run 10"', "write the line out"),
        ('if "${a} > 1" then "include more"', "whether its include happens .* write the line out"),
        ('if "${a} > 1" then "print x" else quit', "whether its quit happens .* leave it out"),
        ('if "${a} > 1" then "thermo v_s"', "write a number"),
        ("partition yes 1 run 10", "write the line out"),
        ("fix 9 all deposit 1 1 1 1", "fixed number"),
        ("boundary p p s", "shrink-wrapped"),
        ("change_box all boundary p p sm", "shrink-wrapped"),
        ("change_box all triclinic", "leave the box orthogonal"),
        ("fix 9 all dt/reset 5 1e-5 0.01 0.1", "LAMMPS would choose dt by itself"),
        ("fix 9 all halt 5 v_k > 3 error soft", "ends runs early"),
        ("timer timeout 0:10:00", "ends runs early"),
        ("fix 9 all smd/adjust_dt 0.1", "LAMMPS would choose dt by itself"),
        ("run_style respa 2 4 pair 1", "use run_style verlet"),
        ("thermo v_s", "write a number"),
        ('variable t equal "elapsed * 2"', "use elaplong"),
        ("variable t atom x*elapsed", "use elaplong"),
        ('fix 9 all print 10 "$(step) $(elapsed)"', "use elaplong"),
        ("atom_modify map array id no", "leave `id no` out"),
    ],
)
def test_what_cannot_be_driven_is_refused_by_line(line, why):
    with pytest.raises(DeckError, match=f"in:2: .*cannot be driven.*{why}"):
        deck(f"units lj\n{line}\nrun 10")


@pytest.mark.parametrize(
    "line",
    [
        "variable t equal elaplong",
        "variable t equal v_elapsed+${elapsed}",
        'variable t string "time elapsed"',
        'fix 9 all print 10 "time elapsed: $(elaplong)"',
        "thermo 100",
        "run_style verlet",
        "atom_modify map array id yes",
        """if "${a} > 1" then "print 'no run'" """,
    ],
)
def test_what_is_alike_is_driven(line):
    assert deck(f"{line}\nrun 10\n{line}\nrun 10").runs == (1, 3)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("delete_atoms all", "must stay the same"),
        ('if "${a} > 1" then "delete_atoms all"', "must stay the same"),
        ("reset_atoms id", "renumbers atoms"),
        ("reset_atom_ids", "renumbers atoms"),
        ("reset_ids", "renumbers atoms"),
    ],
)
def test_atoms_may_change_before_the_first_run_only(line, why):
    deck(f"{line}\nrun 10")
    with pytest.raises(DeckError, match=rf"in:2: .* cannot be driven: .*{why}.*before the first run"):
        deck(f"run 10\n{line}\nrun 10")


def test_a_command_is_refused_for_the_values_of_its_variables():
    command = Command("in", 3, "change_box all ${how}")
    refuse(command, "change_box all ortho")
    with pytest.raises(DeckError, match="in:3: 'change_box all triclinic' cannot be driven"):
        refuse(command, "change_box all triclinic")


def test_a_deck_without_a_run_line_is_refused():
    with pytest.raises(DeckError, match="in:1: there is no run line up to here"):
        deck("units lj")


def test_a_run_line_says_how_far_and_how():
    def told(text):
        return run_line(Command("in", 3, text), text.split())

    assert (told("run 10").steps, told("run 10").setup) == (10, True)
    assert told("run 10 upto").upto
    line = told("run 10 start 5 stop 20 pre no post no")
    assert (line.start, line.stop, line.setup) == (5, 20, False)
    with pytest.raises(DeckError, match=r"in:3: .run 10 every 2 NULL. cannot be driven: it runs commands on the way"):
        told("run 10 every 2 NULL")
    with pytest.raises(DeckError, match=r"in:3: run knows no 'often'"):
        told("run 10 often 2")
    for wrong in ("run", "run ten", "run 10 start"):
        with pytest.raises(DeckError, match=r"in:3: .* is no run command"):
            told(wrong)


def test_keywords_that_are_missing_are_shown_too():
    custom = Command("in", 1, "thermo_style custom step temp")
    assert with_keywords(custom, ["temp", "econserve"]) == "thermo_style custom step temp econserve"
    for text in ("thermo_style one", "thermo 100"):
        assert with_keywords(Command("in", 1, text), ["pe"]) == text


def test_units_of_fields():
    assert unit_of("velocity", "metal") == "A/ps"
    assert (unit_of("econserve", "real"), unit_of("temp", "real"), unit_of("vol", "nano")) == ("kcal/mol", "K", "nm^3")
    assert (unit_of("temp", "lj"), unit_of("x", "lj"), unit_of("v_mine", "metal")) == ("1", "1", "1")
