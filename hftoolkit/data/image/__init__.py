"""Images: sources, decoding into a cache, duplicates."""
