"""`piip bench`: time, memory and cost of models beside their accuracy.

`subjects` turns names, recipes and directories into models to measure; `presets` lists sets of them; `worker` runs one
model in a process of its own; `run` measures them in turn and keeps every round; `table` and `figure` show the rows.

A new preset is one entry in `presets.PRESETS`, a new way to run a model one in `worker.FORMS`.
"""
