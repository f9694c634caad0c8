"""Export for other runtimes: one file that needs neither this library nor, for most formats, PyTorch.

`exporter` runs it; `tracing` traces a model with named outputs; `formats` is the table of file formats; `comparison`
compares the file with PyTorch; `int8` quantizes it; `sidecar` describes
it in JSON; `files` writes atomically.

A new format is one line in `formats.FORMATS`.
"""
