"""Models on disk and on the Hugging Face hub: safetensors weights, `config.json`, README.md.

Writing does not depend on model classes: `base` (`PyramidModel`, the methods of every model), `weights`
(safetensors, one tensor at a time), `save`, `model_card`, `hub`. `load` rebuilds models and imports `build`;
`mismatch` explains weights that do not match.
"""
