"""One file a command: what it does, from the recipe or the run to what the user sees."""
