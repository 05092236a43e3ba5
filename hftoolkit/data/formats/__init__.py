"""How a table file becomes columns: its bytes and text, cells with separators, JSON, and spreadsheets."""
