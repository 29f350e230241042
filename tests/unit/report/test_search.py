"""The table and the picture at the end of a search."""

from __future__ import annotations

import io

from PIL import Image

from speech2image.report.search import TrialRow, comma_separated, draw_history, markdown, search_table

ROWS = (
    TrialRow(0, "finished", 2.0, ((10, 3.0), (20, 2.0)), {"lr": "0.1"}, "a-1"),
    TrialRow(1, "pruned", None, ((10, 9.0),), {"lr": "0.5"}, "a-2"),
    TrialRow(2, "failed", None, (), {"lr": "0.9"}, message="no memory"),
    TrialRow(3, "finished", 1.0, ((10, 2.0), (20, 1.0)), {"lr": "0.2"}, "a-3", is_best=True),
)


def test_table_names_every_trial_and_the_best() -> None:
    table = search_table(ROWS, "val_loss")
    assert table[0] == ["trial", "state", "val_loss", "lr", "run"]
    assert table[2] == ["1", "pruned at step 10", "", "0.5", "a-2"]
    assert table[4][0] == "3 *" and table[4][2] == "1"
    assert len(markdown(table).splitlines()) == 6
    assert comma_separated(table).splitlines()[1] == "0,finished,2,0.1,a-1"


def test_picture_is_drawn_of_any_rows_and_equal_rows_give_equal_bytes() -> None:
    first = draw_history(ROWS, "val_loss", "minimize")
    assert first == draw_history(ROWS, "val_loss", "minimize")
    assert first != draw_history(ROWS, "val_loss", "maximize")
    for rows in (ROWS, ROWS[1:3], ()):
        picture = Image.open(io.BytesIO(draw_history(rows, "val_loss", "minimize")))
        assert min(picture.size) > 400
