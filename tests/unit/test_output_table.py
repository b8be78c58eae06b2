"""Tables without a terminal are written without rich, whose import takes longer than the rest of a listing."""

from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_ray_flow.cli.output import console, print_table, table

CELLS = st.text("ab ]:[/", max_size=30)
TABLES = st.integers(1, 4).flatmap(
    lambda count: st.lists(st.lists(CELLS, min_size=count, max_size=count), min_size=1, max_size=4)
)


def test_a_table_without_a_terminal_is_what_rich_would_write(capsys):
    @settings(max_examples=100, deadline=None)
    @given(TABLES)
    def check(rows):
        columns = ["RUN", "FUNCTION", "A", ""][: len(rows[0])]
        print_table(columns, rows)
        quick = capsys.readouterr().out
        console().print(table(columns, rows))
        assert quick == capsys.readouterr().out

    check()
