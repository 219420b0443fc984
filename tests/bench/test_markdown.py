from fewstep.bench.markdown import table


def test_a_table_has_a_head_a_rule_and_its_rows():
    assert table(["a", "b"], [["1", "2"], ["3", "4"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
