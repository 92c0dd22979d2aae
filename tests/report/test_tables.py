import numpy as np
import pandas as pd

from rlhf_lightning.report.tables import as_text, markdown_table


def test_a_table_is_aligned_and_numbers_stand_to_the_right():
    table = pd.DataFrame({"arm": ["ppo", "grpo"], "seeds": [5, 1000]})
    assert markdown_table(table) == (
        "| arm  | seeds |\n"
        "|------|------:|\n"
        "| ppo  |     5 |\n"
        "| grpo | 1,000 |"
    )  # fmt: skip


def test_rows_are_a_table_whose_first_is_the_head():
    assert markdown_table([["a", "b"], ["x", "1"]]) == "| a | b |\n|---|---|\n| x | 1 |"
    assert markdown_table([["a", "b"]]) == "| a | b |\n|---|---|"


def test_what_would_end_a_cell_is_escaped():
    assert markdown_table([["a"], ["x|y\nz"]]).splitlines()[2] == "| x\\|y z |"


def test_cells_read_as_one_would_write_them():
    cells = [0.123456, 1.0, -2000, np.int64(3), np.nan, None, pd.NA, True, np.bool_(False), float("inf"), "x"]
    texts = ["0.12", "1", "−2,000", "3", "–", "–", "–", "yes", "no", "∞", "x"]
    assert [as_text(cell) for cell in cells] == texts
