"""Tables and images: read, checked, divided into splits, summed up."""
