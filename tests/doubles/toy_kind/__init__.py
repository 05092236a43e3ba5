"""A kind that the package does not have: two files and a line, which a test adds to a copy of the package."""
