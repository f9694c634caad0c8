"""Images from disk: data sets, transforms, batches, and what of it can be resumed.

`image_folder`, `coco` and `semantic_masks` are data sets, one file a format; `transforms` prepares samples, `collate`
makes batches; `loader` and `sampler` know where an epoch stands; `image_files` reads files for prediction,
`image_check` before training; `sources` makes sample data sets.

A new format is a file here and one line in the table of `formats.py`.
"""
