from detector.core.tables import markdown, show


def test_a_table_that_is_not_on_a_terminal_is_as_wide_as_it_needs(capsys):
    show(["name", *map(str, range(30))], [["a row", *(f"0.{i:08}" for i in range(30))]], "its title")
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "a row" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["a row", *(f"0.{i:08}" for i in range(30))]


def test_markdown():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |\n"
