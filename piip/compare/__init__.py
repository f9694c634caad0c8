"""`piip compare`: models trained and evaluated under one budget, over several seeds.

`config` reads the file, `plan` turns it into recipes and runs, `measure` knows the metrics of a task, `worker` trains
and evaluates one run in a process of its own, `session` works the plan off, `results` reads what the runs left and
averages it, `report` writes table and figure, `command` joins them. A run's folder is the only record of what was done,
so that an interrupted comparison continues from there.

A new column of the report is one entry in `report.COLUMNS`, a task that can be compared one in `measure.MEASURES`.
"""
