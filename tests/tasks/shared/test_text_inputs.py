"""What is predicted: rows of tables, as people have them."""

from hftoolkit.contracts import Unusable
from hftoolkit.recipe import TextData
from hftoolkit.tasks.shared.text_inputs import text_inputs


def test_a_line_with_another_number_of_cells_costs_its_row_alone(tmp_path):
    (tmp_path / "t.csv").write_text("id;text\n1;one\ntorn\n3;three\n4;four\n")
    data = TextData.model_validate({"source": "x", "columns": {"text": "text", "label": "label"}})
    inputs = text_inputs(tmp_path / "t.csv", data, str)
    assert inputs.read(0, inputs.num_rows) == [
        "one",
        Unusable("row has another number of cells than the header"),
        "three",
        "four",
    ]
    assert "row 2 (line 3)" in inputs.describe({})


def test_a_table_is_read_as_the_recipe_says(tmp_path):
    (tmp_path / "t.csv").write_bytes("sch\u00f6n\nfein\n".encode("cp1252"))
    told = {"encoding": "cp1252", "names": ["text"]}
    data = TextData.model_validate({"source": "x", "columns": {"text": "text", "label": "label"}, "format": told})
    inputs = text_inputs(tmp_path / "t.csv", data, str)
    assert inputs.read(0, inputs.num_rows) == ["sch\u00f6n", "fein"]
