"""Tables of words and numbers, in the terminal and in Markdown."""

from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

DASH = "-"  # where there is no number


def with_interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """Return `value [low, high]`, the value alone where it has no interval, a dash where there is none."""
    if value is None:
        return DASH
    if low is None or high is None:
        return format(value, form)
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Return the lines of a Markdown table whose first `words` columns are words and the others numbers."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * words + "--:|" * (len(head) - words)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def terminal_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Collection[int],
    marked: Collection[int] = (),
    ruled: Collection[int] = (),
    title: str = "",
    caption: str | Text = "",
) -> Table:
    """Return a table for the terminal.

    The columns `numbers` are aligned to the right, the rows `marked` stand out, the rows `ruled` have a line below.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.title_justify, table.title_style = title or None, "left", "bold"
    table.caption, table.caption_justify = caption or None, "left"
    for column, name in enumerate(head):
        table.add_column(name, justify="right" if column in numbers else "left", no_wrap=True)
    for index, row in enumerate(rows):
        style = "bold green" if index in marked else None
        # As `Text`, because rich reads what stands in brackets in a plain string as its markup.
        table.add_row(*map(Text, row), style=style, end_section=index in ruled)
    return table


def print_table(table: Table, width: int, console: Console | None = None) -> None:
    """Print a table; where the output is not a terminal, without colour and `width` columns wide."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=width, no_color=True, highlight=False)
    console.print(table)
