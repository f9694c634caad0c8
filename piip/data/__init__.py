"""Data sets, transforms, batches, and resumable loading.

`image_folder`, `coco` and `semantic_masks` are data sets, one file per format; `transforms` prepares samples, `collate`
makes batches; `loader` and `sampler` track the position in an epoch; `image_files` reads files for prediction;
`image_check` checks files before training; `sources` creates sample data sets.

A new format is a file here and one line in the table of `formats.py`.
"""
