"""Data sets, transforms, batches, and resumable loading.

`image_folder`, `coco` and `semantic_masks` are data sets, one file per format, on the base class in `labelled_images`;
`coco_file`, `annotations`, `locate` and `listing` read what people have, and `findings` collects what is wrong with it;
`object_masks` and `packed` keep objects small; `transforms` prepares samples, `collate` makes batches; `loader` and
`sampler` track the position in an epoch; `splitting` divides a split; `image_reading` and `image_files` read images;
`image_check` checks files before training; `conversion` reads other tools' formats; `sources` creates sample data sets.

A new format is a file here and one line in the table of `formats.py`.
"""
