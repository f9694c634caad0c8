"""Models on disk and on the Hugging Face hub: safetensors weights, `config.json`, README.md.

Writing comes first and knows no model class: `base` (`PyramidModel`, what every model can do), `weights`
(safetensors, one tensor at a time), `save`, `model_card`, `hub`. `load` rebuilds models and imports `build`;
`mismatch` explains weights that do not fit; `meta_device` builds models without values.
"""
