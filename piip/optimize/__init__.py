"""`optimize_for_inference`: the same outputs, faster, on the processor at hand.

`rewrite` copies a model and replaces its layers; `packing` lays weights out once, `folding` folds factors into them,
`fused_block` runs transformer blocks in fewer steps, `fused_levels` the layers of the DINO head.

Imports `branches`, `heads`, `layers` and `ops`. A new replacement is a function that returns a module or None and that
`rewrite` calls.
"""
