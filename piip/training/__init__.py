"""Training by PyTorch Lightning: from a recipe to a folder with checkpoints, logs and an exported model.

`train` runs it; `setup` makes and checks the parts; `tasks` holds one Lightning module a task; `callbacks`, `optim`,
`loggers` and `progress` do what their names say; `run_folder` finds checkpoints; `sharding` is FSDP2.

Only this package imports Lightning.
"""
