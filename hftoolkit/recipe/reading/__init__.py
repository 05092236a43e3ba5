"""From a recipe file to a checked recipe, or to one message that lists all of its problems."""
