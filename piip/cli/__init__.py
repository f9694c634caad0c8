"""The command `piip`: one file a command, functions whose docstrings are the help texts.

`main` is the entry point with the table of commands; `parser` makes arguments of signatures, `help` adds examples.
Everything heavy is imported inside the functions, so that help answers at once.

A new command is a file here and one line in `main.COMMANDS`.
"""
