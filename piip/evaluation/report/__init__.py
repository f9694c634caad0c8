"""Report folders: page and tables, plots, drawings and sheets of images.

`page` writes report.md and report.json, `plots` is the only file that imports matplotlib, `drawing` draws targets and
predictions, `sheet` arranges images in rows, `dense` is the report of detectors and segmentors.
"""
