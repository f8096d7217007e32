"""Tables on the console and in Markdown."""

from detector.core.tables import markdown, show


def test_a_table_in_a_pipe_is_not_folded(capsys):
    show(["name", *map(str, range(30))], [["a row", *(f"0.{i:08}" for i in range(30))]], "its title")
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "a row" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["a row", *(f"0.{i:08}" for i in range(30))]


def test_markdown():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |\n"
