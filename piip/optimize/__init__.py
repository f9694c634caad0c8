"""`optimize_for_inference`: the same outputs, faster, on the processor at hand.

`rewrite` copies a model and replaces its layers; `packing` lays weights out once, `folding` folds factors into them,
`fused_block` runs transformer blocks in fewer steps.

Imports `branches`, `layers` and `ops`. A new replacement is a function in `rewrite` that returns a module or None.
"""
