"""Models for other runtimes: one file that needs neither this library nor, for most formats, PyTorch.

`exporter` runs it; `wrappers` make a model one graph with named outputs; `tracing` traces it; `formats` is the table of
file formats; `comparison` runs the file beside PyTorch; `sidecar` describes it in JSON; `files` writes all or nothing.

A new format is one line in `formats.FORMATS`.
"""
