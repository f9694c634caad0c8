"""Choosing a pyramid for a budget: `piip plan`.

`families` finds networks that go together, `tasks` what is added for a task, `candidates` lists and counts pyramids,
`evidence` says what was published about pyramids of the same shape, `search` chooses, `report` shows and writes,
`command` is the whole. A new family is an entry in `piip.zoo.families.NETWORK_FAMILIES`, a new task one in
`tasks.TASKS`.

Uses cost, zoo, recipe and bench; only the command line imports it.
"""
