"""The run directory: file names, lifecycle, checkpoints, resume, tables and figures."""
