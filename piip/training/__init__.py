"""Training with PyTorch Lightning: from a recipe to a folder with checkpoints, logs and a saved model.

`train` runs it, with what `prepare` and `setup` build and check; `trainer` makes Lightning's; `tasks` contains one
Lightning module per task; `callbacks`, `optim`, `loggers` and `progress` are what their names say; `run_folder` finds
checkpoints; `sharding` is FSDP2.

Only this package imports Lightning.
"""
