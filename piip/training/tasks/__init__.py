"""Lightning modules: one task per file, steps and metrics only; `build` picks the one for a recipe's data.

A new task is a file here and one line in the table of `build`.
"""
