"""Parts of a pyramid that are not networks: resizing, cross-attention, interaction, merging, necks.

`image_pyramid` makes the branches' images; `attention` and `interaction` exchange features between neighbours;
`merge` joins the branches; `necks` makes levels of several strides; `checkpointing` recomputes activations.

Modules here take numbers or modules, never descriptions. They import `structures` and `ops` only. A new merge,
attention or neck is a module here and one line in the table of `piip/build`.
"""
